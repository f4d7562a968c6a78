"""Runs of a fleet at the terminal: a list of them, one that is stopped, one that is looked at again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pytest
from support.fleet_directory import make_served_run, make_server
from support.terminal import server_command

from penchant.deploy.fleet import follow, run_activity
from penchant.deploy.fleet.recorded_acts import Act, take
from penchant.deploy.fleet.server_directory import ServerDirectory


class Link:
    """Stands for Flower's control interface: one run goes on until it is stopped."""

    def __init__(self, door: object = None, seconds: float = 10.0) -> None:
        pass

    stopped: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def is_going(self, run: str) -> bool:
        return run not in Link.stopped

    def stop(self, run: str) -> None:
        Link.stopped += (run,)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerDirectory:
    monkeypatch.setattr(Link, "stopped", ())
    monkeypatch.setattr(follow, "Control", Link)
    return make_server(tmp_path)


def test_all_runs_are_listed(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server_command(monkeypatch, "runs", server.path) == 0
    assert "there is no run yet" in capsys.readouterr().out
    make_served_run(server, "spring", 2)
    make_served_run(server, "autumn", 1)
    assert server_command(monkeypatch, "runs", server.path) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [["spring", "stopped", "2"], ["autumn", "stopped", "1"]]
    assert server_command(monkeypatch, "runs", server.path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["run"], one["state"], one["settled"]) for one in told] == [
        ("spring", "stopped", 2),
        ("autumn", "stopped", 1),
    ]
    assert all(0 < one["val_accuracy"] < 1 for one in told)


def test_a_damaged_run_takes_no_other_from_the_list(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (make_served_run(server, "spring", 2) / "journal.db").write_bytes(b"no database")
    make_served_run(server, "autumn", 1)
    assert server_command(monkeypatch, "runs", server.path, "--json") == 0
    told = {one["run"]: one for one in json.loads(capsys.readouterr().out)}
    assert (told["spring"]["state"], told["spring"]["rounds"]) == ("damaged", 0)
    assert told["autumn"]["state"] == "stopped"


def test_a_run_is_stopped_and_that_is_in_the_audit(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_served_run(server, "spring", 2)
    assert server_command(monkeypatch, "stop", server.path) == 2
    assert "spring was never started" in capsys.readouterr().err
    (directory / run_activity.FLOWER_RUN).write_text("4711\n", encoding="utf-8")
    assert server_command(monkeypatch, "stop", server.path) == 0
    assert "run spring has stopped" in capsys.readouterr().out
    assert Link.stopped == ("4711",)
    assert "Flower run 4711 was stopped" in (directory / run_activity.LOG).read_text(encoding="utf-8")
    assert server_command(monkeypatch, "stop", server.path) == 2
    assert "nothing drives spring now" in capsys.readouterr().err
    acts: list[Act] = []
    take(server.path, acts.append)
    outcomes = [act.outcome.split(":")[0] for act in acts if act.action == "stop a run"]
    assert outcomes == ["refused", "done", "refused"]


def test_a_run_is_looked_at_again(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_served_run(server, "spring", 2)
    assert server_command(monkeypatch, "watch", server.path) == 2
    assert "spring was never started" in capsys.readouterr().err
    (directory / run_activity.FLOWER_RUN).write_text("4711\n", encoding="utf-8")
    watched: list[Any] = []
    monkeypatch.setattr(follow, "watch", lambda *given: watched.append(given))
    assert server_command(monkeypatch, "watch", server.path, "--run", "spring") == 0
    ((where, _, flower, _),) = watched
    assert (where, flower) == (directory, "4711")


def test_a_log_is_shown_from_its_end(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_served_run(server, "spring", 2)
    assert server_command(monkeypatch, "logs", server.path) == 0
    assert capsys.readouterr().out == ""
    text = "".join(f"line {n}\x1b[31m\n" for n in range(100))
    (directory / run_activity.LOG).write_text(text, encoding="utf-8")
    assert server_command(monkeypatch, "logs", server.path, "-n", 3) == 0
    assert capsys.readouterr().out.splitlines() == ["line 97", "line 98", "line 99"]
