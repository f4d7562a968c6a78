"""Devices as they are deployed: agents behind sockets, enrolled by files, in the server's own round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context
from support.scene import signed_for

from penchant.client.agent.flower_app import build_app
from penchant.client.agent.known_lists import MEMBERS
from penchant.client.agent.socket import AgentServer, RemoteAgent
from penchant.client.device.device import Device
from penchant.client.learning.model_cache import ModelCache
from penchant.client.vault.sealing import SealedStorage
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import CertificateError, DeviceError, UsageError
from penchant.common.membership.identity import MemberList, Membership
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.served_run import with_members
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.owner_policy import policy_for
from penchant.server.journal import Journal
from penchant.server.round import federate
from penchant.server.run import ServerRun
from penchant.server.secagg.secure import SecureAggregation

DEVICES = 4


def choices(number: int) -> list[Preference]:
    return [Preference(f"day {n}: ", f"the motion {number}", f"the table {n % 3}") for n in range(12)]


@pytest.fixture
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("bert")


@dataclass
class Town:
    """An authority and devices that have joined."""

    authority_store: AuthorityStore
    homes: list[Path]
    config: RunConfig
    model_cache: ModelCache

    def run(self, directory: Path, rounds: int, run: bytes = bytes(16)) -> ServerRun:
        config = self.config.changed({"federation.rounds": rounds})
        signature = self.model_cache.of(config.plan("main", DEVICES)).model_signature
        return ServerRun(
            config=config,
            id=run,
            model_signature=signature,
            cohort=DEVICES,
            aggregation=SecureAggregation(self.membership()),
            membership=self.authority_store.latest(),
            journal=Journal(directory),
            manifest=signed_for(self.authority_store.authority, config, run, signature.digest, DEVICES),
        )

    def membership(self) -> Membership:
        import time

        return Membership(self.authority_store.authority.public_key).accept(
            self.authority_store.latest(), int(time.time())
        )


@pytest.fixture
def town(base: Path, tmp_path: Path) -> Town:
    authority_store, model_cache = AuthorityStore.init(tmp_path / "authority"), ModelCache()
    config = RunConfig().changed(
        {
            "model.base_model": str(base),
            "model.max_tokens": 16,
            "training.local_epochs": 2,
            "privacy.min_honest": 1,
            "privacy.max_colluders": 0,
            "federation.deadline_seconds": 240.0,  # a busy machine takes minutes to load what trains
            "federation.training_seconds": 3.0,
        }
    )
    homes = []
    for number in range(DEVICES):
        folder = tmp_path / f"device-{number}"
        home = Device(folder, model_cache=model_cache)
        home.record(choices(number))
        policy = policy_for(config, min_honest=1, max_colluders=0)
        (folder / "policy.toml").write_text(policy.to_toml())
        answer = authority_store.issue(home.request())
        assert home.join(answer.encode(), authority_store.digest) == number + 1
        homes.append(folder)
    return Town(authority_store, homes, config, model_cache)


@contextmanager
def relayed(sockets: list[Path], **more: object) -> Iterator[InProcessGrid]:
    """Flower's relay app in front of sockets, over a grid."""
    with ExitStack() as stack:
        remotes = [RemoteAgent(socket) for socket in sockets]
        for remote in remotes:
            stack.callback(remote.close)

        def agent_of(context: Context) -> RemoteAgent:
            return remotes[int(context.node_config["partition-id"])]

        grid = InProcessGrid(build_app(agent_of), len(sockets), workers=DEVICES, **more)  # type: ignore[arg-type]
        stack.callback(grid.close)
        yield grid


def test_devices_join_a_run_over_their_sockets_and_keep_a_matching_model(town: Town, tmp_path: Path) -> None:
    with ExitStack() as stack:
        sockets = []
        for folder in town.homes:
            server = AgentServer(
                Device(folder, model_cache=town.model_cache).agent().answer, folder / "agent.sock"
            )
            server.start()
            stack.callback(server.stop, 0)
            sockets.append(server.socket)
        run = town.run(tmp_path / "run", rounds=2)
        loads = town.model_cache.loads
        with relayed(sockets) as grid:
            federate(run, grid)
        assert town.model_cache.loads == loads  # no model is loaded for a message
    found = run.journal.load()
    assert found is not None
    assert [log.survivors for log in run.journal.logs()] == [DEVICES] * 3
    for folder in town.homes:
        home = Device(folder, model_cache=town.model_cache)
        report = home.report()
        assert (report.run, report.round, report.rounds_joined) == (bytes(16).hex(), 3, 3)
        left = {name: (times, size) for name, times, size in report.left}
        assert left["encoder.layer.2.output.dense.lora_A"] == (2, 2 * 4 * 2 * 32)  # not in the closing round
        assert left["head.weight"] == (2, 2 * 4 * 16)
        assert left["loss"] == left["accuracy 3/10"] == (3, 3 * 4)
        assert {"keys message", "unmask message", "status message"} < set(left)
        assert not any("lora_B" in name for name in left)
        assert report.quality is not None
        _, run_key, number, factors, _ = home._model()
        assert (run_key, number) == (bytes(16), 3)
        assert np.array_equal(factors, found[1].factors)  # shared and personal part are of one round
        assert home.rank("day 3: ", ["the motion", "the table"])
        home.train()  # the owner goes on alone, from the shared factors
        assert home.report().round == 3


def test_a_device_that_is_killed_in_mid_round_sits_out_and_comes_back(town: Town, tmp_path: Path) -> None:
    """One agent is a process of its own; it dies by SIGKILL when its vector is asked for."""
    program, said = "from penchant.deploy.cli.main import main; main()", tmp_path / "said"

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "device", "serve", "--home", str(town.homes[0])],
            stdout=subprocess.PIPE, stderr=said.open("w"), text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith("member 1 answers"), said.read_text()
        return process

    processes = [start()]
    killed = []

    def kill_when_asked_for_the_vector(node: int, kind: str) -> bool:
        if node == 1000 and kind == "train.masked" and not killed:
            os.kill(processes[0].pid, signal.SIGKILL)
            processes[0].wait()
            killed.append(node)
        return False

    with ExitStack() as stack:
        sockets = [town.homes[0] / "agent.sock"]
        for folder in town.homes[1:]:
            server = AgentServer(
                Device(folder, model_cache=town.model_cache).agent().answer, folder / "agent.sock"
            )
            server.start()
            stack.callback(server.stop, 0)
            sockets.append(server.socket)
        first = town.run(tmp_path / "run", rounds=1)
        with relayed(sockets, fault=kill_when_asked_for_the_vector) as grid:
            federate(first, grid)
            logs = first.journal.logs()
            assert killed
            assert [(log.round, log.cohort, log.survivors) for log in logs] == [(1, 4, 3), (2, 4, 3)]
        processes.append(start())
        stack.callback(processes[1].terminate)
        second = town.run(tmp_path / "second", rounds=1, run=bytes([1]) * 16)
        with relayed(sockets) as grid:
            federate(second, grid)
        # Its first round may come while it still loads its model: that one it sits out as well.
        assert [log.cohort for log in second.journal.logs()] == [4, 4]
        assert second.journal.logs()[-1].survivors == 4
        processes[1].terminate()
        assert processes[1].wait(120) == 0
    report = Device(town.homes[0], model_cache=town.model_cache).report()
    assert (report.choices, report.run, report.round) == (12, (bytes([1]) * 16).hex(), 2)


def test_a_member_that_is_revoked_is_out_at_the_next_round(town: Town, tmp_path: Path) -> None:
    """The server goes on with the newer list, the devices hear of it, and nobody has to be restarted."""
    asked: list[tuple[int, str]] = []
    revoked: list[bytes] = []

    def latest(run: ServerRun) -> ServerRun:
        if run.journal.settled() == 1 and not revoked:
            revoked.append(town.authority_store.revoke(2, "lost"))
        return with_members(run, town.membership(), tmp_path)

    def note(node: int, kind: str) -> bool:
        asked.append((node, kind))
        return False

    with ExitStack() as stack:
        sockets = []
        for folder in town.homes:
            server = AgentServer(
                Device(folder, model_cache=town.model_cache).agent().answer, folder / "agent.sock"
            )
            server.start()
            stack.callback(server.stop, 0)
            sockets.append(server.socket)
        run = replace(town.run(tmp_path / "run", rounds=1), latest=latest, patience=600.0)
        with relayed(sockets, fault=note) as grid:
            federate(run, grid)
    assert [(log.round, log.cohort, log.survivors) for log in run.journal.logs()] == [(1, 4, 4), (2, 3, 3)]
    assert [kind for node, kind in asked if node == 1001].count("train.keys") == 1
    for number, folder in enumerate(town.homes):
        known = MemberList.decode(Device(folder).vault.blob(MEMBERS))
        assert (known.revoked == (2,)) == (number != 1)


def test_a_second_agent_on_a_device_is_refused(town: Town) -> None:
    program = "from penchant.deploy.cli.main import main; main()"
    words = [sys.executable, "-c", program, "device", "serve", "--home", str(town.homes[0])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline()
        second = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert second.returncode == 1
        assert "another agent is running on" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        first.terminate()


def test_an_answer_for_another_device_or_of_another_authority_is_refused(town: Town, tmp_path: Path) -> None:
    newcomer, other = Device(tmp_path / "new"), Device(tmp_path / "other")
    with pytest.raises(UsageError, match="make a request first"):
        newcomer.join(b"", town.authority_store.digest)
    assert newcomer.request() == newcomer.request()
    answer = town.authority_store.issue(other.request()).encode()
    newcomer_answer = town.authority_store.issue(newcomer.request()).encode()
    with pytest.raises(CertificateError, match="another key"):
        newcomer.join(answer, town.authority_store.digest)
    with pytest.raises(CertificateError, match="a different authority"):
        newcomer.join(newcomer_answer, bytes(32))
    assert newcomer.member is None
    with pytest.raises(UsageError, match="in no fleet"):
        newcomer.agent()
    assert newcomer.join(newcomer_answer, town.authority_store.digest) == 6
    assert newcomer.leave() == 6
    assert newcomer.member is None


def test_an_answer_that_was_held_back_brings_no_older_list_back(town: Town, tmp_path: Path) -> None:
    store, device = town.authority_store, Device(tmp_path / "new")
    member = device.join(store.issue(device.request()).encode(), store.digest)
    held_back = store.issue(device.request()).encode()
    newest = b""
    for _ in range(3):
        newest = store.publish()
    device.vault.keep_blob(MEMBERS, newest)  # as a greeting brings it
    assert device.join(held_back, store.digest) == member + 1
    assert device.vault.blob(MEMBERS) == newest
    foreign = AuthorityStore.init(tmp_path / "another authority")
    assert device.join(foreign.issue(device.request()).encode(), foreign.digest) == 1
    assert device.vault.blob(MEMBERS) == foreign.latest()


def test_joining_that_fails_in_the_middle_leaves_a_device_that_can_join(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a membership consists of is kept at once: no half of it is ever there."""
    home = Device(tmp_path / "new")
    answer = town.authority_store.issue(home.request()).encode()
    names = ("pending key", "identity", "authority", "member list")
    before = [home.vault.blob(name) for name in names]
    changes: list[int] = []
    real = Vault._transaction
    monkeypatch.setattr(Vault, "_transaction", lambda self, *a: changes.append(1) or real(self, *a))
    left = [0]
    sealed = SealedStorage.seal

    def fails(self: SealedStorage, data: bytes, purpose: str) -> bytes:
        if not left[0]:
            raise DeviceError("the disk is full")
        left[0] -= 1
        return sealed(self, data, purpose)

    for left[0] in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(SealedStorage, "seal", fails)
            with pytest.raises(DeviceError, match="the disk is full"):
                home.join(answer, town.authority_store.digest)
        assert [home.vault.blob(name) for name in names] == before
        assert home.member is None
    changes.clear()
    member = home.join(answer, town.authority_store.digest)
    assert len(changes) == 4  # to read the pending key and the list, to keep all, to destroy old values' keys
    assert Device(tmp_path / "new").member == member
    assert home.vault.blob("pending key") == b""
