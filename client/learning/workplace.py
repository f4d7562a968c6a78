"""Where a device's local work is done: in this process, or in one of its own that can be ended.

An agent asks for a model's signature and for a round's outcome, and does not know which of the two does it.
Simulated devices work in this process and share one loaded model; a real device has a
`TrainingProcess`, so that no text, plan or factor can take the agent down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.trainer import Outcome
from penchant.common.config import Plan
from penchant.common.data.preferences import Preference
from penchant.common.errors import BaseModelError
from penchant.common.model.factors import Split, Vector

__all__ = ["InThisProcess", "Job", "LoadedModel", "Workplace"]


@dataclass(frozen=True)
class LoadedModel:
    """What an agent must know of the base model that a plan asks for.

    Attributes:
        digest: of its files, 32 bytes.
        split: which tensors the plan shares, and which stay with a person.
        norms: the L2 norm of each weight that a plan may change, by the name of its module or parameter.
    """

    digest: bytes
    split: Split
    norms: Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """One round's work, with everything that it needs.

    Attributes:
        plan: what is asked for.
        base: the digest of the base model that was announced, 32 bytes.
        shared: the announced shared factors, float32 [d_shared].
        start: the common start of the personal part, float32 [d_personal].
        personal: the personal part as it is now, float32 [d_personal].
        train: the choices to learn from.
        held_out: the choices to judge by.
        seed: of the order in which choices are taken.
        attempt: what names run, round and attempt; nothing of the outcome depends on it.
    """

    plan: Plan
    base: bytes
    shared: Vector = field(repr=False)
    start: Vector = field(repr=False)
    personal: Vector = field(repr=False)
    train: Sequence[Preference] = field(repr=False)
    held_out: Sequence[Preference] = field(repr=False)
    seed: int = field(repr=False)
    attempt: bytes = b""


class Workplace(Protocol):
    """Does local work, one job at a time."""

    def expect(self, job: Callable[[], Job]) -> None:
        """Take note that a job will be asked for, once its round has come so far. A device does nothing with
        that, and does not look at the job."""

    def load(self, plan: Plan) -> LoadedModel:
        """The base model of `plan`, loaded if need be. Raises BaseModelError or ConfigError as that does."""

    def work(self, job: Job, seconds: float | None) -> Outcome:
        """The outcome of a job. Raises what the work raises, and DeviceError when it took longer than
        `seconds`, or was cancelled."""

    def cancel(self) -> None:
        """End the work that is under way, if any. Callable from any thread; returns at once."""


class InThisProcess:
    """Works in the calling thread, with models that others may use as well. Nothing ends it early: only for
    devices whose server is trusted, which are those of simulations and tests."""

    def __init__(self, model_cache: ModelCache) -> None:
        self._model_cache = model_cache

    def load(self, plan: Plan) -> LoadedModel:
        """As `Workplace.load`."""
        planned = self._model_cache.of(plan)
        return LoadedModel(planned.model_signature.digest, planned.split, planned.model.weight_norms)

    def expect(self, job: Callable[[], Job]) -> None:
        """As `Workplace.expect`: each job is done when it is asked for."""

    def work(self, job: Job, seconds: float | None = None) -> Outcome:
        """As `Workplace.work`, however long it takes."""
        planned = self._model_cache.of(job.plan)
        if planned.model_signature.digest != job.base:
            raise BaseModelError("the base model is not the one that was announced; it changed on the disk")
        return work(planned, job.shared, job.start, job.personal, job.train, job.held_out, job.seed)

    def cancel(self) -> None:
        """As `Workplace.cancel`: what is under way goes on, and its outcome is not used."""
