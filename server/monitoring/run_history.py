"""What there is to know of a run, read from its directory without changing anything in it.

Whoever wrote the directory: what can't be read is said of this one run, and takes no other with it. A run
that is being written is never held up. `penchant server status` shows the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, JournalError
from penchant.common.foreign_files import CONFIG_MOST, read_bytes, read_json
from penchant.common.printable import one_line
from penchant.server.journal import RoundLog
from penchant.server.journal_reader import AttemptRecord, DeviceRecord, JournalReader, OpenedSums, Stage
from penchant.server.measured import Measurement, by_round, measurements
from penchant.server.monitoring.run_report import AttemptReport, RunReport
from penchant.server.releases import releases
from penchant.server.waiting import Waiting, read_waiting

__all__ = [
    "Activity",
    "AttemptRecord",
    "DeviceRecord",
    "JournalReader",
    "OpenedSums",
    "RunLocation",
    "RunSummary",
    "Stage",
    "config_text",
    "read_config",
    "summary_of",
]

Kind = Literal["simulation", "served", "fleet"]
State = Literal["new", "running", "stopped", "failed", "finished", "damaged"]


@dataclass(frozen=True)
class RunLocation:
    """A run's directory, or that of a fleet's server.

    `id` is what pages call it; it never becomes part of a path.
    """

    id: str
    name: str
    directory: Path
    kind: Kind


@dataclass(frozen=True)
class Activity:
    """Whether a process drives a run now.

    Attributes:
        running: whether there is such a process.
        ours: whether the console started it, and so can stop it.
        why: how the process ended, if it ended badly.
    """

    running: bool = False
    ours: bool = False
    why: str = ""


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance. Its `total` of rounds includes the closing one; of a run whose training ended early
    it is how many there were."""

    location: RunLocation
    state: State
    activity: Activity
    config: RunConfig | None
    attempts: Sequence[AttemptRecord] = field(repr=False)
    why: str = ""
    waiting: Waiting | None = None  # what its next round waits for, while it runs

    @property
    def total(self) -> int:
        if self.config is None:
            return 0
        return self.settled if _closed(self.config, self.attempts) else self.config.federation.rounds + 1

    @property
    def logs(self) -> list[RoundLog]:
        """Of finished rounds, in order."""
        return [a.log for a in self.attempts if a.log is not None]

    @property
    def settled(self) -> int:
        """Rounds that need no more work."""
        return len({a.round for a in self.attempts if a.state in ("finished", "skipped")})

    @property
    def last(self) -> RoundLog | None:
        """The latest finished round."""
        logs = self.logs
        return logs[-1] if logs else None

    @property
    def open(self) -> AttemptRecord | None:
        """The current attempt, or the one that was running when the run stopped."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.state in ("started", "unmasking") else None

    @property
    def failed(self) -> list[AttemptRecord]:
        """Attempts that gave nothing."""
        return [a for a in self.attempts if a.state in ("failed", "skipped")]

    @property
    def measured(self) -> list[Measurement]:
        """What finished rounds found out about the factors that they began with, in order."""
        return measurements(self.logs)

    @property
    def by_round(self) -> dict[int, Measurement]:
        """round -> how well the factors do that it ended with; without rounds that nobody measured yet."""
        return by_round(self.logs)

    @property
    def accuracy(self) -> float | None:
        """The fleet's accuracy on the choices that its devices held out, as measured last."""
        known = [one.accuracy for one in self.measured if one.accuracy is not None]
        return known[-1] if known else None

    @property
    def accuracy_after(self) -> int | None:
        """The round whose factors have that accuracy; 0: those that the run began with."""
        known = [one.after for one in self.measured if one.accuracy is not None]
        return known[-1] if known else None

    @property
    def loss(self) -> float | None:
        """The training loss, as measured last."""
        known = [one.train_loss for one in self.measured if one.train_loss is not None]
        return known[-1] if known else None

    @property
    def histogram(self) -> tuple[int, list[int]] | None:
        """(round whose factors they are, people per tenth of accuracy) of the latest histogram."""
        known = [(one.after, one.log.histogram) for one in self.measured if one.log.histogram is not None]
        return known[-1] if known else None

    @property
    def began(self) -> float | None:
        """When the first attempt began, Unix seconds."""
        return self.attempts[0].started if self.attempts else None

    @property
    def touched(self) -> float:
        """When it last moved, Unix seconds."""
        if not self.attempts:
            with suppress(OSError):
                return (self.location.directory / "config.toml").lstat().st_mtime
            return 0.0
        last = self.attempts[-1]
        return last.started + (last.log.seconds if last.log else 0.0)

    @property
    def remaining(self) -> float | None:
        """Seconds to go, if rounds go on as the median of the last ten; None where that says nothing."""
        seconds = [log.seconds for log in self.logs[-10:]]
        if self.state != "running" or not seconds:
            return None
        return statistics.median(seconds) * (self.total - self.settled)

    @property
    def dropped(self) -> dict[str, int]:
        """stage -> devices lost there over the last ten rounds."""
        lost: dict[str, int] = {}
        for log in self.logs[-10:]:
            for stage, count in log.dropped.items():
                lost[stage] = lost.get(stage, 0) + count
        return lost

    @property
    def lost_part(self) -> float | None:
        """Of those asked in the last ten rounds, the part that is in no sum."""
        recent = self.logs[-10:]
        asked = sum(log.cohort for log in recent)
        return 1 - sum(log.survivors for log in recent) / asked if asked else None

    def report(self) -> RunReport:
        """The same for a machine."""
        reader = JournalReader(self.location.directory)
        stages = reader.stages(self.open.round, self.open.attempt) if self.open else []
        damaged = self.state == "damaged"
        return RunReport(
            name=self.location.name,
            kind=self.location.kind,
            state=self.state,
            why=self.why or None,
            rounds=self.total - 1,
            settled=self.settled,
            began=self.began,
            touched=self.touched,
            remaining_seconds=self.remaining,
            train_loss=self.loss,
            val_accuracy=self.accuracy,
            val_accuracy_after_round=self.accuracy_after,
            histogram=self.histogram[1] if self.histogram else None,
            lost_part=self.lost_part,
            secagg=self.config.privacy.secagg if self.config else None,
            dp=None if damaged else reader.privacy(),
            waiting=self.waiting,
            stages=tuple(stages),
            devices=0 if damaged else reader.count_devices(),
            attempts=tuple(map(AttemptReport.of, self.attempts)),
            run=self.location.name,
        )


def summary_of(location: RunLocation, activity: Activity) -> RunSummary:
    """The facts of a run. What can't be read is said in its `why`, not raised: one damaged directory must
    not take the page of all others."""
    directory = location.directory
    try:
        config = read_config(directory)
        attempts = JournalReader(directory).attempts()
        finished = _has_result(directory / "result.json")
        releases(directory)  # a page of all runs shows them
    except (ConfigError, JournalError) as error:
        return RunSummary(location, "damaged", activity, None, (), one_line(str(error)))
    state, why = _state(config, attempts, finished, activity, location.kind)
    waiting = read_waiting(directory) if state == "running" else None
    return RunSummary(location, state, activity, config, attempts, one_line(why), waiting)


def read_config(directory: Path) -> RunConfig:
    """The configuration in a run's directory. ConfigError when it is missing, or none."""
    return RunConfig.from_toml(config_text(directory))


def config_text(directory: Path) -> str:
    """The text of it."""
    path = directory / "config.toml"
    try:
        return read_bytes(path, ConfigError, CONFIG_MOST).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{directory} is not a run directory: it has no config.toml") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"can't read configuration {path}: {error}") from None


def _state(
    config: RunConfig, attempts: Sequence[AttemptRecord], result: bool, activity: Activity, kind: Kind
) -> tuple[State, str]:
    last = attempts[-1] if attempts else None
    if result or (_closed(config, attempts) and kind == "served"):
        return "finished", ""
    if activity.running:
        return "running", ""
    if activity.why:
        return "failed", activity.why
    if last is not None and last.state == "failed" and last.attempt >= config.federation.attempts:
        return "failed", last.why or ""
    return ("stopped" if last is not None else "new"), ""


_SETTLED = ("finished", "skipped")


def _closed(config: RunConfig, attempts: Sequence[AttemptRecord]) -> bool:
    """Whether the closing round is over."""
    last = attempts[-1] if attempts else None
    return last is not None and last.round > config.federation.rounds and last.state in _SETTLED


def _has_result(path: Path) -> bool:
    """Whether a simulation has written its result; a damaged file is treated as missing."""
    try:
        return isinstance(read_json(path, JournalError), dict)
    except (FileNotFoundError, JournalError):
        return False


def now() -> float:
    """Unix seconds."""
    return time.time()
