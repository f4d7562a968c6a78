"""Members, invitations and revocations of a fleet as interfaces show them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from penchant.common.errors import MembershipError, SharedFileError
from penchant.common.foreign_files import FileMark, Remembered, mark_of
from penchant.common.membership.identity import Membership
from penchant.common.printable import one_line
from penchant.deploy.fleet.authority_inbox import ANSWER_BYTES, revocation_of
from penchant.deploy.fleet.device_notes import NOTES, DeviceNotes
from penchant.deploy.fleet.enrolment import DATABASE, EnrolmentRegistry, IssuedToken
from penchant.deploy.fleet.server_directory import AUTHORITY, MEMBERS, ServerDirectory
from penchant.deploy.fleet.shared_folder import opened
from penchant.server.monitoring.fleet import DeviceNote, MemberListStatus, Revocation, Token

__all__ = ["FleetRecords", "asked_revocations"]


class FleetRecords:
    """What a server's files say of its members and invitations, read again once one of them changes.
    Thread-safe."""

    def __init__(self, server_directory: ServerDirectory) -> None:
        self._server = server_directory
        self._members: Remembered[Membership] = Remembered(lambda *_: server_directory.known_members(), 1)
        self._notes: Remembered[dict[int, DeviceNote]] = Remembered(
            lambda *_: DeviceNotes(server_directory.path).all(), 1
        )
        self._issued: Remembered[list[IssuedToken]] = Remembered(lambda *_: self._read_issued(), 1)

    @property
    def mark(self) -> FileMark:
        """Changes whenever what is told here does, but for invitations that expire."""
        server = self._server.path
        return mark_of(server / DATABASE, server / MEMBERS, server / AUTHORITY)

    def membership(self) -> Membership:
        """The member list that the server holds, whatever its date."""
        path = self._server.path / MEMBERS
        return self._members.get(path, mark_of(path, self._server.path / AUTHORITY))

    def member_list(self) -> MemberListStatus:
        """Who belongs to the fleet, by that list."""
        listed = self.membership().current
        if listed is None:
            raise MembershipError(f"{self._server.path} holds no member list; bring the authority's latest")
        members = frozenset(member.number for member in listed.members)
        return MemberListStatus(members, frozenset(listed.revoked), listed.number, float(listed.expires))

    def issued(self) -> list[IssuedToken]:
        """Every token ever handed out, in order."""
        now = time.time()
        return [
            replace(row, state="expired") if row.state == "open" and row.expires <= now else row
            for row in self._issued.get(self._server.path / DATABASE, self.mark)
        ]

    def notes(self) -> dict[int, DeviceNote]:
        """What the operator noted of members."""
        path = self._server.path / NOTES
        return self._notes.get(path, mark_of(path))

    def tokens(self) -> list[Token]:
        """The same as interfaces show them, the latest first."""
        return _shown(self.issued())

    def _read_issued(self) -> list[IssuedToken]:
        return EnrolmentRegistry(self._server).enrolments()


def _shown(rows: Iterable[IssuedToken]) -> list[Token]:
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
