"""What was fitted to the recorded choices beside the personal factor: kept sealed, and destroyed with them.

It lies in a file of its own. Its size says how many choices there are, which nothing that a server sees may
depend on: what the vault takes decides whether a round is refused (`client.vault.budget`).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from penchant.client.vault.erasable import ErasableStorage
from penchant.client.vault.sealing import SealedStorage
from penchant.common.errors import DeviceError
from penchant.common.storage import claim_schema, compact, overwrite_journal, transaction

__all__ = ["FittedChange", "FittedStore"]

STORE: Final = "fitted.db"
KEYS: Final = "fitted.keys"

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS fitted (name TEXT PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID"
)


class FittedChange:
    """The values of a store while nobody else can change them."""

    def __init__(self, db: sqlite3.Connection, storage: ErasableStorage) -> None:
        self._db = db
        self._storage = storage
        self.replaced = 0
        """How many values are no longer there."""

    def read(self, name: str) -> bytes:
        """What is kept under this name; empty where nothing is."""
        row = self._db.execute("SELECT sealed FROM fitted WHERE name = ?", (name,)).fetchone()
        return b"" if row is None else self._storage.open([(bytes(row[0]), name)])[0]

    def mark(self) -> bytes:
        """Another one as soon as anything is kept anew, also where it says the same, or forgotten; opens
        nothing.

        Each value is sealed under a new key, so that its tag, the end of what is sealed, never comes again.
        """
        whole = hashlib.sha256()
        for (tag,) in self._db.execute("SELECT substr(sealed, -16) FROM fitted ORDER BY name"):
            whole.update(tag)
        return whole.digest()

    def replace(self, values: Mapping[str, bytes]) -> None:
        """Keep these values and no others."""
        self.replaced += self._db.execute("DELETE FROM fitted").rowcount
        sealed = self._storage.seal([(data, name) for name, data in values.items()])
        self._db.executemany(
            "INSERT INTO fitted (name, sealed) VALUES (?, ?)", zip(values, sealed, strict=True)
        )


class FittedStore:
    """Sealed values by name, each under a key of its own that can be destroyed. Safe to open anew for every
    call."""

    def __init__(self, home: Path, storage: SealedStorage) -> None:
        """Open or create the store in the device's directory."""
        self._path = home / STORE
        self._storage = ErasableStorage(storage, home / KEYS)
        with self._transaction() as db:
            claim_schema(db, self._path, DeviceError, _SCHEMA_VERSION)
            db.execute(_SCHEMA)
            self._destroy_unused(db)  # of a change that was broken off

    @contextmanager
    def changing(self) -> Iterator[FittedChange]:
        """Read and replace as one: all of it, or nothing is changed. The keys of what was replaced are
        destroyed after it."""
        with self._transaction() as db:
            change = FittedChange(db, self._storage)
            yield change
        if change.replaced:
            self._destroy()

    def read(self, name: str) -> bytes:
        """As `FittedChange.read`."""
        with self.changing() as there:
            return there.read(name)

    def replace(self, values: Mapping[str, bytes]) -> None:
        """Keep these values and no others: all of them, or nothing is changed."""
        with self.changing() as there:
            there.replace(values)

    def mark(self) -> bytes:
        """As `FittedChange.mark`."""
        with self.changing() as there:
            return there.mark()

    def forget(self) -> None:
        """Delete all of it, destroy the keys that it was ever sealed under, and give the disk back."""
        with self.changing() as there:
            there.replace({})
        self._destroy()  # also of what a process that was killed has replaced
        self.scrub(deleted=bool(there.replaced))

    def scrub(self, *, deleted: bool) -> None:
        """Overwrite what earlier changes left on the disk, and give it back where values were deleted; what
        is kept now stays."""
        overwrite_journal(self._path, DeviceError)
        if deleted:
            compact(self._path, DeviceError)

    def _destroy(self) -> None:
        """Destroy the keys of what was replaced or deleted: once that is durable, and while nobody writes."""
        with self._transaction() as db:
            self._destroy_unused(db)

    def _destroy_unused(self, db: sqlite3.Connection) -> None:
        slots = db.execute("SELECT substr(sealed, 1, 4) FROM fitted")
        self._storage.destroy_but(bytes(slot) for (slot,) in slots)

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """PERSIST: the journal's blocks are never released, so that they can be overwritten."""
        return transaction(self._path, DeviceError, "journal_mode=PERSIST", "secure_delete=ON")
