"""The enrolment registry: which tokens are out, who used them, what the authority said, whose node may in.

A request with a good token becomes a file in `requests/`; the authority's answer comes back as a file in
`answers/`, by whatever way: a folder that both see, a copy, a stick. The registry checks the answer as the
device will, takes over its member list, and has the device's node known to the SuperLink. Revoked members'
nodes are unregistered. Everything is in one SQLite file; `EnrolmentRegistry` may be opened for every call, by
several processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from penchant.common.durations import DAY
from penchant.common.errors import (
    EnrolmentError,
    JournalError,
    OlderList,
    PenchantError,
    SharedFileError,
    TokenError,
    UsageError,
)
from penchant.common.membership.enrolment import (
    Answer,
    JoinReply,
    JoinRequest,
    LeaveNotice,
    NamedRequest,
    Request,
    fingerprint,
)
from penchant.common.membership.identity import Membership
from penchant.common.membership.join_token import JoinToken, Terms, check_signature, token_name
from penchant.common.membership.manifest import MAX_RUN_REQUEST, RunRequest
from penchant.common.membership.release_manifest import MAX_RELEASE, ReleaseAsk
from penchant.common.printable import is_printable, one_line
from penchant.common.storage import claim_schema, transaction
from penchant.common.wire.messages import MAX_MANIFEST, MAX_MEMBERSHIP
from penchant.deploy.fleet import release_signature, run_signature
from penchant.deploy.fleet.declined_request import SAID_MOST, DeclinedRequest
from penchant.deploy.fleet.recorded_acts import recorded
from penchant.deploy.fleet.server_directory import MEMBERS, ServerDirectory
from penchant.deploy.fleet.shared_folder import SharedFolder, opened, strict_json

__all__ = [
    "DATABASE",
    "DAYS",
    "EnrolmentRegistry",
    "IssuedToken",
    "Registrar",
    "hand_out",
    "request_revocation",
]

log = logging.getLogger(__name__)

DATABASE = "enrolment.db"
ANSWER_MOST = MAX_MEMBERSHIP + 1024  # bytes
_NOT_DEVICES = ("run-", "release-", "revoke-")  # how answers begin that are about no device's request
NONCE = "nonce"  # what tells a request for a revocation from an earlier one
NAME_MOST = 100
READ_SECONDS = 5.0  # for another process's transaction; a SuperNode whose look takes longer asks again

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    public_key BLOB PRIMARY KEY, name TEXT NOT NULL, address TEXT NOT NULL, handed_out INTEGER NOT NULL,
    expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS enrolments (
    token BLOB PRIMARY KEY, identity BLOB NOT NULL UNIQUE, node_key BLOB NOT NULL UNIQUE,
    request BLOB NOT NULL, asked INTEGER NOT NULL, answer BLOB, member INTEGER, node TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS declined (token BLOB PRIMARY KEY, why TEXT NOT NULL) WITHOUT ROWID;
"""


class Registrar(Protocol):
    """The SuperLink's list of nodes that may connect (`superlink.Control`)."""

    def register(self, public_key: bytes, name: str) -> int:
        """Let the node with this key (PEM) connect; -> its id. The same key again gives the same id."""

    def unregister(self, node: int) -> None:
        """Let it connect no more. A node that is not known is fine."""


@dataclass(frozen=True)
class IssuedToken:
    """One token and what became of it. Times are Unix seconds.

    state: "open", "expired", "waiting" for the authority, "declined" by it, "enrolled", or "out": not on the
    latest list.
    """

    token: str
    name: str
    handed_out: int
    expires: int
    state: str
    member: int | None
    node: int | None
    fingerprint: str  # of the request, to compare with what the device shows


class EnrolmentRegistry:
    """The registry of one server."""

    def __init__(self, server_directory: ServerDirectory) -> None:
        self.server_directory = server_directory
        self._path = server_directory.path / DATABASE
        self._list: tuple[object, Membership] | None = None  # (what the file was, the member list in it)
        self._taken: dict[str, bytes] = {}  # answers taken over that can't be removed
        self._left: set[str] = set()  # bad ones that can't be put aside: they are said once
        with self._record() as db:
            claim_schema(db, self._path, JournalError, SCHEMA_VERSION)
            for statement in _SCHEMA.split(";"):
                db.execute(statement)

    def hand_out(self, public_key: bytes, terms: Terms, name: str, *, now: float) -> None:
        """Remember a token by its public key. UsageError for a name that is too long."""
        if len(name.encode()) > NAME_MOST or not is_printable(name):
            raise UsageError(f"a device's name has at most {NAME_MOST} printable characters")
        with self._record() as db:
            db.execute(
                "INSERT INTO tokens (public_key, name, address, handed_out, expires) VALUES (?, ?, ?, ?, ?)",
                (public_key, name, terms.address, int(now), terms.expires),
            )

    def withdraw(self, name: str) -> None:
        """Take back the token of this name, and the request that came with it, before the authority answers.

        A device that comes with it later is told that there is no such token. UsageError when there is none,
        or a member joined with it.
        """
        with self._record() as db:
            rows = db.execute(
                "SELECT t.public_key, e.token, e.member FROM tokens t"
                " LEFT JOIN enrolments e ON e.token = t.public_key"
            ).fetchall()
            found = next((row for row in rows if token_name(bytes(row[0])) == name), None)
            if found is None:
                raise UsageError(f"there is no token {name!r}; `penchant server invite DIR --list` shows all")
            key, asked, member = found
            if member is not None:
                raise UsageError(f"member {member} joined with token {name}; ask for its revocation instead")
            db.execute("DELETE FROM enrolments WHERE token = ?", (key,))
            db.execute("DELETE FROM declined WHERE token = ?", (key,))
            db.execute("DELETE FROM tokens WHERE public_key = ?", (key,))
        if asked is not None:
            self._remove_request(f"{name}.request")

    # --- a device asks -------------------------------------------------------------------------------

    def ask(self, request: JoinRequest, registrar: Registrar, *, now: float | None = None) -> JoinReply:
        """Take a device's request, or repeat what came of it.

        The same device may ask as often as it likes: it gets the same answer. Raises TokenError for a token
        that is unknown, past its date, changed, or used by another device; CertificateError for a request
        that its key did not sign; EnrolmentError when the node's key is not a valid key or is already in use,
        when the member was revoked, or when the authority declined.
        """
        moment = time.time() if now is None else now
        with self._record() as db:
            known = self._token(db, request)
            _refuse_declined(db, request.token)
            Request.decode(request.asked.encode())
            _check_node_key(request.node_key)
            row = db.execute(
                "SELECT identity, node_key FROM enrolments WHERE token = ?", (request.token,)
            ).fetchone()
            if row is None:
                self._first(db, request, known, moment)
            elif (bytes(row[0]), bytes(row[1])) != (request.asked.public_key, request.node_key):
                raise TokenError("this token was used by another device; ask the operator for a new one")
        self.collect(registrar)
        return self._reply(request)

    def _token(self, db: sqlite3.Connection, request: JoinRequest) -> tuple[str, int]:
        """(name, expires) of the token of a request whose signature holds."""
        row = db.execute(
            "SELECT name, address, expires FROM tokens WHERE public_key = ?", (request.token,)
        ).fetchone()
        if row is None:
            raise TokenError("this server handed out no such token")
        terms = Terms(
            str(row[1]), self.server_directory.ca_digest, self.server_directory.authority_digest, int(row[2])
        )
        check_signature(terms, request)
        return str(row[0]), int(row[2])

    def _first(
        self, db: sqlite3.Connection, request: JoinRequest, known: tuple[str, int], now: float
    ) -> None:
        name, expires = known
        if now >= expires:
            raise TokenError("this token is past its date; ask the operator for a new one")
        try:
            db.execute(
                "INSERT INTO enrolments (token, identity, node_key, request, asked) VALUES (?, ?, ?, ?, ?)",
                (request.token, request.asked.public_key, request.node_key, request.asked.encode(), int(now)),
            )
        except sqlite3.IntegrityError:
            raise EnrolmentError(
                "a key of this device is enrolled already; a device joins again with new keys"
            ) from None
        with opened(self.server_directory.requests, writes=True) as requests:
            requests.write(f"{token_name(request.token)}.request", NamedRequest(name, request.asked).encode())

    def _reply(self, request: JoinRequest) -> JoinReply:
        with self._record() as db:
            _refuse_declined(db, request.token)
            answer, member, node = db.execute(
                "SELECT answer, member, node FROM enrolments WHERE token = ?", (request.token,)
            ).fetchone()
        if answer is None:
            return JoinReply(b"")
        membership = self.server_directory.membership()
        if not membership.holds(int(member)):
            raise EnrolmentError(f"member {member} is not in this fleet any more")
        if node is None:  # the SuperLink is not up: the device would not get in
            return JoinReply(b"")
        given = Answer.decode(bytes(answer), self.server_directory.authority_digest)
        return JoinReply(Answer(given.authority, given.certificate, membership.encoded).encode())

    # --- a device leaves -----------------------------------------------------------------------------

    def left(self, notice: bytes) -> int:
        """A member says that its owner left: the authority is asked to revoke it; -> the member number.

        Until it has, the list stands. The same notice again changes nothing, and neither does that of a
        member who was revoked before. Raises CodecError or CertificateError for a notice that no member of
        this fleet signed, EnrolmentError for somebody who never was one.
        """
        said = LeaveNotice.decode(notice, self.server_directory.authority_digest)
        out = self._out(said.public_key)
        if out is not None:
            return out
        number = self._member_with(said.public_key)
        with suppress(UsageError):  # it is asked for already
            request_revocation(self.server_directory.path, number, "its owner left the fleet")
        return number

    def _out(self, public_key: bytes) -> int | None:
        """The number of the member who had this key and is on the list no more; None for anybody else."""
        with self._record() as db:
            query = "SELECT member FROM enrolments WHERE identity = ? AND member IS NOT NULL"
            row = db.execute(query, (public_key,)).fetchone()
        return None if row is None or self._known().holds(int(row[0])) else int(row[0])

    def _member_with(self, public_key: bytes) -> int:
        """The number of the member with this key now. EnrolmentError where there is none."""
        listed = self._known().current
        members = () if listed is None else listed.members
        number = next((member.number for member in members if member.public_key == public_key), None)
        if number is None:
            raise EnrolmentError("no member of this fleet has that key")
        return number

    # --- a device fetches a release ------------------------------------------------------------------

    def asked_release(self, body: bytes, *, now: float) -> tuple[int, bytes | Path]:
        """(the member who asks, what it gets): the encoded offer, or the file with a release's numbers.

        Raises CodecError or CertificateError for a request that no device of this fleet signed just now,
        EnrolmentError for somebody who is no member now, or for numbers that are not offered.
        """
        ask = ReleaseAsk.decode(body, self.server_directory.authority_digest, now)
        number = self._member_with(ask.public_key)
        if not ask.factors:
            return number, release_signature.offer(self.server_directory).encode()
        path = release_signature.factors_file(self.server_directory, ask.factors)
        if path is None:
            raise EnrolmentError("this release is not offered any more; fetch it again")
        return number, path

    # --- the authority answers -----------------------------------------------------------------------

    def collect(self, registrar: Registrar) -> None:
        """Take over what lies in `answers/`, then bring the SuperLink's nodes in line with the member list.

        What is not the authority's is put aside as NAME.refused, and said in the log.
        """
        with opened(self.server_directory.answers) as answers:
            for pattern, take, most in (
                ("*.answer", self._take_answer, ANSWER_MOST),
                ("run-*.manifest", self._take_manifest, MAX_MANIFEST),
                ("run-*.declined", self._take_declined, SAID_MOST),
                ("release-*.manifest", self._take_release, MAX_RELEASE),
                ("release-*.declined", self._take_declined_release, SAID_MOST),
                (MEMBERS, self._take_members, MAX_MEMBERSHIP),
                ("revoke-*.declined", self._take_declined_revocation, SAID_MOST),
                ("*.declined", self._take_declined_request, SAID_MOST),
                ("*.rejected", self._take_rejected, SAID_MOST),
            ):
                for name in answers.names(pattern):
                    if pattern == "*.declined" and name.startswith(_NOT_DEVICES):
                        continue
                    self._take(answers, name, take, most)
            self._taken = {name: digest for name, digest in self._taken.items() if answers.has(name)}
        self.settle(registrar)

    def _take(self, answers: SharedFolder, name: str, take: Callable[[str, bytes], None], most: int) -> None:
        """Take one file over. It is removed, or remembered where the folder is the authority's alone."""
        try:
            data = answers.read(name, most)
            digest = hashlib.sha256(data).digest()
            if self._taken.get(name) == digest:
                return
            take(name, data)
        except OlderList:
            pass  # copies arrive late: no offence
        except PenchantError as error:
            if name in self._left:
                return
            log.warning("%s is put aside: %s", name, one_line(str(error)))
            if not answers.set_aside(name):
                self._left.add(name)
            return
        if not answers.remove(name):
            self._taken[name] = digest

    def _take_members(self, name: str, data: bytes) -> None:
        self.server_directory.take_members(data)

    def _take_rejected(self, name: str, data: bytes) -> None:
        """The authority could not read a request; it says why."""
        said, request = DeclinedRequest.decode(data), name.removesuffix(".rejected")
        if not self._is_about_waiting(said, request):
            return
        log.warning("the authority refused %s: %s", name, said.why)
        if request.endswith(".request"):
            self._decline(request.removesuffix(".request"), said.why)
        self._remove_request(request)

    def _take_declined_request(self, name: str, data: bytes) -> None:
        """The authority lets a device not in: its owner is told when it asks again."""
        stem, said = name.removesuffix(".declined"), DeclinedRequest.decode(data)
        if not self._is_about_waiting(said, f"{stem}.request"):
            return
        if not self._decline(stem, said.why):
            raise EnrolmentError("it answers no request that waits here")
        log.warning("the authority lets the device of token %s not in: %s", stem, said.why)
        self._remove_request(f"{stem}.request")

    def _decline(self, name: str, why: str) -> bool:
        """Note that the request with the token of this name is declined; -> whether one waited. Its keys are
        free: the device may come with another token."""
        with self._record() as db:
            rows = db.execute("SELECT token FROM enrolments WHERE member IS NULL").fetchall()
            found = next((bytes(token) for (token,) in rows if token_name(bytes(token)) == name), None)
            if found is not None:
                db.execute("INSERT OR REPLACE INTO declined VALUES (?, ?)", (found, why))
                db.execute("DELETE FROM enrolments WHERE token = ?", (found,))
        return found is not None

    def _take_declined_revocation(self, name: str, data: bytes) -> None:
        """The authority revokes a member not: that nobody waits for it any more is on record."""
        stem, said = name.removesuffix(".declined"), DeclinedRequest.decode(data)
        member, request = stem.removeprefix("revoke-"), f"{stem}.json"
        if not self._is_about_waiting(said, request):
            return
        with (
            suppress(UsageError),
            recorded(self.server_directory.path, "revoke a member", member, by="the authority"),
        ):
            self._remove_request(request)
            raise UsageError(said.why)
        log.warning("the authority does not revoke member %s: %s", member, said.why)

    def _is_about_waiting(self, said: DeclinedRequest, request: str) -> bool:
        """Whether it is about the request of this name that waits for the authority, and not about an earlier
        one. What this side can't read either is what a file that names none is about."""
        with opened(self.server_directory.requests) as requests:
            if request not in requests.names("*"):
                return False
            try:
                waits = requests.read(request, MAX_RUN_REQUEST)
            except SharedFileError:
                return not said.request
        return said.is_about(waits, once=_is_asked_once(request, waits))

    def _take_answer(self, name: str, data: bytes) -> None:
        given = Answer.decode(data, self.server_directory.authority_digest)
        with self._record() as db:
            row = db.execute(
                "SELECT token FROM enrolments WHERE identity = ?", (given.certificate.public_key,)
            ).fetchone()
            if row is None:
                raise EnrolmentError("it answers no request that was made here")
            Membership(given.authority).know(given.members).check(given.certificate)
            db.execute(
                "UPDATE enrolments SET answer = ?, member = ? WHERE token = ?",
                (given.encode(), given.certificate.member, row[0]),
            )
        with suppress(OlderList):  # another answer, or the list itself, was quicker
            self.server_directory.take_members(given.members)
        self._remove_request(f"{token_name(bytes(row[0]))}.request")

    def _take_manifest(self, name: str, data: bytes) -> None:
        run_signature.take(self._run_of(name), data)
        self._remove_request(name)

    def _take_declined(self, name: str, data: bytes) -> None:
        if run_signature.take_declined(self._run_of(name), DeclinedRequest.decode(data)):
            self._remove_request(f"{name.removesuffix('.declined')}.manifest")

    def _take_release(self, name: str, data: bytes) -> None:
        release_signature.take(self.server_directory, name, data)

    def _take_declined_release(self, name: str, data: bytes) -> None:
        release_signature.take_declined(self.server_directory, name, DeclinedRequest.decode(data))

    def _run_of(self, name: str) -> Path:
        directory = run_signature.run_of(self.server_directory, name.rpartition(".")[0].removeprefix("run-"))
        if directory is None:
            raise EnrolmentError("it answers no run that asked for a signature here")
        return directory

    def _remove_request(self, name: str) -> None:
        with opened(self.server_directory.requests, writes=True) as requests:
            requests.remove(name)

    def settle(self, registrar: Registrar) -> None:
        """Nodes of members are registered, nodes of others are not. What the SuperLink has lost comes back.

        A SuperLink that is silent is tried again at the next call.
        """
        membership = self._known()
        with self._record() as db:
            rows = db.execute(
                "SELECT token, node_key, member, node FROM enrolments WHERE member IS NOT NULL"
            ).fetchall()
        for token, node_key, member, node in rows:
            belongs = membership.holds(int(member))
            if belongs == (node is not None):
                continue
            try:
                if belongs:
                    found: str | None = str(registrar.register(bytes(node_key), f"member-{member}"))
                else:
                    registrar.unregister(int(node))
                    found = None
            except JournalError as error:
                log.warning("the SuperLink's nodes are not in line yet: %s", error)
                return
            with self._record() as db:
                db.execute("UPDATE enrolments SET node = ? WHERE token = ?", (found, token))
        with opened(self.server_directory.requests, writes=True) as requests:
            for name in requests.names("revoke-*.json"):
                with suppress(ValueError):
                    if not membership.holds(int(name[len("revoke-") : -len(".json")])):
                        requests.remove(name)

    def recheck_nodes(self) -> None:
        """Have every member's node registered once more: the SuperLink may have lost its record meanwhile."""
        membership = self._known()
        with self._record() as db:
            for token, member in db.execute(
                "SELECT token, member FROM enrolments WHERE member IS NOT NULL AND node IS NOT NULL"
            ).fetchall():
                if membership.holds(int(member)):  # others' are still to be unregistered
                    db.execute("UPDATE enrolments SET node = NULL WHERE token = ?", (token,))

    def knows_node(self, public_key: bytes) -> bool:
        """Whether this key (PEM) is that of a member's node. It writes nothing: every request asks."""
        try:
            db = sqlite3.connect(f"{self._path.as_uri()}?mode=rw", uri=True, timeout=READ_SECONDS)
            try:
                query = "SELECT member FROM enrolments WHERE node_key = ?"
                row = db.execute(query, (public_key,)).fetchone()
            finally:
                db.close()
        except sqlite3.Error as error:
            raise JournalError(f"can't read {self._path}: {error}") from None
        return row is not None and row[0] is not None and self._known().holds(int(row[0]))

    def _known(self) -> Membership:
        """The member list as it lies there, whatever its date."""
        path = self.server_directory.path / MEMBERS
        try:
            found = path.stat()
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            kept = self._list
            if kept is None or kept[0] != mark:
                self._list = kept = (
                    mark,
                    Membership(self.server_directory.authority).know(path.read_bytes()),
                )
        except OSError as error:
            raise JournalError(f"can't read {path}: {error.strerror}") from None
        return kept[1]

    # --- the operator looks --------------------------------------------------------------------------

    def enrolments(self, *, now: float | None = None) -> list[IssuedToken]:
        """Every token ever handed out, in order."""
        moment = time.time() if now is None else now
        membership = self._known()
        with self._record() as db:
            rows = db.execute(
                "SELECT t.public_key, t.name, t.handed_out, t.expires, e.identity, e.member, e.node, d.why"
                " FROM tokens t LEFT JOIN enrolments e ON e.token = t.public_key"
                " LEFT JOIN declined d ON d.token = t.public_key"
                " ORDER BY t.handed_out, t.public_key"
            ).fetchall()
        return [_enrolment(row, membership, moment) for row in rows]

    def _record(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._path, JournalError)


def request_revocation(directory: Path, member: int, why: str = "") -> Path:
    """Ask the authority to revoke a member; -> the file in `requests/` that asks it.

    The server can't revoke: the authority's next list does. UsageError when there is no such member, or it is
    asked for already: the first reason stays.
    """
    server_directory = ServerDirectory(directory)
    if not server_directory.membership().holds(member):
        raise UsageError(f"there is no member {member} that could be revoked")
    if len(why) > 1000 or not is_printable(why):
        raise UsageError("the reason must be one line of at most 1000 printable characters")
    name = f"revoke-{member}.json"
    with opened(server_directory.requests, writes=True) as requests:
        if requests.has(name):
            raise UsageError(
                f"the authority is asked already to revoke member {member} and has not signed yet; "
                "the first reason stays"
            )
        table = {"member": member, "why": why, NONCE: token_hex(16)}  # no other request has the same bytes
        requests.write(name, json.dumps(table, ensure_ascii=False).encode())
    return server_directory.requests / name


# --- inner parts --------------------------------------------------------------------------------------


def _enrolment(row: tuple[object, ...], membership: Membership, now: float) -> IssuedToken:
    public_key, name, handed_out, expires, identity, member, node, declined = row
    if declined is not None:
        state = "declined"
    elif identity is None:
        state = "open" if now < int(str(expires)) else "expired"
    elif member is None:
        state = "waiting"
    else:
        state = "enrolled" if membership.holds(int(str(member))) else "out"
    return IssuedToken(
        token=token_name(bytes(public_key)),  # type: ignore[call-overload]
        name=str(name),
        handed_out=int(str(handed_out)),
        expires=int(str(expires)),
        state=state,
        member=None if member is None else int(str(member)),
        node=None if node is None else int(str(node)),
        fingerprint="" if identity is None else fingerprint(bytes(identity)),  # type: ignore[call-overload]
    )


def _is_asked_once(name: str, data: bytes) -> bool:
    """Whether nothing was asked for by the name of this request before: tokens and releases have names of
    their own, and what may be asked for again tells itself apart by a nonce, since there is one."""
    try:
        if name.startswith("revoke-"):
            return NONCE not in strict_json(data)
        return not name.startswith("run-") or not RunRequest.decode(data).nonce
    except (PenchantError, TypeError):  # nobody here made it
        return True


def _refuse_declined(db: sqlite3.Connection, token: bytes) -> None:
    """EnrolmentError where the authority declined the request that came with a token."""
    row = db.execute("SELECT why FROM declined WHERE token = ?", (token,)).fetchone()
    if row is not None:
        raise EnrolmentError(f"{one_line(str(row[0]))}; ask the operator for another token")


def _check_node_key(pem: bytes) -> None:
    """EnrolmentError unless it is what a SuperNode signs with: a key on P-384, in this one encoding."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise EnrolmentError("the node's key must be a public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EnrolmentError("the node's key is not on the curve P-384")
    if key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) != pem:
        raise EnrolmentError("the node's key is not in its standard encoding")


DAYS = 7
LONGEST = 90 * DAY


def hand_out(directory: Path, name: str, expires: float) -> JoinToken:
    """A new token for a device that the operator calls `name`, good until `expires` (Unix seconds).

    Give `JoinToken.text()` to the device's owner by a channel that nobody else can tamper with; it is shown
    this once.
    UsageError when `expires` is in the past or more than 90 days off.
    """
    now = time.time()
    if not now < expires <= now + LONGEST:
        raise UsageError("a token must expire within the next 90 days")
    server_directory = ServerDirectory(directory)
    terms = Terms(
        server_directory.settings.gateway,
        server_directory.ca_digest,
        server_directory.authority_digest,
        int(expires),
    )
    token = JoinToken.create(terms)
    EnrolmentRegistry(server_directory).hand_out(token.public_key, terms, name, now=now)
    return token
