"""The authority answers the server's requests: a folder of files in, a folder of files out.

The folders may be the server's own `requests/` and `answers/` on a shared disk, or copies that travel on a
stick to a machine without a network. Whether a request is granted is the authority's decision: it is the one
thing that keeps whoever runs the server from enrolling people that do not exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from penchant.common.durations import DAY
from penchant.common.errors import (
    AgreementError,
    ProtocolError,
    SharedFileError,
)
from penchant.common.membership.enrolment import NamedRequest
from penchant.common.membership.identity import MemberList
from penchant.common.membership.manifest import MAX_RUN_REQUEST, RunRequest, shown_day
from penchant.common.membership.release_manifest import MAX_RELEASE, ReleaseRequest
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.declined_request import SAID_MOST, DeclinedRequest, digest_of
from penchant.deploy.fleet.server_directory import MEMBERS
from penchant.deploy.fleet.shared_folder import SharedFolder, opened, strict_json

__all__ = ["BEAT", "LOCK", "Decision", "PendingDecision", "attend", "revocation_of"]

LOCK = ".attend"  # in the authority's directory: held by the one who attends, as long as it watches
BEAT = ".attend-beat"  # beside it: the sign of life of who does
ANSWER_BYTES = 4096  # of a request or a revocation file: all are smaller
DECLINED = ".declined"  # in place of a request's ending, of one that the authority declined
_ENDINGS = (".request", ".json", ".manifest")  # of requests
REJECTED = ".rejected"  # after the name of a request that can't be read; the file says why
AHEAD = 7 * DAY  # a list is published anew when it ends within that many seconds


@dataclass(frozen=True)
class PendingDecision:
    """One thing to decide. kind: "enrol", "revoke", "run" or "release"; what: the name, or the reason; who:
    the fingerprint that the device shows, the member's number, the run's id, or the digest of a release's
    factors; lines: what a run may ask, or what a release is, in plain words; request: the digest of the file
    that asks, which no other one has."""

    kind: str
    who: str
    what: str
    lines: tuple[str, ...] = ()
    request: str = ""


Decision = Callable[[PendingDecision], bool | None]
"""True grants it, False declines it, which the server is told, and None leaves it for another time."""


def attend(
    authority_store: AuthorityStore,
    requests: Path,
    answers: Path,
    decide: Decision,
    *,
    now: float | None = None,
) -> list[str]:
    """Decide on every new file of `requests`; -> what was done, a line each.

    Answers and the latest member list are written into `answers`. A request that is answered there already is
    left alone, and so is one that `decide` leaves for another time: it is asked about again at the next call.
    What can't be read is refused once, by a file NAME.rejected that says why, and the next one has its turn.
    A list that ends soon is published anew. Raises UsageError when a folder is not there, or not ours to
    write to.
    """
    done: list[str] = []
    before = MemberList.decode(authority_store.latest()).number
    with opened(requests) as inbox, opened(answers, writes=True) as outbox:
        _forget_settled(inbox, outbox)
        for pattern, handle, most in _KINDS:
            odd = inbox.odd(pattern)
            done += [f"{name[:100]!r} is left alone: its name holds other characters" for name in odd]
            for name in inbox.names(pattern):
                asked = _RequestFile(name, *_read(inbox, name, most), outbox, decide, done)
                if not asked.is_settled():
                    _answer(authority_store, asked, handle)
        moment = time.time() if now is None else now
        latest = MemberList.decode(authority_store.latest())
        if latest.expires - moment < AHEAD:
            latest = MemberList.decode(authority_store.publish())
            done.append(f"published list {latest.number}: the last one was about to end")
        if latest.number != before:
            outbox.write(MEMBERS, latest.encode())
    return done


@dataclass(frozen=True)
class _RequestFile:
    """A request, and what may come of it. data: of its file, empty where it can't be read, as `wrong` says;
    done: what was done, a line each."""

    name: str
    data: bytes
    wrong: SharedFileError | None
    outbox: SharedFolder
    decide: Decision
    done: list[str]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]

    def is_settled(self) -> bool:
        """Whether it was answered, declined or refused already: it, and no other one of this name."""
        answer = f"{self.stem}.answer" if self.name.endswith(".request") else self.name
        return self.outbox.has(answer) or any(
            self._is_said(name) for name in (self.stem + DECLINED, self.name + REJECTED)
        )

    def is_granted(self, pending: PendingDecision, called: str) -> bool:
        """What comes of a decision: the server is told of one that says no."""
        granted = self.decide(replace(pending, request=digest_of(self.data)))
        if granted is False:
            self.decline("the authority declined")
            self.done.append(f"{called} is declined")
        return granted is True

    def decline(self, why: str) -> None:
        self._say(self.stem + DECLINED, why)

    def reject(self, why: str) -> None:
        self._say(self.name + REJECTED, why)

    def _say(self, name: str, why: str) -> None:
        self.outbox.write(name, DeclinedRequest.of(why, None if self.wrong else self.data).encode())

    def _is_said(self, name: str) -> bool:
        """Whether a file there is about this request. One that names none is about what can't be read: where
        an earlier version left it, somebody is asked once more."""
        if not self.outbox.has(name):
            return False
        try:
            said = DeclinedRequest.decode(self.outbox.read(name, SAID_MOST))
        except SharedFileError:
            return False
        return not said.request if self.wrong else said.is_about(self.data, once=False)


_Handler = Callable[[AuthorityStore, _RequestFile], None]


def _read(inbox: SharedFolder, name: str, most: int) -> tuple[bytes, SharedFileError | None]:
    try:
        return inbox.read(name, most), None
    except SharedFileError as error:
        return b"", error


def _answer(authority_store: AuthorityStore, asked: _RequestFile, handle: _Handler) -> None:
    """Whatever is wrong with this request, the next one has its turn."""
    try:
        if asked.wrong:
            raise asked.wrong
        handle(authority_store, asked)
    except ProtocolError as error:
        asked.reject(str(error))
        asked.done.append(f"{asked.name} is refused: {error}")


def _forget_settled(inbox: SharedFolder, outbox: SharedFolder) -> None:
    """Remove what was said of requests that are gone: a server that only reads `answers` leaves it there."""
    for name in outbox.names(f"*{DECLINED}"):
        stem = name.removesuffix(DECLINED)
        if not any(inbox.has(stem + ending) for ending in _ENDINGS):
            outbox.remove(name)
    there = inbox.names("*")  # of whatever kind
    for name in outbox.names(f"*{REJECTED}"):
        if name.removesuffix(REJECTED) not in there:
            outbox.remove(name)


def _enrol(authority_store: AuthorityStore, asked: _RequestFile) -> None:
    named = NamedRequest.decode(asked.data)
    called = named.name or named.request.fingerprint
    if authority_store.knows(named.request.public_key) is None:
        pending = PendingDecision("enrol", named.request.fingerprint, named.name)
        if not asked.is_granted(pending, f"the request of {called}"):
            return
    given = authority_store.issue(named.request, named.name)
    asked.outbox.write(f"{asked.stem}.answer", given.encode())
    asked.done.append(f"member {given.certificate.member}: {called}")


def _revoke(authority_store: AuthorityStore, asked: _RequestFile) -> None:
    member, why = revocation_of(asked.data)
    if all(m.number != member or m.revoked is not None for m in authority_store.members()):
        return
    if asked.is_granted(PendingDecision("revoke", str(member), why), f"the revocation of member {member}"):
        authority_store.revoke(member, why)
        asked.done.append(f"member {member} is revoked")


def revocation_of(data: bytes) -> tuple[int, str]:
    """(member, why) of a request for a revocation. SharedFileError for anything else."""
    table = strict_json(data)
    member, why = (table.get("member"), table.get("why", "")) if isinstance(table, dict) else (None, "")
    if type(member) is not int or not 0 < member < 2**63 or type(why) is not str:
        raise SharedFileError("it is not a request for a revocation")
    return member, why


@dataclass(frozen=True)
class _Signing:
    """What a request wants signed. kind and id name its file; called: what lines say of it; pending: what is
    to be decided, None where it was signed before; sign: -> the answer, and what is said of it."""

    kind: str
    id: bytes
    called: str
    pending: Callable[[], PendingDecision | None]
    sign: Callable[[], tuple[bytes, str]]


def _answer_signing(
    read: Callable[[AuthorityStore, bytes], _Signing], authority_store: AuthorityStore, asked: _RequestFile
) -> None:
    """Sign, or say that it is not signed: the server learns either."""
    try:
        signing = read(authority_store, asked.data)
        if asked.stem != f"{signing.kind}-{signing.id.hex()}":
            raise AgreementError(f"the file is named after another {signing.kind}")
        pending = signing.pending()
        if pending is not None and not asked.is_granted(pending, signing.called):
            return
        given, said = signing.sign()
    except AgreementError as error:
        asked.decline(str(error))
        asked.done.append(f"{asked.name} is refused: {error}")
        return
    asked.outbox.write(asked.name, given)
    asked.done.append(f"{signing.called} is signed, {said}")


def _run_signing(authority_store: AuthorityStore, data: bytes) -> _Signing:
    asked = RunRequest.decode(data)
    run = asked.manifest.run

    def sign() -> tuple[bytes, str]:
        return authority_store.sign_run(asked).encode(), f"until {shown_day(asked.manifest.last_day)}"

    def pending() -> PendingDecision | None:
        return None if authority_store.has_signed(run) else _run_decision(authority_store, asked)

    return _Signing("run", run, f"run {asked.name or run.hex()}", pending, sign)


def _run_decision(authority_store: AuthorityStore, asked: RunRequest) -> PendingDecision:
    others = authority_store.signed_since(int(time.time()) - 30 * DAY)
    more = f"{others} other runs were signed in the last 30 days: each sum more tells more about each person"
    lines = asked.manifest.lines()
    return PendingDecision("run", asked.manifest.run.hex(), asked.name, (*lines, more) if others else lines)


def _release_signing(authority_store: AuthorityStore, data: bytes) -> _Signing:
    asked = ReleaseRequest.decode(data)
    contents = asked.contents

    def sign() -> tuple[bytes, str]:
        given = authority_store.sign_release(asked)
        return given.encode(), f"as number {given.manifest.sequence}"

    def pending() -> PendingDecision | None:
        lines = authority_store.release_lines(asked)  # None: signed before
        if lines is None:
            return None
        return PendingDecision("release", contents.factors.hex(), contents.name, lines)

    return _Signing("release", contents.id, f"release {contents.name}", pending, sign)


_KINDS = (
    ("*.request", _enrol, ANSWER_BYTES),
    ("revoke-*.json", _revoke, ANSWER_BYTES),
    ("run-*.manifest", partial(_answer_signing, _run_signing), MAX_RUN_REQUEST),
    ("release-*.manifest", partial(_answer_signing, _release_signing), MAX_RELEASE),
)
