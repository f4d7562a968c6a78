"""Three ways to fit everybody's Θ_i to choices of a `Teacher`, by penalised maximum likelihood.

`full` fits all d1·d2 numbers of each person; `alone` a product B_i A_i of rank r for each; `shared` products
B A_i with one B. All carry the same ridge on ‖Θ_i‖² and use the same Newton steps; choices are
[N, n, d1, d2], chosen minus rejected features.
"""

from __future__ import annotations

import numpy as np
from support.teacher import Array

ALTERNATIONS = 200  # at most, between the two factors
SETTLED = 1e-7  # relative fall of the objective in one of them


def full(choices: Array, ridge: float) -> Array:
    """Θ, [N, d1, d2]."""
    people, samples, rows, columns = choices.shape
    flat = choices.reshape(people, samples, -1)
    quadratic = np.broadcast_to(ridge * np.eye(flat.shape[2]), (people, flat.shape[2], flat.shape[2]))
    found, _ = _newton(flat, quadratic, np.zeros((people, flat.shape[2])), steps=30)
    return found.reshape(people, rows, columns)


def alone(choices: Array, ridge: float, rank: int) -> tuple[Array, Array]:
    """(B_i [N, d1, r] with orthonormal columns, A_i [N, r, d2]), each person by themselves."""
    fitted = [shared(own[None], ridge, rank) for own in choices]
    return np.stack([basis for basis, _ in fitted]), np.concatenate([factors for _, factors in fitted])


def shared(choices: Array, ridge: float, rank: int) -> tuple[Array, Array]:
    """(B [d1, r] with orthonormal columns, A_i [N, r, d2]).

    Starts from the leading column space of what `full` finds, side by side, and alternates between the
    factors, each to the optimum given the other.
    """
    people, samples, rows, columns = choices.shape
    stacked = full(choices, max(ridge, 1.0)).transpose(1, 0, 2).reshape(rows, -1)
    basis = np.linalg.svd(stacked, full_matrices=False)[0][:, :rank]
    factors = np.zeros((people, rank, columns))
    before = np.inf
    for _ in range(ALTERNATIONS):
        features = (basis.T @ choices).reshape(people, samples, -1)
        quadratic = np.broadcast_to(ridge * np.eye(rank * columns), (people, *[rank * columns] * 2))
        flat, _ = _newton(features, quadratic, factors.reshape(people, -1), steps=3)
        factors = flat.reshape(people, rank, columns)
        features = (choices @ factors.transpose(0, 2, 1)[:, None]).reshape(1, people * samples, -1)
        spread = (factors @ factors.transpose(0, 2, 1)).sum(axis=0)
        quadratic = ridge * np.kron(np.eye(rows), spread)[None]
        flat, now = _newton(features, quadratic, basis.reshape(1, -1), steps=3)
        basis, turn = np.linalg.qr(flat.reshape(rows, rank))
        factors = turn @ factors
        if before - now < SETTLED * now:
            break
        before = now
    return basis, factors


def _newton(features: Array, quadratic: Array, start: Array, steps: int) -> tuple[Array, float]:
    """Minimise Σ log(1 + exp(-F θ)) + θᵀ Q θ / 2 for each of M problems: F [M, n, p], Q [M, p, p], θ [M, p].

    A step that doesn't pay is halved. Returns θ and the objective, summed over the problems.
    """
    theta, value = start, _objective(features, quadratic, start)
    for _ in range(steps):
        miss = 1 / (1 + np.exp(np.minimum((features @ theta[..., None])[..., 0], 500)))  # σ(-m), [M, n]
        linear = (quadratic @ theta[..., None])[..., 0]
        gradient = linear - (miss[:, None] @ features)[:, 0]
        hessian = features.transpose(0, 2, 1) @ (features * (miss * (1 - miss))[..., None]) + quadratic
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        gain = (gradient * step).sum(axis=1)
        size = np.ones(len(theta))
        for _ in range(30):
            after = _objective(features, quadratic, theta - size[:, None] * step)
            worse = after > value
            if not worse.any():
                break
            size[worse] /= 2
        better = after <= value
        theta = np.where(better[:, None], theta - size[:, None] * step, theta)
        value = np.where(better, after, value)
        if (gain < 1e-9 * value).all():
            break
    return theta, float(value.sum())


def _objective(features: Array, quadratic: Array, theta: Array) -> Array:
    margins = (features @ theta[..., None])[..., 0]
    penalty = (theta[:, None] @ quadratic @ theta[..., None])[:, 0, 0] / 2
    return np.asarray(np.logaddexp(0.0, -margins).sum(axis=1) + penalty)
