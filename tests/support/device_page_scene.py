"""The owner's page over a device with a tiny model, and the owner at a browser without scripts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from penchant.client.device.device import Device
from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.data.preferences import Preference
from penchant.common.membership.identity import authority_digest
from penchant.deploy.device_page.app import build_page
from penchant.deploy.device_page.entrance import Entrance
from penchant.deploy.device_page.writers import ResponseWriter
from penchant.deploy.fleet.authority import AuthorityStore

HOST = "127.0.0.1:8766"


class OwnerAtPage:
    """A browser before the page. Redirects are shown, not followed."""

    def __init__(self, app: Any, entrance: Entrance, *, enter: bool = True) -> None:
        self.app = app
        self.entrance = entrance
        self.client = TestClient(
            app, base_url=f"http://{HOST}", follow_redirects=False, raise_server_exceptions=False
        )
        if enter:
            assert self.client.get(entrance.link).status_code == 200

    def get(self, path: str = "/", **more: Any) -> httpx.Response:
        return self.client.get(f"{self.entrance.root}{path}", **more)

    def post(self, path: str, form: Mapping[str, str] | None = None, **more: Any) -> httpx.Response:
        """An honest form, as a page would send it."""
        data = {"csrf": self.entrance.csrf, **(form or {})}
        return self.client.post(f"{self.entrance.root}{path}", data=data, **more)

    def follow(self, path: str, form: Mapping[str, str] | None = None, **more: Any) -> str:
        """The page that a form leads to."""
        answer = self.post(path, form, **more)
        assert answer.status_code == 303, answer.text
        return self.client.get(answer.headers["location"]).text

    def upload(self, name: str, data: bytes, **fields: str) -> httpx.Response:
        form = {"csrf": self.entrance.csrf, **fields}
        return self.client.post(
            f"{self.entrance.root}/choices/import", data=form, files={"file": (name, data)}
        )

    def ready(self) -> OwnerAtPage:
        """Once the questions are there."""
        while "comes in a moment" in self.get().text:
            time.sleep(0.02)
        return self

    def turn(self) -> str:
        found = re.search(r'name="turn" value="(\d+)"', self.get().text)
        assert found is not None
        return found[1]

    def say(self, word: str) -> str:
        """Answer the question that is asked; -> the next page."""
        return self.follow("/choose", {"turn": self.turn(), "say": word})

    def finished(self) -> str:
        """My model, once nothing is done any more."""
        page = self.get("/model").text
        while "/model/now" in page:
            time.sleep(0.05)
            page = self.get("/model").text
        return page

    def asked(self, prompt: str, count: int = 4) -> str:
        """Ask, once what comes of it is there."""
        page = self.follow("/ask", {"prompt": prompt, "count": str(count)})
        while "/ask/now" in page:
            time.sleep(0.05)
            page = self.get("/ask").text
        return page


def join_fleet(device: Device, folder: Path) -> None:
    """Make the device member 1 of a fleet, whose authority is in `folder` and whose node is in its own."""
    store = AuthorityStore.init(folder / "authority")
    answer = store.issue(device.request(), "mine")
    device.join(answer.encode(), authority_digest(store.authority.public_key))
    here = device.directory / "node"
    here.mkdir()
    node = SuperNodeFiles(here, "fleet.example:8443", here / "agent.sock", "token")
    for path in (node.key, node.ca):
        path.write_bytes(b"a key")
    node.write()


@contextmanager
def opened(
    device: Device, comparisons: Sequence[Preference], writer: ResponseWriter | None = None
) -> Iterator[OwnerAtPage]:
    """The owner, let in, before the first question."""
    entrance = Entrance()
    closed: list[bool] = []
    app = build_page(
        device,
        comparisons,
        entrance,
        hosts=frozenset({HOST}),
        close=lambda: closed.append(True),
        writer=writer,
    )
    owner = OwnerAtPage(app, entrance)
    with owner.client:
        owner.ready()
        yield owner
