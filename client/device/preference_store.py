"""The owner's recorded choices: one SQLite file in which each choice is sealed under its own key.

The keys lie beside it (`client.vault.erasable`): a choice that is taken back, and all when they are
forgotten, can't be read from any block that they were ever written to. An import is one transaction: all of
it is there, or nothing. A choice that is there already is not counted twice. About a fifth is held out, to
judge the model by: which side a comparison is on depends on its texts alone, so that it never changes, and
that no comparison is on both.

Ties are kept beside the choices, sealed, held out and forgotten likewise: what the owner said of two
responses of which they prefer none. Their keys are in a file of their own: a version that knows no
ties destroys every key in the other one that no choice has.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from penchant.client.learning.packed_choices import PackedChoices
from penchant.client.vault.erasable import ErasableStorage
from penchant.client.vault.sealing import SealedStorage
from penchant.common.data.preferences import Preference, Tie, choice_of, comparison_of, without_ties
from penchant.common.errors import DataError, DeviceError
from penchant.common.storage import claim_schema, overwrite_journal, transaction

__all__ = ["Added", "PreferenceStore", "Recorded", "RecordedTie", "held_out"]

STORE = "preferences.db"
HELD_OUT_OF = 5

KEYS = "preferences.keys"
TIE_KEYS = "ties.keys"

_SCHEMA_VERSION = 3  # 2: ties; 3: strengths
_SCHEMAS = [
    f"CREATE TABLE IF NOT EXISTS {table} (number INTEGER PRIMARY KEY, sealed BLOB NOT NULL)"
    for table in ("sealed_choices", "sealed_ties")
] + ["CREATE TABLE IF NOT EXISTS ledger_begun (one INTEGER PRIMARY KEY CHECK (one = 1))"]
_PURPOSE, _TIE = "choice", "tie"
_MARK = 16  # bytes that name a choice as it is sealed
CLOCK_STEP = 3.0  # seconds: the coarsest of a file system's clock, and one more

# user_version: 0 new, or from a version that kept texts in clear (a table `choices`); 1 such a one, whose
# texts are sealed by now but still lie in its rollback journal; 2 sealed and nothing else.
_SEALED, _DONE = 1, 2


@dataclass(frozen=True)
class Added:
    """What an import did: choices and ties that are new, and those that were there already; ties: how many of
    the new ones are ties."""

    new: int
    repeated: int
    ties: int = 0


@dataclass(frozen=True)
class Recorded:
    """One recorded choice: its number in this store, where it came from, and when (Unix seconds)."""

    number: int
    preference: Preference = field(repr=False)
    source: str = field(repr=False)
    recorded: float

    def encode(self) -> bytes:
        """As it is sealed; the number is not among it."""
        p = self.preference
        strength = [] if p.strength is None else [p.strength]
        parts = [p.prompt, p.chosen, p.rejected, self.source, self.recorded, *strength]
        return json.dumps(parts, ensure_ascii=False).encode()

    @classmethod
    def decode(cls, number: int, data: bytes) -> Recorded:
        """What `encode` made."""
        prompt, chosen, rejected, source, recorded, *strength = json.loads(data)
        pair = Preference(prompt, chosen, rejected, strength=strength[0] if strength else None)
        return cls(number, pair, source, recorded)


@dataclass(frozen=True)
class RecordedTie:
    """Two responses of which the owner prefers none, as they were shown.

    Attributes:
        number: in this store, among the ties.
        pair: the two; which one is called chosen says nothing but that it was shown first.
        said: what of them.
        source, recorded: as of `Recorded`.
    """

    number: int
    pair: Preference = field(repr=False)
    said: Tie
    source: str = field(repr=False)
    recorded: float

    @property
    def preference(self) -> Preference:
        """As what is learned from: the pair with what was said of it."""
        return replace(self.pair, tie=self.said)

    def encode(self) -> bytes:
        """As it is sealed; the number is not among it."""
        p = self.pair
        parts = [p.prompt, p.chosen, p.rejected, self.said, self.source, self.recorded]
        return json.dumps(parts, ensure_ascii=False).encode()

    @classmethod
    def decode(cls, number: int, data: bytes) -> RecordedTie:
        """What `encode` made."""
        prompt, first, second, said, source, recorded = json.loads(data)
        return cls(number, Preference(prompt, first, second), said, source, recorded)


class PreferenceStore:
    """The choices of one device. Safe to open anew for every call; safe under kill at any instant."""

    def __init__(self, home: Path, storage: SealedStorage | None = None) -> None:
        """Open or create the store in the device's directory. storage: what seals it; by default the
        directory's own, which must then need no passphrase."""
        self._path = home / STORE
        root = SealedStorage.of(home) if storage is None else storage
        self._storage = ErasableStorage(root, home / KEYS)
        self._tie_storage = ErasableStorage(root, home / TIE_KEYS)
        self._read: tuple[tuple[int, ...], tuple[PackedChoices, PackedChoices]] | None = None
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise DeviceError(f"can't make the store {self._path}: {error.strerror}") from None
        with self._transaction() as db:
            claim_schema(db, self._path, DeviceError, _SCHEMA_VERSION)
            for schema in _SCHEMAS:
                db.execute(schema)
            self._destroy_unused(db)  # of an import or a removal that was broken off
            version = self._sealed_since(db)
        if version == _SEALED:
            self._destroy()  # keys of ties that those choices end
            overwrite_journal(self._path, DeviceError)
            with self._transaction() as db:
                db.execute(f"PRAGMA user_version = {_DONE}")

    def add(self, preferences: Iterable[Preference], source: str = "import") -> Added:
        """Record choices and ties, all or none. DeviceError when the disk refuses; nothing is changed then.

        A tie between the same two responses as a choice goes, or is not recorded: of a comparison one thing
        is, and a choice says more. A choice that is there already with another strength, or none, is recorded
        anew with the one that is given.
        """
        given = list(preferences)
        with self._transaction() as db:
            rows = self._rows(db)
            known = {choice_of(row.preference): row.preference for row in rows}
            new: dict[tuple[str, str, str], Recorded] = {}
            for p in without_ties(given):
                before = known.get(choice_of(p))
                if before is None or p.strength not in (None, before.strength):
                    known[choice_of(p)] = p
                    new[choice_of(p)] = Recorded(0, p, source, time.time())
            outdated = [row.number for row in rows if choice_of(row.preference) in new]
            self._delete(db, outdated)
            self._insert(db, list(new.values()))
            untied = self._untie(db, list(new.values()))
            ties = self._new_ties(db, [p for p in given if p.tie], known.values(), source)
            self._insert_ties(db, ties)
        if untied or outdated:
            self._destroy()
        recorded = len(new) + len(ties)
        return Added(recorded, len(given) - recorded, len(ties))

    def train(self) -> tuple[Preference, ...]:
        """The choices to learn from, in the order in which they were recorded."""
        return tuple(p for p in self._all() if not held_out(p))

    def validation(self) -> tuple[Preference, ...]:
        """The choices held out to judge the model by."""
        return tuple(p for p in self._all() if held_out(p))

    def sides(self) -> tuple[PackedChoices, PackedChoices]:
        """(those to learn from, those held out) as they are at one moment: the choices, and behind them the
        ties that can be read. Without a choice to learn from there are no ties to learn from either.

        What was read is kept until the file changes, so that how long this takes does not say how many there
        are. Not so right after a change: a second one within one step of the file system's clock would not
        show. `let_go` keeps nothing.
        """
        read = self._read
        if read is None or read[0] != self._state():
            with self._transaction() as db:
                state, rows, ties = self._state(), self._rows(db), self._ties(db)
            settled = time.time_ns() - max(state[:2]) > CLOCK_STEP * 1e9
            every = [(held_out(row.preference), row.preference) for row in rows]
            tied = [(held_out(tie.pair), tie.preference) for tie in ties]
            kept, aside = ([p for side, p in (*every, *tied) if side is which] for which in (False, True))
            if all(p.tie for p in kept):
                kept = []
            read = state, (PackedChoices(kept), PackedChoices(aside))
            self._read = read if settled else None
        return read[1]

    def let_go(self) -> None:
        """Keep no choices in memory."""
        self._read = None

    def __len__(self) -> int:
        with self._transaction() as db:
            (count,) = db.execute("SELECT count(*) FROM sealed_choices").fetchone()
        return int(count)

    def marks(self) -> bytes:
        """What names each recorded choice, and then each tie, one after the other (`marks_of`); opens none.

        Not by its number: that of the latest is given again once it was taken back.
        """
        with self._transaction() as db:
            return b"".join(self._marks(db, "sealed_choices") + self._marks(db, "sealed_ties"))

    def marked(self) -> list[tuple[bytes, Recorded]]:
        """All choices as `recorded`, each with its mark."""
        with self._transaction() as db:
            return self._marked(db)

    def marked_ties(self) -> list[tuple[bytes, RecordedTie]]:
        """All ties as `ties`, each with its mark."""
        with self._transaction() as db:
            return self._marked_ties(db)

    def all_marked(self) -> list[tuple[bytes, Recorded | RecordedTie]]:
        """`marked` and then `marked_ties`, as both are at one moment."""
        with self._transaction() as db:
            return [*self._marked(db), *self._marked_ties(db)]

    def sources(self) -> dict[str, int]:
        """How many choices came from where."""
        with self._transaction() as db:
            return dict(sorted(Counter(row.source for row in self._rows(db)).items()))

    def unanswered(self, comparisons: Iterable[Preference]) -> list[Preference]:
        """Those of the comparisons, in order, that were recorded in neither direction, nor as a tie."""
        with self._transaction() as db:
            known = {comparison_of(row.preference) for row in self._rows(db)}
            known |= {comparison_of(tie.pair) for tie in self._ties(db)}
        return [p for p in comparisons if comparison_of(p) not in known]

    def recorded(self) -> list[Recorded]:
        """All choices as they are kept, in the order in which they were recorded."""
        with self._transaction() as db:
            return self._rows(db)

    # --- ties ----------------------------------------------------------------------------------------

    def ties(self) -> list[RecordedTie]:
        """All ties, in the order in which they were recorded; those that don't open are left out
        (`lost_ties`)."""
        with self._transaction() as db:
            return self._ties(db)

    def lost_ties(self) -> int:
        """How many ties can't be read any more, because their keys are gone."""
        with self._transaction() as db:
            return self._count_ties(db) - len(self._ties(db))

    def count_ties(self) -> int:
        """How many ties there are, opened or not."""
        with self._transaction() as db:
            return self._count_ties(db)

    def add_tie(self, pair: Preference, said: Tie, source: str) -> RecordedTie | None:
        """Record that the owner prefers none of two responses; what was said of the same two before goes.

        None, and nothing is changed, where it is recorded that one of them is preferred. DeviceError when the
        disk refuses.
        """
        with self._transaction() as db:
            if any(comparison_of(row.preference) == comparison_of(pair) for row in self._rows(db)):
                return None
            tie = RecordedTie(0, pair, said, source, time.time())
            before = self._ties_between(db, [pair])
            number = self._insert_ties(db, [tie])
            self._delete_ties(db, before)
        self._destroy()
        return replace(tie, number=number)

    def settle(self, tie: RecordedTie, first_is_better: bool) -> bool:
        """Make a choice of a tie and destroy the tie's key; -> whether it was there still."""
        with self._transaction() as db:
            there = tie in self._ties(db)
            if there:
                made = tie.pair if first_is_better else _turned(tie.pair)
                known = {choice_of(row.preference) for row in self._rows(db)}
                if known.isdisjoint((choice_of(made), choice_of(_turned(made)))):
                    self._insert(db, [Recorded(0, made, tie.source, time.time())])
                self._delete_ties(db, [tie])
        self.let_go()
        self._destroy()
        return there

    def remove_tie(self, tie: RecordedTie) -> bool:
        """Delete a tie and destroy its key; -> whether it was there still."""
        return bool(self.remove_ties([tie]))

    def remove_ties(self, ties: Iterable[RecordedTie]) -> int:
        """Delete these ties, all or none, and destroy their keys; -> how many were there still."""
        with self._transaction() as db:
            there = set(ties) & set(self._ties(db))
            self._delete_ties(db, there)
        self.let_go()
        self._destroy()
        overwrite_journal(self._path, DeviceError)
        return len(there)

    # --- what goes -----------------------------------------------------------------------------------

    def remove(self, preference: Preference) -> bool:
        """Take one choice back and destroy its key; -> whether it was there."""
        return bool(self._remove(lambda row: choice_of(row.preference) == choice_of(preference)))

    def turn_round(self, chosen: Recorded) -> bool:
        """Let the other response of a recorded choice be the preferred one; -> whether it was there still.

        One transaction; the key of what was recorded before is destroyed. Where the choice was made the other
        way round as well, that one stays and this one goes.
        """
        with self._transaction() as db:
            rows = self._rows(db)
            there = chosen in rows
            if there:
                turned = _turned(chosen.preference)
                if all(choice_of(row.preference) != choice_of(turned) for row in rows):
                    # A row of its own: for whoever learned from the other one this is a newer choice.
                    self._insert(db, [replace(chosen, preference=turned)])
                db.execute("DELETE FROM sealed_choices WHERE number = ?", (chosen.number,))
        self.let_go()
        self._destroy()
        return there

    def edit(self, before: Recorded | RecordedTie, now: Preference) -> bool:
        """Let a recorded choice or tie say something else, be it a tie or a choice; -> whether it was there
        still.

        One transaction: whoever reads finds the one or the other. Where it came from, and when, stays. The
        key of what was recorded before is destroyed, as by a deletion. Which side it is on depends on its
        texts alone, as ever: other ones may put it on the other.

        DataError, and nothing is changed, where another choice or tie compares the same two responses.
        """
        with self._transaction() as db:
            kept: list[Recorded | RecordedTie] = [*self._rows(db), *self._ties(db)]
            there = before in kept
            if there and now != before.preference:
                _refuse_repeated(now, (row.preference for row in kept if row != before))
                self._insert_said(db, now, before.source, before.recorded)
                if isinstance(before, RecordedTie):
                    self._delete_ties(db, [before])
                else:
                    self._delete(db, [before.number])
        self.let_go()
        self._destroy()
        overwrite_journal(self._path, DeviceError)
        return there

    def remove_these(self, chosen: Iterable[Recorded]) -> int:
        """Delete these choices, all or none, and destroy their keys; -> how many were there still."""
        known = set(chosen)
        count = self._remove(known.__contains__)
        overwrite_journal(self._path, DeviceError)
        return count

    def forget(self) -> int:
        """Delete every choice and tie and destroy all keys; -> how many choices there were."""
        with self._transaction() as db:
            count = db.execute("DELETE FROM sealed_choices").rowcount
            db.execute("DELETE FROM sealed_ties")
        self.let_go()
        self._destroy()
        overwrite_journal(self._path, DeviceError)
        return count

    # --- the ledger of privacy, in the vault -----------------------------------------------------------

    def ledger_begun(self) -> bool:
        """Whether this home ever had a ledger: one that is gone is noticed by that (`LedgerMark`)."""
        with self._transaction() as db:
            return db.execute("SELECT 1 FROM ledger_begun").fetchone() is not None

    def note_ledger(self) -> None:
        """Remember that there is a ledger; nothing that is forgotten here takes that back."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO ledger_begun (one) VALUES (1)")

    # --- inner parts ---------------------------------------------------------------------------------

    def _state(self) -> tuple[int, ...]:
        """What differs as soon as the file is another one or has changed.

        By its name: whoever closes a descriptor of the file gives up SQLite's locks on it.
        """
        try:
            found = self._path.stat()
        except OSError as error:
            raise DeviceError(f"can't read {self._path}: {error.strerror}") from None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev

    def _all(self) -> list[Preference]:
        with self._transaction() as db:
            return [row.preference for row in self._rows(db)]

    def _remove(self, meant: Callable[[Recorded], bool]) -> int:
        with self._transaction() as db:
            found = [row.number for row in self._rows(db) if meant(row)]
            self._delete(db, found)
        self.let_go()
        self._destroy()
        return len(found)

    def _rows(self, db: sqlite3.Connection) -> list[Recorded]:
        found = db.execute("SELECT number, sealed FROM sealed_choices ORDER BY number").fetchall()
        opened = self._storage.open([(bytes(sealed), _PURPOSE) for _, sealed in found])
        return [Recorded.decode(number, data) for (number, _), data in zip(found, opened, strict=True)]

    def _ties(self, db: sqlite3.Connection) -> list[RecordedTie]:
        found = db.execute("SELECT number, sealed FROM sealed_ties ORDER BY number").fetchall()
        opened = self._tie_storage.open_what_opens([(bytes(sealed), _TIE) for _, sealed in found])
        return [
            RecordedTie.decode(n, data)
            for (n, _), data in zip(found, opened, strict=True)
            if data is not None
        ]

    @staticmethod
    def _count_ties(db: sqlite3.Connection) -> int:
        (count,) = db.execute("SELECT count(*) FROM sealed_ties").fetchone()
        return int(count)

    def _ties_between(self, db: sqlite3.Connection, pairs: Iterable[Preference]) -> list[RecordedTie]:
        meant = {comparison_of(pair) for pair in pairs}
        return [tie for tie in self._ties(db) if comparison_of(tie.pair) in meant]

    def _untie(self, db: sqlite3.Connection, rows: Sequence[Recorded]) -> bool:
        """Delete the ties between what these choices choose from; -> whether there were any."""
        gone = self._ties_between(db, (row.preference for row in rows))
        self._delete_ties(db, gone)
        return bool(gone)

    @staticmethod
    def _delete_ties(db: sqlite3.Connection, ties: Iterable[RecordedTie]) -> None:
        db.executemany("DELETE FROM sealed_ties WHERE number = ?", [(tie.number,) for tie in ties])

    @staticmethod
    def _delete(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
        db.executemany("DELETE FROM sealed_choices WHERE number = ?", [(number,) for number in numbers])

    def _insert(self, db: sqlite3.Connection, rows: Sequence[Recorded]) -> None:
        sealed = self._storage.seal([(row.encode(), _PURPOSE) for row in rows])
        db.executemany("INSERT INTO sealed_choices (sealed) VALUES (?)", [(data,) for data in sealed])

    def _insert_ties(self, db: sqlite3.Connection, ties: Sequence[RecordedTie]) -> int:
        """-> the number of the last one, 0 without any."""
        number = 0
        for sealed in self._tie_storage.seal([(tie.encode(), _TIE) for tie in ties]):
            number = db.execute("INSERT INTO sealed_ties (sealed) VALUES (?)", (sealed,)).lastrowid or 0
        return number

    def _insert_said(self, db: sqlite3.Connection, said: Preference, source: str, recorded: float) -> None:
        """Record a choice, or a tie, of that source and moment."""
        if said.tie:
            self._insert_ties(db, [RecordedTie(0, replace(said, tie=""), said.tie, source, recorded)])
        else:
            self._insert(db, [Recorded(0, said, source, recorded)])

    def _marked(self, db: sqlite3.Connection) -> list[tuple[bytes, Recorded]]:
        return list(zip(self._marks(db, "sealed_choices"), self._rows(db), strict=True))

    def _marked_ties(self, db: sqlite3.Connection) -> list[tuple[bytes, RecordedTie]]:
        found = db.execute("SELECT number FROM sealed_ties ORDER BY number").fetchall()
        marks = dict(zip((number for (number,) in found), self._marks(db, "sealed_ties"), strict=True))
        return [(marks[tie.number], tie) for tie in self._ties(db)]

    def _new_ties(
        self, db: sqlite3.Connection, given: Sequence[Preference], chosen: Iterable[Preference], source: str
    ) -> list[RecordedTie]:
        """Those of the ties that compare what nothing was said of yet."""
        if not given:
            return []
        known = {comparison_of(p) for p in chosen} | {comparison_of(tie.pair) for tie in self._ties(db)}
        new: list[RecordedTie] = []
        for p in given:
            if p.tie and comparison_of(p) not in known:
                known.add(comparison_of(p))
                new.append(RecordedTie(0, replace(p, tie=""), p.tie, source, time.time()))
        return new

    @staticmethod
    def _marks(db: sqlite3.Connection, table: str) -> list[bytes]:
        sealed = db.execute(f"SELECT sealed FROM {table} ORDER BY number").fetchall()
        return [hashlib.sha256(row).digest()[:_MARK] for (row,) in sealed]

    def _destroy(self) -> None:
        """Destroy the keys of what was deleted: once that is durable, and while nobody records anything."""
        with self._transaction() as db:
            self._destroy_unused(db)

    def _destroy_unused(self, db: sqlite3.Connection) -> None:
        kept = ("sealed_choices", self._storage), ("sealed_ties", self._tie_storage)
        for table, storage in kept:
            slots = db.execute(f"SELECT substr(sealed, 1, 4) FROM {table}")
            storage.destroy_but(bytes(slot) for (slot,) in slots)

    def _sealed_since(self, db: sqlite3.Connection) -> int:
        """Seal what an earlier version kept in clear; -> user_version.

        Whatever user_version says: such a version makes the table anew in a file that was sealed.
        """
        (version,) = db.execute("PRAGMA user_version").fetchone()
        clear = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'choices'").fetchone()
        if version and not clear:
            return int(version)
        if clear:
            found = db.execute(
                "SELECT prompt, chosen, rejected, source, recorded FROM choices ORDER BY number"
            ).fetchall()
            known = {row.preference for row in self._rows(db)}
            rows = [Recorded(0, Preference(*row[:3]), *row[3:]) for row in found]
            rows = [row for row in rows if row.preference not in known]
            self._insert(db, rows)
            self._untie(db, rows)
            db.execute("DROP TABLE choices")  # secure_delete overwrites its pages
        version = _SEALED if clear else _DONE
        db.execute(f"PRAGMA user_version = {version}")
        return version

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """PERSIST: the journal's blocks are never released, so that they can be overwritten."""
        return transaction(self._path, DeviceError, "journal_mode=PERSIST", "secure_delete=ON")


def marks_of(marks: bytes) -> set[bytes]:
    """The single marks of `PreferenceStore.marks`."""
    return {marks[start : start + _MARK] for start in range(0, len(marks), _MARK)}


def held_out(preference: Preference) -> bool:
    """Whether this comparison, whichever side won, is kept aside."""
    low, high = sorted((preference.chosen, preference.rejected))
    return hashlib.sha256(_packed("held out", preference.prompt, low, high)).digest()[0] % HELD_OUT_OF == 0


def _refuse_repeated(said: Preference, others: Iterable[Preference]) -> None:
    """DataError where another one compares the same two responses."""
    if comparison_of(said) in map(comparison_of, others):
        raise DataError(
            "another choice or tie compares these two responses already; edit or delete that one, or write "
            "something else"
        )


def _turned(p: Preference) -> Preference:
    """The other way round; how strongly that is so nobody said."""
    return Preference(p.prompt, p.rejected, p.chosen)


def _packed(*texts: str) -> bytes:
    """Texts, each after its length: no two lists are packed alike."""
    parts = [text.encode() for text in texts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
