"""Who a waiting round lacks, and why."""

from __future__ import annotations

import pytest

from penchant.deploy.fleet.missing_devices import missing_devices
from penchant.server.monitoring.fleet import ConnectedNode
from penchant.server.waiting import Waiting

NOW = 1_700_000_000.0
WAITING = Waiting(3, 4, (1,), (2,), (30,), NOW - 60, NOW + 3600)


@pytest.mark.parametrize(
    ("member", "node", "connection", "why"),
    [
        (2, "20", ConnectedNode(True, NOW + 60), "takes no part now: paused"),
        (3, "30", ConnectedNode(True, NOW + 60), "gives no answer"),
        (4, "40", ConnectedNode(False, NOW - 7200), "offline for 2 h"),
        (5, "50", ConnectedNode(False), "never connected"),
        (6, "60", None, "never connected"),
        (7, None, None, "the SuperLink does not know it yet"),
        (8, "80", ConnectedNode(True, NOW + 60), "asked just now"),
    ],
)
def test_being_connected_is_not_being_ready(
    member: int, node: str | None, connection: ConnectedNode | None, why: str
) -> None:
    nodes = {} if node is None else {member: node}
    link = {} if node is None or connection is None else {node: connection}
    (found,) = missing_devices(WAITING, {1, member}, nodes, link, NOW)
    assert found.member == member
    assert why in found.why.replace("\u202f", " ")
