"""What is drawn on a terminal with rich: tables and bars whose every character has passed `printable`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import TextColumn
from rich.segment import Segment
from rich.text import Text

from penchant.common.printable import one_line, printable

__all__ = ["Drawing", "note", "plain_column", "unmasked_warning"]


class Drawing(Console):
    """A console that takes texts as texts: no markup, no emoji names, nothing that steers the terminal.

    Style goes in by `style=` and `rich.text.Text`, never by markup: a name may hold "[bold]" like any other.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        """`options` are rich's own."""
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What rich draws, each text of it printable. Every cell of a table comes this way before it is
        measured."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else _clean(text), style, control)


def plain_column(template: str) -> TextColumn:
    """A column of a progress bar whose texts are not markup."""
    return TextColumn(template, markup=False)


def note(text: str, colour: str = "yellow") -> Text:
    """``note: TEXT``, in one line."""
    return Text.assemble(("note:", colour), f" {one_line(text)}")


def unmasked_warning() -> Text:
    """What a run without secure aggregation is begun with."""
    return Text.assemble(
        ("WITHOUT SECURE AGGREGATION:", "bold red"),
        " every update goes to the server in clear, and an update reveals much about the choices behind it. "
        "Simulated people only.",
    )


def _clean(text: str) -> str:
    return text if text.isascii() and text.isprintable() else printable(text, len(text), lines=True)
