"""The owner's recorded choices: one SQLite file that only the owner can read.

An import is one transaction: all of it is there, or nothing. A choice that is there already is not counted
twice. About a fifth is held out, to judge the model by: which side a comparison is on depends on its texts
alone, so that it never changes, and that no comparison is on both.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from penchant.common.data.preferences import Preference
from penchant.common.errors import DeviceError
from penchant.common.storage import transaction

__all__ = ["Added", "PreferenceStore", "held_out"]

STORE = "preferences.db"
HELD_OUT_OF = 5

_SCHEMA = """
CREATE TABLE IF NOT EXISTS choices (
    number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, prompt TEXT NOT NULL, chosen TEXT NOT NULL,
    rejected TEXT NOT NULL, source TEXT NOT NULL, recorded REAL NOT NULL);
"""


@dataclass(frozen=True)
class Added:
    """What an import did: choices that are new, and those that were there already."""

    new: int
    repeated: int


class PreferenceStore:
    """The choices of one device. Safe to open anew for every call; safe under kill at any instant."""

    def __init__(self, home: Path) -> None:
        """Open or create the store in the device's directory."""
        self._path = home / STORE
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise DeviceError(f"can't make the store {self._path}: {error.strerror}") from None
        with self._transaction() as db:
            db.execute(_SCHEMA)

    def add(self, preferences: Iterable[Preference], source: str = "import") -> Added:
        """Record choices, all or none. DeviceError when the disk refuses; nothing is changed then."""
        new = repeated = 0
        with self._transaction() as db:
            for p in preferences:
                row = (_digest(p), p.prompt, p.chosen, p.rejected, source, time.time())
                done = db.execute(
                    "INSERT OR IGNORE INTO choices (digest, prompt, chosen, rejected, source, recorded)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    row,
                )
                new += done.rowcount
                repeated += 1 - done.rowcount
        return Added(new, repeated)

    def train(self) -> tuple[Preference, ...]:
        """The choices to learn from, in the order in which they were recorded."""
        return tuple(p for p in self._all() if not held_out(p))

    def validation(self) -> tuple[Preference, ...]:
        """The choices held out to judge the model by."""
        return tuple(p for p in self._all() if held_out(p))

    def __len__(self) -> int:
        with self._transaction() as db:
            (count,) = db.execute("SELECT count(*) FROM choices").fetchone()
        return int(count)

    def sources(self) -> dict[str, int]:
        """How many choices came from where."""
        with self._transaction() as db:
            rows = db.execute("SELECT source, count(*) FROM choices GROUP BY source ORDER BY source")
            return {str(source): int(count) for source, count in rows}

    def unanswered(self, comparisons: Iterable[Preference]) -> list[Preference]:
        """Those of the comparisons, in order, that were recorded in neither direction."""
        with self._transaction() as db:
            known = {bytes(digest) for (digest,) in db.execute("SELECT digest FROM choices")}
        return [p for p in comparisons if known.isdisjoint((_digest(p), _digest(_turned(p))))]

    def remove(self, preference: Preference) -> bool:
        """Take one choice back, overwriting its bytes in the file; -> whether it was there."""
        with self._transaction() as db:
            done = db.execute("DELETE FROM choices WHERE digest = ?", (_digest(preference),))
            return done.rowcount == 1

    def forget(self) -> int:
        """Delete every choice, overwriting its bytes in the file; -> how many there were."""
        with self._transaction() as db:
            return db.execute("DELETE FROM choices").rowcount

    def _all(self) -> list[Preference]:
        with self._transaction() as db:
            rows = db.execute("SELECT prompt, chosen, rejected FROM choices ORDER BY number").fetchall()
        return [Preference(*row) for row in rows]

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._path, DeviceError, "journal_mode=DELETE", "secure_delete=ON")


def held_out(preference: Preference) -> bool:
    """Whether this comparison, whichever side won, is kept aside."""
    low, high = sorted((preference.chosen, preference.rejected))
    return hashlib.sha256(_packed("held out", preference.prompt, low, high)).digest()[0] % HELD_OUT_OF == 0


def _turned(p: Preference) -> Preference:
    return Preference(p.prompt, p.rejected, p.chosen)


def _digest(p: Preference) -> bytes:
    return hashlib.sha256(_packed("choice", p.prompt, p.chosen, p.rejected)).digest()


def _packed(*texts: str) -> bytes:
    """Texts, each after its length: no two lists are packed alike."""
    parts = [text.encode() for text in texts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
