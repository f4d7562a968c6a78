"""Bar charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from penchant.common.csv_text import csv_text
from penchant.server.charts.chart import NARROW, WIDE, Chart, Text, file, svg

__all__ = ["BarChart", "bars"]


@dataclass(frozen=True)
class BarChart(Chart):
    """A bar chart with each bar's value above it.

    Attributes:
        values: the height of each bar.
        labels: the name of each bar, in the same order.
        axis: the name of the horizontal axis; empty for none.
        look: the number of the bars' style in the style sheet.
    """

    values: Sequence[float] = ()
    labels: Sequence[str] = ()
    axis: str = ""
    look: int = 1

    def __html__(self) -> str:
        words = f"{self.title}. " + ", ".join(
            f"{label}: {self.text(value)}" for label, value in self._bars if value
        )
        return self._figure([self._drawn(width) for width in (WIDE, NARROW)], words)

    def csv(self) -> str:
        """A row for each bar."""
        return csv_text([[self.axis or "bar", self.title], *map(list, self._bars)])

    def svg(self) -> str:
        return file(self._drawn(WIDE), self.title, WIDE, self.height, [])

    @property
    def _bars(self) -> Iterator[tuple[str, float]]:
        return zip(self.labels, self.values, strict=True)

    def _drawn(self, width: int) -> Markup:
        return _drawn_bars(self.values, self.labels, width, self.height, self.text, self.axis, self.look)


def bars(values: Sequence[float], labels: Sequence[str], **more: Any) -> Markup:
    """The drawing of a `BarChart`."""
    return Markup(BarChart(values=values, labels=labels, **more).__html__())


def _drawn_bars(
    values: Sequence[float],
    labels: Sequence[str],
    width: int,
    height: int,
    text: Text,
    axis: str,
    look: int,
) -> Markup:
    top, bottom = 22, height - (36 if axis else 22)
    most = max(max(values, default=0.0), 1e-9)
    step = (width - 8) / max(len(values), 1)
    bar = min(step * 0.78, 64)
    sparse = 1 if step > 44 else 2
    parts = [f'<line class="grid" x1="4" x2="{width - 4}" y1="{bottom}" y2="{bottom}"/>']
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        centre = 4 + step * (i + 0.5)
        tall = value / most * (bottom - top)
        if value:
            parts.append(
                f'<rect class="b{look}" x="{centre - bar / 2:.1f}" y="{bottom - tall:.1f}" width="{bar:.1f}" '
                f'height="{tall:.1f}" rx="2"><title>{escape(label)}: {escape(text(value))}</title></rect>'
                f'<text class="value mid" x="{centre:.1f}" y="{bottom - tall - 6:.1f}">'
                f"{escape(text(value))}</text>"
            )
        if i % sparse == 0:
            parts.append(f'<text class="tick mid" x="{centre:.1f}" y="{bottom + 16}">{escape(label)}</text>')
    if axis:
        parts.append(f'<text class="tick mid" x="{width / 2:.0f}" y="{height - 3}">{escape(axis)}</text>')
    return svg(parts, width, height)
