"""The console's charts: inline SVG, drawn here, coloured by the style sheet.

No style attribute and no script, so that the strict content policy holds. Each chart is drawn at two widths,
because a wide drawing shrunk to a phone can't be read; the style sheet shows the one that fits. A chart's
words say what it shows to those who don't see it, and every point's value is in a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Series", "bars", "lines", "spark"]

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
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    look: int = 1


@dataclass(frozen=True)
class _Point:
    """What is drawn at one place: one value, or the mean and the extremes of several next to each other.

    x, y: the place and the value, None for a gap. first: where the range begins that it stands for; it ends
    at x. low, high: of the values there; both are y for a single one.
    """

    x: float
    y: float | None
    first: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, some: Sequence[tuple[float, float | None]]) -> _Point:
        """The point that stands for some next to each other, at the place of the last."""
        known = [y for _, y in some if y is not None]
        mean = sum(known) / len(known) if known else None
        low, high = min(known, default=None), max(known, default=None)
        return cls(some[-1][0], mean, some[0][0], low, high)


@dataclass(frozen=True)
class _Line:
    """A series as it is drawn."""

    label: str
    points: Sequence[_Point]
    look: int


def lines(
    series: Sequence[Series],
    *,
    title: str,
    text: Text,
    x_label: str = "round",
    height: int = 200,
    zero: bool = False,
    least: float = 0.0,
    reference: tuple[float, str] | None = None,
    width: int = HALF,
) -> Markup:
    """A line chart, by default over rounds.

    Args:
        series: the lines; one without any value is left out.
        title: the heading above the chart.
        text: turns a value into the words that ticks and tooltips show.
        x_label: the name of the horizontal axis.
        height: the height of the drawing, in pixels.
        zero: whether the vertical axis begins at 0.
        least: the smallest value at which such an axis may end.
        reference: a value at which a dotted line is drawn, and the words for it.
        width: the width of the drawing for a wide screen, in pixels; a second, narrow one is for phones.
    """
    known = [s for s in series if any(y is not None for _, y in s.points)]
    if not known:
        return Markup('<p class="empty small">{}: no rounds yet.</p>').format(title)
    thinned = [_Line(s.label, _thinned(s.points), s.look) for s in known]
    words = f"{title}. " + " ".join(_spoken(s, text) for s in known)
    frame = _Frame(text, x_label, zero, least, reference)
    drawn = [_drawn_lines(thinned, side, height, frame) for side in (width, NARROW)]
    return _figure(drawn, title, words, [(s.label, s.look) for s in known] if len(known) > 1 else [])


def bars(
    values: Sequence[float],
    labels: Sequence[str],
    *,
    title: str,
    text: Text,
    axis: str = "",
    height: int = 200,
    look: int = 1,
) -> Markup:
    """A bar chart with each bar's value above it.

    Args:
        values: the height of each bar.
        labels: the name of each bar, in the same order.
        title: the heading above the chart.
        text: turns a value into the words that are shown for it.
        axis: the name of the horizontal axis; empty for none.
        height: the height of the drawing, in pixels.
        look: the number of the bars' style in the style sheet.
    """
    words = f"{title}. " + ", ".join(
        f"{label}: {text(value)}" for label, value in zip(labels, values, strict=True) if value
    )
    drawn = [_drawn_bars(values, labels, width, height, text, axis, look) for width in (WIDE, NARROW)]
    return _figure(drawn, title, words, [])


def spark(points: Sequence[float], words: str) -> Markup:
    """A small line in a table's cell.

    Args:
        points: the values, in order; fewer than two draw nothing.
        words: what the line shows, for those who don't see it.
    """
    if len(points) < 2:
        return Markup("")
    width, height = 96, 24
    some = points if len(points) <= 48 else _extremes(_thinned(list(enumerate(points)), 24))
    low, high = min(some), max(some)
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


def _figure(drawn: Sequence[Markup], title: str, words: str, legend: Sequence[tuple[str, int]]) -> Markup:
    keys = Markup("").join(
        Markup('<li><svg viewBox="0 0 22 8" width="22" height="8" aria-hidden="true">'
               '<line class="l{}" x1="1" y1="4" x2="21" y2="4"/></svg>{}</li>').format(look, label)
        for label, look in legend
    )  # fmt: skip
    listed = Markup('<ul class="legend">{}</ul>').format(keys) if keys else Markup("")
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}<div role="img" aria-label="{}">'
        '<div class="wide">{}</div><div class="narrow">{}</div></div></figure>'
    ).format(title, listed, words, *drawn)


@dataclass(frozen=True)
class _Frame:
    """What surrounds lines: see `lines`."""

    text: Text
    x_label: str
    zero: bool
    least: float
    reference: tuple[float, str] | None


def _drawn_lines(series: Sequence[_Line], width: int, height: int, frame: _Frame) -> Markup:
    text, x_label, reference = frame.text, frame.x_label, frame.reference
    ys = [y for s in series for y in _extremes(s.points)]
    xs = [end for s in series for point in s.points for end in (point.first, point.x)]
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
            if len(run) > 1 and any(point.low != point.high for point, _ in run):
                edge = [(p.x, p.high) for p, _ in run] + [(p.x, p.low) for p, _ in reversed(run)]
                band = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in edge if y is not None)
                parts.append(f'<polygon class="band b{s.look}" points="{band}"/>')
            path = " ".join(f"{at_x(point.x):.1f},{at_y(y):.1f}" for point, y in run)
            if len(run) > 1:
                parts.append(f'<polyline class="l{s.look}" points="{path}"/>')
            x, y = run[-1][0].x, run[-1][1]
            parts.append(f'<circle class="p{s.look}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3"/>')
    parts.append(_tooltips(series, at_x, (left, right, top, bottom), text, x_label))
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


def _said(point: _Point, mean: float, text: Text) -> str:
    """A value; of several their mean, the least and the most."""
    if point.first == point.x or point.low is None or point.high is None:
        return text(mean)
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


def _thinned(points: Sequence[tuple[float, float | None]], most: int = POINTS) -> list[_Point]:
    """At most `most` points: each stands for some next to each other; the last one for itself."""
    if len(points) <= most:
        return [_Point.of([point]) for point in points]
    width = math.ceil((len(points) - 1) / (most - 1))
    parts = [points[at : min(at + width, len(points) - 1)] for at in range(0, len(points) - 1, width)]
    return [*map(_Point.of, parts), _Point.of(points[-1:])]


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
