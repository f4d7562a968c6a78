"""What is done to a fleet at the command line, left where the console takes it into its audit.

One file for each act in the server's `acts/`: written before anything is done, and again with how it ended.
A console that shows this server reads them and removes what it has taken; without one they stay.
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from penchant.common.errors import ConsoleError, PenchantError
from penchant.common.foreign_files import read_json
from penchant.common.printable import one_line
from penchant.common.storage import write_private

__all__ = ["BY_CONSOLE", "FOLDER", "Act", "recorded", "take", "who_is_here"]

FOLDER = "acts"
BY_CONSOLE = {"PENCHANT_ASKED_BY": "console"}
"""The environment of a command whose act is on record already: the console's, and the queue's."""

ACT_MOST = 64 * 1024  # bytes; five texts of 2000 characters, as `_write` cuts them, take less
OPEN_SECONDS = 3600.0  # an act without an end is taken as it is after this


@dataclass(frozen=True)
class Act:
    """One act. at: Unix seconds, when it began; outcome: "begun", "done", or why it was not."""

    at: float
    account: str
    action: str
    target: str
    detail: str = ""
    outcome: str = "begun"


@contextmanager
def recorded(
    server: Path, action: str, target: str = "", detail: str = "", *, by: str = ""
) -> Iterator[None]:
    """Leave a record of what is done inside, with how it ended. ConsoleError when it can't be written: then
    nothing is done.

    by: who does it, where that is nobody at the command line.
    """
    if os.environ.items() >= BY_CONSOLE.items():
        yield
        return
    act = Act(time.time(), by or who_is_here(), action, target, detail)
    path = server / FOLDER / f"{time.time_ns()}-{os.getpid()}.json"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConsoleError(f"can't make {path.parent}: {error.strerror}; nothing was done") from None
    _write(path, act)
    try:
        yield
    except PenchantError as error:
        _write(path, replace(act, outcome=error.outcome))
        raise
    except BaseException as error:
        _write(path, replace(act, outcome=f"failed: {type(error).__name__}"))
        raise
    _write(path, replace(act, outcome="done"))


def take(server: Path, note: Callable[[Act], None], *, now: float | None = None) -> None:
    """Hand over what was left, the oldest first, and remove it. What is no act stays where it is, and so does
    all of it where nothing can be removed: an audit must not get it again at each look."""
    moment = time.time() if now is None else now
    if not os.access(server / FOLDER, os.W_OK | os.X_OK):
        return
    for path in sorted((server / FOLDER).glob("[0-9]*.json")):
        act = _read(path)
        if act is None or (act.outcome == "begun" and moment - act.at < OPEN_SECONDS):
            continue
        note(act)
        with suppress(FileNotFoundError):
            path.unlink()


def _write(path: Path, act: Act) -> None:
    shown = {key: one_line(text) if isinstance(text, str) else text for key, text in asdict(act).items()}
    write_private(path, json.dumps(shown, ensure_ascii=False).encode(), failure=ConsoleError)


def _read(path: Path) -> Act | None:
    try:
        table = read_json(path, ConsoleError, ACT_MOST)
    except (OSError, ConsoleError):
        return None
    if not isinstance(table, dict) or set(table) != set(Act.__dataclass_fields__):
        return None
    at, texts = table["at"], {key: value for key, value in table.items() if key != "at"}
    if type(at) not in (int, float) or not all(isinstance(text, str) for text in texts.values()):
        return None
    return Act(float(at), **{key: one_line(text) for key, text in texts.items()})


def who_is_here() -> str:
    """Who is at the command line."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (OSError, KeyError):
        return "command line"
