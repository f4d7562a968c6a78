"""The one way of penchant's own words to a terminal or a log: everything passes `printable` here.

`tests/deploy/test_terminal.py` sees to it that no module prints or sets up logging by itself. What is drawn
with rich goes through `penchant.deploy.cli.drawing`.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from penchant.common.printable import one_line, printable

__all__ = [
    "FORMAT",
    "JsonFormatter",
    "LineFormatter",
    "json_text",
    "log_to_stderr",
    "say",
    "say_json",
    "say_piece",
    "tracebacks_in_print",
]

FORMAT = "%(asctime)s %(levelname)s %(message)s"
MOST = 20_000  # characters that are printed at once, such as a traceback or an owner's own text


def say(text: str = "", *, error: bool = False, lines: bool = False) -> None:
    """Print a line, on standard error if it is one; `lines` keeps the line breaks that are in it."""
    stream = sys.stderr if error else sys.stdout
    _write(printable(text, MOST, lines=lines), stream)


def say_piece(text: str) -> None:
    """Print a piece of a text that goes on; line breaks stay."""
    _write(printable(text, MOST, lines=True), sys.stdout, end="")


def say_json(value: object) -> None:
    """Print JSON that is safe to look at: whatever steers a terminal stands there as an escape of JSON's."""
    _write(json_text(value), sys.stdout)


def json_text(value: object) -> str:
    """Indented JSON in which every character can be seen."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if printable(text, len(text), lines=True) == text:
        return text
    return "".join(c if c == "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in text)


def log_to_stderr(level: int = logging.INFO, *, as_json: str = "") -> None:
    """Write this process's log to standard error, a line for each record.

    as_json: what the process is called, where each line is to be an object of JSON.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(as_json) if as_json else LineFormatter(FORMAT))
    logging.basicConfig(handlers=[handler], level=level)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every look at the SuperLink


class LineFormatter(logging.Formatter):
    """Makes one printable line of a record; a traceback's lines are set in, so that none looks like a record.

    What is not printable has not even reached the format: it may come from a name that somebody else chose.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line of a record, without its traceback."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, below it."""
        return _set_in(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """The stack, below it."""
        return _set_in(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """Makes an object of JSON of a record: time (UTC), part, level and message, a traceback within it."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """The object, in one line of ASCII."""
        message = one_line(record.getMessage())
        if record.exc_info:
            message += "\n" + _set_in(self.formatException(record.exc_info))
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"time": time.replace("+00:00", "Z"), "part": self._part, "level": record.levelname.lower()}
        return json.dumps(said | {"message": message})


def tracebacks_in_print() -> None:
    """From now on tracebacks, too, pass `printable`: the text of an exception may quote somebody else."""
    sys.excepthook = _show_traceback


def _show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    _write(printable("".join(traceback.format_exception(kind, error, where)).rstrip(), MOST, lines=True))


def _set_in(text: str) -> str:
    return "\n".join(f"  {line}" for line in printable(text, MOST, lines=True).split("\n"))


def _write(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """What a terminal's encoding has no character for is replaced, and ends nothing."""
    stream = sys.stderr if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True, end=end)
