"""A SQLite file of which each use is one transaction: the books of the enrolment desk and the authority."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penchant.common.errors import PenchantError

__all__ = ["ledger"]

WAIT_SECONDS = 30.0  # for another process's transaction


@contextmanager
def ledger(path: Path, failure: type[PenchantError]) -> Iterator[sqlite3.Connection]:
    """One transaction on the file, which its owner alone may read: all of it is durable at the end, or
    nothing of it happened. What is wrong with the file is raised as `failure`."""
    if not path.exists():
        path.touch(mode=0o600)
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=WAIT_SECONDS)
    except sqlite3.Error as error:
        raise failure(f"can't open {path}: {error}") from None
    try:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise failure(f"{path}: {error}; nothing was changed") from None
    finally:
        db.close()
