"""What is written to a log is shown as it comes, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.common.errors import ConsoleError
from penchant.deploy.fleet import log_tail
from penchant.deploy.fleet.log_tail import log_lines, new_lines


def test_lines_come_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.log"
    monkeypatch.setattr(log_tail, "LOOK_SECONDS", 0.01)
    path.write_text("one\ntwo\nthree\n", encoding="utf-8")
    lines = new_lines(path, 2)
    assert [next(lines), next(lines)] == ["two", "three"]
    steps = iter(["four\nfi", "ve\nsix\n"])

    def written(_: float) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(next(steps))

    monkeypatch.setattr("penchant.deploy.fleet.log_tail.time.sleep", written)
    assert [next(lines), next(lines), next(lines)] == ["four", "five", "six"]
    monkeypatch.setattr(
        "penchant.deploy.fleet.log_tail.time.sleep", lambda _: path.write_text("anew\n", encoding="utf-8")
    )
    assert next(lines) == "anew"


def test_what_is_written_while_the_first_lines_are_shown_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.log"
    monkeypatch.setattr(log_tail, "LOOK_SECONDS", 0.01)
    path.write_text("one\ntwo\n", encoding="utf-8")
    lines = new_lines(path, 2)
    assert next(lines) == "one"
    with path.open("a", encoding="utf-8") as file:
        file.write("three\n")
    assert [next(lines), next(lines)] == ["two", "three"]


def test_a_log_that_is_turned_over_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.log"
    path.write_text("one\n", encoding="utf-8")
    lines = new_lines(path, 5)
    assert next(lines) == "one"
    steps = iter([path.unlink, lambda: path.write_text("two\n", encoding="utf-8")])
    monkeypatch.setattr("penchant.deploy.fleet.log_tail.time.sleep", lambda _: next(steps)())
    assert next(lines) == "two"


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key\n", encoding="utf-8")
    (tmp_path / "server.log").symlink_to(tmp_path / "secret")
    with pytest.raises(ConsoleError, match="symbolic link"):
        log_lines(tmp_path / "server.log")
    assert log_lines(tmp_path / "nothing.log") == []
