"""`penchant server status`: the console's facts at a terminal."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.console_scene import log, make_run, shared
from support.fleet_directory import make_server

from penchant.deploy.cli.drawing import Drawing
from penchant.deploy.cli.main import main
from penchant.deploy.cli.show_run import run_facts, show_run
from penchant.deploy.fleet import status as fleet_status
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.enrolment import hand_out
from penchant.deploy.fleet.heartbeat import Heartbeat
from penchant.deploy.fleet.notice_settings import NoticeSettings
from penchant.deploy.fleet.processes import METRICS_BEAT, METRICS_LOCK, NOTICES_BEAT, SIGNALS_LOCK
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.fleet.status import SuperLinkReport
from penchant.deploy.flower.superlink import free_port
from penchant.deploy.json_tables import plain_value
from penchant.deploy.run_directory import claim
from penchant.server.journal import Journal
from penchant.server.monitoring.run_history import Activity, RunLocation, summary_of
from penchant.server.privacy_figures import FACT, PrivacyFigures


def status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("sys.argv", ["penchant", "server", "status", *map(str, words)])
    with pytest.raises(SystemExit) as leave:
        main()
    out, err = capsys.readouterr()
    return int(leave.value.code or 0), out.replace("\u202f", " "), err


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two rounds that stand, an attempt that failed, one at work in its second stage."""
    journal = Journal(make_run(tmp_path / "spring", 2))
    journal.begin(3, "main")
    journal.fail(3, 1, "14 of 34 devices lost by [masked]")
    journal.begin(3, "main")
    journal.stage(3, 2, "keys", 34)
    journal.answered(3, 2, "keys", 33, over=True)
    journal.stage(3, 2, "shares", 33)
    journal.close()
    return tmp_path / "spring"


def test_it_tells_what_the_console_shows(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = status(capsys, monkeypatch, run)
    assert (code, err) == (0, "")
    for part in (
        "spring  stopped  2 of 9 rounds",
        "round 3, attempt 2: keys 33/34 → shares 0/33",
        "14 of 34 devices lost by [masked]",
        "devices lost, last ten rounds  2.9%: 2 at masked sums",
        "0% ",
        "3.2",
    ):
        assert part in out, part


def test_the_same_facts_for_a_machine(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = status(capsys, monkeypatch, run, "--json")
    told = json.loads(out)
    facts = summary_of(RunLocation("spring", "spring", run, "simulation"), Activity()).report()
    assert code == 0
    assert told == json.loads(json.dumps(plain_value(facts)))
    assert [stage["name"] for stage in told["stages"]] == ["keys", "shares"]
    keys = {frozenset(row) for row in told["attempts"]}
    assert len(keys) == 1  # the same for attempts that gave nothing
    assert [row["survivors"] for row in told["attempts"]] == [33, 33, None, None]
    assert " ".join(told) == (
        "name kind state why rounds settled began touched remaining_seconds train_loss val_accuracy "
        "val_accuracy_after_round histogram lost_part secagg dp waiting stages devices attempts run"
    )
    assert " ".join(told["attempts"][0]) == (
        "round attempt phase cohort survivors dropped seconds bytes_up bytes_down examples train_loss "
        "val_accuracy histogram update_norm aborts named failed measured_on judged judges "
        "count_noise state started why digest"
    )
    assert told["attempts"][2] == dict.fromkeys(told["attempts"][0]) | {
        "round": 3,
        "attempt": 1,
        "phase": "main",
        "state": "failed",
        "started": told["attempts"][2]["started"],
        "why": "14 of 34 devices lost by [masked]",
    }


def test_what_a_runs_noise_amounts_to_is_told_to_machines_too(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = status(capsys, monkeypatch, run, "--json")
    assert json.loads(out)["dp"] is None
    figures = PrivacyFigures(8.0, 1e-5, 1.25, 20, 9, 0.0125, 0.75)
    with closing(Journal(run)) as journal:
        journal.note(FACT, figures.encode())
    _, out, _ = status(capsys, monkeypatch, run, "--json")
    assert json.loads(out)["dp"] == figures.to_dict()


def test_a_server_says_how_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = AuthorityStore.init(tmp_path / "authority")
    server_directory = ServerDirectory.create(
        tmp_path / "server",
        ServerSettings(addresses=("fleet.example",), port=1, superlink_port=2),  # nothing listens there
        authority.authority.public_key,
        authority.latest(),
    )
    hand_out(server_directory.path, "kitchen", time.time() + 86400)
    (server_directory.requests / "0a.request").write_bytes(b"asked")
    up = f"Bring it up with `penchant server up {server_directory.path}`, or see its log."
    away = "Every request of a device is turned away meanwhile; see logs/enrol.log."
    waits = "No run begins in its turn, and none goes on by itself; see logs/queue.log."
    code, out, _ = status(capsys, monkeypatch, server_directory.path)
    assert code == 1
    assert out.splitlines() == [
        f"gateway {server_directory.settings.gateway}: closed",
        "SuperLink down, 0 of 0 nodes online",
        "member list 1: 0 members, good for 30.0 days",
        "server certificate good for 397 days",
        "tokens: 1 open",
        "waiting for the authority: 0a.request",
        f"! The gateway is closed. {up}",
        f"! The SuperLink is down. {up}",
        f"! The enrolment service does not listen. {away}",
        f"! The queue of runs is down. {waits}",
    ]
    code, out, _ = status(capsys, monkeypatch, server_directory.path, "--json")
    told = json.loads(out)
    expected = {
        "gateway": server_directory.settings.gateway,
        "up": False,
        "gateway_state": "closed",
        "superlink": {"up": False, "nodes": 0, "online": 0},
        "members": {"number": 1, "count": 0, "days_left": told["members"]["days_left"]},
        "certificate_days_left": told["certificate_days_left"],
        "enrolments": {"open": 1},
        "waiting_for_authority": ["0a.request"],
        "runs": [],
        "attention": [
            {"kind": "bad", "title": "The gateway is closed", "text": up},
            {"kind": "bad", "title": "The SuperLink is down", "text": up},
            {"kind": "bad", "title": "The enrolment service does not listen", "text": away},
            {"kind": "bad", "title": "The queue of runs is down", "text": waits},
        ],
        "queue": 0,
    }
    assert code == 1
    assert out == json.dumps(expected, indent=2) + "\n"  # the order of the keys as well
    assert told["members"]["days_left"] == pytest.approx(30, abs=0.02)


def test_long_runs_end_with_their_latest_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(make_run(tmp_path / "long", 0, of=60))
    for number in range(1, 31):
        journal.begin(number, "main")
        journal.finish(log(number), shared(number))
    journal.close()
    _, out, _ = status(capsys, monkeypatch, tmp_path / "long")
    assert "10 earlier; --json has all" in out
    assert "\n   30  main" in out


def test_what_is_neither_a_server_nor_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = status(capsys, monkeypatch, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("penchant: ")
    assert err.count("\n") == 1


# --- a server -------------------------------------------------------------------------------------


@pytest.fixture
def server_directory(tmp_path: Path) -> ServerDirectory:
    authority_store = AuthorityStore.init(tmp_path / "authority")
    settings = ServerSettings(addresses=("fleet.example",), port=free_port(), superlink_port=free_port())
    public = authority_store.authority.public_key
    return ServerDirectory.create(tmp_path / "server", settings, public, authority_store.latest())


def all_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_status, "gateway_state", lambda server_directory: "open")
    up = SuperLinkReport(up=True, nodes=3, online=3)
    monkeypatch.setattr(fleet_status, "superlink_report", lambda server_directory: up)
    monkeypatch.setattr(fleet_status, "part_notices", lambda server_directory: {})


def test_a_server_that_is_down_is_an_exit_code_and_says_what_is_down(
    server_directory: ServerDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = status(capsys, monkeypatch, server_directory.path)
    assert code == 1
    assert "! The gateway is closed. Bring it up with `penchant server up" in out
    assert "! The SuperLink is down." in out
    code, out, _ = status(capsys, monkeypatch, server_directory.path, "--json")
    told = json.loads(out)
    assert (code, told["up"], told["gateway_state"]) == (1, False, "closed")
    assert [row["kind"] for row in told["attention"]] == ["bad"] * 4
    all_up(monkeypatch)
    code, out, _ = status(capsys, monkeypatch, server_directory.path)
    assert (code, "!" in out) == (0, False)


def test_a_port_that_another_program_holds_is_said(
    server_directory: ServerDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_up(monkeypatch)
    monkeypatch.setattr(fleet_status, "gateway_state", lambda server_directory: "foreign")
    code, out, _ = status(capsys, monkeypatch, server_directory.path)
    assert code == 1
    assert "not this server's: another program holds the port" in out


def test_a_signals_part_that_is_wanted_and_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever answers at its port: it may be the part of another server."""
    all_up(monkeypatch)
    server = make_server(tmp_path, metrics="127.0.0.1:9464")
    code, out, _ = status(capsys, monkeypatch, server.path)
    assert code == 1
    assert "! The signals part is down. Nobody is told what needs attention. Bring it up" in out
    with claim(server.path, SIGNALS_LOCK):
        code, out, _ = status(capsys, monkeypatch, server.path)
        assert code == 1
        assert "! The signals part does not answer at 127.0.0.1:9464." in out
        with claim(server.path, METRICS_LOCK):
            code, out, _ = status(capsys, monkeypatch, server.path)
            assert code == 1
            assert "! The signals part hangs." in out
            assert f"End its process, whose number is in {server.path / SIGNALS_LOCK}" in out
            Heartbeat(server.path / METRICS_BEAT).beat(60.0)
            code, out, _ = status(capsys, monkeypatch, server.path)
    assert (code, "!" in out) == (0, False)
    notices = make_server(tmp_path / "other", notices=NoticeSettings(webhooks=("https://example.org",)))
    assert status(capsys, monkeypatch, notices.path)[0] == 1
    with claim(notices.path, SIGNALS_LOCK):
        Heartbeat(notices.path / NOTICES_BEAT, lambda: time.time() - 1000.0).beat(60.0)
        assert status(capsys, monkeypatch, notices.path)[0] == 1  # alive, and stopped since
        Heartbeat(notices.path / NOTICES_BEAT).beat(60.0)
        assert status(capsys, monkeypatch, notices.path)[0] == 0


@pytest.mark.parametrize(
    ("days", "code", "said"),
    [
        (22, 0, []),  # the list is good for 30
        (24, 3, ["! Member list 1 expires in 5 d"]),
        (31, 1, ["! Member list 1 has expired."]),
        (380, 1, ["! The gateway's certificate expires in 16 d", "! The SuperLink's certificate expires"]),
        (400, 1, ["! The gateway's certificate has expired.", "penchant server renew"]),
        (3400, 1, ["! The gateway's CA expires in"]),
    ],
)
def test_what_ends_is_said_in_time(
    days: int,
    code: int,
    said: list[str],
    server_directory: ServerDirectory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    all_up(monkeypatch)
    later = time.time() + days * 86400 + 60  # what is left is rounded: a minute makes it the day before
    monkeypatch.setattr(fleet_status, "_now", lambda: later)
    exited, out, _ = status(capsys, monkeypatch, server_directory.path)
    assert exited == code
    for part in said:
        assert part in out, (part, out)


def test_why_an_attempt_failed_is_read_on_a_narrow_terminal_too(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eighty columns, as a pipe has."""
    show_run(run_facts(run), Drawing(width=80))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert lines[-3:] == [
        "1: 1 at masked sums",
        "2: 1 at masked sums",
        "3: 14 of 34 devices lost by [masked]",
    ]


def test_a_run_with_noise_that_has_not_begun_is_not_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = make_run(tmp_path / "waits", 0, **{"privacy.dp_epsilon": 4.0})
    show_run(run_facts(waits), Drawing(width=140))
    assert (
        "privacy                        epsilon 0 of 4, delta 1e-05: it has not begun"
        in capsys.readouterr().out
    )
    show_run(run_facts(make_run(tmp_path / "exact", 0)), Drawing(width=140))
    assert "no noise: sums are exact" in capsys.readouterr().out
