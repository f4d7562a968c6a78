"""The same round over Flower's own processes: SuperLink, SuperNodes, agents on sockets; killed, resumed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from penchant.client.home import Home
from penchant.client.policy import OwnerPolicy
from penchant.common.config import RunConfig
from penchant.common.enrolment import Request
from penchant.common.preferences import Preference
from penchant.deploy.authority import Office
from penchant.deploy.superlink import environment, superlink_command, supernode_command
from penchant.server.journal import Journal

pytestmark = pytest.mark.system

DEVICES = 3
PROGRAM = [sys.executable, "-c", "from penchant.deploy.cli import main; main()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(words: list[str], log: Path, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts; the whole family is stopped at the end."""
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, **more)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            stop(process, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        if member.is_running():
            member.send_signal(how)
    process.wait(20)


def wait_for(what: str, true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.5)


def finished(directory: Path) -> list[int]:
    if not (directory / "journal.db").exists():
        return []
    journal = Journal(directory)
    try:
        return [number for number, _ in journal.finished()]
    finally:
        journal.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_fleet_learns_and_goes_on_after_the_server_was_killed(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base, office = tiny_model("bert"), Office.init(tmp_path / "authority")
    homes = [tmp_path / f"device-{number}" for number in range(DEVICES)]
    for number, folder in enumerate(homes):
        home = Home(folder)
        home.record(
            [Preference(f"day {n}: ", f"the motion {number}", f"the table {n % 3}") for n in range(12)]
        )
        policy = OwnerPolicy(base_models=(str(base),), min_honest=1, max_colluders=0)
        (folder / "policy.toml").write_text(policy.to_toml())
        home.join(office.issue(Request.decode(home.request())).encode(), office.digest)
    settings = {
        "model.base_model": str(base),
        "model.max_tokens": 16,
        "training.local_epochs": 2,
        "federation.rounds": 1,
        "federation.cohort": DEVICES,
        "federation.deadline_seconds": 90.0,
        "privacy.min_honest": 1,
        "privacy.max_colluders": 0,
    }
    (tmp_path / "run.toml").write_text(RunConfig().changed(settings).to_toml())
    (tmp_path / "members.list").write_bytes(office.latest())
    run, flower, port = tmp_path / "run", environment(tmp_path / "flower"), free_port()
    made = subprocess.run(
        [*PROGRAM, "server", "init", str(run), "--config", str(tmp_path / "run.toml"),
         "--authority", str(tmp_path / "authority" / "authority.pub"),
         "--members", str(tmp_path / "members.list")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    link = superlink_command(port, tmp_path / "state.db")
    go = [*PROGRAM, "server", "run", str(run), "--superlink", f"127.0.0.1:{port}"]
    with ExitStack() as stack:
        superlink = stack.enter_context(running(link, tmp_path / "superlink.log", env=flower))
        wait_for("the SuperLink", lambda: listens(port), 60)
        for folder in homes:
            words = [*PROGRAM, "device", "serve", "--home", str(folder)]
            stack.enter_context(running(words, tmp_path / "agents.log"))
            node = supernode_command(f"127.0.0.1:{port}", free_port(), folder / "agent.sock")
            stack.enter_context(running(node, tmp_path / "nodes.log", env=flower))
        wait_for("the agents", lambda: all((f / "agent.sock").exists() for f in homes), 60)
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
        wait_for("the last word to the devices", lambda: all(at(f) == 2 for f in homes), 90)
    assert finished(run) == [1, 2]
    after = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    assert {name: after[name] for name in before} == before  # round 1 was not run again
    journal = Journal(run)
    found = journal.load()
    journal.close()
    assert found is not None
    for folder in homes:  # shared and personal part of the same round, everywhere
        _, _, number, factors, _ = Home(folder)._model()
        assert number == 2
        assert np.array_equal(factors, found[1].factors)
    status = subprocess.run(
        [*PROGRAM, "server", "status", str(run)], capture_output=True, text=True, timeout=60,
        env=os.environ | {"COLUMNS": "140"},
    )  # fmt: skip
    assert "finished" in status.stdout


def at(folder: Path) -> int:
    return Home(folder).report().round
