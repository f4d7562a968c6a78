"""Somebody who comes after the training: only the personal part is fitted, to however few choices.

The shared factors stay as they are. The personal part starts from the common start, which everybody knows:
drawn by the run's seed, what a warm-up ended with, or the population's own model (`ShareRule.spread`). It is
drawn back towards it by a Gaussian prior, so that one choice moves it a little and twenty move it far: by how
far the fleet found people to lie apart, or by how far margins may go (`training.prior_spread`,
`training.prior_head`). No personal factor of anybody else is needed for that, not even their mean
(docs/newcomers.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penchant.client.learning.laplace import Laplace, Posterior, Prior
from penchant.client.learning.model_cache import PlannedModel
from penchant.common.model.factors import Vector
from penchant.common.model.reward import Pair

__all__ = ["fit_newcomer", "posterior_of", "prior_of"]


def prior_of(planned: PlannedModel, laplace: Laplace, start: Vector, pairs: Sequence[Pair]) -> Prior:
    """What a run holds of a personal part before any choice. DeviceError when values are not finite."""
    training = planned.plan.training
    learned = laplace.learned_variance()
    if np.isfinite(learned).all() and len(learned):
        return Prior(start, learned)
    prior = laplace.prior(start, training.prior_spread, pairs, head=training.prior_head)
    return Prior(start, np.where(np.isfinite(learned), learned, prior.variance))


def posterior_of(
    planned: PlannedModel, factors: Vector, choices: Sequence[Pair]
) -> tuple[Laplace, Posterior]:
    """What is known of a newcomer's personal part after some choices.

    factors: as announced by the server: the shared ones, after a warm-up the common start too.

    Raises:
        ConfigError: nothing is personal. DeviceError: values are not finite.
    """
    shared, start = planned.parts(factors)
    laplace = planned.laplace(shared)
    prior = prior_of(planned, laplace, start, choices)
    return laplace, laplace.fit(prior, choices)


def fit_newcomer(planned: PlannedModel, factors: Vector, choices: Sequence[Pair]) -> Vector:
    """A newcomer's personal part, float32 [d_personal]; the common start without choices, and where
    nothing is personal. Errors as `posterior_of`."""
    if not choices or not planned.split.personal.size:
        return planned.parts(factors)[1]
    return posterior_of(planned, factors, choices)[1].vector
