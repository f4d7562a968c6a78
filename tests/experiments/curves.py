"""Curves of several seeds: means with standard errors, and a figure of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Look:
    """How a curve is drawn."""

    label: str
    colour: str
    marker: str = ""
    style: str = "-"


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "se": standard_error(values), "seeds": list(values)}


def told(place: float, row: Mapping[str, Any], digits: int = 3) -> str:
    """A place of a curve in words."""
    return f"{place}: {row['mean']:.{digits}f} ±{row['se'] or 0:.{digits}f}"


def draw(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    looks: Mapping[str, Look],
    path: Path,
    *,
    places: Sequence[float],
    names: tuple[str, str],
    level: float | None = None,
    legend: str = "lower right",
) -> bool:
    """Curves over `places` on a logarithmic axis, with error bars; False where matplotlib is not there.

    curves: rows as of `summary`, one for each place. names: of the axes. level: a dotted line.
    """
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not there: no figure")
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    for name, look in looks.items():
        if name not in curves:
            continue
        means = [row["mean"] for row in curves[name]]
        errors = [row["se"] or 0 for row in curves[name]]
        how = {"color": look.colour, "marker": look.marker, "ls": look.style, "ms": 5}
        axes.errorbar(places, means, errors, label=look.label, **how)
    if level is not None:
        axes.axhline(level, color="#666666", ls=":", lw=1)
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.grid(True, color="#dddddd", lw=0.6)
    axes.legend(frameon=False, fontsize=9, loc=legend)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
