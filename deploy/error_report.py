"""How a process reports that something went wrong: a line for people, or a line of JSON for programs.

A program that starts `penchant` puts ``PENCHANT_ERRORS=json`` into the environment and reads
``{"error": CODE, "message": TEXT}`` from standard error. The codes are in `penchant.common.errors` and stay
the same; the texts, and the prefix before them, are for people and may change.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from penchant.common.errors import PenchantError, UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say

__all__ = ["AS_JSON", "INTERRUPTED", "PREFIX", "SYSTEM", "USAGE", "ErrorReport"]

FORMAT = "PENCHANT_ERRORS"
AS_JSON = {FORMAT: "json"}
"""What a program adds to the environment of a command whose errors it wants to read."""

PREFIX = "penchant: "
USAGE = UsageError.code
SYSTEM = "system"  # an error of the operating system: a full disk, a file that may not be read
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class ErrorReport:
    """One error. The code says which kind it is; the message is a single printable line."""

    code: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> ErrorReport:
        """The report of an error that was caught."""
        if isinstance(error, OSError):
            code = SYSTEM
            text = ": ".join(str(part) for part in (error.strerror, error.filename) if part)
        elif isinstance(error, PenchantError):
            code, text = error.code, error.on_command_line
        else:
            code, text = PenchantError.code, str(error)
        return cls(code, one_line(text) or type(error).__name__)

    @classmethod
    def read(cls, line: str) -> ErrorReport | None:
        """The report that a line of JSON is, or None when the line is something else."""
        if not line.startswith("{"):
            return None
        try:
            table = json.loads(line)
        except ValueError:
            return None
        if not isinstance(table, dict) or set(table) != {"error", "message"}:
            return None
        return cls(one_line(str(table["error"])), one_line(str(table["message"])))

    @classmethod
    def last_in(cls, text: str) -> ErrorReport | None:
        """The last report that a process has written among other lines, or None when there is none."""
        reports = (cls.read(line) for line in reversed(text.splitlines()))
        return next((report for report in reports if report is not None), None)

    def write(self) -> None:
        """Write it to standard error, in the form that the environment asks for."""
        if os.environ.get(FORMAT) == AS_JSON[FORMAT]:
            say(json.dumps({"error": self.code, "message": self.message}), error=True)
        else:
            say(f"{PREFIX}{self.message}", error=True)
