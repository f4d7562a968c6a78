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
from functools import cached_property
from pathlib import Path
from typing import Literal

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, JournalError
from penchant.common.foreign_files import CONFIG_MOST, Remembered, mark_of, read_bytes, read_json
from penchant.common.printable import one_line
from penchant.server.journal import RoundLog
from penchant.server.journal_reader import (
    AttemptRecord,
    DeviceRecord,
    JournalGlance,
    JournalReader,
    OpenedSums,
    Stage,
)
from penchant.server.measured import Measurement, by_round, measurements
from penchant.server.monitoring.run_report import AttemptReport, RunReport
from penchant.server.releases import RELEASES, releases
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
    "State",
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
        stopped: whether somebody stopped it.
    """

    running: bool = False
    ours: bool = False
    why: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance. Its `total` of rounds includes the closing one; of a run whose training ended early
    it is how many there were.

    What a list of runs shows comes from `glance`, whatever the run's length; `attempts`, and what is made of
    them, read the journal when somebody asks.
    """

    location: RunLocation
    state: State
    activity: Activity
    config: RunConfig | None
    glance: JournalGlance = field(default_factory=JournalGlance, repr=False)
    why: str = ""
    waiting: Waiting | None = None  # what its next round waits for, while it runs

    @property
    def total(self) -> int:
        if self.config is None:
            return 0
        return self.settled if _closed(self.config, self.glance.recent) else self.config.federation.rounds + 1

    @property
    def tried(self) -> int:
        """How many attempts there were."""
        return self.glance.attempts

    @property
    def settled(self) -> int:
        """Rounds that need no more work."""
        return self.glance.settled

    @property
    def recent(self) -> Sequence[AttemptRecord]:
        """All attempts of the last dozen rounds, in order."""
        return self.glance.recent

    @property
    def last(self) -> RoundLog | None:
        """The latest finished round."""
        return self.glance.logs[-1] if self.glance.logs else None

    @property
    def current(self) -> AttemptRecord | None:
        """The attempt that began last."""
        return self.recent[-1] if self.recent else None

    @property
    def open(self) -> AttemptRecord | None:
        """The current attempt, or the one that was running when the run stopped."""
        last = self.current
        return last if last is not None and last.state in ("started", "unmasking") else None

    @property
    def accuracy(self) -> float | None:
        """The fleet's accuracy on the choices that its devices held out, as measured last."""
        return None if self._measured_last is None else self._measured_last.accuracy

    @property
    def accuracy_after(self) -> int | None:
        """The round whose factors have that accuracy; 0: those that the run began with."""
        return None if self._measured_last is None else self._measured_last.after

    @cached_property
    def _measured_last(self) -> Measurement | None:
        known = [one for one in measurements(self.glance.logs) if one.accuracy is not None]
        if not known:  # nobody was left to measure for a dozen rounds
            known = [one for one in measurements(self.glance.samples) if one.accuracy is not None]
        return known[-1] if known else None

    @property
    def accuracies(self) -> list[float]:
        """The accuracy of finished rounds spread over the run, in order: enough for a small curve."""
        return [log.val_accuracy for log in self.glance.samples if log.val_accuracy is not None]

    @property
    def loss(self) -> float | None:
        """The training loss, as measured last."""
        known = [log.train_loss for log in self.glance.logs if log.train_loss is not None]
        return known[-1] if known else None

    @property
    def began(self) -> float | None:
        """When the first attempt began, Unix seconds."""
        return self.glance.began

    @property
    def touched(self) -> float:
        """When it last moved, Unix seconds."""
        last = self.current
        if last is None:
            with suppress(OSError):
                return (self.location.directory / "config.toml").lstat().st_mtime
            return 0.0
        return last.started + (last.log.seconds if last.log else 0.0)

    @property
    def remaining(self) -> float | None:
        """Seconds to go, if rounds go on as the median of the last ten; None where that says nothing."""
        seconds = [log.seconds for log in self.glance.logs[-10:]]
        if self.state != "running" or not seconds:
            return None
        return statistics.median(seconds) * (self.total - self.settled)

    @property
    def dropped(self) -> dict[str, int]:
        """stage -> devices lost there over the last ten rounds."""
        lost: dict[str, int] = {}
        for log in self.glance.logs[-10:]:
            for stage, count in log.dropped.items():
                lost[stage] = lost.get(stage, 0) + count
        return lost

    @property
    def lost_part(self) -> float | None:
        """Of those asked in the last ten rounds, the part that is in no sum."""
        recent = self.glance.logs[-10:]
        asked = sum(log.cohort for log in recent)
        return 1 - sum(log.survivors for log in recent) / asked if asked else None

    # --- from the whole journal --------------------------------------------------------------------

    @cached_property
    def attempts(self) -> Sequence[AttemptRecord]:
        """All attempts, in order. JournalError where the journal is damaged."""
        return () if self.state == "damaged" else JournalReader(self.location.directory).attempts()

    @cached_property
    def logs(self) -> list[RoundLog]:
        """Of finished rounds, in order."""
        return [a.log for a in self.attempts if a.log is not None]

    @cached_property
    def measured(self) -> list[Measurement]:
        """What finished rounds found out about the factors that they began with, in order."""
        return measurements(self.logs)

    @cached_property
    def by_round(self) -> dict[int, Measurement]:
        """round -> how well the factors do that it ended with; without rounds that nobody measured yet."""
        return by_round(self.logs)

    @property
    def histogram(self) -> tuple[int, list[int]] | None:
        """(round whose factors they are, people per tenth of accuracy) of the latest histogram."""
        known = [(one.after, one.log.histogram) for one in self.measured if one.log.histogram is not None]
        return known[-1] if known else None

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
            rounds=self.config.federation.rounds if self.config else 0,
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


def summary_of(location: RunLocation, activity: Activity, *, whole: bool = True) -> RunSummary:
    """The facts of a run. What can't be read is said in its `why`, not raised: one damaged directory must
    not take the page of all others.

    Without `whole`, damage far back in the journal may stay unseen: lists of runs do not read all of each.
    """
    directory = location.directory
    try:
        papers = _papers.get(directory, mark_of(*(directory / name for name in _PAPERS)))
        reader = JournalReader(directory)
        if whole:
            reader.contents()
        glance = reader.glance()
    except (ConfigError, JournalError) as error:
        return RunSummary(location, "damaged", activity, None, why=one_line(str(error)))
    state, why = _state(papers.config, glance, papers.result, activity, location.kind)
    waiting = read_waiting(directory) if state == "running" else None
    return RunSummary(location, state, activity, papers.config, glance, one_line(why), waiting)


@dataclass(frozen=True)
class _Papers:
    """What lies in a run's directory beside its journal."""

    config: RunConfig
    result: bool


_PAPERS = ("config.toml", "result.json", RELEASES)


def _read_papers(directory: Path, before: _Papers | None) -> _Papers:
    config = read_config(directory)
    releases(directory)  # a page of all runs shows them
    return _Papers(config, _has_result(directory / "result.json"))


_papers: Remembered[_Papers] = Remembered(_read_papers, 5_000)


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
    config: RunConfig, glance: JournalGlance, result: bool, activity: Activity, kind: Kind
) -> tuple[State, str]:
    last = glance.recent[-1] if glance.recent else None
    if result or (_closed(config, glance.recent) and kind == "served"):
        return "finished", ""
    if activity.running:
        return "running", ""
    if activity.why:
        return "failed", activity.why
    if last is not None and last.state == "failed" and last.attempt >= config.federation.attempts:
        return "failed", last.why or ""
    return ("stopped" if last is not None or activity.stopped else "new"), ""


_SETTLED = ("finished", "skipped")


def _closed(config: RunConfig, recent: Sequence[AttemptRecord]) -> bool:
    """Whether the closing round, of a run's latest attempts, is over."""
    last = recent[-1] if recent else None
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
