"""docs/threat-model.md names a test for each attack, and every test that it names is there."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from support.source_scopes import ROOT, functions

PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
USUAL = "tests/server/test_secagg_attacks.py"  # as the section begins with


@dataclass(frozen=True)
class Row:
    """An attack, and where its tests may be: in files that its line names, or the line above, or the head
    of the table."""

    attack: str
    defence: str
    tests: tuple[str, ...]
    files: tuple[str, ...]
    near: tuple[str, ...]


def rows() -> list[Row]:
    found: list[Row] = []
    head: tuple[str, ...] = (USUAL,)
    above: tuple[str, ...] = ()
    for line in PAGE.split("## Attack, defence, test")[1].split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 3 or not cells[0].strip("-"):
            continue
        attack, defence, test = cells
        files = files_of(test)
        if test.startswith("test"):
            head, above = files or (USUAL,), ()
            continue
        found.append(Row(attack, defence, names_of(test), files, (*files, *above, *head)))
        above = files or above
    return found


def names_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`(test_\w+)`", text))


def files_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`(tests/[^`]+\.py)`", text))


def test_the_tables_are_read() -> None:
    assert len(rows()) > 80
    assert sum(len(row.tests) for row in rows()) > 100


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.attack[:60])
def test_each_attack_has_a_defence_and_tests_that_exist(row: Row) -> None:
    assert row.defence
    assert row.tests or row.files
    for path in row.near:
        assert (ROOT / path).is_file(), path
    known = frozenset[str]().union(*map(functions, row.near))
    for name in row.tests:
        assert name in known, f"{name} is in none of {', '.join(row.near)}"


def test_whatever_else_the_page_names_exists() -> None:
    everywhere = frozenset[str]().union(
        *(functions(path.relative_to(ROOT).as_posix()) for path in ROOT.glob("tests/*/test_*.py"))
    )
    for name in names_of(PAGE):
        assert name in everywhere, name
