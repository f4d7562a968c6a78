"""The release that a fleet uses: promoted, rolled back, held; exported, and begun with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.fleet_directory import make_served_run, make_server
from support.terminal import server_command

from penchant.common.errors import JournalError, UsageError
from penchant.deploy.fleet import fleet_release, run_checks, served_run
from penchant.deploy.fleet.backup import back_up, restore
from penchant.deploy.fleet.fleet_release import FLEET_RELEASE
from penchant.deploy.fleet.recorded_acts import Act, take
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.releases import FleetRelease, Release, releases

PROMOTES = """
import sys
from pathlib import Path
from penchant.deploy.console.releases import ReleasesOnThisMachine
from penchant.server.monitoring.run_history import RunLocation
directory = Path(sys.argv[1])
of = ReleasesOnThisMachine(RunLocation("spring", "spring", directory, "served"), directory)
print("ready", flush=True)
sys.stdin.readline()
for round in sys.argv[3:]:
    try:
        of.promote(int(round), sys.argv[2])
    except Exception as error:
        print(error, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    """A server with a run of three rounds, and one of two."""
    made = make_server(tmp_path)
    make_served_run(made, "spring", 3)
    make_served_run(made, "summer", 2)
    return made


def test_what_is_promoted_is_in_use_until_something_else_is(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleet_release.read(server.path) == FleetRelease()
    release = ("release", "promote", server.path)
    assert server_command(monkeypatch, *release, 2, "--run", "spring") == 0
    assert fleet_release.read(server.path).used == "spring:release-1"
    assert server_command(monkeypatch, *release, 1) == 0  # of the run that was made last
    assert fleet_release.read(server.path).used == "summer:release-1"
    assert server_command(monkeypatch, *release, 3, "--run", "spring") == 0
    assert server_command(monkeypatch, "release", "rollback", server.path, 1, "--run", "spring") == 0
    assert fleet_release.read(server.path).used == "spring:release-1"
    assert server_command(monkeypatch, *release, 9) == 1
    assert "round 9 has no checkpoint" in capsys.readouterr().err
    assert server_command(monkeypatch, "release", "list", server.path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {(row["name"], row["round"], row["state"]) for row in told} == {
        ("spring:release-1", 2, "in use"),
        ("summer:release-1", 1, ""),
        ("spring:release-2", 3, ""),
    }
    acts: list[Act] = []
    take(server.path, acts.append)
    assert [(act.action, act.outcome[:6]) for act in acts] == [
        *[("promote a release", "done")] * 3,
        ("roll a release back", "done"),
        ("promote a release", "failed"),
    ]


@pytest.mark.parametrize("chosen_again", [("rollback", 1), ("promote", 2)])
def test_the_fleet_goes_back_to_the_release_of_another_run(
    server: ServerDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chosen_again: tuple[str, int],
) -> None:
    act, which = chosen_again
    back = ("release", act, server.path, which, "--run", "spring")
    assert server_command(monkeypatch, "release", "promote", server.path, 2, "--run", "spring") == 0
    assert server_command(monkeypatch, "release", "promote", server.path, 1, "--run", "summer") == 0
    assert fleet_release.read(server.path).used == "summer:release-1"
    before = releases(server.run("spring"))
    assert server_command(monkeypatch, *back) == 0
    assert "release 1 of spring, round 2, is in use" in capsys.readouterr().out
    assert server_command(monkeypatch, *back) == 2  # now it is the fleet's too
    assert "current" in capsys.readouterr().err
    assert fleet_release.read(server.path) == FleetRelease("spring:release-1")
    assert releases(server.run("spring")) == before


def test_a_fleet_of_an_earlier_version_uses_what_its_runs_promoted(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server_command(monkeypatch, "release", "promote", server.path, 2, "--run", "spring") == 0
    (server.path / FLEET_RELEASE).unlink()
    assert server_command(monkeypatch, "release", "promote", server.path, 2, "--run", "spring") == 0
    assert fleet_release.read(server.path) == FleetRelease("spring:release-1")
    assert len(releases(server.run("spring"))) == 1


def test_nothing_is_promoted_where_the_fleet_s_file_is_damaged(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    promote = ("release", "promote", server.path, 2, "--run", "spring")
    (server.path / FLEET_RELEASE).write_text("{")
    assert server_command(monkeypatch, *promote) == 1
    assert "release.json is damaged" in capsys.readouterr().err
    assert releases(server.run("spring")) == []
    (server.path / FLEET_RELEASE).unlink()
    assert server_command(monkeypatch, *promote) == 0
    assert fleet_release.read(server.path) == FleetRelease("spring:release-1")


def test_what_waits_is_taken_back_by_rolling_back_to_what_is_held(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server_command(monkeypatch, "release", "promote", server.path, 2, "--run", "spring") == 0
    assert server_command(monkeypatch, "release", "hold", server.path) == 0
    assert server_command(monkeypatch, "release", "promote", server.path, 1, "--run", "summer") == 0
    assert "waits" in capsys.readouterr().out
    assert server_command(monkeypatch, "release", "rollback", server.path, 1, "--run", "spring") == 0
    assert "is in use again" in capsys.readouterr().out
    assert fleet_release.read(server.path) == FleetRelease("spring:release-1", True)


def test_a_fleet_that_holds_stays_with_what_it_has(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="no release is in use that could be held"):
        fleet_release.hold(server.path)
    with pytest.raises(UsageError, match="does not hold"):
        fleet_release.unhold(server.path)
    fleet_release.chosen(server.path, "spring", 1)
    assert server_command(monkeypatch, "release", "hold", server.path) == 0
    assert server_command(monkeypatch, "release", "hold", server.path) == 2
    assert server_command(monkeypatch, "release", "promote", server.path, 1) == 0
    assert "waits until the fleet holds no more" in capsys.readouterr().out
    assert fleet_release.read(server.path) == FleetRelease("spring:release-1", True, "summer:release-1")
    assert server_command(monkeypatch, "release", "unhold", server.path) == 0
    assert fleet_release.read(server.path) == FleetRelease("summer:release-1")


def test_export_gives_the_release_in_use(
    server: ServerDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: list[tuple[str, int | None]] = []

    def write(directory: Path, round: int | None, out: Path) -> int:
        given.append((directory.name, round))
        return round or 2

    monkeypatch.setattr(served_run, "write_release", write)
    assert server_command(monkeypatch, "export", server.path, tmp_path / "a") == 0
    assert "no release is in use" in capsys.readouterr().err
    assert server_command(monkeypatch, "release", "promote", server.path, 2, "--run", "spring") == 0
    assert server_command(monkeypatch, "export", server.path, tmp_path / "b") == 0
    assert "release 1 of spring, round 2" in capsys.readouterr().out
    assert server_command(monkeypatch, "export", server.path, tmp_path / "c", "--run", "spring") == 0
    assert given == [("summer", None), ("spring", 2), ("spring", None)]


def test_a_round_that_is_not_what_was_promoted_is_not_given(server: ServerDirectory, tmp_path: Path) -> None:
    changed = Release(1, 2, "0" * 64, "olga", 1.0, True)
    with pytest.raises(UsageError, match="a different checkpoint than release 1 had"):
        served_run.export(server.run("spring"), tmp_path / "out", changed)
    assert not (tmp_path / "out").exists()


def test_a_run_can_begin_with_what_the_fleet_uses(server: ServerDirectory) -> None:
    with pytest.raises(UsageError, match="uses no release yet"):
        run_checks.refuse_start(server, "release")
    assert fleet_release.resolved(server, "spring:2") == "spring:2"
    fleet_release.chosen(server.path, "spring", 4)
    assert fleet_release.resolved(server, "release") == "spring:release-4"
    with pytest.raises(UsageError, match="spring has no release 4"):
        run_checks.refuse_start(server, "release")
    fleet_release.chosen(server.path, "gone", 1)
    with pytest.raises(UsageError, match="run gone, whose release-1 is in use, is gone"):
        fleet_release.found(server, "gone:release-1")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"used": ""}', '{"used": "../x:release-1", "held": false, "waiting": ""}',
     '{"used": "a:release-x", "held": false, "waiting": ""}', '{"used": "", "held": 1, "waiting": ""}'],
)  # fmt: skip
def test_a_damaged_file_is_an_error_in_one_line(server: ServerDirectory, text: str) -> None:
    (server.path / FLEET_RELEASE).write_text(text)
    with pytest.raises(JournalError, match=r"release\.json"):
        fleet_release.read(server.path)


def test_what_is_in_use_is_in_a_backup(server: ServerDirectory, tmp_path: Path) -> None:
    fleet_release.chosen(server.path, "spring", 1)
    back_up(server, tmp_path / "file")
    restore(tmp_path / "file", tmp_path / "again")
    assert fleet_release.read(tmp_path / "again") == FleetRelease("spring:release-1")


def test_what_two_operators_promote_at_once_is_promoted_one_after_the_other(server: ServerDirectory) -> None:
    rounds = {"olga": ["1", "2"] * 10, "otto": ["3", "2"] * 10}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTES, str(server.run("spring")), name, *own],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, own in rounds.items()
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [line for process in both for line in process.communicate(timeout=300)[0].splitlines()]
    # Two who want the same round have it once; whatever was promoted is there.
    assert set(said) <= {"round 2 is the current release already"}
    made = releases(server.run("spring"))
    assert len(made) == 40 - len(said)
    assert [one.number for one in reversed(made)] == list(range(1, len(made) + 1))
    for name, own in rounds.items():
        kept = [str(one.round) for one in reversed(made) if one.by == name]
        assert [round for round in kept if round != "2"] == [round for round in own if round != "2"]
    assert fleet_release.read(server.path).used == f"spring:release-{made[0].number}"


# --- a part of the devices first ------------------------------------------------------------------


def test_a_canary_is_tried_promoted_to_all_or_taken_back(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = ("release", "promote", server.path)
    assert server_command(monkeypatch, *release, 1, "--run", "spring", "--canary", "10%") == 2
    assert "promote the first one to all" in capsys.readouterr().err
    assert releases(server.run("spring")) == []
    assert server_command(monkeypatch, *release, 1, "--run", "spring") == 0
    assert "devices can't fetch it: the authority has not signed run spring" in capsys.readouterr().err
    assert server_command(monkeypatch, *release, 2, "--run", "spring", "--canary", "12.5%") == 0
    assert "release 2 of spring, round 2, is tried by 12.5% of the devices" in capsys.readouterr().out
    trying = FleetRelease("spring:release-1", canary="spring:release-2", share=1250)
    assert fleet_release.read(server.path) == trying
    assert server_command(monkeypatch, "release", "hold", server.path) == 2
    assert "is tried by a part of the devices" in capsys.readouterr().err
    assert server_command(monkeypatch, "release", "list", server.path, "--json") == 0
    told = {row["name"]: (row["state"], row["signature"]) for row in json.loads(capsys.readouterr().out)}
    assert told == {
        "spring:release-1": ("in use", "not signed"),
        "spring:release-2": ("canary, 12.5%", "not signed"),
    }
    assert server_command(monkeypatch, *release, "--all") == 0
    assert fleet_release.read(server.path) == FleetRelease("spring:release-2")
    assert server_command(monkeypatch, *release, "--all") == 2
    assert server_command(monkeypatch, *release, 1, "--run", "summer", "--canary", "5%") == 0
    assert server_command(monkeypatch, "release", "rollback", server.path, 2, "--run", "spring") == 0
    assert fleet_release.read(server.path) == FleetRelease("spring:release-2")
    assert server_command(monkeypatch, "release", "sign", server.path) == 2
    assert "can't be signed: the authority has not signed run spring" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [(), (1, "--all"), ("--all", "--canary", "5%"), *((1, "--canary", share) for share in
     ("0%", "100%", "10", "-5%", "x%", "nan%", "inf%", "0.001%"))],
)  # fmt: skip
def test_what_names_no_release_or_no_part_of_the_devices_is_refused(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    fleet_release.chosen(server.path, "spring", 1)
    assert server_command(monkeypatch, "release", "promote", server.path, *words) == 2
    assert fleet_release.read(server.path) == FleetRelease("spring:release-1")


def test_a_file_of_an_earlier_version_knows_no_canary(server: ServerDirectory) -> None:
    (server.path / FLEET_RELEASE).write_text('{"used": "spring:release-1", "held": false, "waiting": ""}')
    assert fleet_release.read(server.path) == FleetRelease("spring:release-1")
    for share in ("0", "10000", '"5"', "true"):
        text = (
            f'"used": "a:release-1", "held": false, "waiting": "", "canary": "a:release-2", "share": {share}'
        )
        (server.path / FLEET_RELEASE).write_text("{" + text + "}")
        with pytest.raises(JournalError, match="damaged"):
            fleet_release.read(server.path)
