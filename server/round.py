"""The round. Read this file first.

A run is rounds 1 … R, or fewer (`server.stopping`), and a closing one. In each, the server asks a cohort for
its masked updates, opens their sum, moves the shared factors by the mean, and journals:

    sample a cohort -> announce -> five exchanges (`server.secagg`) -> sum -> optimiser -> journal

The first `warmup_rounds` share both factors (share "AB"); after them every device copies what is personal
from then on. In the closing round everybody, sampled before or not, refits the personal part on the final
shared factors and sends counts only. The same function runs over the in-process grid, over Flower's
simulation on Ray and over a SuperLink: only the `Grid` differs.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypedDict

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from penchant.common.config import Plan
from penchant.common.errors import AgreementError, JournalError, RoundFailed, SumRefused, TooFewDevices
from penchant.common.model import announced
from penchant.common.secagg.update_vector import RoundSums
from penchant.common.wire.messages import Announce, Kind
from penchant.common.wording import ranges
from penchant.server.attempt_log import AttemptLog
from penchant.server.availability import Availability, Ready
from penchant.server.cohort import next_cohort, sample_cohort
from penchant.server.exchange import exchange_of
from penchant.server.journal import RoundLog
from penchant.server.noise_terms import figures_of
from penchant.server.opened_sum import Opened, moved, read_sums
from penchant.server.optimizers import ServerState, server_optimizer
from penchant.server.privacy_figures import FACT as PRIVACY
from penchant.server.run import RoundPlan, ServerRun, finished_rounds
from penchant.server.secagg.aggregation import Aggregate, Take, must_not_be_repeated
from penchant.server.stopping import ends_with

__all__ = ["announced_factors", "federate", "play_round"]

TURN = "turn"
"""With a round's number: the fact of the journal that says which member had the last turn in it."""


def federate(run: ServerRun, grid: Grid) -> None:
    """Run all rounds that the journal does not hold yet, then report the finished ones to the devices.

    Raises RoundFailed when a round fails as often as `federation.attempts` allows; finished rounds are kept.
    """
    availability = Availability(run, grid)
    recover(run)
    while (number := _next(run)) <= run.last:
        run = availability.run = run.latest(run)
        ready = availability.wait_for_cohort()
        play_round(run, grid, number, ready, partial(availability.wait_for_cohort, anew=True), availability)
        run = availability.run
    availability.announce_settled(availability.poll().values())


def play_round(
    run: ServerRun,
    grid: Grid,
    number: int,
    ready: Ready,
    again: Callable[[], Ready] | None = None,
    availability: Availability | None = None,
) -> RoundLog | None:
    """One round, in as many attempts as it takes; None when it was lost past unmasking and is skipped.

    So is one whose sum can't be that of honest devices: who lied would be asked again.

    Args:
        run: what the server knows of the run.
        grid: the way to the devices.
        number: the number of the round.
        ready: member number -> node, for every device that would take part now.
        again: gives the same once more before another attempt, since devices that fell silent may be why the
            last one failed.
        availability: sends the run's member list to those of a cohort that go by another one, before an
            attempt, and has the run as it is then. Without it all devices know that list.

    Raises:
        RoundFailed: no attempt succeeded; nothing of a failed one is kept.
        JournalError: devices would refuse the factors that the round would start from.
    """
    shared: ServerState | None = None
    while True:
        run = run.latest(run)  # a revocation while devices were waited for holds for this attempt
        if availability is not None:
            availability.run = run
        ready = {member: node for member, node in ready.items() if run.belongs(member)}
        task = run.task(number, len(ready))
        shared = shared or _shared(run, task)  # all attempts of a round start from the same
        _note_sums(run, task)
        members = _cohort(run, task, list(ready))
        cohort = {ready[member]: member for member in members}
        attempt = run.journal.begin(number, task.plan.phase)
        attempt_log = AttemptLog(run.journal, number, attempt, partial(_enough, run))
        try:
            return _attempt(run, grid, task, attempt, cohort, attempt_log, shared, availability)
        except RoundFailed as error:
            if isinstance(error, SumRefused) or must_not_be_repeated(attempt_log.records()):
                _skip(run, number, attempt, error)
                return None
            run.journal.fail(number, attempt, str(error))
            if run.journal.attempts(number) >= run.config.federation.attempts:
                raise
        ready = again() if again else ready


def _attempt(
    run: ServerRun,
    grid: Grid,
    task: RoundPlan,
    attempt: int,
    cohort: Mapping[int, int],
    attempt_log: AttemptLog,
    shared: ServerState,
    availability: Availability | None,
) -> RoundLog:
    """One attempt of a round, with the devices of `cohort` (node -> member), starting from `shared`."""
    began = time.monotonic()
    lists = availability.send_list(cohort) if availability else 0
    announce = _announce(run, task, attempt, shared)
    place = f"{task.number}.{attempt}"
    wire = exchange_of(run.config.federation, grid, place, attempt_log.arrived, in_turn=run.in_turn)

    def exchange(
        stage: str, payloads: Mapping[int, bytes], take: Take | None = None, /
    ) -> Mapping[int, bytes]:
        attempt_log.asked(stage, len(payloads))
        replies = wire(stage, payloads, take)
        attempt_log.over(stage)
        return replies

    try:
        aggregate = run.aggregation.run(announce, list(cohort), exchange, attempt_log)
        _enough(run, len(aggregate.survivors))
    except RoundFailed:
        for what, count in sorted(wire.errors.items()):
            run.tell(f"round {task.number}, attempt {attempt}: {count} without a reply in {what}")
        raise
    if availability:
        availability.heard(aggregate)
    opened = _opened(run, task, aggregate, cohort)
    spent = replace(
        _conclude(run, task, attempt, opened),
        seconds=time.monotonic() - began,
        bytes_up=wire.bytes_up,
        bytes_down=wire.bytes_down + lists,
    )
    _finish(run, spent, _moved(run, task, shared, opened))
    with suppress(JournalError):  # the round is final
        run.journal.joined([cohort[node] for node in opened.aggregate.survivors], task.number)
    run.observe(spent)
    return spent


def recover(run: ServerRun) -> None:
    """Settle the attempt that was open when the server died: complete it, skip it, or let it be retried.

    Past unmasking a round is never run again (docs/protocol.md#dropouts-liars-crashes).
    """
    row = run.journal.interrupted()
    if row is None:
        return
    records = AttemptLog(run.journal, row.round, row.attempt).records()
    if not must_not_be_repeated(records):
        run.journal.fail(row.round, row.attempt, "the server stopped during this attempt")
        return
    try:
        aggregate = run.aggregation.complete(records)
        _enough(run, len(aggregate.survivors))
        task = run.task(row.round, len(aggregate.cohort))
        opened = _opened(run, task, aggregate, run.journal.nodes())
        after = _moved(run, task, _shared(run, task), opened)
    except RoundFailed as error:
        _skip(run, row.round, row.attempt, error)
        return
    completed = _conclude(run, task, row.attempt, opened)
    _finish(run, completed, after)
    run.observe(completed)


# --- the parts of a round ---------------------------------------------------------------------------------


def _next(run: ServerRun) -> int:
    """The next round's number: the closing one's once training is over."""
    number = run.journal.settled() + 1
    if not run.config.federation.stop_after or number >= run.last:
        return number  # without reading what every round measured
    return number if ends_with(run.config, run.journal.logs()) is None else run.last


def _begins_after(run: ServerRun, plan: Plan) -> int:
    """The finished round whose factors a round starts from; 0: those of the beginning."""
    if plan.phase == "close":
        chosen = ends_with(run.config, run.journal.logs())
        if chosen is not None:
            return chosen
    finished = run.journal.finished()
    return finished[-1][0] if finished else 0


def _cohort(run: ServerRun, task: RoundPlan, ready: Sequence[int]) -> tuple[int, ...]:
    """Who is asked, of the members that are ready: at random, or with noise in turn."""
    size, seed, number = task.cohort, run.config.seed, task.number
    if not task.plan.dp_epsilon:
        return sample_cohort(ready, size, seed=seed, round=number)
    before = run.journal.fact(f"{TURN} {number - 1}")
    after = int(before) if before else None
    members, last = next_cohort(ready, size, seed=seed, round=number, after=after)
    run.journal.note_anew(f"{TURN} {number}", str(last))  # others may be ready for another attempt
    return members


def _shared(run: ServerRun, task: RoundPlan) -> ServerState:
    """The shared state that a round starts from: the last checkpoint, in the closing round that of the best
    round, where the run begins, or the common start. JournalError when devices would take no announcement of
    it."""
    before = _begins_after(run, task.plan)
    found = run.journal.load(before) if before else None
    shared = _state(run, task, None if found is None else found[1])
    try:
        announced.check(announced_factors(task.plan, shared))
    except AgreementError as error:
        after = "at the start of the run" if found is None else f"after round {found[0]}"
        raise JournalError(
            f"{after} {error}, and devices refuse them; begin a new run from an earlier round: "
            "penchant server run --from RUN:ROUND"
        ) from None
    return shared


def _state(run: ServerRun, task: RoundPlan, shared: ServerState | None) -> ServerState:
    federation = run.config.federation
    optimizer = server_optimizer(federation.server_optimizer)
    if shared is None and run.start is not None:
        return optimizer.init(run.start, task.split.initial(run.config.seed)[1], federation)
    if shared is None:
        return optimizer.init(*task.split.initial(run.config.seed), federation)
    if task.plan.start_sent and not shared.start.size and task.split.personal.size:
        warm = run.model_signature.split(run.config.plan("warmup", run.cohort))
        return optimizer.init(*task.split.start_from(warm, shared.factors, run.config.seed), federation)
    return shared


def _announce(run: ServerRun, task: RoundPlan, attempt: int, shared: ServerState) -> Announce:
    factors = announced_factors(task.plan, shared)
    return Announce(
        kind=Kind.SECAGG if run.config.privacy.secagg else Kind.PLAIN,
        run=run.id,
        round=task.number,
        attempt=attempt,
        group=task.layout.group,
        ring=task.layout.ring,
        words=task.layout.words,
        base=run.model_signature.digest,
        plan=task.plan.encode(),
        finished=finished_rounds(run.journal),
        list_digest=run.list_digest,
        manifest=run.manifest,
        factors=np.ascontiguousarray(factors, dtype="<f4").tobytes(),
    )


def announced_factors(plan: Plan, shared: ServerState) -> NDArray[np.float32]:
    """What an announcement of `plan` carries: the shared factors, after a warm-up the personal start too."""
    return announced.join(plan, shared.factors, shared.start)


def _enough(run: ServerRun, survivors: int) -> None:
    least = run.config.federation.min_survivors
    if survivors < least:
        raise TooFewDevices(
            f"{survivors} clients sent their part, federation.min_survivors is {least}; "
            "nothing of this attempt is used"
        )


def _opened(run: ServerRun, task: RoundPlan, aggregate: Aggregate, members: Mapping[int, int]) -> Opened:
    """The sums that stand; SumRefused where too few do. members: node -> member, as far as is known."""

    def names(nodes: Sequence[int]) -> str:
        known = sorted(members[node] for node in nodes if node in members)
        return f"members {ranges(known)}" if known else f"{len(nodes)} devices"

    return read_sums(task.layout, aggregate, run.config.federation, names)


def _moved(run: ServerRun, task: RoundPlan, shared: ServerState, opened: Opened) -> ServerState:
    if task.plan.phase == "close":
        return shared
    return moved(shared, opened.sums.mean, run.config.federation)


def _skip(run: ServerRun, number: int, attempt: int, error: RoundFailed) -> None:
    run.journal.skip(number, attempt, str(error))
    run.tell(f"round {number}, attempt {attempt}, is skipped: {error}")


def _finish(run: ServerRun, finished: RoundLog, shared: ServerState) -> None:
    run.journal.finish(finished, shared)
    for group, why in finished.failed.items():
        run.tell(f"round {finished.round}, attempt {finished.attempt}, is without group {group}: {why}")


def _conclude(run: ServerRun, task: RoundPlan, attempt: int, opened: Opened) -> RoundLog:
    """What the server knows of the round: sums and counts. Times and bytes are filled in by the caller."""
    sums, aggregate = opened.sums, opened.aggregate
    return RoundLog(
        round=task.number,
        attempt=attempt,
        phase=task.plan.phase,
        cohort=len(aggregate.cohort),
        survivors=len(aggregate.survivors),
        dropped={stage: len(nodes) for stage, nodes in aggregate.dropped.items()},
        seconds=0.0,
        bytes_up=0,
        bytes_down=0,
        examples=sums.weight,
        train_loss=sums.train_loss,
        val_accuracy=sums.accuracy,
        histogram=None if sums.histogram is None else list(sums.histogram),
        update_norm=float(np.linalg.norm(sums.mean)),
        aborts=dict(Counter(code.name for code in aggregate.aborts.values())),
        named={str(node): what for node, what in aggregate.set_aside.items()},
        failed={str(group): why for group, why in aggregate.failed.items()},
        measured_on=_begins_after(run, task.plan),
        **_judging(task, sums, len(aggregate.survivors)),
    )


class _Judging(TypedDict, total=False):
    """How sure a round's accuracy is, see `RoundLog`."""

    judged: int
    judges: int
    count_noise: float


def _judging(task: RoundPlan, sums: RoundSums, people: int) -> _Judging:
    if task.layout.noise is None:
        return _Judging(judged=sums.total)
    if not sums.total:
        return _Judging()
    return _Judging(judges=sums.total, count_noise=task.layout.count_error(people) * people / sums.total)


def _note_sums(run: ServerRun, task: RoundPlan) -> None:
    """Note what the sums of this phase are made of and how private they are, for whoever asks what the server
    sees."""
    if run.journal.fact(PRIVACY) is None:
        figures = figures_of(run.config, run.cohort, task.plan, task.layout)
        if figures is not None:
            run.journal.note(PRIVACY, figures.encode())
    key = f"sums {task.plan.phase}"
    if run.journal.fact(key) is None:
        tensors = () if task.plan.phase == "close" else task.split.shared.specs
        parts: list[tuple[str, tuple[int, ...]]] = [(spec.name, spec.shape) for spec in tensors]
        parts += [(counter.name, ()) for counter in task.layout.quantiser.counters]
        run.journal.note(key, json.dumps(parts))
