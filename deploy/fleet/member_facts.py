"""Members, invitations and revocations of a fleet as interfaces show them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from penchant.common.errors import MembershipError, SharedFileError
from penchant.common.printable import one_line
from penchant.deploy.fleet.authority_inbox import ANSWER_BYTES, revocation_of
from penchant.deploy.fleet.enrolment import IssuedToken
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.fleet.shared_folder import opened
from penchant.server.monitoring.fleet import MemberListStatus, Revocation, Token

__all__ = ["asked_revocations", "member_list", "shown_tokens"]


def member_list(server_directory: ServerDirectory) -> MemberListStatus:
    """Who belongs to the fleet, by the list that the server holds, even one that is past its date."""
    listed = server_directory.known_members().current
    if listed is None:
        raise MembershipError(f"{server_directory.path} holds no member list; bring the authority's latest")
    members = frozenset(member.number for member in listed.members)
    return MemberListStatus(members, frozenset(listed.revoked), listed.number, float(listed.expires))


def shown_tokens(rows: Iterable[IssuedToken]) -> list[Token]:
    """Tokens that were handed out, the latest first."""
    return [
        Token(
            row.token,
            row.name,
            row.handed_out,
            row.expires,
            row.state,
            row.member,
            None if row.node is None else str(row.node),
            row.fingerprint,
        )
        for row in sorted(rows, key=lambda row: -row.handed_out)
    ]


def asked_revocations(server_directory: ServerDirectory) -> list[Revocation]:
    """Revocations that the authority is asked for and has not signed yet."""
    found = []
    with opened(server_directory.requests) as requests:
        for name in requests.names("revoke-*.json"):
            with suppress(OSError, SharedFileError):  # it was settled just now
                member, why = revocation_of(requests.read(name, ANSWER_BYTES))
                at = (requests.path / name).lstat().st_mtime
                found.append(Revocation(member, one_line(why), "command line", at, None))
    return found
