"""A fleet of real processes, run from the console alone: its operator never sees a shell.

Five hosts: the server's, where operator and browser are as well, and four devices. Three are members; the
fourth comes with the token that the console hands out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from support.deployment import Deployment
from support.processes import PROGRAM
from support.twin import journal
from system.console_browser import CHROMIUM, PASSWORD, Operator, Served, chromium
from system.hosts import Host, network
from system.live_fleet import LiveFleet

from penchant.client.device.device import Device
from penchant.common.data.preferences import Preference
from penchant.deploy.fleet.authority_inbox import attend
from penchant.deploy.owner_policy import policy_for
from penchant.server.console.accounts import ConsoleStore

pytestmark = pytest.mark.system

DEVICES = 4  # one of them may be late in a round
LAST = 3  # two rounds and the closing one
PORT = 8900
SECONDS = 180_000
SETTINGS = {
    "federation.rounds": LAST - 1,
    "federation.deadline_seconds": 240.0,  # the first exchange loads the base model, on every device
    "federation.patience_seconds": 60.0,
    "federation.attempts": 5,
}


class WithStranger(Deployment):
    """The last device is in no fleet yet."""

    def _enrol(self, folder: Path, choices: Sequence[Preference]) -> None:
        if folder != self.homes[-1]:
            super()._enrol(folder, choices)
            return
        Device(folder).record(choices)
        policy = policy_for(self.config, min_honest=1, max_colluders=0)
        (folder / "policy.toml").write_text(policy.to_toml())


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with network(DEVICES + 1) as made:
        yield made


@pytest.fixture
def fleet(tiny_model: Callable[[str], Path], tmp_path: Path, hosts: list[Host]) -> Iterator[LiveFleet]:
    deployment = WithStranger(tmp_path, tiny_model("bert"), DEVICES, SETTINGS)
    with closing(LiveFleet(deployment, hosts)) as made:
        yield made
        print(made.story())  # shown when a test fails


@pytest.fixture
def served(fleet: LiveFleet) -> Served:
    """A console on the server's host."""
    folder = fleet.place
    with closing(ConsoleStore(folder / "state")) as store:
        store.add("olga", "operator", PASSWORD)
    words = [
        "console",
        str(fleet.server_directory.path),
        "--state",
        str(folder / "state"),
        "--port",
        str(PORT),
    ]
    words += ["--data", str(fleet.deployment.base)]
    process = fleet.server.start([*PROGRAM, *words], folder / "console.log")
    return Served(f"http://127.0.0.1:{PORT}", folder, process)


@pytest.fixture
def browser(hosts: list[Host], tmp_path: Path) -> Iterator[Browser]:
    """Chromium on the server's host: the console is on loopback there, and nowhere else."""
    program = tmp_path / "chromium"
    program.write_text(f'#!/bin/sh\nexec ip netns exec {hosts[0].name} {CHROMIUM} "$@"\n')
    program.chmod(0o755)
    expect.set_options(timeout=30_000)
    with chromium(str(program)) as started:
        yield started
    expect.set_options(timeout=5_000)


def test_a_fleet_is_run_from_the_console(fleet: LiveFleet, served: Served, browser: Browser) -> None:
    me = Operator(browser, served)
    me.page.set_default_timeout(SECONDS)  # a start loads the base model, on a machine that may be busy
    fleet.start_server()
    fleet.register_nodes(DEVICES - 1)
    for device in range(DEVICES - 1):
        fleet.start_agent(device)
        fleet.start_node(device)
    me.login()
    me.page.evaluate("window.same = true")
    let_a_stranger_in(me.page, fleet)
    assert me.page.evaluate("window.same") is True
    start_a_run(me.page, fleet)
    stop_and_resume(me.page, fleet)
    look_at_devices(me.page)
    revoke(me.page, fleet)
    me.check("the devices of a fleet")
    me.go("/audit")
    told = me.page.locator("tbody").inner_text()
    for action in ("hand out a token", "start a run", "stop a run", "resume a run", "ask for a revocation"):
        assert action in told
    assert "no end on record" not in told
    log = served.log()
    assert "Traceback" not in log
    assert PASSWORD not in log
    me.go("/")
    expect(me.page.locator("#stale")).to_be_hidden()
    fleet.server.kill(served.process)
    expect(me.page.locator("#stale")).to_be_visible(timeout=30_000)  # what is shown is old, and says so


def row(page: Page, words: str) -> Locator:
    return page.locator("tr", has_text=words)


def newest(page: Page) -> Locator:
    """The newest device in the list, by the name that its invitation was for."""
    return page.locator("tr", has_text=re.compile(rf"^\s*{DEVICES}\s*the attic\s*node"))


def number(page: Page, name: str) -> Locator:
    """What stands below a name."""
    return page.locator("dl.numbers > div", has_text=name).locator("dd")


def let_a_stranger_in(page: Page, fleet: LiveFleet) -> None:
    """A token is handed out and used; the page tells each step by itself, to the device online."""
    last = DEVICES - 1
    page.get_by_role("link", name="Devices").click()
    expect(row(page, "not seen yet")).to_have_count(last)
    page.get_by_label(re.compile("^For")).fill("the attic")
    page.get_by_role("button", name="Hand out a token").click()
    token = page.locator("#token").inner_text()
    page.get_by_role("link", name="Done").click()
    page.evaluate("window.same = true")
    expect(row(page, "the attic")).to_contain_text("open")

    home, log = fleet.deployment.homes[last], fleet.place / "join.log"
    words = ["device", "join", token, "--home", str(home), "--node", str(fleet.node_folder(last)), "--wait"]
    joining = fleet.devices[last].start([*PROGRAM, *words], log)
    expect(row(page, "the attic")).to_contain_text("waiting", timeout=SECONDS)
    shown = row(page, "the attic").locator("small", has_text="fingerprint").inner_text().split()[-1]
    server_directory = fleet.server_directory
    fleet.wait("the device's word", lambda: "has not answered" in log.read_text())
    assert shown in log.read_text()  # what authority and owner compare
    attend(
        fleet.deployment.authority_store,
        server_directory.requests,
        server_directory.answers,
        lambda decision: decision.who == shown,
    )
    assert joining.wait(120) == 0, log.read_text()
    expect(row(page, "the attic").filter(has_text="enrolled")).to_have_count(1, timeout=SECONDS)
    fleet.start_agent(last)
    fleet.start_node(last)
    expect(number(page, "online now")).to_have_text(str(DEVICES), timeout=SECONDS)
    expect(newest(page)).to_contain_text("online")  # before any run has met it


def start_a_run(page: Page, fleet: LiveFleet) -> None:
    page.get_by_role("link", name="Runs", exact=True).first.click()
    page.get_by_role("link", name="Start a run").click()
    page.locator("summary", has_text="As a file").click()
    page.get_by_role("button", name="Write it as a file").click()
    area, text = page.get_by_label("Configuration"), fleet.deployment.config.to_toml()
    expect(page.get_by_label("Where")).to_have_text("server, real devices")
    area.fill(text.replace(f"cohort = {DEVICES}", "cohort = 99"))
    expect(page.locator("#verdict")).to_contain_text(f"cohort is 99, but this fleet has {DEVICES} members")
    area.fill(text)
    expect(page.locator("#verdict")).to_contain_text("owners allow more than the defaults")
    expect(page.locator("#verdict")).to_contain_text(f"{DEVICES} devices of server a round")
    page.get_by_label("Name", exact=True).fill("attic")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("status").first).to_contain_text("attic has begun.", timeout=SECONDS)
    fleet.deployment.run = fleet.server_directory.run("attic")
    asked = []
    attend(
        fleet.deployment.authority_store,
        fleet.server_directory.requests,
        fleet.server_directory.answers,
        lambda m: asked.append(m) or True,
    )
    assert [(decision.kind, decision.what) for decision in asked] == [("run", "attic")]


def stop_and_resume(page: Page, fleet: LiveFleet) -> None:
    """The first round arrives by itself; stopped in the second, which is run again after resuming."""
    page.evaluate("window.same = true")
    expect(page.locator(".pill").first).to_have_text("running")
    fleet.wait_state(1, 1, "finished")
    late = fleet.agents[0]
    assert late is not None
    late.suspend()  # the second round waits for it, however long it takes to stop the run
    final = page.locator("#rounds ~ div td", has_text=re.compile("^final$"))
    expect(final).to_have_count(1, timeout=SECONDS)
    expect(page.locator("p.status")).to_contain_text(f"Round 2 of {LAST}", timeout=SECONDS)
    expect(page.locator(".stages li.now")).to_have_count(1, timeout=SECONDS)
    assert page.evaluate("window.same") is True
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Stop it").click()
    expect(page.get_by_role("status").first).to_contain_text("attic has stopped")
    expect(page.locator(".pill").first).to_have_text("stopped")
    first = (fleet.deployment.run / "checkpoints" / "round-000001.safetensors").read_bytes()
    rows = fleet.rows()
    assert [(one.round, one.state) for one in rows] == [(1, "finished"), (2, "started")]
    late.resume()

    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status").first).to_contain_text("attic goes on.", timeout=SECONDS)
    expect(page.locator(".pill").first).to_have_text("finished", timeout=SECONDS)
    expect(page.locator("p.status")).to_contain_text(f"All {LAST} rounds are done.")
    assert (fleet.deployment.run / "checkpoints" / "round-000001.safetensors").read_bytes() == first
    words = ["begins", "was stopped", "begins", "is done"]
    fleet.wait("the run's last word", lambda: words_said(fleet) == words, 60)
    with journal(fleet.deployment.run) as opened:
        assert [number for number, _ in opened.finished()] == list(range(1, LAST + 1))


def words_said(fleet: LiveFleet) -> list[str]:
    """What is in the log of the run, without when and by which Flower run, and but for its waiting: for the
    authority's signature, which may have been there before, and for devices."""
    log = (fleet.deployment.run / "server.log").read_text(encoding="utf-8")
    lines = [line for line in log.splitlines() if not re.search(r" round \d+ waits: ", line)]
    words = [line.split(maxsplit=4)[-1] for line in lines]
    return [word for word in words if not word.startswith("waits for the authority")]


def look_at_devices(page: Page) -> None:
    """Members, online or when they were seen, and in how many rounds they were."""
    page.get_by_role("link", name="Devices").click()
    rows = page.locator("table", has_text="Rounds joined").locator("tbody tr")
    expect(rows).to_have_count(DEVICES)
    joined = [int(cell) for cell in page.locator("td[data-label=Joined]").all_inner_texts()]
    assert LAST * (DEVICES - 1) <= sum(joined) <= LAST * DEVICES
    for one in rows.all():
        expect(one).to_contain_text("online")
        expect(one.locator("td").last).to_contain_text("Revoke")


def revoke(page: Page, fleet: LiveFleet) -> None:
    """Asked for, pending, signed: then the SuperLink does not let its node in any more."""
    page.evaluate("window.same = true")
    page.get_by_role("link", name=f"Revoke member {DEVICES}").click()
    page.get_by_label("Why").fill("sold with the house")
    page.get_by_role("button", name="Ask for the revocation").click()
    page.get_by_role("button", name="Ask for it").click()
    expect(page.get_by_role("status").first).to_contain_text("pending until it has signed")
    expect(newest(page)).to_contain_text("revocation pending")
    attend(
        fleet.deployment.authority_store,
        fleet.server_directory.requests,
        fleet.server_directory.answers,
        lambda decision: True,
    )
    expect(row(page, "sold with the house")).to_contain_text("signed, list", timeout=SECONDS)
    expect(newest(page)).to_contain_text("revoked", timeout=SECONDS)
    expect(number(page, "online now")).to_have_text(str(DEVICES - 1), timeout=SECONDS)
