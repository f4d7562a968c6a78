"""The numbers that an announcement carries: the shared factors, then the personal start where one is sent.

The start of the personal part comes from the warm-up, so only a plan after one sends it; everybody else makes
the common start from the plan's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from penchant.common.config import Plan
from penchant.common.errors import AgreementError

if TYPE_CHECKING:  # whoever only joins numbers needs no torch
    from penchant.common.model.factors import Split, Vector

__all__ = ["LARGEST", "check", "drawn_start", "join", "length", "parts"]

LARGEST = 1e3
"""The largest absolute value of an announced number that a device takes, unless its owner says otherwise."""


def join(plan: Plan, shared: Vector, start: Vector) -> Vector:
    """What an announcement of `plan` carries of these shared factors and this start of the personal part."""
    return np.concatenate([shared, start]) if plan.start_sent else shared


def check(factors: Vector, largest: float = LARGEST) -> None:
    """AgreementError unless all of `factors` are finite and none is beyond `largest`: devices take no other,
    and a server announces no other."""
    if not np.isfinite(factors).all():
        raise AgreementError("the factors hold values that are not finite")
    if factors.size and float(np.abs(factors).max()) > largest:
        raise AgreementError(f"the factors exceed {largest:g}; they can't be of a sound run")


def length(plan: Plan, split: Split) -> int:
    """How many numbers an announcement of `plan` carries."""
    return split.shared.size + (split.personal.size if plan.start_sent else 0)


def drawn_start(plan: Plan, split: Split) -> Vector:
    """The common start of the personal part, [d_personal], where `plan` does not send one; else empty."""
    return np.empty(0, np.float32) if plan.start_sent else split.initial(plan.seed)[1]


def parts(plan: Plan, split: Split, factors: Vector, drawn: Callable[[], Vector]) -> tuple[Vector, Vector]:
    """(shared factors, start of the personal part) of the announced `factors`: what `join` put together.

    drawn: gives the start, as `drawn_start` does; not called where the plan sends one.
    """
    shared, start = factors[: split.shared.size], factors[split.shared.size :]
    return shared, start if plan.start_sent else drawn()
