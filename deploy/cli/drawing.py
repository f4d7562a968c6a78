"""What is drawn on a terminal with rich: tables and bars whose every character has passed `printable`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from penchant.common.printable import one_line, printable

__all__ = ["Drawing", "note", "plain_column", "unmasked_warning", "working"]


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


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal's standard error that something is going on, and for how long, until it is done."""
    errors = Drawing(stderr=True)
    if not errors.is_terminal:
        yield
        return
    columns = SpinnerColumn(), plain_column("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as progress:
        progress.add_task(one_line(text), total=None)
        yield


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
