"""Prose has one sentence a line, so that a change of one sentence shows as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"api.md", "settings.md"}  # from docstrings and declarations, whose lines are wrapped
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "common/privacy/proofs.md")
    if page.name not in GENERATED
)
END = re.compile(r"[.?!](?:[”\"')*_`]|\]\([^)]*\))* (?=[A-Z`*“(\[_])")
ABBREVIATED = re.compile(r"\b(e\.g|i\.e|et al|vs|cf|No|Fig|pp|p|v|ed|eds|Sec|Amdt|[A-Z])\.$")
BEGINS = re.compile(r"<!-- (compare|.*from here)")
ENDS = re.compile(r"<!-- (end|.*to here)")


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The lines that somebody wrote as text: no code, tables, headings, or what a command writes."""
    code = written = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        bare = line.strip()
        code ^= bare.startswith("```")
        written = not ENDS.match(bare) and (written or bool(BEGINS.match(bare)))
        if not code and not written and not bare.startswith(("|", "#", "<", "```")):
            yield number, line


def sentences(line: str) -> list[str]:
    """The sentences of a line. A heading that runs in, `*Coins.*`, belongs to what follows it."""
    parts, start = [], 0
    for end in END.finditer(line):
        before = line[: end.start() + 1]
        heading = re.match(r"\s*(?:[-*] |\d+\. )?\*+[^*]*$", line[start : end.start() + 1])
        if (
            ABBREVIATED.search(before)
            or line.count("`", 0, end.start()) % 2
            or (heading and line[end.start() + 1] == "*")
            or re.fullmatch(r"\s*\d+\.", before)
        ):
            continue
        parts.append(line[start : end.end() - 1])
        start = end.end()
    return [*parts, line[start:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_one_sentence_a_line(page: Path) -> None:
    long = {number: sentences(line) for number, line in prose(page) if len(sentences(line)) > 1}
    assert long == {}


def test_what_a_sentence_is() -> None:
    assert sentences("One. Two? `three` four.") == ["One.", "Two?", "`three` four."]
    assert sentences("A (B). *C* d.") == ["A (B).", "*C* d."]
    for one in ("1. First", "- *Coins.* For each", "Liu et al. (2025) say", "`a. B` is code", "e.g. This"):
        assert sentences(one) == [one]
