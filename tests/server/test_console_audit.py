"""The audit's filters, and what leaves it as CSV and JSON."""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.console_scene import Browser, Console

from penchant.common import csv_text
from penchant.server.console.views import audit
from penchant.server.console.views.audit import COLUMNS

DAY = 86400.0
FIRST = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC).timestamp()
LINES = [
    ("olga", "start a run", "first", "done"),
    ("olga", "stop a run", "first", "failed: it has ended"),
    ("vera", "stop a run", "first", "refused: not an operator"),
    ("=1+1", "log in", "", "refused: wrong name or password"),
    ("olga", "delete a run", "first", "begun"),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """An operator's; the audit has one line a day, from the first of January on, and then the login's."""
    console = Console(tmp_path)
    for day, (account, action, target, outcome) in enumerate(LINES):
        console.store.note(account, "10.0.0.1", action, target, outcome, at=FIRST + day * DAY)
    yield console.browser("olga")
    console.store.close()


def found(browser: Browser, query: str) -> list[tuple[str, str]]:
    """(who, what) of the lines of an export, but for exports and the login."""
    rows = [json.loads(line) for line in browser.get(f"/audit.jsonl?{query}").text.splitlines()]
    return [(row["account"], row["action"]) for row in rows if row["time"] < "2026-02"]


@pytest.mark.parametrize(
    ("query", "lines"),
    [
        ("", [4, 3, 2, 1, 0]),
        ("account=vera", [2]),
        ("action=stop+a+run", [2, 1]),
        ("outcome=done", [0]),
        ("outcome=refused", [3, 2]),
        ("outcome=failed", [1]),
        ("outcome=begun", [4]),
        ("day=2026-01-03", [4, 3, 2]),
        ("to=2026-01-03", [2, 1, 0]),
        ("day=2026-01-02&to=2026-01-02", [1]),
        ("account=olga&outcome=failed&action=stop+a+run", [1]),
        ("account=nobody", []),
        ("account=%27+OR+1%3D1+--", []),
    ],
)
def test_a_filter_leaves_its_lines_in_page_and_export_alike(
    browser: Browser, query: str, lines: list[int]
) -> None:
    expected = [LINES[line][:2] for line in lines]
    assert found(browser, query) == expected
    rows = browser.get(f"/audit?{query}").text.split("<tr>")
    assert sum('datetime="2026-01-0' in row for row in rows) == len(expected)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("outcome=other", 400),
        ("day=yesterday", 400),
        ("to=9999-12-31", 400),
        ("day=2026-01-03&to=2026-01-01", 400),
        ("before=x", 422),
    ],
)
def test_what_is_no_filter_is_said(browser: Browser, query: str, status: int) -> None:
    assert browser.get(f"/audit?{query}").status_code == status


def test_csv_has_every_line_with_all_that_is_known_and_nothing_that_computes(browser: Browser) -> None:
    answer = browser.get("/audit.csv?to=2026-01-31")
    assert answer.headers["content-type"].startswith("text/csv")
    assert 'filename="audit.csv"' in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert tuple(rows[0]) == COLUMNS
    assert rows[-1] == {
        "number": "1", "time": "2026-01-01T12:00:00.000+00:00", "account": "olga", "address": "10.0.0.1",
        "action": "start a run", "target": "first", "outcome": "done", "detail": "", "fleet": "",
    }  # fmt: skip
    assert [row["account"] for row in rows if "1+1" in row["account"]] == ["'=1+1"]
    assert "=1+1" in browser.get("/audit.jsonl?to=2026-01-31").text


@pytest.mark.parametrize("border", ["", ";", ",", "|", "\t", "\n", "\r", '";"', "; ", ';"', ";\n"])
@pytest.mark.parametrize("sign", "=+-@\uff1d\uff0b\uff0d\uff20")
def test_no_border_of_cells_and_no_sign_begins_a_formula(border: str, sign: str) -> None:
    text = f"x{border}{sign}cmd" if border else f"{sign}cmd"
    told = str(csv_text._cell(text))
    assert told.replace("'", "") == text, "nothing else is changed"
    for part in re.split(r"[;,|\t\r\n]", told):
        assert not re.match(rf'[\s"]*[{csv_text.SIGNS}]', part), told


@pytest.mark.parametrize(
    "text",
    ["", "x", "2026-01-01T12:00:00.000+00:00", "olga@example.org", "a; b, c|d", "a = 3", "'=x"],
)
def test_what_begins_no_formula_leaves_as_it_is(text: str) -> None:
    assert csv_text._cell(text) == text


def test_a_long_audit_leaves_whole(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ENTRIES_AT_ONCE", 2)
    assert len(found(browser, "")) == len(LINES)


def test_an_export_is_on_record_with_its_filter(browser: Browser) -> None:
    browser.get("/audit.csv?account=vera")
    (line,) = browser.get("/audit.jsonl?action=export+the+audit&outcome=done").text.splitlines()[-1:]
    assert json.loads(line)["detail"] == "account=vera"


def test_pages_keep_the_filter(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ENTRIES_A_PAGE", 1)
    first = browser.get("/audit?account=olga").text
    assert "account=olga&amp;before=" in first
    assert 'href="/audit.csv?account=olga"' in first
    assert "<option selected>olga</option>" in first
