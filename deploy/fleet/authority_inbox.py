"""The authority answers the server's requests: a folder of files in, a folder of files out.

The folders may be the server's own `requests/` and `answers/` on a shared disk, or copies that travel on a
stick to a machine without a network. Whether a request is granted is the authority's decision: it is the one
thing that keeps whoever runs the server from enrolling people that do not exist.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penchant.common.durations import DAY
from penchant.common.errors import (
    AgreementError,
    CertificateError,
    MembershipError,
    ProtocolError,
    UsageError,
)
from penchant.common.membership.enrolment import Asked
from penchant.common.membership.identity import MemberList
from penchant.common.membership.manifest import MAX_RUN_REQUEST, RunRequest, shown_day
from penchant.common.storage import write_durably
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.server_directory import MEMBERS

__all__ = ["Decision", "PendingDecision", "attend"]

ANSWER_BYTES = 4096  # of a request or a revocation file: all are smaller
AHEAD = 7 * DAY  # a list is published anew when it ends within that many seconds


@dataclass(frozen=True)
class PendingDecision:
    """One thing to decide. kind: "enrol", "revoke" or "run"; what: the name, or the reason; who: the
    fingerprint that the device shows, the member's number, or the run's id; lines: what a run may ask, in
    plain words."""

    kind: str
    who: str
    what: str
    lines: tuple[str, ...] = ()


Decision = Callable[[PendingDecision], bool]


def attend(
    office: AuthorityStore, requests: Path, answers: Path, decide: Decision, *, now: float | None = None
) -> list[str]:
    """Decide on every new file of `requests`; -> what was done, a line each.

    Answers and the latest member list are written into `answers`. A request that is answered there already is
    left alone, and so is one that `decide` refuses: it is asked about again next time. A list that ends soon
    is published anew. Raises UsageError when a folder is not there.
    """
    for folder in (requests, answers):
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}")
    done: list[str] = []
    before = MemberList.decode(office.latest()).number
    for path in sorted(requests.glob("*.request")):
        _enrol(office, path, answers / f"{path.stem}.answer", decide, done)
    for path in sorted(requests.glob("revoke-*.json")):
        _revoke(office, path, decide, done)
    for path in sorted(requests.glob("run-*.manifest")):
        _sign(office, path, answers, decide, done)
    moment = time.time() if now is None else now
    latest = MemberList.decode(office.latest())
    if latest.expires - moment < AHEAD:
        latest = MemberList.decode(office.publish())
        done.append(f"published list {latest.number}: the last one was about to end")
    if latest.number != before:
        write_durably(answers / MEMBERS, latest.encode())
    return done


def _enrol(office: AuthorityStore, path: Path, answer: Path, decide: Decision, done: list[str]) -> None:
    if answer.exists():
        return
    try:
        asked = Asked.decode(_small(path))
    except CertificateError as error:
        done.append(f"{path.name} is refused: {error}")
        return
    if office.knows(asked.request.public_key) is None and not decide(
        PendingDecision("enrol", asked.request.fingerprint, asked.name)
    ):
        return
    try:
        given = office.issue(asked.request, asked.name)
    except MembershipError as error:
        done.append(f"{path.name} is refused: {error}")
        return
    write_durably(answer, given.encode())
    done.append(f"member {given.certificate.member}: {asked.name or asked.request.fingerprint}")


def _revoke(office: AuthorityStore, path: Path, decide: Decision, done: list[str]) -> None:
    try:
        table = json.loads(_small(path))
        member, why = int(table["member"]), str(table.get("why", ""))
    except (ValueError, KeyError, TypeError):
        done.append(f"{path.name} is refused: it is not a request for a revocation")
        return
    if any(m.number == member and m.revoked is None for m in office.members()) and decide(
        PendingDecision("revoke", str(member), why)
    ):
        office.revoke(member, why)
        done.append(f"member {member} is revoked")


def _sign(office: AuthorityStore, path: Path, answers: Path, decide: Decision, done: list[str]) -> None:
    """Sign a run's manifest, or say that it is not signed: the server learns either."""
    signed, declined = answers / path.name, answers / f"{path.stem}.declined"
    if signed.exists() or declined.exists():
        return
    try:
        with path.open("rb") as file:
            asked = RunRequest.decode(file.read(MAX_RUN_REQUEST))
        run = asked.manifest.run
        if path.stem != f"run-{run.hex()}":
            raise AgreementError("the file is named after another run")
        if not office.has_signed(run) and not decide(_run_decision(office, asked)):
            write_durably(declined, b"the authority declined")
            done.append(f"run {asked.name or run.hex()} is declined")
            return
        given = office.sign_run(asked)
    except ProtocolError as error:
        write_durably(declined, str(error).encode())
        done.append(f"{path.name} is refused: {error}")
        return
    write_durably(signed, given.encode())
    done.append(f"run {asked.name or run.hex()} is signed, until {shown_day(asked.manifest.last_day)}")


def _run_decision(office: AuthorityStore, asked: RunRequest) -> PendingDecision:
    others = office.signed_since(int(time.time()) - 30 * DAY)
    more = f"{others} other runs were signed in the last 30 days: each sum more tells more about each person"
    lines = asked.manifest.lines()
    return PendingDecision("run", asked.manifest.run.hex(), asked.name, (*lines, more) if others else lines)


def _small(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(ANSWER_BYTES)
