"""When a fleet's executor last asked its SuperLink for work, as the SuperLink's own database has it.

Flower 1.41 keeps the nonce of each request of its executor until the next one comes after it has expired
(`flwr/supercore/auth/superexec.py:167`, `flwr/supercore/corestate/sql_corestate.py:2130`), so the latest one
tells of the latest look, however long ago that was.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from flwr.supercore.constant import MAX_TIMESTAMP_DIFF_SECONDS

__all__ = ["last_look"]


def last_look(database: Path) -> float | None:
    """Unix seconds; None where no executor ever looked. database: the SuperLink's, which is only read."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=3.0)) as db:
            (found,) = db.execute(
                "SELECT max(expires_at) FROM nonce_store WHERE namespace LIKE 'superexec:%'"
            ).fetchone()
    except sqlite3.Error:
        return None
    return None if found is None else float(found) - MAX_TIMESTAMP_DIFF_SECONDS
