"""Where simulated devices work: a cohort's jobs are gathered, and several people's done at a time.

Each agent says with its reply to `keys` what it will ask for (`Workplace.expect`). When the first of them
asks, everybody's jobs are there, and are cut into groups: by the number of their choices, so that those who
have about as many are together, and then by their place in the run. Each group is trained in lockstep by the
thread of one who asks, while the others wait for their part of it. The same cohort, the same groups, however
many threads ask, and whatever was expected of an earlier attempt.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from penchant.client.learning.group_round import work_together
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.lockstep import can_lockstep, people_bytes
from penchant.client.learning.model_cache import ModelCache, PlannedModel
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.workplace import Job, LoadedModel, Workplace
from penchant.common.config import Plan
from penchant.common.data.preferences import without_ties
from penchant.common.errors import DeviceError, PenchantError
from penchant.common.model.reward import PreparedPairs, RewardModel
from penchant.common.model.tails import PooledTail

__all__ = ["GatheredWork", "people_at_once"]

log = logging.getLogger(__name__)

BYTES = 1 << 30
"""What the groups that are trained at a time may take on a CPU; on a GPU it is half of its memory."""
SIDE_BY_SIDE = 4
"""Groups that are trained at a time at most. Each has that part of the memory, even where fewer threads ask:
who is with whom must not depend on how many cores there are."""
MOST_ON_CPU, MOST_ON_GPU = 64, 64
"""People in a group, where the settings leave it open."""


def people_at_once(planned: PlannedModel, asked: int) -> int:
    """How many people are trained in lockstep at most; 1 stands for one by one.

    asked: the setting; 0 leaves it open: on a GPU all that can be, on a CPU heads over frozen embeddings,
    where lockstep was measured to be several times as fast (docs/performance.md).
    """
    on_gpu = planned.model.device.type == "cuda"
    faster = on_gpu or isinstance(planned.model.tail, PooledTail)
    wanted = asked or (1 if not faster else MOST_ON_GPU if on_gpu else MOST_ON_CPU)
    if wanted == 1 or not can_lockstep(planned.model, planned.split, planned.plan.training):
        return 1
    return wanted


class GatheredWork:
    """The work of all simulated devices of a process. Thread-safe.

    Args:
        model_cache: keeps loaded models.
        asked: how many people a group has at most, as of `people_at_once`.
        room: bytes that all groups which are trained at a time may take together; None for `BYTES`, or half
            of a GPU's memory.
    """

    def __init__(self, model_cache: ModelCache, *, asked: int, room: int | None = None) -> None:
        self._model_cache = model_cache
        self._alone = InThisProcess(model_cache)
        self._asked = asked
        self._room = room
        self._lock = threading.Lock()
        self._round: _ExpectedJobs | None = None
        self._turns = _Turns()
        self.groups: list[int] = []  # how many people each had that was trained so far

    def most(self, plan: Plan) -> int:
        """How many people a group of this plan has at the most. Errors as `ModelCache.of`."""
        return people_at_once(self._model_cache.of(plan), self._asked)

    def place(self, number: int) -> Workplace:
        """The workplace of one device, by its place in the run."""
        return _Seat(self, number)

    def load(self, plan: Plan) -> LoadedModel:
        """As `Workplace.load`."""
        return self._alone.load(plan)

    def expect(self, number: int, job: Callable[[], Job]) -> None:
        """As `Workplace.expect`, of one device."""
        if self._asked == 1:
            return
        try:
            self._keep(number, job())
        except PenchantError as error:  # it will be told when it asks
            log.debug("a job is not gathered: %s", type(error).__name__)

    def work(self, number: int, job: Job, seconds: float | None) -> Outcome:
        """As `Workplace.work`, of one device, however long it takes."""
        round = self._round
        if round is None or not round.holds(number, job):
            return self._alone.work(job, seconds)
        room = self._bytes(round.planned)
        while True:
            made = round.take(number, room, self.groups)
            if isinstance(made, Exception):
                raise made
            if isinstance(made, Outcome):
                return made
            try:
                round.finish(made, _made_of(round.planned, made, room // 2))
            finally:
                self._turns.leave()

    def end(self) -> None:
        """A round, or the run, is over: what it expected and nobody asked for is let go."""
        with self._lock:
            self._round = None

    def _keep(self, number: int, job: Job) -> None:
        key = _key(job)
        with self._lock:
            if self._round is None or self._round.key != key:
                planned = self._model_cache.of(job.plan)
                if planned.model_signature.digest != job.base:
                    return  # which is an error when it is asked for
                most = people_at_once(planned, self._asked)
                self._round = _ExpectedJobs(key, planned, most, self._turns)
            self._round.expect(number, job)

    def _bytes(self, planned: PlannedModel) -> int:
        """What one group may take."""
        room = memory_for(planned.model) if self._room is None else self._room
        return room // SIDE_BY_SIDE


@dataclass(frozen=True)
class _Seat:
    """One device's place."""

    gathered: GatheredWork
    number: int

    def load(self, plan: Plan) -> LoadedModel:
        return self.gathered.load(plan)

    def expect(self, job: Callable[[], Job]) -> None:
        self.gathered.expect(self.number, job)

    def work(self, job: Job, seconds: float | None) -> Outcome:
        return self.gathered.work(self.number, job, seconds)

    def cancel(self) -> None:
        """What is under way goes on: it is others' as well."""


@dataclass
class _Ready:
    """A job with its choices as the model takes them; None where there are none to learn from."""

    job: Job
    prepared: PreparedPairs | None


class _Turns:
    """How many groups may begin; all rounds of a process share it, and wait on the same condition."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._free = SIDE_BY_SIDE

    def enter(self) -> bool:
        """Whether one more group may be trained, which then has begun; the condition is held."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def leave(self) -> None:
        """A group's training has ended."""
        with self.changed:
            self._free += 1
            self.changed.notify_all()


class _ExpectedJobs:
    """The jobs that are expected in one attempt of a round, which all ask for the same: `key`."""

    def __init__(self, key: bytes, planned: PlannedModel, most: int, turns: _Turns) -> None:
        self.key, self.planned, self._most, self._turns = key, planned, most, turns
        self._changed = turns.changed
        self._jobs: dict[int, Job] = {}  # until they are asked for
        self._waiting: set[int] = set()
        self._done: dict[int, Outcome | Exception] = {}

    def expect(self, number: int, job: Job) -> None:
        """A job will be asked for; an earlier one of the same device will not."""
        if self._most == 1:
            return
        with self._changed:
            self._jobs[number] = job
            self._done.pop(number, None)
            self._waiting.add(number)

    def holds(self, number: int, job: Job) -> bool:
        """Whether this very job was expected."""
        with self._changed:
            known = self._jobs.get(number)
        return (
            known is not None
            and known.seed == job.seed
            and _key(job) == self.key
            and np.array_equal(known.personal, job.personal)
            and (known.train, known.held_out) == (job.train, job.held_out)
        )

    def take(self, number: int, room: int, groups: list[int]) -> Outcome | Exception | dict[int, _Ready]:
        """What was made of a device's job; or, while that is not there, the next group to work on, which is
        noted in `groups`, and holds a turn until its work has ended."""
        with self._changed:
            while True:
                self._changed.wait_for(
                    lambda: number in self._done or (self._waiting and self._turns.enter())
                )
                if number in self._done:
                    self._jobs.pop(number, None)
                    return self._done.pop(number)
                group = self._next_group(room)
                if group:
                    groups.append(len(group))
                    return group
                self._turns.leave()  # nobody's choices can be prepared

    def finish(self, group: dict[int, _Ready], made: list[Outcome | Exception]) -> None:
        """A group's work is done."""
        with self._changed:
            for (number, ready), outcome in zip(group.items(), made, strict=True):
                if self._jobs.get(number) is ready.job:
                    self._done[number] = outcome
            self._changed.notify_all()

    def _next_group(self, room: int) -> dict[int, _Ready]:
        """The next people in order, as many as half of the room has place for; none where each one's choices
        make an error, which is the outcome then."""
        order = sorted(self._waiting, key=lambda number: (-len(self._jobs[number].train), number))
        group: dict[int, _Ready] = {}
        held = 0
        for number in order:
            ready = self._prepared(self._jobs[number])
            if isinstance(ready, Exception):
                self._done[number] = ready
                self._waiting.discard(number)
                self._changed.notify_all()
                continue
            size = 0 if ready.prepared is None else people_bytes(self.planned.split, ready.prepared)
            if group and held + size > room // 2:
                break
            group[number] = ready
            held += size
            if len(group) == self._most:
                break
        self._waiting -= set(group)
        return group

    def _prepared(self, job: Job) -> _Ready | Exception:
        """A job with its choices; or why they can't be taken, which is its owner's alone."""
        try:
            return _Ready(job, self.planned.model.prepare(job.train) if without_ties(job.train) else None)
        except Exception as error:  # nobody else's job may fail of it
            return _told(error)


def memory_for(model: RewardModel) -> int:
    """Bytes that all groups that are trained at a time may take."""
    if model.device.type != "cuda":
        return BYTES
    return int(torch.cuda.get_device_properties(model.device).total_memory) // 2


def _made_of(planned: PlannedModel, group: dict[int, _Ready], step_bytes: int) -> list[Outcome | Exception]:
    """What comes of a group; where the work on all of it fails, each one's is done alone, so that only who is
    at fault gets the error."""
    everybody = list(group.values())
    try:
        return _together(planned, everybody, step_bytes)
    except Exception as error:
        log.warning("the work of a group of %d failed: %s", len(everybody), type(error).__name__)
        if len(everybody) == 1:
            return [_told(error)]
    return [one for ready in everybody for one in _made_of(planned, {0: ready}, step_bytes)]


def _together(planned: PlannedModel, group: list[_Ready], step_bytes: int) -> list[Outcome | Exception]:
    jobs, prepared = [ready.job for ready in group], [ready.prepared for ready in group]
    return [*work_together(planned, jobs, prepared, step_bytes=step_bytes)]


def _told(error: Exception) -> Exception:
    """What an owner is told of an error: another's text may hold a choice, so only what kind it was."""
    return (
        error if isinstance(error, PenchantError) else DeviceError(f"the work failed: {type(error).__name__}")
    )


def _key(job: Job) -> bytes:
    """What is the same for all who are asked for the same, and new in each attempt: who is silent in this one
    is not waited for because of the last."""
    found = hashlib.blake2b(job.plan.encode(), digest_size=16)
    for part in (job.attempt, job.base, job.shared.tobytes(), job.start.tobytes()):
        found.update(part)
    return found.digest()
