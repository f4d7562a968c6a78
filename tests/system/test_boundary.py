"""A hostile app bundle on a device, run by a real SuperNode as another user than the agent: all is denied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.open_flower import bundle_project, superlink_command, supernode_command
from support.processes import PROGRAM, free_port, listens, wait_for
from system.other_user import User, user

from penchant.client.agent.socket import RemoteAgent
from penchant.client.device.device import Device
from penchant.client.vault.fitted_store import FittedStore
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Preference
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Hello, Status
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.flower.superlink import SuperLinkAddress, environment, start_run
from penchant.deploy.owner_policy import policy_for

pytestmark = pytest.mark.system

FILES = [
    "preferences.db", "preferences.keys", "ties.keys", "fitted.db", "fitted.keys",
    "vault.db", "vault.keys", "vault.root", "policy.toml", "model.toml", "agent.lock",
]  # fmt: skip
PASSPHRASE = "no other user knows it"
SYSTEM_DENIES = {"list", "read", "write", "make", "rename", "link", "hold", "enter", "process_vm_readv"}
SYSTEM_DENIES |= {"ptrace", "pidfd_getfd", "prlimit", "setpriority", "replace", "remove", "open", "send"}


@dataclass
class DeviceOfTwoUsers:
    """An agent that runs as one user, and the directory of another, who runs the SuperNode."""

    place: Path
    owner: User
    relay: User
    agent: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.place / "device"

    @property
    def socket(self) -> Path:
        return self.place / "run" / "agent.sock"

    def targets(self) -> dict[str, Any]:
        return {
            "home": str(self.home),
            "socket": str(self.socket),
            "pid": self.agent.pid,
            "files": FILES,
            "out": str(self.place / "loot.json"),
        }

    def answers(self) -> Status:
        remote = RemoteAgent(self.socket, seconds=30)
        try:
            return decode(remote("status", encode(Hello(bytes(16), ()))), Status)
        finally:
            remote.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """A process with all that it started, if it still lives."""
    with suppress(psutil.NoSuchProcess):
        head = psutil.Process(process.pid)
        for member in [*head.children(recursive=True), head]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait(20)


def own(path: Path, who: User, group: User | None = None) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, who.uid, (group or who).gid)


def make_home(place: Path, base: Path) -> None:
    """A device that has joined a fleet and holds choices, with a key file."""
    home, authority_store = Device(place / "device"), AuthorityStore.init(place / "authority")
    home.record([Preference(f"day {n}: ", "the motion", "the table") for n in range(12)])
    home.store.add_tie(Preference("day 12: ", "the motion", "the table"), "equal", "label")
    home.join(authority_store.issue(home.request()).encode(), authority_store.digest)
    FittedStore(home.directory, home.storage).replace({"doubt": b"how sure the owner's model is"})
    policy = policy_for(RunConfig().changed({"model.base_model": str(base)}), min_honest=1, max_colluders=0)
    (place / "device" / "policy.toml").write_text(policy.to_toml())


@pytest.fixture
def device(tiny_model: Callable[[str], Path]) -> Iterator[DeviceOfTwoUsers]:
    if os.getuid() != 0:
        pytest.fail("this test makes users: run it as root")
    place = Path(tempfile.mkdtemp(prefix="penchant-boundary-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place)
        owner = stack.enter_context(user(f"pa{os.getpid()}"))
        relay = stack.enter_context(user(f"pr{os.getpid()}"))
        place.chmod(0o755)
        make_home(place, tiny_model("bert"))
        own(place / "device", owner)
        for name, mode, who, group in (("run", 0o2710, owner, relay), ("flower", 0o700, relay, relay)):
            (place / name).mkdir()
            os.chown(place / name, who.uid, group.gid)
            (place / name).chmod(mode)
        words = [*PROGRAM, "device", "serve", "--group", "--socket", str(place / "run" / "agent.sock")]
        log = stack.enter_context((place / "agent.log").open("wb"))
        agent = subprocess.Popen(
            owner.words(words),
            stdout=log,
            stderr=log,
            env=os.environ | {"PENCHANT_HOME": str(place / "device"), "HOME": "/none", "SECRET": PASSPHRASE},
        )
        stack.callback(stop, agent)
        made = DeviceOfTwoUsers(place, owner, relay, agent)
        wait_for("the agent", lambda: made.socket.exists() or agent.poll() is not None, 90)
        assert agent.poll() is None, (place / "agent.log").read_text()
        yield made


def test_the_same_attempts_succeed_for_the_agents_own_user(device: DeviceOfTwoUsers) -> None:
    """Otherwise their failing would say nothing."""
    (device.place / "targets.json").write_text(json.dumps(device.targets()))
    script = Path(__file__).with_name("hostile.py")
    done = subprocess.run(
        device.owner.words([sys.executable, str(script), str(device.place / "targets.json")]),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = json.loads(done.stdout)
    for name in ("list the home", "read vault.root", "write policy.toml", "read /proc/PID/environ",
                 "list /proc/PID/fd", "remove the socket", "send SIGKILL"):  # fmt: skip
        assert found[name].startswith("DONE"), (name, found[name])
    assert device.agent.wait(20) == -9


def test_a_hostile_bundle_gets_nothing_and_the_agent_goes_on(device: DeviceOfTwoUsers) -> None:
    before = {name: (device.home / name).read_bytes() for name in FILES if not name.startswith("vault.")}
    bundle = device.place / "bundle"
    bundle.mkdir()
    (bundle / "pyproject.toml").write_text(bundle_project("bundle:server", "bundle:client"))
    code = Path(__file__).with_name("hostile.py").read_text().split('if __name__ == "__main__"')[0]
    code = code.replace("TARGETS: dict[str, Any] = {}", f"TARGETS: dict[str, Any] = {device.targets()!r}")
    (bundle / "bundle.py").write_text(f"{code}\nmade = apps()\nserver = made[0]\nclient = made[1]\n")
    port = free_port()
    flower = environment(device.place / "superlink")
    relayed = environment(device.place / "flower") | {"HOME": str(device.place / "flower")}
    with ExitStack() as stack:
        for words, surroundings in (
            (superlink_command(port, device.place / "state.db"), flower),
            (
                device.relay.words(supernode_command(f"127.0.0.1:{port}", free_port(), device.socket)),
                relayed,
            ),
        ):
            log = stack.enter_context((device.place / "flower.log").open("ab"))
            stack.callback(
                stop, subprocess.Popen(words, stdout=log, stderr=log, env=surroundings, cwd=device.place)
            )
            wait_for("the SuperLink", lambda: listens(port), 90)
        start_run(bundle, SuperLinkAddress(f"127.0.0.1:{port}"), device.place / "operator")
        out = device.place / "loot.json"
        wait_for("the bundle", lambda: out.exists() and out.stat().st_size > 0, 240)
    found = json.loads(out.read_text())
    assert found.pop("user", found) == str(device.relay.uid)
    assert len(found) > 60
    assert {name: what for name, what in found.items() if not what.startswith("denied")} == {}
    for name, what in found.items():  # the system's word, not a mistake of the attempt
        if name.split()[0] in SYSTEM_DENIES:
            assert "ermission denied" in what or "not permitted" in what, (name, what)
    assert all("abort" in found[f"{stage} with junk"] for stage in ("Status", "Keys", "Masked", "Unmask"))
    assert found["a message of 65 MB"] == "denied: RESOURCE_EXHAUSTED"
    assert device.agent.poll() is None
    status = device.answers()
    assert (status.ready, status.member) == (True, 1)
    assert {name: (device.home / name).read_bytes() for name in before} == before
    assert PASSPHRASE not in out.read_text()
