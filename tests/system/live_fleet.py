"""A fleet of real processes, each device and the server on a host of its own, for tests that break things.

A device is its agent (with traps, `system.trapped`) and its SuperNode. What a service manager would do, the
test does, so that it knows when a device is back.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.deployment import Deployment
from support.processes import PROGRAM
from support.twin import journal
from system.hosts import Host

from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.superlink import SUPERNODE, environment, supernode_command
from penchant.server.journal import RoundRow

TESTS = Path(__file__).resolve().parents[1]
WARM = [sys.executable, str(Path(__file__).with_name("warm_agents.py"))]
BRISK = [sys.executable, str(Path(__file__).with_name("brisk_supernode.py"))]
TRAPPED = [sys.executable, str(Path(__file__).with_name("trapped.py"))]
UP = "devices reach"  # what `penchant server up` says when all of it is
QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "OMP_NUM_THREADS": "1"}
START_SECONDS = 400.0

Process = subprocess.Popen[bytes]

REGISTER = """
import os, sqlite3, sys
from contextlib import closing
from pathlib import Path
from penchant.deploy.fleet.enrolment import DATABASE
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.superlink import Control
from penchant.deploy.fleet.processes import door
server_directory = ServerDirectory(Path(sys.argv[1]))
database = server_directory.path / DATABASE
with Control(door(server_directory)) as control, closing(sqlite3.connect(database)) as db, db:
    for number, key in enumerate(sys.argv[2:]):
        node = control.register(key.encode(), f"device {number}")
        db.execute(
            "INSERT INTO enrolments (token, identity, node_key, request, asked, member, node)"
            " VALUES (?, ?, ?, x'', 0, ?, ?)",
            (os.urandom(32), os.urandom(32), key.encode(), number + 1, str(node)),
        )
"""


@dataclass(frozen=True)
class Trap:
    """Something that happens in a device's agent, once."""

    path: Path
    round: int
    attempt: int

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
    agents: list[psutil.Process | None] = field(default_factory=list)
    nodes: list[Process | None] = field(default_factory=list)
    up: Process | None = None
    traps: int = 0
    died: dict[int, int] = field(default_factory=dict)  # device -> how often its agent was found dead

    def __post_init__(self) -> None:
        self.place = self.deployment.place
        self.server, self.devices = self.hosts[0], self.hosts[1:]
        self.agents = [None] * len(self.devices)
        self.nodes = [None] * len(self.devices)
        settings = ServerSettings((self.server.address,), self.server.address, resume_runs=False)
        authority_store = self.deployment.authority_store
        self.server_directory = ServerDirectory.create(
            self.place / "server", settings, authority_store.authority.public_key, authority_store.latest()
        )
        if self.deployment.run.is_dir():  # else the test makes one
            shutil.move(self.deployment.run, self.server_directory.run("fleet"))
            self.deployment.run = self.server_directory.run("fleet")
            self.deployment.sign_run()  # as the authority would
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.testing = os.environ | QUICK | {"PYTHONPATH": path}
        with (self.place / "warm.log").open("ab") as log:
            self.warm = subprocess.Popen(
                WARM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=self.testing,
            )  # fmt: skip
        self.flower = environment(self.place / "flower") | QUICK
        assert self.warm.stdout is not None
        assert self.warm.stdout.readline() == "warm\n", (self.place / "warm.log").read_text()

    # --- the server ----------------------------------------------------------------------------------

    def start_server(self) -> None:
        """`penchant server up`: the SuperLink and what starts its apps, enrolment, and the gateway."""
        log = self.place / "up.log"
        before = log.read_text().count(UP) if log.exists() else 0
        words = [*PROGRAM, "server", "up", str(self.server_directory.path)]
        self.up = self.server.start(words, log, os.environ | QUICK)
        up = self.up
        self.wait("the server", lambda: up.poll() is not None or log.read_text().count(UP) > before)
        assert up.poll() is None, self.story()

    def kill_server(self) -> None:
        """kill -9 of everything that `penchant server up` started, the ServerApp of the run too."""
        assert self.up is not None
        self.server.kill(self.up)
        self.wait("the end of the server", lambda: self.server.processes() == [])

    def kill_gateway(self) -> set[psutil.Process]:
        """kill -9 of nginx, which the server starts again; -> what was killed."""
        before = self._gateway()
        assert before
        for process in before:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return before

    def wait_gateway(self, killed: set[psutil.Process]) -> None:
        self.wait("the gateway", lambda: bool(self._gateway() - killed))

    def _gateway(self) -> set[psutil.Process]:
        return {process for process in self._server_processes() if process.name() == "nginx"}

    def _server_processes(self) -> list[psutil.Process]:
        """All that run on the server's host now."""
        found = []
        for pid in self.server.processes():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def penchant(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`penchant server …` on the server's host, to its end."""
        return self.server.run([*PROGRAM, "server", *words], os.environ | QUICK, START_SECONDS)

    def play(self) -> None:
        """`penchant server resume`: begin, or go on."""
        done = self.penchant("resume", str(self.server_directory.path), "--detach")
        assert done.returncode == 0, done.stderr

    def take_members(self, members: bytes) -> None:
        """`penchant server members`."""
        (self.place / "newer.list").write_bytes(members)
        done = self.penchant("members", str(self.server_directory.path), str(self.place / "newer.list"))
        assert done.returncode == 0, done.stderr

    def register_nodes(self, count: int | None = None) -> None:
        """Give the nodes of the first `count` devices (None: of all) a key, and let them connect: what
        `penchant device join` comes to."""
        keys = []
        for device in range(len(self.devices) if count is None else count):
            folder = self.node_folder(device)
            folder.mkdir()
            made = ec.generate_private_key(ec.SECP384R1())
            (folder / "node.key").write_bytes(
                made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            )
            public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            keys.append(public.decode())
        done = self.server.run(
            [sys.executable, "-c", REGISTER, str(self.server_directory.path), *keys], self.flower
        )
        assert done.returncode == 0, done.stderr

    def rows(self) -> list[RoundRow]:
        with journal(self.deployment.run) as opened:
            return opened.rows()

    def replies(self, round: int, attempt: int) -> int:
        """How many answers to unmasking the journal holds of an open attempt."""
        with journal(self.deployment.run) as opened:
            return sum(kind == "reply" for kind, _, _ in opened.records(round, attempt))

    # --- devices -------------------------------------------------------------------------------------

    def start_agent(self, device: int, before: Sequence[str] = ()) -> None:
        """Start an agent. before: words before its command (`faketime …`)."""
        home, traps = self.deployment.homes[device], self.trap_folder(device)
        (home / "agent.sock").unlink(missing_ok=True)
        traps.mkdir(exist_ok=True)
        words, log = ["device", "serve", "--home", str(home)], self.place / f"agent-{device}.log"
        host = self.devices[device]
        if before:  # a process started anew, not forked
            cold = host.start([*before, *TRAPPED, str(traps), *words], log, self.testing)
            self.agents[device] = psutil.Process(cold.pid)
            return
        order = {"words": words, "traps": str(traps), "log": str(log), "host": host.name}
        self.agents[device] = psutil.Process(int(self._say(json.dumps(order))))

    def _say(self, line: str) -> str:
        """An order for the process that forks agents; its answer."""
        assert self.warm.stdin is not None
        assert self.warm.stdout is not None
        self.warm.stdin.write(f"{line}\n")
        self.warm.stdin.flush()
        return self.warm.stdout.readline()

    def close(self) -> None:
        """No more agents."""
        self.warm.kill()
        self.warm.communicate()

    def start_node(self, device: int) -> None:
        agent = self.deployment.homes[device] / "agent.sock"
        key, ca = self.node_folder(device) / "node.key", self.server_directory.tls.ca.certificate
        words = supernode_command(self.server_directory.settings.gateway, agent, ca, key)
        self.nodes[device] = self.devices[device].start(
            [*BRISK, *words[len(SUPERNODE) :]], self.place / f"node-{device}.log", self.flower
        )

    def start_devices(self, before: Mapping[int, Sequence[str]]) -> None:
        """Start all; `before`: device -> words before its agent's command."""
        for device in range(len(self.devices)):
            self.start_agent(device, before.get(device, ()))
            self.start_node(device)
        self.wait_for_agents()
        self.wait("the nodes", lambda: all(self.node_came(d) for d in range(len(self.devices))))

    def wait_for_agents(self) -> None:
        homes = self.deployment.homes
        self.wait("the agents", lambda: all((home / "agent.sock").exists() for home in homes))

    def node_came(self, device: int, times: int = 1) -> bool:
        """Whether a device's SuperNode has connected, and after each of its starts."""
        log = self.place / f"node-{device}.log"
        return log.read_text(errors="replace").count("SuperNode ID") >= times

    def sent(self, device: int, round: int, stage: str) -> bool:
        """Whether a device's SuperNode has sent its answer, by its own log."""
        log = (self.place / f"node-{device}.log").read_text(errors="replace")
        return f"ROUND {round}.1] train.{stage}: answered" in log

    def kill_node(self, device: int) -> None:
        """kill -9 of a SuperNode and of the relay that it may have started."""
        node = self.nodes[device]
        assert node is not None
        self.devices[device].kill(node)

    def stop_agent(self, device: int) -> None:
        """kill -9 of an agent."""
        agent = self.agents[device]
        assert agent is not None
        for process in (*agent.children(recursive=True), agent):
            process.kill()

    def revive(self) -> None:
        """Start what has died, as a service manager would, and wait until it answers again."""
        for device, agent in enumerate(self.agents):
            if agent is None or gone(agent):
                self.died[device] = self.died.get(device, 0) + 1
                self.start_agent(device)
        for device, node in enumerate(self.nodes):
            if node is None or node.poll() is not None:
                self.start_node(device)
        self.wait_for_agents()

    def node_folder(self, device: int) -> Path:
        return self.place / f"node-{device}"

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
        return Trap(path, round, attempt)

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
            for path in sorted(self.place.rglob("*.log"))
        ]
        return "; ".join(rows) + "\n" + "\n".join(logs)


def gone(process: psutil.Process) -> bool:
    """Whether it has ended, waited for or not."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
