"""Local work in a separate process: it has a budget of time and of memory, and it is really ended.

The process holds the base model and, while it works, the owner's choices. It has a lower priority than the
agent, is the first that the system ends when memory runs out, and dies with the agent. Whether it is warm,
busy or gone can depend on choices, so nothing but the next job ever waits for it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.client.learning.child_process import Child, answer, end_with_parent, yield_memory
from penchant.client.learning.model_facts import (
    LOAD_SECONDS,
    ModelFacts,
    ModelTold,
    facts_of,
    new_models,
    told_by,
)
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.workplace import Job, LoadedModel
from penchant.common.config import Plan
from penchant.common.errors import DeviceError, PenchantError

if TYPE_CHECKING:  # the agent needs no torch: the process that trains does
    from penchant.client.learning.model_cache import ModelCache

__all__ = ["TrainingProcess"]

NICENESS = 10  # the agent answers first
GOES_FIRST = 1000  # when memory runs out
LOOK_SECONDS = 0.05  # at whether a job that waits for its model was cancelled
MB = 1024 * 1024
OWN_MEMORY = 4 * MB  # tensors of that size or more go back to the system when they are let go
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
NAME = "penchant training"


class TrainingProcess:
    """A `Workplace` in a separate process, started by the first job and by the next one after it was ended.

    A job's time holds all of that: the start, the loading of the model, the training. The first model that is
    ever asked for is loaded here beforehand, and its facts come from here: no job can have been then, so
    waiting for it says nothing of any.

    Args:
        memory_mb: how much memory a job may take beyond the loaded model, in MB. Linux enforces it; elsewhere
            only the system's own limits hold. A training step is cut so that it holds a quarter of that.
        folder: where the process may write frozen states that it has no memory for; by default nothing is.
    """

    def __init__(self, memory_mb: int, folder: Path | None = None) -> None:
        self._memory_mb = memory_mb
        self._folder = folder
        self._facts = ModelFacts()
        self._turn = threading.Lock()
        self._worker: Child | None = None
        self._loading_since: float | None = None
        self._state = threading.Lock()  # of the three below; never held for long
        self._jobs = 0  # that were ever asked for
        self._void = 0  # how many of them, from the first, are cancelled if they are not done
        self._given = False  # whether the process has a job, and so choices
        self._warmed = False  # whether a model was ever asked for

    def load(self, plan: Plan) -> LoadedModel:
        """As `Workplace.load`, but for the first model from a process that has nothing to do with any job
        (`ModelFacts`)."""
        if not self._warmed:
            self._warmed = True
            self._facts.keep(plan, self._warm(plan))
        return self._facts.of(plan)

    def expect(self, job: Callable[[], Job]) -> None:
        """As `Workplace.expect`: nothing that a round does here begins before its time."""

    def work(self, job: Job, seconds: float | None) -> Outcome:
        """As `Workplace.work`."""
        time_left = _TimeLeft(seconds)
        with self._state:
            self._jobs += 1
            number = self._jobs
        if not self._turn.acquire(timeout=-1 if seconds is None else max(seconds, 0.0)):
            raise time_left.error()
        try:
            return self._outcome(self._loaded(job.plan, number, time_left), job, number, time_left)
        except (EOFError, OSError):
            self.close()
            raise _ended() from None
        finally:
            self._turn.release()

    def cancel(self) -> None:
        """As `Workplace.cancel`: what has a job is killed. What still loads a model holds no choice, and goes
        on for the next job: a model that takes longer than a plan's time would else never be there."""
        with self._state:
            self._void = self._jobs
            worker = self._worker if self._given else None
            if worker is not None:
                worker.kill()

    def let_go(self) -> None:
        """End the process, and with it whatever it has read: the owner has left. A job is cancelled first."""
        self.cancel()
        with self._turn:
            self.close()

    def close(self) -> None:
        """End the process for good."""
        worker, self._worker = self._worker, None
        self._loading_since = None
        if worker is not None:
            worker.close()

    def _warm(self, plan: Plan) -> ModelTold:
        """Have the process and its model there before the first job; -> what it knows of the model."""
        with self._turn:
            worker = self._running()
            try:
                worker.tell(("load", plan))
                told: ModelTold = told_by(worker)
                return told
            except DeviceError:
                self.close()
                raise

    def _loaded(self, plan: Plan, number: int, time_left: _TimeLeft) -> Child:
        """The process, with the model of `plan` in it."""
        worker = self._running()
        if self._loading_since is not None:  # a job whose time is over has asked for that
            self._wait(worker, number, time_left)
            with suppress(PenchantError):
                worker.reply()
        self._loading_since = time.monotonic()
        worker.tell(("load", plan))
        self._wait(worker, number, time_left)
        self._loading_since = None
        worker.reply()
        return worker

    def _wait(self, worker: Child, number: int, time_left: _TimeLeft) -> None:
        """Until the model is loaded."""
        while not worker.ready(time_left.at_most(LOOK_SECONDS)):
            if number <= self._void:
                raise _ended()
            if time_left.over():
                raise time_left.error()

    def _outcome(self, worker: Child, job: Job, number: int, time_left: _TimeLeft) -> Outcome:
        with self._state:
            if number <= self._void:
                raise _ended()
            self._given = True
        try:
            worker.tell(("work", job))
            if not worker.ready(time_left.at_most(None)):
                self.close()
                raise time_left.error()
            outcome: Outcome = worker.reply()
            return outcome
        finally:
            with self._state:
                self._given = False

    def _running(self) -> Child:
        since = self._loading_since
        stuck = since is not None and time.monotonic() - since > LOAD_SECONDS
        if self._worker is None or stuck or not self._worker.alive():
            self.close()
            self._worker = Child(_serve, self._memory_mb, self._folder, name=NAME)
        return self._worker


class _TimeLeft:
    """What is left of the seconds that a job has; None: as long as it takes."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._until = None if seconds is None else time.monotonic() + seconds

    def at_most(self, most: float | None) -> float | None:
        """Seconds that are left, or `most` if those are fewer."""
        left = None if self._until is None else max(self._until - time.monotonic(), 0.0)
        return min((s for s in (left, most) if s is not None), default=None)

    def over(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def error(self) -> DeviceError:
        """What is raised when they are over."""
        return DeviceError(f"the work took longer than the {self._seconds:.1f} s that it had, and was ended")


def _ended() -> DeviceError:
    return DeviceError("the work was ended: it was cancelled, or memory ran out")


# --- in the process -----------------------------------------------------------------------------------


def _serve(connection: Connection, memory_mb: int, folder: Path | None) -> None:
    with suppress(OSError):  # a service manager may forbid it, and has its own limits
        os.nice(NICENESS)
    yield_memory(GOES_FIRST)
    end_with_parent()
    _leave_no_holes()
    place = _Place(memory_mb, folder)
    while True:
        try:
            kind, subject = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        answer(connection, partial(place.load if kind == "load" else place.work, subject))
        del subject  # the choices of a job that is done are not kept


class _Place:
    """Where the process works: its models, from the first message on.

    memory_mb: what a job may take beyond the loaded model. folder: as of `TrainingProcess`.
    """

    def __init__(self, memory_mb: int, folder: Path | None) -> None:
        self._memory_mb, self._folder = memory_mb, folder
        self._models: ModelCache | None = None

    def load(self, plan: Plan) -> ModelTold:
        """What is told of a model, which may take what memory it needs."""
        _bound_memory(None)
        return facts_of(self._kept(), plan)

    def work(self, job: Job) -> Outcome:
        """The outcome of a job, within its memory."""
        from penchant.client.learning.in_this_process import InThisProcess

        models = self._kept()
        _bound_memory(self._memory_mb)
        return InThisProcess(models).work(job)

    def _kept(self) -> ModelCache:
        if self._models is None:
            self._models = new_models(self._memory_mb, self._folder)
        return self._models


def _leave_no_holes() -> None:
    """Give large tensors memory of their own, where the C library is glibc: among others they leave holes
    behind, and a step was seen to take eight times what it held."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OWN_MEMORY)


def _bound_memory(memory_mb: int | None) -> None:
    """Let this process take `memory_mb` more than it has now, or what the system gives; on Linux alone."""
    try:
        held = Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = hard if memory_mb is None else int(held) * 1024 + memory_mb * MB
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    except (OSError, ValueError, IndexError):
        return  # another system, or a service manager that sets the limit itself (MemoryMax=)
