"""The console in a real browser, over real processes: an operator's day, and every page for everybody.

PENCHANT_PICTURES=DIR keeps screenshots of the pages there; docs/figures/ has some.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from playwright.sync_api import Browser, Page, expect
from support.console_scene import make_run
from support.processes import PROGRAM, free_port, listens, wait_for
from system.console_browser import PASSWORD, PICTURES, SCREENS, Operator, Served, chromium

from penchant.common.membership.enrolment import request
from penchant.common.membership.join_token import JoinToken
from penchant.deploy import run_directory
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import attend
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.views.devices import qr_code

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A console over a folder without runs, with an operator and a viewer made at the command line."""
    folder = tmp_path_factory.mktemp("console")
    state = ["--state", str(folder / "state")]
    for name, role in (("olga", "operator"), ("vera", "viewer")):
        words = [*PROGRAM, "console", "account", "add", name, "--role", role, *state]
        done = subprocess.run(words, input=PASSWORD + "\n", text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    port = free_port()
    made_fleet(folder)
    (folder / "runs").mkdir()
    words = [*PROGRAM, "console", str(folder / "runs"), str(folder / "fleet"), "--port", str(port), *state]
    with (folder / "console.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_for("the console", lambda: listens(port), 120)
        yield Served(f"http://127.0.0.1:{port}", folder, process)
    finally:
        process.terminate()
        process.wait(30)
        for line in Path("/proc").glob("[0-9]*/cmdline"):  # runs go on without their console: stop them
            with suppress(OSError):  # gone meanwhile
                if str(folder).encode() in line.read_bytes():
                    os.kill(int(line.parent.name), signal.SIGKILL)


def made_fleet(folder: Path) -> None:
    """A fleet's server with eight members, and their authority beside it. Its SuperLink is not up."""
    authority_store = AuthorityStore.init(folder / "authority")
    for number in range(8):
        authority_store.issue(request(bytes([number + 1]) * 32), f"device {number}")
    settings = ServerSettings(addresses=("fleet.example.org",), superlink_port=free_port())
    ServerDirectory.create(
        folder / "fleet", settings, authority_store.authority.public_key, authority_store.latest()
    )


def quick(page: Page, name: str, rounds: int, seed: int = 0) -> None:
    """Fill the form of a new run: the votes of 36 senators, enough of them for a histogram."""
    page.get_by_label("Name", exact=True).fill(name)
    page.locator("details.fold").evaluate_all("folds => folds.forEach((fold) => { fold.open = true; })")
    for key, value in (
        ("data.clients", 36),
        ("federation.rounds", rounds),
        ("federation.warmup_rounds", 2),
        ("federation.cohort", 34),
        ("seed", seed),
    ):
        page.get_by_label(key, exact=True).fill(str(value))


def test_an_operators_day(browser: Browser, served: Served) -> None:
    """Log in, start a run, watch rounds arrive, stop, resume, promote and download, roll back, log out."""
    me = Operator(browser, served)
    page = me.page
    me.go("/runs")
    expect(page).to_have_url(re.compile(r"/login\?next="))
    me.picture("login")
    me.login()
    expect(page.get_by_role("heading", level=1)).to_have_text("No run yet")
    me.check("an empty overview")

    # a run is checked while it is written, and what is wrong is said beside it
    page.get_by_role("link", name="Start a run").click()
    me.check("the form of a run as it is opened")
    page.locator("summary", has_text="More of model and adapter").click()
    rank, beside = page.get_by_label("adapter.rank"), page.locator("#set-adapter-rank-wrong")
    good = rank.input_value()
    rank.fill("0")
    expect(page.locator("#verdict")).to_contain_text("adapter.rank is 0; it must lie in 1 … 512")
    expect(beside).to_have_text("adapter.rank is 0; it must lie in 1 … 512")
    expect(rank).to_have_attribute("aria-invalid", "true")
    me.picture("refused")
    rank.press("Enter")  # which checks, and starts nothing
    expect(page.locator("details.fold[open] #set-adapter-rank")).to_have_value("0")
    me.check("a wrong setting")
    rank.fill(good)
    expect(page.locator("#verdict")).to_contain_text("It can run")
    expect(beside).to_have_text("")
    expect(rank).to_have_attribute("aria-invalid", "false")

    # the same as a file, and a choice that submits by itself; what was written stays
    page.get_by_label("federation.clip").evaluate("field => { field.value = '3'; }")
    page.locator("summary", has_text="As a file").click()
    page.get_by_role("button", name="Write it as a file").click()
    expect(page.get_by_label("Configuration")).to_have_value(re.compile("clip = 3.0"))
    me.check("the form of a run as a file")
    page.get_by_role("button", name="Back to the fields").click()
    page.get_by_label("Begin with").select_option("Senate, a quick look")
    expect(page.get_by_label("federation.rounds")).to_have_value("8")
    expect(page.get_by_label("federation.clip")).to_have_value("3")
    quick(page, "spring", 60)
    me.check("the form of a run")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("status").first).to_contain_text("spring has begun.")
    run = page.url

    # rounds arrive without a reload
    page.evaluate("window.same = true")
    final = page.locator("#rounds ~ div td", has_text=re.compile("^final$"))
    expect(final.first).to_be_visible(timeout=180_000)
    before = final.count()
    expect(page.locator(".stages li.now, .stages li.done").first).to_be_visible()
    wait_for("another round", lambda: final.count() > (before if not PICTURES else 11), 240)
    assert page.evaluate("window.same") is True
    me.picture("run-live")
    me.go("/")
    expect(page.get_by_role("heading", level=1)).to_contain_text("of held-out choices right")
    me.picture("overview")
    me.check("the overview of a run")

    # stop, and go on
    me.go(run.removeprefix(served.address))
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Stop spring?")
    me.check("a question")
    page.get_by_role("button", name="Stop it").click()
    expect(page.get_by_role("status").first).to_contain_text("spring has stopped")
    expect(page.locator(".pill").first).to_have_text("stopped")
    stood = int(page.locator("progress").get_attribute("value") or 0)
    assert stood > 0
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".pill").first).to_have_text("running")
    wait_for("rounds after the stop", lambda: value(page) > stood, 180)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Stop it").click()
    expect(page.locator(".pill").first).to_have_text("stopped")

    # a release: promoted, downloaded, replaced, rolled back
    page.get_by_role("link", name="Releases").click()
    page.get_by_role("button", name=re.compile("Promote round 2$")).click()
    page.get_by_role("button", name="Promote it").click()
    expect(page.get_by_role("status").first).to_contain_text("Release 1 is the adapter of round 2.")
    page.get_by_role("button", name=re.compile("Promote round 3$")).click()
    page.get_by_role("button", name="Promote it").click()
    page.get_by_role("button", name="Use release 1 again").click()
    page.get_by_role("button", name="Use it again").click()
    expect(page.locator(".notice.good")).to_contain_text("Release 1 is in use")
    me.picture("releases")
    me.check("releases")
    with page.expect_download(timeout=180_000) as waiting:
        page.get_by_role("link", name=re.compile("Download the adapter of round 3$")).click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert "adapter_model.safetensors" in archive.namelist()
        assert json.loads(archive.read("release.json"))["round"] == 3

    # another run to compare with, and to delete
    me.go("/runs/new?from=" + run.rsplit("/", 1)[1])
    quick(page, "autumn", 3, seed=1)
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".pill").first).to_have_text("finished", timeout=240_000)
    me.picture("run")
    me.check("a run that is finished")
    page.get_by_role("link", name="Runs", exact=True).first.click()
    for box in page.get_by_role("checkbox").all():
        box.check()
    me.picture("runs")
    me.check("runs")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare")
    me.picture("compare")
    me.check("a comparison")
    autumn = served.folder / "runs" / "autumn"  # its process still writes the report
    wait_for("its process", lambda: not run_directory.busy(autumn), 120)
    page.get_by_role("link", name="autumn").first.click()
    page.get_by_role("link", name="Delete").click()
    page.get_by_label(re.compile("Type autumn")).fill("spring")
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was deleted")
    me.said.clear()  # the browser tells of the 422
    page.get_by_label(re.compile("Type autumn")).fill("autumn")
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("status").first).to_contain_text("autumn is deleted.")
    assert sorted(path.name for path in (served.folder / "runs").iterdir()) == ["spring"]

    # keys, colours, and out
    page.keyboard.press("g")
    page.keyboard.press("a")
    expect(page.get_by_role("heading", level=1)).to_have_text("Audit")
    expect(page.locator("tbody tr").first).to_contain_text("delete a run")
    me.picture("audit")
    me.check("the audit")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    # the palette, the values of a chart by keys, and a density that is remembered
    page.keyboard.press("Control+k")
    page.keyboard.type("sprin")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("spring")
    chart = page.locator(".chart > div").first
    chart.focus()
    page.keyboard.press("ArrowRight")
    expect(chart.locator(".tip")).to_contain_text("after round 0")
    page.keyboard.press("ArrowRight")
    expect(chart.locator(".tip")).to_contain_text("after round 1")
    me.check("a chart that is read")
    with page.expect_download() as drawing:
        page.get_by_role("link", name="SVG").first.click()
    assert Path(drawing.value.path()).read_text(encoding="utf-8").startswith("<svg ")
    page.get_by_role("button", name="Rows: comfortable").click()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.density") == "compact"
    me.check("compact rows")
    page.keyboard.press("Control+k")
    page.keyboard.type("density")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Rows: comfortable")).to_be_visible()
    page.get_by_role("button", name=re.compile("Colours")).click()
    page.get_by_role("button", name=re.compile("Colours: light")).click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.go_back()
    expect(page).to_have_url(re.compile("/login"))  # nothing of it stays in the browser
    me.context.close()
    assert PASSWORD not in served.log()
    assert "Traceback" not in served.log()


def value(page: Page) -> int:
    return int(page.locator("progress").get_attribute("value") or 0)


def test_an_invitation_and_a_revocation(browser: Browser, served: Served) -> None:
    """A token is handed out with its picture; a revocation is pending until the authority has signed."""
    me = Operator(browser, served)
    page = me.page
    me.login()
    page.get_by_role("link", name="Devices").click()
    page.get_by_label(re.compile("^For")).fill("the kitchen")
    page.get_by_role("button", name="Hand out a token").click()
    text = page.locator("#token").inner_text()
    assert JoinToken.read(text, time.time()).terms.address == "fleet.example.org:8443"
    drawn = page.locator("svg.qr path").last.get_attribute("d")
    assert drawn is not None
    assert drawn in qr_code(text)  # the picture is of this very token
    me.picture("token")
    me.check("a token")
    page.get_by_role("link", name="Done").click()
    expect(page.locator("tr", has_text="the kitchen")).to_contain_text("open")
    assert text not in page.content()

    page.get_by_label("Member", exact=True).fill("5")
    page.get_by_label("Why").fill("lost on a train")
    page.get_by_role("button", name="Ask for the revocation").click()
    page.get_by_role("button", name="Ask for it").click()
    expect(page.get_by_role("status").first).to_contain_text("pending until it has signed")
    expect(page.locator("tr", has_text="lost on a train")).to_contain_text("pending")
    me.picture("devices")
    me.check("a pending revocation")
    me.go("/")
    expect(page.locator(".notice", has_text="1 revocation pending")).to_be_visible()

    server_directory = ServerDirectory(
        served.folder / "fleet"
    )  # what the authority does, wherever it is, and the enrolment service
    attend(
        AuthorityStore(served.folder / "authority"),
        server_directory.requests,
        server_directory.answers,
        lambda decision: True,
    )
    server_directory.take_members((server_directory.answers / "members.list").read_bytes())
    page.get_by_role("link", name="Devices").click()
    expect(page.locator("tr", has_text="lost on a train")).to_contain_text("signed, list")
    me.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", list(SCREENS))
def test_every_page_is_for_everybody(browser: Browser, served: Served, screen: str, scheme: str) -> None:
    """At a desk and on a phone, light and dark, operator and viewer: axe finds nothing serious."""
    for name in ("olga", "vera"):
        me = Operator(browser, served, screen=screen, scheme=scheme)
        me.go("/login")
        me.check("login")
        me.login(name)
        me.go("/runs")
        run = me.page.locator("tbody a").first.get_attribute("href") or ""
        me.go("/devices")
        device = me.page.locator('a[href*="/members/"]').first.get_attribute("href") or ""
        paths = [
            "/",
            "/runs",
            run,
            "/devices",
            device,
            f"/devices?run={run.rsplit('/', 1)[1]}",
            "/find?q=e",
            "/privacy",
            "/releases",
            "/audit",
            "/runs/compare",
        ]
        paths += ["/runs/new", f"{run}/delete"] if name == "olga" else []
        for path in paths:
            me.go(path)
            expect(me.page.get_by_role("heading", level=1)).to_be_visible()
            me.check(f"{path} for {name}")
            if name == "olga" and "?" not in path:
                me.picture(
                    {"/": "overview", run: "run", device: "device"}.get(
                        path, path.strip("/").replace("/", "-")
                    )
                )
        me.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", list(SCREENS))
def test_a_second_factor_is_set_up_and_used(
    browser: Browser, served: Served, screen: str, scheme: str
) -> None:
    """Through the pages, for everybody; the app is played by what is shown to be typed into one."""
    name = f"sam-{screen}-{scheme}"
    with closing(ConsoleStore(served.folder / "state")) as store:
        store.add(name, "operator", PASSWORD)
    me = Operator(browser, served, screen=screen, scheme=scheme)
    me.login(name)
    me.page.get_by_role("link", name="Your account").click()
    expect(me.page.get_by_role("heading", level=1)).to_have_text(name)
    me.picture("account")
    me.check("an account")
    me.page.get_by_role("button", name="Set one up").click()
    key = base64.b32decode(me.page.locator("#secret").inner_text())
    me.picture("account-key")
    me.check("the key of a second factor")
    me.page.get_by_label("The app’s code").fill(app_code(key, time.time()))
    me.page.get_by_role("button", name="Ask for codes from now on").click()
    codes = me.page.locator("#codes").inner_text().split()
    assert len(codes) == 10
    me.picture("account-codes")
    me.check("recovery codes")
    me.page.get_by_role("button", name="Log out").click()
    me.page.get_by_label("Name").fill(name)
    me.page.get_by_label("Password").fill(PASSWORD)
    me.page.keyboard.press("Enter")
    code = me.page.get_by_label("Code")
    expect(code).to_be_focused(timeout=60_000)  # a look at a password takes a while
    me.picture("code")
    me.check("a code is asked for")
    code.fill(codes[0])
    me.page.keyboard.press("Enter")
    me.page.wait_for_url(served.address + "/")
    me.go(f"/audit?action=log+in&outcome=done&account={name}")
    me.picture("audit-filter")
    me.check("the audit with a filter")
    with me.page.expect_download() as begun:
        me.page.get_by_role("link", name="as CSV").click()
    lines = Path(begun.value.path()).read_text().splitlines()
    assert [line.split(",")[2:5:2] for line in lines[1:]] == [[name, "log in"]] * 2
    me.context.close()


def app_code(key: bytes, now: float) -> str:
    """What an app with this key shows."""
    return TOTP(key, 6, SHA1(), 30).generate(int(now)).decode()


def test_hostile_names_stay_text(browser: Browser, served: Served) -> None:
    """A directory that somebody else named: nothing of it is run."""
    name = '"><img src=x onerror=document.title="pwned">'
    source = next((served.folder / "runs").iterdir())
    target = served.folder / "runs" / name
    target.mkdir()
    (target / "config.toml").write_bytes((source / "config.toml").read_bytes())
    me = Operator(browser, served)
    me.login()
    for path in ("/", "/runs", "/devices", "/privacy", "/releases", "/runs/new"):
        me.go(path)
        expect(me.page.get_by_role("heading", level=1)).to_be_visible()
        assert "pwned" not in me.page.title()
        assert me.page.locator("img").count() == 0
    me.check("a hostile name")
    me.context.close()
    (target / "config.toml").unlink()
    target.rmdir()


def test_a_console_for_others_needs_tls(tmp_path: Path) -> None:
    words = [*PROGRAM, "console", str(tmp_path), "--host", "0.0.0.0", "--state", str(tmp_path / "state")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "is not loopback" in done.stderr
    assert done.stderr.count("\n") == 1


def test_any_number_of_pages_lie_open(browser: Browser, served: Served) -> None:
    """A browser has six connections to one place; pages that change by themselves hold none."""
    me = Operator(browser, served)
    me.login()
    tabs = [me.context.new_page() for _ in range(8)]
    for tab in tabs:
        tab.goto(served.address + "/runs")
    me.go("/audit")
    made = make_run(served.folder / "runs" / "by-hand", 2)
    for tab in tabs:
        expect(tab.locator("[data-part=runs]")).to_contain_text("by-hand", timeout=60_000)
    shutil.rmtree(made)
    me.context.close()


TWO_FINGERS = """([first, last]) => {
  const chart = [...document.querySelectorAll('[data-zoom]')].find((one) => one.checkVisibility());
  const box = chart.getBoundingClientRect();
  const send = (kind, id, part) => chart.dispatchEvent(new PointerEvent(kind, {
    bubbles: true, pointerId: id, pointerType: 'touch',
    clientX: box.left + part * box.width, clientY: box.top + 60,
  }));
  send('pointerdown', 1, .5);
  send('pointerdown', 2, .55);
  send('pointermove', 1, first);
  send('pointermove', 2, last);
  send('pointerup', 1, first);
  send('pointerup', 2, last);
}"""


def test_a_part_of_the_rounds_is_looked_at_by_pointer_touch_and_keyboard(
    browser: Browser, served: Served
) -> None:
    """All three fill in the form that works without scripts; the address is the same for all."""
    directory = make_run(served.folder / "runs" / "long", 120)
    me = Operator(browser, served)
    me.login()
    run = me.page.get_by_role("link", name="long", exact=True)
    me.go("/runs")
    run.first.click()
    page, address = me.page, re.compile(r"[?&]first=(\d+)&last=(\d+)#curves$")

    def ends() -> tuple[int, int]:
        expect(page).to_have_url(address)
        found = address.search(page.url)
        assert found
        expect(page.get_by_label("Rounds from")).to_have_value(found[1])
        return int(found[1]), int(found[2])

    def whole() -> None:
        page.get_by_role("link", name="All rounds").click()
        expect(page.get_by_role("link", name="All rounds")).to_have_count(0)
        expect(page.locator("[data-zoom][tabindex]").first).to_be_visible()

    chart = page.locator("[data-zoom]").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 60)
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 60)
    expect(chart.locator(".part")).to_be_visible()
    me.picture("zooming")
    page.mouse.up()
    first, last = ends()
    assert 30 < first < 60 < last < 90
    me.check("a part of the rounds")
    me.picture("zoomed")
    whole()
    page.locator("[data-zoom][tabindex]").first.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    first, last = ends()
    assert last - first == 2
    page.locator("[data-zoom][tabindex]").first.focus()
    page.keyboard.press("Backspace")
    expect(page.get_by_role("link", name="All rounds")).to_have_count(0)
    expect(page.locator("[data-zoom][tabindex]").first).to_be_visible()
    page.evaluate(TWO_FINGERS, [0.2, 0.8])
    first, last = ends()
    assert first < 40 < 80 < last
    whole()
    page.get_by_label("Rounds from").fill("100")
    page.get_by_role("button", name="Show", exact=True).first.click()
    expect(page.get_by_role("link", name="All rounds")).to_have_count(1)
    assert page.locator('[data-zoom] .wide .hit[data-first="99"]').count() == 0
    assert page.locator('[data-zoom] .wide .hit[data-first="100"]').count() > 0
    assert me.said == []
    shutil.rmtree(directory)
