"""Releases: rounds whose shared adapter an operator has promoted, in one file of the run's directory.

Promoting and rolling back move a name, never the adapter: a release is a round and the digest of its
checkpoint. The file says all that ever happened; its last line is what is current.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from penchant.common.errors import JournalError, UsageError
from penchant.common.foreign_files import read_json
from penchant.common.printable import is_printable
from penchant.common.storage import in_turn, write_durably

__all__ = [
    "RELEASES",
    "FleetRelease",
    "OfferedRelease",
    "Release",
    "current",
    "named_round",
    "promote",
    "release_name",
    "released",
    "releases",
    "roll_back",
    "turn",
]

RELEASES = "releases.json"
_LOCK = ".releases.lock"
FILE_MOST = 4 * 1024 * 1024  # bytes
_KEPT = "number", "round", "digest", "by", "at"
LARGEST, LATEST = 10**9, 32503680000.0  # of numbers; and the year 3000 in Unix seconds


@dataclass(frozen=True)
class Release:
    """A promoted round.

    Attributes:
        number: 1, 2, ….
        round: the round.
        digest: SHA-256 of its checkpoint, hex.
        by: who promoted it.
        at: when, Unix seconds.
        current: whether it is the one in use.
        again_by: who went back to it, where that is why it is in use; empty where it is not.
        again_at: when that was, Unix seconds.
    """

    number: int
    round: int
    digest: str
    by: str
    at: float
    current: bool = False
    again_by: str = ""
    again_at: float = 0.0


@dataclass(frozen=True)
class FleetRelease:
    """Which release a fleet uses, as "RUN:release-NUMBER"; empty for none.

    held: whether it stays, whatever is promoted. waiting: what was promoted meanwhile; empty for nothing.
    canary: what a part of the devices tries first; empty for nothing. share: how large that part is, in
    ten-thousandths of the devices.
    """

    used: str = ""
    held: bool = False
    waiting: str = ""
    canary: str = ""
    share: int = 0

    @property
    def last(self) -> str:
        """What was chosen last: in use, tried by some, or in use once the fleet holds no more; empty for
        none."""
        return self.canary or self.waiting or self.used


@dataclass(frozen=True)
class OfferedRelease:
    """What a fleet's devices can fetch, and what the authority was asked for last, by `release_name`.

    Attributes:
        everybody: what all devices can fetch; empty for nothing.
        sequence: the number under which the authority signed that; 0 for nothing.
        canary: what a canary's devices can fetch; empty for nothing.
        canary_sequence: likewise.
        asked: what waits for the authority's signature; empty for nothing.
        why_not: why what was chosen last is not signed, where it does not wait; empty where it is.
    """

    everybody: str = ""
    sequence: int = 0
    canary: str = ""
    canary_sequence: int = 0
    asked: str = ""
    why_not: str = ""

    def state_of(self, name: str) -> str:
        """Whether devices can fetch the release of this name, in words."""
        if name == self.asked:
            return "waits for the authority's signature"
        if name == self.canary:
            return f"signed as number {self.canary_sequence}, for some devices"
        if name == self.everybody:
            return f"signed as number {self.sequence}"
        return "not signed"


def turn(directory: Path) -> AbstractContextManager[None]:
    """Be the only one who promotes, rolls back or holds in a directory: a fleet's, or that of a run without a
    fleet. What two people choose at once is chosen one after the other."""
    return in_turn(directory / _LOCK, JournalError)


def releases(directory: Path) -> list[Release]:
    """All releases of a run, the latest first. JournalError when the file is damaged."""
    made, now, again = _read(directory)
    return [replace(r, current=True, **again) if r.number == now else r for r in reversed(made)]


def current(directory: Path) -> Release | None:
    """The release in use."""
    return next((release for release in releases(directory) if release.current), None)


def named_round(text: str) -> tuple[str, str]:
    """(run, which) of "RUN:ROUND", "RUN:release-NUMBER" or "RUN:release", the one in use. UsageError for
    anything else."""
    run, _, which = text.rpartition(":")
    if not run or not re.fullmatch(r"[0-9]{1,9}|release(-[0-9]{1,9})?", which):
        raise UsageError(
            f"--from takes RUN:ROUND, as in run-1:12, RUN:release or RUN:release-NUMBER, and not {text!r}"
        )
    return run, which


def release_name(run: str, number: int) -> str:
    """How a fleet calls a release of one of its runs."""
    return f"{run}:release-{number}"


def released(directory: Path, which: str = "release") -> Release:
    """What "release", the one in use, or "release-NUMBER" names. UsageError when there is none."""
    number = which.removeprefix("release").removeprefix("-")
    found = [one for one in releases(directory) if (str(one.number) == number if number else one.current)]
    if not found:
        what = f"release {number}" if number else "release in use"
        raise UsageError(f"{directory.name} has no {what}; promote a round of it first")
    return found[0]


def promote(directory: Path, round: int, digest: str, by: str, *, again: bool = False) -> Release:
    """Make a finished round the next release, and the current one. Where it is that already: the release as
    it is with `again`, and a UsageError without."""
    made, now, _ = _read(directory)
    if made and made[-1].round == round and made[-1].digest == digest and now == made[-1].number:
        if again:
            return replace(made[-1], current=True)
        raise UsageError(f"round {round} is the current release already")
    release = Release(len(made) + 1, round, digest, by, time.time(), True)
    _write(directory, [*made, release], release.number)
    return release


def roll_back(directory: Path, number: int, by: str, *, again: bool = False) -> Release:
    """Make an earlier release the current one again. UsageError when there is none of that number, or it is
    the current one already, which is fine with `again`."""
    made, now, _ = _read(directory)
    found = next((release for release in made if release.number == number), None)
    if found is None:
        raise UsageError(f"there is no release {number}")
    if number == now and not again:
        raise UsageError(f"release {number} is current already")
    again_now = _WentBack(again_by=by, again_at=time.time())
    if number != now:
        _write(directory, made, number, again_now)
    return replace(found, current=True, **again_now)


class _WentBack(TypedDict, total=False):
    """Who went back to what is current, and when; empty where it is current since it was promoted."""

    again_by: str
    again_at: float


def _read(directory: Path) -> tuple[list[Release], int, _WentBack]:
    """(all releases, the number of the current one, who went back to it)."""
    path = directory / RELEASES
    try:
        table = read_json(path, JournalError, FILE_MOST)
    except FileNotFoundError:
        return [], 0, _WentBack()
    try:
        made = [_release(row) for row in table["releases"]]
        now = table["current"]
        if type(now) is not int or [release.number for release in made] != list(range(1, len(made) + 1)):
            raise ValueError("its release numbers are not in order")
        return made, now, _again(table.get("again"))
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{path} is damaged: {error}") from None


def _release(row: Mapping[str, Any]) -> Release:
    """A row of the file. ValueError, KeyError or TypeError for anything that is not a release."""
    number, round, digest, by, at = (row[name] for name in _KEPT)
    if not (type(number) is type(round) is int and 0 < number < LARGEST and 0 < round < LARGEST):
        raise ValueError("a release or round number is not valid")
    if type(at) not in (int, float) or not 0 <= at <= LATEST:
        raise ValueError("the time of a release is not valid")
    if not (type(digest) is type(by) is str and re.fullmatch("[0-9a-f]{64}", digest) and is_printable(by)):
        raise ValueError("a digest or an account name is not valid")
    return Release(number, round, digest, by, float(at))


def _again(row: Any) -> _WentBack:
    """Who went back, as the file has it. ValueError or TypeError for anything else."""
    if row is None:  # nobody, or a file of an earlier version
        return _WentBack()
    by, at = row
    if type(by) is not str or not is_printable(by) or type(at) not in (int, float) or not 0 <= at <= LATEST:
        raise ValueError("who went back to a release is not valid")
    return _WentBack(again_by=by, again_at=float(at))


def _write(directory: Path, made: Sequence[Release], now: int, again: _WentBack | None = None) -> None:
    rows = [{name: getattr(release, name) for name in _KEPT} for release in made]
    back = list(again.values()) if again else None
    text = json.dumps({"current": now, "again": back, "releases": rows}, indent=2) + "\n"
    try:
        write_durably(directory / RELEASES, text.encode())
    except OSError as error:
        raise JournalError(f"can't write {directory / RELEASES}: {error.strerror}") from None
