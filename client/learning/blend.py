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

from penchant.client.learning.chosen import CHANCE, Blend, chance_of
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.model.factors import Vector
from penchant.common.model.reward import PreparedPairs

__all__ = ["BLENDS", "blended", "leads", "with_vote"]

BLENDS = (1.0, 0.5, 0.0)
"""Parts of the personal deviation that are tried; the first one stands unless another is clearly better."""

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
) -> tuple[Vector, Blend]:
    """The personal part, or it halfway or all the way back to the population's model, its `start`: whichever
    ranks most held-out choices right, if its lead over the personal part is beyond chance. -> It, and why."""
    tried = [(start + np.float32(part) * (personal - start)).astype(np.float32) for part in BLENDS]
    right = [trainer.margins(shared, one, held_out) > 0 for one in tried]
    best = max(range(len(BLENDS)), key=lambda at: (int(right[at].sum()), -at))
    ahead, behind = leads(right[best], right[0])
    taken = best if chance_of(ahead, behind) <= CHANCE else 0
    used, most = (round(100 * BLENDS[place]) for place in (taken, best))
    return tried[taken] if taken else personal, Blend(used, most, ahead, behind, len(held_out))


def leads(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int]:
    """Of what both judged, how many only `one` has right, and how many only `other`."""
    return int((one & ~other).sum()), int((other & ~one).sum())
