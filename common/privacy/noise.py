"""How much noise each device adds, what a round with it costs a person, and that no sum wraps around.

Each of the people in a sum adds a vector of norm B at most, and `size` draws of the discrete Gaussian of
sigma, before masking. Colluders know their own shares, and those who drop out take theirs along: `honest` is
the number of shares that are in the sum and unknown to all others. A person's own share is one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from penchant.common.errors import PrivacyError
from penchant.common.privacy.accounting import rho_of, rho_rounded_up
from penchant.common.privacy.discrete_gaussian import SIGMA_MOST
from penchant.common.privacy.rounding import CLIP_MOST, norm_bound, squared_norm_bound

__all__ = ["SIGMA", "Noise", "solve"]

SIGMA: Final = 1 << 10
"""The sigma of every device's share, in grid units; the clip is chosen to fit it.

Large enough that rounding (a standard deviation of 1/2 at most) and discreteness (tau < 10^-4,000,000) cost
nothing; small enough that the sum of 10,000 people at epsilon 8 stays within 32 bits.
"""

_TAIL: Final = 2 * 40 * math.log(2)  # 2 ln(2^40)
_HAIR: Final = 1 + 2.0**-40  # more than what floats lose in a handful of operations


@dataclass(frozen=True)
class Noise:
    """What every device adds in a round, in grid units.

    Attributes:
        sigma: the parameter of a device's discrete Gaussian noise.
        clip: the bound on the L2 norm of a device's vector before it is rounded.
        size: the elements of a vector.
    """

    sigma: int
    clip: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.sigma <= SIGMA_MOST:
            raise PrivacyError(f"sigma is {self.sigma}; it must be an integer from 1 to {SIGMA_MOST}")
        squared_norm_bound(self.clip, self.size)

    @property
    def norm(self) -> float:
        """B: the bound on the L2 norm of a device's vector after it was rounded."""
        return norm_bound(self.clip, self.size)

    def rho(self, honest: int) -> float:
        """What one sum costs each person in zCDP, where a person's vector may be any or all zeros.

        eps^2 / 2 with eps = B / (sqrt(honest) sigma) + tau sqrt(size), where tau is the sum of
        10 exp(-2 pi^2 sigma^2 k / (k + 1)) over k = 1 .. honest - 1: Kairouz, Liu and Steinke (2021);
        proofs.md has the argument.

        Args:
            honest: how many shares of noise are in the sum that nobody knows, the person's own among them.

        Raises:
            PrivacyError: honest is below 1.
        """
        distance = self.norm / (_root(honest) * self.sigma)
        discreteness = _closeness(self.sigma, honest) * math.sqrt(self.size)
        return rho_rounded_up((distance + discreteness) ** 2 / 2 * _HAIR)

    def multiplier(self, honest: int) -> float:
        """z: the standard deviation of `honest` shares of noise over the most that a person can add, B."""
        return _root(honest) * self.sigma / self.norm

    def tail(self, people: int, groups: int = 1) -> int:
        """What no element of any of `groups` sums of `people` shares of noise exceeds, but with probability
        2^-40 in all.

        A share is sub-Gaussian with sigma^2 (Canonne, Kamath and Steinke 2020), so the sum is with
        people * sigma^2, and each of the 2 * size * groups tails beyond t has exp(-t^2 / (2 people sigma^2))
        at most.
        """
        if not self.size:
            return 0
        exponent = _TAIL + 2 * math.log(2 * self.size * groups)
        return math.ceil(_root(people) * self.sigma * math.sqrt(exponent) * _HAIR)

    def fits(self, people: int, ring: int, groups: int = 1) -> bool:
        """Whether all of a round's `groups` sums, each of `people` vectors and their noise at most, stay in
        the ring, but with probability 2^-40.

        Rounding leaves each element of a vector within the clip, which is an integer. That a sum wraps around
        would spoil it, and reveal nothing: the remainder is computed from what the noise already protects.
        """
        return people * self.clip + self.tail(people, groups) < 1 << (ring - 1)


def solve(*, epsilon: float, delta: float, participations: int, size: int, honest: int) -> Noise:
    """The noise for a promise: sigma is SIGMA, and the clip the largest that keeps within the promise.

    Args:
        epsilon: what a person's whole participation may cost, at `delta`.
        delta: the probability that epsilon does not bound.
        participations: in how many sums a person is at most, all rounds and attempts counted.
        size: the elements of a vector.
        honest: how many shares of noise that nobody knows are in a sum at least.

    Raises:
        PrivacyError: a number is out of range, or so few share that rounding would drown their vectors.
    """
    if participations < 1:
        raise PrivacyError(f"{participations} participations can't be paid for; the number must be 1 or more")
    _root(honest)
    budget = rho_of(epsilon, delta)

    def affordable(clip: int) -> bool:
        return Noise(SIGMA, clip, size).rho(honest) * participations <= budget

    low, high = 0, CLIP_MOST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    if not low or squared_norm_bound(low, size) > 4 * low**2:
        raise PrivacyError(
            f"{honest} honest people are too few for any use at epsilon {epsilon:g} over {participations} "
            f"sums of {size} elements: have more people in a sum, fewer rounds, a smaller shared part, or a "
            "larger epsilon"
        )
    return Noise(SIGMA, low, size)


def _root(people: int) -> float:
    if people < 1:
        raise PrivacyError(f"a sum of {people} people's noise does not exist; there must be 1 or more")
    return math.sqrt(people)


def _closeness(sigma: int, shares: int) -> float:
    """tau: how far the sum of `shares` discrete Gaussians is from one, as the logarithm of a ratio.

    The first summand is the largest. Where it is below all floats, the others are too, and tau is taken for
    0: `_HAIR` makes up for that as well.
    """
    summands = []
    for k in range(1, shares):
        summand = math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1))
        if summand == 0:
            break
        summands.append(summand)
    return 10 * math.fsum(summands)
