"""What must outlast a crash: transactions on SQLite files, and files that are there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penchant.common.errors import DeviceError, PenchantError

__all__ = [
    "change",
    "claim_schema",
    "compact",
    "erase",
    "in_turn",
    "overwrite_journal",
    "refuse_schema",
    "replace_erasing",
    "schema_transaction",
    "sync_directory",
    "transaction",
    "write_durably",
    "write_private",
]

MARK = 0x50454E00  # "PEN", and a byte for the version of a database's schema
WAIT_SECONDS = 30.0  # for another process's transaction


@contextmanager
def change(db: sqlite3.Connection, path: Path, failure: type[PenchantError]) -> Iterator[None]:
    """One transaction of an open database, whose file is `path`: all that is done inside is committed at the
    end, or nothing of it happened. What is wrong with the file is raised as `failure`."""
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if db.in_transaction:  # a full disk has rolled it back already
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    except sqlite3.Error as error:
        with suppress(sqlite3.Error):  # a COMMIT that failed is still open
            db.rollback()
        raise failure(f"{path}: {error}; nothing was changed") from None


@contextmanager
def transaction(
    path: Path, failure: type[PenchantError], *pragmas: str, durable: bool = True
) -> Iterator[sqlite3.Connection]:
    """A `change` of the file, durable at the end. A file that is missing is made, for its owner alone.

    pragmas: what is set beforehand, such as "secure_delete=ON".
    durable: False does not wait for the disk. What was committed outlasts this process all the same, but a
    power cut soon after can lose it or damage the file.
    """
    try:
        if not path.exists():
            path.touch(mode=0o600)  # SQLite gives its journal the same mode
        db = sqlite3.connect(path, isolation_level=None, timeout=WAIT_SECONDS)
    except (OSError, sqlite3.Error) as error:
        raise failure(f"can't open {path}: {error}") from None
    try:
        _set(db, path, failure, (*pragmas, f"synchronous={'FULL' if durable else 'OFF'}"))
        with change(db, path, failure):
            yield db
    finally:
        db.close()


@contextmanager
def schema_transaction(
    path: Path, failure: type[PenchantError], version: int, schema: str
) -> Iterator[sqlite3.Connection]:
    """A `transaction` of a file of this schema, whose tables are there.

    schema: statements that make what is missing, with ";" between them. `failure` as of `claim_schema`.
    """
    with transaction(path, failure) as db:
        claim_schema(db, path, failure, version)
        for statement in filter(str.strip, schema.split(";")):
            db.execute(statement)
        yield db


def claim_schema(db: sqlite3.Connection, path: Path, failure: type[PenchantError], version: int) -> None:
    """Mark an open database as penchant's, with the version of its schema (1 to 255).

    One without a mark is new, or of 0.3 or before. `failure` names a file that a later version of penchant
    wrote, or that is not penchant's; nothing is changed then. What `PRAGMA application_id` holds is the mark:
    `user_version` counts changes in some of them.
    """
    try:
        (found,) = db.execute("PRAGMA application_id").fetchone()
        refuse_schema(int(found), path, failure, version)
        if found != MARK | version:
            db.execute(f"PRAGMA application_id = {MARK | version}")
    except sqlite3.Error as error:
        raise failure(f"{path}: {error}; nothing was changed") from None


def refuse_schema(found: int, path: Path, failure: type[PenchantError], version: int) -> None:
    """`failure` unless a database with this `application_id` is one that this version reads."""
    if found and found & ~0xFF != MARK:
        raise failure(f"{path} is not penchant's: it has the mark of another program")
    if found & 0xFF > version:
        raise failure(
            f"{path} was written by a later version of penchant (its schema is {found & 0xFF}, this version "
            f"knows {version}); update penchant"
        )


def compact(path: Path, failure: type[PenchantError]) -> None:
    """Write the file anew without the room that nothing uses. A crash leaves the old one or the new one."""
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=WAIT_SECONDS)
        try:
            for line in ("PRAGMA journal_mode=TRUNCATE", "PRAGMA secure_delete=ON", "VACUUM"):
                db.execute(line)
        finally:
            db.close()
    except sqlite3.Error as error:
        raise failure(f"{path}: {error}; nothing was changed") from None


def _set(db: sqlite3.Connection, path: Path, failure: type[PenchantError], pragmas: tuple[str, ...]) -> None:
    try:
        for pragma in pragmas:
            db.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as error:
        raise failure(f"{path}: {error}; nothing was changed") from None


def overwrite_journal(path: Path, failure: type[PenchantError]) -> None:
    """Overwrite, in place, what earlier transactions left in the rollback journal of the database at `path`.

    For a database that is always opened with journal_mode=PERSIST: its journal is never unlinked, so that
    there is but one. The lock is held meanwhile; a journal of zeros is nobody's to roll back.
    """
    journal = path.with_name(f"{path.name}-journal")
    with transaction(path, failure, "journal_mode=PERSIST"):
        try:
            with journal.open("r+b") as file:
                _overwrite(file.fileno())
        except FileNotFoundError:
            return
        except OSError as error:
            raise failure(f"can't overwrite {journal}: {error.strerror}; do it again") from None


@contextmanager
def in_turn(lock: Path, failure: type[PenchantError]) -> Iterator[None]:
    """Wait until no other process or thread is inside for the same file `lock`, then be the one that is.

    For what is read, thought about and written again in plain files. The file stays, empty; the turn ends
    with the process, however it ends. Not to be entered twice by one thread. `failure` when the file can't be
    made.
    """
    try:
        descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise failure(f"can't work with {lock}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that after a crash there is either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    _write(temporary, data, 0o666)
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_private(
    path: Path, data: bytes, *, replace: bool = True, failure: type[PenchantError] = DeviceError
) -> None:
    """A file for its owner alone, durable: whole, or not there.

    replace: whether to replace a file that is there; otherwise one that another process made first is kept.
    failure: what is raised when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, data, 0o600)
        if replace:
            os.replace(temporary, path)
        else:
            with suppress(FileExistsError):
                os.link(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise failure(f"can't write {path}: {error.strerror}; nothing was changed") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def erase(path: Path) -> None:
    """Overwrite a file's bytes where they lie, then remove it; OSError when the disk refuses.

    They are gone wherever a file system writes in place. Elsewhere (docs/threat-model.md) they are not.
    """
    with path.open("r+b") as file:
        _overwrite(file.fileno())
    path.unlink()
    sync_directory(path.parent)


def replace_erasing(path: Path, data: bytes, *, failure: type[PenchantError]) -> None:
    """As `write_private`; the bytes that were there are overwritten once the new ones are durable."""
    try:
        with path.open("r+b") as before:
            write_private(path, data, failure=failure)
            _overwrite(before.fileno())
    except OSError as error:
        raise failure(f"can't replace {path}: {error.strerror}") from None


def _overwrite(descriptor: int) -> None:
    os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
    os.fsync(descriptor)


def _write(path: Path, data: bytes, mode: int) -> None:
    """The bytes on the disk, under a name that nobody looks for yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
