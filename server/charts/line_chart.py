"""Line charts, with bands around what is not sure, marks where something failed, and a part to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Self

from markupsafe import Markup, escape

from penchant.common.csv_text import csv_text
from penchant.server.charts.chart import HALF, NARROW, WIDE, Chart, Text, file, svg, ticks, whole_ticks

__all__ = ["LineChart", "Series", "lines", "spark"]

POINTS = 160  # most points of a drawn line; of more, each stands for a few, and a band shows their extremes


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: the line's name in the legend.
        points: (x, y) in the order of x; a y of None leaves a gap.
        look: the number of the line's style in the style sheet, 1 to 6.
        errors: how far each point may be off, one for each or none at all; drawn as a band around the line.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    look: int = 1
    errors: Sequence[float | None] = ()

    def within(self, first: float, last: float) -> Self:
        """The points from `first` to `last`, both included."""
        kept = [i for i, (x, _) in enumerate(self.points) if first <= x <= last]
        errors = [self.errors[i] for i in kept] if self.errors else ()
        return replace(self, points=[self.points[i] for i in kept], errors=errors)

    def error(self, at: int) -> float | None:
        """How far the point at this index may be off; None where that is not known."""
        return self.errors[at] if self.errors else None


@dataclass(frozen=True)
class _Point:
    """What is drawn at one place: one value, or the mean and the extremes of several next to each other.

    x, y: the place and the value, None for a gap. first: where the range begins that it stands for; it ends
    at x. low, high: of the values there; both are y for a single one. error: how far a single value may be
    off. bottom, top: the band around it, which holds values and errors.
    """

    x: float
    y: float | None
    first: float
    low: float | None
    high: float | None
    error: float | None = None
    bottom: float | None = None
    top: float | None = None

    @classmethod
    def of(cls, some: Sequence[tuple[float, float | None]], errors: Sequence[float | None] = ()) -> _Point:
        """The point that stands for some next to each other, at the place of the last."""
        off = [e or 0.0 for e in errors] or [0.0] * len(some)
        known = [(y, e) for (_, y), e in zip(some, off, strict=True) if y is not None]
        values = [y for y, _ in known]
        return cls(
            some[-1][0],
            sum(values) / len(values) if values else None,
            some[0][0],
            min(values, default=None),
            max(values, default=None),
            errors[0] if len(some) == 1 and errors else None,
            min((y - e for y, e in known), default=None),
            max((y + e for y, e in known), default=None),
        )


@dataclass(frozen=True)
class _Line:
    """A series as it is drawn."""

    label: str
    points: Sequence[_Point]
    look: int


@dataclass(frozen=True)
class LineChart(Chart):
    """A line chart, by default over rounds.

    Attributes:
        series: the lines; one without any value is left out.
        x_label: the name of the horizontal axis.
        zero: whether the vertical axis begins at 0.
        least: the smallest value at which such an axis may end.
        references: values at which a dotted line is drawn, and the words for each.
        width: the width of the drawing for a wide screen, in pixels; a second, narrow one is for phones.
        marks: (x, words) of what went wrong there, marked below the lines.
        place: what one place of the horizontal axis is called in tooltips; empty: as the axis.
        dots: whether points are dots without a line.
        log: whether the horizontal axis is logarithmic, with a number at each point.
        zoom: the id of the form with the fields `first` and `last`, for the part of the axis that is shown;
            empty where there is none.
    """

    series: Sequence[Series] = ()
    x_label: str = "round"
    zero: bool = False
    least: float = 0.0
    references: Sequence[tuple[float, str]] = ()
    width: int = HALF
    marks: Sequence[tuple[float, str]] = ()
    place: str = ""
    dots: bool = False
    log: bool = False
    zoom: str = ""

    def __html__(self) -> str:
        if not self.is_known:
            return Markup('<p class="empty small">{}: nothing to show.</p>').format(self.title)
        words = f"{self.title}. " + " ".join(_spoken(s, self.text) for s in self._known)
        if self.marks:
            words += f" {len(self.marks)} attempts failed."
        legend = [(s.label, s.look) for s in self._known] if len(self._known) > 1 else []
        return self._figure([self._drawn(side) for side in (self.width, NARROW)], words, legend, self.zoom)

    def within(self, first: float, last: float) -> Self:
        """The part of it from `first` to `last`, both included; without references beside its values."""
        series = [one.within(first, last) for one in self.series]
        values = [y for one in series for _, y in one.points if y is not None] or [math.nan]
        return replace(
            self,
            series=series,
            references=[one for one in self.references if min(values) <= one[0] <= max(values)],
            marks=[mark for mark in self.marks if first <= mark[0] <= last],
        )

    def csv(self) -> str:
        """A row for each x: each line's value, how far it may be off where that is known, and what failed."""
        values = {
            (i, x): (y, s.error(at)) for i, s in enumerate(self.series) for at, (x, y) in enumerate(s.points)
        }
        failed: dict[float, list[str]] = {}
        for x, why in self.marks:
            failed.setdefault(x, []).append(why)
        head: list[object] = [self.x_label]
        for s in self.series:
            head += [s.label, f"{s.label}: standard error"] if s.errors else [s.label]
        rows = []
        for x in sorted({x for _, x in values} | set(failed)):
            row: list[object] = [f"{x:g}"]
            for i, s in enumerate(self.series):
                y, off = values.get((i, x), (None, None))
                row += [y, off] if s.errors else [y]
            rows.append([*row, "; ".join(failed.get(x, []))] if self.marks else row)
        return csv_text([[*head, "failed"] if self.marks else head, *rows])

    def svg(self) -> str:
        legend = [(s.label, s.look) for s in self._known] if len(self._known) > 1 else []
        drawn = self._drawn(WIDE) if self.is_known else Markup("")
        return file(drawn, self.title, WIDE, self.height, legend)

    @property
    def is_known(self) -> bool:
        """Whether there is anything to show."""
        return bool(self._known)

    @property
    def _known(self) -> list[Series]:
        return [s for s in self.series if any(y is not None for _, y in s.points)]

    def _drawn(self, width: int) -> Markup:
        thinned = [_Line(s.label, _thinned(s.points, errors=s.errors), s.look) for s in self._known]
        dots = {s.look: s.points for s in self._known} if self.dots or self.log else {}
        return _drawn_lines(self, thinned, dots, width)


def lines(series: Sequence[Series], **more: Any) -> Markup:
    """The drawing of a `LineChart`."""
    return Markup(LineChart(series=series, **more).__html__())


def spark(points: Sequence[float], words: str, span: tuple[float, float] | None = None) -> Markup:
    """A small line in a table's cell.

    Args:
        points: the values, in order; fewer than two draw nothing.
        words: what the line shows, for those who don't see it.
        span: the values at the bottom and at the top, those of all lines in a list; by default its own.
    """
    if len(points) < 2:
        return Markup("")
    width, height = 96, 24
    some = points if len(points) <= 48 else _extremes(_thinned(list(enumerate(points)), 24))
    low, high = span or (min(some), max(some))
    spread = (high - low) or 1.0
    step = (width - 4) / (len(some) - 1)
    path = " ".join(
        f"{2 + i * step:.1f},{height - 3 - (y - low) / spread * (height - 6):.1f}" for i, y in enumerate(some)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">'
        '<polyline class="l1" points="{}"/></svg>'
    ).format(width, height, width, height, words, path)


# --- parts ----------------------------------------------------------------------------------------


Dots = Mapping[int, Sequence[tuple[float, float | None]]]
"""look -> points that are drawn one by one."""


def _drawn_lines(chart: LineChart, series: Sequence[_Line], dots: Dots, width: int) -> Markup:
    text, height = chart.text, chart.height
    ys = [y for s in series for point in s.points for y in (point.bottom, point.top) if y is not None]
    xs = [end for s in series for point in s.points for end in (point.first, point.x)]
    xs += [x for x, _ in chart.marks]
    ys += [value for value, _ in chart.references]
    low, high = (0.0, max(*ys, chart.least)) if chart.zero else (min(ys), max(ys))
    beside = ticks(low, high)
    low, high = beside[0], beside[-1]
    left = 12 + 6.6 * max(len(text(tick)) for tick in beside)
    right, top, bottom = width - 10, 10, height - 34
    first, last = min(xs), max(xs)
    scale = math.log if chart.log else float

    def at_x(x: float) -> float:
        return left + (scale(x) - scale(first)) / ((scale(last) - scale(first)) or 1.0) * (right - left)

    def at_y(y: float) -> float:
        return bottom - (y - low) / ((high - low) or 1.0) * (bottom - top)

    parts: list[str] = []
    for tick in beside:
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{left:.0f}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 7:.0f}" y="{y + 4:.1f}">{escape(text(tick))}</text>')
    most = 8 if width > NARROW + 70 else 4
    for x in sorted(set(xs)) if chart.log else whole_ticks(first, last, most):
        parts.append(f'<text class="tick mid" x="{at_x(x):.1f}" y="{bottom + 16}">{x:.0f}</text>')
    parts.append(f'<text class="tick end" x="{right}" y="{height - 3}">{escape(chart.x_label)}</text>')
    for value, words in chart.references:
        y = at_y(value)
        parts.append(f'<line class="reference" x1="{left:.0f}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{right}" y="{y - 5:.1f}">{escape(words)}</text>')
    for s in series:
        for run in _unbroken(s.points):
            if len(run) > 1 and any(point.bottom != point.top for point, _ in run):
                edge = [(p.x, p.top) for p, _ in run] + [(p.x, p.bottom) for p, _ in reversed(run)]
                band = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in edge if y is not None)
                parts.append(f'<polygon class="band b{s.look}" points="{band}"/>')
            if chart.dots:
                continue
            path = " ".join(f"{at_x(point.x):.1f},{at_y(y):.1f}" for point, y in run)
            if len(run) > 1:
                parts.append(f'<polyline class="l{s.look}" points="{path}"/>')
            x, y = run[-1][0].x, run[-1][1]
            parts.append(f'<circle class="p{s.look}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3"/>')
    for look, points in dots.items():
        many = " many" if len(points) > POINTS else ""
        path = "".join(f"M{at_x(x):.1f} {at_y(y):.1f}h0" for x, y in points if y is not None)
        parts.append(f'<path class="dots{many} l{look}" d="{path}"/>')
    parts.append(_tooltips(series, at_x, (left, right, top, bottom), text, chart.place or chart.x_label))
    parts += _marks(chart.marks, at_x, (first, last), bottom, chart.place or chart.x_label)
    return svg(parts, width, height)


def _tooltips(
    series: Sequence[_Line],
    at_x: Callable[[float], float],
    frame: tuple[float, float, float, float],
    text: Text,
    x_label: str,
) -> str:
    """A column for each x that shows what lies there."""
    left, right, top, bottom = frame
    at: dict[float, list[str]] = {}
    first: dict[float, float] = {}
    for s in series:
        for point in s.points:
            if point.y is not None:
                named = f"{s.label}: " if len(series) > 1 else ""
                at.setdefault(point.x, []).append(named + _said(point, point.y, text))
                first[point.x] = min(point.first, first.get(point.x, point.first))
    places = sorted(at)
    parts = []
    for i, x in enumerate(places):
        begin = left if i == 0 else (at_x(places[i - 1]) + at_x(x)) / 2
        end = right if i == len(places) - 1 else (at_x(x) + at_x(places[i + 1])) / 2
        place = f"{x:.0f}" if first[x] == x else f"{first[x]:.0f}–{x:.0f}"
        said = escape(f"{x_label} {place}\n" + "\n".join(at[x]))
        parts.append(
            f'<g class="hit" data-first="{first[x]:.0f}" data-last="{x:.0f}">'
            f'<rect x="{begin:.1f}" y="{top}" width="{max(end - begin, 0.5):.1f}" '
            f'height="{bottom - top}"/><line x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{top}" '
            f'y2="{bottom}"/><title>{said}</title></g>'
        )
    return "".join(parts)


def _marks(
    marks: Sequence[tuple[float, str]],
    at_x: Callable[[float], float],
    ends: tuple[float, float],
    bottom: float,
    x_label: str,
) -> Iterator[str]:
    """A small triangle on the axis for what went wrong; for neighbours one, if there are more than places."""
    width = max((ends[1] - ends[0]) / POINTS, 1.0)
    ordered = sorted(marks, key=lambda mark: mark[0])
    for _, group in groupby(ordered, key=lambda mark: math.floor((mark[0] - ends[0]) / width)):
        some = list(group)
        first, last = some[0][0], some[-1][0]
        place = f"{x_label} {first:.0f}" + (f"–{last:.0f}" if last != first else "")
        said = "\n".join(why for _, why in some[:3]) + (f"\nand {len(some) - 3} more" if some[3:] else "")
        x = at_x(last)
        yield (
            f'<g class="hit"><path class="mark" d="M{x:.1f} {bottom - 9:.1f}l5 9h-10z"/>'
            f"<title>{escape(place)}\n{escape(said)}</title></g>"
        )


def _said(point: _Point, mean: float, text: Text) -> str:
    """A value and how far it may be off; of several their mean, the least and the most."""
    if point.first == point.x or point.low is None or point.high is None:
        return text(mean) if point.error is None else f"{text(mean)} ± {text(point.error)}"
    return f"mean {text(mean)}, least {text(point.low)}, most {text(point.high)}"


def _thinned(
    points: Sequence[tuple[float, float | None]], most: int = POINTS, errors: Sequence[float | None] = ()
) -> list[_Point]:
    """At most `most` points: each stands for some next to each other; the last one for itself."""
    width = 1 if len(points) <= most else math.ceil((len(points) - 1) / (most - 1))
    last = len(points) - 1
    ends = [(at, min(at + width, last)) for at in range(0, last, width)]
    if points:
        ends.append((last, last + 1))
    return [_Point.of(points[at:end], errors[at:end]) for at, end in ends]


def _extremes(points: Sequence[_Point]) -> list[float]:
    """The least and the most of each point, in order."""
    return [y for point in points for y in (point.low, point.high) if y is not None]


def _unbroken(points: Sequence[_Point]) -> list[list[tuple[_Point, float]]]:
    """The stretches of a line without a gap, each point with its value."""
    runs: list[list[tuple[_Point, float]]] = [[]]
    for point in points:
        if point.y is None:
            runs.append([])
        else:
            runs[-1].append((point, point.y))
    return [run for run in runs if run]


def _spoken(series: Series, text: Text) -> str:
    known = [(x, y) for x, y in series.points if y is not None]
    (x0, y0), (x1, y1) = known[0], known[-1]
    return f"{series.label}: {text(y0)} at {x0:.0f}, {text(y1)} at {x1:.0f}."
