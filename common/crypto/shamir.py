"""t-of-n secret sharing (Shamir 1979) of 32-byte secrets over the field of 2^256 + 297 elements.

The field is the smallest prime field that holds every 32-byte string, so a secret is shared as it is. A
share is the value of a random polynomial of degree t - 1 at the receiver's point x = index + 1, and the
secret its value at 0. Python's integers are faster here than numpy limbs for every group size in use; no
step depends on the secret's value other than through their arithmetic (a device shares its own secrets on
its own machine: timing of big-integer arithmetic is outside the model, docs/protocol.md says so).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import Final

from penchant.common.crypto.entropy import Entropy
from penchant.common.errors import SecretSharingError

__all__ = ["PRIME", "Combiner", "correct", "split"]

PRIME: Final = 2**256 + 297
SECRET: Final = 32  # bytes
SHARE: Final = 33  # bytes
_DRAW: Final = 48  # bytes a coefficient is drawn from: 128 bits above the field, so uniform within 2^-127
_RUN: Final = 32  # Horner steps between reductions


def _evaluate(falling: Sequence[int], x: int) -> int:
    """The polynomial with coefficients `falling` (highest first) at the small integer x, by Horner's rule."""
    value = 0
    for start in range(0, len(falling), _RUN):
        for coefficient in falling[start : start + _RUN]:
            value = value * x + coefficient
        value %= PRIME
    return value


def split(secret: bytes, threshold: int, count: int, entropy: Entropy) -> list[bytes]:
    """`count` shares of `secret` (32 bytes), any `threshold` of which rebuild it; for points 1..count.

    Raises `SecretSharingError` for 1 <= threshold <= count not holding.
    """
    if not 1 <= threshold <= count:
        raise SecretSharingError(f"a threshold of {threshold} among {count} can't be shared")
    drawn = entropy.draw(_DRAW * (threshold - 1))
    falling = [int.from_bytes(drawn[at : at + _DRAW], "big") % PRIME for at in range(0, len(drawn), _DRAW)]
    falling.append(int.from_bytes(secret, "big"))
    return [_evaluate(falling, x).to_bytes(SHARE, "big") for x in range(1, count + 1)]


def _element(share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if value >= PRIME:
        raise SecretSharingError("a share is not an element of the field")
    return value


def _secret(value: int) -> bytes:
    if value >> (8 * SECRET):
        raise SecretSharingError("the shares do not rebuild a 32-byte secret: some are wrong")
    return value.to_bytes(SECRET, "big")


class Combiner:
    """Lagrange's coefficients at 0 for one set of points, used for every secret shared to that set."""

    def __init__(self, points: Iterable[int]) -> None:
        """`points`: distinct and positive, as many as the threshold. Raises `SecretSharingError`."""
        self.points = tuple(points)
        if len(set(self.points)) != len(self.points) or not all(0 < x < PRIME for x in self.points):
            raise SecretSharingError("shares of distinct, positive points are needed")
        self._coefficients = [self._coefficient(x) for x in self.points]

    def _coefficient(self, x: int) -> int:
        above, below = 1, 1
        for other in self.points:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        return above * pow(below, -1, PRIME) % PRIME

    def combine(self, shares: Sequence[bytes]) -> bytes:
        """The secret (32 bytes) of `shares`, which belong to `points` in their order.

        Wrong shares are noticed here only by chance: check the secret against what was announced.
        """
        if len(shares) != len(self.points):
            raise SecretSharingError(f"{len(shares)} shares for {len(self.points)} points")
        return _secret(sum(map(mul, self._coefficients, map(_element, shares))) % PRIME)


# --- when a share is wrong ------------------------------------------------------------------------


def _trim(polynomial: list[int]) -> list[int]:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial


def _divide(above: list[int], below: list[int]) -> tuple[list[int], list[int]]:
    """Quotient and remainder of polynomials, lowest coefficient first."""
    remainder = above[:]
    quotient = [0] * max(0, len(above) - len(below) + 1)
    inverse = pow(below[-1], -1, PRIME)
    for shift in range(len(quotient) - 1, -1, -1):
        factor = remainder[shift + len(below) - 1] * inverse % PRIME
        quotient[shift] = factor
        for place, coefficient in enumerate(below):
            remainder[shift + place] = (remainder[shift + place] - factor * coefficient) % PRIME
    return quotient, _trim(remainder)


def _times(a: list[int], b: list[int]) -> list[int]:
    product = [0] * (len(a) + len(b) - 1) if a and b else []
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] = (product[i + j] + x * y) % PRIME
    return product


def _minus(a: list[int], b: list[int]) -> list[int]:
    size = max(len(a), len(b))
    padded = zip(a + [0] * (size - len(a)), b + [0] * (size - len(b)), strict=True)
    return _trim([(x - y) % PRIME for x, y in padded])


def _interpolate(points: Sequence[int], values: Sequence[int]) -> tuple[list[int], list[int]]:
    """The polynomial through (points, values) by Newton's scheme, and the product of (z - x)."""
    product, polynomial = [1], [0]
    for x, y in zip(points, values, strict=True):
        there = _evaluate(polynomial[::-1], x)
        factor = (y - there) * pow(_evaluate(product[::-1], x), -1, PRIME) % PRIME
        polynomial = _minus(polynomial, [-factor * c % PRIME for c in product]) or [0]
        product = _times(product, [-x % PRIME, 1])
    return polynomial, product


def correct(shares: Mapping[int, bytes], threshold: int) -> tuple[bytes, tuple[int, ...]]:
    """The secret in spite of wrong shares, and the points whose shares are wrong.

    Gao's decoder for Reed-Solomon codes (2003): of m shares, up to (m - threshold) / 2 may be wrong.
    Raises `SecretSharingError` if there are more. Quadratic in m; used only after `Combiner` failed.
    """
    taken = {x: int.from_bytes(share, "big") for x, share in sorted(shares.items())}
    outside = tuple(x for x, value in taken.items() if value >= PRIME)
    points = [x for x in taken if x not in outside]
    values = [taken[x] for x in points]
    if len(points) < threshold:
        raise SecretSharingError("too many wrong shares: the secret can't be rebuilt")
    interpolant, product = _interpolate(points, values)
    previous, current = product, _trim(interpolant[:])
    before, locator = list[int](), [1]
    while len(current) - 1 >= (len(points) + threshold) / 2:
        quotient, rest = _divide(previous, current)
        previous, current = current, rest
        before, locator = locator, _minus(before, _times(quotient, locator))
    message, rest = _divide(current, locator)
    message = _trim(message)
    if rest or len(message) > threshold:
        raise SecretSharingError("too many wrong shares: the secret can't be rebuilt")
    falling = message[::-1]
    wrong = tuple(x for x, y in zip(points, values, strict=True) if _evaluate(falling, x) != y)
    return _secret(message[0] if message else 0), tuple(sorted(wrong + outside))
