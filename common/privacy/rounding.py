"""Real numbers to integers by random rounding, with a proved bound on the L2 norm of what comes out.

x becomes floor(x) or floor(x) + 1, the latter with the probability of its fractional part: unbiased, and off
by less than 1. The norm can grow. Where it grows beyond a bound that it exceeds with probability 2^-40 at
most, the vector is cut towards zero instead, which never makes it longer. So the bound holds always.
Kairouz, Liu and Steinke (2021) round again until it holds; here both are always computed, so that neither
time nor number of coins says which one was taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penchant.common.errors import PrivacyError

__all__ = ["CLIP_MOST", "norm_bound", "round_within", "squared_norm_bound"]

CLIP_MOST: Final = 1 << 30
"""The largest clip, in grid units: squared norms stay below 2^63."""

SIZE_MOST: Final = 1 << 40
"""The most elements of a vector: (2^30 + 2^20)^2 < 2^63."""

_SPREAD: Final = 7.446595485929578
"""sqrt(2 ln(1 / beta)) for beta = 2^-40, rounded up: written down so that all machines have the same."""

_TOO_LONG: Final = "the numbers to round hold a NaN, or their norm is beyond the clip: clip them first"


def squared_norm_bound(clip: int, size: int) -> int:
    """The integer that the squared L2 norm of a rounded vector never exceeds.

    min(clip^2 + size/4 + sqrt(2 ln(1/beta)) (clip + sqrt(size)/2), (clip + sqrt(size))^2), the terms of the
    first rounded up, the second rounded down, as integer vectors allow. Each operation is one that IEEE 754
    rounds in one way, so that a server and its devices have the same integer.

    Args:
        clip: the bound on the norm before rounding, 1 to CLIP_MOST.
        size: the number of elements, 0 to SIZE_MOST.

    Raises:
        PrivacyError: clip or size is out of range.
    """
    if not 1 <= clip <= CLIP_MOST:
        raise PrivacyError(
            f"a clip of {clip} grid units can't be used; it is an integer from 1 to {CLIP_MOST}"
        )
    if not 0 <= size <= SIZE_MOST:
        raise PrivacyError(f"a vector of {size} elements can't be rounded; 0 to {SIZE_MOST} can")
    likely = clip**2 + -(-size // 4) + math.ceil(_SPREAD * (clip + math.sqrt(size) / 2))
    always = clip**2 + size + math.isqrt(4 * clip**2 * size)
    return min(likely, always)


def norm_bound(clip: int, size: int) -> float:
    """B: the bound on the L2 norm of what `round_within` gives; arguments as of `squared_norm_bound`."""
    squared = squared_norm_bound(clip, size)
    bound = math.sqrt(squared)
    top, bottom = bound.as_integer_ratio()
    return bound if top**2 >= squared * bottom**2 else math.nextafter(bound, math.inf)


def round_within(
    values: NDArray[np.float64],
    clip: int,
    random: NDArray[np.uint32] | Callable[[int], NDArray[np.uint32]],
) -> NDArray[np.int64]:
    """Integers for `values`, of an L2 norm that `norm_bound(clip, values.size)` bounds.

    Args:
        values: numbers in grid units, of an L2 norm up to the clip. A norm within the error of computing it
            is taken for the clip, and the values are scaled by as little as makes that true.
        clip: the bound on their norm, an integer of grid units.
        random: a uniform 32-bit word for each value, or what gives that many when it is called with a number.

    Raises:
        PrivacyError: the values are longer than the clip or hold a NaN, or the words don't fit them.
    """
    bound = squared_norm_bound(clip, values.size)
    words = random(values.size) if callable(random) else random
    if values.ndim != 1 or words.shape != values.shape or words.dtype != np.uint32:
        raise PrivacyError("rounding takes one row of numbers, and a 32-bit random word for each")
    within = _shortened(values.astype(np.float64), clip)
    low = np.floor(within)
    # x - floor(x) is exact but for tiny negative x, which it makes 1: no more than 2^-53 off
    up = words < (within - low) * 2.0**32
    rounded = low.astype(np.int64) + up
    cut = np.trunc(within).astype(np.int64)
    if not _squared(cut) <= clip**2:  # `_shortened` rules it out: nothing may rest on floats alone
        raise PrivacyError(_TOO_LONG)
    return np.where(_squared(rounded) <= bound, rounded, cut)


def _shortened(values: NDArray[np.float64], clip: int) -> NDArray[np.float64]:
    """The values with a norm that is at most the clip, not only as floats are added.

    Whatever the order of the additions, the sum of `size` squares is off by a factor of at most
    1 + size 2^-53 and a little, and its root by half as much: `hair` is beyond both, and the rounding of the
    products.
    """
    hair = (values.size + 8) * 2.0**-52
    with np.errstate(over="ignore"):  # an infinite norm is refused below
        norm = math.sqrt(float(np.dot(values, values)))
    if not norm <= clip * (1 + hair):  # so written, NaN is refused too
        raise PrivacyError(_TOO_LONG)  # how long is the owner's affair
    longest = clip * (1 - 2 * hair)
    return values * (longest / norm) if norm > longest else values


def _squared(integers: NDArray[np.int64]) -> int:
    """The squared norm, exactly: each is at most (clip + sqrt(size))^2 < 2^63."""
    return int(np.dot(integers, integers))
