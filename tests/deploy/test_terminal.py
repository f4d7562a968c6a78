"""Nothing that others wrote steers a terminal: one joint, and the prompts of the authority behind it."""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import typer
from rich.table import Table
from rich.text import Text
from support.console_scene import Console, log, make_run, shared
from typer.testing import CliRunner

from penchant.common.errors import CertificateError, RunDirectoryError, UsageError
from penchant.common.membership.enrolment import NamedRequest, request
from penchant.common.terminal import FORMAT, LineFormatter, json_text, say, say_json
from penchant.deploy.cli import authority as authority_cli
from penchant.deploy.cli.drawing import Drawing, note
from penchant.deploy.cli.main import app
from penchant.deploy.error_report import ErrorReport
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import PendingDecision
from penchant.deploy.simulation.recorder import MessageRecorder
from penchant.server.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
EVIL = "kitchen\x1b[2K\r\nfingerprint: aaaa\x9b1A\u202e\u200b\ud800[bold red]:smile:"
STEERS = ("\x1b", "\x9b", "\r", "\u202e", "\u200b", "\ud800")


def device(number: int) -> bytes:
    return bytes([number]) * 32


# --- one joint --------------------------------------------------------------------------------------

JOINTS = {
    "common/terminal.py",
    "deploy/cli/drawing.py",
    "deploy/api/_api_page.py",
    "deploy/cli/settings_page.py",
}
FORBIDDEN = {"print", "basicConfig", "echo", "secho", "from_markup", "TextColumn", "Console", "StreamHandler"}


@pytest.mark.parametrize("room", ["client", "common", "deploy", "server"])
def test_nothing_prints_or_sets_up_logging_but_the_joint(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name in JOINTS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                owner = getattr(getattr(node.func, "value", None), "id", "")
                fine = called not in FORBIDDEN or (called == "print" and owner in ("console", "errors"))
                assert (
                    fine
                    or (called == "print" and "console" in ast.unparse(node.func))
                    or (called == "print" and ast.unparse(node.func) == "Drawing().print")
                ), f"{name}:{node.lineno}: {called}() goes past common/terminal.py"


def test_what_is_said_is_one_clean_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"member 1: {EVIL}")
    say(EVIL, error=True)
    out, err = capsys.readouterr()
    for text in (out, err):
        assert text.count("\n") == 1
        assert not any(mark in text for mark in STEERS)


def test_json_stays_what_it_was_and_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": EVIL, "fine": "Zoë 電話 😀", "tag": "\U000e0041"}
    say_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert "Zoë 電話 😀" in out
    assert not any(mark in out for mark in STEERS)
    assert json_text(["plain"]) == '[\n  "plain"\n]'


def test_what_is_drawn_is_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=EVIL)
    table.add_column("name")
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console = Drawing(width=200)
    console.print(table)
    console.print(EVIL)
    console.print(note(EVIL))
    out = capsys.readouterr().out
    assert "[bold red]:smile:" in out
    assert not any(mark in out for mark in STEERS)


def test_colours_are_still_drawn_where_there_is_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Drawing(force_terminal=True, color_system="standard").print(Text("x", "red"))
    assert "\x1b[31mx" in capsys.readouterr().out


def test_a_log_has_one_line_a_record() -> None:
    made = LineFormatter(FORMAT).format(
        logging.LogRecord("penchant", logging.WARNING, "f", 1, "token %s is refused", (EVIL,), None)
    )
    assert "\n" not in made
    assert not any(mark in made for mark in STEERS)


def test_the_lines_of_a_traceback_are_set_in() -> None:
    try:
        raise ValueError("first\n2026-01-01 00:00:00,000 INFO all is well\x1b[2J")
    except ValueError:
        record = logging.LogRecord("penchant", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    lines = LineFormatter(FORMAT).format(record).split("\n")
    assert len(lines) > 3
    assert all(line.startswith("  ") for line in lines[1:])
    assert "\x1b" not in "".join(lines)


def test_a_traceback_steers_nothing_even_with_debug(tmp_path: Path) -> None:
    evil = tmp_path / "a\x1b[2Kb"
    ended = subprocess.run(
        [sys.executable, "-m", "penchant.deploy.cli.main", "audit", str(evil), "--debug"],
        capture_output=True, check=False, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "\x1b" not in ended.stderr


# --- the authority's prompt -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "kitchen\nthe fingerprint of its request:\naaaa-aaaa-aaaa-aaaa-aaaa",
        "kitchen\x1b[2K\x1b[1A",
        "x" * 75 + " aaaa-aaaa-aaaa-aaaa-aaaa",
        "kitchen\u202eaaaa",
        "[bold]kitchen[/]",
    ],
)
def test_the_fingerprint_stands_last_on_a_line_of_its_own(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a name had come past every entrance: the line above the question is the authority's."""
    asked: list[str] = []
    monkeypatch.setattr(typer, "confirm", lambda text: bool(asked.append(text)))
    authority_cli._granted(PendingDecision("enrol", "8ddb-0000-1111-2222-3333", name))
    lines = capsys.readouterr().out.split("\n")
    assert lines[1:] == ["the fingerprint of its request:", "8ddb-0000-1111-2222-3333", ""]
    assert lines[0].isprintable()
    assert len(asked) == 1
    authority_cli._granted(PendingDecision("revoke", "7", name))
    assert capsys.readouterr().out.endswith("it asks to revoke this member for good:\nmember 7\n")


@pytest.mark.parametrize(
    "name", [EVIL.replace("\ud800", ""), "a\nb", "a\x1b[1mb", "a\u202eb", "a\u200bb", " a", "a\x9bb"]
)
def test_a_name_that_can_not_be_seen_passes_no_entrance(name: str, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="invisible characters"):
        NamedRequest.decode(NamedRequest(name, request(device(1))).encode())
    authority_store = AuthorityStore.init(tmp_path / "authority")
    with pytest.raises(UsageError, match="printable"):
        authority_store.issue(request(device(1)), name)
    authority_store.issue(request(device(1)), "kitchen")
    with pytest.raises(UsageError, match="printable"):
        authority_store.revoke(1, name)
    assert [m.revoked for m in authority_store.members()] == [None]


def test_a_record_from_before_is_listed_in_clean_lines(tmp_path: Path) -> None:
    authority_store = AuthorityStore.init(tmp_path / "authority")
    authority_store.issue(request(device(1)), "kitchen")
    with authority_store._record() as db:
        db.execute("UPDATE members SET name = ?", ("a\x1b[2K\nmember 9",))
    ended = CliRunner().invoke(app, ["authority", "list", str(tmp_path / "authority")])
    assert ended.exit_code == 0
    assert ended.output.count("\n") == 1
    assert "\x1b" not in ended.output


def test_a_form_of_the_console_takes_what_can_be_seen(tmp_path: Path) -> None:
    console = Console(tmp_path)
    make_run(console.runs / "one")
    browser = console.browser("olga")
    path = f"/runs/{console.id_of('one')}/delete"
    answer = browser.post(path, {"confirm": "o\u202ene"})
    assert answer.status_code == 422
    assert (console.runs / "one").is_dir()
    console.browser().login("eve\x1b]0;x\x07\n\u202e")
    assert all(entry.account.isprintable() for entry in console.store.audit_entries())


def test_an_error_made_of_foreign_text_is_one_line() -> None:
    assert ErrorReport.of(UsageError(EVIL)).message.isprintable()


# --- status and audit over a stranger's directory -----------------------------------------------------


def test_status_shows_reasons_and_names_of_others_in_clean_lines(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "a\x1b[2Kb", 1)
    journal = Journal(directory)
    journal.begin(2, "main")
    journal._db.execute("UPDATE rounds SET state = 'failed', why = ? WHERE round = 2", (EVIL[:-18],))
    journal.begin(3, "main")
    journal.finish(log(3, named={"77": EVIL[:20]}), shared(1.0))
    journal.close()
    for more in ([], ["--json"]):
        ended = subprocess.run(
            [sys.executable, "-m", "penchant.deploy.cli.main", "server", "status", str(directory), *more],
            capture_output=True, check=False, text=True, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert not any(mark in ended.stdout for mark in STEERS)
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [["audit"], ["server", "status"]])
@pytest.mark.parametrize("bad", ["journal.db", "config.toml", "result.json", "wire.db"])
def test_a_pipe_or_a_link_neither_holds_a_command_nor_breaks_it(
    tmp_path: Path, command: list[str], bad: str
) -> None:
    directory = make_run(tmp_path / "run", 1)
    (directory / bad).unlink(missing_ok=True)
    os.mkfifo(directory / bad)
    ended = CliRunner().invoke(app, [*command, str(directory)])
    assert ended.exit_code in (0, 2)
    assert isinstance(ended.exception, SystemExit | None)
    assert "Traceback" not in ended.output


def test_a_record_is_looked_at_before_it_is_gone_on_with(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "wire.db")
    with pytest.raises(RunDirectoryError, match="not a regular file"):
        MessageRecorder(tmp_path)
    (tmp_path / "wire.db").unlink()
    with closing(sqlite3.connect(tmp_path / "wire.db")) as db:
        db.execute("CREATE VIEW sent AS SELECT 1")
    with pytest.raises(RunDirectoryError, match="more than tables"):
        MessageRecorder(tmp_path)


def test_audit_writes_nothing(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", 1)
    shutil.copyfile(directory / "journal.db", directory / "wire.db")
    before = sorted(p.name for p in directory.iterdir())
    os.chmod(directory, 0o500)
    ended = CliRunner().invoke(app, ["audit", str(directory)])
    os.chmod(directory, 0o700)
    assert ended.exit_code == 2
    assert sorted(p.name for p in directory.iterdir()) == before
