"""What a device must never lose and never tear: which attempts are burnt, and its personal factor.

One SQLite file in the agent's directory; every change is one transaction, durable before the method
returns. The personal factor of a round is *staged* while the round is open and *committed* when the
server next names that round and attempt as finished, so it always belongs to the same round as the
shared factors (docs/protocol.md#dropouts-liars-crashes).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penchant.client.vault import budget
from penchant.client.vault.budget import ALONE, RELEASED, DiskUse, Room
from penchant.client.vault.erasable import ErasableStorage
from penchant.client.vault.privacy_ledger import ANCHOR, LedgerAnchor, LedgerMark, PrivacyLedger
from penchant.client.vault.privacy_ledger import SCHEMA as PRIVACY_LEDGER
from penchant.client.vault.run_ledger import SCHEMA as RUN_LEDGER
from penchant.client.vault.run_ledger import RunLedger
from penchant.client.vault.sealing import SealedStorage
from penchant.common.errors import DeviceError, StageError
from penchant.common.printable import one_line
from penchant.common.storage import claim_schema, compact, overwrite_journal, transaction

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS burnt (
    run BLOB NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    unmasked INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (run, round, attempt)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS personal (
    run BLOB NOT NULL, state TEXT NOT NULL CHECK (state IN ('committed', 'staged')),
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, vector BLOB NOT NULL, context BLOB NOT NULL,
    kept REAL NOT NULL, PRIMARY KEY (run, state)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (
    number INTEGER PRIMARY KEY, stage TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sent (
    name TEXT PRIMARY KEY, times INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
"""

# burnt.unmasked: 0 open or over, 1 asked to unmask, 2 given up because the owner had choices forgotten.
# application_id: 0 in a new vault, or in one of a version that sealed all values under the device's key.
# user_version counts the changes of committed factors: who has read one can tell whether it is still current.

KEYS = "vault.keys"
_SLOTS = (
    "SELECT substr(vector, 1, 4) FROM personal UNION ALL SELECT substr(context, 1, 4) FROM personal"
    " UNION ALL SELECT substr(data, 1, 4) FROM blobs"
)
TOLD_MOST = 1000  # lines kept for the owner
_NOTHING, _LEARNED = "NOTHING", "LEARNED"  # of equal length: what a round's work came to
_REASON = 300  # bytes of a reason why it came to nothing


@dataclass(frozen=True)
class Personal:
    """A device's own factor after `round`. `vector`: float32 [d_personal].

    context: what the caller staged with it (the shared factors it belongs to), of the same round.
    """

    round: int
    vector: NDArray[np.float32]
    context: bytes = b""

    def __repr__(self) -> str:
        return f"Personal(round={self.round}, vector=<{self.vector.size} numbers>)"


@dataclass(frozen=True)
class Contributed:
    """What one run may have had of the choices that were recorded by then.

    Attributes:
        run: its id.
        rounds: for how many rounds a vector left; of a round that an earlier version was in, for how many the
            device helped to open the sum.
        rho: the cost of those in noised sums, in zero-concentrated differential privacy.
        exact: how many were for sums without noise, which no epsilon bounds.
    """

    run: bytes
    rounds: int
    rho: float
    exact: int


ReadBlob = Callable[[str], bytes]
"""What is kept under a name; empty if nothing is."""
BlobChange = Callable[[ReadBlob], Mapping[str, bytes]]
"""From what is kept to what is kept from then on, in one transaction; what it raises changes nothing."""


class Vault:
    """The durable part of one device's protocol state. Safe to open anew for every call.

    With a `storage`, the personal factor, what belongs to it and the blobs are sealed at rest, each under a
    key of its own in `vault.keys`, which is destroyed when the value is replaced or forgotten. A simulation,
    which holds everybody's choices anyway, does without.
    """

    def __init__(
        self,
        directory: Path,
        storage: SealedStorage | None = None,
        mark: LedgerMark | None = None,
        *,
        durable: bool = True,
    ) -> None:
        """Open or create the vault in `directory` (made if missing, readable by its owner only).

        mark: remembers outside the vault that there is a ledger of privacy.
        durable: False is for a simulation, whose devices all end with their machine: no transaction waits for
        the disk, so that a power cut, unlike a crash of the process, can damage the vault.
        """
        self._storage = None if storage is None else ErasableStorage(storage, directory / KEYS)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DeviceError(f"can't make the agent's directory {directory}: {error.strerror}") from None
        self._path, self._durable = directory / "vault.db", durable
        self._anchor = None if storage is None else LedgerAnchor(directory / ANCHOR, storage, self._path)
        self._mark = mark
        with self._transaction() as db:
            (mark,) = db.execute("PRAGMA application_id").fetchone()
            claim_schema(db, self._path, DeviceError, _SCHEMA_VERSION)
            for statement in (_SCHEMA + RUN_LEDGER + PRIVACY_LEDGER).split(";"):
                db.execute(statement)
            if storage is not None:
                if not mark:
                    self._seal_anew(db, storage)
                self.privacy.begin(db)
                self._destroy_unused(db)  # of a change that was broken off, or of a round that is over
        if storage is not None:
            storage.upgraded()

    @property
    def ledger(self) -> RunLedger:
        """Which runs the device was asked for, and how often it took part."""
        return RunLedger(self._transaction)

    @property
    def privacy(self) -> PrivacyLedger:
        """What taking part has cost in privacy."""
        return PrivacyLedger(self._transaction, self._anchor, self._mark)

    # --- attempts ------------------------------------------------------------------------------------

    def begin(
        self,
        run: bytes,
        round: int,
        attempt: int,
        finished: Sequence[tuple[int, int]],
        enter: Callable[[sqlite3.Connection], None] = lambda db: None,
        room: Room | None = None,
    ) -> None:
        """Settle what was staged, then burn (run, round, attempt): it can never be used again.

        enter: counts the attempt in the same transaction, or raises a refusal, and then nothing is changed.
        room: what the round will need on the disk; old runs' personal factors go for it.

        Raises StageError when it was burnt before, when an attempt of this round was already asked
        to unmask, or when the round is older than one this device has been in; PolicyRefusal or DeviceError
        when there is no room.
        """
        if run in (ALONE, RELEASED):
            raise StageError("a run has a name under which this device keeps what was trained without it")
        with self._transaction() as db:
            _refuse_used(db, run, round, attempt)
            enter(db)
            _settle(db, run, finished)
            if room is not None:
                budget.make_room(db, self._path, run, room)
            db.execute("INSERT INTO burnt (run, round, attempt) VALUES (?, ?, ?)", (run, round, attempt))

    def mark_unmasked(self, run: bytes, round: int, attempt: int) -> None:
        """Record, before the unmask reply leaves, that no other attempt of this round may start."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE burnt SET unmasked = 1 WHERE run = ? AND round = ? AND attempt = ? AND unmasked = 0",
                (run, round, attempt),
            )
            if done.rowcount != 1:
                raise StageError("this attempt was already asked to unmask, or never begun here")

    # --- the personal factor -------------------------------------------------------------------------

    def stage(
        self,
        run: bytes,
        round: int,
        attempt: int,
        vector: NDArray[np.float32],
        context: bytes = b"",
        *,
        why: str = "",
        charge: Callable[[sqlite3.Connection], None] = lambda db: None,
    ) -> None:
        """Keep `vector` (float32 [d_personal]) as the outcome of an open round, and `context` with it.

        why: for the owner, where the work made nothing that could be sent. What is written for it has the
        same size in any case, so that neither time nor room on the disk tells which it was.
        charge: enters what the round costs in privacy in the same transaction, or raises a refusal, and then
        nothing is changed.

        Raises StageError when the owner had choices forgotten since the round began.
        """
        numbers = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        with self._transaction() as db:
            (given_up,) = db.execute(
                "SELECT count(*) FROM burnt WHERE run = ? AND round = ? AND attempt = ? AND unmasked = 2",
                (run, round, attempt),
            ).fetchone()
            if given_up:
                raise StageError("the owner had choices forgotten while this round was open")
            charge(db)
            _tell(db, "masked", _NOTHING if why else _LEARNED, _filled(why))
            sealed = self._sealed((numbers, "personal"), (context, "context"))
            db.execute(
                "INSERT OR REPLACE INTO personal (run, state, round, attempt, vector, context, kept)"
                " VALUES (?, 'staged', ?, ?, ?, ?, ?)",
                (run, round, attempt, *sealed, time.time()),
            )

    def settle(self, run: bytes, finished: Sequence[tuple[int, int]]) -> None:
        """Commit the staged factor if its (round, attempt) is among `finished`, else drop it."""
        with self._transaction() as db:
            _settle(db, run, finished)

    def personal(self, run: bytes) -> Personal | None:
        """The committed factor of this run, if any round that this device was in has finished."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT round, vector, context FROM personal WHERE run = ? AND state = 'committed'", (run,)
            ).fetchone()
            return None if row is None else self._personal(*row)

    def latest(self) -> tuple[bytes, Personal] | None:
        """(run, factor) that was committed last, of any run."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT run, round, vector, context FROM personal WHERE state = 'committed'"
                " ORDER BY kept DESC LIMIT 1"
            ).fetchone()
            return None if row is None else (bytes(row[0]), self._personal(*row[1:]))

    def contexts(self) -> list[bytes]:
        """What was kept with the committed factor of each run."""
        with self._transaction() as db:
            rows = db.execute("SELECT round, vector, context FROM personal WHERE state = 'committed'")
            return [self._personal(*row).context for row in rows.fetchall()]

    def version(self) -> int:
        """A number that changes with every committed factor, and when all are forgotten."""
        with self._transaction() as db:
            return _version(db)

    def keep_personal(
        self, run: bytes, round: int, vector: NDArray[np.float32], context: bytes, *, version: int
    ) -> int:
        """Replace the committed factor of a run: the owner trained it on the device alone; -> `version` then.

        version: as it was before anything was read for the training. DeviceError when another process, the
        agent say, has changed what is committed since: that change is kept.
        """
        numbers = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        with self._transaction() as db:
            if _version(db) != version:
                raise DeviceError(
                    "the model on this device changed while this one was trained (a round finished, or all "
                    "was forgotten); that change is kept; train again if you like"
                )
            self._commit(db, run, round, numbers, context)
            kept_as = _version(db)
        self._destroy()
        return kept_as

    def keep_release(
        self, round: int, context: bytes, change: BlobChange, room: Room, *, version: int
    ) -> None:
        """Take a release's shared factors for the model in use, with an empty personal factor, and keep what
        is known of it: all of that, or nothing.

        context: as of `stage`. change: as of `change_blobs`. version: as of `keep_personal`. PolicyRefusal or
        DeviceError when there is no room.
        """
        with self._transaction() as db:
            if _version(db) != version:
                raise DeviceError("the model on this device changed meanwhile; fetch the release again")
            blobs = change(lambda name: self._blob(db, name))
            budget.make_room(db, self._path, RELEASED, room)
            self._commit(db, RELEASED, round, b"", context)
            self._keep_blobs(db, blobs)
        self._destroy()

    def prune(self, runs: int) -> None:
        """Keep the personal factors of the newest `runs` runs, and give the disk back what is not used."""
        with self._transaction() as db:
            budget.prune(db, runs)
            worth = budget.worth_compacting(db)
        self._destroy()
        if worth:
            compact(self._path, DeviceError)

    def disk_use(self) -> DiskUse:
        """What this device's directory takes on the disk."""
        with self._transaction() as db:
            return budget.disk_use(db, self._path.parent)

    def rounds(self) -> list[tuple[bytes, int, bool]]:
        """(run, round, went as far as unmasking) of every attempt this device was in."""
        with self._transaction() as db:
            rows = db.execute("SELECT run, round, unmasked FROM burnt ORDER BY run, round, attempt")
            return [(bytes(run), int(number), unmasked == 1) for run, number, unmasked in rows]

    def contributed(self) -> list[Contributed]:
        """What left, by run, the latest last. LedgerError when the ledger was set back."""
        entries = self.privacy.entries()
        places = {(entry.run, entry.round) for entry in entries}
        earlier = {(run, number) for run, number, opened in self.rounds() if opened} - places
        runs = dict.fromkeys([*sorted({run for run, _ in earlier}), *(entry.run for entry in entries)])
        return [
            Contributed(
                run,
                rounds=sum(place[0] == run for place in places | earlier),
                rho=sum(entry.cost for entry in entries if entry.run == run),
                exact=sum(entry.run == run and not entry.rho for entry in entries)
                + sum(place[0] == run for place in earlier),
            )
            for run in runs
        ]

    def forget_learned(self) -> None:
        """Delete all that was learned from choices, and destroy the keys that it was ever sealed under: the
        personal factors of every run, and what the owner was told of training. Open attempts are given up.

        Of the model that was in use its shared factors stay, with an empty personal factor.
        """
        with self._transaction() as db:
            _give_up(db)
            latest = db.execute(
                "SELECT run, round, context FROM personal WHERE state = 'committed'"
                " ORDER BY kept DESC LIMIT 1"
            ).fetchone()
            db.execute("DELETE FROM personal")
            db.execute("DELETE FROM told WHERE code IN (?, ?)", (_NOTHING, _LEARNED))
            now = _changed(db)
            if latest is not None:
                run, number, context = latest
                (belonging,) = self._opened((context, "context"))
                sealed = self._sealed((b"", "personal"), (belonging, "context"))
                db.execute(
                    "INSERT INTO personal (run, state, round, attempt, vector, context, kept)"
                    " VALUES (?, 'committed', ?, 0, ?, ?, ?)",
                    (run, number, *sealed, now),
                )
        self._destroy()
        overwrite_journal(self._path, DeviceError)

    def give_up_open(self) -> None:
        """Nothing will come of the attempts that are open, or of what they have staged."""
        with self._transaction() as db:
            _give_up(db)
            db.execute("DELETE FROM personal WHERE state = 'staged'")
        self._destroy()

    def forget(self) -> None:
        """Delete all personal factors and blobs, and destroy the keys that they were ever sealed under.
        Attempts that were used stay used, and those that were open are given up: they will have no result."""
        with self._transaction() as db:
            _changed(db)
            _give_up(db)
            db.execute("DELETE FROM sent")
            db.execute("DELETE FROM personal")
            db.execute("DELETE FROM blobs")
            db.execute("DELETE FROM told")
        self._destroy()
        overwrite_journal(self._path, DeviceError)

    # --- what the agent remembers ------------------------------------------------------------------

    def keep_blob(self, name: str, data: bytes) -> None:
        """Keep `data` under `name` in the place of what was there."""
        self.keep_blobs({name: data})

    def keep_blobs(self, blobs: Mapping[str, bytes]) -> None:
        """Keep each blob under its name in the place of what was there: all of them, or none."""
        with self._transaction() as db:
            self._keep_blobs(db, blobs)
        self._destroy()

    def change_blobs(self, change: BlobChange) -> None:
        """Keep what `change` makes of the blobs that are there, while no other process changes any."""
        with self._transaction() as db:
            self._keep_blobs(db, change(lambda name: self._blob(db, name)))
        self._destroy()

    def blob(self, name: str) -> bytes:
        """What was kept under `name`; empty if nothing was."""
        with self._transaction() as db:
            return self._blob(db, name)

    def tell_owner(self, stage: str, code: str, reason: str) -> None:
        """Note for the owner why something was refused; the newest are kept."""
        with self._transaction() as db:
            _tell(db, stage, code, reason)

    def note_sent(self, parts: Sequence[tuple[str, int]]) -> None:
        """Count what is about to leave: (name, bytes) of each part of a message."""
        with self._transaction() as db:
            for name, size in parts:
                db.execute(
                    "INSERT INTO sent (name, times, bytes) VALUES (?, 1, ?)"
                    " ON CONFLICT (name) DO UPDATE SET times = times + 1, bytes = bytes + excluded.bytes",
                    (name, size),
                )

    def sent(self) -> list[tuple[str, int, int]]:
        """(name, count, total bytes) of everything that ever left the device."""
        with self._transaction() as db:
            rows = db.execute("SELECT name, times, bytes FROM sent ORDER BY name")
            return [(str(name), int(times), int(size)) for name, times, size in rows]

    def refusals(self) -> list[tuple[str, str, str]]:
        """(stage, code, reason) of what was refused, and of work that made nothing, oldest first."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT stage, code, reason FROM told WHERE code != ? ORDER BY number", (_LEARNED,)
            )
            return [(stage, code, reason.rstrip(" ")) for stage, code, reason in rows]

    # --- simulation only -----------------------------------------------------------------------------

    def rewind(self, run: bytes, round: int) -> None:
        """Forget every round after `round`. Only a simulator may: there the world itself is restored.

        A real device outlives its server and never forgets a burnt attempt.
        """
        with self._transaction() as db:
            db.execute("DELETE FROM burnt WHERE run = ? AND round > ?", (run, round))
            db.execute("DELETE FROM taken WHERE run = ? AND round > ?", (run, round))
            db.execute("DELETE FROM spent WHERE run = ? AND round > ?", (run, round))
            db.execute("DELETE FROM personal WHERE run = ? AND round > ?", (run, round))

    # --- writing -------------------------------------------------------------------------------------

    def _commit(self, db: sqlite3.Connection, run: bytes, round: int, numbers: bytes, context: bytes) -> None:
        """Replace the committed factor of a run, which is in use from now on."""
        sealed = self._sealed((numbers, "personal"), (context, "context"))
        db.execute(
            "INSERT OR REPLACE INTO personal (run, state, round, attempt, vector, context, kept)"
            " VALUES (?, 'committed', ?, 0, ?, ?, ?)",
            (run, round, *sealed, _changed(db)),
        )

    def _keep_blobs(self, db: sqlite3.Connection, blobs: Mapping[str, bytes]) -> None:
        sealed = self._sealed(*((data, f"blob {name}") for name, data in blobs.items()))
        db.executemany(
            "INSERT OR REPLACE INTO blobs (name, data) VALUES (?, ?)", zip(blobs, sealed, strict=True)
        )

    def _blob(self, db: sqlite3.Connection, name: str) -> bytes:
        row = db.execute("SELECT data FROM blobs WHERE name = ?", (name,)).fetchone()
        return b"" if row is None else self._opened((bytes(row[0]), f"blob {name}"))[0]

    # --- sealing -------------------------------------------------------------------------------------

    def _personal(self, round: int, vector: bytes, context: bytes) -> Personal:
        numbers, belonging = self._opened((vector, "personal"), (context, "context"))
        return Personal(round, np.frombuffer(numbers, dtype="<f4").copy(), belonging)

    def _sealed(self, *values: tuple[bytes, str]) -> list[bytes]:
        return [data for data, _ in values] if self._storage is None else self._storage.seal(values)

    def _opened(self, *values: tuple[bytes, str]) -> list[bytes]:
        return [data for data, _ in values] if self._storage is None else self._storage.open(values)

    def _destroy(self) -> None:
        """Destroy the keys of what was replaced or deleted: once that is durable, and while nobody writes."""
        if self._storage is not None:
            with self._transaction() as db:
                self._destroy_unused(db)

    def _destroy_unused(self, db: sqlite3.Connection) -> None:
        if self._storage is not None:
            self._storage.destroy_but(bytes(slot) for (slot,) in db.execute(_SLOTS).fetchall())

    def _seal_anew(self, db: sqlite3.Connection, storage: SealedStorage) -> None:
        """Give each value a key of its own: earlier versions sealed all of them under the device's key."""
        old = storage if storage.before is None else storage.before
        for run, state, *sealed in db.execute("SELECT run, state, vector, context FROM personal").fetchall():
            both = zip(sealed, ("personal", "context"), strict=True)
            values = self._sealed(*((old.open(data, purpose), purpose) for data, purpose in both))
            where = "WHERE run = ? AND state = ?"
            db.execute(f"UPDATE personal SET vector = ?, context = ? {where}", (*values, run, state))
        for name, data in db.execute("SELECT name, data FROM blobs").fetchall():
            purpose = f"blob {name}"
            (value,) = self._sealed((old.open(data, purpose), purpose))
            db.execute("UPDATE blobs SET data = ? WHERE name = ?", (value, name))

    # --- SQLite --------------------------------------------------------------------------------------

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """PERSIST is as durable as DELETE and needs no directory update for every commit; what it leaves in
        the journal's file can be overwritten, because its blocks are never released."""
        pragmas = ("journal_mode=PERSIST", "secure_delete=ON")
        return transaction(self._path, DeviceError, *pragmas, durable=self._durable)


def _give_up(db: sqlite3.Connection) -> None:
    db.execute("UPDATE burnt SET unmasked = 2 WHERE unmasked = 0")


def _refuse_used(db: sqlite3.Connection, run: bytes, round: int, attempt: int) -> None:
    newest, unmasked, same = db.execute(
        "SELECT coalesce(max(round), 0), coalesce(max(round = ? AND unmasked), 0),"
        " coalesce(max(round = ? AND attempt >= ?), 0) FROM burnt WHERE run = ?",
        (round, round, attempt, run),
    ).fetchone()
    if round < newest:
        raise StageError(f"round {round} is over: this device has been in round {newest}")
    if unmasked:
        raise StageError(f"round {round} was already unmasked; no other attempt of it is accepted")
    if same:
        raise StageError(f"attempt {attempt} of round {round} was already used")


def _tell(db: sqlite3.Connection, stage: str, code: str, reason: str) -> None:
    db.execute("INSERT INTO told (stage, code, reason) VALUES (?, ?, ?)", (stage, code, reason))
    db.execute("DELETE FROM told WHERE number <= (SELECT max(number) FROM told) - ?", (TOLD_MOST,))


def _filled(why: str) -> str:
    """A reason of _REASON bytes, cut or filled up with spaces."""
    cut = one_line(why).encode()[:_REASON].decode(errors="ignore")
    return cut + " " * (_REASON - len(cut.encode()))


def _settle(db: sqlite3.Connection, run: bytes, finished: Sequence[tuple[int, int]]) -> None:
    row = db.execute(
        "SELECT round, attempt FROM personal WHERE run = ? AND state = 'staged'", (run,)
    ).fetchone()
    if row is None:
        return
    if tuple(row) in set(finished):
        db.execute(
            "INSERT OR REPLACE INTO personal (run, state, round, attempt, vector, context, kept)"
            " SELECT run, 'committed', round, attempt, vector, context, ? FROM personal"
            " WHERE run = ? AND state = 'staged'",
            (_changed(db), run),
        )
    db.execute("DELETE FROM personal WHERE run = ? AND state = 'staged'", (run,))


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _changed(db: sqlite3.Connection) -> float:
    """Note that what is committed changes; -> a time later than all before, whatever the clock says."""
    db.execute(f"PRAGMA user_version = {(_version(db) + 1) % 2**31}")
    (newest,) = db.execute("SELECT coalesce(max(kept), 0) FROM personal").fetchone()
    return max(time.time(), float(newest) + 1e-3)
