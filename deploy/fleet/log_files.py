"""Logs of the processes that a supervisor keeps up: line by line, turned over, kept in bounds.

What a process says comes through a pipe and is written here, so that colours don't reach a file, every line
can be JSON, and a log that was renamed or removed begins anew with the next line. A log that can't be written
costs its lines, and holds no process up.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from penchant.common.printable import printable, without_colours

__all__ = ["LogFile", "LogKeeping"]

log = logging.getLogger(__name__)

LINE_MOST = 16 * 1024  # bytes of one line; a longer one is several
LOOK_SECONDS = 1.0  # between two looks whether the file is still there
DRAIN_SECONDS = 2.0  # for the last words; a child that was left behind may hold the pipe open
PAUSE_SECONDS = 10.0  # before something that went wrong is tried again

_LEVELS = "debug|info|notice|warn|warning|error|crit|critical|alert|emerg"
_FORMS = (
    re.compile(rf"(?P<level>{_LEVELS})\s*:\s+(?P<text>.*)", re.I),  # Flower's
    re.compile(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} (?P<level>{_LEVELS}) (?P<text>.*)", re.I),  # ours
    re.compile(rf"\d{{4}}/\d\d/\d\d \d\d:\d\d:\d\d \[(?P<level>{_LEVELS})\] (?P<text>.*)", re.I),  # nginx's
)
_SAME = {"warn": "warning", "crit": "critical", "alert": "critical", "emerg": "critical", "notice": "info"}


@dataclass(frozen=True)
class LogKeeping:
    """How logs are written and kept.

    form: "text", a line as it was said, or "json", an object a line. most: bytes after which a log is turned
    over. kept: how many old ones are kept: LOG.1 is the latest.
    """

    form: Literal["text", "json"] = "text"
    most: int = 32 * 1024 * 1024
    kept: int = 3


class LogFile:
    """The log of one process, whoever it is that is running as it. Thread-safe."""

    def __init__(self, name: str, path: Path, keeping: LogKeeping) -> None:
        """name: what lines of JSON call the process."""
        self._name = name
        self._path = path
        self._keeping = keeping
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._look_at = self._turn_at = 0.0  # not before, monotonic
        self._fault = ""  # what is wrong, as it was said last
        self._taking: threading.Thread | None = None

    def open(self) -> None:
        """Make sure that it can be written. OSError otherwise."""
        with self._lock:
            if self._was_taken():
                self._close()
            self._open()

    def take(self, stream: IO[bytes]) -> None:
        """Write all that comes from a process, in a thread of its own, until it and its children end."""
        name = f"log of {self._name}"
        self._taking = threading.Thread(target=self._take, args=(stream,), name=name, daemon=True)
        self._taking.start()

    def drain(self) -> None:
        """Wait until the last words of a process that has ended are written."""
        if self._taking is not None:
            self._taking.join(DRAIN_SECONDS)

    def _take(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(LINE_MOST):
                self.write(line)

    def write(self, line: bytes) -> None:
        """Write one line as it was said; what the disk refuses is lost, and said once."""
        text = without_colours(line.decode("utf-8", "replace").rstrip("\r\n").rsplit("\r", 1)[-1])
        data = self._formed(printable(text, LINE_MOST, lines=True)).encode() + b"\n"
        with self._lock:
            try:
                self._write(data)
                fault = ""
            except OSError as error:
                fault = f"can't write {self._path}: {error.strerror}; lines of {self._name} are lost"
                self._close()
            self._say(fault)

    def _write(self, data: bytes) -> None:
        now = time.monotonic()
        if self._file is None or (now >= self._look_at and self._was_taken()):
            self._close()
            self._open()
        if self._size + len(data) > self._keeping.most and self._size and now >= self._turn_at:
            self._turn_over(now)
        if self._file is None:
            self._open()
        if self._file is not None:
            self._file.write(data)
            self._size += len(data)

    def _open(self) -> None:
        if self._file is None:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by _close
            self._size = os.fstat(self._file.fileno()).st_size
            self._look_at = time.monotonic() + LOOK_SECONDS

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def _was_taken(self) -> bool:
        """Whether the file was renamed, removed or cut off by somebody else."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        if self._file is None:
            return True
        ours = os.fstat(self._file.fileno())
        self._size = ours.st_size
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _turn_over(self, now: float) -> None:
        """LOG becomes LOG.1, and so on; where that can't be done, it goes on growing and is tried again."""
        numbered = [self._path, *(self._numbered(n) for n in range(1, self._keeping.kept + 1))]
        try:
            for older, newer in reversed([*zip(numbered[1:], numbered, strict=False)]):
                with suppress(FileNotFoundError):
                    os.replace(newer, older)
        except OSError as error:
            self._turn_at = now + PAUSE_SECONDS
            log.warning("can't turn %s over: %s", self._path, error.strerror)
            return
        self._close()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _formed(self, text: str) -> str:
        if self._keeping.form == "text":
            return text
        found = next((match for form in _FORMS if (match := form.fullmatch(text))), None)
        said: dict[str, Any] = {"time": _now(), "part": self._name}
        if found is not None:
            level = found["level"].lower()
            said["level"] = _SAME.get(level, level)
        said["message"] = text if found is None else found["text"]
        return json.dumps(said)

    def _say(self, fault: str) -> None:
        if fault and fault != self._fault:
            log.warning("%s", fault)
        self._fault = fault


def _now() -> str:
    """This moment as logs in JSON write it, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
