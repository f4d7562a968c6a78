"""`penchant quickstart` with few devices and a tiny model: it learns, ends, and leaves nothing behind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from support.processes import wait_for
from system.test_units import refuse_unknown_command

from penchant.common.errors import GatewayError, UsageError
from penchant.deploy.fleet.processes import door, gateway_open
from penchant.deploy.fleet.quickstart import RUN, Quickstart, live_again, next_steps, quickstart
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.superlink import Control
from penchant.server.journal import Journal

pytestmark = pytest.mark.system

DEVICES = 3


def test_a_fleet_in_one_call(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    said: list[str] = []
    settings = (
        ("model.base_model", str(tiny_model("bert"))),
        ("data.pairs", 4),
        ("federation.warmup_rounds", 0),
    )
    server = quickstart(Quickstart(tmp_path / "fleet", DEVICES, 1, settings), said.append)
    with closing(Journal(ServerDirectory(server).run(RUN))) as journal:
        assert [(log.cohort, log.survivors) for log in journal.logs()] == [(DEVICES, DEVICES)] * 2
    assert said[0].startswith("warning: with 3 devices every sum holds only 3 honest people")
    assert "devices add noise for epsilon 8" in said[1]
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert left == []
    assert [line[:6] for line in said if line[1:6] == " of 6"] == [f"{step} of 6" for step in range(1, 7)]
    found = re.match(r"accuracy: the devices' own models rank (\d+) of (\d+) choices right", said[-1])
    assert found is not None
    assert 0 <= int(found[1]) <= int(found[2])
    assert int(found[2]) > 0

    # and up again, by one call: all devices come back, nothing is left afterwards
    with live_again(tmp_path / "fleet", said.append) as up, Control(door(up)) as control:
        wait_for("all devices", lambda: _online(control) == DEVICES, 120)
    assert not gateway_open(up)
    with pytest.raises(UsageError, match="--again brings its fleet up once more"):
        quickstart(Quickstart(tmp_path / "fleet"), said.append)


def _online(control: Control) -> int:
    return sum(node.status == "online" for node in control.nodes().values())


def test_what_comes_next_are_commands_that_there_are(tmp_path: Path) -> None:
    lines = [line.rpartition("penchant ")[2] for line in next_steps(tmp_path / "a fleet")]
    words = [shlex.split(line.partition(" > ")[0]) for line in lines if line]
    assert ["quickstart", str(tmp_path / "a fleet"), "--again"] in words
    for line in words:
        if line[:3] == ["console", "account", "add"]:
            continue
        refuse_unknown_command(line)


def test_a_folder_without_a_fleet_is_not_brought_up_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no fleet of a quickstart"), live_again(tmp_path, print):
        pass


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(GatewayError, match="nginx-light"):
        quickstart(Quickstart(tmp_path / "fleet"), print)
    assert not (tmp_path / "fleet").exists()
