"""From rho (zero-concentrated differential privacy) to epsilon at a delta, and back.

rho of rounds, attempts and runs adds up (Bun and Steinke 2016), whatever was learned from one before the next
was chosen; no gain from sampling is claimed, since the server draws the cohort. The conversion is proposition
12 of Canonne, Kamath and Steinke (2020, version 4), the least over a fixed row of orders: each order gives a
true bound, so the least of them is one. The tests hold it to `dp-accounting`, bit for bit; a device does
without that library, which brings scipy along.

A device and its server must come to the same figure. The orders are exact floats, epsilon is rounded up to a
multiple of 2^-30, and rho to one of 2^-44: what a sum costs up, what a promise allows down. That swallows how
libraries of functions differ in last bits, and lets a ledger add up without error.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

from penchant.common.errors import PrivacyError

__all__ = [
    "DELTA_LEAST",
    "DELTA_MOST",
    "EPSILON_LEAST",
    "EPSILON_MOST",
    "RHO_GRID",
    "check_target",
    "epsilon_of",
    "rho_of",
    "rho_rounded_up",
]

EPSILON_MOST: Final = 100.0
"""Beyond it nothing is promised any more: e^100 times as likely."""

EPSILON_LEAST: Final = 1e-3
"""Below it the noise is a thousand times what a person can add, and rho would be too few of its grid."""

DELTA_LEAST: Final = 1e-15
"""Below it, what masks and streams promise (2^-40 a round, and the ciphers) would be the larger part."""

DELTA_MOST: Final = 1e-2
"""Above it, laying open one person in a hundred would count as privacy."""

RHO_MOST: Final = 1 << 14
"""Beyond it epsilon is called infinite; EPSILON_MOST is reached far below."""

RHO_GRID: Final = 1 << 44
"""Every rho here is a multiple of 1 / RHO_GRID, so that sums of them up to 512 are exact, in any order."""

_EPSILON_GRID: Final = 2.0**30
_HAIR: Final = 1 + 2.0**-40
"""More than what floats lose in a sum of three terms."""

_ORDERS: Final = tuple(
    1 + (32 + step) * 2.0 ** (octave - 5) for octave in range(-6, 21) for step in range(32)
)
"""1 + 2^-6 to 1 + 2^21, in steps of 1.6 to 3.1 % of what is above 1: exact floats."""


def check_target(epsilon: float, delta: float) -> None:
    """Refuse an epsilon or a delta that is out of range; raises `PrivacyError`."""
    if not EPSILON_LEAST <= epsilon <= EPSILON_MOST:
        raise PrivacyError(f"epsilon is {epsilon:g}; it must lie in {EPSILON_LEAST:g}..{EPSILON_MOST:g}")
    _check_delta(delta)


def epsilon_of(rho: float, delta: float) -> float:
    """The epsilon at `delta` that rho-zCDP implies: never below the truth, and the same on every machine.

    Args:
        rho: the sum of what each round, attempt and run costs, 0 or more. Beyond RHO_MOST the answer is
            infinite.
        delta: the probability that epsilon does not bound, DELTA_LEAST to DELTA_MOST.

    Raises:
        PrivacyError: rho or delta is out of range.
    """
    _check_delta(delta)
    if not rho >= 0:
        raise PrivacyError(f"rho is {rho:g}; it must be 0 or more")
    return _epsilon(rho, delta) if rho <= RHO_MOST else math.inf


@cache
def rho_of(epsilon: float, delta: float) -> float:
    """The largest multiple of 2^-44 for rho whose `epsilon_of` is at most epsilon.

    Args:
        epsilon: the target, EPSILON_LEAST to EPSILON_MOST.
        delta: the probability that epsilon does not bound, DELTA_LEAST to DELTA_MOST.

    Raises:
        PrivacyError: epsilon or delta is out of range.
    """
    check_target(epsilon, delta)
    low, high = 0, math.ceil(EPSILON_MOST) * RHO_GRID  # rho <= epsilon wherever delta is below 1/2
    while high - low > 1:
        middle = (low + high) // 2
        if _epsilon(middle / RHO_GRID, delta) <= epsilon:
            low = middle
        else:
            high = middle
    return low / RHO_GRID


def rho_rounded_up(rho: float) -> float:
    """The least multiple of 1 / RHO_GRID that is not below rho."""
    return math.ceil(rho * RHO_GRID) / RHO_GRID


def _check_delta(delta: float) -> None:
    if not DELTA_LEAST <= delta <= DELTA_MOST:
        raise PrivacyError(f"delta is {delta:g}; it must lie in {DELTA_LEAST:g}..{DELTA_MOST:g}")


def _epsilon(rho: float, delta: float) -> float:
    found = max(0.0, min(_bound(order, rho * order, delta) for order in _ORDERS))
    return math.ceil(found * _HAIR * _EPSILON_GRID) / _EPSILON_GRID


def _bound(order: float, divergence: float, delta: float) -> float:
    """An epsilon that a Rényi divergence of some order > 1 gives at a delta."""
    if delta**2 + math.expm1(-divergence) > 0:  # the total variation is below delta: Bretagnolle and Huber
        return 0.0
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
