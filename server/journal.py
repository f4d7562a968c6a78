"""The server's memory: which rounds began, how far they came, what they gave.

SQLite (one writer) in the run directory, beside checkpoints in safetensors. Everything that decides
what a restarted server may do is durable *before* the act: an attempt before its first message, the
mark "unmasking" before the first unmask request, a checkpoint before its round counts as finished.

What is only shown (stages, devices) is written without waiting for the disk: a crash of the process loses
none of it, a crash of the machine perhaps the last lines, and no round waits for it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from penchant.common.errors import JournalError
from penchant.common.foreign_files import BAD_TENSORS
from penchant.common.printable import one_line
from penchant.common.storage import change, claim_schema, write_durably
from penchant.server.optimizers import ServerState

__all__ = ["SCHEMA_VERSION", "Journal", "RoundLog", "RoundRow", "decode_checkpoint"]

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, phase TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('started', 'unmasking', 'finished', 'failed', 'skipped')),
    started REAL NOT NULL, log TEXT, why TEXT, checkpoint TEXT, PRIMARY KEY (round, attempt)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, seq INTEGER NOT NULL, stage TEXT NOT NULL,
    party TEXT NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (round, attempt, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stages (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, stage TEXT NOT NULL, began REAL NOT NULL, ended REAL,
    asked INTEGER NOT NULL, answered INTEGER NOT NULL, PRIMARY KEY (round, attempt, stage)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS devices (
    member INTEGER PRIMARY KEY, node TEXT NOT NULL, seen REAL NOT NULL, joined INTEGER NOT NULL DEFAULT 0,
    last INTEGER);
"""

_OPEN = ("started", "unmasking")
_NORMAL = 1  # of SQLite's levels of durability; FULL is 2


@dataclass(frozen=True)
class RoundLog:
    """What the server knows of a finished round: sums and counts, nobody's own numbers."""

    round: int
    attempt: int
    phase: str
    cohort: int  # clients asked
    survivors: int  # clients in the sum
    dropped: dict[str, int]  # stage -> clients lost there
    seconds: float
    bytes_up: int
    bytes_down: int
    examples: int  # sum of example weights
    train_loss: float | None  # mean per example, of the model the round started from
    val_accuracy: float | None  # of that model too, pooled over the survivors' validation pairs
    histogram: list[int] | None  # people per tenth of validation accuracy; None below 20 people
    update_norm: float
    aborts: dict[str, int] = field(default_factory=dict)  # abort code -> how many clients sent it
    named: dict[str, str] = field(default_factory=dict)  # node -> what it did wrong, or may have done
    failed: dict[str, str] = field(default_factory=dict)  # group -> why none of it is in the sum
    measured_on: int | None = None  # the round whose factors it started from, 0: the run's own start
    judged: int | None = None  # validation pairs behind val_accuracy; None where noise hides them
    judges: int | None = None  # with noise: people behind val_accuracy, by a noised count
    count_noise: float | None = None  # of a noised count, one standard deviation, as a part of `judges`


@dataclass(frozen=True)
class RoundRow:
    """One attempt as journaled."""

    round: int
    attempt: int
    phase: str
    state: str
    log: RoundLog | None
    why: str | None


class Journal:
    """The journal of one run directory."""

    def __init__(self, directory: Path) -> None:
        """Open the journal of `directory`, creating it if there is none; JournalError when that fails."""
        self.directory = directory
        self._path = directory / "journal.db"
        try:
            (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            claim_schema(self._db, self._path, JournalError, SCHEMA_VERSION)
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(f"can't open {self._path}: {error}") from None

    def close(self) -> None:
        """Close the database; nothing is pending."""
        self._db.close()

    # --- facts about the run -------------------------------------------------------------------------

    def note(self, key: str, value: str) -> None:
        """Keep a fact; the same key can only be noted again with the same value."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO meta (key, value) VALUES (?, ?)", (key, value))
        if self.fact(key) != value:
            raise JournalError(f"{self._path} holds another {key}; it belongs to another run")

    def note_anew(self, key: str, value: str) -> None:
        """Keep a fact in place of what was noted before."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def fact(self, key: str) -> str | None:
        """A fact noted before, or None."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    # --- a round's life ------------------------------------------------------------------------------

    def begin(self, round: int, phase: str) -> int:
        """Open a new attempt of `round` and return its number (1, 2, …)."""
        with self._transaction():
            (attempt,) = self._db.execute(
                "SELECT coalesce(max(attempt), 0) + 1 FROM rounds WHERE round = ?", (round,)
            ).fetchone()
            self._db.execute(
                "INSERT INTO rounds (round, attempt, phase, state, started) VALUES (?, ?, ?, 'started', ?)",
                (round, attempt, phase, time.time()),
            )
        return int(attempt)

    def unmasking(self, round: int, attempt: int) -> None:
        """From now on this round is never run again: an unmask request may be on its way."""
        self._move(round, attempt, "unmasking")

    def record(self, round: int, attempt: int, stage: str, party: int, payload: bytes) -> None:
        """Keep a message that completing the round after a crash would need.

        party: a node or a group. Flower's node ids fill 64 bits without a sign, so SQLite keeps it as text.
        """
        with self._transaction():
            self._db.execute(
                "INSERT INTO records (round, attempt, seq, stage, party, payload) VALUES (?, ?, "
                "(SELECT coalesce(max(seq), 0) + 1 FROM records WHERE round = ? AND attempt = ?), ?, ?, ?)",
                (round, attempt, round, attempt, stage, str(party), payload),
            )

    def records(self, round: int, attempt: int) -> list[tuple[str, int, bytes]]:
        """What was recorded of an attempt, in order: (stage, party, payload)."""
        rows = self._read(
            "SELECT stage, party, payload FROM records WHERE round = ? AND attempt = ? ORDER BY seq",
            round,
            attempt,
        )
        return [(str(s), int(p), bytes(b)) for s, p, b in rows]

    def finish(self, log: RoundLog, shared: ServerState) -> None:
        """Make the round final: its checkpoint first, then the row that names it. Its records are erased."""
        if self._state(log.round, log.attempt) not in _OPEN:  # before a checkpoint is written over
            raise JournalError(f"round {log.round} attempt {log.attempt} is not open")
        name, digest = self._write_checkpoint(log.round, shared)
        with self._transaction():
            self._db.execute(
                "UPDATE rounds SET state = 'finished', log = ?, checkpoint = ?"
                " WHERE round = ? AND attempt = ?",
                (json.dumps(asdict(log)), f"{name} {digest}", log.round, log.attempt),
            )
            self._erase(log.round, log.attempt)

    def fail(self, round: int, attempt: int, why: str) -> None:
        """This attempt gave nothing; another may be tried. Its records are erased."""
        self._move(round, attempt, "failed", why)

    def skip(self, round: int, attempt: int, why: str) -> None:
        """This round gave nothing and can't be tried again; the next one goes on. Its records are erased."""
        self._move(round, attempt, "skipped", why)

    # --- what is shown, and decides nothing ----------------------------------------------------------

    def stage(self, round: int, attempt: int, stage: str, asked: int) -> None:
        """A stage begins: `asked` devices have its message."""
        with self._transaction(durable=False):
            self._db.execute(
                "INSERT OR REPLACE INTO stages (round, attempt, stage, began, asked, answered)"
                " VALUES (?, ?, ?, ?, ?, 0)",
                (round, attempt, stage, time.time(), asked),
            )

    def answered(self, round: int, attempt: int, stage: str, answered: int, *, over: bool = False) -> None:
        """So many devices have answered by now; over: the stage waits for no more."""
        with self._transaction(durable=False):
            self._db.execute(
                "UPDATE stages SET answered = ?, ended = ? WHERE round = ? AND attempt = ? AND stage = ?",
                (answered, time.time() if over else None, round, attempt, stage),
            )

    def seen(self, members: Mapping[int, int]) -> None:
        """These members (number -> node) said that they are ready."""
        now = time.time()
        with self._transaction(durable=False):
            self._db.executemany(
                "INSERT INTO devices (member, node, seen) VALUES (?, ?, ?)"
                " ON CONFLICT (member) DO UPDATE SET node = excluded.node, seen = excluded.seen",
                [(member, str(node), now) for member, node in members.items()],
            )

    def joined(self, members: Iterable[int], round: int) -> None:
        """The vectors of these members are in the sum of `round`."""
        now = time.time()
        with self._transaction(durable=False):
            self._db.executemany(
                "UPDATE devices SET joined = joined + 1, last = ?, seen = ? WHERE member = ?",
                [(round, now, member) for member in members],
            )

    def nodes(self) -> dict[int, int]:
        """node -> member, of all that were met."""
        rows = self._read("SELECT node, member FROM devices")
        return {int(node): int(member) for node, member in rows}

    # --- what a restarted server asks ----------------------------------------------------------------

    def rows(self) -> list[RoundRow]:
        """All attempts in order."""
        query = "SELECT round, attempt, phase, state, log, why FROM rounds ORDER BY round, attempt"
        return [
            RoundRow(r, a, p, s, None if log is None else RoundLog(**json.loads(log)), w)
            for r, a, p, s, log, w in self._read(query)
        ]

    def finished(self) -> tuple[tuple[int, int], ...]:
        """(round, attempt) of every finished round, in order."""
        rows = self._read("SELECT round, attempt FROM rounds WHERE state = 'finished' ORDER BY round")
        return tuple((int(r), int(a)) for r, a in rows)

    def logs(self) -> list[RoundLog]:
        """The logs of all finished rounds, in order."""
        return [row.log for row in self.rows() if row.log is not None]

    def settled(self) -> int:
        """The last round that needs no more work (finished or skipped); 0 before the first."""
        query = "SELECT coalesce(max(round), 0) FROM rounds WHERE state IN ('finished', 'skipped')"
        return int(self._read(query)[0][0])

    def interrupted(self) -> RoundRow | None:
        """The attempt that was open when the server died, if one was."""
        open_rows = [row for row in self.rows() if row.state in _OPEN]
        return open_rows[-1] if open_rows else None

    def attempts(self, round: int) -> int:
        """How many attempts of `round` were begun."""
        return int(self._read("SELECT count(*) FROM rounds WHERE round = ?", round)[0][0])

    def rewind(self, round: int) -> None:
        """Forget every attempt after `round`. Only a simulator may, where the devices rewind as well."""
        with self._transaction():
            self._db.execute("DELETE FROM rounds WHERE round > ?", (round,))
            self._db.execute("DELETE FROM records WHERE round > ?", (round,))
            self._db.execute("DELETE FROM stages WHERE round > ?", (round,))

    # --- checkpoints ---------------------------------------------------------------------------------

    def load(self, round: int | None = None) -> tuple[int, ServerState] | None:
        """(round, shared state) of the last finished round, or of this one, checked against the digest in
        its row; None where it is not finished."""
        rows = self._read(
            "SELECT round, checkpoint FROM rounds WHERE state = 'finished' AND round = coalesce(?, round)"
            " ORDER BY round DESC LIMIT 1",
            round,
        )
        if not rows:
            return None
        found, checkpoint = rows[0]
        name, digest = str(checkpoint).split()
        try:
            data = (self.directory / "checkpoints" / name).read_bytes()
        except OSError as error:
            raise JournalError(f"checkpoint {name} can't be read: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise JournalError(f"checkpoint {name} is not what the journal wrote; restore it from a back-up")
        return int(found), decode_checkpoint(data, self.directory)

    def digest(self, round: int) -> str | None:
        """SHA-256 (hex) of the checkpoint of a finished round, None for another."""
        rows = self._read("SELECT checkpoint FROM rounds WHERE state = 'finished' AND round = ?", round)
        return str(rows[0][0]).split()[1] if rows else None

    def _write_checkpoint(self, round: int, shared: ServerState) -> tuple[str, str]:
        data = save_safetensors(_encode(shared))
        name = f"round-{round:06d}.safetensors"
        try:
            write_durably(self.directory / "checkpoints" / name, data)
        except OSError as error:
            raise JournalError(f"checkpoint {name} can't be written: {error.strerror}") from None
        return name, hashlib.sha256(data).hexdigest()

    # --- SQLite --------------------------------------------------------------------------------------

    def _move(self, round: int, attempt: int, state: str, why: str | None = None) -> None:
        with self._transaction():
            done = self._db.execute(
                "UPDATE rounds SET state = ?, why = ? WHERE round = ? AND attempt = ?"
                " AND state IN ('started', 'unmasking')",
                (state, None if why is None else one_line(why), round, attempt),
            )
            if done.rowcount != 1:
                raise JournalError(f"round {round} attempt {attempt} is not open")
            if state not in _OPEN:
                self._erase(round, attempt)

    def _erase(self, round: int, attempt: int) -> None:
        self._db.execute("DELETE FROM records WHERE round = ? AND attempt = ?", (round, attempt))

    def _state(self, round: int, attempt: int) -> str | None:
        rows = self._read("SELECT state FROM rounds WHERE round = ? AND attempt = ?", round, attempt)
        return str(rows[0][0]) if rows else None

    def _read(self, query: str, *values: str | int | None) -> list[Any]:
        """All rows of a query."""
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"{self._path}: {error}") from None

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[None]:
        """One change: all of it is durable at the end (unless it need not be), or nothing of it happened."""
        before: int | None = None
        try:
            if not durable:  # in WAL mode NORMAL waits for no disk
                level = int(self._db.execute("PRAGMA synchronous").fetchone()[0])
                self._db.execute(f"PRAGMA synchronous={min(level, _NORMAL)}")
                before = level
            with change(self._db, self._path, JournalError):
                yield
        except (sqlite3.Error, OverflowError) as error:  # a number beyond SQLite's 64 bits is the latter
            raise JournalError(f"{self._path}: {error}") from None
        finally:
            if before is not None:
                with suppress(sqlite3.Error):
                    self._db.execute(f"PRAGMA synchronous={before}")


def _encode(shared: ServerState) -> dict[str, NDArray[Any]]:
    return {
        "factors": shared.factors,
        "first": shared.first,
        "second": shared.second,
        "start": shared.start,
        "steps": np.array([shared.steps], dtype=np.int64),
    }


def decode_checkpoint(data: bytes, directory: Path) -> ServerState:
    """The shared state in a checkpoint. JournalError when these bytes are not a checkpoint."""
    try:
        return _decode(load_safetensors(data))
    except BAD_TENSORS as error:
        what = type(error).__name__
        raise JournalError(f"a checkpoint in {directory} holds no shared state ({what})") from None


def _decode(tensors: Mapping[str, NDArray[Any]]) -> ServerState:
    factors, first, second, start = (tensors[name] for name in ("factors", "first", "second", "start"))
    steps = tensors["steps"]
    if any(one.dtype != np.float32 or one.ndim != 1 for one in (factors, first, second, start)):
        raise ValueError("factors, moments and start are rows of float32")
    if steps.dtype != np.int64 or steps.shape != (1,):
        raise ValueError("the steps are one whole number")
    return ServerState(factors, first, second, start, int(steps[0]))
