"""Local work in a process of its own: it has a budget of time and of memory, and it is really ended.

The process holds the base model and, while it works, the owner's choices. It has a lower priority than the
agent, is the first that the system ends when memory runs out, and dies with the agent.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.trainer import Outcome
from penchant.client.learning.workplace import InThisProcess, Job, LoadedModel
from penchant.common.config import AdapterConfig, ModelConfig, Plan
from penchant.common.errors import DeviceError, PenchantError
from penchant.common.model.signature import ModelSignature

__all__ = ["TrainingProcess"]

LOAD_SECONDS = 900.0  # for a base model to be loaded, from a slow disk say
NICENESS = 10  # the agent answers first
MB = 1024 * 1024


class TrainingProcess:
    """A `Workplace` in a process of its own, started when it is first needed and again after it was ended.

    Args:
        memory_mb: how much memory a job may take beyond the loaded model, in MB. Linux enforces it; elsewhere
            only the system's own limits hold.
    """

    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb
        self._turn = threading.Lock()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._known: tuple[tuple[ModelConfig, AdapterConfig], _Facts] | None = None
        self._working = False

    def load(self, plan: Plan) -> LoadedModel:
        """As `Workplace.load`. What is known of a model is kept for all plans of a run, its phases included:
        whether the last job had to be ended, which can depend on choices, does not delay the answer."""
        wanted = plan.model, plan.adapter
        if self._known is None or self._known[0] != wanted:
            with self._turn:
                self._known = wanted, self._asked(("load", plan), LOAD_SECONDS)
        facts = self._known[1]
        return LoadedModel(facts.signature.digest, facts.signature.split(plan), facts.norms)

    def work(self, job: Job, seconds: float | None) -> Outcome:
        """As `Workplace.work`."""
        with self._turn:
            self._working = True
            try:
                outcome: Outcome = self._asked(("work", job), seconds)
                return outcome
            finally:
                self._working = False

    def cancel(self) -> None:
        """As `Workplace.cancel`: the process is killed."""
        process = self._process
        if self._working and process is not None:
            process.kill()

    def close(self) -> None:
        """End the process for good."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _asked(self, request: tuple[str, Any], seconds: float | None) -> Any:
        connection = self._running()
        try:
            connection.send(request)
            if not connection.poll(seconds):
                self._restart()
                raise DeviceError(f"the work took longer than the {seconds:.1f} s that it had, and was ended")
            kind, answer = connection.recv()
        except (EOFError, OSError):
            self._restart()
            raise DeviceError("the work was ended: it was cancelled, or memory ran out") from None
        if kind == "done":
            return answer
        raise answer if isinstance(answer, PenchantError) else DeviceError(f"the work failed: {answer}")

    def _restart(self) -> None:
        """Replace the process now, so that the next job need not wait for it."""
        self.close()
        self._running()

    def _running(self) -> Connection:
        if self._process is not None and self._connection is not None and self._process.is_alive():
            return self._connection
        self.close()
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._memory_mb), name="penchant training", daemon=True
        )
        self._process.start()
        theirs.close()
        return self._connection


# --- in the process -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What a plan's phase does not change of a loaded model."""

    signature: ModelSignature
    norms: Mapping[str, float]


def _serve(connection: Connection, memory_mb: int) -> None:
    _step_back()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    models = ModelCache()
    place = InThisProcess(models)
    while True:
        try:
            kind, subject = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            if kind == "load":
                planned = models.of(subject)
                answer: Any = _Facts(planned.model_signature, planned.model.weight_norms)
            else:
                place.load(subject.plan)  # not at the job's expense
                _bound_memory(memory_mb)
                answer = place.work(subject)
            reply = "done", answer
        except PenchantError as error:
            reply = "refused", error
        except Exception as error:  # its text may hold a choice; the owner is told what kind it was
            reply = "failed", type(error).__name__
        connection.send(reply)


def _step_back() -> None:
    """The agent, and everything else on the device, goes first."""
    with suppress(OSError):  # a service manager may forbid it, and has limits of its own
        os.nice(NICENESS)
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _bound_memory(memory_mb: int) -> None:
    """Let this process take `memory_mb` more than it has now; on Linux alone."""
    try:
        held = Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(held) * 1024 + memory_mb * MB, hard))
    except (OSError, ValueError, IndexError):
        return  # another system, or a service manager that sets the limit itself (MemoryMax=)
