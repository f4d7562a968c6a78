"""What taking part has cost this device's owner in privacy: one entry for every vector that ever left.

An entry is written before its vector leaves and is never taken back: neither when the attempt fails, nor by
`forget`, nor by a change of fleet. The cost is in zero-concentrated differential privacy (rho, Bun and
Steinke 2016), which adds up; `penchant.common.privacy.accounting` turns the total into an epsilon. It depends
on plans and numbers of people only, never on the owner's choices.

Each entry is hashed with all before it. The last hash lies in a file beside the vault (`LedgerAnchor`), so a
database that was changed, or put back from a backup, is noticed. That there is a ledger at all is remembered
in another file (`LedgerMark`), so one that is gone is noticed as well.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Protocol

from penchant.client.vault.sealing import SealedStorage
from penchant.common.errors import CodecError, DeviceError, LedgerError, PolicyRefusal
from penchant.common.storage import sync_directory
from penchant.common.wire.codec import U16, U32, U64, AtMost, Exactly, decode_record, encode_record

__all__ = ["ANCHOR", "SCHEMA", "Cost", "LedgerAnchor", "LedgerEntry", "LedgerMark", "PrivacyLedger", "Spent"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    number INTEGER PRIMARY KEY, run BLOB NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    rho TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ledger_begun (one INTEGER PRIMARY KEY CHECK (one = 1));
"""
ANCHOR: Final = "ledger.anchor"
_START: Final = bytes(32)
_LABEL: Final = b"penchant privacy ledger\0"  # without the protocol's version, which a file outlives
_EXACT: Final = ""
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GET_GENERATION: Final = 0x80087601  # FS_IOC_GETVERSION of Linux, where words have 64 bits


@dataclass(frozen=True)
class Cost:
    """What one vector costs, and what the owner has for it.

    Attributes:
        rho: the cost in zero-concentrated differential privacy; None for a vector in a sum without noise, for
            which no bound holds.
        most: the largest total that the owner allows.
        times: how many vectors the run may take from this device.
    """

    rho: float | None
    most: float
    times: int


@dataclass(frozen=True)
class Spent:
    """What has left: rho, a budget that was given up included, and how many vectors of noised and of exact
    sums there were."""

    rho: float
    noised: int
    exact: int


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One vector that left. rho: a number's shortest text, in ASCII; empty for a sum without noise."""

    run: Annotated[bytes, Exactly(16)]
    round: U32
    attempt: U16
    rho: Annotated[str, AtMost(32)]

    @classmethod
    def of(cls, run: bytes, round: int, attempt: int, rho: float | None) -> LedgerEntry:
        """The entry of a vector with this cost; None for a sum without noise."""
        return cls(run, round, attempt, _EXACT if rho is None else repr(float(rho)))

    @property
    def cost(self) -> float:
        """rho, 0 where no bound holds."""
        return float(self.rho) if self.rho else 0.0


@dataclass(frozen=True, slots=True)
class _Anchored:
    """The state of the ledger, as it lies beside it. inode, generation: the file's own, which no copy has."""

    inode: U64
    generation: U64
    count: U64
    head: Annotated[bytes, Exactly(32)]  # after `last`
    last: LedgerEntry


class LedgerMark(Protocol):
    """What remembers, in another file than the vault's, that this device has a ledger."""

    def ledger_begun(self) -> bool:
        """Whether `note_ledger` was ever called here."""

    def note_ledger(self) -> None:
        """Remember it: durable before this returns, and for good."""


class LedgerAnchor:
    """The file that says how far the ledger had come.

    It is sealed with the device's key and names its own inode: put back from a backup, or copied, it is
    another file. A second name of the file (a hard link) would keep the inode while a new anchor takes the
    first one, and so would a symbolic link to it, so there must be neither when an entry is written. What
    can't be noticed is a whole disk, or the snapshot of a machine, that is set back.

    Args:
        path: of the file.
        storage: seals it.
        database: the file that holds the entries.
    """

    def __init__(self, path: Path, storage: SealedStorage, database: Path) -> None:
        self._path, self._storage, self._database = path, storage, database

    def exists(self) -> bool:
        """Whether there is anything under that name, a link that leads nowhere included."""
        return os.path.lexists(self._path)

    def read(self) -> _Anchored | None:
        """None where nothing was ever written. LedgerError when it is not what was written here, or when it
        or the database has a second name or is a link."""
        self._refuse_links()
        try:
            with open(os.open(self._path, _READ), "rb") as file:
                own, sealed = _own(file.fileno()), file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DeviceError(f"can't read {self._path}: {error.strerror}") from None
        try:
            found = decode_record(self._storage.open(sealed, ANCHOR), _Anchored)
        except (CodecError, DeviceError):
            raise LedgerError(_set_back("its anchor was changed")) from None
        if (found.inode, found.generation) != own:
            raise LedgerError(_set_back("its anchor is a copy"))
        return found

    def write(self, count: int, head: bytes, last: LedgerEntry) -> None:
        """Durable before this returns: the new one whole, or the old one. LedgerError when the old one or the
        database has a second name, or is a link: it could be put back."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                anchored = _Anchored(*_own(file.fileno()), count, head, last)
                file.write(self._storage.seal(encode_record(anchored), ANCHOR))
                file.flush()
                os.fsync(file.fileno())
            self._refuse_links()
            os.replace(temporary, self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            raise DeviceError(f"can't write {self._path}: {error.strerror}; nothing was sent") from None
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _refuse_links(self) -> None:
        for path in (self._path, self._database):
            with suppress(FileNotFoundError):
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    raise LedgerError(
                        f"can't read {path}: it is no regular file but a link or a folder, so nothing is "
                        "sent; put the file itself there"
                    )
                if found.st_nlink > 1:
                    raise LedgerError(
                        f"{path} has a second name (a hard link), under which it could be put back later, so "
                        f"nothing is sent; remove that name (`find -samefile {path}` tells it)"
                    )


def _own(descriptor: int) -> tuple[int, int]:
    """A file's inode and its generation, which tells it from an earlier file in the same inode; 0 where the
    file system counts none."""
    generation = 0
    with suppress(OSError):
        generation = int.from_bytes(fcntl.ioctl(descriptor, _GET_GENERATION, bytes(8)), sys.byteorder)
    return os.fstat(descriptor).st_ino, generation


class PrivacyLedger:
    """The ledger of one vault.

    Args:
        transaction: opens a transaction of the vault's file.
        anchor: None in a simulation, whose devices are set back on purpose.
        mark: None for a vault that is in no device's home.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[sqlite3.Connection]],
        anchor: LedgerAnchor | None,
        mark: LedgerMark | None = None,
    ) -> None:
        self._transaction, self._anchor, self._mark = transaction, anchor, mark

    def begin(self, db: sqlite3.Connection) -> None:
        """In the transaction that opens the vault: begin the ledger, once. From then on it has an anchor.

        Where the mark tells of a ledger and there is none, no anchor is made: all who ask are told that it is
        gone. The mark is durable before anything can be charged, and set after the anchor is there, so that a
        crash in between is no loss. A ledger from before there were marks gets one.
        """
        if self._anchor is None:
            return
        begun = db.execute("SELECT 1 FROM ledger_begun").fetchone()
        marked = self._mark is not None and self._mark.ledger_begun()
        if not begun and not marked and not self._anchor.exists():
            self._anchor.write(0, _START, LedgerEntry.of(bytes(16), 0, 0, None))
        if self._mark is not None and not marked:
            self._mark.note_ledger()
        if not begun:
            db.execute("INSERT INTO ledger_begun (one) VALUES (1)")

    def spent(self) -> Spent:
        """What has left so far, over all runs and fleets. LedgerError when the ledger was set back."""
        with self._transaction() as db:
            return _total(_entries(db, self._anchor))

    def entries(self) -> list[LedgerEntry]:
        """One for each vector that left, the oldest first. LedgerError when the ledger was set back."""
        with self._transaction() as db:
            return [entry for entry in _entries(db, self._anchor) if not _given_up(entry)]

    def lost(self) -> bool:
        """Whether the owner ever had to go on after a loss. LedgerError as `entries`."""
        with self._transaction() as db:
            return any(_given_up(entry) for entry in _entries(db, self._anchor))

    def check(self, run: bytes, cost: Cost) -> None:
        """PolicyRefusal when a further vector of `run` is more than the owner allows, LedgerError when the
        ledger was set back."""
        with self._transaction() as db:
            _check(_entries(db, self._anchor), run, cost)

    def ready(self, run: bytes, most: float, times: int) -> bool:
        """Whether a run that took part of the budget before may go on doing so; others are heard first.

        times: how often the run may ask, by its plan and its owner.
        """
        with self._transaction() as db:
            entries = _entries(db, self._anchor)
        own = [entry for entry in entries if entry.run == run]
        noised = [entry.cost for entry in own if entry.rho]
        if own and len(own) >= times:
            return False
        return not noised or _total(entries).rho + noised[-1] <= most

    def give_up(self, most: float) -> None:
        """Go on after a loss, as the owner decides: what can be read stands, and `most` or more counts as
        spent. Whatever the anchor says, the ledger has a new one from here."""
        with self._transaction() as db:
            try:
                entries = _rows(db)
            except LedgerError:  # what was changed says nothing any more
                db.execute("DELETE FROM spent")
                entries = []
            self._append(db, entries, LedgerEntry.of(bytes(16), 0, 0, max(most - _total(entries).rho, 0.0)))

    def charge(self, db: sqlite3.Connection, entry: LedgerEntry, cost: Cost) -> None:
        """Write an entry inside the transaction that keeps what the round made; raises as `check` does."""
        entries = _entries(db, self._anchor)
        _check(entries, entry.run, cost)
        self._append(db, entries, entry)

    def _append(self, db: sqlite3.Connection, entries: list[LedgerEntry], entry: LedgerEntry) -> None:
        if self._anchor is not None:  # first: a crash in between costs the owner, and tells nobody anything
            self._anchor.write(len(entries) + 1, _head([*entries, entry]), entry)
        _insert(db, len(entries) + 1, entry)


def _given_up(entry: LedgerEntry) -> bool:
    """Whether it stands for no vector, but for a budget that was given up. Rounds count from 1."""
    return entry.round == 0


def _check(entries: list[LedgerEntry], run: bytes, cost: Cost) -> None:
    times = sum(entry.run == run for entry in entries)
    if times >= cost.times:
        raise PolicyRefusal(
            f"this device has been in {times} attempts of the run, as often as its plan says, or "
            "its owner allows (sums_a_run)"
        )
    if cost.rho is None:
        return
    rounds = 1 if times else cost.times  # a run is begun only if all of it can be paid for
    if _total(entries).rho + rounds * cost.rho > cost.most:
        what = "a further round" if times else f"the run, with up to {cost.times} rounds,"
        raise PolicyRefusal(
            f"{what} would cost more privacy than the owner allows (max_epsilon); `penchant device status` "
            "shows what is spent"
        )


def _entries(db: sqlite3.Connection, anchor: LedgerAnchor | None) -> list[LedgerEntry]:
    """All entries, oldest first, as the anchor says; one that a crash kept out of the database is put in."""
    entries = _rows(db)
    if anchor is None:
        return entries
    found = anchor.read()
    if found is None:
        raise LedgerError(_set_back("its anchor is gone"))
    if found.count == len(entries) + 1 and found.head == _head([*entries, found.last]):
        _insert(db, found.count, found.last)
        return [*entries, found.last]
    if found.count != len(entries) or found.head != _head(entries):
        raise LedgerError(_set_back("it does not match its anchor"))
    return entries


def _rows(db: sqlite3.Connection) -> list[LedgerEntry]:
    rows = db.execute("SELECT run, round, attempt, rho FROM spent ORDER BY number").fetchall()
    try:
        entries = [LedgerEntry(bytes(run), number, attempt, rho) for run, number, attempt, rho in rows]
        sound = all(0 <= entry.cost < math.inf for entry in entries)
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise LedgerError(_set_back("an entry was changed"))
    return entries


def _insert(db: sqlite3.Connection, number: int, entry: LedgerEntry) -> None:
    db.execute(
        "INSERT INTO spent (number, run, round, attempt, rho) VALUES (?, ?, ?, ?, ?)",
        (number, entry.run, entry.round, entry.attempt, entry.rho),
    )


def _head(entries: list[LedgerEntry]) -> bytes:
    head = _START
    for entry in entries:
        head = hashlib.sha256(_LABEL + head + encode_record(entry)).digest()
    return head


def _total(entries: list[LedgerEntry]) -> Spent:
    vectors = [entry for entry in entries if not _given_up(entry)]
    noised = sum(bool(entry.rho) for entry in vectors)
    return Spent(sum(entry.cost for entry in entries), noised, len(vectors) - noised)


def _set_back(why: str) -> str:
    return (
        f"the ledger of this device's privacy was changed, copied or set back ({why}), so what is spent is "
        "not known, and nothing is sent; `penchant device spent` goes on with all of the budget as spent"
    )
