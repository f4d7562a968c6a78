"""What a run still holds of members that were revoked: how many were in its sums, as its journal knows.

A sum can't be taken apart, so what earlier rounds learned from a person stays in the shared factors and in
what was released of them. The journal counts the rounds whose sum a member is in, and names the latest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penchant.common.errors import JournalError, MembershipError
from penchant.common.foreign_files import read_bytes
from penchant.common.membership.identity import Membership
from penchant.common.wire.messages import MAX_MEMBERSHIP
from penchant.common.wording import counted
from penchant.deploy.fleet.server_directory import AUTHORITY, MEMBERS, ServerDirectory
from penchant.server.journal_reader import DeviceRecord, JournalReader

__all__ = ["RevokedMembers", "contributed", "revoked_behind"]


@dataclass(frozen=True)
class RevokedMembers:
    """Members that were revoked since, of those whose vectors are in the rounds up to one.

    Attributes:
        member_list: the number of the list that says who is revoked.
        took_part: how many were in one of these rounds for certain.
        may_have: how many more were in the run, perhaps in later rounds only.
    """

    member_list: int
    took_part: int
    may_have: int


def revoked_behind(directory: Path, round: int) -> RevokedMembers | None:
    """Those behind the factors after a round of the run in `directory`; None in a simulation, which revokes
    nobody. MembershipError when its member list can't be read, JournalError when its journal can't."""
    if not (directory / MEMBERS).is_file():
        return None
    authority = read_bytes(directory / AUTHORITY, MembershipError, 1024)
    members = Membership(authority).know(read_bytes(directory / MEMBERS, MembershipError, MAX_MEMBERSHIP))
    revoked = frozenset(members.current.revoked if members.current else ())
    met = [one for one in JournalReader(directory).devices() if one.member in revoked and one.joined]
    certain = sum(_was_in(one, round) for one in met)
    return RevokedMembers(members.number, certain, len(met) - certain)


def contributed(server_directory: ServerDirectory, member: int) -> str:
    """What the fleet's runs hold of a member, in one line; what the journals don't know is not said."""
    journals = (JournalReader(server_directory.run(name)) for name in server_directory.runs())
    found = list(filter(None, (_held(journal, member) for journal in journals)))
    if not found:
        return f"no journal has member {member} in the sum of a round"
    return f"what sums hold of member {member} stays in factors and releases: {'; '.join(found)}"


def _held(journal: JournalReader, member: int) -> str:
    """What one run holds of a member; empty for nothing. A journal that can't be read costs its own words."""
    name = journal.directory.name
    try:
        rounds = next((one.joined for one in journal.devices() if one.member == member), 0)
        figures = journal.privacy()
    except JournalError:
        return f"perhaps rounds of run {name}, whose journal can't be read"
    bound = "no noise, so no epsilon bounds it" if figures is None else f"epsilon {figures.epsilon:g}"
    return f"{counted(rounds, 'round')} of run {name} ({bound})" if rounds else ""


def _was_in(one: DeviceRecord, round: int) -> bool:
    """Whether a member was in a sum up to that round for certain: so many rounds after it there are not."""
    return one.last is not None and one.joined > max(one.last - round, 0)
