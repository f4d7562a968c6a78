"""What a run still holds of members that were revoked, as far as its journal knows."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest
from support.scene import authority, identity

from penchant.common.errors import MembershipError
from penchant.common.membership.identity import Member
from penchant.deploy.cli.main import main
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.revoked_members import RevokedMembers, contributed, revoked_behind
from penchant.deploy.fleet.server_directory import AUTHORITY, MEMBERS, ServerDirectory, ServerSettings
from penchant.server.journal import Journal
from penchant.server.privacy_figures import FACT, PrivacyFigures

FIGURES = PrivacyFigures(8.0, 1e-5, 1.1, 6, 21, 0.4, 0.5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Members 1 to 5 in the sums of a run with nine rounds."""
    directory = tmp_path / "run-1"
    journal = Journal(directory)
    journal.seen({member: 1000 + member for member in range(1, 6)})
    for number in range(1, 10):
        there = [1] * (number <= 4) + [2] * (number >= 8) + [3] * (number in (2, 9)) + [4] * (number >= 3)
        journal.joined(there, number)
    journal.close()
    return directory


def publish(directory: Path, revoked: list[int]) -> None:
    members = [Member(n, identity(n).certificate.public_key) for n in range(1, 6) if n not in revoked]
    listed = authority().publish(3, members, revoked=revoked, issued=1_000, expires=10**6)
    (directory / AUTHORITY).write_bytes(authority().public_key)
    (directory / MEMBERS).write_bytes(listed.encode())


def test_a_simulation_revokes_nobody(run: Path) -> None:
    assert revoked_behind(run, 9) is None


@pytest.mark.parametrize(
    ("round", "certain", "perhaps"),
    [
        (9, 4, 0),
        (8, 3, 1),  # by the journal, member 3 was in one sum, that of round 9
        (6, 2, 2),  # 1 and 4 for certain; 2 was in the last two only, which the count alone can't tell
        (2, 1, 3),
    ],
)
def test_who_was_in_a_round_up_to_it_is_counted_as_far_as_it_is_known(
    run: Path, round: int, certain: int, perhaps: int
) -> None:
    publish(run, [1, 2, 3, 4, 5])  # the last was never in a sum
    with sqlite3.connect(run / "journal.db") as db:
        db.execute("UPDATE devices SET joined = 1 WHERE member = 3")  # one count was lost in a crash
    assert revoked_behind(run, round) == RevokedMembers(3, certain, perhaps)
    publish(run, [5])
    assert revoked_behind(run, round) == RevokedMembers(3, 0, 0)


def test_a_list_of_another_authority_is_refused(run: Path) -> None:
    publish(run, [1])
    (run / AUTHORITY).write_bytes(bytes(32))
    with pytest.raises(MembershipError, match="not signed"):
        revoked_behind(run, 9)


def test_who_revokes_is_told_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = AuthorityStore.init(tmp_path / "authority")
    settings = ServerSettings(addresses=("fleet.example",))
    server = ServerDirectory.create(tmp_path / "server", settings, store.authority.public_key, store.latest())
    assert contributed(server, 1) == "no journal has member 1 in the sum of a round"
    for name, figures in (("noised", FIGURES), ("exact", None)):
        server.run(name).mkdir(parents=True)
        (server.run(name) / "config.toml").write_text("")
        journal = Journal(server.run(name))
        journal.seen({1: 1001})
        for number in (1, 2, 3):
            journal.joined([1], number)
        if figures:
            journal.note(FACT, figures.encode())
        journal.close()
    told = contributed(server, 1)
    assert "\n" not in told
    assert "3 rounds of run noised (epsilon 8)" in told
    assert "3 rounds of run exact (no noise, so no epsilon bounds it)" in told
    monkeypatch.setattr("penchant.deploy.fleet.enrolment.request_revocation", lambda *_: "revoke-1.json")
    monkeypatch.setattr(sys, "argv", ["penchant", "server", "revoke", str(server.path), "1"])
    with pytest.raises(SystemExit) as leave:
        main()
    assert (leave.value.code or 0) == 0
    assert capsys.readouterr().out.splitlines() == ["revoke-1.json: for the authority", told]


def test_a_run_that_can_not_be_read_costs_its_own_words(tmp_path: Path) -> None:
    store = AuthorityStore.init(tmp_path / "authority")
    settings = ServerSettings(addresses=("fleet.example",))
    server = ServerDirectory.create(tmp_path / "server", settings, store.authority.public_key, store.latest())
    for name in ("damaged", "sound"):
        server.run(name).mkdir(parents=True)
        (server.run(name) / "config.toml").write_text("")
    (server.run("damaged") / "journal.db").write_bytes(b"no journal" * 100)
    journal = Journal(server.run("sound"))
    journal.seen({1: 1001})
    journal.joined([1], 1)
    journal.close()
    told = contributed(server, 1)
    assert "perhaps rounds of run damaged, whose journal can't be read" in told
    assert "1 round of run sound (no noise, so no epsilon bounds it)" in told
