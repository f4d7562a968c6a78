"""What all charts have in common: heading, words, files and axes; inline SVG, coloured by a style sheet.

No style attribute and no script, so that the strictest content policy holds. Each chart is drawn at two
widths, because a wide drawing shrunk to a phone can't be read; the style sheet shows the one that fits. A
chart's words say what it shows to those who don't see it, and every point's value is in a tooltip. What a
chart is drawn from leaves as CSV, and its drawing as an SVG file that needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

__all__ = [
    "HALF",
    "LOOKS",
    "NARROW",
    "STYLE",
    "WIDE",
    "Chart",
    "Text",
    "figure",
    "file",
    "svg",
    "ticks",
    "whole_ticks",
]

WIDE, HALF, NARROW = 960, 480, 330  # pixels: the page, half of it, a third of it or a phone
LOOKS = 8
"""How many styles of lines there are; they differ by their dashes as well."""

STYLE = Path(__file__).with_name("charts.css").read_text("utf-8")
"""The style sheet of charts, with the colours of the page that they are on as its variables."""

Text = Callable[[float], str]


@dataclass(frozen=True)
class Chart:
    """What all charts share.

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

    def _figure(
        self, drawn: Sequence[Markup], words: str, legend: Sequence[tuple[str, int]] = (), zoom: str = ""
    ) -> Markup:
        table, drawing = map(self.files.format, (".csv", ".svg"))
        links = Markup(
            ' <span class="files"><a href="{}" download>CSV</a> <a href="{}" download>SVG</a></span>'
        ).format(table, drawing)
        note = Markup(" <small>{}</small>").format(self.note) if self.note else ""
        heading = Markup("{}{}{}").format(self.title, note, links if self.files else "")
        return figure(drawn, heading, words, legend, zoom)


# --- parts that drawings are made of ----------------------------------------------------------------


def figure(
    drawn: Sequence[Markup], heading: Markup, words: str, legend: Sequence[tuple[str, int]], zoom: str = ""
) -> Markup:
    """A drawing at two widths, with heading and legend. zoom: the id of the form that chooses a part."""
    keys = Markup("").join(
        Markup('<li><svg viewBox="0 0 22 8" width="22" height="8" aria-hidden="true">'
               '<line class="l{}" x1="1" y1="4" x2="21" y2="4"/></svg>{}</li>').format(look, label)
        for label, look in legend
    )  # fmt: skip
    part = Markup(' data-zoom="{}"').format(zoom) if zoom else ""
    listed = Markup('<ul class="legend">{}</ul>').format(keys) if keys else Markup("")
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}<div role="img" aria-label="{}"{}>'
        '<div class="wide">{}</div><div class="narrow">{}</div></div></figure>'
    ).format(heading, listed, words, part, *drawn)


_PAPER = (
    "svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#655f56}.title{font-size:15px;fill:#1d1b18}"
    ".value{fill:#1d1b18}.end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:#e3ded4}"
    ".reference{stroke:#655f56;stroke-dasharray:2 4}polyline,.key{fill:none;stroke-width:2}"
    ".l1{stroke:#0e6b64}.l2{stroke:#a8600f}.l3{stroke:#6a5aa8}.l4{stroke:#b03a2e}.l5{stroke:#2f6ea8}"
    ".l6{stroke:#5f6d1f}.l7{stroke:#0e6b64;stroke-dasharray:7 4}.l8{stroke:#a8600f;stroke-dasharray:2 4}"
    ".p1,.b1,.p7,.b7{fill:#0e6b64}.p2,.b2,.p8,.b8{fill:#a8600f}"
    ".p3,.b3{fill:#6a5aa8}.p4,.b4{fill:#b03a2e}"
    ".p5,.b5{fill:#2f6ea8}.p6,.b6{fill:#5f6d1f}.band{fill-opacity:.22}.hit rect{fill:none}.mark{fill:#93210f}"
    ".dots{stroke-width:6;stroke-linecap:round;fill:none}.dots.many{stroke-width:3}.spread{stroke-width:3}"
    ".ring{fill:none;stroke:#655f56}"
)
"""The style of a drawing that leaves its page: as on light paper, for programs that know no variables."""


def file(drawn: Markup, title: str, width: int, height: int, legend: Sequence[tuple[str, int]]) -> str:
    """A drawing as an SVG file, with its heading and legend above it."""
    top, side = 34 + 20 * len(legend), 12  # labels of an axis reach beyond the drawing
    keys = Markup("").join(
        Markup('<line class="key l{}" x1="12" x2="34" y1="{}" y2="{}"/><text x="42" y="{}">{}</text>').format(
            look, 40 + 20 * i, 40 + 20 * i, 44 + 20 * i, label
        )
        for i, (label, look) in enumerate(legend)
    )
    placed = str(drawn).replace(
        "<svg ", f'<svg x="{side}" y="{top}" width="{width}" height="{height}" overflow="visible" ', 1
    )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" height="{}"><style>{}</style>'
        '<title>{}</title><rect width="100%" height="100%" fill="#fff"/>'
        '<text class="title" x="12" y="20">{}</text>{}{}</svg>\n'
    ).format(
        width + 2 * side,
        top + height,
        width + 2 * side,
        top + height,
        Markup(_PAPER),
        title,
        title,
        keys,
        Markup(placed),
    )


def svg(parts: Sequence[str], width: int, height: int) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{body}</svg>')


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that enclose low … high."""
    spread = high - low or abs(high) or 1.0
    raw = spread / (most - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def whole_ticks(first: float, last: float, most: int) -> list[float]:
    """Whole numbers between first and last."""
    if last <= first:
        return [first]
    raw = max((last - first) / most, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    begin = math.ceil(first / step) * step
    return [x for x in (begin + i * step for i in range(int((last - begin) / step) + 1)) if x >= first]
