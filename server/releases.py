"""Releases: rounds whose shared adapter an operator has promoted, in one file of the run's directory.

Promoting and rolling back move a name, never the adapter: a release is a round and the digest of its
checkpoint. The file says all that ever happened; its last line is what is current.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from penchant.common.errors import JournalError, UsageError
from penchant.common.storage import write_durably

__all__ = ["RELEASES", "Release", "current", "promote", "releases", "roll_back"]

RELEASES = "releases.json"


@dataclass(frozen=True)
class Release:
    """A promoted round. number: 1, 2, …; digest: SHA-256 of the checkpoint, hex; at: Unix seconds; current:
    whether it is the one in use."""

    number: int
    round: int
    digest: str
    by: str
    at: float
    current: bool = False


def releases(directory: Path) -> list[Release]:
    """All releases of a run, the latest first. JournalError when the file is damaged."""
    made, now = _read(directory)
    return [Release(**{**asdict(r), "current": r.number == now}) for r in reversed(made)]


def current(directory: Path) -> Release | None:
    """The release in use."""
    return next((release for release in releases(directory) if release.current), None)


def promote(directory: Path, round: int, digest: str, by: str) -> Release:
    """Make a finished round the next release, and the current one. UsageError when it is that already."""
    made, now = _read(directory)
    if made and made[-1].round == round and made[-1].digest == digest and now == made[-1].number:
        raise UsageError(f"round {round} is the current release already")
    release = Release(len(made) + 1, round, digest, by, time.time(), True)
    _write(directory, [*made, release], release.number)
    return release


def roll_back(directory: Path, number: int, by: str) -> Release:
    """Make an earlier release the current one again. UsageError when there is none of that number."""
    made, now = _read(directory)
    found = next((release for release in made if release.number == number), None)
    if found is None:
        raise UsageError(f"there is no release {number}")
    if number == now:
        raise UsageError(f"release {number} is current already")
    _write(directory, made, number)
    return Release(**{**asdict(found), "current": True})


def _read(directory: Path) -> tuple[list[Release], int]:
    path = directory / RELEASES
    if not path.is_file():
        return [], 0
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return [Release(**row) for row in table["releases"]], int(table["current"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{path} is damaged: {error}") from None


def _write(directory: Path, made: Sequence[Release], now: int) -> None:
    rows = [{k: v for k, v in asdict(release).items() if k != "current"} for release in made]
    text = json.dumps({"current": now, "releases": rows}, indent=2) + "\n"
    try:
        write_durably(directory / RELEASES, text.encode())
    except OSError as error:
        raise JournalError(f"can't write {directory / RELEASES}: {error.strerror}") from None
