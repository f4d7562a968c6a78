"""A sign of life in a file: until when at the latest the next one comes.

A process that lives may still do nothing. Whoever promises when it is heard of again, and is not, hangs.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from penchant.common.durations import DAY
from penchant.common.errors import JournalError
from penchant.common.foreign_files import read_bytes

__all__ = ["LONGEST", "Heartbeat"]

LONGEST = DAY  # seconds between two signs, at most: who promises more is not believed
SLACK = 60.0  # seconds that a busy machine may be late by


class Heartbeat:
    """The sign of life of one process.

    Args:
        path: its file.
        clock: Unix seconds; processes in other containers of the machine read the same.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock

    def beat(self, within: float) -> None:
        """Promise the next sign within so many seconds, `LONGEST` at most. OSError where it can't be."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        temporary.write_text(f"{self._clock() + within + SLACK:.0f}\n", encoding="ascii")
        os.replace(temporary, self._path)  # whole, or the one before; lost with a crash, as its writer is

    def late(self) -> float | None:
        """Seconds since the promised moment, negative before it.

        None where nothing was promised that can be believed: no file, no number, or a moment further away
        than anybody promises, as after a clock that was set back.
        """
        try:
            late = self._clock() - float(read_bytes(self._path, JournalError, 64).decode("ascii"))
        except (FileNotFoundError, JournalError, ValueError):
            return None
        return late if math.isfinite(late) and -late <= LONGEST + SLACK else None
