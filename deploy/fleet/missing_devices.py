"""Who a waiting round lacks, and why: being connected is not being ready."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from penchant.common.wording import duration
from penchant.deploy.fleet.device_notes import tagged
from penchant.deploy.fleet.member_facts import FleetRecords
from penchant.deploy.flower.superlink import Control
from penchant.server.monitoring.fleet import ConnectedNode
from penchant.server.waiting import Waiting

__all__ = ["MissingDevice", "connections", "missing_devices", "missing_of", "readiness"]


ASKED = "connected; asked just now"


@dataclass(frozen=True)
class MissingDevice:
    """A member that is not ready. why: what is known of it, and what its owner can do."""

    member: int
    why: str


def connections(control: Control) -> dict[str, ConnectedNode]:
    """node -> its connection, as the SuperLink knows it. JournalError when it is silent."""
    return {
        str(node): ConnectedNode(row.status == "online", row.until or None)
        for node, row in control.nodes().items()
    }


def missing_of(
    records: FleetRecords,
    waiting: Waiting,
    link: Mapping[str, ConnectedNode],
    now: float,
    tag: str = "",
) -> list[MissingDevice]:
    """Members of a fleet that a round of it waits for; arguments as of `missing_devices`.

    tag: of those whom the run asks; empty: everybody.
    """
    notes = records.notes()
    nodes = {
        row.member: str(row.node)
        for row in records.issued()
        if row.member is not None and row.node is not None
    }
    return missing_devices(waiting, tagged(notes, tag, records.member_list().members), nodes, link, now)


def readiness(
    member: int, node: str | None, link: Mapping[str, ConnectedNode], waiting: Waiting | None, now: float
) -> tuple[bool | None, str]:
    """(whether a member would take part, in words why); None: it can't be told now.

    Only a round that waits asks everybody, and knows who is ready; else it is known who is connected.
    """
    if waiting is not None and member in waiting.ready:
        return True, "ready"
    asked = waiting if waiting is not None else Waiting(0, 0, (), (), (), 0.0, 0.0)
    why = _why(member, asked, node, link, now)
    if why != ASKED:
        return False, why
    return None, why if waiting is not None else "connected; whether it takes part is asked with each round"


def missing_devices(
    waiting: Waiting,
    members: Collection[int],
    nodes: Mapping[int, str],
    link: Mapping[str, ConnectedNode],
    now: float,
) -> list[MissingDevice]:
    """Members that a round waits for.

    Args:
        waiting: what the run says.
        members: who belongs to the fleet.
        nodes: member -> its node, where it has one.
        link: node -> its connection, as the SuperLink knows it.
        now: the time, Unix seconds.
    """
    absent = sorted(set(members) - set(waiting.ready))
    return [MissingDevice(member, _why(member, waiting, nodes.get(member), link, now)) for member in absent]


def _why(
    member: int, waiting: Waiting, node: str | None, link: Mapping[str, ConnectedNode], now: float
) -> str:
    connection = link.get(node) if node is not None else None
    if member in waiting.unready:
        return "connected, but takes no part now: paused, or outside its owner's hours or limits"
    if node is None:
        return "the SuperLink does not know it yet"
    if connection is None or (connection.until is None and not connection.online):
        return "never connected: `penchant device connect` has to run there"
    if not connection.online:
        ago = f" for {duration(now - connection.until)}" if connection.until is not None else ""
        return f"offline{ago}: `penchant device connect` has to run there"
    if int(node) in waiting.silent:
        return "connected, but gives no answer: no `penchant device serve` there, or another version"
    return ASKED
