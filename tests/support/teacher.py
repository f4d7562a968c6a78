"""Made-up people whose tastes share a low-rank factor, so that what is learned can be held against the truth.

Person i prefers by the reward ⟨Θ_i, φ⟩ of a feature matrix φ: (d1, d2), with Θ_i = B A_i: B (d1, r) has
orthonormal columns and is everybody's, A_i (r, d2) is one person's. That is P-ShareLoRA's assumption: the
weight updates of all people, put side by side, have rank r. Choices follow Bradley and Terry: of a pair
with features φ and φ', the first is chosen with probability σ(⟨Θ_i, φ - φ'⟩).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Teacher", "excess_loss", "expected_slope", "subspace_distance"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Teacher:
    """N people with one common factor.

    basis: B, [d1, r], orthonormal columns. factors: A_i, [N, r, d2], each of Frobenius norm `sharpness`.
    """

    basis: Array
    factors: Array

    @classmethod
    def draw(
        cls, people: int, rows: int, columns: int, rank: int, *, sharpness: float = 2.0, seed: int = 0
    ) -> Teacher:
        """A teacher with d1 = `rows`, d2 = `columns`, r = `rank`.

        sharpness: ‖Θ_i‖, the standard deviation of the margins of choices with standard normal features.
        A person of the same seed is the same whatever the number of people.

        Raises ValueError when the rank exceeds d1.
        """
        if not 1 <= rank <= rows:
            raise ValueError(f"rank is {rank}; it must lie in 1 … {rows}")
        basis = _orthonormal(np.random.default_rng([seed, 0]).standard_normal((rows, rank)))
        factors = np.stack(
            [np.random.default_rng([seed, 1, i]).standard_normal((rank, columns)) for i in range(people)]
        )
        norms = np.sqrt(np.square(factors).sum(axis=(1, 2), keepdims=True))
        return cls(basis, factors * (sharpness / norms))

    @property
    def parameters(self) -> Array:
        """Θ_i = B A_i of everybody, [N, d1, d2]."""
        return self.basis @ self.factors

    def rewards(self, person: int, features: Array) -> Array:
        """⟨Θ_i, φ⟩ of feature matrices [..., d1, d2] -> [...]."""
        return np.asarray(np.einsum("...jk,jk->...", features, self.parameters[person]))

    def choices(self, samples: int, seed: int) -> Array:
        """Chosen minus rejected features of n choices of each person, [N, n, d1, d2].

        The differences are standard normal before the choice turns them. A person of the same seed makes
        the same choices whatever the number of people.
        """
        shape = samples, len(self.basis), self.factors.shape[2]
        drawn = np.empty((len(self.factors), *shape))
        for person, theta in enumerate(self.parameters):
            rng = np.random.default_rng([seed, person])
            differences = rng.standard_normal(shape)
            margins = np.einsum("njk,jk->n", differences, theta)
            first = rng.random(samples) < 1 / (1 + np.exp(-margins))
            drawn[person] = np.where(first, 1.0, -1.0)[:, None, None] * differences
        return drawn


def excess_loss(truth: Array, found: Array) -> Array:
    """Bradley-Terry loss beyond the teacher's own, in nats a choice, [N]: without test data, so without
    its noise.

    truth, found: Θ of each person, [N, d1, d2]. Features of pairs differ by standard normal numbers, so
    both margins m, m* are jointly normal, and with Stein's lemma the expected loss
    E[softplus(m) - σ(m*) m] needs one-dimensional integrals only.
    """
    true, own = np.sqrt(np.square(truth).sum(axis=(1, 2))), np.sqrt(np.square(found).sum(axis=(1, 2)))
    common = (truth * found).sum(axis=(1, 2))
    slope = expected_slope(true)
    gained = _expected_softplus(own) - slope * common
    return np.asarray(gained - (_expected_softplus(true) - slope * true**2))


def expected_slope(deviation: Array) -> Array:
    """E[σ'(m)] for margins m of mean 0 and this standard deviation: the information in a choice, where
    measuring the margin itself with unit noise has 1."""
    p = 1 / (1 + np.exp(-np.multiply.outer(np.asarray(deviation), _NODES)))
    return np.asarray((p * (1 - p)) @ _WEIGHTS)


def subspace_distance(truth: Array, found: Array) -> float:
    """Root mean square of the sines of the angles between column spaces [d1, r]: 0 equal, 1 orthogonal."""
    own, true = _orthonormal(found), _orthonormal(truth)
    return float(np.linalg.norm(true - own @ (own.T @ true)) / math.sqrt(true.shape[1]))


# --- inner parts ----------------------------------------------------------------------------------

# The trapezoidal rule on the normal density: exact to machine precision for smooth integrands.
_NODES = np.linspace(-9.0, 9.0, 721)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


def _expected_softplus(deviation: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, np.multiply.outer(deviation, _NODES)) @ _WEIGHTS)


def _orthonormal(columns: Array) -> Array:
    return np.asarray(np.linalg.qr(columns)[0])
