"""Tables between the marks of a page: `<!-- NAME: from here -->` and `<!-- NAME: to here -->`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["replaced", "write"]


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """The page's text with `lines` between the marks of that name; ValueError where it has none."""
    start, end = f"<!-- {name}: from here -->", f"<!-- {name}: to here -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no marks {start} and {end}; put them where the table belongs")
    return f"{before}{start}\n\n" + "\n".join(lines) + f"\n\n{end}{after}"


def write(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put `lines` between the marks of that name in the page."""
    page.write_text(replaced(page.read_text(encoding="utf-8"), name, lines), encoding="utf-8")
