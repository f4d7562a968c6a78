"""A person's first run, in a real browser: installed by pip, twenty choices, a ranker of their own.

PENCHANT_PICTURES=DIR keeps screenshots there, and how long each step took; docs/device.md has both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from support.processes import wait_for
from support.upstream import Upstream, upstream_server
from system.console_browser import PICTURES, Operator, Served, chromium

from penchant.deploy.device_page.starter import starter_comparisons

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(http://127\.0\.0\.1:\d+)(/enter/\S+)")
SOURCES = ("client", "common", "deploy", "server", "pyproject.toml", "README.md", "LICENSE")
CHOICES = 20
RIGHT_LEAST = 15  # of the other 20 questions; who guesses has as many right once in fifty times


@dataclass
class Steps:
    """How many seconds each step took, in order."""

    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def done(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step], self.began = round(now - self.began, 1), now

    def keep(self) -> None:
        if PICTURES:
            (Path(PICTURES) / "first-run.json").write_text(json.dumps(self.seconds, indent=1))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`penchant` as pip installs its wheel, away from the sources; what it needs is this environment's."""
    work = tmp_path_factory.mktemp("installed")
    sources = work / "sources"
    sources.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    quiet = ["-q", "--no-deps", "--disable-pip-version-check"]
    wheels = work / "wheels"
    building = ["-m", "pip", "wheel", *quiet, "--no-build-isolation", "-w", str(wheels), str(sources)]
    subprocess.run([sys.executable, *building], check=True, timeout=300)
    subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True, timeout=300)
    python = work / "venv" / "bin" / "python"
    (wheel,) = wheels.glob("penchant-*.whl")
    subprocess.run([str(python), "-m", "pip", "install", *quiet, str(wheel)], check=True, timeout=300)
    installed = sysconfig.get_path(
        "purelib", vars={"base": str(work / "venv"), "platbase": str(work / "venv")}
    )
    (Path(installed) / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return work / "venv" / "bin" / "penchant"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with upstream_server() as found:
        yield found


@pytest.fixture
def opened(program: Path, upstream: Upstream, tmp_path: Path) -> Iterator[Callable[[], tuple[Served, str]]]:
    """Starts the page over no directory at all -> (where it is, the link)."""
    log = tmp_path / "console.log"
    words = [str(program), "device", "open", "--no-browser", "--home", str(tmp_path / "home")]
    around = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    running: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[Served, str]:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*words, "--upstream", upstream.url],
                stdout=file,
                stderr=file,
                cwd=tmp_path,
                env={**around, "PYTHONUNBUFFERED": "1"},
            )
        running.append(process)
        wait_for("the link", lambda: LINK.search(log.read_text()) is not None, 240)
        found = LINK.search(log.read_text())
        assert found is not None
        return Served(found[1], tmp_path, process), found[2]

    yield start
    for process in running:
        process.terminate()
        process.wait(30)


def go_to(page: Page, name: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()


def shorter(page: Page) -> str:
    """The key of the response that somebody who likes short ones takes."""
    first, second = (len(text) for text in page.locator(".response").all_inner_texts())
    return "1" if first < second else "2"


def test_twenty_choices_make_a_ranker_that_knows_its_owner(
    opened: Callable[[], tuple[Served, str]], upstream: Upstream
) -> None:
    """Somebody who likes short answers gives twenty choices and trains: of questions that were never asked,
    the model puts the shorter response first."""
    steps = Steps()
    served, link = opened()
    steps.done("open the page")
    with chromium() as browser:
        me = Operator(browser, served)
        page = me.page
        me.go(link)
        expect(page.locator(".sure")).to_be_visible(timeout=300_000)
        steps.done("the first question, the model loaded")
        asked = set()
        for number in range(CHOICES):
            asked.add(page.locator(".prompt").inner_text().strip())
            page.keyboard.press(shorter(page))
            expect(page.locator(".tally")).to_contain_text(f"{number + 1} now", timeout=60_000)
        assert len(asked) == CHOICES
        steps.done("twenty choices, but for the reading")
        me.check("choosing")
        me.picture("first-choose")
        phone = Operator(browser, served, screen="phone", scheme="dark")
        phone.context.add_cookies(me.context.cookies())
        phone.page.goto(page.url)
        expect(phone.page.locator(".sure")).to_be_visible()
        phone.picture("first-choose")
        phone.check("choosing on a phone")

        steps.began = time.monotonic()
        go_to(page, "My model")
        page.get_by_role("button", name="Train").click()
        expect(page.get_by_role("status").first).to_contain_text("Trained on", timeout=240_000)
        steps.done("train, and judge the model")
        me.check("my model")
        me.picture("first-model")

        right = 0
        others = [pair for pair in starter_comparisons() if pair.prompt not in asked]
        assert len(others) == 40 - CHOICES
        for pair in others:
            upstream.written = [pair.chosen, pair.rejected]
            go_to(page, "Ask")
            page.get_by_label("Prompt").fill(pair.prompt)
            page.get_by_label("How many responses").fill("2")
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.locator(".prompt")).to_have_text(pair.prompt, timeout=60_000)
            lengths = [len(text) for text in page.locator(".answers .response").all_inner_texts()]
            right += lengths[0] < lengths[1]
        steps.done("twenty prompts asked and ranked")
        assert right >= RIGHT_LEAST, right

        page.get_by_text("Why before the next one?").click()
        expect(page.get_by_text("Of your choices, these speak for it most:")).to_be_visible()
        me.check("asking")
        me.picture("first-ask")
        phone.page.goto(page.url)
        phone.picture("first-ask")
        phone.check("asking on a phone")
        page.get_by_role("button", name="I would rather have had response 2").click()
        expect(page.get_by_text("Recorded: you would rather have response 2")).to_be_visible()
        me.check("another one was picked")
        go_to(page, "My choices")
        expect(page.locator(".kept > li")).to_have_count(20)
        expect(page.get_by_text("21 choices, the latest first")).to_be_visible()
        page.get_by_role("button", name="Close").click()
        served.process.wait(60)
    print(right, "of", len(others), "ranked right;", steps.seconds)
    steps.keep()
