"""One transaction on a SQLite file: what a device, an enrolment desk and an authority keep for good."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penchant.common.errors import DeviceError, PenchantError

__all__ = ["ledger", "transaction", "write_durably", "write_private"]

WAIT_SECONDS = 30.0  # for another process's transaction


@contextmanager
def transaction(path: Path, failure: type[PenchantError], *pragmas: str) -> Iterator[sqlite3.Connection]:
    """All that is done inside is durable at the end, or nothing of it happened.

    pragmas: what is set beforehand, such as "secure_delete=ON". What is wrong with the file is raised as
    `failure`.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=WAIT_SECONDS)
    except sqlite3.Error as error:
        raise failure(f"can't open {path}: {error}") from None
    try:
        for pragma in (*pragmas, "synchronous=FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise failure(f"{path}: {error}; nothing was changed") from None
    finally:
        db.close()  # an open transaction is rolled back


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that after a crash there is either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """A file for its owner alone, durable: whole, or not there.

    replace: in the place of what is there; otherwise what another process made first stands. DeviceError when
    the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            with suppress(FileExistsError):
                os.link(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise DeviceError(f"can't write {path}: {error.strerror}; nothing was changed") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def ledger(path: Path, failure: type[PenchantError]) -> Iterator[sqlite3.Connection]:
    """One transaction on the file, which its owner alone may read: all of it is durable at the end, or
    nothing of it happened. What is wrong with the file is raised as `failure`."""
    if not path.exists():
        path.touch(mode=0o600)
    with transaction(path, failure) as db:
        yield db
