"""Many devices are invited at once: a table of names in, a table of tokens and a sheet of QR codes out."""

from __future__ import annotations

import csv
import stat
import sys
import time
from pathlib import Path

import pytest
from support.fleet_directory import make_server

from penchant.common.errors import UsageError
from penchant.common.membership.join_token import JoinToken
from penchant.deploy.cli.main import main
from penchant.deploy.fleet.enrolment import EnrolmentRegistry
from penchant.deploy.fleet.invitations import Invitation, names_in, sheet, table
from penchant.deploy.fleet.server_directory import ServerDirectory

DAY = 86400


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    return make_server(tmp_path)


def invite(monkeypatch: pytest.MonkeyPatch, server: ServerDirectory, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["penchant", "server", "invite", str(server.path), *map(str, words)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_each_row_gets_a_token_of_its_own(
    server: ServerDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, out, page = tmp_path / "names.csv", tmp_path / "tokens.csv", tmp_path / "sheet.html"
    given.write_text("room,Name\n1,kitchen\n2,<b>cellar</b>\n\n3,=1+1\n", encoding="utf-8-sig")
    assert invite(monkeypatch, server, "--csv", given, "--days", 3, "--out", out, "--qr", page) == 0
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["name"] for row in rows] == ["kitchen", "<b>cellar</b>", "'=1+1"]
    tokens = [JoinToken.read(row["token"], time.time()) for row in rows]
    assert all(abs(token.terms.expires - time.time() - 3 * DAY) < 60 for token in tokens)
    known = {row.token: row.name for row in EnrolmentRegistry(server).enrolments()}
    assert [known[token.name] for token in tokens] == ["kitchen", "<b>cellar</b>", "=1+1"]
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == html.count("<article>") == 3
    assert "&lt;b&gt;cellar&lt;/b&gt;" in html
    assert all(row["token"] in html for row in rows)
    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    said = capsys.readouterr().out
    assert "3 tokens" in said
    for path in (out, page):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for row in rows:
        assert row["token"] not in said
        for path in server.path.rglob("*"):
            assert not path.is_file() or row["token"].encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 names"),
        ("name\n", "0 names"),
        ("a,b\nc,d\n", "none that is called name"),
        ("name\nkitchen\nkitchen\n", "kitchen more than once"),
        ("name,room\nkitchen,1\n,2\n", "name 2"),
        ("name\n" + "x" * 101, "name 1"),
        ("name\nkit\u202echen\n", "name 1"),
        ("\n".join(str(n) for n in range(5001)), "5001 names"),
        ("kitchen;blue\ncellar;red\n", "several columns and none that is called name"),
        (
            'name\n"' + "a" * 200_000 + "\n",
            "is no CSV: field larger than|must be 1 to 100 printable",
        ),  # csv has one limit for a process
    ],
)
def test_a_table_is_judged_before_any_token_is_handed_out(
    server: ServerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    path = tmp_path / "names.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=why):
        names_in(path)
    assert invite(monkeypatch, server, "--csv", path, "--out", tmp_path / "tokens.csv") == 2
    assert EnrolmentRegistry(server).enrolments() == []
    assert not (tmp_path / "tokens.csv").exists()


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_columns_are_apart_as_a_spreadsheet_wrote_them(tmp_path: Path, between: str) -> None:
    rows = [["room", "Name"], ["1", "kitchen"], ["2", "cellar"]]
    (tmp_path / "names.csv").write_text("\r\n".join(map(between.join, rows)), encoding="utf-8-sig")
    assert names_in(tmp_path / "names.csv") == ["kitchen", "cellar"]


def test_one_column_needs_no_heading(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("kitchen\ncellar\n", encoding="utf-8")
    assert names_in(tmp_path / "names.csv") == ["kitchen", "cellar"]


@pytest.mark.parametrize(
    "words", [["--csv", "names.csv"], ["--csv", "names.csv", "--name", "x", "--out", "t"]]
)
def test_where_tokens_go_is_said_first(
    server: ServerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.csv").write_text("kitchen\n", encoding="utf-8")
    (tmp_path / "there").write_text("mine", encoding="utf-8")
    assert invite(monkeypatch, server, *words) == 2
    assert invite(monkeypatch, server, "--csv", "names.csv", "--qr", "there") == 2
    assert EnrolmentRegistry(server).enrolments() == []
    assert (tmp_path / "there").read_text(encoding="utf-8") == "mine"


def test_no_token_is_in_what_is_logged() -> None:
    one = Invitation("kitchen", 0.0, "penchant1_secret")
    assert "secret" not in repr(one)
    assert "secret" in table([one])
    assert "secret" in sheet([one])
