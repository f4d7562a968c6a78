"""A cold stand-by: the server's machine is lost, another takes its name over, and devices go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.processes import PROGRAM, wait_for

from penchant.deploy import datasets
from penchant.deploy.fleet import quickstart as parts
from penchant.deploy.fleet import run_signature, served_run
from penchant.deploy.fleet.authority import PUBLIC, AuthorityStore
from penchant.deploy.fleet.processes import door, gateway_open
from penchant.deploy.fleet.quickstart import Quickstart, kept_up
from penchant.deploy.fleet.server_directory import LOOPBACK, ServerDirectory, ServerSettings
from penchant.deploy.flower.superlink import free_port
from penchant.deploy.owner_policy import fleet_policy, policy_for
from penchant.server.journal_reader import AttemptRecord, JournalReader

pytestmark = pytest.mark.system

DEVICES, ROUNDS = 3, 2
SECONDS = 400.0


@contextmanager
def machine(server: ServerDirectory) -> Iterator[subprocess.Popen[bytes]]:
    """`penchant server up` in a session of its own, all of which is killed at once."""
    with (server.path.parent / "up.log").open("ab") as log:
        up = subprocess.Popen(
            [*PROGRAM, "server", "up", str(server.path)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for("the gateway", lambda: gateway_open(server), SECONDS)
        yield up
    finally:
        lost(up, server)


def lost(up: subprocess.Popen[bytes], server: ServerDirectory) -> None:
    """The machine is gone: kill -9, and nothing listens any more."""
    if up.poll() is None:
        os.kill(up.pid, signal.SIGKILL)
        up.wait(30)
    wait_for("its end", lambda: not gateway_open(server), 60)


def health(server: ServerDirectory) -> subprocess.CompletedProcess[str]:
    words = [*PROGRAM, "server", "health", str(server.path)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def command(*words: object) -> None:
    """`penchant server …`, which succeeds."""
    line = [*PROGRAM, "server", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def served_by(place: Path, authority_store: AuthorityStore) -> ServerDirectory:
    """A new server in its own folder; its authority lies beside it."""
    settings = ServerSettings(
        addresses=(LOOPBACK,), listen=LOOPBACK, port=free_port(), superlink_port=free_port()
    )
    public = (place / "authority" / PUBLIC).read_bytes()
    return ServerDirectory.create(place / "first" / "server", settings, public, authority_store.latest())


def attempts(server: ServerDirectory) -> list[AttemptRecord]:
    return list(JournalReader(server.run("winter")).attempts())


def summed(server: ServerDirectory) -> list[int]:
    """How many people are in the sum of each finished round."""
    return [one.log.survivors for one in attempts(server) if one.log]


def test_another_machine_goes_on_from_the_back_up(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    settings = (
        ("model.base_model", str(tiny_model("bert"))),
        ("data.pairs", 4),
        ("federation.warmup_rounds", 0),
    )
    config = parts._config(Quickstart(tmp_path, DEVICES, ROUNDS, settings))
    policy = fleet_policy(config, DEVICES)
    people = datasets.configured(config.data, config.seed).people
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    authority_store = AuthorityStore.init(tmp_path / "authority")
    first = served_by(tmp_path, authority_store)
    kept = tmp_path / "elsewhere.backup"
    with ExitStack() as devices:
        with machine(first) as up, kept_up([parts._attending(tmp_path, first)]):
            owners = policy_for(config, policy.min_honest, policy.max_colluders)
            parts._joined(tmp_path, people, first, owners)
            parts._connected(devices, parts._homes(tmp_path))
            served_run.create(first.run("winter"), config, first.authority, first.membership().encoded)
            run_signature.ask(first, "winter")
            served_run.start(first.run("winter"), door(first))
            wait_for("a healthy server", lambda: health(first).returncode == 0, 120)
            wait_for(
                "the second round",
                lambda: [one.state for one in attempts(first)][:2] == ["finished", "started"],
                SECONDS,
            )
            command("backup", first.path, kept)
            lost(up, first)
        before = (first.run("winter") / "checkpoints" / "round-000001.safetensors").read_bytes()
        members = first.known_members().encoded
        said = health(first)
        assert said.returncode == 1
        assert "gateway: is closed" in said.stderr
        shutil.rmtree(first.path)  # and its disk with it

        command("restore", kept, tmp_path / "second" / "server")
        second = ServerDirectory(tmp_path / "second" / "server")
        with machine(second), kept_up([parts._attending(tmp_path, second)]):
            wait_for("a healthy server", lambda: health(second).returncode == 0, 120)
            assert second.known_members().encoded == members
            # nobody asks for it: the queue goes on with a run that was cut off
            wait_for("the closing round", lambda: len(summed(second)) == ROUNDS + 1, SECONDS)
        assert (second.run("winter") / "checkpoints" / "round-000001.safetensors").read_bytes() == before
        assert summed(second) == [DEVICES] * (ROUNDS + 1)
