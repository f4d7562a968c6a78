"""Texts of others, made fit for a terminal or a log; and the rule for names that are let in at all.

A name, a reason or an error may hold what steers a terminal: escapes, line breaks, marks that turn the
writing direction round, characters that nobody sees. `printable` is the one function that such a text goes
through on its way to a person; `is_printable` is what every entrance asks of a name before it is kept;
`quoted` is how an error repeats a value that it was given.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["MOST_SHOWN", "is_printable", "one_line", "printable", "quoted", "without_colours"]

MOST_SHOWN = 2000  # characters of one text
MOST_QUOTED = 80  # characters of a value that an error repeats
NARROW_SPACE = "\u202f"  # stands in our own numbers
MARKS = 4  # combining marks on one letter; more of them run into the lines above and below
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_STYLES = frozenset(map(chr, range(0xFE00, 0xFE10)))  # choose between two drawings of the character before
_UNSEEN = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x2800, 0x2800),
        (0x3164, 0x3164),
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)
"""Letters and marks that are drawn as nothing. The other invisible ones `str.isprintable` knows."""


def printable(text: str, most: int = MOST_SHOWN, *, lines: bool = False) -> str:
    """A text of somebody else as a terminal and a log may show it.

    Control characters, escapes, marks of writing direction, invisible characters and halves of surrogate
    pairs become question marks; a text longer than `most` is cut and ends in an ellipsis. With `lines`, line
    breaks and tabs stay.
    """
    kept: list[str] = []
    marks = 0
    for c in text[: most + 1]:
        if lines and c in "\n\t":
            kept.append(c)
            marks = 0
        elif c not in _STYLES:
            marks = marks + 1 if _is_mark(c) else 0
            kept.append(c if _is_seen(c) and marks <= MARKS else "?")
    shown = "".join(kept)
    return shown if len(text) <= most else shown[: most - 1] + "…"


def one_line(text: str, most: int = MOST_SHOWN) -> str:
    """The same in a single line, where white space between words becomes one space."""
    return printable(" ".join(text[: 4 * most].split()), most)


def without_colours(text: str) -> str:
    """A text without the escapes of programs that took a file for a terminal."""
    return _COLOURS.sub("", text)


def is_printable(text: str) -> bool:
    """Whether a text may be taken as a name or a reason: one line in which everything can be seen."""
    return text == one_line(text, len(text) + 1) and not _is_mark(text[:1])


def quoted(value: object) -> str:
    """`value` as an error repeats it: its `repr` in one line of at most 80 characters, whatever was given."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a number of more digits than Python writes
        return "a huge number"
    return text if len(text) <= MOST_QUOTED else f"{text[: MOST_QUOTED - 3]}..."


def _is_seen(c: str) -> bool:
    return (c.isprintable() and c not in _UNSEEN) or c == NARROW_SPACE


def _is_mark(c: str) -> bool:
    return bool(c) and unicodedata.category(c) in ("Mn", "Me")
