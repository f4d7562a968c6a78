"""Tables that leave as CSV, in which no text is taken for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

__all__ = ["csv_text"]

SIGNS = "=+@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212-"  # the full-width and small ones as well
FORMULA = re.compile(rf"(^|[;,|\t\r\n])(?=[\s\"]*[{SIGNS}]|[\t\r])")
"""Where a spreadsheet begins a formula: at the start of a cell, by whatever it takes for the border of one.
Text of strangers is in these tables."""


def csv_text(rows: Iterable[Sequence[object]], end: str = "\r\n") -> str:
    """Rows as CSV. Texts are made such that no spreadsheet computes them; numbers stay as they are.

    end: of each line, as RFC 4180 has it.
    """
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end).writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    """A text that no spreadsheet computes."""
    return FORMULA.sub(r"\1'", value) if isinstance(value, str) else value
