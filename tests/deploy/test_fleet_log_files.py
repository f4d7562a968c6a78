"""Logs of the server's processes: without colours, as text or JSON, turned over, and never in the way."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from penchant.common.terminal import JsonFormatter
from penchant.deploy.fleet import log_files
from penchant.deploy.fleet.log_files import LogFile, LogKeeping
from penchant.deploy.fleet.server_directory import ServerSettings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "superlink.log"


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "LOOK_SECONDS", 0.0)


def in_json(path: Path, line: bytes) -> dict[str, str]:
    LogFile("superlink", path, LogKeeping("json")).write(line)
    return json.loads(path.read_text().splitlines()[-1])


def test_what_steers_a_terminal_reaches_no_file(path: Path) -> None:
    log = LogFile("superlink", path, LogKeeping())
    log.write(b"\x1b[92mINFO \x1b[0m:      Starting \x1b[1mFlower\x1b[0m\n")
    log.write(b"half\rwhole\r\n")
    log.write(b"\x1b]0;title\x07 bell \xff\n")
    assert path.read_text() == "INFO :      Starting Flower\nwhole\n?]0;title? bell \ufffd\n"


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        (b"\x1b[92mINFO \x1b[0m:      Starting\n", "info", "Starting"),
        (b"WARNING :   take care\n", "warning", "take care"),
        (b"2026-11-28 21:00:00,123 ERROR no answer: OSError\n", "error", "no answer: OSError"),
        (
            b"2026/11/28 21:00:00 [crit] 12#12: *3 connect() failed\n",
            "critical",
            "12#12: *3 connect() failed",
        ),
        (b"2026/11/28 21:00:00 [warn] 12#12: odd\n", "warning", "12#12: odd"),
        (b'  File "x.py", line 3\n', None, '  File "x.py", line 3'),
        (b"\n", None, ""),
    ],
)
def test_a_line_of_json_has_time_part_level_and_message(
    path: Path, line: bytes, level: str | None, message: str
) -> None:
    found = in_json(path, line)
    assert (found["part"], found.get("level"), found["message"]) == ("superlink", level, message)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])


def test_logs_are_turned_over_and_the_oldest_goes(path: Path) -> None:
    log = LogFile("superlink", path, LogKeeping(most=10, kept=2))
    for number in range(5):
        log.write(b"line %d.\n" % number)  # 8 bytes: one a file
    found = {one.name: one.read_text() for one in path.parent.iterdir()}
    assert found == {
        "superlink.log": "line 4.\n",
        "superlink.log.1": "line 3.\n",
        "superlink.log.2": "line 2.\n",
    }


def test_a_line_longer_than_a_log_is_not_lost(path: Path) -> None:
    log = LogFile("superlink", path, LogKeeping(most=10, kept=1))
    log.write(b"x" * 100)
    log.write(b"y" * 100)
    assert path.read_text() == "y" * 100 + "\n"
    assert path.with_name("superlink.log.1").read_text() == "x" * 100 + "\n"


def test_a_log_goes_on_where_it_was(path: Path) -> None:
    path.write_text("before\n")
    LogFile("superlink", path, LogKeeping()).write(b"after\n")
    assert path.read_text() == "before\nafter\n"


@pytest.mark.parametrize("how", ["unlink", "rename", "truncate"])
def test_another_program_may_rotate_it(how: str, path: Path) -> None:
    log = LogFile("superlink", path, LogKeeping())
    log.write(b"one\n")
    if how == "unlink":
        path.unlink()
    elif how == "rename":
        path.rename(path.with_name("elsewhere"))
    else:
        os.truncate(path, 0)
    log.write(b"two\n")
    assert path.read_text() == "two\n"


def test_what_cant_be_written_is_said_once_and_comes_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = LogFile("superlink", path, LogKeeping())
    path.mkdir()
    for _ in range(3):
        log.write(b"lost\n")
    assert [record.getMessage() for record in caplog.records] == [
        f"can't write {path}: Is a directory; lines of superlink are lost"
    ]
    path.rmdir()
    log.write(b"written\n")
    assert path.read_text() == "written\n"


def test_what_cant_be_turned_over_grows_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    in_the_way = path.with_name("superlink.log.1")
    in_the_way.mkdir()
    (in_the_way / "file").touch()
    log = LogFile("superlink", path, LogKeeping(most=10, kept=1))
    for _ in range(3):
        log.write(b"line here\n")
    assert path.read_text() == "line here\n" * 3
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith(f"can't turn {path} over: ")


def test_settings_say_how_logs_are_kept() -> None:
    settings = ServerSettings(addresses=("x",), log_format="json", log_mb=2, log_files=5)
    assert settings.logs == LogKeeping("json", 2 * 1024 * 1024, 5)


def test_our_own_log_can_be_json() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "gateway ended\x1b[2K with %s", (1,), None)
    said = json.loads(JsonFormatter("server").format(record))
    assert {key: said[key] for key in ("part", "level", "message")} == {
        "part": "server",
        "level": "warning",
        "message": "gateway ended?[2K with 1",
    }
