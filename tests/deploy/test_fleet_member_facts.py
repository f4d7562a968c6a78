"""What a server's files say of members and invitations is read again once they change, and not before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.fleet_directory import make_server

from penchant.deploy.fleet import member_facts
from penchant.deploy.fleet.enrolment import EnrolmentRegistry, IssuedToken, hand_out
from penchant.deploy.fleet.member_facts import FleetRecords


def test_records_are_read_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server(tmp_path)
    EnrolmentRegistry(server)
    opened: list[object] = []

    class Counted(EnrolmentRegistry):
        def enrolments(self, *, now: float | None = None) -> list[IssuedToken]:
            opened.append(self)
            return super().enrolments(now=now)

    monkeypatch.setattr(member_facts, "EnrolmentRegistry", Counted)
    records = FleetRecords(server)
    assert [records.tokens() for _ in range(3)] == [[]] * 3
    assert len(opened) == 1
    hand_out(server.path, "kitchen", time.time() + 60)
    assert [token.label for token in records.tokens()] == ["kitchen"]
    assert records.member_list().list_number == 1


def test_an_invitation_expires_without_a_trace_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(tmp_path)
    hand_out(server.path, "kitchen", time.time() + 60)
    records, now = FleetRecords(server), time.time()
    assert [token.state for token in records.tokens()] == ["open"]
    monkeypatch.setattr("penchant.deploy.fleet.member_facts.time.time", lambda: now + 61)
    assert [token.state for token in records.tokens()] == ["expired"]
