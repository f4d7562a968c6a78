"""The enrolment authority: apart from the server, offline if wanted. What it takes and gives are files.

Its directory holds the signing key (sealed under a passphrase where one is given) and a SQLite record of whom
it certified and revoked. A device makes its own key pair and hands in a *request* (public key, signed by
itself); the authority answers with a certificate and its current member list. Devices and server refuse a
list that is older than one they have seen, so whoever publishes is the one place where numbers are given.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from penchant.common.crypto.passphrase import RECOMMENDED, ScryptCost, refuse_weak
from penchant.common.durations import DAY
from penchant.common.errors import AgreementError, MembershipError, UsageError
from penchant.common.membership.enrolment import Answer, Request
from penchant.common.membership.identity import CLOCK_SKEW, Authority, Member, authority_digest
from penchant.common.membership.manifest import RunManifest, RunRequest, SignedManifest, sign_run
from penchant.common.membership.release_manifest import (
    ReleaseContents,
    ReleaseManifest,
    ReleaseRequest,
    SignedRelease,
    sign_release,
)
from penchant.common.printable import is_printable
from penchant.common.storage import claim_schema, transaction
from penchant.common.wire.codec import decode_record
from penchant.deploy.fleet.signed_before import SignedBefore

__all__ = ["AuthorityStore", "Enrolled", "refuse_existing", "refuse_missing"]

KEY = "authority.pem"
PUBLIC = "authority.pub"  # 32 bytes, for the server
RECORD = "authority.db"
VALID_DAYS = 30

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS members (
    number INTEGER PRIMARY KEY AUTOINCREMENT, public_key BLOB NOT NULL UNIQUE, name TEXT NOT NULL,
    issued INTEGER NOT NULL, revoked INTEGER, why TEXT);
CREATE TABLE IF NOT EXISTS lists (
    number INTEGER PRIMARY KEY, issued INTEGER NOT NULL, expires INTEGER NOT NULL, encoded BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    run BLOB PRIMARY KEY, name TEXT NOT NULL, manifest BLOB NOT NULL, signed INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS releases (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, contents BLOB NOT NULL,
    signed INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Enrolled:
    """One member as the authority knows it. Times are Unix seconds."""

    number: int
    name: str
    issued: int
    revoked: int | None
    why: str
    public_key: bytes = field(repr=False)


class AuthorityStore:
    """An authority, with its key and its record in a directory."""

    def __init__(
        self, directory: Path, passphrase: str | None = None, *, cost: ScryptCost = RECOMMENDED
    ) -> None:
        """Open it. Raises UsageError when there is none, or the passphrase is wrong.

        A key that an earlier version sealed at a lower cost is sealed anew. cost: of a guess at a passphrase.
        """
        refuse_missing(directory)
        self.directory = directory
        self.authority = Authority.load(directory / KEY, passphrase)
        if passphrase is not None and Authority.is_old(directory / KEY, cost):
            self.authority.reseal(directory / KEY, passphrase, cost)
        with self._record() as db:
            claim_schema(db, directory / RECORD, UsageError, _SCHEMA_VERSION)
            for statement in _SCHEMA.split(";"):
                db.execute(statement)

    @classmethod
    def init(
        cls,
        directory: Path,
        passphrase: str | None = None,
        *,
        now: int | None = None,
        cost: ScryptCost = RECOMMENDED,
    ) -> AuthorityStore:
        """A new authority with an empty list 1. An existing one is never replaced: UsageError.

        passphrase: what seals its key; without one, whoever reads the key's file is the authority. A weak one
        is refused.
        """
        if passphrase is not None:
            refuse_weak(passphrase)
        refuse_existing(directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        Authority.create().save(directory / KEY, passphrase, cost)
        authority_store = cls(directory, passphrase, cost=cost)
        (directory / PUBLIC).write_bytes(authority_store.authority.public_key)
        authority_store.publish(now=now)
        return authority_store

    def protect(self, passphrase: str, *, cost: ScryptCost = RECOMMENDED) -> None:
        """Keep the key under another passphrase, or its first. UsageError for a weak one."""
        refuse_weak(passphrase)
        self.authority.reseal(self.directory / KEY, passphrase, cost)

    @property
    def digest(self) -> bytes:
        """32 bytes that devices get by another way than the server: in their join token."""
        return authority_digest(self.authority.public_key)

    def issue(self, asked: Request, name: str = "", *, now: int | None = None) -> Answer:
        """Certify a device, publish the list that it is on, and answer.

        A key that is certified already gets the same number. MembershipError when it was revoked, UsageError
        for a name that can't be shown.
        """
        if not is_printable(name):
            raise UsageError("a member's name must be one line of printable characters")
        moment = _now(now)
        with self._record() as db:
            row = db.execute(
                "SELECT number, revoked FROM members WHERE public_key = ?", (asked.public_key,)
            ).fetchone()
            if row is not None and row[1] is not None:
                raise MembershipError(f"member {row[0]} was revoked; a device comes back with a new key only")
            if row is None:
                made = db.execute(
                    "INSERT INTO members (public_key, name, issued) VALUES (?, ?, ?)",
                    (asked.public_key, name, moment),
                )
                row = (made.lastrowid, None)
        certificate = self.authority.issue(int(row[0]), asked.public_key)
        return Answer(self.authority.public_key, certificate, self.publish(now=moment))

    def revoke(self, number: int, why: str = "", *, now: int | None = None) -> bytes:
        """Take a member out, for good; -> the new list. UsageError when there is no such member, or for a
        reason that can't be shown."""
        if not is_printable(why):
            raise UsageError("the reason must be one line of printable characters")
        with self._record() as db:
            done = db.execute(
                "UPDATE members SET revoked = ?, why = ? WHERE number = ? AND revoked IS NULL",
                (_now(now), why, number),
            )
            if done.rowcount != 1:
                raise UsageError(f"there is no member {number} that could be revoked")
        return self.publish(now=now)

    def publish(self, *, days: int = VALID_DAYS, now: int | None = None) -> bytes:
        """Sign the next list, valid for `days`; -> its bytes, for server and devices."""
        if not 1 <= days <= 3650:
            raise UsageError(f"a list valid for {days} days; between 1 and 3650 make sense")
        moment = _now(now)
        with self._record() as db:
            (number,) = db.execute("SELECT coalesce(max(number), 0) + 1 FROM lists").fetchone()
            rows = db.execute("SELECT number, public_key, revoked FROM members ORDER BY number").fetchall()
            listed = self.authority.publish(
                int(number),
                [Member(int(n), bytes(key)) for n, key, revoked in rows if revoked is None],
                revoked=[int(n) for n, _, revoked in rows if revoked is not None],
                issued=moment,
                expires=moment + days * DAY,
            )
            encoded = listed.encode()
            db.execute(
                "INSERT INTO lists (number, issued, expires, encoded) VALUES (?, ?, ?, ?)",
                (number, listed.issued, listed.expires, encoded),
            )
        return encoded

    def sign_run(self, asked: RunRequest, *, now: int | None = None) -> SignedManifest:
        """Sign the manifest of a run. The same one again gets the same signature.

        AgreementError when another manifest of this run was signed before.
        """
        signed = sign_run(self.authority, asked.manifest)
        with self._record() as db:
            row = db.execute("SELECT manifest FROM runs WHERE run = ?", (asked.manifest.run,)).fetchone()
            if row is not None and bytes(row[0]) != asked.manifest.encode():
                raise AgreementError("another manifest of this run was signed before; start a new run")
            if row is None:
                db.execute(
                    "INSERT INTO runs (run, name, manifest, signed) VALUES (?, ?, ?, ?)",
                    (asked.manifest.run, asked.name, asked.manifest.encode(), _now(now)),
                )
        return signed

    def has_signed(self, run: bytes) -> bool:
        """Whether a manifest of this run was signed before."""
        with self._record() as db:
            return db.execute("SELECT 1 FROM runs WHERE run = ?", (run,)).fetchone() is not None

    def signed_since(self, moment: int) -> int:
        """How many runs were signed since a moment, in Unix seconds."""
        with self._record() as db:
            return int(db.execute("SELECT count(*) FROM runs WHERE signed >= ?", (moment,)).fetchone()[0])

    def sign_release(self, asked: ReleaseRequest, *, now: int | None = None) -> SignedRelease:
        """Sign a release, with the next number. The same request again gets the same signature.

        AgreementError when it contradicts itself, when it is of another fleet or of the future, when its run
        was never signed or had another base model or plan, when another request of the same id was signed
        before, or when it takes devices back without saying so (`SignedBefore`).
        """
        contents, moment = asked.contents, _now(now)
        with self._record() as db:
            row = self._release_row(db, asked)
            if row is None:
                self._checked_release(db, contents, moment)
                made = db.execute(
                    "INSERT INTO releases (id, contents, signed) VALUES (?, ?, ?)",
                    (contents.id, asked.encode(), moment),
                )
                row = int(made.lastrowid or 0), b"", moment
            return sign_release(self.authority, ReleaseManifest(int(row[0]), int(row[2]), contents))

    def release_lines(self, asked: ReleaseRequest, *, now: int | None = None) -> tuple[str, ...] | None:
        """What a release is, a line each, and how it stands to those that were signed before; None where this
        very request was. AgreementError as of `sign_release`: nobody need be asked then."""
        with self._record() as db:
            if self._release_row(db, asked) is not None:
                return None
            before = self._checked_release(db, asked.contents, _now(now))
        return (*asked.contents.lines(), *before.lines(asked.contents))

    def _release_row(self, db: sqlite3.Connection, asked: ReleaseRequest) -> tuple[int, bytes, int] | None:
        """(number, request, Unix seconds) of this request, if it was signed before."""
        row: tuple[int, bytes, int] | None = db.execute(
            "SELECT sequence, contents, signed FROM releases WHERE id = ?", (asked.contents.id,)
        ).fetchone()
        if row is not None and bytes(row[1]) != asked.encode():
            raise AgreementError("another release with this id was signed before; promote it again")
        return row

    def _checked_release(
        self, db: sqlite3.Connection, contents: ReleaseContents, moment: int
    ) -> SignedBefore:
        """What was signed before a release that may be signed now."""
        contents.check()
        if contents.fleet != self.digest:
            raise AgreementError("the release is another fleet's")
        if contents.promoted > 1000 * (moment + CLOCK_SKEW):
            raise AgreementError("the release is of the future: set this machine's clock, or the server's")
        contents.check_run(_signed_run(db, contents.run))
        before = SignedBefore.of(db)
        before.refuse_unsaid(contents)
        return before

    def knows(self, public_key: bytes) -> int | None:
        """The number of the member with this key, revoked or not; None when it was never certified."""
        with self._record() as db:
            row = db.execute("SELECT number FROM members WHERE public_key = ?", (public_key,)).fetchone()
        return None if row is None else int(row[0])

    def latest(self) -> bytes:
        """The list published last."""
        with self._record() as db:
            row = db.execute("SELECT encoded FROM lists ORDER BY number DESC LIMIT 1").fetchone()
        return bytes(row[0])

    def members(self) -> list[Enrolled]:
        """Everybody ever certified, in order."""
        with self._record() as db:
            rows = db.execute(
                "SELECT number, name, issued, revoked, coalesce(why, ''), public_key FROM members"
                " ORDER BY number"
            )
            return [Enrolled(*row) for row in rows]

    def _record(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self.directory / RECORD, UsageError)


def refuse_missing(directory: Path) -> None:
    """UsageError unless there is an authority in `directory`."""
    if not (directory / KEY).is_file():
        raise UsageError(f"{directory} holds no authority; make one with `penchant authority init`")


def refuse_existing(directory: Path) -> None:
    """UsageError if there is an authority in `directory`."""
    if (directory / KEY).exists():
        raise UsageError(f"{directory / KEY} exists already: an authority's key is not replaced")


def _signed_run(db: sqlite3.Connection, run: bytes) -> RunManifest:
    row = db.execute("SELECT manifest FROM runs WHERE run = ?", (run,)).fetchone()
    if row is None:
        raise AgreementError("the release is of a run that this authority has not signed")
    return decode_record(bytes(row[0]), RunManifest)


def _now(now: int | None) -> int:
    return int(time.time()) if now is None else now
