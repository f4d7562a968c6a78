"""Invitations for many devices at once: names from a table, and a sheet of QR codes to print and cut up."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import segno

from penchant.common.csv_text import csv_text
from penchant.common.errors import UsageError
from penchant.common.foreign_files import read_bytes
from penchant.common.printable import is_printable
from penchant.deploy.fleet.enrolment import NAME_MOST, hand_out

__all__ = ["Invitation", "invite_all", "names_in", "sheet", "table"]

ROWS_MOST = 5000
FILE_MOST = 1024 * 1024  # bytes


@dataclass(frozen=True)
class Invitation:
    """A token for the device of this name. expires: Unix seconds."""

    name: str
    expires: float
    text: str = field(repr=False)


DELIMITERS = ",;\t"  # what spreadsheets put between columns, by the country they are set to


def _column(text: str) -> tuple[list[list[str]], int]:
    """(rows without the heading, which column the names are in). ValueError where none can be told."""
    for delimiter in DELIMITERS:
        rows = _rows(text, delimiter)
        heading = [cell.strip().casefold() for cell in rows[0]] if rows else []
        if "name" in heading:
            return rows[1:], heading.index("name")
    if any(len(row) > 1 for delimiter in DELIMITERS for row in _rows(text, delimiter)):
        raise ValueError("has several columns and none that is called name")
    return rows, 0


def _rows(text: str, delimiter: str) -> list[list[str]]:
    """Rows that are not empty. ValueError where it is no CSV."""
    try:
        read = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"is no CSV: {error}") from None
    return [row for row in read if any(cell.strip() for cell in row)]


def names_in(path: Path) -> list[str]:
    """The devices' names in a CSV file: its column `name`, or the only one where it has no heading of that
    name. UsageError for one that is empty, too long, not printable or there twice."""
    try:
        text = read_bytes(path, UsageError, FILE_MOST).decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8; save the table as CSV in UTF-8") from None
    try:
        rows, column = _column(text)
    except ValueError as error:
        raise UsageError(f"{path} {error}") from None
    names = [row[column].strip() if column < len(row) else "" for row in rows]
    if not 1 <= len(names) <= ROWS_MOST:
        raise UsageError(f"{path} has {len(names)} names; expected 1 to {ROWS_MOST}")
    for number, name in enumerate(names, 1):
        if not name or len(name.encode()) > NAME_MOST or not is_printable(name):
            raise UsageError(f"name {number} in {path} must be 1 to {NAME_MOST} printable characters")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UsageError(f"{path} has {twice[0]} more than once; a name is one device's")
    return names


def invite_all(directory: Path, names: Sequence[str], expires: float) -> list[Invitation]:
    """One token for each name. Their texts are kept nowhere: whoever asks writes them to a file."""
    return [Invitation(name, expires, hand_out(directory, name, expires).text()) for name in names]


def table(invitations: Sequence[Invitation]) -> str:
    """The same as CSV: name, token, and the day until which it is good."""
    rows = [(one.name, one.text, _day(one.expires)) for one in invitations]
    return csv_text([("name", "token", "until"), *rows], end="\n")


def sheet(invitations: Sequence[Invitation]) -> str:
    """A page for the printer: each token as a QR code with its name, to be cut up. It asks for nothing."""
    return _PAGE.format(cards="\n".join(map(_card, invitations)))


def _card(one: Invitation) -> str:
    code = segno.make(one.text, error="m", micro=False).svg_inline(border=2, omitsize=True)
    return _CARD.format(code=code, name=escape(one.name), until=_day(one.expires), text=escape(one.text))


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Invitations</title>
<style>
@page {{ size: A4; margin: 12mm }}
body {{ margin: 0; font: 10pt/1.35 system-ui, sans-serif; color: #000; background: #fff }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(80mm, 1fr)) }}
article {{ box-sizing: border-box; padding: 6mm; border: .2mm dashed #888; break-inside: avoid }}
svg {{ display: block; width: 52mm; height: 52mm; margin: 0 auto 3mm }}
h2 {{ margin: 0 0 1mm; font-size: 12pt; overflow-wrap: anywhere }}
p {{ margin: 0 0 1mm }}
code {{ font: 6.5pt/1.3 ui-monospace, monospace; overflow-wrap: anywhere }}
</style>
</head>
<body>
<main>
{cards}
</main>
</body>
</html>
"""
_CARD = """<article>{code}<h2>{name}</h2>
<p>One device, once, until {until}. Whoever has this first gets in with it.</p>
<p>On the device: <code>penchant device join - --wait</code></p>
<p><code>{text}</code></p></article>"""
