"""A device's API on a real port: uvicorn in a thread, and a trained device behind it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tomli_w
import uvicorn

from penchant.client.device.device import Device
from penchant.client.device.home import OfflineConfig
from penchant.client.device.warm_model import WarmModel, small_cache
from penchant.common.data.preferences import Preference
from penchant.common.settings import section_table
from penchant.deploy.device_api.serving import server_for

TOKEN = "penchant-" + "t" * 43
WORDS = ("bill", "vote", "judge", "budget", "tax", "cloture")


def motions(count: int = 24) -> list[Preference]:
    """Somebody who likes motions and not tables."""
    pairs = ((f"on {WORDS[n % 6]} {n}: ", WORDS[n // 6 % 6]) for n in range(count))
    return [Preference(prompt, f"the motion {word}", f"the table {word}") for prompt, word in pairs]


def chats(count: int = 24) -> list[Preference]:
    """The same person in conversations."""
    return [
        Preference(f"user: {p.prompt.strip()}\n", f"assistant: {p.chosen}", f"assistant: {p.rejected}")
        for p in motions(count)
    ]


def new_device(folder: Path, base: Path, choices: list[Preference], passphrase: str | None = None) -> Device:
    """A device whose model is a tiny one, trained on some choices if there are any."""
    folder.mkdir()
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": str(base), "max_tokens": 16}
    settings["training"] |= {"lr_personal": 3e-2, "lr_head": 3e-2, "local_epochs": 20, "prior_spread": 1.0}
    (folder / "model.toml").write_text(tomli_w.dumps(settings))
    device = Device(folder, passphrase, small_cache())
    if choices:
        device.record(choices)
        device.train()
    return device


@dataclass(frozen=True)
class ServedApi:
    """An API that answers."""

    device: Device
    model: WarmModel
    url: str

    def client(self, **headers: str) -> httpx.Client:
        """A program that has the token."""
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {TOKEN}", **headers}, timeout=60
        )

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """One request of such a program."""
        with self.client(**headers) as client:
            return client.post(path, json=body)


@contextmanager
def running(server: uvicorn.Server) -> Iterator[str]:
    """A server of uvicorn on a free port of loopback -> its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(120)


@contextmanager
def served(device: Device, **options: Any) -> Iterator[ServedApi]:
    """The API of a device on a free port; options as for `server_for`."""
    model = WarmModel(device)
    settings: dict[str, Any] = {"token": lambda: TOKEN, **options}
    server = server_for(device, model, hosts=frozenset(), **settings)
    names = _names_of(server)
    with running(server) as url:
        names |= {url.removeprefix("http://"), url.replace("127.0.0.1", "localhost").removeprefix("http://")}
        yield ServedApi(device, model, url)


def _names_of(server: uvicorn.Server) -> set[str]:
    """The names that the door knows: the port is known only now."""
    app: Any = server.config.app
    (door,) = app.user_middleware
    door.kwargs["hosts"] = names = set[str]()
    return names
