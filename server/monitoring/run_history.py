"""What there is to know of a run, read from its directory without changing anything in it.

The journal is opened read-only for one question and closed: a run that is being written is never held up,
and one from before stages and devices were journaled still opens. `penchant server status` shows the same.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, JournalError
from penchant.server.journal import RoundLog

__all__ = [
    "Activity",
    "Attempt",
    "DeviceRecord",
    "JournalReader",
    "OpenedSums",
    "RunLocation",
    "RunSummary",
    "Stage",
    "facts_of",
]

Kind = Literal["simulation", "served", "fleet"]
State = Literal["new", "running", "stopped", "failed", "finished", "damaged"]

OFFLINE_SECONDS = 900.0


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
class Attempt:
    """One attempt of a round as journaled.

    `started` is in Unix seconds; `digest` is that of its checkpoint, in hex.
    """

    round: int
    attempt: int
    phase: str
    state: str
    started: float
    log: RoundLog | None
    why: str | None
    digest: str | None


@dataclass(frozen=True)
class Stage:
    """One stage of an attempt. Times are Unix seconds; `ended` is None while the stage waits for answers."""

    name: str
    began: float
    ended: float | None
    asked: int
    answered: int


@dataclass(frozen=True)
class DeviceRecord:
    """A member as the server met it. `joined` counts the rounds whose sum it is in; `last` is the latest."""

    member: int
    node: str
    seen: float
    joined: int
    last: int | None


@dataclass(frozen=True)
class OpenedSums:
    """What one phase's sums are made of: (name, shape), a counter's shape is ()."""

    phase: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]


class JournalReader:
    """The journal of a run directory, to read."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "journal.db"

    @property
    def mark(self) -> tuple[int, ...]:
        """Changes whenever the journal does: sizes and times of its files."""
        found = []
        for path in (self._path, self._path.with_name("journal.db-wal")):
            with suppress(OSError):
                stat = path.stat()
                found += [stat.st_size, stat.st_mtime_ns]
        return tuple(found)

    def attempts(self) -> list[Attempt]:
        """All attempts in order; none where there is no journal yet. JournalError when it is damaged."""
        rows = self._read(
            "SELECT round, attempt, phase, state, started, log, why, checkpoint FROM rounds"
            " ORDER BY round, attempt"
        )
        try:
            return [
                Attempt(r, a, phase, state, started, _log(log), why, mark.split()[-1] if mark else None)
                for r, a, phase, state, started, log, why, mark in rows
            ]
        except (ValueError, TypeError) as error:
            raise JournalError(f"{self._path} is damaged: {error}") from None

    def stages(self, round: int, attempt: int) -> list[Stage]:
        """How far an attempt came, stage by stage."""
        query = (
            "SELECT stage, began, ended, asked, answered FROM stages"
            " WHERE round = ? AND attempt = ? ORDER BY began"
        )
        return [Stage(*row) for row in self._read(query, round, attempt)]

    def devices(
        self, *, search: str = "", limit: int = -1, offset: int = 0, order: str = "member"
    ) -> list[DeviceRecord]:
        """Members that were met. search: the beginning of a member's number."""
        by = {"member": "member", "seen": "seen DESC", "joined": "joined DESC, member"}[order]
        query = (
            "SELECT member, node, seen, joined, last FROM devices WHERE member LIKE ? || '%'"
            f" ORDER BY {by} LIMIT ? OFFSET ?"
        )
        return [DeviceRecord(*row) for row in self._read(query, search, limit, offset)]

    def count_devices(self, *, search: str = "", since: float = 0.0) -> int:
        """How many members were met; since: after this moment."""
        query = "SELECT count(*) FROM devices WHERE member LIKE ? || '%' AND seen >= ?"
        rows = self._read(query, search, since)
        return int(rows[0][0]) if rows else 0

    def sums(self) -> list[OpenedSums]:
        """What the sums of each phase are made of, in the phases' order; none in old journals."""
        found = []
        for key, text in self._read("SELECT key, value FROM meta WHERE key LIKE 'sums %'"):
            parts = tuple((str(name), tuple(shape)) for name, shape in json.loads(text))
            found.append(OpenedSums(key.removeprefix("sums "), parts))
        order = ("warmup", "main", "close")
        return sorted(found, key=lambda s: order.index(s.phase) if s.phase in order else len(order))

    def fact(self, key: str) -> str | None:
        """A fact about the run, or None."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def _read(self, query: str, *values: object) -> list[Any]:
        if not self._path.is_file():
            return []
        try:
            with self._open() as db:
                return db.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # from before it was journaled, or just being made
                return []
            raise JournalError(f"can't read {self._path}: {error}") from None
        except sqlite3.Error as error:
            raise JournalError(f"can't read {self._path}: {error}") from None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        uri = self._path.absolute().as_uri()
        try:
            with closing(sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=5)) as db:
                db.execute("SELECT 1 FROM sqlite_master").fetchone()
                yield db
        except sqlite3.OperationalError as error:
            if "unable to open" not in str(error) and "readonly" not in str(error):
                raise
            # Where nothing can be written, not even the index of a write-ahead log: as the file is.
            with closing(sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True)) as db:
                yield db


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance. Its `total` of rounds includes the closing one."""

    place: RunLocation
    state: State
    work: Activity
    config: RunConfig | None
    attempts: Sequence[Attempt] = field(repr=False)
    result: dict[str, Any] | None = field(repr=False)
    why: str = ""

    @property
    def total(self) -> int:
        return self.config.federation.rounds + 1 if self.config else 0

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
    def open(self) -> Attempt | None:
        """The current attempt, or the one that was running when the run stopped."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.state in ("started", "unmasking") else None

    @property
    def failed(self) -> list[Attempt]:
        """Attempts that gave nothing."""
        return [a for a in self.attempts if a.state in ("failed", "skipped")]

    @property
    def accuracy(self) -> float | None:
        """The fleet's latest accuracy on the choices that its devices held out."""
        known = [log.val_accuracy for log in self.logs if log.val_accuracy is not None]
        return known[-1] if known else None

    @property
    def loss(self) -> float | None:
        """The latest training loss."""
        known = [log.train_loss for log in self.logs if log.train_loss is not None]
        return known[-1] if known else None

    @property
    def histogram(self) -> tuple[int, list[int]] | None:
        """(round, people per tenth of accuracy) of the latest round that has one."""
        known = [(log.round, log.histogram) for log in self.logs if log.histogram is not None]
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
                return (self.place.directory / "config.toml").stat().st_mtime
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

    def table(self) -> dict[str, Any]:
        """The same for a machine."""
        stages = (
            JournalReader(self.place.directory).stages(self.open.round, self.open.attempt)
            if self.open
            else []
        )
        return {
            "name": self.place.name,
            "kind": self.place.kind,
            "state": self.state,
            "why": self.why or None,
            "rounds": self.total - 1,
            "settled": self.settled,
            "began": self.began,
            "touched": self.touched,
            "remaining_seconds": self.remaining,
            "train_loss": self.loss,
            "val_accuracy": self.accuracy,
            "histogram": self.histogram[1] if self.histogram else None,
            "lost_part": self.lost_part,
            "secagg": self.config.privacy.secagg if self.config else None,
            "dp": None,
            "stages": [asdict(stage) for stage in stages],
            "devices": JournalReader(self.place.directory).count_devices(),
            "attempts": [_row(attempt) for attempt in self.attempts],
        }


def _row(attempt: Attempt) -> dict[str, Any]:
    """An attempt for a machine: what only a finished round has is null in the others."""
    log = dict.fromkeys(f.name for f in fields(RoundLog)) if attempt.log is None else asdict(attempt.log)
    own = {f.name: getattr(attempt, f.name) for f in fields(attempt) if f.name != "log"}
    return log | own


def facts_of(place: RunLocation, work: Activity) -> RunSummary:
    """The facts of a run. What can't be read is said in its `why`, not raised: one damaged directory must
    not take the page of all others."""
    directory = place.directory
    try:
        config = RunConfig.read(directory / "config.toml")
        attempts = JournalReader(directory).attempts()
    except (ConfigError, JournalError) as error:
        return RunSummary(place, "damaged", work, None, (), None, str(error))
    result = _result(directory / "result.json")
    state, why = _state(config, attempts, result is not None, work, place.kind)
    return RunSummary(place, state, work, config, attempts, result, why)


def _state(
    config: RunConfig, attempts: Sequence[Attempt], result: bool, work: Activity, kind: Kind
) -> tuple[State, str]:
    last = attempts[-1] if attempts else None
    closed = last is not None and last.round > config.federation.rounds and last.state in _SETTLED
    if result or (closed and kind == "served"):
        return "finished", ""
    if work.running:
        return "running", ""
    if work.why:
        return "failed", work.why
    if last is not None and last.state == "failed" and last.attempt >= config.federation.attempts:
        return "failed", last.why or ""
    return ("stopped" if last is not None else "new"), ""


_SETTLED = ("finished", "skipped")


def _log(text: str | None) -> RoundLog | None:
    return None if text is None else RoundLog(**json.loads(text))


def _result(path: Path) -> dict[str, Any] | None:
    """What a finished simulation wrote; a damaged file is treated as missing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def now() -> float:
    """Unix seconds."""
    return time.time()
