"""Names and tags of devices, who is ready and why not, and runs that ask only some."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.fleet_directory import make_served_run
from support.terminal import server_command

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, RunDirectoryError, UsageError
from penchant.common.membership.enrolment import request
from penchant.deploy.fleet import run_checks, served_run
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.backup import back_up, restore
from penchant.deploy.fleet.device_notes import NOTES, TAG, DeviceNotes, tag_of, tagged
from penchant.deploy.fleet.fleet_devices import device_rows
from penchant.deploy.fleet.member_facts import FleetRecords
from penchant.deploy.fleet.missing_devices import missing_of, readiness
from penchant.deploy.fleet.recorded_acts import Act, take
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.superlink import free_port
from penchant.server.monitoring.fleet import ConnectedNode, DeviceNote
from penchant.server.waiting import Waiting

NOW = 1_800_000_000.0
MEMBERS = 5


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    """A fleet of five members, 1 to 5, at whose ports nothing listens."""
    store = AuthorityStore.init(tmp_path / "authority")
    for number in range(MEMBERS):
        store.issue(request(bytes([number + 1]) * 32), f"device {number}")
    settings = ServerSettings(addresses=("fleet.example",), port=free_port(), superlink_port=free_port())
    return ServerDirectory.create(tmp_path / "server", settings, store.authority.public_key, store.latest())


def numbers(server: ServerDirectory) -> list[int]:
    return sorted(FleetRecords(server).member_list().members)


def test_names_and_tags_are_kept(server: ServerDirectory) -> None:
    notes = DeviceNotes(server.path)
    assert notes.all() == {}
    assert not (server.path / NOTES).exists()
    first, second, *_ = numbers(server)
    notes.tag([first, second], "kitchen")
    notes.tag([first], "beta")
    notes.name(first, "Grandmother’s")
    assert DeviceNotes(server.path).all() == {
        first: DeviceNote("Grandmother’s", ("beta", "kitchen")),
        second: DeviceNote("", ("kitchen",)),
    }
    notes.untag([first, second], "kitchen")
    notes.name(first, "")
    assert notes.all() == {first: DeviceNote("", ("beta",))}
    notes.note(first, "Kettle", ["b", "a", "b"])
    assert notes.all() == {first: DeviceNote("Kettle", ("a", "b"))}
    notes.note(first, "", [])
    assert notes.all() == {}


@pytest.mark.parametrize(
    ("name", "tags"),
    [("ä" * 60, ["other"]), ("Pot", ["other", "No Tag"]), ("Pot", list(map(str, range(21))))],
)
def test_name_and_tags_are_both_noted_or_neither(
    server: ServerDirectory, name: str, tags: Sequence[str]
) -> None:
    notes = DeviceNotes(server.path)
    notes.note(3, "Kettle", ["pilot"])
    with pytest.raises(UsageError):
        notes.note(3, name, tags)
    assert notes.all() == {3: DeviceNote("Kettle", ("pilot",))}


@pytest.mark.parametrize("tag", ["", "A", "-x", "a b", "a" * 33, "é", "a/b", "a\n"])
def test_what_is_no_tag_is_refused(server: ServerDirectory, tag: str) -> None:
    notes = DeviceNotes(server.path)
    with pytest.raises(UsageError, match="is no tag"):
        notes.tag([1], tag)
    with pytest.raises(UsageError, match="is no tag"):
        notes.note(1, "Kettle", ["fine", tag])
    assert notes.all() == {}


def test_too_many_tags_or_a_name_that_can_not_be_seen_are_refused(server: ServerDirectory) -> None:
    notes = DeviceNotes(server.path)
    with pytest.raises(UsageError, match="at most 20 tags"):
        notes.note(1, "", [f"t{number}" for number in range(21)])
    for number in range(20):
        notes.tag([1], f"t{number}")
    with pytest.raises(UsageError, match="member 1 has 20 tags already"):
        notes.tag([2, 1], "more")
    assert 2 not in notes.all()  # nothing of it was done
    with pytest.raises(UsageError, match="printable"):
        notes.name(1, "x\u202ey")


def test_what_is_noted_is_in_a_backup(server: ServerDirectory, tmp_path: Path) -> None:
    DeviceNotes(server.path).tag([1], "kitchen")
    back_up(server, tmp_path / "file")
    restore(tmp_path / "file", tmp_path / "again")
    assert DeviceNotes(tmp_path / "again").all() == {1: DeviceNote("", ("kitchen",))}


# --- who is ready -------------------------------------------------------------------------------------

LINK = {"11": ConnectedNode(True), "12": ConnectedNode(False, NOW - 3600), "13": ConnectedNode(False)}
WAITING = Waiting(3, 3, ready=(1,), unready=(2,), silent=(14,), since=NOW - 60, until=NOW + 60)


@pytest.mark.parametrize(
    ("member", "node", "waiting", "ready", "why"),
    [
        (1, "11", WAITING, True, "ready"),
        (2, "11", WAITING, False, "paused, or outside its owner's hours or limits"),
        (3, None, WAITING, False, "the SuperLink does not know it yet"),
        (3, "12", None, False, "offline for"),
        (3, "13", None, False, "never connected"),
        (3, "11", WAITING, None, "asked just now"),
        (3, "11", None, None, "whether it takes part is asked with each round"),
    ],
)
def test_being_connected_is_not_being_ready(
    member: int, node: str | None, waiting: Waiting | None, ready: bool | None, why: str
) -> None:
    told = readiness(member, node, LINK, waiting, NOW)
    assert told[0] is ready
    assert why in told[1]


def test_a_device_is_found_by_number_name_and_tag(server: ServerDirectory) -> None:
    first, second, *_ = numbers(server)
    notes = DeviceNotes(server.path)
    notes.tag([first], "kitchen")
    notes.name(second, "The Kettle")
    rows = {row.member: row for row in device_rows(FleetRecords(server), None, None, server, NOW)}
    assert sorted(rows) == numbers(server)
    assert {row.ready for row in rows.values()} == {None}
    found = {
        search: [m for m, row in rows.items() if row.is_called(search)] for search in ("kit", "kett", "")
    }
    assert found == {"kit": [first], "kett": [second], "": numbers(server)}
    assert [m for m, row in rows.items() if row.is_called("", "kitchen")] == [first]
    assert not rows[first].is_called("", "kitch")  # a tag is meant whole


# --- runs that ask some -------------------------------------------------------------------------------


def test_a_run_asks_those_with_its_tag_as_they_are_now(server: ServerDirectory) -> None:
    first, second, third, *_ = numbers(server)
    notes = DeviceNotes(server.path)
    notes.tag([first, second, 99], "kitchen")  # 99 left the fleet
    run = make_served_run(server, "spring", 1)
    everybody = served_run._asked(run, server.membership())
    assert [everybody["members"], everybody["belongs"](third)] == [MEMBERS, True]
    (run / TAG).write_text("kitchen")
    asked = served_run._asked(run, server.membership())
    assert asked["members"] == 2
    assert [m for m in (*numbers(server), 99) if asked["belongs"](m)] == [first, second]
    notes.tag([third], "kitchen")
    assert served_run._asked(run, server.membership())["members"] == 3


def test_a_damaged_tag_never_means_everybody(server: ServerDirectory) -> None:
    run = make_served_run(server, "spring", 1)
    assert tag_of(run) == ""
    for damaged in (b"", b"\xff", b"../x"):
        (run / "tag").write_bytes(damaged)
        with pytest.raises(RunDirectoryError, match="names no tag"):
            tag_of(run)


def test_only_those_whom_a_run_asks_are_missing(server: ServerDirectory) -> None:
    first, second, *_ = numbers(server)
    DeviceNotes(server.path).tag([second], "kitchen")
    waiting = Waiting(1, 3, (first,), (), (), NOW, NOW)
    records = FleetRecords(server)
    assert [one.member for one in missing_of(records, waiting, {}, NOW)] == numbers(server)[1:]
    assert [one.member for one in missing_of(records, waiting, {}, NOW, "kitchen")] == [second]


def test_a_cohort_above_those_with_the_tag_is_refused(server: ServerDirectory) -> None:
    DeviceNotes(server.path).tag(numbers(server)[:3], "kitchen")
    assert [run_checks.members_with(server, tag) for tag in ("", "kitchen", "cellar")] == [MEMBERS, 3, 0]
    config = RunConfig().changed(
        {"federation.cohort": 4, "privacy.min_honest": 1, "privacy.max_colluders": 0}
    )
    run_checks.refuse_unfit(config, 4, "kitchen")
    with pytest.raises(ConfigError, match="cohort is 4, but 3 of them have the tag kitchen; ask at most 3"):
        run_checks.refuse_unfit(config, 3, "kitchen")


def test_nobody_has_a_tag_that_was_never_given() -> None:
    assert tagged({1: DeviceNote("", ("a",))}, "b", [1, 2]) == frozenset()
    assert tagged({}, "", [1, 2]) == {1, 2}


# --- the commands -------------------------------------------------------------------------------------


def test_devices_are_tagged_named_and_listed_at_the_terminal(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = numbers(server)
    assert server_command(monkeypatch, "tag", server.path, "kitchen", first, second) == 0
    assert server_command(monkeypatch, "tag", server.path, "kitchen", second, "--remove") == 0
    assert server_command(monkeypatch, "name", server.path, first, "Kettle") == 0
    assert server_command(monkeypatch, "tag", server.path, "kitchen", 77) == 2
    assert "there is no member 77" in capsys.readouterr().err
    assert server_command(monkeypatch, "devices", server.path, "--tag", "kitchen", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["member"], row["name"], row["tags"], row["ready"]) == (first, "Kettle", ["kitchen"], None)
    assert server_command(monkeypatch, "devices", server.path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MEMBERS
    assert lines[0].split()[:4] == [str(first), "not", "known", "Kettle"]
    assert "the SuperLink is silent" in lines[0]
    acts: list[Act] = []
    take(server.path, acts.append)
    assert [(act.action, act.target, act.outcome[:7]) for act in acts] == [
        ("tag devices", "kitchen", "done"),
        ("take a tag from devices", "kitchen", "done"),
        ("name a device", str(first), "done"),
        ("tag devices", "kitchen", "refused"),
    ]
    assert time.time() - acts[0].at < 600


@pytest.mark.parametrize(("step", "detail"), [(1, "members: 1–12000"), (2, "members: 1, 3, 5, 7, ")])
def test_tagging_many_devices_is_one_act_of_the_audit(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, step: int, detail: str
) -> None:
    monkeypatch.setattr("penchant.deploy.cli.server._refuse_strangers", lambda directory, members: None)
    members = range(1, 1 + 12_000 * step, step)
    assert server_command(monkeypatch, "tag", server.path, "pilot", *members) == 0
    assert sorted(DeviceNotes(server.path).all()) == list(members)
    acts: list[Act] = []
    take(server.path, acts.append)
    assert [(act.action, act.target, act.outcome) for act in acts] == [("tag devices", "pilot", "done")]
    assert acts[0].detail.startswith(detail)
    assert acts[0].detail == detail or acts[0].detail.endswith("…")
