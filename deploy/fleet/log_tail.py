"""The end of a run's log as people read it: no colours, nothing that steers a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from penchant.common.errors import ConsoleError
from penchant.common.foreign_files import FileMark, mark_of, open_foreign
from penchant.common.printable import printable, without_colours
from penchant.deploy.error_report import ErrorReport

__all__ = ["log_lines", "new_lines", "readable"]

TAIL = 64 * 1024  # bytes of a log that are looked at
LOOK_SECONDS = 0.5


def log_lines(path: Path) -> list[str]:
    """The last lines of a log; none where there is none yet. ConsoleError where it can't be read."""
    return _tail(path)[0]


def new_lines(path: Path, before: int) -> Iterator[str]:
    """The last `before` lines of a log, then for ever those that are written to it. One that became shorter
    is read from its beginning."""
    lines, at = _tail(path)
    yield from lines[-before:]
    mark: FileMark | None = None
    while True:
        time.sleep(LOOK_SECONDS)
        found = mark_of(path)
        if found == mark:
            continue
        mark, size = found, found[0][1] if found[0] else 0
        at = at if size >= at else 0
        try:
            with open_foreign(path, ConsoleError) as file:
                file.seek(at)
                whole = file.read(size - at).rpartition(b"\n")[0]
        except FileNotFoundError:  # turned over just now
            continue
        yield from _lines(whole)
        at += len(whole) + 1 if whole else 0


def readable(line: str) -> str:
    """A line of a log for people: our commands write errors as JSON there."""
    report = ErrorReport.read(line)
    return report.message if report else line


def _tail(path: Path) -> tuple[list[str], int]:
    """(the last lines of a log, its length in bytes at that moment)."""
    try:
        with open_foreign(path, ConsoleError) as file:
            end = file.seek(0, os.SEEK_END)
            begin = file.seek(max(end - TAIL, 0))
            return _lines(file.read(end - begin)), end
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise ConsoleError(f"can't read {path}: {error.strerror}") from None


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8", "replace")
    said = [without_colours(line.rsplit("\r", 1)[-1]).expandtabs().rstrip() for line in text.split("\n")]
    return [printable(line, TAIL) for line in said if line]
