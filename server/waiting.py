"""What a round waits for before it begins: how many devices are ready, who is not, and until when it waits.

It lies in one file of the run's directory while a round waits, for whoever looks; it decides nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from penchant.common.errors import JournalError
from penchant.common.foreign_files import read_json
from penchant.common.storage import write_durably

__all__ = ["WAITING", "Waiting", "read_waiting", "write_waiting"]

WAITING: Final = "waiting.json"
FILE_MOST = 4 * 1024 * 1024  # bytes
_MEMBER_MOST, _LATEST = 2**64, 32503680000.0


@dataclass(frozen=True)
class Waiting:
    """A round that can't begin yet.

    Attributes:
        round: its number.
        needed: how many devices have to be ready.
        ready: members that are.
        unready: members that answered that they don't take part now.
        silent: nodes that are connected and gave no answer that is understood.
        since: when the wait began, Unix seconds.
        until: when it is given up, Unix seconds.
    """

    round: int
    needed: int
    ready: tuple[int, ...]
    unready: tuple[int, ...]
    silent: tuple[int, ...]
    since: float
    until: float


def write_waiting(directory: Path, waiting: Waiting | None) -> None:
    """Leave word in a run's directory; None: it waits no more. JournalError when that can't be done."""
    path = directory / WAITING
    try:
        if waiting is None:
            path.unlink(missing_ok=True)
        else:
            write_durably(path, json.dumps(asdict(waiting)).encode())
    except OSError as error:
        raise JournalError(f"can't write {path}: {error.strerror}") from None


def read_waiting(directory: Path) -> Waiting | None:
    """What a run waits for; None where it doesn't, or what lies there is not what was written."""
    try:
        table = read_json(directory / WAITING, JournalError, FILE_MOST)
    except (FileNotFoundError, JournalError):
        return None
    if not isinstance(table, dict) or set(table) != set(Waiting.__dataclass_fields__):
        return None
    numbers = [table["round"], table["needed"]]
    lists = [table["ready"], table["unready"], table["silent"]]
    times = [table["since"], table["until"]]
    if not all(isinstance(one, list) for one in lists):
        return None
    if not all(type(n) is int and 0 <= n < _MEMBER_MOST for n in chain(numbers, *lists)):
        return None
    if not all(type(t) in (int, float) and 0 <= t <= _LATEST for t in times):
        return None
    return Waiting(*numbers, *(tuple(one) for one in lists), *map(float, times))
