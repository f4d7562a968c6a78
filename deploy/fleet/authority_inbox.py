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
from penchant.common.errors import CertificateError, MembershipError, UsageError
from penchant.common.membership.enrolment import Asked
from penchant.common.membership.identity import MemberList
from penchant.common.storage import write_durably
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.server_directory import MEMBERS

__all__ = ["Decision", "PendingDecision", "attend"]

ANSWER_BYTES = 4096  # of a request or a revocation file: all are smaller
AHEAD = 7 * DAY  # a list is published anew when it ends within that many seconds


@dataclass(frozen=True)
class PendingDecision:
    """One thing to decide. kind: "enrol" or "revoke"; what: the name, or the reason; who: the fingerprint
    that the device shows, or the member's number."""

    kind: str
    who: str
    what: str


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


def _small(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(ANSWER_BYTES)
