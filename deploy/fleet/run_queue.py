"""Runs that wait for their turn, in one SQLite file of the server: what the queue's keeper starts next.

A run waits until those before it are over, and until its time where it has one; one that comes again waits
for its next time once it has begun. A run that was refused is held with the reason, and keeps nobody waiting.
The file may be opened for every call, by several processes.
"""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path

from penchant.common.config import RunConfig
from penchant.common.durations import DAY
from penchant.common.errors import JournalError, UsageError
from penchant.common.printable import is_printable, one_line
from penchant.common.storage import schema_transaction
from penchant.deploy.fleet.run_activity import START_LOCK, flower_run
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.run_directory import CONFIG, held_locks, is_held
from penchant.server.monitoring.fleet import QueuedRun

__all__ = ["MARK", "QUEUE", "RunQueue", "mark", "moment_of", "period_of"]

QUEUE = "queue.db"
MARK = "queued"  # in the directory of a run that the queue had made: the number that it had there
SCHEMA_VERSION = 1
MOST = 1000  # runs that wait
SHORTEST, LONGEST = 600.0, 366 * DAY  # seconds between two runs of an entry
FARTHEST = 366 * DAY  # seconds until a run's time
WHY_MOST = 500
LONGEST_NAME = 56  # of a run that comes again: "-" and seven digits have room after it
TRIES = 3  # to go on with a run that was cut off, without a round in between
_UNITS = {"m": 60.0, "h": 3600.0, "d": float(DAY), "w": 7.0 * DAY}
_COLUMNS = "number, name, config, begin_with, days, due, every, account, added, why, began, tag"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS queued (
    number INTEGER PRIMARY KEY AUTOINCREMENT, place REAL NOT NULL, name TEXT NOT NULL, config TEXT NOT NULL,
    begin_with TEXT NOT NULL, days INTEGER NOT NULL, due REAL NOT NULL, every REAL NOT NULL,
    account TEXT NOT NULL, added REAL NOT NULL, why TEXT NOT NULL, began TEXT NOT NULL,
    tag TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS resumed (run TEXT PRIMARY KEY, settled INTEGER NOT NULL, tries INTEGER NOT NULL);
"""


class RunQueue:
    """The queue of one server."""

    def __init__(self, server_directory: ServerDirectory) -> None:
        self._server = server_directory
        self._path = server_directory.path / QUEUE

    # --- the operator --------------------------------------------------------------------------------

    def runs(self) -> list[QueuedRun]:
        """All that wait, the next one first. Nothing is written where nothing ever waited."""
        if not self._path.exists():
            return []
        with self._open() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM queued ORDER BY place").fetchall()
        return [_queued(row) for row in rows]

    def add(
        self,
        config: RunConfig,
        account: str,
        *,
        name: str = "",
        begin_with: str = "",
        days: int = 30,
        tag: str = "",
        due: float = 0.0,
        every: float = 0.0,
        now: float | None = None,
    ) -> QueuedRun:
        """Put a run at the end.

        Args:
            config: its configuration.
            account: who wants it.
            name: what it shall be called; of one that comes again, what comes before its number.
            begin_with: as of `penchant server run --from`.
            days: how many days it may take.
            tag: whom it asks, by their tag; empty: everybody.
            due: Unix seconds before which it does not begin.
            every: seconds from one beginning to the next, of one that comes again.
            now: Unix seconds.

        Raises UsageError for a name that is taken, a time that is past, or a queue that is full.
        """
        moment = time.time() if now is None else now
        if due and not moment - 60.0 <= due <= moment + FARTHEST:
            raise UsageError("a run's time lies in the future, and within a year")
        if every and not SHORTEST <= every <= LONGEST:
            raise UsageError("a run comes again after ten minutes at least and a year at most")
        if name and not every and self._server.run(name).exists():
            raise UsageError(f"there is a run {name} already; choose another name")
        if name:
            self._server.run(name)  # refuses what can't name a run
        if every and len(name) > LONGEST_NAME:
            raise UsageError(
                f"a run that comes again has a name of at most {LONGEST_NAME} characters: a number follows it"
            )
        waiting = self.runs()
        if name and any(one.name == name for one in waiting):
            raise UsageError(f"a run {name} waits already; choose another name")
        if len(waiting) >= MOST:
            raise UsageError(f"{MOST} runs wait already; remove some of them first")
        if not is_printable(account):
            raise UsageError("the name of an account holds invisible characters")
        with self._open() as db:
            number = db.execute(
                "INSERT INTO queued (place, name, config, begin_with, days, due, every, account, added, why,"
                " began, tag)"
                " SELECT COALESCE(MAX(place), 0) + 1, ?, ?, ?, ?, ?, ?, ?, ?, '', '', ? FROM queued",
                (name, config.to_toml(), begin_with, days, due or (moment if every else 0.0), every, account,
                 moment, tag),
            ).lastrowid  # fmt: skip
        return next(one for one in self.runs() if one.number == number)

    def remove(self, number: int) -> QueuedRun:
        """Take a run out of the queue. UsageError when there is none, or it begins just now.

        What a try left behind that came to nothing stays: a run that Flower was not given.
        """
        found = self.find(number)
        made = self.made_of(found)
        begins = bool(found.began) and is_held(self._server.path / START_LOCK, held_locks())
        if begins or (made is not None and flower_run(made) is not None):
            raise UsageError(f"{found.called} begins just now; stop the run instead")
        with self._open() as db:
            gone = db.execute(
                "DELETE FROM queued WHERE number = ? AND began = ?", (number, found.began)
            ).rowcount
        if not gone:
            raise UsageError(f"{found.called} begins just now; stop the run instead")
        return found

    def move(self, number: int, place: int) -> QueuedRun:
        """Put a run at a place of the queue, 1 for the next. UsageError when there is none such."""
        found, runs = self.find(number), self.runs()
        if not 1 <= place <= len(runs):
            raise UsageError(f"{len(runs)} runs wait; their places are 1 to {len(runs)}")
        order = [one.number for one in runs if one.number != number]
        order.insert(place - 1, number)
        with self._open() as db:
            db.executemany(
                "UPDATE queued SET place = ? WHERE number = ?",
                [(float(at), one) for at, one in enumerate(order, 1)],
            )
        return found

    def retry(self, number: int) -> QueuedRun:
        """Try a run again that was refused. UsageError when there is none, or it is not held."""
        found = self.find(number)
        if not found.why:
            raise UsageError(f"run {number} of the queue was not refused; it waits for its turn")
        self._set(number, why="")
        return found

    def find(self, number: int) -> QueuedRun:
        """The run of this number. UsageError when there is none."""
        runs = self.runs()
        found = next((one for one in runs if one.number == number), None)
        if found is None:
            there = ", ".join(str(one.number) for one in runs) or "none"
            raise UsageError(f"no run of the queue has the number {number}; there are: {there}")
        return found

    # --- its keeper ----------------------------------------------------------------------------------

    def next(self, now: float) -> QueuedRun | None:
        """The run whose turn it is; one that was about to begin comes before all others."""
        runs = self.runs()
        begun = next((one for one in runs if one.began), None)
        return begun or next((one for one in runs if one.due <= now and not one.held), None)

    def made_of(self, run: QueuedRun) -> Path | None:
        """The run that was made when this one was about to begin; None where none was. Another that has its
        name meanwhile is not it."""
        if not run.began:
            return None
        directory = self._server.run(run.began)
        with suppress(FileNotFoundError):
            if (directory / CONFIG).is_file() and (directory / MARK).read_bytes() == mark(run.number):
                return directory
        return None

    def waits(self, run: QueuedRun) -> None:
        """It could not begin now, and nothing was made of it: it waits on, and has no name yet."""
        self._set(run.number, began="")

    def begins(self, run: QueuedRun, name: str) -> bool:
        """A run is about to begin, as `name`: on record before anything is made of it. False where it waits
        no more, or began otherwise meanwhile: then it does not begin."""
        with self._open() as db:
            given = (name, run.number, run.began)
            return (
                db.execute("UPDATE queued SET began = ? WHERE number = ? AND began = ?", given).rowcount == 1
            )

    def begun(self, run: QueuedRun, now: float) -> None:
        """It has begun: it leaves the queue, or waits for its next time, behind all others; times that were
        missed are over."""
        if not run.every:
            with self._open() as db:
                db.execute("DELETE FROM queued WHERE number = ?", (run.number,))
            return
        self._comes_again(run, "", now)

    def refused(self, run: QueuedRun, why: str, now: float) -> None:
        """It can't begin: it is held with the reason, and one that comes again is tried at its next time."""
        reason = one_line(why)[:WHY_MOST]
        if run.every:
            self._comes_again(run, reason, now)
        else:
            self._set(run.number, why=reason, began="")

    def may_resume(self, run: str, settled: int) -> bool:
        """Whether to go on with a run that was cut off after so many rounds: not for ever without another.

        run: what no other run has, not even one that had the same name before.
        """
        with self._open() as db:
            row = db.execute("SELECT settled, tries FROM resumed WHERE run = ?", (run,)).fetchone()
        return row is None or row[0] != settled or row[1] < TRIES

    def resumed(self, run: str, settled: int, *, refused: bool = False) -> None:
        """Count a try to go on with a run. refused: it is of no use to try again."""
        with self._open() as db:
            row = db.execute("SELECT settled, tries FROM resumed WHERE run = ?", (run,)).fetchone()
            tries = row[1] if row is not None and row[0] == settled else 0
            tries = TRIES if refused else tries + 1
            db.execute("INSERT OR REPLACE INTO resumed VALUES (?, ?, ?)", (run, settled, tries))

    def _comes_again(self, run: QueuedRun, why: str, now: float) -> None:
        """Behind all others: its next time may be over before their turn, and theirs would never come."""
        with self._open() as db:
            db.execute(
                "UPDATE queued SET why = ?, began = '', due = ?, place = (SELECT MAX(place) + 1 FROM queued)"
                " WHERE number = ?",
                (why, _after(run, now), run.number),
            )

    def _set(self, number: int, **columns: str | float) -> None:
        words = ", ".join(f"{name} = ?" for name in columns)
        with self._open() as db:
            db.execute(f"UPDATE queued SET {words} WHERE number = ?", (*columns.values(), number))

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return schema_transaction(self._path, JournalError, SCHEMA_VERSION, _SCHEMA)


def mark(number: int) -> bytes:
    """What lies in the directory of a run that the queue had made, as `MARK`."""
    return f"{number}\n".encode()


def moment_of(text: str, now: float | None = None) -> float:
    """Unix seconds of a date and time of this machine's clock, "2026-12-01 03:00". UsageError for others."""
    with suppress(ValueError, OverflowError):
        if re.fullmatch(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?", text):
            found = datetime.fromisoformat(text).timestamp()
            if found > (time.time() if now is None else now):
                return found
            raise UsageError(f"{text} is over; name a time that is to come")
    raise UsageError(f"{text!r} is no time; write it as 2026-12-01 03:00")


def period_of(text: str) -> float:
    """Seconds of "12h", "7d" or "2w". UsageError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text)
    if found is None:
        raise UsageError(f"{text!r} is no length of time; write 12h, 7d or 2w")
    seconds = int(found[1]) * _UNITS[found[2]]
    if not SHORTEST <= seconds <= LONGEST:
        raise UsageError("a run comes again after ten minutes at least and a year at most")
    return seconds


def _after(run: QueuedRun, now: float) -> float:
    """The first time after now at which a run comes again."""
    missed = max((now - run.due) // run.every, 0.0)
    return run.due + (missed + 1) * run.every


def _queued(row: tuple[object, ...]) -> QueuedRun:
    number, name, config, begin_with, days, due, every, account, added, why, began, tag = row
    return QueuedRun(
        number=int(str(number)),
        name=str(name),
        config=str(config),
        begin_with=str(begin_with),
        days=int(str(days)),
        due=float(str(due)),
        every=float(str(every)),
        by=str(account),
        added=float(str(added)),
        why=str(why),
        began=str(began),
        tag=str(tag),
    )
