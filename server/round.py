"""The round. Read this file first.

A run is rounds 1 … R and a closing one. In each, the server asks a cohort for its masked updates, learns
their sum and nothing else, moves the shared factors by the mean, and journals:

    sample a cohort -> announce -> five exchanges (`server.secagg`) -> sum -> optimiser -> journal

The first `warmup_rounds` share both factors (share "AB"); after them every device copies what is personal
from then on. In the closing round everybody, sampled before or not, refits the personal part on the final
shared factors and sends counts only. The same function runs over the in-process grid, over Flower's
simulation on Ray and over a SuperLink: only the `Grid` differs.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from penchant.common.adapters import Split
from penchant.common.blueprint import Blueprint
from penchant.common.codec import decode, encode
from penchant.common.config import Phase, Plan, RunConfig
from penchant.common.contribution import Form, Sums
from penchant.common.errors import ConfigError, JournalError, ProtocolError, RoundFailed, TooFewDevices
from penchant.common.messages import Announce, Finished, Hello, Kind, Status
from penchant.server.cohort import sample_cohort
from penchant.server.exchange import Exchange
from penchant.server.journal import Journal, RoundLog
from penchant.server.optimizer import Shared
from penchant.server.secagg import Aggregate, Aggregation, Record, unmask_asked

__all__ = ["Run", "Task", "announced_factors", "cohort_size", "federate", "play_round", "run_id"]

Observer = Callable[[RoundLog], None]
Ready = Mapping[int, int]
"""Member number -> node."""

GREETING_SECONDS = 60.0  # a device that is there says so in seconds, and is asked again if not
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # between two looks for devices that have come back
COUNT_SECONDS = 0.5  # between two notes of how many devices have answered


@dataclass(frozen=True)
class Run:
    """What a server knows of a run.

    run: its 16-byte id. blueprint: of the base model. cohort: clients a round. aggregation: how vectors are
    added up. membership: the authority's latest member list, encoded. observe: hears of finished rounds.
    patience: seconds that a round waits for its cohort to be there, before it fails.
    belongs: whether a member is on that list. members: how many are; None where there is no list.
    latest: the run with the list that holds now, asked for before every round: a revocation takes effect
    without a restart.
    """

    config: RunConfig
    run: bytes
    blueprint: Blueprint
    cohort: int
    aggregation: Aggregation
    membership: bytes
    journal: Journal
    observe: Observer = field(default=lambda log: None)
    patience: float = 0.0
    belongs: Callable[[int], bool] = field(default=lambda member: True)
    members: int | None = None
    latest: Callable[[Run], Run] = field(default=lambda run: run)

    @property
    def last(self) -> int:
        """The number of the closing round."""
        return self.config.federation.rounds + 1

    def task(self, number: int, everyone: int) -> Task:
        """What round `number` asks; `everyone`: members that are ready, all of whom close the run."""
        phase: Phase = "main"
        if number <= self.config.federation.warmup_rounds:
            phase = "warmup"
        elif number == self.last:
            phase = "close"
        cohort = everyone if phase == "close" else self.cohort
        plan = self.config.plan(phase, cohort)
        split = self.blueprint.split(plan)
        return Task(number, plan, split, Form.of(plan, split), cohort)


@dataclass(frozen=True)
class Task:
    """One round's plan, its split of the tensors, the form of its vectors and the cohort's size."""

    number: int
    plan: Plan
    split: Split
    form: Form
    cohort: int


def federate(run: Run, grid: Grid) -> None:
    """Play all rounds that the journal does not hold yet, then tell the devices which ones stand.

    Raises RoundFailed when a round fails as often as `federation.attempts` allows; finished rounds stand.
    """
    roll = Roll(run, grid)
    recover(run)
    for number in range(run.journal.settled() + 1, run.last + 1):
        run = roll.run = run.latest(run)
        play_round(run, grid, number, roll.gather(), partial(roll.gather, anew=True))
    roll.greet(roll.call().values())


def play_round(
    run: Run, grid: Grid, number: int, ready: Ready, again: Callable[[], Ready] | None = None
) -> RoundLog | None:
    """One round, in as many attempts as it takes; None when it was lost past unmasking and is skipped.

    ready: member number -> node, for every device that would take part now. again: who would, asked anew
    before another attempt, since devices that fell silent may be why the last one failed.
    Raises TooFewDevices or another RoundFailed; nothing of a failed attempt is kept.
    """
    while True:
        task = run.task(number, len(ready))
        _note_sums(run, task)
        members = sample_cohort(list(ready), task.cohort, seed=run.config.seed, round=number)
        cohort = {ready[member]: member for member in members}
        attempt = run.journal.begin(number, task.plan.phase)
        diary = Diary(run.journal, number, attempt)
        try:
            return _attempt(run, grid, task, attempt, cohort, diary)
        except RoundFailed as error:
            if unmask_asked(diary.records()):
                run.journal.skip(number, attempt, str(error))
                return None
            run.journal.fail(number, attempt, str(error))
            if run.journal.attempts(number) >= run.config.federation.attempts:
                raise
        ready = again() if again else ready


def _attempt(
    run: Run, grid: Grid, task: Task, attempt: int, cohort: Mapping[int, int], diary: Diary
) -> RoundLog:
    """One attempt of a round. cohort: node -> member."""
    began = time.monotonic()
    shared = _shared(run, task)
    announce = _announce(run, task, attempt, shared)
    wire = Exchange(grid, run.config.federation.deadline_seconds, f"{task.number}.{attempt}", diary.arrived)

    def exchange(stage: str, payloads: Mapping[int, bytes]) -> Mapping[int, bytes]:
        if stage == "confirm":  # the survivors are known, and nothing is revealed yet
            _enough(run, len(payloads))
        diary.asked(stage, len(payloads))
        replies = wire(stage, payloads)
        diary.over(stage, len(replies))
        return replies

    aggregate = run.aggregation.run(announce, list(cohort), exchange, diary)
    _enough(run, len(aggregate.survivors))
    log = _conclude(run, task, attempt, shared, aggregate)
    log = replace(log, seconds=time.monotonic() - began, bytes_up=wire.bytes_up, bytes_down=wire.bytes_down)
    run.journal.finish(log, _moved(run, task, shared, task.form.read(aggregate.total)))
    with suppress(JournalError):  # the round stands
        run.journal.joined([cohort[node] for node in aggregate.survivors], task.number)
    run.observe(log)
    return log


def recover(run: Run) -> None:
    """Settle the attempt that was open when the server died: complete it, skip it, or let it be retried.

    Past unmasking a round is never run again (DESIGN section 2, point 6).
    """
    row = run.journal.interrupted()
    if row is None:
        return
    records = Diary(run.journal, row.round, row.attempt).records()
    if not unmask_asked(records):
        run.journal.fail(row.round, row.attempt, "the server stopped before it asked for unmasking")
        return
    try:
        aggregate = run.aggregation.complete(records)
        _enough(run, len(aggregate.survivors))
    except RoundFailed as error:
        run.journal.skip(row.round, row.attempt, str(error))
        return
    task = run.task(row.round, len(aggregate.cohort))
    shared = _shared(run, task)
    log = _conclude(run, task, row.attempt, shared, aggregate)
    run.journal.finish(log, _moved(run, task, shared, task.form.read(aggregate.total)))
    run.observe(log)


# --- the parts of a round ---------------------------------------------------------------------------------


def _shared(run: Run, task: Task) -> Shared:
    """The shared state that a round starts from: the last checkpoint, or the common start."""
    found = run.journal.load()
    if found is None:
        factors, start = task.split.initial(run.config.seed)
        return Shared.begin(factors, start)
    shared = found[1]
    if task.plan.start_sent and not shared.start.size and task.split.personal.size:
        warm = run.blueprint.split(run.config.plan("warmup", run.cohort))
        return Shared.begin(*task.split.start_from(warm, shared.factors, run.config.seed))
    return shared


def _announce(run: Run, task: Task, attempt: int, shared: Shared) -> Announce:
    factors = announced_factors(task.plan, shared)
    return Announce(
        kind=Kind.SECAGG if run.config.privacy.secagg else Kind.PLAIN,
        run=run.run,
        round=task.number,
        attempt=attempt,
        group=task.form.group,
        ring=task.form.ring,
        words=task.form.words,
        base=run.blueprint.digest,
        plan=task.plan.encode(),
        finished=_finished(run.journal),
        membership=run.membership,
        factors=np.ascontiguousarray(factors, dtype="<f4").tobytes(),
    )


def announced_factors(plan: Plan, shared: Shared) -> NDArray[np.float32]:
    """What an announcement of `plan` carries: the shared factors, after a warm-up the personal start too."""
    return np.concatenate([shared.factors, shared.start]) if plan.start_sent else shared.factors


def _enough(run: Run, survivors: int) -> None:
    least = run.config.federation.min_survivors
    if survivors < least:
        raise TooFewDevices(
            f"{survivors} clients sent their part, federation.min_survivors is {least}; "
            "nothing of this attempt is used"
        )


def _moved(run: Run, task: Task, shared: Shared, sums: Sums) -> Shared:
    if task.plan.phase == "close":
        return shared
    return shared.moved(sums.mean, run.config.federation)


def _conclude(run: Run, task: Task, attempt: int, shared: Shared, aggregate: Aggregate) -> RoundLog:
    """What the server knows of the round: sums and counts. Times and bytes are filled in by the caller."""
    sums = task.form.read(aggregate.total)
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
    )


def _note_sums(run: Run, task: Task) -> None:
    """Note what the sums of this phase are made of, for whoever asks what the server sees."""
    key = f"sums {task.plan.phase}"
    if run.journal.fact(key) is None:
        tensors = () if task.plan.phase == "close" else task.split.shared.specs
        parts: list[tuple[str, tuple[int, ...]]] = [(spec.name, spec.shape) for spec in tensors]
        parts += [(counter.name, ()) for counter in task.form.quantiser.counters]
        run.journal.note(key, json.dumps(parts))


def _finished(journal: Journal) -> tuple[Finished, ...]:
    return tuple(Finished(number, attempt) for number, attempt in journal.finished())


class Diary:
    """One attempt's lines in the journal: what completing it after a crash would need, and how far it is."""

    def __init__(self, journal: Journal, number: int, attempt: int) -> None:
        self._journal = journal
        self._place = (number, attempt)
        self._kept: set[tuple[str, int]] = set()
        self._answered = 0  # in this stage
        self._told = 0.0

    def record(self, kind: str, key: int, payload: bytes) -> None:
        """Keep a line durably, once; "asked" also marks the attempt as past unmasking."""
        if (kind, key) in self._kept:
            return
        self._journal.record(*self._place, kind, key, payload)
        if kind == "asked":
            self._journal.unmasking(*self._place)
        self._kept.add((kind, key))

    def arrived(self, stage: str, node: int, payload: bytes) -> None:
        """Keep an unmask reply on its arrival; count the others now and then."""
        if stage == "unmask":
            self.record("reply", node, payload)
        self._answered += 1
        if time.monotonic() - self._told >= COUNT_SECONDS:
            self._tell(lambda: self._journal.answered(*self._place, stage, self._answered))

    def asked(self, stage: str, devices: int) -> None:
        """Show that a stage begins."""
        self._answered = 0
        self._tell(lambda: self._journal.stage(*self._place, stage, devices))

    def over(self, stage: str, answered: int) -> None:
        """Show that a stage is over."""
        self._tell(lambda: self._journal.answered(*self._place, stage, answered, over=True))

    def _tell(self, what: Callable[[], None]) -> None:
        """Write what is only shown: a round does not fail for it."""
        with suppress(JournalError):
            what()
        self._told = time.monotonic()

    def records(self) -> list[Record]:
        """All lines of the attempt."""
        return [Record(*line) for line in self._journal.records(*self._place)]


class Roll:
    """Which member answers at which node. Each node is asked once, and again while it is not ready.

    run: as it is now; only who belongs to it is called.
    """

    def __init__(self, run: Run, grid: Grid) -> None:
        self.run = run
        self._grid = grid
        self._known: dict[int, int] = {}  # node -> member

    def gather(self, *, anew: bool = False) -> dict[int, int]:
        """As `call`, once a cohort is there, or all the members there are, or the run's patience is over.

        anew: everybody is asked again, also those who were ready before.
        """
        if anew:
            self._known.clear()
        end, pause = time.monotonic() + self.run.patience, FIRST_PAUSE
        wanted = self.run.cohort if self.run.members is None else min(self.run.cohort, self.run.members)
        while len(ready := self.call()) < wanted and (left := end - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
        return ready

    def call(self) -> dict[int, int]:
        """Member number -> node, of all that are connected and ready."""
        present = set(self._grid.get_node_ids())
        self._known = {node: member for node, member in self._known.items() if node in present}
        self.greet(sorted(present - set(self._known)), GREETING_SECONDS)
        return {member: node for node, member in self._known.items() if self.run.belongs(member)}

    def greet(self, nodes: Iterable[int], seconds: float = math.inf) -> None:
        """Tell `nodes` which rounds stand, so that they commit what they staged; note who is ready.

        Waits no longer than `seconds`, and than a deadline of the run's: a node may be gone and not yet known
        to be.
        """
        hello = encode(Hello(self.run.run, _finished(self.run.journal)))
        deadline = min(seconds, self.run.config.federation.deadline_seconds)
        wire = Exchange(self._grid, deadline, "status")
        ready: dict[int, int] = {}  # member -> node
        for node, payload in wire("status", dict.fromkeys(nodes, hello)).items():
            try:
                status = decode(payload, Status)
            except ProtocolError:
                continue
            if status.ready:
                self._known[node] = status.member
                ready[status.member] = node
        with suppress(JournalError):  # only shown
            self.run.journal.seen(ready)


def cohort_size(config: RunConfig, people: int) -> int:
    """Clients a round. 0 in the configuration: a third of the people, at least ten, at most all; all
    where nothing is shared, since a round is then nothing but everybody's own training.

    Raises ConfigError when more are asked for than there are.
    """
    wanted = config.federation.cohort
    if wanted > people:
        raise ConfigError(f"federation.cohort is {wanted} but there are {people} people; lower it")
    if config.adapter.share == "none":
        return wanted or people
    return wanted or max(-(-people // 3), min(people, 10))


def run_id(config_digest: str, data_digest: str) -> bytes:
    """16 bytes that name a run: the same configuration and people, the same run."""
    return hashlib.sha256(f"penchant run|{config_digest}|{data_digest}".encode()).digest()[:16]
