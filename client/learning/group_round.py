"""One round's work of several people at a time: what `local_round.work` makes of each, computed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penchant.client.learning.blend import with_vote
from penchant.client.learning.local_round import judged_on, nothing_to_learn, sendable, settled_part, work
from penchant.client.learning.lockstep import Learner, LockstepTrainer
from penchant.client.learning.model_cache import PlannedModel
from penchant.client.learning.outcome import Counts, Outcome
from penchant.client.learning.workplace import Job
from penchant.common.errors import ConfigError, PenchantError
from penchant.common.model.factors import Vector
from penchant.common.model.reward import PreparedPairs

__all__ = ["work_together"]

Made = list[Outcome | PenchantError]


def work_together(
    planned: PlannedModel,
    jobs: Sequence[Job],
    prepared: Sequence[PreparedPairs | None],
    *,
    step_bytes: int,
) -> Made:
    """The outcome of each job, or the error that `local_round.work` would have raised.

    Args:
        planned: the model and plan of all of them.
        jobs: several people's, of one round: the same plan and common start.
        prepared: the choices to learn from of each, as the model takes them; None where there are none.
        step_bytes: what the activations of a step may take together (`LockstepTrainer`). Whose own are more
            than a step may hold at all is trained alone.

    Raises:
        ConfigError: the jobs are of different plans, or these people can't be trained together.
    """
    if any(job.plan != planned.plan for job in jobs):
        raise ConfigError("work that is done together must be of one plan; sort the jobs by their plans")
    made: Made = [nothing_to_learn() for _ in jobs]
    there = []
    for place, (job, one) in enumerate(zip(jobs, prepared, strict=True)):
        if one is None:
            continue
        if planned.trainer(job.start).at_once(job.shared, job.personal, one):
            there.append(place)
        else:  # whose step is too large by itself: where one person is trained alone it is cut
            made[place] = _alone(planned, job)
    if there:
        some = [jobs[place] for place in there]
        pairs = [one for place in there if (one := prepared[place]) is not None]
        trainer = LockstepTrainer(
            planned.model, planned.split, planned.plan.training, some[0].start, step_bytes=step_bytes
        )
        close = planned.plan.phase == "close"
        found = (_closed if close else _trained)(planned, trainer, some, pairs)
        for place, outcome in zip(there, found, strict=True):
            made[place] = _checked(outcome)
    return made


def _alone(planned: PlannedModel, job: Job) -> Outcome | PenchantError:
    """What comes of one person's job by itself."""
    try:
        return work(planned, job.shared, job.start, job.personal, job.train, job.held_out, job.seed)
    except PenchantError as error:
        return error


def _trained(
    planned: PlannedModel, trainer: LockstepTrainer, jobs: Sequence[Job], pairs: Sequence[PreparedPairs]
) -> Made:
    """A usual round: the received model is judged, then trained."""
    judged = _judged(planned, trainer, jobs, [job.personal for job in jobs])
    made: Made = []
    for job, counts, outcome in zip(jobs, judged, trainer.train(_learners(jobs, pairs)), strict=True):
        if isinstance(outcome, Outcome):
            if planned.split.spread_tensor and judged_on(job.held_out):
                held_out = planned.model.prepare(judged_on(job.held_out))
                outcome = with_vote(outcome, planned.trainer(job.start), job.shared, job.personal, held_out)
            outcome = replace(outcome, judged=counts)
        made.append(outcome)
    return made


def _closed(
    planned: PlannedModel, trainer: LockstepTrainer, jobs: Sequence[Job], pairs: Sequence[PreparedPairs]
) -> Made:
    """The closing round: the personal part is fitted, and what is left is judged."""
    made: Made = []
    for job, outcome in zip(jobs, trainer.refit(_learners(jobs, pairs)), strict=True):
        if isinstance(outcome, Outcome):
            own, blend = settled_part(planned, job.shared, job.start, outcome.personal, job.held_out)
            outcome = replace(outcome, personal=own, blend=blend)
        made.append(outcome)
    ends = [
        one.personal if isinstance(one, Outcome) else job.personal
        for one, job in zip(made, jobs, strict=True)
    ]
    judged = _judged(planned, trainer, jobs, ends)
    return [
        replace(outcome, judged=counts) if isinstance(outcome, Outcome) else outcome
        for outcome, counts in zip(made, judged, strict=True)
    ]


def _learners(jobs: Sequence[Job], pairs: Sequence[PreparedPairs]) -> list[Learner]:
    return [Learner(job.shared, job.personal, own, job.seed) for job, own in zip(jobs, pairs, strict=True)]


def _judged(
    planned: PlannedModel, trainer: LockstepTrainer, jobs: Sequence[Job], personal: Sequence[Vector]
) -> list[Counts]:
    """What each one's held-out choices say of the announced factors with that personal part."""
    learners = {
        place: Learner(job.shared, own, planned.model.prepare(judged_on(job.held_out)), 0)
        for place, (job, own) in enumerate(zip(jobs, personal, strict=True))
        if judged_on(job.held_out)
    }
    counts, together = dict[int, Counts](), dict[int, Learner]()
    for place, one in learners.items():
        if len(planned.model.pieces(one.prepared)) == 1:
            together[place] = one
        else:  # what is frozen does not lie in one piece
            own = planned.trainer(jobs[place].start)
            counts[place] = own.evaluate(one.shared, one.personal, one.prepared)
    if together:
        counts |= zip(together, trainer.evaluate(list(together.values())), strict=True)
    return [counts.get(place, Counts(0, 0, 0.0)) for place in range(len(jobs))]


def _checked(outcome: Outcome | PenchantError) -> Outcome | PenchantError:
    """An outcome that can be sent, or why there is none."""
    if isinstance(outcome, PenchantError):
        return outcome
    try:
        return sendable(outcome)
    except PenchantError as error:
        return error
