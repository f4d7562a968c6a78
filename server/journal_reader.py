"""A journal that somebody else may have written: read whole, checked value by value, never changed.

The console, `penchant server status`, `penchant audit`, exports, and whatever looks at a run before it goes
on read here. What is not as `penchant.server.journal` writes it is refused in one line, with the place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NoReturn

from penchant.common.errors import JournalError
from penchant.common.foreign_files import (
    FileMark,
    ForeignDatabase,
    Remembered,
    foreign_database,
    mark_of,
    parse_json,
    read_bytes,
)
from penchant.common.printable import is_printable, one_line
from penchant.common.storage import refuse_schema
from penchant.server.journal import SCHEMA_VERSION, Journal, RoundLog, RoundRow, decode_checkpoint
from penchant.server.optimizers import ServerState
from penchant.server.privacy_figures import FACT, PrivacyFigures

__all__ = [
    "AttemptRecord",
    "DeviceRecord",
    "JournalContents",
    "JournalGlance",
    "JournalReader",
    "OpenedSums",
    "Stage",
    "open_journal",
]

JOURNAL: Final = "journal.db"
CHECKPOINT_MOST: Final = 16 * 1024 * 1024 * 1024
_TABLES = {
    "meta": ("key", "value"),
    "rounds": ("round", "attempt", "phase", "state", "started", "log", "why", "checkpoint"),
    "stages": ("round", "attempt", "stage", "began", "ended", "asked", "answered"),
    "devices": ("member", "node", "seen", "joined", "last"),
}
_STATES = ("started", "unmasking", "finished", "failed", "skipped")
_PHASES = ("warmup", "main", "close")
TENTHS: Final = 10  # of a histogram
_CHECKPOINT = re.compile(r"(round-[0-9]{6,9}\.safetensors) ([0-9a-f]{64})", re.ASCII)
_WORD_MOST, _WHY_MOST = 64, 2000  # characters
_ROUND_MOST, _COUNT_MOST, _BYTES_MOST = 10**6, 10**9, 2**62
_LATEST = 32503680000.0  # the year 3000, Unix seconds
_ROWS_KEPT = 400_000  # of journals whose contents are remembered: about a gigabyte at most
_GLANCES_KEPT = 5_000  # journals of which a glance is remembered
_RECENT = 12  # rounds at the end that a glance tells of
_SAMPLES = 48  # rounds over the whole run that it tells of


@dataclass(frozen=True)
class AttemptRecord:
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


@dataclass(frozen=True)
class JournalGlance:
    """The least of a journal that tells how its run does: some dozens of rows, however long the run is.

    Attributes:
        attempts: how many there were.
        settled: how many rounds need no more work.
        began: when the first attempt began, in Unix seconds; None before it.
        recent: all attempts of the last dozen rounds, in order.
        stages: (round, attempt) -> the stages of each of them.
        logs: of the last dozen finished rounds, in order.
        samples: logs of finished rounds spread over the whole run, in order; of all if there are few.
        devices: how many members were met.
        privacy: what the run's noise amounts to; None without noise.
    """

    attempts: int = 0
    settled: int = 0
    began: float | None = None
    recent: Sequence[AttemptRecord] = ()
    stages: Mapping[tuple[int, int], Sequence[Stage]] = field(default_factory=dict)
    logs: Sequence[RoundLog] = ()
    samples: Sequence[RoundLog] = ()
    devices: int = 0
    privacy: PrivacyFigures | None = None


@dataclass(frozen=True)
class JournalContents:
    """All that a journal says of its rounds, checked. Stages are by (round, attempt)."""

    attempts: Sequence[AttemptRecord] = ()
    stages: Mapping[tuple[int, int], Sequence[Stage]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    sums: Sequence[OpenedSums] = ()
    privacy: PrivacyFigures | None = None


class JournalReader:
    """The journal of a run directory, to read. What it held last is remembered until its file changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / JOURNAL

    @property
    def mark(self) -> FileMark:
        """Changes whenever the journal does."""
        return mark_of(self._path, self._path.with_name(f"{JOURNAL}-wal"))

    def contents(self) -> JournalContents:
        """All of it; empty where there is no journal yet. JournalError when it is damaged."""
        return _contents.get(self._path.absolute(), self.mark)

    def glance(self) -> JournalGlance:
        """How the run does, without reading all of it: what lies further back is not checked for damage."""
        return _glances.get(self._path.absolute(), self.mark)

    def attempts(self) -> list[AttemptRecord]:
        """All attempts in order; none where there is no journal yet."""
        return list(self.contents().attempts)

    def rows(self) -> list[RoundRow]:
        """The same, as the journal itself has them."""
        return [RoundRow(a.round, a.attempt, a.phase, a.state, a.log, a.why) for a in self.attempts()]

    def logs(self) -> list[RoundLog]:
        """The logs of all finished rounds, in order."""
        return [a.log for a in self.attempts() if a.log is not None]

    def settled(self) -> int:
        """The last round that needs no more work (finished or skipped); 0 before the first."""
        return max((a.round for a in self.attempts() if a.state in ("finished", "skipped")), default=0)

    def stages(self, round: int, attempt: int) -> list[Stage]:
        """How far an attempt came, stage by stage."""
        recent = self.glance().stages.get((round, attempt))
        return list(self.contents().stages.get((round, attempt), ()) if recent is None else recent)

    def devices(self) -> Sequence[DeviceRecord]:
        """Members that were met, by their number."""
        return _devices.get(self._path.absolute(), self.mark)

    def count_devices(self) -> int:
        """How many members were met."""
        return self.glance().devices

    def sums(self) -> list[OpenedSums]:
        """What the sums of each phase are made of, in the phases' order; none in old journals."""
        return list(self.contents().sums)

    def fact(self, key: str) -> str | None:
        """A fact about the run, or None."""
        return self.contents().facts.get(key)

    def privacy(self) -> PrivacyFigures | None:
        """What the run's noise amounts to; None without noise."""
        return self.contents().privacy

    def load(self, round: int | None = None) -> tuple[int, ServerState] | None:
        """(round, shared state) of the last finished round, or of this one, checked against the digest in
        its row; None where it is not finished."""
        done = [a for a in self.attempts() if a.state == "finished" and round in (None, a.round)]
        if not done:
            return None
        last = done[-1]
        return last.round, decode_checkpoint(self.checkpoint(last), self._path.parent)

    def digest(self, round: int) -> str | None:
        """SHA-256 (hex) of the checkpoint of a finished round, None for another."""
        return next((a.digest for a in self.attempts() if a.state == "finished" and a.round == round), None)

    def checkpoint(self, attempt: AttemptRecord) -> bytes:
        """The checkpoint of a finished round, which is what the journal wrote. JournalError otherwise."""
        path = self.directory / "checkpoints" / f"round-{attempt.round:06d}.safetensors"
        try:
            data = read_bytes(path, JournalError, CHECKPOINT_MOST)
        except FileNotFoundError:
            raise JournalError(f"the checkpoint of round {attempt.round} is missing") from None
        if hashlib.sha256(data).hexdigest() != attempt.digest:
            raise JournalError(
                f"the checkpoint of round {attempt.round} is not what the journal wrote; restore it from a "
                "back-up"
            )
        return data


def open_journal(directory: Path) -> Journal:
    """The journal of a run that begins or goes on, to write; first it is read as a stranger's would be.

    JournalError when it is damaged, or is not penchant's.
    """
    JournalReader(directory).contents()
    return Journal(directory)


# --- reading it ---------------------------------------------------------------------------------------


def _read(path: Path, before: JournalContents | None) -> JournalContents:
    """All of a journal. One that has grown since `before` is read from a dozen rounds before its end: what
    lies further back never changes."""
    try:
        with _opened(path) as db:
            values = _Values(path)
            facts = dict(values.fact(row) for row in _some(db, "meta", "key"))
            kept = _kept(db, before) if before is not None else []
            if not kept:
                _read_devices(db, values)  # damage there is damage of the journal
            since = kept[-1].round + 1 if kept else 0
            attempts = _some(db, "rounds", "round, attempt", "round >= ?", since)
            stages = _some(db, "stages", "began", "round >= ?", since)
            earlier = {
                place: found
                for place, found in (before.stages.items() if before is not None and kept else ())
                if place[0] < since
            }
            return JournalContents(
                attempts=[*kept, *map(values.attempt, attempts)],
                stages=earlier | _by_attempt(map(values.staged, stages)),
                facts=facts,
                sums=_sums(values, facts),
                privacy=PrivacyFigures.read(facts.get(FACT)),
            )
    except FileNotFoundError:
        return JournalContents()


def _kept(db: ForeignDatabase, before: JournalContents) -> list[AttemptRecord]:
    """The attempts that need not be read again; none where some are there no more."""
    last = before.attempts[-1].round if before.attempts else 0
    kept = [attempt for attempt in before.attempts if attempt.round <= last - _RECENT]
    if not kept or not db.has("rounds"):
        return []
    counted = db.rows("SELECT count(*) FROM rounds WHERE round <= ?", last - _RECENT)[0][0]
    return kept if counted == len(kept) else []


def _read_devices(db: ForeignDatabase, values: _Values) -> list[DeviceRecord]:
    return [values.device(row) for row in _some(db, "devices", "member")]


def _devices_of(path: Path, before: Sequence[DeviceRecord] | None) -> Sequence[DeviceRecord]:
    try:
        with _opened(path) as db:
            return _read_devices(db, _Values(path))
    except FileNotFoundError:
        return ()


@contextmanager
def _opened(path: Path) -> Iterator[ForeignDatabase]:
    """A journal, open to read. FileNotFoundError where there is none yet."""
    with foreign_database(path, JournalError) as db:
        refuse_schema(db.mark, path, JournalError, SCHEMA_VERSION)
        db.expect(_TABLES)
        yield db


def _glance(path: Path, before: JournalGlance | None) -> JournalGlance:
    try:
        with _opened(path) as db:
            return _glanced(db, _Values(path))
    except FileNotFoundError:
        return JournalGlance()


def _glanced(db: ForeignDatabase, values: _Values) -> JournalGlance:
    facts = dict(values.fact(row) for row in _some(db, "meta", "key", "key = ?", FACT))
    devices = db.rows("SELECT count(*) FROM devices")[0][0] if db.has("devices") else 0
    privacy = PrivacyFigures.read(facts.get(FACT))
    if not db.has("rounds"):
        return JournalGlance(devices=devices, privacy=privacy)
    attempts, last = db.rows("SELECT count(*), coalesce(max(round), 0) FROM rounds")[0]
    last = values.whole(last, "a round", 0, _ROUND_MOST)
    over = "state = 'finished' OR state = 'skipped'"
    settled = db.rows(f"SELECT count(DISTINCT round) FROM rounds WHERE {over}")[0][0]
    first = _some(db, "rounds", "round, attempt LIMIT 1")
    recent = _some(db, "rounds", "round, attempt", "round > ?", last - _RECENT)
    stages = _some(db, "stages", "began", "round > ?", last - _RECENT)
    latest = _some(db, "rounds", f"round DESC, attempt DESC LIMIT {_RECENT}", "state = 'finished'")
    wanted = sorted({1 + n * (last - 1) // (_SAMPLES - 1) for n in range(_SAMPLES)}) if last else []
    places = ", ".join("?" * len(wanted))
    spread = _some(db, "rounds", "round, attempt", f"state = 'finished' AND round IN ({places})", *wanted)
    return JournalGlance(
        attempts=attempts,
        settled=settled,
        began=values.attempt(first[0]).started if first else None,
        recent=[values.attempt(row) for row in recent],
        stages=_by_attempt(map(values.staged, stages)),
        logs=_logs(values, reversed(latest)),
        samples=_logs(values, spread),
        devices=devices,
        privacy=privacy,
    )


def _logs(values: _Values, rows: Iterable[tuple[Any, ...]]) -> list[RoundLog]:
    return [log for log in (values.attempt(row).log for row in rows) if log is not None]


def _some(
    db: ForeignDatabase, table: str, order: str, where: str = "1", *given: object
) -> list[tuple[Any, ...]]:
    """Rows of one of our tables; none where it is not there: a journal from before it, or a new one."""
    names = ", ".join(_TABLES[table])
    query = f"SELECT {names} FROM {table} WHERE {where} ORDER BY {order}"
    return db.rows(query, *given) if db.has(table) else []


def _by_attempt(staged: Iterable[tuple[tuple[int, int], Stage]]) -> dict[tuple[int, int], list[Stage]]:
    found: dict[tuple[int, int], list[Stage]] = {}
    for place, stage in staged:
        found.setdefault(place, []).append(stage)
    return found


def _sums(values: _Values, facts: Mapping[str, str]) -> list[OpenedSums]:
    found = [
        OpenedSums(key.removeprefix("sums "), values.parts(text))
        for key, text in facts.items()
        if key.startswith("sums ")
    ]
    return sorted(found, key=lambda s: _PHASES.index(s.phase) if s.phase in _PHASES else len(_PHASES))


class _Values:
    """Checks single values; each returns what it was given, or raises a JournalError that names the place."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fact(self, row: tuple[Any, ...]) -> tuple[str, str]:
        key, value = row
        return self.word(key, "a fact's name"), self._text(value, "a fact", 4 * 1024 * 1024)

    def place(self, row: tuple[Any, ...]) -> tuple[int, int]:
        round, attempt = row
        return self.whole(round, "a round", 0, _ROUND_MOST), self.whole(attempt, "an attempt", 0, _ROUND_MOST)

    def attempt(self, row: tuple[Any, ...]) -> AttemptRecord:
        round, attempt, phase, state, started, log, why, checkpoint = row
        self.place((round, attempt))
        if state not in _STATES:
            self.wrong(f"the state of round {round}")
        if (state == "finished") != (log is not None):
            self.wrong(f"round {round}, which has a log unless it is not finished")
        return AttemptRecord(
            round=round,
            attempt=attempt,
            phase=self.word(phase, "a phase"),
            state=state,
            started=self.moment(started, "a beginning"),
            log=None if log is None else self.log(log, round, attempt),
            why=None if why is None else one_line(self._text(why, "a reason", 10**6), _WHY_MOST),
            digest=None if checkpoint is None else self._digest(checkpoint, round),
        )

    def _digest(self, mark: object, round: int) -> str:
        found = _CHECKPOINT.fullmatch(self._text(mark, "a checkpoint", 200))
        if found is None or found[1] != f"round-{round:06d}.safetensors":
            self.wrong(f"the name of the checkpoint of round {round}")
        return found[2]

    def staged(self, row: tuple[Any, ...]) -> tuple[tuple[int, int], Stage]:
        """((round, attempt), the stage)."""
        return self.place(row[:2]), self.stage(row[2:])

    def stage(self, row: tuple[Any, ...]) -> Stage:
        name, began, ended, asked, answered = row
        return Stage(
            self.word(name, "a stage"),
            self.moment(began, "a stage's beginning"),
            None if ended is None else self.moment(ended, "a stage's end"),
            self.whole(asked, "how many were asked"),
            self.whole(answered, "how many answered"),
        )

    def device(self, row: tuple[Any, ...]) -> DeviceRecord:
        member, node, seen, joined, last = row
        return DeviceRecord(
            self.whole(member, "a member", 0, 2**32),
            self.word(node, "a node"),
            self.moment(seen, "when a member was seen"),
            self.whole(joined, "rounds that a member joined"),
            None if last is None else self.whole(last, "a member's last round", 0, _ROUND_MOST),
        )

    def parts(self, text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of what a sum is made of."""
        table = parse_json(text, JournalError, f"{self._path}, what sums are made of,")
        if not isinstance(table, list) or len(table) > 10**6:
            self.wrong("what sums are made of")
        found = []
        for part in table:
            if not isinstance(part, list) or len(part) != 2 or not isinstance(part[1], list):
                self.wrong("what sums are made of")
            shape = tuple(self.whole(side, "a side of a tensor", 0) for side in part[1][:9])
            if len(part[1]) > 8:
                self.wrong("the shape of a tensor")
            found.append((self.word(part[0], "the name of a tensor", 200), shape))
        return tuple(found)

    # --- a round's log ---------------------------------------------------------------------------

    def log(self, text: object, round: int, attempt: int) -> RoundLog:
        """The log of a finished round. A key of a later version is left alone; a missing one is refused."""
        table = parse_json(self._text(text, "a log", 16 * 1024 * 1024), JournalError, f"{self._path}, a log,")
        if not isinstance(table, dict):
            self.wrong(f"the log of round {round}")
        given = {}
        for f in fields(RoundLog):
            if f.name in table:
                given[f.name] = _LOG[f.name](self, table[f.name], f"{f.name} of round {round}")
            elif f.default is MISSING and f.default_factory is MISSING:
                self.wrong(f"the log of round {round}, which has no {f.name}")
        if (given.get("measured_on") or 0) > round:
            self.wrong(f"measured_on of round {round}")
        if (given["round"], given["attempt"]) != (round, attempt):
            self.wrong(f"the log of round {round}, which is another round's")
        return RoundLog(**given)

    def counts(self, value: object, what: str) -> dict[str, int]:
        return {key: self.whole(count, what) for key, count in self._table(value, what)}

    def texts(self, value: object, what: str) -> dict[str, str]:
        return {key: one_line(self._text(t, what, 10**6), _WHY_MOST) for key, t in self._table(value, what)}

    def _table(self, value: object, what: str) -> list[tuple[str, Any]]:
        if not isinstance(value, dict) or len(value) > 10**6:
            self.wrong(what)
        return [(self.word(key, what), inner) for key, inner in value.items()]

    def histogram(self, value: object, what: str) -> list[int] | None:
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != TENTHS:
            self.wrong(what)
        return [self.whole(count, what) for count in value]

    # --- single values ---------------------------------------------------------------------------

    def whole(self, value: object, what: str, least: int = 0, most: int = _COUNT_MOST) -> int:
        if type(value) is not int or not least <= value <= most:
            self.wrong(what)
        return value

    def bytes(self, value: object, what: str) -> int:
        return self.whole(value, what, 0, _BYTES_MOST)

    def number(self, value: object, what: str) -> float:
        if type(value) not in (int, float) or not abs(value) <= 1e300:  # type: ignore[arg-type]
            self.wrong(what)
        return float(value)  # type: ignore[arg-type]

    def measured(self, value: object, what: str) -> float | None:
        return None if value is None else self.number(value, what)

    def part(self, value: object, what: str) -> float | None:
        found = self.measured(value, what)
        if found is not None and not 0 <= found <= 1:
            self.wrong(what)
        return found

    def moment(self, value: object, what: str) -> float:
        found = self.number(value, what)
        if not 0 <= found <= _LATEST:
            self.wrong(what)
        return found

    def span(self, value: object, what: str) -> float:
        return self.moment(value, what)

    def word(self, value: object, what: str, most: int = _WORD_MOST) -> str:
        """A short name, printable as it is."""
        text = self._text(value, what, most)
        if not is_printable(text) or not text:
            self.wrong(what)
        return text

    def _text(self, value: object, what: str, most: int) -> str:
        if type(value) is not str or len(value) > most:
            self.wrong(what)
        return value

    def wrong(self, what: str) -> NoReturn:
        raise JournalError(f"{self._path} is damaged: {what} is not what penchant writes there")


_LOG: Mapping[str, Callable[[_Values, Any, str], Any]] = {
    "round": lambda v, value, what: v.whole(value, what, 0, _ROUND_MOST),
    "attempt": lambda v, value, what: v.whole(value, what, 0, _ROUND_MOST),
    "phase": _Values.word,
    "cohort": _Values.whole,
    "survivors": _Values.whole,
    "dropped": _Values.counts,
    "seconds": _Values.span,
    "bytes_up": _Values.bytes,
    "bytes_down": _Values.bytes,
    "examples": _Values.bytes,
    "train_loss": _Values.measured,
    "val_accuracy": _Values.part,
    "histogram": _Values.histogram,
    "update_norm": _Values.number,
    "aborts": _Values.counts,
    "named": _Values.texts,
    "failed": _Values.texts,
    "measured_on": lambda v, value, what: None if value is None else v.whole(value, what, 0, _ROUND_MOST),
    "judged": lambda v, value, what: None if value is None else v.whole(value, what),
    "judges": lambda v, value, what: None if value is None else v.whole(value, what),
    "count_noise": _Values.measured,
}
"""How each value of a log is checked; tests hold it against `RoundLog`."""


def _weight(contents: JournalContents) -> int:
    """How many rows are in memory."""
    return 1 + len(contents.attempts) + sum(map(len, contents.stages.values()))


_contents: Remembered[JournalContents] = Remembered(_read, _ROWS_KEPT, _weight)
_devices: Remembered[Sequence[DeviceRecord]] = Remembered(_devices_of, _ROWS_KEPT, len)
_glances: Remembered[JournalGlance] = Remembered(_glance, _GLANCES_KEPT)
