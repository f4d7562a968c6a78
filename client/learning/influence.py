"""Which choices speak for a ranking: by how much a difference of scores would be another without each.

Around the personal part θ that was learned, Newton's step to the optimum without one choice is exact where
the model is linear in θ and the likelihood quadratic (approximate leave-one-out: Rad and Maleki, JRSS B 2020;
to first order it is the influence function: Koh and Liang, ICML 2017). With k the posterior's covariance of
the difference asked about and the choice's margin m, e the standard error of m, and w = σ(m)σ(-m):

    change = σ(-m) k / (1 - w e²)

A choice that surprised the model, and that is near what is asked about by the posterior's own kernel, speaks
loudest. The doubt about m makes one about the change: |k| w e / (1 - w e²), to first order. Where ties were
learned from, σ(-m) and w are Davidson's slope and curvature instead (`common/model/davidson.py`);
of a choice whose strength is known, times what that makes it count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penchant.client.learning.doubt import PAIRS_AT_ONCE, Doubt
from penchant.client.learning.laplace import Array, Laplace
from penchant.common.model.davidson import PLAIN, Habits, PairLikelihood
from penchant.common.model.factors import Vector
from penchant.common.model.reward import Pair

__all__ = ["Influence", "influence_of"]


@dataclass(frozen=True)
class Influence:
    """What n choices say of s differences of scores, in log-odds.

    Attributes:
        change: by how much each difference is larger for each choice being there, [s, n].
        error: the standard error of that, [s, n].
    """

    change: Array
    error: Array


def influence_of(
    laplace: Laplace,
    doubt: Doubt,
    personal: Vector,
    differences: Array,
    choices: Sequence[Pair],
    habits: Habits = PLAIN,
) -> Influence:
    """What choices that a personal part was learned from say of differences of scores.

    Args:
        laplace, doubt, personal: as of `doubt_of`; the doubt that is left after these choices.
        differences: their gradients in the personal part, [s, d].
        choices: n of those that were learned from, whose gradients are in memory a few at a time.
        habits: of all that was learned from, ties and choices (`habits_of`).

    Raises DeviceError unless scores are finite.
    """
    change, error = np.zeros((2, len(differences), len(choices)))
    for start in range(0, len(choices), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        margins, gradients = laplace.margin_gradients(personal, choices[some])
        near, own = doubt.covariance(differences, gradients), doubt.error(gradients)
        lost = np.exp(-np.logaddexp(0, margins))  # σ(-m)
        slope = lost * (1 - lost)
        if habits != PLAIN:
            likelihood = PairLikelihood.of(choices[some], habits)
            lost, slope = likelihood.slope(margins), likelihood.curvature(margins)
        without = np.maximum(1 - slope * own**2, 1e-6)  # above zero but for rounding
        change[:, some] = near * lost / without
        error[:, some] = np.abs(near) * slope * own / without
    return Influence(change, error)
