"""Which process drives a served run, and how the last one ended, by the files in its directory.

`penchant server status` and the console say the same, as both ask here. No process is asked or held up.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from penchant.common.errors import JournalError
from penchant.common.foreign_files import Remembered, mark_of, open_foreign
from penchant.common.printable import one_line
from penchant.deploy import run_directory
from penchant.deploy.fleet.run_signature import NOT_SIGNED, SIGNED, WAITS
from penchant.server.journal_reader import JournalReader
from penchant.server.monitoring.run_history import Activity

__all__ = [
    "FLOWER_RUN",
    "LOG",
    "START_LOCK",
    "STOPPED",
    "activity_of",
    "flower_run",
    "has_begun",
    "is_done",
    "say",
    "started_last",
    "was_cut_off",
]

LOG = "server.log"
START_LOCK = ".starting"  # of a server: whoever starts or resumes a run holds it until Flower has the run
FLOWER_RUN = "flower.run"  # Flower's id of the run that drives this one now
STARTING_SECONDS = 120.0  # from when Flower has a run to its process's first word
OPENING_SECONDS = 20.0  # from that word to when the directory is its own
STOPPED = "was stopped"  # the last word on a Flower run that somebody stopped
TAIL = 16 * 1024  # bytes of the log that are looked at


def say(directory: Path, text: str) -> None:
    """A line in the log of a run."""
    with (directory / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {one_line(text)}\n")


def flower_run(directory: Path) -> str | None:
    """The Flower run that was started last for this run, None before the first."""
    return _read(directory / FLOWER_RUN)[0] or None


def activity_of(directory: Path, held: set[tuple[int, int]] | None = None) -> Activity:
    """Whether a process drives the served run in `directory`, and if not, how it ended.

    Args:
        directory: the directory of the run.
        held: the locks that are held, as in `run_directory.busy`.
    """
    if run_directory.busy(directory, held):
        return Activity(running=True)
    flower, asked = _read(directory / FLOWER_RUN)
    if not flower:
        return Activity()
    words, moved = _words(directory, flower)
    if not words:
        starting = time.time() - asked < STARTING_SECONDS
        return Activity(
            running=starting, why="" if starting else "Flower has not begun it; is the server up?"
        )
    if words[-1] == "begins" or words[-1].startswith(WAITS):
        opening = time.time() - moved < OPENING_SECONDS
        return Activity(running=opening, why="" if opening else "its process ended without a word")
    if words[-1] == STOPPED:
        return Activity(stopped=True)
    return Activity(why=words[-1].removeprefix("ends: ") if words[-1].startswith("ends: ") else "")


def is_done(directory: Path) -> bool:
    """Whether the closing round of a run is over."""
    last = run_directory.read_config(directory).federation.rounds + 1
    return JournalReader(directory).settled() == last


def started_last(directories: Iterable[Path]) -> Path | None:
    """The run that was given to Flower last; None where none ever was."""
    started = [one for one in directories if flower_run(one) is not None]
    return max(started, key=lambda one: _read(one / FLOWER_RUN)[1], default=None)


def was_cut_off(directory: Path) -> bool:
    """Whether a run that nothing drives now would go on if it were resumed: its process went without a word,
    Flower never began it, or the authority has signed since. One that failed, or was stopped, was not."""
    flower = flower_run(directory)
    if flower is None or activity_of(directory).running or is_done(directory):
        return False
    words, _ = _words(directory, flower)
    if words and words[-1] == f"ends: {NOT_SIGNED}":
        return (directory / SIGNED).is_file()
    return not words or words[-1] == "begins" or words[-1].startswith(WAITS)


def has_begun(directory: Path, flower: str) -> bool:
    """Whether this Flower run's process has ever said a word."""
    return bool(_words(directory, flower)[0])


def _words(directory: Path, flower: str) -> tuple[list[str], float]:
    """(what a Flower run's process has said, when the log was changed)."""
    said, moved = _read(directory / LOG)
    return re.findall(rf"^\S+ Flower run {re.escape(flower)} (.*)$", said, re.MULTILINE), moved


def _read(path: Path) -> tuple[str, float]:
    """(the end of a text file, when it was changed); nothing where there is none."""
    return _ends.get(path.absolute(), mark_of(path))


def _read_end(path: Path, before: tuple[str, float] | None) -> tuple[str, float]:
    with suppress(FileNotFoundError, JournalError), open_foreign(path, JournalError) as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
        return file.read().decode("utf-8", "replace").strip(), os.fstat(file.fileno()).st_mtime
    return "", 0.0


_ends: Remembered[tuple[str, float]] = Remembered(_read_end, 5_000)
