"""`penchant server status`: the console's facts at a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.console_scene import log, make_run, shared

from penchant.deploy.cli.main import main
from penchant.server.journal import Journal
from penchant.server.monitoring.run_history import Activity, RunLocation, summary_of


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
    facts = summary_of(RunLocation("spring", "spring", run, "simulation"), Activity()).table()
    assert code == 0
    assert told == json.loads(json.dumps(facts)) | {"run": "spring"}
    assert [stage["name"] for stage in told["stages"]] == ["keys", "shares"]
    keys = {frozenset(row) for row in told["attempts"]}
    assert len(keys) == 1  # the same for attempts that gave nothing
    assert [row["survivors"] for row in told["attempts"]] == [33, 33, None, None]


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
