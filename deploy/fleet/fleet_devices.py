"""The devices of a fleet, one row each: what they are called, whether they are there, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penchant.deploy.fleet.member_facts import FleetRecords, asked_revocations
from penchant.deploy.fleet.missing_devices import readiness
from penchant.deploy.fleet.run_activity import activity_of, started_last
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.monitoring.fleet import ConnectedNode
from penchant.server.waiting import Waiting, read_waiting

__all__ = ["SILENT", "DeviceRow", "device_rows", "waiting_now"]

SILENT = "the SuperLink is silent: who is connected is not known"


@dataclass(frozen=True)
class DeviceRow:
    """A member of a fleet.

    Attributes:
        member: its number.
        name: what the operator calls it; by default what its invitation was for.
        tags: its tags.
        ready: whether it would take part now; None where that can't be told.
        why: what is known of that, and what its owner can do.
        node: the node as which it connects; None before the SuperLink admits it.
        revocation: why the authority is asked to revoke it; empty where it isn't.
    """

    member: int
    name: str
    tags: tuple[str, ...]
    ready: bool | None
    why: str
    node: int | None
    revocation: str

    def is_called(self, search: str, tag: str = "") -> bool:
        """Whether its number begins so, or its name or one of its tags has it; and it has the tag, if any."""
        wanted = search.casefold()
        texts = (self.name.casefold(), *self.tags)
        found = str(self.member).startswith(wanted) or any(wanted in text for text in texts)
        return found and (not tag or tag in self.tags)


def device_rows(
    records: FleetRecords,
    link: Mapping[str, ConnectedNode] | None,
    waiting: Waiting | None,
    server_directory: ServerDirectory,
    now: float,
) -> list[DeviceRow]:
    """All members, by number. link: node -> its connection; None while the SuperLink is silent."""
    notes = records.notes()
    issued = {row.member: row for row in records.issued() if row.member is not None}
    asked = {one.member: one.why for one in asked_revocations(server_directory)}
    rows = []
    for member in sorted(records.member_list().members):
        note, token = notes.get(member), issued.get(member)
        node = token.node if token else None
        if link is None:
            ready, why = None, SILENT
        else:
            ready, why = readiness(member, None if node is None else str(node), link, waiting, now)
        name = (note.name if note else "") or (token.name if token else "")
        revocation = (asked[member] or "no reason given") if member in asked else ""
        rows.append(DeviceRow(member, name, note.tags if note else (), ready, why, node, revocation))
    return rows


def waiting_now(server_directory: ServerDirectory) -> Waiting | None:
    """What the run that goes on waits for; None where none does."""
    directory = started_last(server_directory.run(name) for name in server_directory.runs())
    if directory is None or not activity_of(directory).running:
        return None
    return read_waiting(directory)
