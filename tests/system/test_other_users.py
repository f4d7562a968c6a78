"""Another user of the machine before the owner's page, the API, their socket and files: all is denied."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.device_api_scene import motions, new_device
from support.processes import PROGRAM, free_port, listens, running, wait_for
from system.other_user import User, user

pytestmark = pytest.mark.system

LINK = re.compile(r"(http://127\.0\.0\.1:(\d+))/enter/\S+")
ENDS = "another page of this device was opened"
WHAT_SUCCEEDS = (
    "list the home", "read preferences.db", "read preferences.keys", "read api.token", "read page.html",
    "read vault.root", "follow the link in page.html", "rank by the token in api.token", "rank by rank.sock",
    "read /proc/PID/environ of the page", "list /proc/PID/fd of the API", "remove rank.sock",
    "send SIGTERM of the page", "send SIGKILL of the API",
)  # fmt: skip
KEPT = ("preferences.db", "preferences.keys", "model.toml", "api.token", "page.html", "vault.root")
BY_THE_SYSTEM = (
    "list the", "list /proc", "read", "write", "make", "rename", "link", "open", "replace", "remove",
    "process_vm", "ptrace", "pidfd", "prlimit", "setpriority", "send SIG",
)  # fmt: skip
SEEN = {0o700: set[str](), 0o755: {"list the home", "read model.toml"}}
"""What another user gets by the mode of the device's directory: in one that others may enter, the names of
files, and the settings that the owner wrote."""


@dataclass
class OwnersPrograms:
    """A device's page and API, which run as its owner, and another user of the machine."""

    place: Path
    owner: User
    other: User
    stack: ExitStack
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.place / "device"

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """`penchant device …` as the owner; what it says is in a terminal of the owner's alone."""
        log = self.place / f"{name}.log"
        log.touch(0o600)
        surroundings = os.environ | {
            "PENCHANT_HOME": str(self.home),
            "HOME": "/none",
            "PYTHONUNBUFFERED": "1",
        }
        command = self.owner.words([*PROGRAM, "device", *words])
        process = self.stack.enter_context(running(command, log, env=surroundings, cwd=self.place))
        self.processes[name] = process
        return process

    def said(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def open_page(self, name: str = "the page") -> subprocess.Popen[bytes]:
        process = self.start(name, "open", "--no-browser")
        wait_for("the link", lambda: bool(LINK.search(self.said(name))) or process.poll() is not None, 240)
        found = LINK.search(self.said(name))
        assert found is not None, self.said(name)
        self.ports[name] = int(found[2])
        wait_for("the page", lambda: listens(self.ports[name]), 60)
        return process

    def serve_api(self) -> None:
        port = self.ports["the API"] = free_port()
        process = self.start("the API", "serve-api", "--port", str(port))
        wait_for("the API", lambda: (self.home / "rank.sock").exists() or process.poll() is not None, 240)
        assert process.poll() is None, self.said("the API")
        wait_for("the API", lambda: listens(port), 60)

    def tried_by(self, who: User, only: tuple[str, ...] | None = None) -> dict[str, str]:
        """What comes of the attempts of `trespasser.py` as a user."""
        aims: dict[str, Any] = {
            "home": str(self.home),
            "files": sorted(path.name for path in self.home.iterdir() if path.is_file()),
            "page": f"http://127.0.0.1:{self.ports['the page']}",
            "api": f"http://127.0.0.1:{self.ports['the API']}",
            "ports": list(self.ports.values()),
            "pids": {name: process.pid for name, process in self.processes.items()},
            "only": only,
        }
        script = str(Path(__file__).with_name("trespasser.py"))
        done = subprocess.run(
            who.words([sys.executable, script]), input=json.dumps(aims), capture_output=True, text=True,
            timeout=240, cwd=self.place,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user of the machine may enter, as /home is."""
    if os.getuid() != 0:
        pytest.fail("this test makes users: run it as root")
    made = Path(tempfile.mkdtemp(prefix="penchant-others-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def programs(tiny_model: Callable[[str], Path], place: Path) -> Iterator[OwnersPrograms]:
    with ExitStack() as stack:
        owner = stack.enter_context(user(f"po{os.getpid()}"))
        other = stack.enter_context(user(f"px{os.getpid()}"))
        shutil.copytree(tiny_model("bert"), place / "base")
        new_device(place / "device", place / "base", motions(12))
        for path in (place / "base", place / "device"):
            for each in (path, *path.rglob("*")):
                os.chown(each, owner.uid, owner.gid)
        yield OwnersPrograms(place, owner, other, stack)


@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["a closed home", "a home that others may enter"])
def test_another_user_of_the_machine_gets_nothing_and_the_owner_everything(
    programs: OwnersPrograms, mode: int
) -> None:
    """What succeeds for the owner shows that the attempts are none that fail by themselves."""
    programs.home.chmod(mode)
    programs.serve_api()
    programs.open_page()
    before = {name: (programs.home / name).read_bytes() for name in KEPT}
    found = programs.tried_by(programs.other)
    assert len(found) > 70
    taken = {name: what for name, what in found.items() if not what.startswith("denied")}
    assert set(taken) == SEEN[mode], taken
    for name, what in found.items():  # the system's word, not a mistake of the attempt
        if name.startswith(BY_THE_SYSTEM) and name not in taken:
            assert "ermission denied" in what or "not permitted" in what, (name, what)
    for name in ("rank without a token", "rank by a token of my own", "send a choice to the API"):
        assert "401" in found[name], (name, found[name])
    for name in ("guess a link", "ask for the page at its door", "send a choice to the page"):
        assert re.search("HTTP Error 40[34]", found[name]), (name, found[name])
    assert all(process.poll() is None for process in programs.processes.values())
    assert {name: (programs.home / name).read_bytes() for name in before} == before

    succeeded = programs.tried_by(programs.owner, WHAT_SUCCEEDS)
    assert set(succeeded) == set(WHAT_SUCCEEDS)
    assert {name: what for name, what in succeeded.items() if not what.startswith("DONE")} == {}


def test_an_owner_who_opens_another_page_ends_the_earlier_one(programs: OwnersPrograms) -> None:
    earlier = programs.open_page("the earlier page")
    later = programs.open_page("the later page")
    assert earlier.wait(60) == 0
    assert ENDS in programs.said("the earlier page")
    assert not listens(programs.ports["the earlier page"])
    assert later.poll() is None
    link = LINK.search(programs.said("the later page"))
    assert link is not None
    assert link[0] in (programs.home / "page.html").read_text()
