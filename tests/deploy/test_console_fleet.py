"""The console of a fleet: invitations, revocations that wait for the authority, live runs."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.console_scene import CHEAP, HOST, PASSWORD, Browser, form_of, make_run, text_of
from support.processes import wait_for

from penchant.common.config import RunConfig
from penchant.common.errors import ConsoleError, JournalError, RoundFailed, RunDirectoryError, UsageError
from penchant.common.membership.join_token import JoinToken
from penchant.common.settings import settings_of
from penchant.deploy.cli.main import main
from penchant.deploy.console import fleet, local
from penchant.deploy.console.local import OperationsOnThisMachine
from penchant.deploy.fleet import (
    fleet_release,
    follow,
    release_acts,
    release_signature,
    run_activity,
    run_checks,
)
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import attend, revocation_of
from penchant.deploy.fleet.device_notes import DeviceNotes
from penchant.deploy.fleet.enrolment import DATABASE, EnrolmentRegistry, request_revocation
from penchant.deploy.fleet.run_queue import RunQueue
from penchant.deploy.fleet.server_directory import MEMBERS, ServerDirectory, ServerSettings
from penchant.deploy.flower.superlink import Control, NodeRow, SuperLinkAddress
from penchant.server import releases
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.app import build_app
from penchant.server.console.operations import fleet_recipe
from penchant.server.console.views.devices import qr_code
from penchant.server.monitoring.fleet import ConnectedNode, DeviceNote, Token
from penchant.server.monitoring.run_history import Activity, summary_of
from penchant.server.noise_terms import settle_noise
from penchant.server.releases import OfferedRelease
from penchant.server.waiting import Waiting, read_waiting, write_waiting

DAY = 86400


class Nobody:
    """A SuperLink that has no nodes."""

    def register(self, public_key: bytes, name: str) -> int:
        return 1

    def unregister(self, node: int) -> None:
        pass


@dataclass
class World:
    """A server's directory with five members, its authority, and a console over it."""

    authority_store: AuthorityStore
    server_directory: ServerDirectory
    store: ConsoleStore
    operations: OperationsOnThisMachine
    browser: Browser

    @property
    def id(self) -> str:
        return self.operations.fleets()[0].id

    def said(self, path: str = "/devices") -> str:
        return text_of(self.browser.get(path).text)

    def sign(self) -> None:
        """The authority grants whatever is asked; the server takes its answers over."""
        attend(
            self.authority_store,
            self.server_directory.requests,
            self.server_directory.answers,
            lambda decision: True,
        )
        EnrolmentRegistry(self.server_directory).collect(Nobody())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    authority_store = AuthorityStore.init(tmp_path / "authority")
    for number in range(5):
        from penchant.common.membership.enrolment import request

        authority_store.issue(request(bytes([number + 1]) * 32), f"device {number}")
    settings = ServerSettings(addresses=("fleet.example",), superlink_port=9)
    server_directory = ServerDirectory.create(
        tmp_path / "home", settings, authority_store.authority.public_key, authority_store.latest()
    )
    store = ConsoleStore(tmp_path / "state", CHEAP)
    store.add("olga", "operator", PASSWORD)
    store.add("vera", "viewer", PASSWORD)
    operations = OperationsOnThisMachine([server_directory.path], store)
    browser = Browser(build_app(store, operations, hosts=frozenset({HOST})), "olga")
    yield World(authority_store, server_directory, store, operations, browser)
    store.close()


def run_in(world: World, name: str = "first", rounds: int = 3) -> Path:
    """A run of the fleet, by hand."""
    directory = make_run(world.server_directory.path / "runs" / name, rounds)
    (directory / "blueprint.json").write_text("{}", encoding="utf-8")
    return directory


def answered(world: World) -> None:
    """Wait until the SuperLink's latest answer is in, or that there is none."""
    server = world.operations.fleet(world.operations.fleets()[0])
    server.link()
    wait_for("the SuperLink", lambda: not server._asking, 30)


def test_a_fleet_without_a_run_is_there_already(world: World) -> None:
    answered(world)
    said = world.said("/")
    assert "home silent – 5 0" in said
    assert "The SuperLink of home is silent" in said
    said = world.said()
    assert "5 node not known not seen yet never 0 – –" in said
    assert "The SuperLink is silent: who is online is not known." in said
    assert "No token has been handed out yet." in said


def test_a_token_is_shown_once_with_its_picture_and_kept_nowhere(world: World) -> None:
    sent = world.browser.post(f"/devices/{world.id}/tokens", {"label": "Kitchen <b>", "days": "3"})
    assert sent.status_code == 303
    other = Browser(world.browser.client.app, "vera")
    assert other.get(sent.headers["location"]).status_code == 403  # a viewer
    answer = world.browser.get(sent.headers["location"])
    assert answer.status_code == 200
    found = re.search(r'<code id="token">([^<]+)</code>', answer.text)
    assert found is not None
    text = found[1]
    token = JoinToken.read(text, time.time())
    assert abs(token.terms.expires - time.time() - 3 * DAY) < 60
    assert qr_code(text) in answer.text  # the very same in the picture
    assert "Kitchen &lt;b&gt;" in answer.text
    assert "style=" not in qr_code(text)
    again = world.browser.get(sent.headers["location"])  # loaded again, or gone back to
    assert again.status_code == 410
    assert text not in again.text
    assert len(world.operations.fleet(world.operations.fleets()[0]).tokens()) == 1
    said = world.said()
    assert "Kitchen <b>" in said
    assert "open" in said
    for path in ("/devices", "/audit", "/"):
        assert text not in world.browser.get(path).text
    kept = [p for p in world.store.directory.rglob("*") if p.is_file()]
    kept += [p for p in world.server_directory.path.rglob("*") if p.is_file()]
    assert [p for p in kept if text.encode() in p.read_bytes()] == []
    (entry,) = [entry for entry in world.store.audit_entries() if entry.action == "hand out a token"]
    assert (entry.outcome, entry.detail) == ("done", "days: 3, label: Kitchen <b>")


def test_an_invitation_is_withdrawn(world: World) -> None:
    server = world.operations.fleet(world.operations.fleets()[0])
    world.browser.post(f"/devices/{world.id}/tokens", {"label": "kitchen", "days": "3"})
    (token,) = server.tokens()
    page = world.browser.get(f"/devices?run={world.id}").text
    assert f'name="token" value="{token.id}"' in page
    Browser(world.browser.client.app, "vera").post(f"/devices/{world.id}/withdrawals", {"token": token.id})
    assert len(server.tokens()) == 1
    world.browser.post(f"/devices/{world.id}/withdrawals", {"token": token.id})
    assert server.tokens() == []
    world.browser.post(f"/devices/{world.id}/withdrawals", {"token": token.id})
    outcomes = [e.outcome for e in world.store.audit_entries() if e.action == "withdraw a token"]
    assert outcomes[1:] == ["done", "refused: not an operator"]
    assert outcomes[0].startswith("refused: there is no token")


@pytest.mark.parametrize("days", ["0", "91", "x", "-1", "1e3"])
def test_a_token_is_good_for_sensible_times(world: World, days: str) -> None:
    assert world.browser.post(f"/devices/{world.id}/tokens", {"label": "x", "days": days}).status_code == 422
    assert world.operations.fleet(world.operations.fleets()[0]).tokens() == []


def test_a_revocation_is_pending_until_the_authority_has_signed(world: World) -> None:
    run_in(world)
    answer = world.browser.post(f"/devices/{world.id}/revocations", {"member": "3", "why": "lost on a train"})
    assert answer.status_code == 303
    assert "revocation pending" in world.said()
    assert "3 pending lost on a train olga" in world.said()
    assert "1 revocation pending" in world.said("/")
    (path,) = world.server_directory.requests.glob("revoke-*.json")
    assert revocation_of(path.read_bytes()) == (3, "lost on a train")
    world.sign()
    said = world.said()
    assert re.search(r"3 signed, list \d+ lost on a train olga", said), said
    assert "revocation pending" not in said
    assert "3 node 1003 revoked" in said
    assert "revocation pending" not in world.said("/")
    again = world.browser.post(f"/devices/{world.id}/revocations", {"member": "3", "why": "again"})
    assert again.status_code == 303
    assert "there is no member 3" in world.said()


def test_a_revocation_that_the_authority_declines_waits_no_more(world: World) -> None:
    world.browser.post(f"/devices/{world.id}/revocations", {"member": "3", "why": "lost", "sure": "yes"})
    assert "revocation pending" in world.said()
    attend(
        world.authority_store,
        world.server_directory.requests,
        world.server_directory.answers,
        lambda decision: False,
    )
    EnrolmentRegistry(world.server_directory).collect(Nobody())
    assert "revocation pending" not in world.said()
    assert "the authority declined" in world.said("/audit")
    told = [(e.account, e.target, e.outcome) for e in world.store.audit_entries()]
    assert ("the authority", "3", "refused: the authority declined") in told
    world.browser.post(f"/devices/{world.id}/revocations", {"member": "3", "why": "again", "sure": "yes"})
    assert "revocation pending" in world.said()


def test_a_revocation_is_asked_about_first(world: World) -> None:
    """It is for good: the question names the member and its device, and nothing is done before the answer."""
    world.operations.fleet(world.operations.fleets()[0]).note(3, "kitchen", [])
    path, client = f"/devices/{world.id}/revocations", world.browser.client

    def posted(**form: str) -> str:
        return client.post(path, data={"csrf": world.browser.token(), **form}).text

    asked = posted(member="3", why="lost {what} <b>")
    said = text_of(asked)
    assert "Have member 3, kitchen, of home revoked for good?" in said
    assert "The reason that it is given: lost {what} <b>" in said
    assert list(world.server_directory.requests.glob("revoke-*.json")) == []
    assert [e for e in world.store.audit_entries() if e.action == "ask for a revocation"] == []
    assert "Have member 2 of home revoked for good?" in text_of(posted(member="2", why=""))
    for member, why in (("99", "home has no member 99."), ("x", "member must be a whole number")):
        refused = posted(member=member, why="lost")
        assert why in text_of(refused)
        assert 'name="sure"' not in refused
    assert client.post(path, data=form_of(asked, path)).status_code == 303
    (kept,) = world.server_directory.requests.glob("revoke-*.json")
    assert revocation_of(kept.read_bytes()) == (3, "lost {what} <b>")
    assert "Member 3: asked for already" in text_of(posted(member="3", why="again"))


def test_a_revocation_asked_for_at_the_terminal_is_shown_too(world: World) -> None:
    request_revocation(world.server_directory.path, 2, "left")
    assert "2 pending left command line" in world.said()


def at_the_command_line(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["penchant", "server", *map(str, words)])
    with pytest.raises(SystemExit) as leave:
        main()
    return int(leave.value.code or 0)


def test_the_first_reason_of_a_revocation_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.browser.post(f"/devices/{world.id}/revocations", {"member": "3", "why": "lost on a train"})
    assert at_the_command_line(monkeypatch, "revoke", world.server_directory.path, 3) == 2
    assert "3 pending lost on a train olga" in world.said()
    (path,) = world.server_directory.requests.glob("revoke-*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["why"] == "lost on a train"


def test_acts_at_the_command_line_are_in_the_same_audit(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, out = world.server_directory.path, tmp_path / "token"
    assert at_the_command_line(monkeypatch, "revoke", home, 2, "--why", "left") == 0
    assert at_the_command_line(monkeypatch, "revoke", home, 2, "--why", "another") == 2
    assert at_the_command_line(monkeypatch, "invite", home, "--name", "kitchen", "--out", out) == 0
    assert at_the_command_line(monkeypatch, "renew", home) == 0
    said = world.said("/audit")
    (who,) = {entry.account for entry in world.store.audit_entries() if "command line" in entry.account}
    for line in (
        f"{who} ask for a revocation left 2 done the server itself",
        f"{who} ask for a revocation another 2 refused the authority is asked already",
        f"{who} hand out a token days: 7 kitchen done",
        f"{who} renew certificates done",
    ):
        assert line in said, line
    assert world.store.broken() is None
    before = len(world.store.audit_entries())
    world.said("/")
    assert len(world.store.audit_entries()) == before  # each once


def test_an_older_list_is_called_older_and_not_the_server(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.list"
    old.write_bytes((world.server_directory.path / "members.list").read_bytes())
    world.server_directory.take_members(world.authority_store.publish())
    assert at_the_command_line(monkeypatch, "members", world.server_directory.path, old) == 2
    assert "is older than list 7, which this server has" in capsys.readouterr().err


def test_who_looks_sees_no_token_and_asks_for_nothing(world: World) -> None:
    viewer = Browser(world.browser.client.app, "vera")
    for path in ("tokens", "revocations"):
        answer = viewer.post(f"/devices/{world.id}/{path}", {"label": "x", "days": "1", "member": "3"})
        assert answer.status_code == 403
    assert world.operations.fleet(world.operations.fleets()[0]).tokens() == []
    assert list(world.server_directory.requests.iterdir()) == []


def test_a_simulation_hands_out_nothing(world: World, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "alone")
    operations = OperationsOnThisMachine([tmp_path / "runs"], world.store)
    browser = Browser(build_app(world.store, operations, hosts=frozenset({HOST})), "olga")
    (location,) = operations.locations()
    answer = browser.post(f"/devices/{location.id}/tokens", {"label": "x", "days": "1"})
    assert answer.status_code == 404
    with pytest.raises(ConsoleError, match="no server here"):
        operations.fleet(location).invite("x", 1)


def test_the_runs_of_a_fleet_are_found_with_their_devices_online(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(world)
    server = world.operations.fleet(world.operations.fleets()[0])
    nodes = {
        "1001": ConnectedNode(True),
        "1002": ConnectedNode(False, 7 * 86400.0),
        "77": ConnectedNode(True),
    }
    monkeypatch.setattr(server, "_nodes", lambda: nodes)
    answered(world)
    said = world.said()
    assert "online now 2" in said
    assert "1 node 1001 online now 3 3" in said
    assert "2 node 1002 offline 20" in said  # seen when the journal says, which is later than 1970
    assert "live fleet" in world.said("/runs")


def test_the_superlink_is_not_asked_for_every_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    server = world.operations.fleet(world.operations.fleets()[0])
    monkeypatch.setattr(server, "_nodes", lambda: asked.append(1) or {})
    for _ in range(5):
        world.said("/")
        answered(world)
    assert len(asked) == 1


def test_no_page_waits_for_a_superlink_that_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said last is shown, with when that was; one that answers drop by drop is silent as well."""
    run_in(world)
    server = world.operations.fleet(world.operations.fleets()[0])
    assert server.link().state == "asked"  # before the first answer
    wait_for("the SuperLink", lambda: not server._asking, 30)
    monkeypatch.setattr(server, "_nodes", lambda: {"1001": ConnectedNode(True)})
    server._asked -= 10
    answered(world)
    assert "home up 1 5" in world.said("/")
    hung, go = threading.Event(), threading.Event()

    def hang() -> dict[str, ConnectedNode]:
        hung.set()
        go.wait(60)
        raise JournalError("silent")

    monkeypatch.setattr(server, "_nodes", hang)
    server._asked -= 10
    assert "home up 1 5" in world.said("/")
    assert hung.wait(60)
    server._asked -= 10  # as if it was asked ten seconds ago
    server._link = replace(server._link, at=time.time() - 60)
    said = world.said("/")
    assert re.search(r"home silent 1 20\d\d-\d\d-\d\d \d\d:\d\d UTC 5", said), said
    assert "The SuperLink of home is silent" in said
    assert "1 node 1001 unknown 20" in world.said()
    go.set()
    wait_for("the end of it", lambda: not server._asking, 30)
    assert server.link().state == "silent"


def test_what_answers_and_is_no_superlink_is_silent(world: World) -> None:
    import http.server

    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"not protobuf")

        def log_message(self, *words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with (
            Control(SuperLinkAddress(f"127.0.0.1:{other.server_port}")) as control,
            pytest.raises(JournalError),
        ):
            control.nodes()
        other.shutdown()


def test_devices_that_wait_are_shown_with_what_the_authority_compares(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enrolled device is there before any run has met it; of many tokens the latest are shown."""
    rows = [Token(f"t{i}", f"device {i}", i, 2e9, "enrolled", i + 1, str(900 + i)) for i in range(20)]
    rows[0] = Token("t0", "the cellar", 0, 2e9, "waiting", fingerprint="AAAA-BBBB")
    server = world.operations.fleet(world.operations.fleets()[0])
    monkeypatch.setattr(server, "tokens", lambda: rows[::-1])
    monkeypatch.setattr(
        server, "_nodes", lambda: {"901": ConnectedNode(True), "902": ConnectedNode(False, time.time() - 60)}
    )
    answered(world)
    said = world.said()
    assert "the cellar t0 waiting fingerprint AAAA-BBBB" in said
    assert "4 earlier" in said
    assert "4 earlier" not in world.said("/devices?tokens=all")
    assert "2 device 1 node 901 online now 0 – –" in said
    assert "3 device 2 node 902 offline 20" in said
    listed = world.said("/devices?q=device+2").split("Invitations")[0]
    assert "3 device 2 node 902" in listed
    assert "device 1 node" not in listed
    assert "1 device waiting to be enrolled" in world.said("/")


def test_a_run_that_waits_for_devices_says_whom_it_lacks_and_why(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Member 4 is online, as Flower sees it, and not ready."""
    directory = run_in(world, "first", 0)
    monkeypatch.setattr(world.operations, "_activity", lambda *_: Activity(running=True, ours=True))
    now = time.time()
    write_waiting(directory, Waiting(1, 3, (1, 2), (4,), (), now - 60, now + 3600))
    said = world.said("/")
    assert "first waits for 1 device 2 of 3 are ready, since 1 min" in said
    assert "first waits for devices: 2 of 3 are ready" in said
    assert "The first rounds are under way" not in said
    (location,) = world.operations.locations()
    page = world.said(f"/runs/{location.id}")
    assert "Round 1 waits: 2 of 3 devices are ready" in page
    assert "member 4: connected, but takes no part now: paused" in page
    assert "member 3: the SuperLink does not know it yet" in page
    assert "the first round comes in a moment" not in page
    door = SuperLinkAddress("127.0.0.1:9", None)
    waiting = read_waiting(directory)
    assert waiting is not None
    lines = list(follow.waiting_lines(directory, door, waiting))
    assert lines[0].startswith("round 1 waits: 2 of 3 devices are ready; it gives up in")
    assert "  member 4: connected, but takes no part now" in "\n".join(lines)
    write_waiting(directory, None)
    assert "first waits" not in world.said("/")


def test_the_overview_tells_of_each_part_of_the_server_that_does_no_work(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `penchant server status` does."""
    answered(world)
    said = world.said("/")
    for part in (
        "The SuperLink of home is silent",
        "The gateway is closed home: Bring it up",
        "The enrolment service does not listen home: Every request of a device is turned away",
        "The queue of runs is down home: No run begins in its turn",
    ):
        assert part in said, part
    assert "executor" not in said  # which can ask no SuperLink that is silent
    monkeypatch.setattr("penchant.deploy.console.fleet.wrong_parts", lambda *_: iter(()))
    server = world.operations.fleet(world.operations.fleets()[0])
    server._asked = -100.0
    answered(world)
    assert "The gateway is closed" not in world.said("/")


def test_a_list_that_ends_soon_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time()
    monkeypatch.setattr(
        "penchant.server.console.views.overview.time.time", lambda: real + 25.1 * DAY
    )  # 4.9 are left
    world.store._db.execute("UPDATE sessions SET began = began + ?, used = used + ?", (25.1 * DAY,) * 2)
    assert re.search(r"Member list \d+ expires in 4 d", world.said("/"))
    monkeypatch.setattr("penchant.server.console.views.overview.time.time", lambda: real + 31 * DAY)
    world.store._db.execute("UPDATE sessions SET began = began + ?, used = used + ?", (5.9 * DAY,) * 2)
    assert "has expired" in world.said("/")


# --- live runs ------------------------------------------------------------------------------------


class Link:
    """Stands for Flower's control interface."""

    stopped: list[str]

    def __init__(self) -> None:
        self.stopped = []

    def __call__(self, door: object, seconds: float = 10.0) -> Link:
        return self

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stop(self, run: str) -> None:
        if not run:
            raise JournalError("the SuperLink refuses")
        self.stopped.append(run)

    def nodes(self) -> dict[int, NodeRow]:
        return {}

    def is_going(self, run: str) -> bool:
        return run not in self.stopped


def test_a_live_run_is_stopped_by_the_superlink(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link()
    monkeypatch.setattr(follow, "Control", link)
    directory = run_in(world)
    (location,) = world.operations.locations()
    with pytest.raises(UsageError, match="was never started"):
        world.operations.stop(location)
    (directory / run_activity.FLOWER_RUN).write_text("4711\n", encoding="utf-8")
    world.browser.post(f"/runs/{location.id}/stop")
    assert link.stopped == ["4711"]
    with pytest.raises(UsageError, match="nothing drives first now"):
        world.operations.stop(location)


def test_a_live_run_is_resumed_and_started_through_the_servers_own_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperLink is down here: its refusal is what the operator reads, and in the run's log."""
    run_in(world)
    (location,) = world.operations.locations()
    world.browser.post(f"/runs/{location.id}/resume")
    assert "Not done:" in world.said(f"/runs/{location.id}")
    assert any("SuperLink" in line for line in world.operations.log(location, 5))
    assert not any(line.startswith(("{", "penchant: ")) for line in world.operations.log(location, 5))
    form = {"name": "second", "config": "seed = 1", "where": world.id}
    answer = world.browser.post("/runs/new", form)
    assert answer.status_code == 422
    assert "federation.cohort is 0" in text_of(answer.text)


@pytest.mark.parametrize("way", ["start", "check", "login"])
def test_a_draft_outlives_its_fleet_and_is_started_nowhere_else(
    world: World, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local.OperationsOnThisMachine, "start", lambda *_: pytest.fail("started"))
    browser = world.browser
    sent = form_of(browser.get("/runs/new").text, "/runs/new")
    sent |= {"name": "mine", "set.adapter.rank": "7", "where": "elsewhere"}
    if way == "login":
        session = world.store.session(browser.client.cookies["penchant"])
        assert session is not None
        world.store.logout(session)
        login = form_of(browser.client.post("/runs/new", data=sent).text, "/login")
        browser.client.post("/login", data=login | {"name": "olga", "password": PASSWORD})
        answer = browser.get("/runs/new")
    else:
        answer = browser.post("/runs/new" if way == "start" else "/runs/check", sent)
    assert answer.status_code == (422 if way == "start" else 200)
    found = form_of(answer.text, "/runs/new")
    assert (found["name"], found["set.adapter.rank"]) == ("mine", "7")
    assert "The fleet that this was written for is not there any more." in text_of(answer.text)
    assert "It can run" not in text_of(answer.text)


@pytest.mark.parametrize(
    ("config", "verdict"),
    [
        ("", "federation.cohort is 0"),
        ("[federation]\ncohort = 6", "federation.cohort is 6, but this fleet has 5 members; ask at most 5"),
        ("[federation]\ncohort = 5\nrounds = 0", "federation.rounds is 0"),
        ("[federation]\ncohort = 2", "a masked sum needs 3 devices at least"),
        ("[federation]\ncohort = 5", "that takes 17 devices a round; raise federation.cohort"),
        ("[federation]\ncohort = 5\n[privacy]\nsecagg = false", "a served run is with secure aggregation"),
        (
            "[federation]\ncohort = 5\n[privacy]\nmin_honest = 1\nmax_colluders = 1\ndp_epsilon = 8",
            "It can run 5 devices of home a round, which learn from their own choices",
        ),
        (
            "[federation]\ncohort = 5\n[privacy]\nmin_honest = 1\nmax_colluders = 1",
            "It can run only with devices whose owners allow more than the defaults the run adds no noise",
        ),
    ],
)
def test_what_a_fleet_can_run_is_said_before_it_is_started(world: World, config: str, verdict: str) -> None:
    answer = world.browser.post("/runs/check", {"config": config, "where": world.id})
    assert verdict in text_of(answer.text)
    if "It can run" not in verdict:
        answer = world.browser.post("/runs/new", {"name": "x", "config": config, "where": world.id})
        assert answer.status_code == 422
        assert verdict in text_of(answer.text)
        assert world.operations.locations() == []


def test_the_recipe_of_a_fleet_can_run_and_is_what_the_command_writes(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "run.toml"
    assert at_the_command_line(monkeypatch, "config", world.server_directory.path, "--out", out) == 0
    written = RunConfig.read(out)
    recipe = world.operations.recipes()[fleet_recipe(world.operations.fleets()[0])]
    assert RunConfig.from_toml(recipe).federation == written.federation
    form = {"config": out.read_text(encoding="utf-8"), "where": world.id}
    assert "It can run 5 devices of home a round" in text_of(world.browser.post("/runs/check", form).text)
    form["config"] = recipe
    assert "It can run 5 devices of home a round" in text_of(world.browser.post("/runs/check", form).text)


def test_the_form_of_a_fleet_has_a_field_for_each_setting_that_real_devices_know(world: World) -> None:
    found = form_of(world.browser.get("/runs/new").text, "/runs/new")
    keys = [one.key for one in settings_of(RunConfig) if not one.simulated]
    assert sorted(key.removeprefix("set.") for key in found if key.startswith("set.")) == sorted(keys)
    usual = run_checks.fleet_defaults(5)
    assert found["where"] == world.id
    assert (found["set.federation.cohort"], found["set.privacy.dp_epsilon"]) == ("5", "8")
    assert found["set.privacy.min_honest"] == str(usual.privacy.min_honest)


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"federation.cohort": "6"}, "federation.cohort", "this fleet has 5 members; ask at most 5"),
        ({"federation.rounds": "0"}, "federation.rounds", "federation.rounds is 0"),
        ({"privacy.min_honest": "10"}, "federation.cohort", "too small for owners who ask for 10 honest"),
        ({"federation.cohort": "0"}, "federation.cohort", "federation.cohort is 0"),
    ],
)
def test_what_a_fleet_can_run_is_said_in_the_form_beside_its_field(
    world: World, changes: dict[str, str], key: str, said: str
) -> None:
    sent = form_of(world.browser.get("/runs/new").text, "/runs/new") | {"name": "second"}
    sent |= {f"set.{name}": text for name, text in changes.items()}
    answer = world.browser.post("/runs/new", sent)
    assert answer.status_code == 422
    beside = answer.text.split(f'name="set.{key}"')[1].split("</div>")[0]
    assert said in text_of(f"<i {beside}")
    found = form_of(answer.text, "/runs/new")
    assert {name: found[name] for name in sent if name != "csrf"} == {
        name: text for name, text in sent.items() if name != "csrf"
    }
    assert world.operations.locations() == []


def test_a_fleet_is_handed_the_same_run_by_fields_and_by_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[RunConfig] = []
    monkeypatch.setattr(
        fleet.FleetOnThisMachine, "start", lambda self, name, config, *more: handed.append(config)
    )
    sent = form_of(world.browser.get("/runs/new").text, "/runs/new") | {
        "name": "second",
        "set.federation.rounds": "4",
    }
    assert world.browser.post("/runs/new", sent).status_code == 303
    answer = world.browser.post("/runs/check", sent | {"do": "file"})
    as_file = form_of(answer.text, "/runs/new")
    assert "It can run 5 devices of home a round" in text_of(answer.text)
    assert world.browser.post("/runs/new", as_file).status_code == 303
    usual = run_checks.fleet_defaults(5)
    assert handed == [usual.changed({"federation.rounds": 4})] * 2
    written = "".join(f"{line}\n" for line in as_file["config"].splitlines() if line)
    low = f"min_honest = {usual.privacy.min_honest}\nmax_colluders = {usual.privacy.max_colluders}\n"
    assert written == f"[federation]\nrounds = 4\ncohort = 5\n[privacy]\n{low}dp_epsilon = 8.0\n"


def test_another_place_shows_its_own_settings_and_gives_written_ones_back(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    both = OperationsOnThisMachine([tmp_path / "runs", world.server_directory.path], world.store)
    browser = Browser(build_app(world.store, both, hosts=frozenset({HOST})), "olga")
    sent = form_of(browser.get("/runs/new").text, "/runs/new")
    sent |= {"name": "x", "set.data.pairs": "7", "set.federation.clip": "3"}
    answer = browser.post("/runs/check", sent | {"where": world.id, "do": "place"})
    assert 'id="set-data-pairs"' not in answer.text
    assert "It can run 5 devices of home a round" in text_of(answer.text)
    there = form_of(answer.text, "/runs/new")
    assert (there["set.federation.cohort"], there["set.federation.clip"]) == ("5", "3")
    assert (
        "pairs"
        not in form_of(browser.post("/runs/check", there | {"do": "file"}).text, "/runs/new")["config"]
    )
    answer = browser.post("/runs/check", there | {"where": "", "do": "place"})
    assert 'id="set-data-pairs"' in answer.text
    back = form_of(answer.text, "/runs/new")
    assert (back["name"], back["set.data.pairs"], back["set.federation.clip"]) == ("x", "7", "3")


def test_a_copy_of_a_run_with_noise_has_its_own_number_of_turns(world: World) -> None:
    """What was filled in for the rounds of the run would keep people out of more of them."""
    asked = {"federation.cohort": 5, "federation.rounds": 3, "privacy.dp_epsilon": 4.0}
    directory = run_in(world, "first", 0)
    settled = settle_noise(run_checks.fleet_defaults(5).changed(asked), 5, None)
    (directory / "config.toml").write_text(settled.to_toml(), encoding="utf-8")
    (location,) = world.operations.locations()
    page = world.browser.get(f"/runs/new?from={location.id}").text
    sent = form_of(page, "/runs/new")
    assert (sent["set.privacy.dp_participations"], sent["set.privacy.dp_honest"]) == ("0", "0")
    assert (sent["set.federation.rounds"], sent["set.privacy.dp_epsilon"]) == ("3", "4")


def test_a_failed_run_offers_only_what_can_help(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_in(world, "first", 0)
    failed = Activity(why="3 of 5 devices refused")
    monkeypatch.setattr(world.operations, "_activity", lambda *_: failed)
    (location,) = world.operations.locations()
    html = world.browser.get(f"/runs/{location.id}").text
    assert "It can’t go on as it is configured federation.cohort is 0" in text_of(html)
    assert f'action="/runs/{location.id}/resume"' not in html
    assert f'href="/runs/new?from={location.id}"' in html
    assert "3 of 5 devices refused. No round is finished." in world.said("/")
    config = run_checks.fleet_defaults(5)
    (directory / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert f'action="/runs/{location.id}/resume"' in world.browser.get(f"/runs/{location.id}").text


def test_a_console_of_a_fleet_alone_simulates_nothing(world: World, tmp_path: Path) -> None:
    said = world.said("/runs/new")
    assert "simulated, on this machine" not in said
    assert "It can run 5 devices of home a round" in said  # everybody is asked, unless another is chosen
    checked = world.browser.post("/runs/check", {"config": "", "where": "elsewhere"})
    assert "is not there any more. Choose where it shall run." in checked.text
    (tmp_path / "runs").mkdir()
    both = OperationsOnThisMachine([tmp_path / "runs", world.server_directory.path], world.store)
    browser = Browser(build_app(world.store, both, hosts=frozenset({HOST})), "olga")
    said = text_of(browser.get("/runs/new").text)
    assert "simulated, on this machine home, real devices" in said
    assert "It can run senate" in said


def test_stopping_waits_for_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(follow, "Control", Link())
    monkeypatch.setattr(follow, "ENDING_SECONDS", 0.3)
    directory = run_in(world)
    (directory / run_activity.FLOWER_RUN).write_text("4711\n", encoding="utf-8")
    (location,) = world.operations.locations()
    with (directory / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RoundFailed, match="has not yet"):
            world.operations.stop(location)
        (directory / run_activity.FLOWER_RUN).write_text("4712\n", encoding="utf-8")
        threading.Timer(0.1, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        world.operations.stop(location)


def test_a_lock_says_that_a_live_run_is_at_work(world: World) -> None:
    import fcntl

    directory = run_in(world)
    (location,) = world.operations.locations()
    with (directory / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        activity = world.operations.activity([location])[location.id]
        assert (activity.running, activity.ours) == (True, True)


@pytest.mark.parametrize(
    ("word", "ago", "state", "why"),
    [
        (None, 0, "running", ""),  # Flower has it, and its process comes
        (None, 200, "failed", "Flower has not begun it; is the server up?"),
        ("begins", 0, "running", ""),
        ("begins", 200, "failed", "its process ended without a word"),
        ("ends: the member list is past its date", 0, "failed", "the member list is past its date"),
        ("was stopped", 0, "stopped", ""),
        ("is done", 0, "stopped", ""),  # the journal says that it is not
    ],
)
def test_how_a_live_run_ended_is_what_its_process_said(
    world: World,
    word: str | None,
    ago: int,
    state: str,
    why: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the console and at the terminal."""
    directory = run_in(world)
    run_activity.say(directory, "Flower run 7 ends: long ago")
    (directory / run_activity.FLOWER_RUN).write_text("4711", encoding="utf-8")
    if word is not None:
        run_activity.say(directory, f"Flower run 4711 {word}")
    for name in (run_activity.FLOWER_RUN, run_activity.LOG):
        os.utime(directory / name, (time.time() - ago,) * 2)
    (location,) = world.operations.locations()
    facts = summary_of(location, world.operations.activity([location])[location.id])
    assert (facts.state, facts.why) == (state, why)
    monkeypatch.setattr(
        "sys.argv", ["penchant", "server", "status", str(world.server_directory.path), "--json"]
    )
    with pytest.raises(SystemExit):
        main()
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["why"]) == (state, why or None)


def test_of_two_operators_who_resume_at_once_one_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = run_in(world)
    (location,) = world.operations.locations()
    server, resumed = world.operations.fleet(world.operations.fleets()[0]), []

    def resume(name: str, log: object) -> None:
        resumed.append(name)
        time.sleep(0.2)
        (directory / run_activity.FLOWER_RUN).write_text("4711", encoding="utf-8")

    monkeypatch.setattr(server, "resume", resume)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(world.operations.resume, location) for _ in range(2)]
    errors = [one.exception() for one in done]
    assert sorted(map(type, errors), key=str) == sorted([type(None), RunDirectoryError], key=str)
    assert resumed == ["first"]


def test_the_log_of_a_live_run_is_its_servers(world: World) -> None:
    directory = run_in(world)
    (directory / run_activity.LOG).write_text("round 1: finished\n", encoding="utf-8")
    (location,) = world.operations.locations()
    assert world.operations.log(location, 5) == ["round 1: finished"]
    assert "round 1: finished" in world.said(f"/runs/{location.id}")


def test_names_are_what_the_server_calls_its_files() -> None:
    from penchant.deploy.fleet import server_directory

    assert server_directory.SETTINGS == local.SETTINGS  # type: ignore[attr-defined]  # imported there


# --- runs that wait for their turn ----------------------------------------------------------------------


def test_a_run_is_put_into_the_queue_from_the_form(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "refuse_unfit", lambda *given: None)
    releases.promote(run_in(world, "winter"), 2, "0" * 64, "olga")
    page = world.browser.get("/runs/new?begin_with=winter:release-1").text
    form = form_of(page, "/runs/new") | {"name": "spring", "every": "604800", "at": "2099-01-01T03:00"}
    assert form["begin_with"] == "winter:release-1"
    answer = world.browser.post("/runs/new", form)
    assert "within a year" in text_of(answer.text)
    assert 'value="2099-01-01T03:00"' in answer.text  # what was written stays
    sent = world.browser.post("/runs/new", form | {"at": "", "turn": "queue"})
    assert (sent.status_code, sent.headers["location"]) == (303, "/runs#queue")
    (waiting,) = RunQueue(world.server_directory).runs()
    assert (waiting.name, waiting.begin_with, waiting.every, waiting.by) == (
        "spring", "winter:release-1", 604_800.0, "olga",
    )  # fmt: skip
    assert "spring number 1" in world.said("/runs")
    assert "every 7 days" in world.said("/runs")


def test_the_queue_is_kept_in_order_from_the_page(world: World) -> None:
    queue = RunQueue(world.server_directory)
    for name in ("spring", "summer"):
        queue.add(RunConfig(), "olga", name=name)
    queue.refused(queue.find(2), "there is no such model", time.time())
    assert "summer of the queue was refused" in world.said("/")
    assert "refused there is no such model" in world.said("/runs")
    for what, form in (("move", {"place": "1"}), ("retry", {})):
        assert world.browser.post(f"/queue/{world.id}/{what}", {"number": "2", **form}).status_code == 303
    assert [(one.name, one.why) for one in queue.runs()] == [("summer", ""), ("spring", "")]
    world.browser.post(f"/queue/{world.id}/remove", {"number": "1"})
    assert [one.name for one in queue.runs()] == ["summer"]
    vera = Browser(world.browser.client.app, "vera")
    assert vera.post(f"/queue/{world.id}/remove", {"number": "2"}).status_code == 403
    assert "Remove" not in vera.get("/runs").text
    done = [(entry.action, entry.outcome) for entry in world.store.audit_entries() if "queue" in entry.action]
    assert done[1:] == [
        ("remove a run from the queue", "done"),
        ("try a run of the queue again", "done"),
        ("move a run in the queue", "done"),
    ]
    assert done[0] == ("remove a run from the queue", "refused: not an operator")


def test_a_run_starts_with_a_release(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(run_checks, "refuse_unfit", lambda *given: None)
    monkeypatch.setattr(fleet.FleetOnThisMachine, "_call", lambda self, words, log: called.append(words))
    releases.promote(run_in(world, "winter"), 2, "0" * 64, "olga")
    assert "winter:release-1" in world.browser.get("/releases").text  # the way there
    form = form_of(world.browser.get("/runs/new").text, "/runs/new")
    sent = world.browser.post("/runs/new", form | {"name": "spring", "begin_with": "winter:release-1"})
    assert sent.status_code == 303
    assert called[0][-2:] == ["--from", "winter:release-1"]


# --- one page a device ----------------------------------------------------------------------------------


def test_a_device_has_a_page_with_its_name_and_tags(world: World) -> None:
    answered(world)
    page = f"/devices/{world.id}/members/1"
    said = world.said(page)
    assert "Member 1" in said
    assert "the SuperLink is silent: who is connected is not known" in said
    assert "no journal has member 1 in the sum of a round" in said
    form = {"member": "1", "called": "The Kettle", "tags": "kitchen, beta"}
    sent = world.browser.post(f"/devices/{world.id}/notes", form)
    assert (sent.status_code, sent.headers["location"]) == (303, page)
    assert DeviceNotes(world.server_directory.path).all() == {
        1: DeviceNote("The Kettle", ("beta", "kitchen"))
    }
    assert "The Kettle member 1" in world.said(page)
    assert "1 The Kettle beta kitchen" in world.said("/devices?q=kitchen")
    assert "2 node not known" not in world.said("/devices?q=kitchen")
    vera = Browser(world.browser.client.app, "vera")
    assert re.findall(r'method="post"[^>]*action="([^"]+)"', vera.get(page).text) == ["/logout"]
    assert vera.post(f"/devices/{world.id}/notes", form).status_code == 403
    world.browser.post(f"/devices/{world.id}/notes", form | {"tags": "Not a Tag!"})
    assert DeviceNotes(world.server_directory.path).all()[1].tags == ("beta", "kitchen")
    assert world.browser.get(f"/devices/{world.id}/members/77").status_code == 404
    told = [(e.action, e.outcome.partition(":")[0]) for e in world.store.audit_entries()]
    assert told.count(("name and tag a device", "done")) == 1
    assert ("name and tag a device", "refused") in told


def test_a_run_asks_only_those_with_a_tag(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    DeviceNotes(world.server_directory.path).tag([1, 2, 3, 4], "kitchen")
    called: list[list[str]] = []
    monkeypatch.setattr(fleet.FleetOnThisMachine, "_call", lambda self, words, log: called.append(words))
    form = form_of(world.browser.get("/runs/new").text, "/runs/new") | {"name": "spring", "tag": "kitchen"}
    refused = world.browser.post("/runs/new", form)  # the recipe asks all five
    assert "but 4 of them have the tag kitchen" in text_of(refused.text)
    form |= {"set.federation.cohort": "4", "set.privacy.min_honest": "1", "set.privacy.max_colluders": "0"}
    assert world.browser.post("/runs/new", form).status_code == 303
    assert called[0][-2:] == ["--tag", "kitchen"]
    assert world.browser.post("/runs/new", form | {"turn": "queue", "name": "summer"}).status_code == 303
    assert [one.tag for one in RunQueue(world.server_directory).runs()] == ["kitchen"]


@pytest.mark.parametrize("file", [MEMBERS, DATABASE])
def test_a_damaged_fleet_takes_nothing_else_from_who_looks_for_something(world: World, file: str) -> None:
    run_in(world, "winter")
    assert "member 3" in world.said("/find?q=member")
    (world.server_directory.path / file).write_bytes(b"garbage" * 100)
    found = world.browser.get("/find?q=winter")
    assert (found.status_code, "winter" in text_of(found.text)) == (200, True)
    damaged = world.browser.get("/find?q=home", headers={"hx-request": "true"})
    assert (damaged.status_code, "can’t be read" in damaged.text) == (200, True)
    assert "member 3" not in world.said("/find?q=member")


def test_the_page_leads_back_to_the_release_of_another_run(world: World) -> None:
    for name in ("winter", "summer"):
        run_in(world, name)
    where = {one.name: one.id for one in world.operations.locations()}
    for name, number in (("winter", "2"), ("summer", "3")):
        world.browser.post(f"/releases/{where[name]}/promote", {"round": number})
    assert "Release 1 is in use" in world.said(f"/releases?run={where['summer']}")
    page = f"/releases?run={where['winter']}"
    said = world.said(page)
    assert "home uses summer:release-1" in said
    assert "current of this run" in said
    assert "Release 1 is in use" not in said
    back = f"/releases/{where['winter']}/rollback"
    form = form_of(world.browser.get(page).text, back)
    assert world.browser.post(back, form).status_code == 303
    assert fleet_release.read(world.server_directory.path).used == "winter:release-1"
    assert "Release 1 is in use" in world.said(page)
    assert back not in world.browser.get(page).text  # nothing to go back to


def test_the_release_of_a_fleet_is_held_from_the_page(world: World) -> None:
    run_in(world, "winter")
    location = next(one for one in world.operations.locations() if one.name == "winter")
    assert world.browser.post(f"/releases/{location.id}/promote", {"round": "2"}).status_code == 303
    assert fleet_release.read(world.server_directory.path).used == "winter:release-1"
    assert "home uses winter:release-1" in world.said("/releases")
    world.browser.post(f"/releases/{world.id}/hold", {"held": "yes"})
    world.browser.post(f"/releases/{location.id}/promote", {"round": "3"})
    assert "held What is promoted waits: winter:release-2" in world.said("/releases")
    assert "the fleet’s release, now winter:release-1" in world.said("/runs/new")
    world.browser.post(f"/releases/{world.id}/hold", {"held": "no"})
    assert fleet_release.read(world.server_directory.path).used == "winter:release-2"
    told = [
        e.detail for e in world.store.audit_entries() if (e.action, e.outcome) == ("hold the release", "done")
    ]
    assert told == ["held: no", "held: yes"]


def test_a_canary_is_tried_from_the_page_and_the_page_says_what_is_signed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(world, "winter")
    location = next(one for one in world.operations.locations() if one.name == "winter")
    promote = f"/releases/{location.id}/promote"
    page = f"/releases?run={location.id}"
    assert world.browser.post(promote, {"round": "1"}).status_code == 303
    said = world.said(page)
    assert "not signed Devices can’t fetch it: it is not signed." in said
    assert "winter:release-1 can’t be fetched: the authority has not signed run winter" in said
    sign = f"/releases/{world.id}/sign"
    assert sign in world.browser.get(page).text
    world.browser.post(sign)
    assert world.browser.post(promote, {"round": "2", "canary": "10"}).status_code == 303
    now = fleet_release.read(world.server_directory.path)
    assert (now.used, now.canary, now.share) == ("winter:release-1", "winter:release-2", 1000)
    offered = OfferedRelease(everybody="winter:release-1", sequence=4, asked="winter:release-2")
    monkeypatch.setattr(release_signature, "state", lambda server_directory: offered)
    said = world.said(page)
    assert "of the devices try winter:release-2 first" in said
    assert "not known yet By the counts of its devices: not measured yet." in said
    assert "signed Devices can fetch it: signed as number 4." in said
    assert "waits Devices can’t fetch it: it waits for the authority's signature." in said
    assert sign not in world.browser.get(page).text
    everybody = f"/releases/{world.id}/all"
    form = form_of(world.browser.get(page).text, everybody)
    assert form["release"] == "winter:release-2"
    assert world.browser.post(everybody, form).status_code == 303
    assert fleet_release.read(world.server_directory.path).used == "winter:release-2"
    acts = {entry.action: entry.outcome for entry in world.store.audit_entries()}
    assert acts["promote a canary to all"] == "done"
    assert acts["ask for a release's signature"].startswith("refused: winter:release-1 can't be signed")


def test_all_devices_get_the_canary_that_was_asked_about_and_no_other(world: World) -> None:
    """Somebody else has another one tried while the question lies open."""
    run_in(world, "winter")
    location = next(one for one in world.operations.locations() if one.name == "winter")
    promote, everybody = f"/releases/{location.id}/promote", f"/releases/{world.id}/all"
    world.browser.post(promote, {"round": "1"})
    world.browser.post(promote, {"round": "2", "canary": "10"})
    form = form_of(world.browser.get(f"/releases?run={location.id}").text, everybody)
    asked = world.browser.client.post(everybody, data=form)
    assert "Use winter:release-2 on all devices of home?" in text_of(asked.text)
    assert "by their counts: not measured yet." in text_of(asked.text)
    answer = form_of(asked.text, everybody)
    world.browser.post(promote, {"round": "3", "canary": "10"})
    refused = world.browser.client.post(everybody, data=answer)
    assert refused.status_code == 409
    assert "winter:release-3 is tried by now, not winter:release-2" in text_of(refused.text)
    assert world.browser.client.post(everybody, data=form).status_code == 409  # it is not asked any more
    assert world.browser.post(everybody).status_code == 422
    now = fleet_release.read(world.server_directory.path)
    assert (now.used, now.canary) == ("winter:release-1", "winter:release-3")
    with pytest.raises(UsageError, match="winter:release-3 is tried by now, not winter:release-2"):
        release_acts.to_everybody(world.server_directory, "winter:release-2")  # between look and turn
    assert fleet_release.read(world.server_directory.path) == now
    assert release_acts.to_everybody(world.server_directory, "winter:release-3").used == "winter:release-3"


def test_the_question_before_a_promotion_says_to_whom_it_goes(world: World) -> None:
    run_in(world, "winter")
    location = next(one for one in world.operations.locations() if one.name == "winter")
    path, client, csrf = f"/releases/{location.id}", world.browser.client, world.browser.token()

    def asked(act: str = "promote", **form: str) -> str:
        return text_of(client.post(f"{path}/{act}", data={"csrf": csrf, **form}).text)

    first = asked(round="1", canary="")
    assert "Promote the adapter of round 1 of winter?" in first
    assert (
        "All devices of home fetch it, and new ones start from it, once the authority has signed it." in first
    )
    assert "home uses no release yet: nothing can be tried first." in asked(round="1", canary="5")
    world.browser.post(f"{path}/promote", {"round": "1"})
    part = asked(round="2", canary="5")
    assert "Promote the adapter of round 2 of winter to 5% of the devices first?" in part
    assert "5% of the devices of home fetch it, once the authority has signed it." in part
    assert "All others stay with winter:release-1, and so do exports and new runs." in part
    world.browser.post(f"{path}/promote", {"round": "2", "canary": "5"})
    every = asked(round="3", canary="")
    assert "All devices of home fetch it in place of winter:release-1" in every
    assert "winter:release-2 is tried no more." in every
    back = asked("rollback", number="1")
    assert "winter:release-1 stays in use. winter:release-2 is tried no more." in back
    world.browser.post(f"{path}/promote", {"round": "3"})
    world.browser.post(f"/releases/{world.id}/hold", {"held": "yes"})
    assert "home holds winter:release-3: this one waits" in asked(round="2", canary="")
    assert "home holds winter:release-3: nothing can be tried first." in asked(round="2", canary="5")
    assert "home holds winter:release-3: this one waits" in asked("rollback", number="1")


def test_a_yes_to_something_else_is_asked_once_more(world: World) -> None:
    """The fleet held when it was asked: the release would have waited. Now all devices would fetch it."""
    run_in(world, "winter")
    location = next(one for one in world.operations.locations() if one.name == "winter")
    promote, hold = f"/releases/{location.id}/promote", f"/releases/{world.id}/hold"
    world.browser.post(promote, {"round": "1"})
    world.browser.post(hold, {"held": "yes"})
    form = {"csrf": world.browser.token(), "round": "2", "canary": ""}
    answer = form_of(world.browser.client.post(promote, data=form).text, promote)
    world.browser.post(hold, {"held": "no"})
    again = world.browser.client.post(promote, data=answer)
    assert again.status_code == 200
    assert "All devices of home fetch it in place of winter:release-1" in text_of(again.text)
    assert fleet_release.read(world.server_directory.path).used == "winter:release-1"
    second = form_of(again.text, promote)
    assert second["back"] == answer["back"]
    assert world.browser.client.post(promote, data=second).status_code == 303
    assert fleet_release.read(world.server_directory.path).used == "winter:release-2"


def test_the_form_of_a_fleet_asks_nothing_that_only_a_simulation_has(world: World) -> None:
    """No data set, pairs or people: those are on the devices. And a fleet is called as its folder, once."""
    page = world.browser.get("/runs/new").text
    form = form_of(page, "/runs/new")
    assert form["where"] == world.id
    simulated = [key for key in form if key.startswith("set.data.")]
    assert "set.data.dataset" not in simulated
    assert not {"set.data.pairs", "set.data.test_pairs", "set.data.clients"} & set(form)
    assert "the fleet home" not in text_of(page)
    assert "Everybody of home" in text_of(page)
