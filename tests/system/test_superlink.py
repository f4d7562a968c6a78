"""A real fleet: `penchant server up`, devices that joined with tokens, a run; killed, resumed, revoked.

What comes out is, bit for bit, what the simulation of the same people gives.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from support.deployment import Deployment
from support.processes import PROGRAM, finished, free_port, listens, running, stop, wait_for
from support.twin import check_same, journal, simulate_twin

from penchant.client.device.device import Device
from penchant.common.data.preferences import Preference
from penchant.deploy.fleet import served_run
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.owner_policy import policy_for

pytestmark = pytest.mark.system

DEVICES = 3


class Strangers(Deployment):
    """Devices with choices, that are in no fleet yet."""

    def _enrol(self, folder: Path, choices: Sequence[Preference]) -> None:
        Device(folder).record(choices)
        policy = policy_for(self.config, min_honest=1, max_colluders=0)
        (folder / "policy.toml").write_text(policy.to_toml())


def penchant(*words: str, seconds: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=seconds)
    if check:
        assert done.returncode == 0, done.stderr + done.stdout
    return done


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "server"
    for log in sorted(tmp_path.glob("**/*.log")):  # shown when a test fails
        print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n")


def make_server(fleet: Deployment, server: Path) -> int:
    """`penchant server init`; -> the gateway's port."""
    (fleet.place / "members.list").write_bytes(fleet.authority_store.latest())
    port = free_port()
    penchant(
        "server", "init", str(server), "--authority", str(fleet.place / "authority" / "authority.pub"),
        "--members", str(fleet.place / "members.list"), "--address", "127.0.0.1", "--listen", "127.0.0.1",
        "--port", str(port), "--superlink-port", str(free_port()),
    )  # fmt: skip
    return port


def attend(fleet: Deployment, server: Path) -> None:
    folders = ["--requests", str(server / "requests"), "--answers", str(server / "answers")]
    penchant("authority", "attend", str(fleet.place / "authority"), *folders, "--yes")


def join(fleet: Deployment, server: Path, number: int) -> None:
    """A token, a request that waits, the authority's answer, a member."""
    home = ["--home", str(fleet.homes[number])]
    token = penchant("server", "invite", str(server), "--name", f"device {number}").stdout.strip()
    early = penchant("device", "join", token, *home, check=False)
    assert (early.returncode, "has not answered" in early.stderr) == (1, True)
    attend(fleet, server)
    assert f"member {number + 1}" in penchant("device", "join", token, *home, "--wait").stdout


def start_device(stack: ExitStack, folder: Path) -> None:
    for command in ("serve", "connect"):
        words = [*PROGRAM, "device", command, "--home", str(folder)]
        stack.enter_context(running(words, folder.parent / f"{folder.name}-{command}.log"))


def state(server: Path) -> dict[str, Any]:
    """What `penchant server status` says; its exit code says whether all is up."""
    done = penchant("server", "status", str(server), "--json", check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["up"] or done.returncode == 1, done.stderr
    return found


def nodes(server: Path, which: str = "nodes") -> int:
    """How many nodes may connect; "online": have."""
    return int(state(server)["superlink"][which])


def test_a_fleet_learns_and_goes_on_after_the_server_was_killed(
    tiny_model: Callable[[str], Path], tmp_path: Path, server: Path
) -> None:
    # Of three devices none may be lost, and Flower takes one whose heartbeat is late for lost: then again.
    settings = {"federation.rounds": 1, "federation.deadline_seconds": 90.0, "federation.attempts": 10}
    fleet = Strangers(tmp_path, tiny_model("bert"), DEVICES, settings)
    port = make_server(fleet, server)
    up = [*PROGRAM, "server", "up", str(server)]
    with ExitStack() as stack:
        first = stack.enter_context(running(up, tmp_path / "up.log"))
        wait_for("the gateway", lambda: listens(port), 120)
        for number in range(DEVICES):
            join(fleet, server, number)
        server_directory = ServerDirectory(server)
        run = fleet.run = server_directory.run("first")
        served_run.create(
            run, fleet.config, server_directory.authority, server_directory.membership().encoded
        )
        world = simulate_twin(fleet)
        for folder in fleet.homes:
            start_device(stack, folder)
        wait_for("the nodes", lambda: nodes(server, "online") == DEVICES, 120)
        penchant("server", "resume", str(server), "--detach")
        wait_for("the first round", lambda: finished(run) == [1], 600)
        before = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
        stop(first, signal.SIGKILL)  # all of the server, in the middle of round 2
        stack.enter_context(running(up, tmp_path / "up.log"))
        wait_for("the gateway again", lambda: listens(port), 120)
        wait_for("the run, which goes on by itself", lambda: finished(run) == [1, 2], 900)
        wait_for("the last word to the devices", lambda: all(at(f) == 2 for f in fleet.homes), 180)
        penchant("server", "revoke", str(server), f"{DEVICES}", "--why", "lost")
        attend(fleet, server)
        wait_for("the end of the revoked one's node", lambda: nodes(server) == DEVICES - 1, 60)
    assert finished(run) == [1, 2]
    after = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    assert {name: after[name] for name in before} == before  # round 1 was not run again
    with journal(run) as opened:
        found = opened.load()
    assert found is not None
    for folder in fleet.homes:  # shared and personal part of the same round, everywhere
        _, _, number, factors, _ = Device(folder)._model()
        assert number == 2
        assert np.array_equal(factors, found[1].factors)
    check_same(fleet, world)
    assert "is finished" in penchant("server", "resume", str(server)).stdout
    table = state(server)
    assert (table["run"], table["runs"]) == ("first", ["first"])
    assert table["enrolments"] == {"enrolled": DEVICES - 1, "out": 1}
    assert table["members"]["count"] == DEVICES - 1
    penchant("server", "export", str(server), str(tmp_path / "shared"))
    with safe_open(tmp_path / "shared" / "shared.safetensors", "numpy") as tensors:
        kept = np.concatenate([tensors.get_tensor(name).ravel() for name in tensors.keys()])  # noqa: SIM118
    assert sorted(kept) == sorted(found[1].factors)


def at(folder: Path) -> int:
    return Device(folder).report().round
