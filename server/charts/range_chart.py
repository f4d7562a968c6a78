"""A chart of means with their errors, one row each, the first at the top."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from penchant.common.csv_text import csv_text
from penchant.server.charts.chart import NARROW, WIDE, Chart, file, svg, ticks

__all__ = ["RangeChart", "Row"]

_LABELS, _LETTERS = 190, 25  # pixels of the labels beside rows; letters of a line of them
_ROW, _NARROW_ROW, _BELOW = 46, 62, 36  # pixels of a row, of one with its label above it, and of the axis
_NARROW_LETTERS = 46


@dataclass(frozen=True)
class Row:
    """One row: its name, the mean, one standard error (None where it is not known), and single values."""

    label: str
    mean: float
    error: float | None = None
    values: Sequence[float] = ()


@dataclass(frozen=True)
class RangeChart(Chart):
    """Means beside each other on one scale; its height follows from its rows.

    Attributes:
        rows: what is compared, from top to bottom.
        axis: the name of the horizontal axis.
        reference: a value at which a dotted line is drawn, and the words for it.
    """

    rows: Sequence[Row] = ()
    axis: str = ""
    reference: tuple[float, str] | None = None

    def __html__(self) -> str:
        words = f"{self.title}. " + " ".join(f"{row.label}: {self._said(row)}." for row in self.rows)
        return self._figure([self._drawn(width) for width in (WIDE, NARROW)], words)

    def csv(self) -> str:
        """A line for each row: name, mean, standard error, and each single value."""
        head = ["", self.title, "standard error"]
        return csv_text([head, *([row.label, row.mean, row.error, *row.values] for row in self.rows)])

    def svg(self) -> str:
        return file(self._drawn(WIDE), self.title, WIDE, self._tall(WIDE), [])

    def _tall(self, width: int) -> int:
        return _row(width) * len(self.rows) + _BELOW

    def _said(self, row: Row) -> str:
        return self.text(row.mean) if row.error is None else f"{self.text(row.mean)} ± {self.text(row.error)}"

    def _drawn(self, width: int) -> Markup:
        left, right = (_LABELS if width > NARROW else 14), width - 24
        each, tall = _row(width), self._tall(width)
        bottom = tall - _BELOW
        ends = [v for row in self.rows for v in (row.mean - (row.error or 0), row.mean + (row.error or 0))]
        ends += [value for row in self.rows for value in row.values]
        ends += [self.reference[0]] if self.reference else []
        below = ticks(min(ends), max(ends), 6 if width > NARROW else 4)
        low, high = below[0], below[-1]

        def at(value: float) -> float:
            return left + (value - low) / ((high - low) or 1.0) * (right - left)

        parts: list[str] = []
        for tick in below:
            parts.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="4" y2="{bottom}"/>')
            words = escape(self.text(tick))
            parts.append(f'<text class="tick mid" x="{at(tick):.1f}" y="{bottom + 16}">{words}</text>')
        parts.append(f'<text class="tick end" x="{right}" y="{tall - 3}">{escape(self.axis)}</text>')
        if self.reference:
            x = at(self.reference[0])
            parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
        for place, row in enumerate(self.rows):
            middle = each * (place + 1) - 14
            parts += _label(row.label, left, middle, width)
            parts += [f'<circle class="ring" cx="{at(v):.1f}" cy="{middle}" r="3.5"/>' for v in row.values]
            if row.error is not None:
                x1, x2 = at(row.mean - row.error), at(row.mean + row.error)
                parts.append(
                    f'<line class="spread l1" x1="{x1:.1f}" x2="{x2:.1f}" y1="{middle}" y2="{middle}"/>'
                )
            said = escape(f"{row.label}\n{self._said(row)}")
            parts.append(f'<circle class="p1" cx="{at(row.mean):.1f}" cy="{middle}" r="5"/>')
            parts.append(
                f'<text class="value mid" x="{at(row.mean):.1f}" y="{middle - 10}">'
                f"{escape(self.text(row.mean))}</text>"
            )
            parts.append(
                f'<g class="hit"><rect x="0" y="{each * place + 2}" width="{width}" height="{each - 2}"/>'
                f"<title>{said}</title></g>"
            )
        return svg(parts, width, tall)


def _row(width: int) -> int:
    return _ROW if width > NARROW else _NARROW_ROW


def _label(label: str, left: float, middle: float, width: int) -> list[str]:
    """A row's name: beside it in two lines at most, or above it where the drawing is narrow."""
    if width <= NARROW:
        line = textwrap.shorten(label, _NARROW_LETTERS, placeholder="…")
        return [f'<text class="value" x="0" y="{middle - 30}">{escape(line)}</text>']
    found = textwrap.wrap(label, _LETTERS, max_lines=2, placeholder="…")
    top = middle + 4 - 7.5 * (len(found) - 1)
    return [
        f'<text class="value end" x="{left - 14}" y="{top + 15 * i:.1f}">{escape(line)}</text>'
        for i, line in enumerate(found)
    ]
