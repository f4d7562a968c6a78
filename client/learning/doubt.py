"""What a posterior leaves in doubt, in a form to be kept: standard errors without the choices they came from.

`Posterior` (`client.learning.laplace`) holds every choice's gradient and solves a system of their number.
Here the covariance of d numbers after n choices is kept as one factor, whichever is the smaller: n rows of d
(what the choices took off the prior), or a triangle of d × d (what is left). So its size, and what an error
costs, are bounded by d, whatever n is. With s = √variance ∘ gradient, and G the choices' √W s:

    rows K = L⁻¹ G of I + G Gᵀ = L Lᵀ:    error² = |s|² - |K s|²
    triangle T = L⁻¹ of I + Gᵀ G = L Lᵀ:  error² = |T s|²

Ties are among the choices here, with the curvature that Davidson's model gives them; a choice counts
by its strength.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from penchant.client.learning.laplace import Array, Laplace, Prior
from penchant.common.errors import DeviceError
from penchant.common.model.davidson import PLAIN, PairLikelihood, habits_of
from penchant.common.model.factors import Vector
from penchant.common.model.reward import Pair
from penchant.common.wire.codec import U32, AtMost, decode_record, encode_record

__all__ = ["Doubt", "doubt_of", "numbers_kept"]

PAIRS_AT_ONCE = 256  # whose gradients are in memory at a time
_ROWS_AT_ONCE = 256
_BYTES_MOST = 1 << 30


@dataclass(frozen=True, slots=True)
class _KeptDoubt:
    rows: U32  # 0: a triangle
    scale: Annotated[bytes, AtMost(_BYTES_MOST)]  # √variance, float64 [d]
    factor: Annotated[bytes, AtMost(_BYTES_MOST)]  # float32, row by row; of a triangle what is not zero


@dataclass(frozen=True, eq=False)
class Doubt:
    """How sure a personal part is, after choices that need not be there any more.

    Attributes:
        scale: the prior's standard deviations, float64 [d].
        factor: float32 [rows, d], or a lower triangle [d, d].
        triangular: which of both it is.
    """

    scale: Array = field(repr=False)
    factor: NDArray[np.float32] = field(repr=False)
    triangular: bool

    def error(self, gradients: Array) -> Array:
        """Standard error of numbers with these gradients in the personal part, [m, d] -> [m]."""
        scaled = gradients * self.scale
        seen = np.zeros(len(scaled))
        # In float64, for two large numbers may nearly cancel.
        for start in range(0, len(self.factor), _ROWS_AT_ONCE):
            rows = self.factor[start : start + _ROWS_AT_ONCE].astype(np.float64)
            seen += np.square(scaled @ rows.T).sum(axis=1)
        variance = seen if self.triangular else np.square(scaled).sum(axis=1) - seen
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))  # rounding may leave a hair below zero

    def covariance(self, some: Array, others: Array) -> Array:
        """Of numbers with these gradients with others, [s, d] and [m, d] -> [s, m]."""
        some, others = some * self.scale, others * self.scale
        seen = np.zeros((len(some), len(others)))
        for start in range(0, len(self.factor), _ROWS_AT_ONCE):
            rows = self.factor[start : start + _ROWS_AT_ONCE].astype(np.float64)
            seen += (some @ rows.T) @ (others @ rows.T).T
        return seen if self.triangular else np.asarray(some @ others.T - seen)

    def encode(self) -> bytes:
        """Bytes for the device's own sealed store."""
        numbers = _packed(self.factor) if self.triangular else self.factor
        rows = 0 if self.triangular else len(self.factor)
        return encode_record(
            _KeptDoubt(
                rows, self.scale.astype("<f8").tobytes(), np.ascontiguousarray(numbers, "<f4").tobytes()
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Doubt:
        """Undo `encode`; raises `CodecError`, or `DeviceError` when the parts do not fit together."""
        kept = decode_record(data, _KeptDoubt)
        scale, numbers = np.frombuffer(kept.scale, "<f8"), np.frombuffer(kept.factor, "<f4")
        size = len(scale)
        if len(numbers) != (kept.rows * size if kept.rows else size * (size + 1) // 2):
            raise DeviceError("what was kept of the errors is damaged; `penchant device train` makes it anew")
        if kept.rows:
            return cls(scale, numbers.reshape(kept.rows, size), triangular=False)
        return cls(scale, _unpacked(numbers, size), triangular=True)


def numbers_kept(choices: int, size: int) -> int:
    """How many numbers a `Doubt` after so many choices keeps of a personal part of `size` numbers."""
    return min(choices * size, size * (size + 1) // 2)


def doubt_of(laplace: Laplace, prior: Prior, personal: Vector, pairs: Sequence[Pair]) -> Doubt:
    """What is in doubt around a personal part, float32 [d], after some choices, at least one.

    The errors are those of `Laplace.around`, to the precision of float32. Raises as `score_gradients` does.
    """
    size = len(personal)
    scale = np.sqrt(np.broadcast_to(np.asarray(prior.variance, dtype=np.float64), (size,)))
    if numbers_kept(len(pairs), size) < len(pairs) * size:
        precision = np.eye(size)
        for rows in _weighted(laplace, scale, personal, pairs):
            precision += rows.T @ rows
        return Doubt(scale, _solved(precision, np.eye(size)), triangular=True)
    known = np.concatenate(list(_weighted(laplace, scale, personal, pairs)))
    return Doubt(scale, _solved(np.eye(len(pairs)) + known @ known.T, known), triangular=False)


def _packed(triangle: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows of a lower triangle [d, d] one after the other, each up to its diagonal."""
    return np.concatenate([row[: place + 1] for place, row in enumerate(triangle)])


def _unpacked(numbers: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Undo `_packed`. Row by row: indices of all places would take four times the memory."""
    triangle = np.zeros((size, size), dtype=np.float32)
    start = 0
    for place in range(size):
        triangle[place, : place + 1] = numbers[start : start + place + 1]
        start += place + 1
    return triangle


def _weighted(laplace: Laplace, scale: Array, personal: Vector, pairs: Sequence[Pair]) -> Iterator[Array]:
    """The rows √(W variance) ∘ gradient of the choices, float64 [some, d], a few choices at a time."""
    habits = habits_of(pairs)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        margins, gradients = laplace.margin_gradients(personal, some)
        if habits != PLAIN:
            curvature = PairLikelihood.of(some, habits).curvature(margins)
        else:
            curvature = np.exp(-np.logaddexp(0, margins) - np.logaddexp(0, -margins))  # σ(m)σ(-m)
        yield gradients * (np.sqrt(curvature)[:, None] * scale)


def _solved(matrix: Array, right: Array) -> NDArray[np.float32]:
    """L⁻¹ · right, with L the Cholesky factor of a matrix."""
    factor = torch.linalg.cholesky(torch.from_numpy(matrix))
    solved = torch.linalg.solve_triangular(factor, torch.from_numpy(right), upper=False)
    return np.asarray(solved.numpy(), dtype=np.float32)
