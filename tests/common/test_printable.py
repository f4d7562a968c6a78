"""What others wrote, made fit for a terminal."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.printable import MARKS, is_printable, one_line, printable, quoted

BAD = {
    "newline": "a\nb",
    "carriage return": "a\rb",
    "line separator": "a\u2028b",
    "NUL": "a\0b",
    "backspace": "a\bb",
    "delete": "a\x7fb",
    "ANSI colour": "a\x1b[31mb",
    "ANSI cursor up": "a\x1b[1A\x1b[2Kb",
    "OSC title": "a\x1b]0;title\x07b",
    "OSC link": "a\x1b]8;;http://x\x1b\\b",
    "C1 CSI": "a\x9b31mb",
    "C1 next line": "a\x85b",
    "bidi override": "a\u202eb",
    "bidi isolate": "a\u2066b",
    "right-to-left mark": "a\u200fb",
    "zero-width space": "a\u200bb",
    "zero-width joiner": "a\u200db",
    "word joiner": "a\u2060b",
    "byte order mark": "a\ufeffb",
    "soft hyphen": "a\xadb",
    "combining grapheme joiner": "a\u034fb",
    "Hangul filler": "a\u3164b",
    "Braille blank": "a\u2800b",
    "tag": "a\U000e0041b",
    "variation selector": "a\U000e0100b",
    "style selector": "a\ufe0fb",
    "lone surrogate": "a\ud800b",
    "byte that is no UTF-8": "a\udc9bb",
    "private use": "a\ue000b",
    "not a character": "a\uffffb",
    "marks in a heap": "a" + "\u0301" * (MARKS + 1),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_text_that_steers_a_terminal_is_no_name_and_is_shown_in_one_clean_line(text: str) -> None:
    assert not is_printable(text)
    for shown in (one_line(text), printable(text)):
        shown.encode()
        assert _clean(shown), ascii(shown)
    assert _clean(printable(text, lines=True).replace("\n", ""))


@pytest.mark.parametrize("name", ["", "kitchen", "Zoë’s phone", "電話", "טלפון", "😀", "e\u0301te\u0301"])
def test_names_of_people_pass(name: str) -> None:
    assert is_printable(name)
    assert one_line(name) == printable(name) == name


@pytest.mark.parametrize("name", [" kitchen", "kitchen ", "two  spaces", "a\u00a0b", "a\u3000b", "\u0301a"])
def test_names_that_look_like_others_do_not(name: str) -> None:
    assert not is_printable(name)


def test_a_long_text_is_cut_whatever_is_in_it() -> None:
    assert one_line("x" * 10**6, 50) == "x" * 49 + "…"
    assert len(printable("\x1b[31m" * 10**6)) == 2000
    assert one_line(" " * 10**6 + "x", 50) == ""


def test_lines_stay_where_they_are_wanted() -> None:
    assert printable("a\n\tb\x1bc", lines=True) == "a\n\tb?c"


@given(st.text(st.characters(), max_size=80), st.integers(1, 40))
def test_whatever_comes_the_line_is_clean_and_short(text: str, most: int) -> None:
    shown = one_line(text, most)
    assert len(shown) <= most
    assert _clean(shown)
    assert one_line(shown, most) == shown


def _clean(text: str) -> bool:
    return all(unicodedata.category(c)[0] not in "CZ" or c in " \u202f" for c in text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("two\nlines", r"'two\nlines'"),
        (np.arange(3).reshape(3, 1), "array([[0], [1], [2]])"),
        ("x" * 79, "'" + "x" * 76 + "..."),
        ("x" * 78, "'" + "x" * 78 + "'"),
        (10**5000, "a huge number"),
        (None, "None"),
    ],
    ids=["a line break", "an array", "too long", "just fits", "a huge number", "nothing"],
)
def test_an_error_repeats_a_value_in_one_short_line(value: object, expected: str) -> None:
    assert quoted(value) == expected
    assert len(quoted(value)) <= 80
