"""A SQLite file of which each use is one transaction: the books of the enrolment desk and the authority."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penchant.common.errors import PenchantError
from penchant.common.transaction import transaction

__all__ = ["ledger"]


@contextmanager
def ledger(path: Path, failure: type[PenchantError]) -> Iterator[sqlite3.Connection]:
    """One transaction on the file, which its owner alone may read: all of it is durable at the end, or
    nothing of it happened. What is wrong with the file is raised as `failure`."""
    if not path.exists():
        path.touch(mode=0o600)
    with transaction(path, failure) as db:
        yield db
