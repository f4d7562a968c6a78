"""How much of the disk the vault may take: old runs' personal factors go, what forbids to answer twice stays.

Runs come from a server, and each may leave two rows, staged and committed, as large as its plan asks for.
Room is made, or refused, before a device takes part in a round (`make_room`). What is allowed is compared
with the sizes of runs alone, and free space in steps of powers of two: neither tells how many choices
there are.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from penchant.common.errors import DeviceError, PolicyRefusal

__all__ = ["ALONE", "RELEASED", "DiskUse", "Room", "disk_use", "make_room", "prune", "worth_compacting"]

ALONE = b"on this device  "  # 16 bytes: stands for a run where the owner trained alone; no server may use it
RELEASED = b"release of fleet"  # 16 bytes: stands for a run where the owner trained on a release; likewise
SLACK = 1 << 16  # bytes of pages that are not full
TIMES = 4  # rows at once: staged and committed, and what SQLite's journal holds of those that they replace
FREE_LEAST = 1 << 18  # bytes, the first of the steps, each twice the last, in which free space is looked at


@dataclass(frozen=True)
class Room:
    """What a round needs, and what the owner allows.

    Attributes:
        row: the bytes that one row of this run takes: the personal factor, plan and factors.
        most: the bytes that the vault's files may take.
        runs: how many runs' personal factors are kept.
        what: what needs the room.
    """

    row: int
    most: int
    runs: int
    what: str = "round"

    @property
    def needed(self) -> int:
        """Bytes for all that a round of this run may write."""
        return TIMES * self.row + SLACK


@dataclass(frozen=True)
class DiskUse:
    """What a device's directory takes on the disk, in bytes.

    Attributes:
        vault: the vault's files.
        personal: the part of it that personal factors take.
        runs: how many runs have left a personal factor, the owner's own training included.
        attempts: how many attempts are remembered so that none is answered twice.
        choices: the recorded choices' files.
        total: all files in the directory.
    """

    vault: int
    personal: int
    runs: int
    attempts: int
    choices: int
    total: int


def make_room(db: sqlite3.Connection, path: Path, run: bytes, room: Room) -> None:
    """Remove what old runs have left until a round of `run` fits.

    The newest runs are kept as far as they fit, the model that the owner uses now and what was trained alone
    in any case. Called inside a transaction of the vault in `path`: a refusal takes the removals back.

    Raises:
        PolicyRefusal: it does not fit into what the owner allows.
        DeviceError: the disk is too full for it.
    """
    prune(db, room.runs, run)
    for old in _removable(db, run):
        if _beside(db, run) + room.needed <= room.most:
            break
        db.execute("DELETE FROM personal WHERE run = ?", (old,))
    beside = _beside(db, run)
    if beside + room.needed > room.most:
        raise PolicyRefusal(
            f"the {room.what} needs {_mb(room.needed)} MB of disk beside the {_mb(beside)} MB that are in "
            f"use; the owner allows {_mb(room.most)} (max_disk_mb)"
        )
    step = FREE_LEAST
    while step < room.needed - _free(db):
        step *= 2
    if _left(path) < step:
        raise DeviceError(f"the disk is too full for a {room.what}: less than {_mb(step)} MB are free")


def prune(db: sqlite3.Connection, runs: int, current: bytes = b"") -> None:
    """Remove the personal factors of all but the newest `runs` runs.

    `current`, if there is one, counts as the newest. The model that the owner uses now and what was trained
    alone stay in any case.
    """
    rows = db.execute(
        "SELECT run FROM personal WHERE run NOT IN (?, ?) GROUP BY run ORDER BY max(kept) DESC, run",
        (current, ALONE),
    ).fetchall()
    newest = {bytes(run) for (run,) in rows[: runs - 1 if current else runs]}
    for old in _removable(db, current):
        if old not in newest:
            db.execute("DELETE FROM personal WHERE run = ?", (old,))


def disk_use(db: sqlite3.Connection, directory: Path) -> DiskUse:
    """What the vault and the device's directory take now."""
    personal, runs = db.execute(
        "SELECT coalesce(sum(length(vector) + length(context)), 0), count(DISTINCT run) FROM personal"
    ).fetchone()
    (attempts,) = db.execute("SELECT count(*) FROM burnt").fetchone()
    sizes = {path: _size(path) for path in directory.rglob("*")}

    def taken(name: str) -> int:
        return sum(s for path, s in sizes.items() if path.parent == directory and path.name.startswith(name))

    return DiskUse(
        vault=taken("vault.db"),
        personal=int(personal),
        runs=int(runs),
        attempts=int(attempts),
        choices=taken("preferences.db"),
        total=sum(sizes.values()),
    )


def worth_compacting(db: sqlite3.Connection) -> bool:
    """Whether more of the file is empty than in use, and that is more than a megabyte."""
    return _free(db) > max(_used(db), 1 << 20)


def _removable(db: sqlite3.Connection, current: bytes) -> list[bytes]:
    """Runs whose personal factors may go, the oldest first."""
    rows = db.execute("SELECT run FROM personal GROUP BY run ORDER BY max(kept), run").fetchall()
    newest = db.execute(
        "SELECT run FROM personal WHERE state = 'committed' ORDER BY kept DESC LIMIT 1"
    ).fetchone()
    stay = {current, ALONE, *(newest or ())}
    return [bytes(run) for (run,) in rows if bytes(run) not in stay]


def _beside(db: sqlite3.Connection, run: bytes) -> int:
    """Bytes in use but for the rows of this run, which those to come will replace."""
    (own,) = db.execute(
        "SELECT coalesce(sum(length(vector) + length(context)), 0) FROM personal WHERE run = ?", (run,)
    ).fetchone()
    return _used(db) - int(own)


def _used(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _free(db: sqlite3.Connection) -> int:
    return _pragma(db, "freelist_count") * _pragma(db, "page_size")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    (value,) = db.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _left(path: Path) -> int:
    try:
        found = os.statvfs(path.parent)
    except OSError as error:
        raise DeviceError(f"can't see how full the disk of {path.parent} is: {error.strerror}") from None
    return found.f_bavail * found.f_frsize


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
    except OSError:  # it went meanwhile
        return 0


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.1f}"
