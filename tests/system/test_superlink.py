"""The same round over Flower's own processes: SuperLink, SuperNodes, agents on sockets; killed, resumed.

What comes out is, bit for bit, what the simulation of the same people gives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from deployment import Deployment
from processes import PROGRAM, finished, free_port, listens, running, stop, wait_for
from twin import check_same, journal, simulate_twin

from penchant.client.home import Home
from penchant.deploy.superlink import environment, superlink_command, supernode_command

pytestmark = pytest.mark.system

DEVICES = 3


def test_a_fleet_learns_and_goes_on_after_the_server_was_killed(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = {"federation.rounds": 1, "federation.deadline_seconds": 90.0}
    fleet = Deployment(tmp_path, tiny_model("bert"), DEVICES, settings)
    (tmp_path / "run.toml").write_text(fleet.config.to_toml())
    (tmp_path / "members.list").write_bytes(fleet.office.latest())
    made = subprocess.run(
        [*PROGRAM, "server", "init", str(fleet.run), "--config", str(tmp_path / "run.toml"),
         "--authority", str(tmp_path / "authority" / "authority.pub"),
         "--members", str(tmp_path / "members.list")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    world = simulate_twin(fleet)
    run, flower, port = fleet.run, environment(tmp_path / "flower"), free_port()
    link = superlink_command(port, tmp_path / "state.db")
    go = [*PROGRAM, "server", "run", str(run), "--superlink", f"127.0.0.1:{port}"]
    with ExitStack() as stack:
        superlink = stack.enter_context(running(link, tmp_path / "superlink.log", env=flower))
        wait_for("the SuperLink", lambda: listens(port), 60)
        for folder in fleet.homes:
            words = [*PROGRAM, "device", "serve", "--home", str(folder)]
            stack.enter_context(running(words, tmp_path / "agents.log"))
            node = supernode_command(f"127.0.0.1:{port}", free_port(), folder / "agent.sock")
            stack.enter_context(running(node, tmp_path / "nodes.log", env=flower))
        wait_for("the agents", lambda: all((f / "agent.sock").exists() for f in fleet.homes), 60)
        started = subprocess.run([*go, "--detach"], capture_output=True, text=True, timeout=120)
        assert started.returncode == 0, started.stderr
        wait_for("the first round", lambda: finished(run) == [1], 240)
        before = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
        stop(superlink, signal.SIGKILL)  # with the ServerApp that it started, in the middle of round 2
        stack.enter_context(running(link, tmp_path / "superlink.log", env=flower))
        wait_for("the SuperLink again", lambda: listens(port), 60)
        time.sleep(10)  # nodes come back
        again = subprocess.run(go, capture_output=True, text=True, timeout=400)
        assert again.returncode == 0, again.stderr + again.stdout
        wait_for("the last word to the devices", lambda: all(at(f) == 2 for f in fleet.homes), 90)
    assert finished(run) == [1, 2]
    after = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    assert {name: after[name] for name in before} == before  # round 1 was not run again
    with journal(run) as opened:
        found = opened.load()
    assert found is not None
    for folder in fleet.homes:  # shared and personal part of the same round, everywhere
        _, _, number, factors, _ = Home(folder)._model()
        assert number == 2
        assert np.array_equal(factors, found[1].factors)
    check_same(fleet, world)
    status = subprocess.run(
        [*PROGRAM, "server", "status", str(run)], capture_output=True, text=True, timeout=60,
        env=os.environ | {"COLUMNS": "140"},
    )  # fmt: skip
    assert "finished" in status.stdout


def at(folder: Path) -> int:
    return Home(folder).report().round
