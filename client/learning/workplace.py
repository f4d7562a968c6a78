"""Where a device's local work is done: in this process, or in one of its own that can be ended.

An agent asks for a model's signature and for a round's outcome, and does not know which of the two does it.
Simulated devices work in this process and share one loaded model (`InThisProcess`); a real device has a
`TrainingProcess`, so that no text, plan or factor can take the agent down, and the agent needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penchant.client.learning.outcome import Outcome
from penchant.common.config import Plan
from penchant.common.data.preferences import Preference
from penchant.common.model.factors import Split, Vector

__all__ = ["Job", "LoadedModel", "Workplace"]


@dataclass(frozen=True)
class LoadedModel:
    """What an agent must know of the base model that a plan asks for.

    Attributes:
        digest: of its files, 32 bytes.
        split: which tensors the plan shares, and which stay with a person.
        norms: the L2 norm of each weight that a plan may change, by the name of its module or parameter.
        start: gives the common start of the personal part, float32 [d_personal], as the plan's seed draws it;
            empty where the plan sends one. Raises DeviceError where drawing it fails.
    """

    digest: bytes
    split: Split
    norms: Mapping[str, float]
    start: Callable[[], Vector] = field(repr=False)


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
