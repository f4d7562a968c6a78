"""A stage for tests of the console: run directories made by hand, an application over them, a browser.

Nothing is trained: the journals are written through `Journal`, as a server would.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.testclient import TestClient

from penchant.common.config import RunConfig
from penchant.common.crypto.passphrase import ScryptCost
from penchant.common.errors import ConsoleError
from penchant.deploy import run_directory
from penchant.deploy.console.local import OperationsOnThisMachine
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.app import build_app
from penchant.server.journal import Journal, RoundLog
from penchant.server.optimizers import ServerState

HOST = "127.0.0.1:8900"
PASSWORD = "correct horse battery"
CHEAP = ScryptCost(2**10)  # of a password: a test has nothing to protect
ACCOUNTS = {"olga": "operator", "vera": "viewer"}


def log(round: int, **changes: Any) -> RoundLog:
    given: dict[str, Any] = {
        "round": round,
        "attempt": 1,
        "phase": "main",
        "cohort": 34,
        "survivors": 33,
        "dropped": {"masked": 1},
        "seconds": 2.5,
        "bytes_up": 566_000,
        "bytes_down": 1_300_000,
        "examples": 680,
        "train_loss": 0.8 / round,
        "val_accuracy": 0.5 + 0.2 * round / (round + 5),
        "histogram": [0, 0, 1, 2, 3, 9, 10, 5, 2, 1],
        "update_norm": 0.3,
    }
    return RoundLog(**{**given, **changes})


def shared(value: float) -> ServerState:
    return ServerState.begin(np.full(8, value, np.float32), np.zeros(0, np.float32))


def make_run(
    directory: Path, rounds: int = 3, *, of: int = 8, devices: int = 5, joined: int = 10**6, **changes: Any
) -> Path:
    """A run directory with `rounds` finished ones of `of`; the first `joined` devices are in every sum."""
    config = RunConfig().changed({"federation.rounds": of, "seed": 7, **changes})
    run_directory.create(directory, config)
    journal = Journal(directory)
    journal.note("sums main", '[["layer.lora_A", [2, 4]], ["weight", []], ["accuracy 0/10", []]]')
    journal.seen({member: 1000 + member for member in range(1, devices + 1)})
    for number in range(1, rounds + 1):
        journal.begin(number, "main")
        for stage in ("keys", "shares", "masked", "confirm", "unmask"):
            journal.stage(number, 1, stage, 34)
            journal.answered(number, 1, stage, 33, over=True)
        journal.finish(log(number), shared(number))
        journal.joined(range(1, min(devices, joined) + 1), number)
    journal.close()
    return directory


class Browser:
    """Somebody at the console. Cookies are kept, redirects are shown, not followed."""

    def __init__(self, app: Any, name: str = "", *, base: str = f"http://{HOST}") -> None:
        self.client = TestClient(app, base_url=base, follow_redirects=False, raise_server_exceptions=False)
        if name:
            assert self.login(name).status_code == 303

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def token(self, path: str = "/") -> str:
        """What a form on a page carries against forgery."""
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.get(path).text)
        assert found is not None, path
        return found[1]

    def post(self, path: str, form: Mapping[str, str] | None = None, **more: Any) -> httpx.Response:
        """An honest form, as a page would send it, by somebody who is sure."""
        return self.client.post(path, data={"csrf": self.token(), "sure": "yes", **(form or {})}, **more)

    def login(self, name: str, password: str = PASSWORD, **more: str) -> httpx.Response:
        form = {"csrf": self.token("/login"), "name": name, "password": password, **more}
        return self.client.post("/login", data=form)


class Console:
    """An application over a folder of runs, with an operator and a viewer."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.store = ConsoleStore(folder / "state", CHEAP)
        for name, role in ACCOUNTS.items():
            self.store.add(name, role, PASSWORD)
        self.operations = OperationsOnThisMachine([self.runs], self.store)
        self.app = build_app(self.store, self.operations, hosts=frozenset({HOST}), **more)

    def browser(self, name: str = "") -> Browser:
        return Browser(self.app, name)

    def id_of(self, name: str) -> str:
        return next(location.id for location in self.operations.locations() if location.name == name)

    def close(self) -> None:
        """Stop what the console has started: a run would go on by itself."""
        started = self.store.jobs()
        for location in self.operations.locations():
            if location.id in started:
                with suppress(ConsoleError):  # it has ended meanwhile
                    self.operations.stop(location)

    def outcomes(self, action: str) -> list[str]:
        return [entry.outcome for entry in self.store.audit_entries() if entry.action == action]


def form_of(html: str, action: str) -> dict[str, str]:
    """What a browser sends of a form on a page: hidden and typed fields, ticks, choices, long texts."""

    class Read(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.sent: dict[str, str] = {}
            self.inside = False
            self.select = self.area = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            have = {name: value or "" for name, value in attrs}
            if tag == "form":
                self.inside = have.get("action") == action
            if not self.inside:
                return
            if tag == "input" and (have.get("type") != "checkbox" or "checked" in have):
                self.sent[have["name"]] = have.get("value", "on")
            if tag == "select":
                self.select = have["name"]
            if tag == "option" and ("selected" in have or self.select not in self.sent):
                self.sent[self.select] = have.get("value", CHOSEN)
            if tag == "textarea":
                self.area = have["name"]
                self.sent[self.area] = ""

        def handle_data(self, data: str) -> None:
            if self.area:
                self.sent[self.area] += data
            if self.sent.get(self.select) == CHOSEN:
                self.sent[self.select] = data

        def handle_endtag(self, tag: str) -> None:
            if tag in ("textarea", "select"):
                self.area = self.select = ""

    read = Read()
    read.feed(html)
    return read.sent


CHOSEN = "the text of the option"


def text_of(html: str) -> str:
    """What a page says, without its tags."""

    class Said(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[str] = []

        def handle_data(self, data: str) -> None:
            self.parts.append(data)

    said = Said()
    said.feed(html)
    return " ".join(" ".join(said.parts).split()).replace("\u202f", " ")
