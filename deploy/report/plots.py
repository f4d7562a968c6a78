"""The report's plots: matplotlib draws them, the page's style sheet colours them.

Each plot is an inline SVG. Colours are written as the page's CSS variables, so that one drawing reads
well on light and on dark paper; text stays text, in the page's font. A plot is drawn at two widths,
because a wide drawing shrunk to a phone can't be read; the style sheet shows the one that fits.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from penchant.common.wording import percent
from penchant.deploy.simulation.result import RoundSummary

# Stand-in colours: matplotlib wants real ones, `_themed` then puts the CSS variables in their place.
INK, MUTED, RULE, ACCENT, SECOND, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", SECOND: "second", PAPER: "paper"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # labels are names that people chose
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

WIDE, NARROW = 9.6, 3.7  # inches, at 72 points each: the width of the page and of a phone


@dataclass(frozen=True)
class Plot:
    """One plot at both widths, as SVG markup, and what it shows in words."""

    wide: str
    narrow: str
    words: str


def rounds(measured: Mapping[int, RoundSummary]) -> Plot | None:
    """Training loss and validation accuracy by the round that ended with the factors, see
    `RunResult.measured`; None when there is neither."""
    numbers = list(measured)
    loss = [_number(row.train_loss) for row in measured.values()]
    accuracy = [_number(row.val_accuracy) for row in measured.values()]
    panels: list[Callable[[Axes], None]] = []
    if _any(loss):
        panels.append(lambda axes: _line(axes, numbers, loss, "Training loss", SECOND))
    if _any(accuracy):
        panels.append(lambda axes: _accuracy_line(axes, numbers, accuracy))
    if not panels:
        return None
    return _draw(panels, "Training loss and validation accuracy after each round", salt="rounds")


def costs(log: Sequence[RoundSummary]) -> Plot | None:
    """Kilobytes sent and received by one client, and seconds, by round; None for an empty log."""
    if not log:
        return None
    numbers = [row.round for row in log]
    seconds = [_number(row.seconds) for row in log]
    up = [_number(row.upload) / 1000 for row in log]
    down = [_number(row.download) / 1000 for row in log]

    def traffic(axes: Axes) -> None:
        _line(axes, numbers, up, "Traffic of one client, kB a round", ACCENT, label="sent")
        _line(axes, numbers, down, None, SECOND, label="received")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(frameon=False, loc="upper right", ncols=2, handlelength=1.2, labelcolor=MUTED)

    def time(axes: Axes) -> None:
        axes.bar(numbers, seconds, color=MUTED, width=0.6, alpha=0.55)
        axes.set_title("Seconds a round")
        _round_axis(axes)

    return _draw([traffic, time], "Traffic and seconds by round", salt="costs", height=2.3)


def people(accuracies: Sequence[float], mean: float) -> Plot:
    """Everyone's accuracy, sorted, one dot each, with the mean and the line of guessing."""
    ordered = sorted(accuracies)

    def dots(axes: Axes) -> None:
        positions = range(1, len(ordered) + 1)
        size = 26 if len(ordered) <= 150 else 8
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        axes.axhline(mean, color=ACCENT, linewidth=1.2)
        axes.scatter(positions, ordered, s=size, color=ACCENT, edgecolors=PAPER, linewidths=0.6, zorder=3)
        axes.set_ylim(math.floor((min(*ordered, 0.5) - 0.02) * 10) / 10, 1.03)
        axes.set_xlim(0, len(ordered) + 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("people, from the worst to the best served")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        # Sorted dots leave room above the mean's line at the left, and below that of guessing at the right.
        beside = ("axes fraction", "data")
        axes.annotate(
            f"mean {percent(mean)}", (0.008, mean + 0.008), xycoords=beside, va="bottom", color=ACCENT
        )
        axes.annotate("guessing", (0.992, 0.492), xycoords=beside, ha="right", va="top", color=MUTED)

    return _draw([dots], "Accuracy of every person, sorted", salt="people", height=3.4)


def comparison(
    labels: Sequence[str],
    means: Sequence[float],
    errors: Sequence[float | None],
    seeds: Sequence[Sequence[float]],
    *,
    salt: str = "comparison",
) -> Plot:
    """One line a method, the best at the top: the mean, its standard error, and every seed's value.

    `salt` must differ between the plots of one page.
    """

    def dots(axes: Axes) -> None:
        rows = list(range(len(labels)))[::-1]
        values = [*means, *(v for one in seeds for v in one), 0.5]
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        for row, mean, error, one in zip(rows, means, errors, seeds, strict=True):
            axes.scatter(one, [row] * len(one), s=18, facecolors="none", edgecolors=MUTED, linewidths=0.9)
            if error is not None:
                axes.plot([mean - error, mean + error], [row, row], color=ACCENT, linewidth=3)
            axes.scatter([mean], [row], s=52, color=ACCENT, edgecolors=PAPER, linewidths=1, zorder=3)
            axes.annotate(
                percent(mean), (mean, row), xytext=(0, 9), textcoords="offset points", ha="center", color=INK
            )
        axes.set_yticks(rows, [_wrapped(label) for label in labels])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-0.6, len(labels) - 0.3)
        spread = max(values) - min(values)
        axes.set_xlim(min(values) - 0.06 * spread, max(values) + 0.06 * spread)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.set_xlabel("accuracy")

    height = 0.9 + 0.62 * len(labels)
    return _draw([dots], "Accuracy of each method with its standard error", salt=salt, height=height)


@dataclass(frozen=True)
class Curve:
    """One method's accuracies (parts of 1) at ascending numbers, with standard errors where known."""

    label: str
    at: Sequence[int]
    means: Sequence[float]
    errors: Sequence[float | None]


# Colour, line and marker of a curve: told apart without colour too.
_LOOKS = (
    (ACCENT, "-", "o"),
    (SECOND, "-", "s"),
    (INK, (0, (5, 2)), "D"),
    (MUTED, (0, (1.5, 1.5)), "^"),
    (ACCENT, (0, (5, 2)), "v"),
    (SECOND, (0, (1.5, 1.5)), "P"),
    (INK, "-", "X"),
    (MUTED, "-", "*"),
)


def curves(found: Sequence[Curve], axis: str, *, salt: str = "curves") -> Plot:
    """Learning curves: accuracy against a number (logarithmic), one line a method, bars of one s.e."""
    ticks = sorted({x for curve in found for x in curve.at})

    def lines(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        for place, curve in enumerate(found):
            colour, dashes, marker = _LOOKS[place % len(_LOOKS)]
            aside = 1.012 ** (place - (len(found) - 1) / 2)  # bars of neighbours side by side
            axes.errorbar(
                [x * aside for x in curve.at],
                curve.means,
                yerr=[error or 0.0 for error in curve.errors],
                color=colour,
                linestyle=dashes,
                marker=marker,
                markersize=4.5,
                elinewidth=1.2,
                capsize=2.5,
                label=curve.label,
            )
        axes.set_xticks(ticks, [f"{x}" for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_xlabel(axis)
        axes.legend(
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=2 if axes.figure.bbox.width / axes.figure.dpi > (NARROW + WIDE) / 2 else 1,
            handlelength=2.6,
            labelcolor=INK,
        )

    return _draw(
        [lines], f"Accuracy of each method against {axis}", salt=salt, height=3.4 + 0.12 * len(found)
    )


# --- parts ----------------------------------------------------------------------------------------


def _wrapped(label: str) -> str:
    """A label in at most two lines; what is longer still is cut."""
    return "\n".join(textwrap.wrap(label, 24, max_lines=2, placeholder="…"))


def _number(value: float | None) -> float:
    """A known number as it is; NaN, which matplotlib leaves out, for None."""
    return math.nan if value is None else float(value)


def _any(values: Sequence[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _line(
    axes: Axes, x: Sequence[int], y: Sequence[float], title: str | None, colour: str, label: str | None = None
) -> None:
    axes.plot(x, y, color=colour, label=label, marker="o", markersize=3 if len(x) <= 60 else 0)
    if title is not None:
        axes.set_title(title)
    _round_axis(axes)


def _accuracy_line(axes: Axes, x: Sequence[int], y: Sequence[float]) -> None:
    _line(axes, x, y, "Validation accuracy", ACCENT)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))


def _round_axis(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw(panels: Sequence[Callable[[Axes], None]], words: str, *, salt: str, height: float = 2.6) -> Plot:
    """The panels side by side on a wide page, and below each other on a narrow one."""
    count = len(panels)
    wide = _render(panels, (1, count), (WIDE, height), f"{salt}-wide")
    narrow = _render(panels, (count, 1), (NARROW, height * count), f"{salt}-narrow")
    return Plot(wide, narrow, words)


def _render(
    panels: Sequence[Callable[[Axes], None]], grid: tuple[int, int], size: tuple[float, float], salt: str
) -> str:
    # The salt makes ids equal from run to run, and different between the plots of one page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        for axes, panel in zip(figure.subplots(*grid, squeeze=False).flat, panels, strict=True):
            panel(axes)
        figure.tight_layout(pad=0.4, w_pad=3, h_pad=1.6)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return _themed(buffer.getvalue(), salt)


def _themed(svg: str, salt: str) -> str:
    """Only the <svg> element, free of metadata and fixed fonts, with the page's colours in place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    # Groups carry ids such as "axes_1", the same in every plot of the page: nothing refers to them.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
