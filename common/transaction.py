"""One transaction on a SQLite file: what a device, an enrolment desk and an authority keep for good."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penchant.common.errors import PenchantError

__all__ = ["transaction"]

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
