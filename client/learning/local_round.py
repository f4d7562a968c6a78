"""One round's work on one device: train, or refit in a closing round, and judge on the choices held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from penchant.client.learning.blend import blended, with_vote
from penchant.client.learning.chosen import Blend
from penchant.client.learning.model_cache import PlannedModel
from penchant.client.learning.outcome import Counts, Outcome
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.data.preferences import Preference, without_ties
from penchant.common.errors import DataError, DeviceError
from penchant.common.model.factors import Vector
from penchant.common.secagg.update_vector import JUDGED_MOST
from penchant.common.shares import Fitting

__all__ = ["judged_on", "nothing_to_learn", "sendable", "settled_part", "work"]


def work(
    planned: PlannedModel,
    shared: Vector,
    start: Vector,
    personal: Vector,
    train: Sequence[Preference],
    held_out: Sequence[Preference],
    seed: int,
) -> Outcome:
    """What the round that `planned` is for makes of `personal` on the announced `shared` factors.

    A round judges the model that it received, the closing one the model that it leaves. Where the rule has a
    spread, held-out choices vote on it, and at the end on how much of the deviation stays. Ties are learned
    from beside choices; of those held out none has a say. `start` is the common start of the personal part.
    Raises DataError without choices to learn from, DeviceError when training diverges, or the received
    model's losses are no numbers: what is returned can be sent.
    """
    if not without_ties(train):
        raise nothing_to_learn()
    trainer, prepared = planned.trainer(start), planned.model.prepare(train)
    weighs = bool(planned.split.spread_tensor and judged_on(held_out))  # how far to be from the population
    begin = start if planned.split.rule.fitting is Fitting.ANEW else personal
    if planned.plan.phase == "close":
        outcome = trainer.refit(shared, begin, prepared, seed)
        own, blend = settled_part(planned, shared, start, outcome.personal, held_out)
        outcome = replace(outcome, personal=own, blend=blend)
        judged = _judged(trainer, planned, shared, outcome.personal, held_out)
    else:
        judged = _judged(trainer, planned, shared, personal, held_out)
        outcome = trainer.train(shared, begin, prepared, seed)
        if weighs:
            outcome = with_vote(
                outcome, trainer, shared, personal, planned.model.prepare(judged_on(held_out))
            )
    return sendable(replace(outcome, judged=judged))


def settled_part(
    planned: PlannedModel, shared: Vector, start: Vector, personal: Vector, held_out: Sequence[Preference]
) -> tuple[Vector, Blend | None]:
    """How much of a fitted personal part stays, by what was held out, and why: all of it, and None, where the
    rule has no model for all or nothing was held out."""
    judged = judged_on(held_out)
    if not (planned.split.spread_tensor and judged):
        return personal, None
    return blended(planned.trainer(start), shared, start, personal, planned.model.prepare(judged))


def nothing_to_learn() -> DataError:
    """What is raised where a device has no choices."""
    return DataError("this device has no choices to learn from yet")


def sendable(outcome: Outcome) -> Outcome:
    """An outcome that can be sent. DeviceError where the losses are no numbers: here rather than when the
    vector is made, after the moment."""
    if math.isnan(outcome.loss_sum):
        raise DeviceError("the losses of the received model are no numbers")
    return outcome


def _judged(
    trainer: LocalTrainer,
    planned: PlannedModel,
    shared: Vector,
    personal: Vector,
    held_out: Sequence[Preference],
) -> Counts:
    if not judged_on(held_out):
        return Counts(0, 0, 0.0)
    return trainer.evaluate(shared, personal, planned.model.prepare(judged_on(held_out)))


def judged_on(held_out: Sequence[Preference]) -> Sequence[Preference]:
    """Those of the choices held out that a model is judged by: no ties, and not too many."""
    return without_ties(held_out)[:JUDGED_MOST]
