"""A run and its attempts as `penchant server status --json` writes them, in its order of fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from penchant.server.journal_reader import AttemptRecord, Stage
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.waiting import Waiting

__all__ = ["AttemptReport", "RunReport"]


@dataclass(frozen=True, kw_only=True)
class AttemptReport:
    """An attempt: the figures of `RoundLog`, None unless the attempt finished its round, and those of
    `AttemptRecord`."""

    round: int
    attempt: int
    phase: str
    cohort: int | None = None
    survivors: int | None = None
    dropped: Mapping[str, int] | None = None
    seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    examples: int | None = None
    train_loss: float | None = None
    val_accuracy: float | None = None
    histogram: Sequence[int] | None = None
    update_norm: float | None = None
    aborts: Mapping[str, int] | None = None
    named: Mapping[str, str] | None = None
    failed: Mapping[str, str] | None = None
    measured_on: int | None = None
    judged: int | None = None
    judges: int | None = None
    count_noise: float | None = None
    state: str
    started: float
    why: str | None
    digest: str | None

    @classmethod
    def of(cls, record: AttemptRecord) -> Self:
        """The report of a journaled attempt."""
        log = {} if record.log is None else vars(record.log)
        own = {name: value for name, value in vars(record).items() if name != "log"}
        return cls(**(log | own))


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run at a glance, with every attempt.

    Attributes:
        name: the name of the run's directory.
        kind: "simulation" or "served".
        state: what `RunSummary.state` says.
        why: how the run failed; None unless it did.
        rounds: how many rounds the run has, without the closing one.
        settled: how many rounds need no more work, the closing one included.
        began: when the first attempt began, in Unix seconds.
        touched: when the run last moved, in Unix seconds.
        remaining_seconds: how long the run still takes at its present pace.
        train_loss: the latest training loss.
        val_accuracy: the latest accuracy on the choices that devices held out.
        val_accuracy_after_round: the round whose factors have it; 0: those that the run began with.
        histogram: people per tenth of that accuracy, of the latest round that has one.
        lost_part: of those asked in the last ten rounds, the part that is in no sum.
        secagg: whether the run uses secure aggregation; None where its configuration can't be read.
        dp: what the run's noise amounts to; None where sums are exact, and before it has begun.
        stages: the stages of the attempt that is under way.
        devices: how many devices the journal knows.
        attempts: every attempt, in order.
        run: the name once more, as the commands' options call it.
    """

    name: str
    kind: str
    state: str
    why: str | None
    rounds: int
    settled: int
    began: float | None
    touched: float
    remaining_seconds: float | None
    train_loss: float | None
    val_accuracy: float | None
    val_accuracy_after_round: int | None
    histogram: Sequence[int] | None
    lost_part: float | None
    secagg: bool | None
    dp: PrivacyFigures | None
    waiting: Waiting | None
    stages: tuple[Stage, ...] = field(repr=False)
    devices: int
    attempts: tuple[AttemptReport, ...] = field(repr=False)
    run: str
