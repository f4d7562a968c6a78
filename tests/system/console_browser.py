"""Somebody at the console in a real Chromium, who notices what a browser and axe-core complain of."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
PASSWORD = "a long enough password"
PICTURES = os.environ.get("PENCHANT_PICTURES")
SCREENS = {"desk": (1280, 860), "phone": (390, 844)}
SERIOUS = {"serious", "critical"}


@contextmanager
def chromium(program: str = CHROMIUM) -> Iterator[Browser]:
    """The system's browser. program: what is run as such."""
    with sync_playwright() as playwright:
        flags = [f"--{flag}" for flag in FLAGS.split()]
        with playwright.chromium.launch(executable_path=program, args=flags) as started:
            yield started


@dataclass
class Served:
    """A console that listens. address: http://127.0.0.1:PORT"""

    address: str
    folder: Path
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        return (self.folder / "console.log").read_text(encoding="utf-8")


class Operator:
    """Somebody at the browser. What the browser complains of is kept in `said`."""

    def __init__(
        self, browser: Browser, served: Served, *, screen: str = "desk", scheme: str = "light"
    ) -> None:
        width, height = SCREENS[screen]
        self.served, self.screen, self.scheme = served, screen, scheme
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
            accept_downloads=True,
        )
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def go(self, path: str) -> None:
        self.page.goto(self.served.address + path)

    def login(self, name: str = "olga") -> None:
        self.go("/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(self.served.address + "/")

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.wait_for_timeout(300)
            path = Path(PICTURES) / f"console-{name}-{self.screen}-{self.scheme}.png"
            self.page.screenshot(path=path)

    def check(self, what: str) -> None:
        """Nothing to complain of: not by the browser, not by axe, and nothing wider than the screen."""
        assert self.said == [], f"{what}: {self.said}"
        assert [url for url in self.asked if not url.startswith(self.served.address)] == []
        assert self.page.evaluate("document.documentElement.scrollWidth") <= SCREENS[self.screen][0], what
        found = Axe().run(self.page).response["violations"]
        bad = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in SERIOUS]
        assert bad == [], what
