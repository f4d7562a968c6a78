"""What a device remembers of runs that asked for it: their manifests, and how often it took part.

The tables are in the vault's file, so a count is durable together with the attempt it counts. Days only go
forward: the largest day seen stands, whatever the clock says later. What is here outlasts `forget` and every
change of fleet, as burnt attempts do, and holds nothing of the owner's data.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from penchant.common.errors import PolicyRefusal, UsageError
from penchant.common.membership.manifest import RunManifest
from penchant.common.wire.codec import decode_record

__all__ = ["SCHEMA", "Attempt", "KnownRun", "RunLedger", "RunLimits"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run BLOB PRIMARY KEY, manifest BLOB NOT NULL, last_day INTEGER NOT NULL, seen INTEGER NOT NULL,
    accepted INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (
    run BLOB NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, day INTEGER NOT NULL,
    PRIMARY KEY (run, round, attempt)) WITHOUT ROWID;
"""

MONTH = 30  # days
REMEMBERED = 400  # days after which an attempt of a run that is over needs no counting any more
SHORTEST = 8  # digits by which an owner may name a run


@dataclass(frozen=True)
class RunLimits:
    """The owner's limits, over all runs and fleets."""

    rounds_a_day: int
    runs_a_month: int
    attempts_a_round: int
    attempts_a_day: int


@dataclass(frozen=True)
class Attempt:
    """One attempt at a round of a run, and the run's manifest (encoded, without signature)."""

    run: bytes
    round: int
    attempt: int
    manifest: bytes
    last_day: int


@dataclass(frozen=True)
class KnownRun:
    """One run as the device knows it: in how many rounds and attempts it took part."""

    run: bytes
    manifest: bytes
    accepted: bool
    rounds: int
    attempts: int

    @property
    def asks(self) -> RunManifest:
        """What the run may ask."""
        return decode_record(self.manifest, RunManifest)


class RunLedger:
    """The ledger of one vault. `transaction` opens one of its file."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[sqlite3.Connection]]) -> None:
        self._transaction = transaction

    def day(self, today: int) -> int:
        """`today`, or the largest day seen where the clock was set back."""
        with self._transaction() as db:
            return _day(db, today)

    def offer(self, attempt: Attempt, today: int) -> bool:
        """Pin the manifest of a run that is seen for the first time; -> whether the owner accepted the run.

        PolicyRefusal when another manifest of the same run was seen before.
        """
        with self._transaction() as db:
            _pin(db, attempt, _day(db, today))
            (accepted,) = db.execute("SELECT accepted FROM runs WHERE run = ?", (attempt.run,)).fetchone()
            return bool(accepted)

    def accept(self, named: str) -> bytes:
        """Note that the owner takes part in the run whose id begins with `named` (hexadecimal); -> the id.

        UsageError unless exactly one run that this device was asked for is meant.
        """
        with self._transaction() as db:
            runs = [bytes(run) for (run,) in db.execute("SELECT run FROM runs")]
            meant = [run for run in runs if run.hex().startswith(named.lower())]
            if len(named) < SHORTEST or len(meant) != 1:
                raise UsageError(
                    f"{named[:32]!r} names no run that this device was asked for; give the first {SHORTEST} "
                    "digits or more of one that `penchant device runs` lists"
                )
            db.execute("UPDATE runs SET accepted = 1 WHERE run = ?", (meant[0],))
        return meant[0]

    def runs(self) -> list[KnownRun]:
        """Every run that the device was asked for and remembers, the latest last."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT r.run, r.manifest, r.accepted, count(DISTINCT t.round), count(t.round)"
                " FROM runs r LEFT JOIN taken t ON t.run = r.run GROUP BY r.run ORDER BY r.seen, r.run"
            ).fetchall()
        return [KnownRun(bytes(run), bytes(text), bool(yes), int(n), int(m)) for run, text, yes, n, m in rows]

    def last_taken(self) -> int | None:
        """The day (as of `day`) on which it last took part in a round; None before the first."""
        with self._transaction() as db:
            (found,) = db.execute("SELECT max(day) FROM taken").fetchone()
        return None if found is None else int(found)

    def manifest(self, run: bytes) -> RunManifest | None:
        """The manifest with which a run was seen first; None for a run that is not known."""
        with self._transaction() as db:
            row = db.execute("SELECT manifest FROM runs WHERE run = ?", (run,)).fetchone()
        return None if row is None else decode_record(bytes(row[0]), RunManifest)

    def has_room(self, run: bytes, limits: RunLimits, today: int) -> bool:
        """Whether a further round of `run` is within the owner's limits."""
        with self._transaction() as db:
            day = _day(db, today)
            return not (
                _rounds(db, day) >= limits.rounds_a_day
                or _attempts(db, day) >= limits.attempts_a_day
                or (not _took_part(db, run) and _new_runs(db, day) >= limits.runs_a_month)
            )


def enter(db: sqlite3.Connection, attempt: Attempt, limits: RunLimits, today: int) -> None:
    """Count an attempt, inside the transaction that burns it.

    PolicyRefusal when it is beyond the owner's limits, or comes with another manifest than the run's first;
    nothing is counted then.
    """
    day = _day(db, today)
    _pin(db, attempt, day)
    place = (attempt.run, attempt.round)
    if not _took_part(db, attempt.run) and _new_runs(db, day) >= limits.runs_a_month:
        raise PolicyRefusal(
            f"this device has begun {limits.runs_a_month} runs in {MONTH} days, as many as its owner allows"
        )
    tries = db.execute("SELECT count(*), coalesce(max(day), 0) FROM taken WHERE run = ? AND round = ?", place)
    before, latest = tries.fetchone()
    if before >= limits.attempts_a_round:
        raise PolicyRefusal(f"round {attempt.round} was tried {before} times, as often as the owner allows")
    if latest != day and _rounds(db, day) >= limits.rounds_a_day:
        raise PolicyRefusal(
            f"this device has been in {limits.rounds_a_day} rounds today, as many as the owner allows"
        )
    if _attempts(db, day) >= limits.attempts_a_day:
        raise PolicyRefusal(
            f"this device was asked {limits.attempts_a_day} times today, as often as the owner allows"
        )
    db.execute(
        "INSERT INTO taken (run, round, attempt, day) VALUES (?, ?, ?, ?)", (*place, attempt.attempt, day)
    )
    _forget_old(db, day)


def _pin(db: sqlite3.Connection, attempt: Attempt, day: int) -> None:
    row = db.execute("SELECT manifest FROM runs WHERE run = ?", (attempt.run,)).fetchone()
    if row is None:
        db.execute(
            "INSERT INTO runs (run, manifest, last_day, seen) VALUES (?, ?, ?, ?)",
            (attempt.run, attempt.manifest, attempt.last_day, day),
        )
    elif bytes(row[0]) != attempt.manifest:
        raise PolicyRefusal("the run comes with another manifest than before; a changed run needs a new id")


def _day(db: sqlite3.Connection, today: int) -> int:
    (largest,) = db.execute(
        "SELECT max((SELECT coalesce(max(day), 0) FROM taken), (SELECT coalesce(max(seen), 0) FROM runs))"
    ).fetchone()
    return max(today, int(largest))


def _rounds(db: sqlite3.Connection, day: int) -> int:
    query = "SELECT count(*) FROM (SELECT DISTINCT run, round FROM taken WHERE day = ?)"
    return int(db.execute(query, (day,)).fetchone()[0])


def _attempts(db: sqlite3.Connection, day: int) -> int:
    return int(db.execute("SELECT count(*) FROM taken WHERE day = ?", (day,)).fetchone()[0])


def _took_part(db: sqlite3.Connection, run: bytes) -> bool:
    return db.execute("SELECT 1 FROM taken WHERE run = ? LIMIT 1", (run,)).fetchone() is not None


def _new_runs(db: sqlite3.Connection, day: int) -> int:
    query = "SELECT count(*) FROM (SELECT min(day) AS first FROM taken GROUP BY run) WHERE first > ?"
    return int(db.execute(query, (day - MONTH,)).fetchone()[0])


def _forget_old(db: sqlite3.Connection, day: int) -> None:
    """Runs that are past their last day can't go on; they stop counting long after that."""
    over = "SELECT run FROM runs WHERE last_day < ? AND seen < ?"
    old = (day - REMEMBERED, day - REMEMBERED)
    db.execute(f"DELETE FROM taken WHERE run IN ({over})", old)
    db.execute("DELETE FROM runs WHERE last_day < ? AND seen < ?", old)
