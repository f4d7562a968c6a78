"""A journal that somebody else may have written: read whole, checked value by value, never changed.

The console, `penchant server status`, `penchant audit`, exports, and whatever looks at a run before it goes
on read here. What is not as `penchant.server.journal` writes it is refused in one line, with the place.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NoReturn

from penchant.common.errors import JournalError
from penchant.common.foreign_files import ForeignDatabase, foreign_database, parse_json, read_bytes
from penchant.common.printable import is_printable, one_line
from penchant.server.journal import Journal, RoundLog, RoundRow, decode_checkpoint
from penchant.server.optimizers import ServerState
from penchant.server.privacy_figures import FACT, PrivacyFigures

__all__ = [
    "AttemptRecord",
    "DeviceRecord",
    "JournalContents",
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
_KEPT = 128  # journals whose contents are remembered


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
class JournalContents:
    """All that a journal says, checked. Stages are by (round, attempt)."""

    attempts: Sequence[AttemptRecord] = ()
    stages: Mapping[tuple[int, int], Sequence[Stage]] = field(default_factory=dict)
    devices: Sequence[DeviceRecord] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    sums: Sequence[OpenedSums] = ()
    privacy: PrivacyFigures | None = None


class JournalReader:
    """The journal of a run directory, to read. What it held last is remembered until its file changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / JOURNAL

    @property
    def mark(self) -> tuple[int, ...]:
        """Changes whenever the journal does: sizes and times of its files."""
        found = []
        for path in (self._path, self._path.with_name(f"{JOURNAL}-wal")):
            with suppress(OSError):
                stat = path.lstat()
                found += [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        return tuple(found)

    def contents(self) -> JournalContents:
        """All of it; empty where there is no journal yet. JournalError when it is damaged."""
        return _memory.contents(self._path, self.mark)

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
        return list(self.contents().stages.get((round, attempt), ()))

    def devices(
        self, *, search: str = "", limit: int = -1, offset: int = 0, order: str = "member"
    ) -> list[DeviceRecord]:
        """Members that were met. search: the beginning of a member's number."""
        found = [one for one in self.contents().devices if str(one.member).startswith(search)]
        found.sort(key=_ORDERS[order])
        return found[offset:] if limit < 0 else found[offset : offset + limit]

    def count_devices(self, *, search: str = "", since: float = 0.0) -> int:
        """How many members were met; since: after this moment."""
        return sum(one.seen >= since for one in self.devices(search=search))

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


_ORDERS: Mapping[str, Any] = {
    "member": lambda one: one.member,
    "seen": lambda one: (-one.seen, one.member),
    "joined": lambda one: (-one.joined, one.member),
}


class _Memory:
    """What journals held, or why they can't be read, by the marks of their files: a page of all runs reads
    each once, and one that takes long takes it once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, tuple[tuple[int, ...], JournalContents | str]] = OrderedDict()

    def contents(self, path: Path, mark: tuple[int, ...]) -> JournalContents:
        key = path.absolute()
        with self._lock:
            known = self._known.get(key)
        if known is None or known[0] != mark or not mark:
            try:
                found: JournalContents | str = _read(path)
            except JournalError as error:
                found = str(error)
            known = mark, found
            with self._lock:
                self._known[key] = known
                self._known.move_to_end(key)
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        if isinstance(known[1], str):
            raise JournalError(known[1])
        return known[1]


_memory = _Memory()


def open_journal(directory: Path) -> Journal:
    """The journal of a run that begins or goes on, to write; first it is read as a stranger's would be.

    JournalError when it is damaged, or is not penchant's.
    """
    JournalReader(directory).contents()
    return Journal(directory)


# --- reading it ---------------------------------------------------------------------------------------


def _read(path: Path) -> JournalContents:
    try:
        with foreign_database(path, JournalError) as db:
            db.expect(_TABLES)
            values = _Values(path)
            facts = dict(values.fact(row) for row in _rows(db, "meta", "key, value"))
            return JournalContents(
                attempts=_attempts(db, values),
                stages=_stages(db, values),
                devices=[values.device(row) for row in _rows(db, "devices", "*", order="member")],
                facts=facts,
                sums=_sums(values, facts),
                privacy=PrivacyFigures.read(facts.get(FACT)),
            )
    except FileNotFoundError:
        return JournalContents()


def _rows(db: ForeignDatabase, table: str, columns: str, order: str = "1") -> list[tuple[Any, ...]]:
    """All rows of one of our tables; none where it is not there: a journal from before it, or a new one."""
    names = ", ".join(_TABLES[table]) if columns == "*" else columns
    return db.rows(f"SELECT {names} FROM {table} ORDER BY {order}") if db.has(table) else []


def _attempts(db: ForeignDatabase, values: _Values) -> list[AttemptRecord]:
    return [values.attempt(row) for row in _rows(db, "rounds", "*", order="round, attempt")]


def _stages(db: ForeignDatabase, values: _Values) -> dict[tuple[int, int], list[Stage]]:
    found: dict[tuple[int, int], list[Stage]] = {}
    for row in _rows(db, "stages", "*", order="began"):
        found.setdefault(values.place(row[:2]), []).append(values.stage(row[2:]))
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
}
"""How each value of a log is checked; tests hold it against `RoundLog`."""
