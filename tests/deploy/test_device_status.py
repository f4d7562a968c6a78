"""`penchant device status` says that a device takes part only when it does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from penchant.client.agent.connection_note import ConnectionNote
from penchant.client.device.taking_part import TakingPart

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("absent", "agent", "note", "why"),
    [
        ("", True, ConnectionNote(NOW - 20), ""),
        ("the device is paused", True, ConnectionNote(NOW - 20), "the device is paused"),
        ("in no fleet", False, None, "in no fleet"),
        ("", False, ConnectionNote(NOW - 20), "the agent is not running (penchant device serve)"),
        ("", True, None, "no word from the server yet: nothing connects"),
        ("", True, ConnectionNote(NOW - 3 * 3600), "no word from the server for 3 h 0 min: nothing connects"),
        ("", True, ConnectionNote(NOW - 20, "the authority has revoked it"), "the authority has revoked it"),
    ],
)
def test_it_takes_part_only_with_agent_relay_and_membership(
    absent: str, agent: bool, note: ConnectionNote | None, why: str
) -> None:
    report = SimpleNamespace(absent=absent, last_taken=None)
    part = TakingPart.of(report, agent, note, NOW)  # type: ignore[arg-type]
    assert part.why_not.replace("\u202f", " ").startswith(why)
    assert bool(part.why_not) == bool(why)
