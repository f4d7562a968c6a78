"""Between the population's model and one's own: what a device's held-out choices say.

Where a rule has a population's model (`ShareRule.spread`), a personal deviation from it can be kept, halved
or left out. Training pairs always speak for it; held-out ones need not. Both uses here guard against noise:
the fleet's spread moves by everybody's bounded vote, and a person's own deviation gives way only where
held-out choices speak against it beyond chance.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penchant.client.learning.outcome import Outcome
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.model.factors import Vector
from penchant.common.model.reward import PreparedPairs

__all__ = ["BLENDS", "CHANCE", "blended", "chance_of", "leads", "with_vote"]

BLENDS = (1.0, 0.5, 0.0)
"""Parts of the personal deviation that are tried; the first one stands unless another is clearly better."""

CHANCE = 0.05
"""How likely chance may be to give another blend its lead, at most."""

_STEP = 0.5  # the most that one vote moves the logarithm of the spread


def with_vote(
    outcome: Outcome, trainer: LocalTrainer, shared: Vector, personal: Vector, held_out: PreparedPairs
) -> Outcome:
    """An outcome whose update moves the fleet's spread by what held-out choices say of the received model:
    by ±0.5 at most, and less where a larger deviation would gain or cost less than a nat."""
    name = trainer.split.spread_tensor
    gain = trainer.gain_of_deviating(shared, personal, held_out)
    if not name or not math.isfinite(gain):
        return outcome
    parts = trainer.split.shared.named(outcome.shared_update)
    parts[name][0] = _STEP * min(max(gain, -1.0), 1.0)
    return replace(outcome, shared_update=np.concatenate([part.ravel() for part in parts.values()]))


def blended(
    trainer: LocalTrainer, shared: Vector, start: Vector, personal: Vector, held_out: PreparedPairs
) -> Vector:
    """The personal part, or it halfway or all the way back to the population's model, its `start`: whichever
    ranks most held-out choices right, if its lead over the personal part is beyond chance."""
    tried = [(start + np.float32(part) * (personal - start)).astype(np.float32) for part in BLENDS]
    right = [trainer.margins(shared, one, held_out) > 0 for one in tried]
    best = max(range(len(BLENDS)), key=lambda at: (int(right[at].sum()), -at))
    ahead, behind = leads(right[best], right[0])
    return tried[best] if chance_of(ahead, behind) <= CHANCE else personal


def leads(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int]:
    """Of what both judged, how many only `one` has right, and how many only `other`."""
    return int((one & ~other).sum()), int((other & ~one).sum())


def chance_of(ahead: int, behind: int) -> float:
    """How likely chance alone is to give one model so great a lead over another, or a greater one, where only
    the one is right `ahead` times and only the other `behind` times: the exact one-sided sign test (McNemar).
    """
    count = ahead + behind
    ways = sum(math.comb(count, k) for k in range(ahead, count + 1))
    return ways / (1 << count)
