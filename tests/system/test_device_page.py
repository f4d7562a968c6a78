"""The owner's page in a real browser: from an empty directory to a model that ranks, by keys.

PENCHANT_PICTURES=DIR keeps screenshots of the pages there; docs/figures/ has some.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, StorageState, expect
from support.device_api_scene import motions, new_device
from support.processes import PROGRAM, wait_for
from system.console_browser import SCREENS, Operator, Served, chromium

from penchant.client.device.home import OfflineConfig
from penchant.common.settings import section_table
from penchant.deploy.device_page.entrance import Entrance
from penchant.deploy.device_page.picture import ModelPicture, PictureBook
from penchant.deploy.device_page.serving import page_server

pytestmark = pytest.mark.system

LINK = re.compile(r"(http://127\.0\.0\.1:\d+)(/enter/\S+)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def opened(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[tuple[Served, str]]:
    """The page over a directory without choices, whose base model is tiny -> (where it is, the link)."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": str(tiny_model("bert")), "max_tokens": 16}
    settings["training"] |= {"lr_personal": 3e-2, "lr_head": 3e-2, "local_epochs": 20, "prior_spread": 1.0}
    (home / "model.toml").write_text(tomli_w.dumps(settings))
    ask = tmp_path / "ask.jsonl"
    rows = [{"prompt": p.prompt, "responses": [p.chosen, p.rejected]} for p in motions(24)]
    ask.write_text("\n".join(map(json.dumps, rows)))
    log = tmp_path / "console.log"
    words = [*PROGRAM, "device", "open", "--no-browser", "--home", str(home), "--ask", str(ask)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=file, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        wait_for("the link", lambda: LINK.search(log.read_text()) is not None, 240)
        found = LINK.search(log.read_text())
        assert found is not None
        yield Served(found[1], tmp_path, process), found[2]
    finally:
        process.terminate()
        process.wait(30)


def go_to(page: Page, name: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()


def left(page: Page) -> str:
    return page.locator(".response").first.inner_text()


def drop(page: Page, *files: tuple[str, str]) -> None:
    """Files, (name, data) each, that come from outside the browser fall on the page."""
    given = page.evaluate_handle(
        """(files) => {
            const given = new DataTransfer();
            for (const [name, data] of files) given.items.add(new File([data], name));
            return given;
        }""",
        [list(file) for file in files],
    )
    for kind in ("dragover", "drop"):
        page.dispatch_event("main", kind, {"dataTransfer": given})


def look_until_done(page: Page) -> None:
    """Look again, by a browser without scripts, until no work is being done."""
    again = page.get_by_role("button", name="Look again")
    for _ in range(2400):
        if not again.count():
            return
        again.click()
        page.wait_for_timeout(100)
    raise AssertionError("the work has no end")


def nothing_at_all(page: Page, what: str) -> None:
    """axe-core has nothing to say, however small."""
    found = Axe().run(page).response["violations"]
    assert [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found] == [], what


def test_an_owners_first_evening(browser: Browser, opened: tuple[Served, str]) -> None:
    """Follow the link, give twenty choices by keys, take one back, train, rank, look around, close."""
    served, link = opened
    me = Operator(browser, served)
    page = me.page
    me.go(link)
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Which one would you rather have?", timeout=300_000
    )
    me.check("the first question")
    for number in range(20):
        key = "1" if "motion" in left(page) else "2"
        page.keyboard.press(key)
        expect(page.locator(".tally")).to_contain_text(f"{number + 1} now", timeout=60_000)
    expect(page.locator(".sure")).to_contain_text(re.compile(r"The model is \d+% sure"))
    page.keyboard.press("u")
    expect(page.locator(".tally")).to_contain_text("19 now, 19 in all")
    page.keyboard.press("1" if "motion" in left(page) else "2")
    expect(page.locator(".tally")).to_contain_text("20 now, 20 in all")
    for key, said in (("s", "nothing was recorded"), ("=", "Equal: recorded"), ("b", "Both bad: recorded")):
        page.keyboard.press(key)
        expect(page.locator(".tally")).to_contain_text(said)
    me.check("a question with a model")

    go_to(page, "My model")
    page.get_by_role("button", name="Train").click()
    expect(page.get_by_role("status").first).to_contain_text("Trained on", timeout=240_000)
    expect(page.get_by_role("heading", name="Likes most")).to_be_visible()
    page.get_by_label("Prompt").fill("on bill 99: ")
    page.get_by_label("Responses, one a line").fill("the table tax\nthe motion tax\nthe table judge")
    page.get_by_role("button", name="Rank them for me").click()
    expect(page.locator("ol[aria-labelledby=ranked] li").first).to_contain_text(
        "the motion tax", timeout=60_000
    )
    me.check("my model")

    go_to(page, "My choices")
    expect(page.locator(".kept > li")).to_have_count(20)
    expect(page.get_by_text("22 choices and ties")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("bill")
    page.keyboard.press("Enter")
    expect(page.get_by_text("with “bill”")).to_be_visible()
    page.get_by_role("button", name=re.compile("Turn choice")).first.click()
    expect(page.get_by_role("status").first).to_contain_text("the other way round now")
    page.get_by_role("link", name=re.compile("Edit choice")).first.click()
    me.check("a choice to edit")
    page.get_by_label("First response").fill("the motion, corrected")
    page.get_by_label("Second response").fill("the motion, corrected")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("both responses are the same")
    (complaint,) = me.said
    assert "status of 422" in complaint
    me.said.clear()
    page.get_by_label("Second response").fill("the table,\ncorrected")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status").first).to_contain_text("Changed; what it said before is erased.")
    expect(page.locator(".side.won").get_by_text("the motion, corrected")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export choices").click()
    exported = Path(download.value.path()).read_bytes()
    assert exported.count(b"\n") == 20
    assert rb'"the table,\ncorrected"' in exported
    page.get_by_label("File").set_input_files({"name": "mine.jsonl", "mimeType": "", "buffer": exported})
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("status").first).to_contain_text("0 new choices recorded, 20 were there already")
    more = ("more.jsonl", '{"prompt": "on bill 98: ", "chosen": "the motion", "rejected": "a table"}')
    drop(page, more, more)
    expect(page.get_by_role("alert")).to_have_text("One file at a time: none was taken.")
    drop(page, ("more.zip", "PK"))
    expect(page.get_by_role("alert")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("That didn’t work")
    (complaint,) = me.said
    assert "status of 422" in complaint
    me.said.clear()
    me.check("a file that is refused")
    drop(page, more)
    expect(page.get_by_role("button", name="Import")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("1 new choice recorded, 0 were there already")
    expect(page.get_by_text("1 from file more.jsonl")).to_be_visible()
    me.check("my choices")
    go_to(page, "Fleet")
    drop(page, ("more.jsonl", "{}"))
    expect(page.get_by_text("Nothing ever left.")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text("No file is taken here: drop it on My choices.")
    page.get_by_text("Forget everything …").click()
    me.check("the fleet")

    for screen in SCREENS:
        for scheme in ("light", "dark"):
            other = Operator(browser, served, screen=screen, scheme=scheme)
            other.context.add_cookies(me.context.cookies())
            root = re.sub(r"/fleet$", "", page.url)
            for name in ("", "ask", "choices", "edit", "model", "fleet"):
                if name == "edit":
                    other.page.get_by_role("link", name=re.compile("Edit choice")).first.click()
                    expect(other.page.get_by_label("Second response")).to_be_visible()
                else:
                    other.page.goto(f"{root}/{name}")
                if name == "model":  # looked at anew, since choices were recorded
                    expect(other.page.get_by_text("Likes most")).to_be_visible(timeout=120_000)
                other.picture(f"owner-{name or 'choose'}")
                other.check(f"{name} on a {screen}, {scheme}")
                nothing_at_all(other.page, f"{name} on a {screen}, {scheme}")
            other.context.close()

    stranger = Operator(browser, served)
    answer = stranger.page.goto(f"{served.address}{link}")
    assert answer is not None
    assert answer.status == 403
    expect(stranger.page.get_by_role("heading", level=1)).to_have_text("This link is used up")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Closed")
    served.process.wait(60)


@pytest.fixture
def slow(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str, threading.Event]]:
    """A page whose looks at the model and whose writer end when they are told to -> (where it is, the link,
    that)."""
    go = threading.Event()
    look = PictureBook.look

    def waited(book: PictureBook, model: threading.RLock) -> ModelPicture:
        go.wait(120)
        return look(book, model)

    class Writer:
        name, address = "a test", "http://127.0.0.1:9/v1"

        def write(self, prompt: str, count: int) -> list[str]:
            go.wait(120)
            return ["the table tax", "the motion tax"]

    monkeypatch.setattr(PictureBook, "look", waited)
    device = new_device(tmp_path / "device", tiny_model("bert"), motions(24))
    entrance = Entrance()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        server = page_server(device, motions(30), entrance, frozenset({host}), Writer())
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://{host}", entrance.link, go
        finally:
            go.set()
            server.should_exit = True
            thread.join(60)


def test_what_is_typed_stays_while_the_page_changes_around_it(
    browser: Browser, slow: tuple[str, str, threading.Event]
) -> None:
    """My model is looked at, and responses are written, while their owner types."""
    url, link, go = slow
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url + link)
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Which one would you rather have?", timeout=120_000
    )
    state = context.storage_state()

    go_to(page, "My model")
    expect(page.locator("#now")).to_be_visible()
    prompt, responses = page.get_by_label("Prompt"), page.get_by_label("Responses, one a line")
    prompt.fill("typed")
    responses.fill("a long list\nthat I typed")
    go.set()
    expect(page.get_by_role("heading", name="Likes most")).to_be_visible()
    expect(page.locator("#now")).to_have_count(0)
    expect(prompt).to_have_value("typed")
    expect(responses).to_have_value("a long list\nthat I typed")
    expect(responses).to_be_focused()
    page.get_by_role("button", name="Train").click()
    expect(page.get_by_role("status").first).to_contain_text("Trained on")
    expect(responses).to_have_value("a long list\nthat I typed")

    go.clear()
    go_to(page, "Ask")
    prompt = page.get_by_label("Prompt")
    prompt.fill("on bill 99: ")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("button", name="Ask")).to_be_disabled()
    prompt.fill("the next one")
    go.set()
    page.get_by_role("button", name="I would rather have had").click()
    expect(page.get_by_text("Recorded: you would rather have")).to_be_visible()
    page.get_by_role("button", name="Take it back").click()
    expect(page.get_by_role("status").first).to_have_text("Taken back.")
    expect(prompt).to_have_value("the next one")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    nothing_at_all(page, "after parts of the page were put in their place")
    context.close()

    go.clear()
    context = browser.new_context(java_script_enabled=False, storage_state=state)
    page = context.new_page()
    page.goto(f"{url}{page_root(state)}/ask")
    page.get_by_label("Prompt").fill("on bill 99: ")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_label("Prompt").fill("without scripts")
    page.get_by_role("button", name="Look again").click()
    expect(page.get_by_label("Prompt")).to_have_value("without scripts")
    go.set()
    look_until_done(page)
    expect(page.get_by_role("heading", name="Best for you first")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_have_value("without scripts")
    context.close()


def page_root(state: StorageState) -> str:
    """The address that nobody can guess, which the cookie is for."""
    (cookie,) = state["cookies"]
    return cookie["path"]


def test_all_of_it_works_without_scripts(browser: Browser, opened: tuple[Served, str]) -> None:
    """The same evening by a browser that runs none: forms, and pages that load themselves again."""
    served, link = opened
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{served.address}{link}")
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Which one would you rather have?", timeout=300_000
    )
    for number in range(8):
        better = "1" if "motion" in left(page) else "2"
        page.get_by_role("button", name=f"{better} I would rather have this").click()
        expect(page.locator(".tally")).to_contain_text(f"{number + 1} now", timeout=60_000)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".tally")).to_contain_text("7 now, 7 in all")
    page.get_by_role("button", name="Equal").click()
    expect(page.locator(".tally")).to_contain_text("Equal: recorded as a tie.")

    go_to(page, "My choices")
    page.get_by_role("button", name=re.compile("Turn choice")).first.click()
    expect(page.get_by_role("status").first).to_contain_text("the other way round now")
    page.get_by_role("link", name=re.compile("Edit choice")).first.click()
    page.get_by_label("First response").fill("the motion, corrected")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("the motion, corrected")).to_be_visible()
    page.get_by_label("File").set_input_files(
        {
            "name": "more.csv",
            "mimeType": "",
            "buffer": b"prompt,chosen,rejected\non bill 98: ,the motion,a table\n",
        }
    )
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("status").first).to_contain_text("1 new choice recorded")
    page.get_by_text("Delete …").first.click()
    page.get_by_role("button", name=re.compile("Delete choice .* for good")).first.click()
    expect(page.get_by_text("Deleted")).to_be_visible(timeout=120_000)

    go_to(page, "My model")
    look_until_done(page)
    expect(page.get_by_text("nothing is trained yet")).to_be_visible()
    page.get_by_role("button", name="Train").click()
    look_until_done(page)
    expect(page.get_by_text("by your own model")).to_be_visible()
    page.get_by_label("Responses, one a line").fill("the table tax\nthe motion tax")
    page.get_by_role("button", name="Rank them for me").click()
    expect(page.get_by_role("heading", name="Best for you first")).to_be_visible()
    go_to(page, "Ask")
    expect(page.get_by_text("Nobody writes responses yet")).to_be_visible()
    go_to(page, "Fleet")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("This device takes part in nothing now.")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Closed")
    served.process.wait(60)
    context.close()
