"""A fleet of real processes, each device and the server on a host of its own, for tests that break things.

A device is its agent (with traps, `system.trapped`) and its SuperNode. What a service manager would do, the
test does, so that it knows when a device is back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from deployment import Deployment
from system.hosts import Host
from twin import journal

from penchant.deploy.superlink import environment, superlink_command, supernode_command
from penchant.server.journal import RoundRow

TRAPPED = [sys.executable, str(Path(__file__).with_name("trapped.py"))]
SUPERLINK_PORT, NODE_PORT = 9092, 9094
QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "OMP_NUM_THREADS": "1"}
START_SECONDS = 120.0

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Trap:
    """Something that happens in a device's agent, once."""

    path: Path
    device: int

    @property
    def sprung(self) -> bool:
        return self.path.with_suffix(".sprung").exists()

    def release(self) -> None:
        """End of a hold."""
        self.path.with_suffix(".go").touch()


@dataclass
class LiveFleet:
    """The first host serves, the others are devices. Everything started here ends with the hosts."""

    deployment: Deployment
    hosts: Sequence[Host]
    agents: list[Process | None] = field(default_factory=list)
    nodes: list[Process | None] = field(default_factory=list)
    superlink: Process | None = None
    traps: int = 0

    def __post_init__(self) -> None:
        self.place = self.deployment.place
        self.server, self.devices = self.hosts[0], self.hosts[1:]
        self.agents = [None] * len(self.devices)
        self.nodes = [None] * len(self.devices)
        self.address = f"{self.server.address}:{SUPERLINK_PORT}"
        self.flower = environment(self.place / "flower") | QUICK
        self.relaying = self.flower | {"PATH": f"{self._warm_executor()}:{self.flower['PATH']}"}

    # --- the server ----------------------------------------------------------------------------------

    def start_server(self) -> None:
        words = superlink_command(SUPERLINK_PORT, self.place / "state.db")
        words[words.index("127.0.0.1")] = self.server.address
        self.superlink = self.server.start(words, self.place / "superlink.log", self.flower)
        probe = f"import socket; socket.create_connection(({self.server.address!r}, {SUPERLINK_PORT}), 1)"
        self.wait("the SuperLink", lambda: self.server.run([sys.executable, "-c", probe]).returncode == 0)

    def kill_server(self) -> None:
        """kill -9 of the SuperLink, and of the ServerApp that it runs."""
        assert self.superlink is not None
        self.server.kill(self.superlink)

    def play(self) -> None:
        """What `penchant server run` and `resume` do: begin, or go on."""
        start = "from pathlib import Path; from penchant.deploy import served, superlink; "
        start += f"served.start(Path({str(self.deployment.run)!r}), superlink.Door({self.address!r}))"
        words = [sys.executable, "-c", start]
        done = self.server.run(words, self.flower, START_SECONDS)
        assert done.returncode == 0, done.stderr

    def rows(self) -> list[RoundRow]:
        with journal(self.deployment.run) as opened:
            return opened.rows()

    # --- devices -------------------------------------------------------------------------------------

    def start_agent(self, device: int, before: Sequence[str] = ()) -> None:
        """Start an agent and wait until it answers. before: words before its command (`faketime …`)."""
        folder = self.deployment.homes[device]
        (folder / "agent.sock").unlink(missing_ok=True)
        self.trap_folder(device).mkdir(exist_ok=True)
        words = [*before, *TRAPPED, str(self.trap_folder(device)), "device", "serve", "--home", str(folder)]
        self.agents[device] = self.devices[device].start(
            words, self.place / f"agent-{device}.log", os.environ | QUICK
        )

    def start_node(self, device: int) -> None:
        socket = self.deployment.homes[device] / "agent.sock"
        words = supernode_command(self.address, NODE_PORT, socket)
        self.nodes[device] = self.devices[device].start(
            words, self.place / f"node-{device}.log", self.relaying
        )

    def start_devices(self) -> None:
        for device in range(len(self.devices)):
            self.start_agent(device)
            self.start_node(device)
        self.wait_for_agents()

    def wait_for_agents(self) -> None:
        homes = self.deployment.homes
        self.wait("the agents", lambda: all((home / "agent.sock").exists() for home in homes))

    def kill_node(self, device: int) -> None:
        """kill -9 of a SuperNode and of the relay that it may have started."""
        node = self.nodes[device]
        assert node is not None
        self.devices[device].kill(node)

    def stop_agent(self, device: int) -> None:
        agent = self.agents[device]
        assert agent is not None
        self.devices[device].kill(agent)

    def revive(self) -> None:
        """Start what has died; -> when all of it answers again."""
        for device, agent in enumerate(self.agents):
            if agent is None or agent.poll() is not None:
                self.start_agent(device)
        for device, node in enumerate(self.nodes):
            if node is None or node.poll() is not None:
                self.start_node(device)
        self.wait_for_agents()

    def _warm_executor(self) -> Path:
        """A folder for the head of PATH, in which SuperNodes find the executor that forks."""
        folder = self.place / "warm"
        folder.mkdir()
        script = folder / "flower-superexec"
        warm = Path(__file__).with_name("warm_superexec.py")
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {warm} "$@"\n')
        script.chmod(0o755)
        return folder

    # --- traps ---------------------------------------------------------------------------------------

    def trap_folder(self, device: int) -> Path:
        return self.place / f"traps-{device}"

    def trap(self, device: int, round: int, stage: str, when: str, act: str, attempt: int = 1) -> Trap:
        self.traps += 1
        folder = self.trap_folder(device)
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.traps:03d}.json"
        table = {"round": round, "attempt": attempt, "stage": stage, "when": when, "act": act}
        hidden = path.with_suffix(".new")
        hidden.write_text(json.dumps(table))
        hidden.rename(path)
        return Trap(path, device)

    def wait_sprung(self, traps: Iterable[Trap], seconds: float = START_SECONDS) -> None:
        waiting = list(traps)
        self.wait(
            "traps " + ", ".join(t.path.read_text() if t.path.exists() else "-" for t in waiting),
            lambda: all(trap.sprung for trap in waiting),
            seconds,
        )

    # --- waiting -------------------------------------------------------------------------------------

    def wait(self, what: str, true: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds:.0f} s for {what}; {self.story()}")
            time.sleep(0.2)

    def wait_state(self, round: int, attempt: int, state: str, seconds: float = START_SECONDS) -> None:
        self.wait(
            f"round {round}.{attempt} {state}",
            lambda: any((r.round, r.attempt, r.state) == (round, attempt, state) for r in self.rows()),
            seconds,
        )

    def story(self) -> str:
        """Where the run is, and the ends of the logs, for whoever reads a failure."""
        rows = [f"{r.round}.{r.attempt} {r.state} {r.why or ''}" for r in self.rows()]
        logs = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted(self.place.glob("*.log"))
        ]
        return "; ".join(rows) + "\n" + "\n".join(logs)
