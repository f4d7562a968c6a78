"""Acts at the command line, until a console takes them into its audit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from penchant.common.errors import GatewayError, UsageError
from penchant.common.printable import MOST_SHOWN
from penchant.deploy.fleet.recorded_acts import BY_CONSOLE, FOLDER, OPEN_SECONDS, Act, recorded, take


def taken(server: Path, now: float | None = None) -> list[Act]:
    found: list[Act] = []
    take(server, found.append, now=now)
    return found


def test_an_act_is_on_record_with_how_it_ended_and_taken_once(tmp_path: Path) -> None:
    with recorded(tmp_path, "start a run", "spring", "of many"):
        (open_act,) = (tmp_path / FOLDER).iterdir()
        assert '"begun"' in open_act.read_text(encoding="utf-8")
        assert open_act.stat().st_mode & 0o077 == 0
    (act,) = taken(tmp_path)
    assert (act.action, act.target, act.detail, act.outcome) == ("start a run", "spring", "of many", "done")
    assert act.account.endswith("command line)")
    assert time.time() - act.at < 60
    assert taken(tmp_path) == []


@pytest.mark.parametrize("letter", ["x", "ä", "😀", '"', "\\", "\udcff", "\x1b", "\n"])
def test_however_long_its_texts_are_an_act_can_be_read_again(tmp_path: Path, letter: str) -> None:
    long = letter * 100_000
    with pytest.raises(UsageError), recorded(tmp_path, long, long, long, by=long):
        raise UsageError(long)
    (act,) = taken(tmp_path)
    assert act.outcome.startswith("refused:")
    assert len(act.outcome) <= MOST_SHOWN
    assert list((tmp_path / FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UsageError("there is no run"), "refused: there is no run"),
        (GatewayError("it is down"), "failed: it is down"),
        (KeyboardInterrupt(), "failed: KeyboardInterrupt"),
    ],
)
def test_what_was_not_done_is_not_called_done(tmp_path: Path, error: BaseException, outcome: str) -> None:
    with pytest.raises(type(error)), recorded(tmp_path, "start a run"):
        raise error
    assert [act.outcome for act in taken(tmp_path)] == [outcome]


def test_an_act_without_an_end_waits_for_it_and_is_then_taken_as_it_is(tmp_path: Path) -> None:
    with recorded(tmp_path, "renew certificates"):
        assert taken(tmp_path) == []
        assert [act.outcome for act in taken(tmp_path, time.time() + OPEN_SECONDS + 1)] == ["begun"]
    assert [act.outcome for act in taken(tmp_path)] == ["done"]


def test_what_the_console_asks_for_is_in_its_audit_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in BY_CONSOLE.items():
        monkeypatch.setenv(name, value)
    with recorded(tmp_path, "start a run"):
        pass
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"at": 1}', '{"at": "x", "account": 1}'])
def test_what_is_no_act_stays_where_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "1-1.json").write_text(text, encoding="utf-8")
    assert taken(tmp_path) == []
    assert (tmp_path / FOLDER / "1-1.json").exists()
