"""The console's charts: inline SVG, drawn here, coloured by the style sheet.

No style attribute and no script, so that the strict content policy holds. Each chart is drawn at two widths,
because a wide drawing shrunk to a phone can't be read; the style sheet shows the one that fits. A chart's
words say what it shows to those who don't see it, and every point's value is in a tooltip. What a chart is
drawn from leaves as CSV, and its drawing as an SVG file that needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from penchant.server.console.csv_text import csv_text

__all__ = ["BarChart", "Chart", "LineChart", "Series", "bars", "lines", "spark"]

WIDE, HALF, NARROW = 960, 480, 330  # pixels: the page, half of it, a third of it or a phone
POINTS = 160  # most points of a drawn line; of more, each stands for a few, and a band shows their extremes

Text = Callable[[float], str]


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
class Chart:
    """What line and bar charts share.

    Attributes:
        title: the heading above the chart.
        text: turns a value into the words that are shown for it.
        height: the height of the drawing, in pixels.
        note: what the heading adds in small.
        files: the address of its files, with {} where .csv or .svg comes; empty where it has none.
    """

    title: str
    text: Text
    height: int = 200
    note: str = ""
    files: str = ""

    def __html__(self) -> str:
        raise NotImplementedError

    def csv(self) -> str:
        """What it is drawn from."""
        raise NotImplementedError

    def svg(self) -> str:
        """The drawing as a file of its own, as it looks on light paper."""
        raise NotImplementedError

    def _figure(self, drawn: Sequence[Markup], words: str, legend: Sequence[tuple[str, int]] = ()) -> Markup:
        table, drawing = map(self.files.format, (".csv", ".svg"))
        links = Markup(
            ' <span class="files"><a href="{}" download>CSV</a> <a href="{}" download>SVG</a></span>'
        ).format(table, drawing)
        note = Markup(" <small>{}</small>").format(self.note) if self.note else ""
        heading = Markup("{}{}{}").format(self.title, note, links if self.files else "")
        return _figure(drawn, heading, words, legend)


@dataclass(frozen=True)
class LineChart(Chart):
    """A line chart, by default over rounds.

    Attributes:
        series: the lines; one without any value is left out.
        x_label: the name of the horizontal axis.
        zero: whether the vertical axis begins at 0.
        least: the smallest value at which such an axis may end.
        reference: a value at which a dotted line is drawn, and the words for it.
        width: the width of the drawing for a wide screen, in pixels; a second, narrow one is for phones.
        marks: (x, words) of what went wrong there, marked below the lines.
    """

    series: Sequence[Series] = ()
    x_label: str = "round"
    zero: bool = False
    least: float = 0.0
    reference: tuple[float, str] | None = None
    width: int = HALF
    marks: Sequence[tuple[float, str]] = ()

    def __html__(self) -> str:
        if not self._known:
            return Markup('<p class="empty small">{}: no rounds yet.</p>').format(self.title)
        words = f"{self.title}. " + " ".join(_spoken(s, self.text) for s in self._known)
        if self.marks:
            words += f" {len(self.marks)} attempts failed."
        legend = [(s.label, s.look) for s in self._known] if len(self._known) > 1 else []
        return self._figure([self._drawn(side) for side in (self.width, NARROW)], words, legend)

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
        drawn = self._drawn(WIDE) if self._known else Markup("")
        return _file(drawn, self.title, WIDE, self.height, legend)

    @property
    def _known(self) -> list[Series]:
        return [s for s in self.series if any(y is not None for _, y in s.points)]

    def _drawn(self, width: int) -> Markup:
        thinned = [_Line(s.label, _thinned(s.points, errors=s.errors), s.look) for s in self._known]
        frame = _Frame(self.text, self.x_label, self.zero, self.least, self.reference, self.marks)
        return _drawn_lines(thinned, width, self.height, frame)


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
        return _file(self._drawn(WIDE), self.title, WIDE, self.height, [])

    @property
    def _bars(self) -> Iterator[tuple[str, float]]:
        return zip(self.labels, self.values, strict=True)

    def _drawn(self, width: int) -> Markup:
        return _drawn_bars(self.values, self.labels, width, self.height, self.text, self.axis, self.look)


def lines(series: Sequence[Series], **more: Any) -> Markup:
    """The drawing of a `LineChart`."""
    return Markup(LineChart(series=series, **more).__html__())


def bars(values: Sequence[float], labels: Sequence[str], **more: Any) -> Markup:
    """The drawing of a `BarChart`."""
    return Markup(BarChart(values=values, labels=labels, **more).__html__())


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


def _figure(
    drawn: Sequence[Markup], heading: Markup, words: str, legend: Sequence[tuple[str, int]]
) -> Markup:
    keys = Markup("").join(
        Markup('<li><svg viewBox="0 0 22 8" width="22" height="8" aria-hidden="true">'
               '<line class="l{}" x1="1" y1="4" x2="21" y2="4"/></svg>{}</li>').format(look, label)
        for label, look in legend
    )  # fmt: skip
    listed = Markup('<ul class="legend">{}</ul>').format(keys) if keys else Markup("")
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}<div role="img" aria-label="{}">'
        '<div class="wide">{}</div><div class="narrow">{}</div></div></figure>'
    ).format(heading, listed, words, *drawn)


_PAPER = (
    "svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#655f56}.title{font-size:15px;fill:#1d1b18}"
    ".value{fill:#1d1b18}.end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:#e3ded4}"
    ".reference{stroke:#655f56;stroke-dasharray:2 4}polyline,.key{fill:none;stroke-width:2}"
    ".l1{stroke:#0e6b64}.l2{stroke:#a8600f}.l3{stroke:#6a5aa8}.l4{stroke:#b03a2e}.l5{stroke:#2f6ea8}"
    ".l6{stroke:#5f6d1f}.p1,.b1{fill:#0e6b64}.p2,.b2{fill:#a8600f}.p3,.b3{fill:#6a5aa8}.p4,.b4{fill:#b03a2e}"
    ".p5,.b5{fill:#2f6ea8}.p6,.b6{fill:#5f6d1f}.band{fill-opacity:.22}.hit rect{fill:none}.mark{fill:#93210f}"
)
"""The style of a drawing that leaves the console: the style sheet's on light paper."""


def _file(drawn: Markup, title: str, width: int, height: int, legend: Sequence[tuple[str, int]]) -> str:
    """A drawing as an SVG file, with its heading and legend above it."""
    top = 34 + 20 * len(legend)
    keys = Markup("").join(
        Markup('<line class="key l{}" x1="12" x2="34" y1="{}" y2="{}"/><text x="42" y="{}">{}</text>').format(
            look, 40 + 20 * i, 40 + 20 * i, 44 + 20 * i, label
        )
        for i, (label, look) in enumerate(legend)
    )
    placed = str(drawn).replace("<svg ", f'<svg y="{top}" width="{width}" height="{height}" ', 1)
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" height="{}"><style>{}</style>'
        '<title>{}</title><rect width="100%" height="100%" fill="#fff"/>'
        '<text class="title" x="12" y="20">{}</text>{}{}</svg>\n'
    ).format(width, top + height, width, top + height, Markup(_PAPER), title, title, keys, Markup(placed))


@dataclass(frozen=True)
class _Frame:
    """What surrounds lines: see `LineChart`."""

    text: Text
    x_label: str
    zero: bool
    least: float
    reference: tuple[float, str] | None
    marks: Sequence[tuple[float, str]] = ()


def _drawn_lines(series: Sequence[_Line], width: int, height: int, frame: _Frame) -> Markup:
    text, x_label, reference = frame.text, frame.x_label, frame.reference
    ys = [y for s in series for point in s.points for y in (point.bottom, point.top) if y is not None]
    xs = [end for s in series for point in s.points for end in (point.first, point.x)]
    xs += [x for x, _ in frame.marks]
    if reference:
        ys.append(reference[0])
    low, high = (0.0, max(*ys, frame.least)) if frame.zero else (min(ys), max(ys))
    ticks = _ticks(low, high)
    low, high = ticks[0], ticks[-1]
    left = 12 + 6.6 * max(len(text(tick)) for tick in ticks)
    right, top, bottom = width - 10, 10, height - 34
    first, last = min(xs), max(xs)

    def at_x(x: float) -> float:
        return left + (x - first) / ((last - first) or 1.0) * (right - left)

    def at_y(y: float) -> float:
        return bottom - (y - low) / ((high - low) or 1.0) * (bottom - top)

    parts: list[str] = []
    for tick in ticks:
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{left:.0f}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 7:.0f}" y="{y + 4:.1f}">{escape(text(tick))}</text>')
    for x in _round_ticks(first, last, 8 if width > 400 else 4):
        parts.append(f'<text class="tick mid" x="{at_x(x):.1f}" y="{bottom + 16}">{x:.0f}</text>')
    parts.append(f'<text class="tick end" x="{right}" y="{height - 3}">{escape(x_label)}</text>')
    if reference:
        y = at_y(reference[0])
        parts.append(f'<line class="reference" x1="{left:.0f}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{right}" y="{y - 5:.1f}">{escape(reference[1])}</text>')
    for s in series:
        for run in _unbroken(s.points):
            if len(run) > 1 and any(point.bottom != point.top for point, _ in run):
                edge = [(p.x, p.top) for p, _ in run] + [(p.x, p.bottom) for p, _ in reversed(run)]
                band = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in edge if y is not None)
                parts.append(f'<polygon class="band b{s.look}" points="{band}"/>')
            path = " ".join(f"{at_x(point.x):.1f},{at_y(y):.1f}" for point, y in run)
            if len(run) > 1:
                parts.append(f'<polyline class="l{s.look}" points="{path}"/>')
            x, y = run[-1][0].x, run[-1][1]
            parts.append(f'<circle class="p{s.look}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3"/>')
    parts.append(_tooltips(series, at_x, (left, right, top, bottom), text, x_label))
    parts += _marks(frame.marks, at_x, (first, last), bottom, x_label)
    return _svg(parts, width, height)


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
            f'<g class="hit"><rect x="{begin:.1f}" y="{top}" width="{max(end - begin, 0.5):.1f}" '
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
    return _svg(parts, width, height)


def _svg(parts: Sequence[str], width: int, height: int) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{body}</svg>')


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


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that enclose low … high."""
    spread = high - low or abs(high) or 1.0
    raw = spread / (most - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _round_ticks(first: float, last: float, most: int) -> list[float]:
    """Whole numbers between first and last."""
    if last <= first:
        return [first]
    raw = max((last - first) / most, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    begin = math.ceil(first / step) * step
    return [x for x in (begin + i * step for i in range(int((last - begin) / step) + 1)) if x >= first]


def _spoken(series: Series, text: Text) -> str:
    known = [(x, y) for x, y in series.points if y is not None]
    (x0, y0), (x1, y1) = known[0], known[-1]
    return f"{series.label}: {text(y0)} at {x0:.0f}, {text(y1)} at {x1:.0f}."
