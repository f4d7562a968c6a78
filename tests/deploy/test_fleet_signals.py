"""/metrics, /healthz and /readyz of a server, and that the dashboard and the alerts ask for what there is."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from starlette.testclient import TestClient
from support.console_scene import log, shared
from support.fleet_directory import FIGURES, make_served_run, make_server
from support.processes import wait_for
from support.receivers import WebServer, serving

from penchant.common.errors import ConfigError, GatewayError
from penchant.common.foreign_files import Remembered
from penchant.deploy.fleet import fleet_watch, signals
from penchant.deploy.fleet.enrolment import hand_out
from penchant.deploy.fleet.fleet_watch import FleetWatch
from penchant.deploy.fleet.listen_address import ListenAddress
from penchant.deploy.fleet.notice_settings import NoticeSettings
from penchant.deploy.fleet.notifier import Notifier
from penchant.deploy.fleet.processes import signals_state
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.fleet.signals_service import build_signals, serve_signals, token_in
from penchant.deploy.fleet.status import SuperLinkReport
from penchant.deploy.flower.superlink import free_port
from penchant.server import journal_reader
from penchant.server.journal import Journal
from penchant.server.journal_reader import JournalContents

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "fleet" / "monitoring"
TOKEN = "0123456789abcdef"


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    return make_server(tmp_path)


@pytest.fixture
def all_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of the server answers; three devices, of which two are connected."""
    monkeypatch.setattr(fleet_watch, "gateway_state", lambda server_directory: "open")
    monkeypatch.setattr(fleet_watch, "superlink_report", lambda server_directory: SuperLinkReport(True, 3, 2))
    well = dict.fromkeys(("enrol", "executor", "queue"))
    monkeypatch.setattr(fleet_watch, "part_notices", lambda server_directory, clock: well)


def client(watch: FleetWatch, host: str = "127.0.0.1:9464", **options: Any) -> TestClient:
    return TestClient(build_signals(watch, **options), base_url=f"http://{host}")


def asked_anew(server: ServerDirectory, path: str) -> Any:
    """The answer of a process that has looked at nothing yet."""
    return client(FleetWatch(server)).get(path)


# --- the three paths --------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_up")
def test_a_fleet_whose_parts_answer_is_ready(server: ServerDirectory) -> None:
    assert asked_anew(server, "/healthz").json() == {"alive": True}
    ready = asked_anew(server, "/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
    text = asked_anew(server, "/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'penchant_part_up{part="gateway"} 1.0',
        'penchant_part_up{part="superlink"} 1.0',
        'penchant_part_up{part="enrolment"} 1.0',
        'penchant_part_up{part="executor"} 1.0',
        'penchant_part_up{part="queue"} 1.0',
        "penchant_ready 1.0",
        "penchant_devices_registered 3.0",
        "penchant_devices_online 2.0",
        "penchant_member_list_number 1.0",
    ):
        assert line in text.text.splitlines(), line


def test_a_server_that_is_down_is_alive_and_not_ready(server: ServerDirectory) -> None:
    assert asked_anew(server, "/healthz").status_code == 200
    ready = asked_anew(server, "/readyz")
    assert ready.status_code == 503
    assert ready.json() == {
        "ready": False,
        "reasons": [
            "The gateway is closed",
            "The enrolment service does not listen",
            "The SuperLink of server is silent",
        ],
    }
    assert "\npenchant_devices_online " not in asked_anew(server, "/metrics").text


def test_parts_that_live_and_do_nothing_are_told(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers get in even where a process is stopped; what listens nowhere is known by its word."""
    monkeypatch.setattr(fleet_watch, "gateway_state", lambda server_directory: "open")
    monkeypatch.setattr(fleet_watch, "superlink_report", lambda server_directory: SuperLinkReport(True, 3, 2))
    with socket.socket(socket.AF_UNIX) as enrolment:
        enrolment.bind(str(server.enrol_socket))
        enrolment.listen()
        look = FleetWatch(server).look()
    assert look.unready == ("The enrolment service does not answer",)
    assert [notice.title for notice in look.notices] == [
        "The enrolment service does not answer",
        "Flower's executor never asked the SuperLink for work",
        "The queue of runs is down",
    ]
    assert look.figures.parts == {
        **{"gateway": True, "superlink": True, "enrolment": False, "executor": False, "queue": False}
    }


@pytest.mark.usefixtures("all_up")
@pytest.mark.parametrize(
    ("days", "ready", "reason"),
    [
        (29, True, ""),
        (31, False, "Member list 1 has expired"),
        (400, False, "The gateway's certificate has expired"),
    ],
)
def test_a_fleet_past_a_date_is_not_ready(
    days: int, ready: bool, reason: str, server: ServerDirectory
) -> None:
    watch = FleetWatch(server, clock=lambda: time.time() + days * 86400)
    found = client(watch).get("/readyz")
    assert (found.status_code == 200) == ready
    assert not reason or reason in found.json()["reasons"]


@pytest.mark.usefixtures("all_up")
def test_a_failed_run_needs_attention_and_keeps_no_device_out(server: ServerDirectory) -> None:
    directory = make_served_run(server, "spring", 1, **{"federation.attempts": 1})
    with closing(Journal(directory)) as journal:
        journal.begin(2, "main")
        journal.fail(2, 1, "too few")
    assert asked_anew(server, "/readyz").status_code == 200
    text = asked_anew(server, "/metrics").text
    assert 'penchant_attention{kind="bad"} 1.0' in text
    assert 'penchant_runs{state="failed"} 1.0' in text


def test_what_cant_be_read_is_said_in_one_line(server: ServerDirectory) -> None:
    (server.path / "members.list").write_bytes(b"nothing of the kind")
    for path in ("/metrics", "/readyz"):
        found = asked_anew(server, path)
        assert found.status_code == 503, path
        assert found.text.count("\n") <= 1
    assert asked_anew(server, "/healthz").status_code == 200


def test_a_damaged_run_takes_no_figures_of_others_with_it(server: ServerDirectory) -> None:
    make_served_run(server, "good")
    (make_served_run(server, "bad") / "journal.db").write_bytes(b"no database" * 100)
    text = asked_anew(server, "/metrics").text
    assert 'penchant_runs{state="damaged"} 1.0' in text
    assert 'penchant_run_survivors{run="good"} 33.0' in text
    assert 'penchant_run_survivors{run="bad"}' not in text


def test_requests_and_invitations_are_counted(server: ServerDirectory) -> None:
    hand_out(server.path, "kitchen", time.time() + 86400)
    (server.requests / "0a.request").write_bytes(b"asked")
    (server.requests / "run-0b.manifest").write_bytes(b"asked")
    os.utime(server.requests / "0a.request", (time.time() - 5000,) * 2)
    text = asked_anew(server, "/metrics").text
    assert 'penchant_requests_waiting{kind="enrolment"} 1.0' in text
    assert 'penchant_requests_waiting{kind="revocation"} 0.0' in text
    assert 'penchant_requests_waiting{kind="run"} 1.0' in text
    (oldest,) = re.findall(r"^penchant_requests_oldest_seconds (\S+)$", text, re.M)
    assert 5000 <= float(oldest) < 5600
    assert 'penchant_invitations{state="open"} 1.0' in text


def test_no_name_of_a_person_or_device_is_told(server: ServerDirectory) -> None:
    """Neither an invitation's name nor a node's id, nor a reason in a journal's words."""
    hand_out(server.path, "Grandmother's kitchen", time.time() + 3600)
    directory = make_served_run(server, "spring", 1)
    with closing(Journal(directory)) as journal:
        journal.begin(2, "main")
        journal.finish(log(2, named={"1003": "sent Olga's share twice"}), shared(2.0))
    text = asked_anew(server, "/metrics").text + asked_anew(server, "/readyz").text
    assert 'run="spring"' in text
    for name in ("kitchen", "Grandmother", "Olga", "1003"):
        assert name not in text, name


# --- who may ask ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_up")
def test_a_token_guards_figures_and_readiness(server: ServerDirectory) -> None:
    browser = client(FleetWatch(server), "fleet.example", token=TOKEN, loopback_only=False)
    for path in ("/metrics", "/readyz"):
        assert browser.get(path).status_code == 401, path
        assert browser.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401, path
        assert browser.get(path, headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401, path
        assert browser.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200, path
    assert browser.get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["evil.example:9464", "10.0.0.1", "", "[::1", "127.0.0.1.evil.example"])
def test_on_loopback_a_request_to_another_name_is_refused(host: str, server: ServerDirectory) -> None:
    """A page in somebody's browser, whose name was made to point here."""
    found = client(FleetWatch(server)).get("/metrics", headers={"Host": host})
    assert found.status_code == 421


@pytest.mark.parametrize("host", ["localhost:9464", "127.0.0.1", "[::1]:9464"])
def test_on_loopback_its_own_names_are_served(host: str, server: ServerDirectory) -> None:
    assert client(FleetWatch(server)).get("/metrics", headers={"Host": host}).status_code == 200


def test_nothing_can_be_changed_and_nothing_else_is_there(server: ServerDirectory) -> None:
    browser = client(FleetWatch(server))
    assert browser.post("/metrics").status_code == 405
    assert browser.get("/docs").status_code == 404


def test_beyond_loopback_there_must_be_a_token(server: ServerDirectory) -> None:
    with pytest.raises(ConfigError, match="not loopback"):
        serve_signals(FleetWatch(server), ListenAddress("0.0.0.0", 9464))
    with pytest.raises(ConfigError, match="not loopback; name a file"):
        ServerSettings(addresses=("fleet.example",), metrics="0.0.0.0:9464")
    ServerSettings(addresses=("fleet.example",), metrics="0.0.0.0:9464", metrics_token="metrics.token")


def test_a_port_that_is_held_is_said_in_one_line(server: ServerDirectory) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(GatewayError, match=f"can't listen at 127.0.0.1:{port}: Address already in use"):
            serve_signals(FleetWatch(server), ListenAddress("127.0.0.1", port))


def test_a_port_that_is_held_silences_no_notice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Notices go out meanwhile; figures are served once the port is free, and SIGTERM ends both at once."""
    web, port = WebServer(), free_port()
    with serving(web), socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        notices = NoticeSettings(webhooks=(f"http://127.0.0.1:{web.port}/hook",), after_seconds=0)
        server = make_server(tmp_path, metrics=f"127.0.0.1:{port}", notices=notices)
        words = ["-m", "penchant.deploy.cli.main", "server", "up", str(server.path), "--only", "signals"]
        with subprocess.Popen([sys.executable, *words]) as process:
            try:
                wait_for("a notice", lambda: bool(web.got), 180)
                assert signals_state(server) == "unheard"
                other.close()
                wait_for("the port", lambda: signals_state(server) == "up", 60)
                found = httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                assert found.json() == {"alive": True}
            finally:
                process.terminate()
            assert process.wait(60) == 0
    assert signals_state(server) == "down"
    assert capfd.readouterr().err.count("no figures, but notices go on: can't listen at") == 1
    topics = [json.loads(body)["topic"] for _, _, body in web.got]
    assert len(topics) == len(set(topics))


def test_a_token_that_cant_be_read_ends_figures_that_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where notices are wanted it is tried again."""
    alone = make_server(tmp_path / "a", metrics="127.0.0.1:9464", metrics_token="t")
    with pytest.raises(ConfigError, match="holds no token"):
        signals.run(alone)
    both = make_server(
        tmp_path / "b", metrics="127.0.0.1:9464", metrics_token="t",
        notices=NoticeSettings(webhooks=("https://fleet.invalid",)),
    )  # fmt: skip
    tries: list[float] = []

    def pause(seconds: float) -> None:
        tries.append(seconds)
        (both.path / "t").write_text(TOKEN)

    served: list[str] = []
    monkeypatch.setattr(
        signals, "serve_signals", lambda watch, where, token, announce, beat: served.append(token)
    )
    monkeypatch.setattr(signals, "time", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    stops: list[threading.Event] = []
    monkeypatch.setattr(Notifier, "run", lambda self, stop: stops.append(stop))
    signals.run(both)
    assert (len(tries), served) == (1, [TOKEN])
    assert stops[0].is_set()


def test_a_port_that_another_will_listen_at_is_held_as_well() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        where = ListenAddress("127.0.0.1", other.getsockname()[1])
        with where.bind() as ours:
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            with pytest.raises(GatewayError, match="Address already in use"):
                where.bind()


@pytest.mark.parametrize(
    "text", ["", "9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "::1:9464", "a b:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        ListenAddress.parse(text, "--listen")


def test_addresses_are_read() -> None:
    assert ListenAddress.parse("[::1]:9464", "x") == ListenAddress("::1", 9464)
    assert str(ListenAddress("::1", 9464)) == "[::1]:9464"
    for host, ours in (("localhost", True), ("127.9.9.9", True), ("[::1]", True), ("0.0.0.0", False)):
        assert ListenAddress.parse(f"{host}:1", "x").on_loopback == ours, host


def test_a_token_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.token"
    with pytest.raises(ConfigError, match="holds no token"):
        token_in(path)
    for wrong in ("short", "with space in the middle", "x" * 600):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="must be 16 to 512") as refused:
            token_in(path)
        assert wrong not in str(refused.value)
    path.write_text(f"{TOKEN}\n")
    assert token_in(path) == TOKEN


# --- what it costs ----------------------------------------------------------------------------------


def test_a_journal_that_did_not_change_is_not_read_again(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many runs as the reader of journals forgets: only the one that moved is read."""
    for number in range(5):
        make_served_run(server, f"run-{number}", 1)
    monkeypatch.setattr(fleet_watch, "LOOK_SECONDS", 0.0)
    read: list[str] = []

    def counted(path: Path, before: JournalContents | None) -> JournalContents:
        read.append(path.parent.name)
        return journal_reader._read(path, before)

    monkeypatch.setattr(journal_reader, "_contents", Remembered(counted, 1))
    watch = FleetWatch(server)
    watch.look()
    assert set(read) == {f"run-{number}" for number in range(5)}
    read.clear()
    watch.look()
    assert read == []
    with closing(Journal(server.run("run-3"))) as journal:
        journal.begin(2, "main")
    assert [run.attempts for run in watch.look().figures.runs if run.name == "run-3"] == [{"finished": 1}]
    assert set(read) == {"run-3"}


def test_who_asks_often_gets_the_same_look(server: ServerDirectory) -> None:
    watch = FleetWatch(server)
    assert watch.look() is watch.look()


def test_a_run_that_is_deleted_is_forgotten(server: ServerDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_watch, "LOOK_SECONDS", 0.0)
    directory, watch = make_served_run(server, "spring"), FleetWatch(server)
    assert [run.name for run in watch.look().figures.runs] == ["spring"]
    directory.rename(server.path / "elsewhere")
    assert watch.look().figures.runs == []


def test_bytes_of_a_run_are_those_on_disk(server: ServerDirectory) -> None:
    directory = make_served_run(server, "spring", 2)
    (run,) = FleetWatch(server).look().figures.runs
    files = [directory / "journal.db", *(directory / "checkpoints").iterdir()]
    assert run.stored == sum(path.stat().st_size for path in files)
    assert run.epsilon_spent == FIGURES.spent(2)


def test_revocations_that_wait_are_said(server: ServerDirectory) -> None:
    """With the words of the console's overview, whichever process says them."""
    (server.requests / "revoke-4.json").write_text('{"member": 4, "why": "lost"}')
    titles = [notice.title for notice in FleetWatch(server).look().notices]
    assert "1 revocation pending" in titles


# --- dashboard and alerts -----------------------------------------------------------------------------

OTHERS = {"up"}  # Prometheus' own


def exported(server: ServerDirectory) -> dict[str, set[str]]:
    """name -> its labels, as /metrics has them."""
    make_served_run(server, "spring", 2)
    text = asked_anew(server, "/metrics").text
    found: dict[str, set[str]] = {name: set() for name in re.findall(r"^# TYPE (\S+) ", text, re.M)}
    for name, labels in re.findall(r"^([a-z_]+)(?:\{(.*)\})? ", text, re.M):
        found[name] |= set(re.findall(r'(\w+)="', labels))
    return found


def expressions() -> list[tuple[str, str]]:
    """(where, PromQL) of everything that is shipped."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    found = [(p["title"], t["expr"]) for p in board["panels"] for t in p.get("targets", ())]
    found += [(v["name"], v["definition"]) for v in board["templating"]["list"] if v["type"] == "query"]
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    return found + [(r["alert"], r["expr"]) for g in rules["groups"] for r in g["rules"]]


def test_dashboard_and_alerts_ask_only_for_what_metrics_tells(server: ServerDirectory) -> None:
    known = exported(server)
    for where, expression in expressions():
        names = set(re.findall(r"\bpenchant_\w+", expression))
        assert names or OTHERS & set(re.findall(r"\w+", expression)), where
        assert names <= set(known), f"{where}: {names - set(known)}"


def test_dashboard_and_alerts_select_by_labels_that_there_are(server: ServerDirectory) -> None:
    known = exported(server)
    for where, expression in expressions():
        for name, selector in re.findall(r"\b(penchant_\w+)\{([^}]*)\}", expression):
            for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", re.sub(r'"[^"]*"', "", selector)):
                told = known[name] or {"run", "stage"}  # no value now: those that a run has
                assert label in told | {"instance"}, f"{where}: {name} has no label {label}"


def test_every_metric_is_on_the_dashboard(server: ServerDirectory) -> None:
    """But for what tells of the program, and what the dashboard says in another way."""
    text = (MONITORING / "grafana-dashboard.json").read_text()
    unseen = {name for name in exported(server) if not re.search(rf"\b{name}\b", text)}
    assert unseen == {"penchant_build_info", "penchant_member_list_number", "penchant_age_seconds"}


def test_the_dashboard_is_one() -> None:
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["type"] == "row" or panel["targets"], panel["title"]


def test_the_alerts_are_complete() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 10
    for rule in alerts:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]


def test_the_scrape_example_names_our_rules_and_port() -> None:
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert [(MONITORING / name).is_file() for name in scrape["rule_files"]] == [True]
    (job,) = scrape["scrape_configs"]
    assert job["job_name"] == "penchant"  # the rule of silence asks for it
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9464"]}]
