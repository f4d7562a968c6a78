"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from penchant.common.wording import decimals, plain, size
from penchant.deploy.comparison.conclusions import (
    UNITS,
    MethodRanking,
    conclusion,
    differences,
    headline,
    method_of,
    rankings_of,
    setting_names,
)
from penchant.deploy.comparison.statistics import by_seed
from penchant.deploy.comparison.table import Comparison, ComparisonDetails, ComparisonRow, RunCost
from penchant.deploy.report import plots
from penchant.deploy.report.rendering import version_of
from penchant.server.charts import LineChart

_FACTS = (
    ("dataset", "Data set"),
    ("base_model", "Base model"),
    ("clients", "People"),
    ("pairs", "Choices a person"),
    ("rounds", "Rounds"),
    ("evaluated_on", "Scored on"),
)
Axis = Literal["pairs", "clients"]


@dataclass(frozen=True)
class LearningCurves:
    """A plot of accuracy against a number that was varied, and its title."""

    title: str
    plot: LineChart


def page(comparison: Comparison) -> dict[str, Any]:
    """Everything that comparison.html.j2 shows, as texts and plots. The best method comes first."""
    rows, details = comparison.rows, comparison.details
    rankings = rankings_of(rows)
    return {
        "title": "penchant: which methods pay" + (f" on {details.dataset}" if details.dataset else ""),
        "strap": " · ".join(filter(None, (details.dataset, details.base_model))) or "comparison",
        "headline": headline(rankings),
        "curves": learning_curves(rows),
        "accuracy_text": _accuracy_text(rows),
        "rankings": [_ranking(ranking) for ranking in rankings],
        "has_cold": any(row.cold_start is not None for row in rows),
        "has_cost": all(row.cost is not None for row in rows),
        "pairs_text": "Both methods of a line saw the same people with the same seed, so what a seed makes "
        "easy or hard for both cancels out. A point is one held-out pair in a hundred.",
        "facts": _facts(details),
        "caveats": list(details.caveats),
        "command": details.command,
        "version": version_of(details.versions),
    }


def learning_curves(rows: Sequence[ComparisonRow]) -> list[LearningCurves]:
    """Accuracy against choices a person and against people, for what was varied; the other held fixed.

    There is a plot for each value of the other where both were varied.
    """
    names = setting_names(rows)
    found = []
    axes: tuple[tuple[Axis, Axis], ...] = (("pairs", "clients"), ("clients", "pairs"))
    for axis, fixed in axes:
        held = sorted({_value(row, fixed) for row in rows})
        for value in held:
            own = [row for row in rows if _value(row, fixed) == value]
            if len({_value(row, axis) for row in own}) < 2:
                continue
            title = f"More {UNITS[axis]}" + (f", with {value} {UNITS[fixed]}" if len(held) > 1 else "")
            plot = plots.curves(_curves(own, axis, names), UNITS[axis])
            found.append(LearningCurves(title, plot))
    newcomers = _newcomers(rows, names)
    if newcomers:
        plot = plots.curves(newcomers, "choices of a newcomer")
        found.append(LearningCurves("People who came after the training, shared factors frozen", plot))
    return found


def _value(row: ComparisonRow, axis: Axis) -> int:
    return (row.pairs if axis == "pairs" else row.clients) or 0


def _newcomers(rows: Sequence[ComparisonRow], names: Mapping[tuple[str, str], str]) -> list[plots.Curve]:
    """A line a method, where each has one row: accuracy of newcomers by their number of choices."""
    methods = [method_of(row) for row in rows]
    if len(set(methods)) < len(methods):
        return []
    lines = []
    for row, key in zip(rows, methods, strict=True):
        after = [point for point in row.cold_start_curve or () if point.choices]
        if after:
            at, means = [point.choices for point in after], [point.mean for point in after]
            lines.append(plots.Curve(names[key], at, means, [point.se for point in after]))
    return lines


def _curves(
    rows: Sequence[ComparisonRow], axis: Axis, names: Mapping[tuple[str, str], str]
) -> list[plots.Curve]:
    """A curve for each method, in one order for all plots of a page."""
    made = []
    for kind, name in names.items():
        own = sorted((row for row in rows if method_of(row) == kind), key=lambda row: _value(row, axis))
        if own:
            made.append(
                plots.Curve(
                    name,
                    [_value(row, axis) for row in own],
                    [row.accuracy_mean for row in own],
                    [row.accuracy_se for row in own],
                )
            )
    return made


def _accuracy_text(rows: Sequence[ComparisonRow]) -> str:
    costs = [row.cost for row in rows if row.cost is not None]
    budget = ""
    if len(costs) == len(rows):
        budget = (
            " Each had the same budget."
            if len({(cost.client_calls, cost.local_epochs) for cost in costs}) == 1
            else " Methods differ in rounds and in clients a round; the table says what each cost."
        )
    return (
        f"Same people and same choices for each method.{budget} Filled dots are means over seeds, the bar is "
        "one standard error to each side; rings are single seeds; dotted is guessing."
    )


def _ranking(ranking: MethodRanking) -> dict[str, Any]:
    rows = ranking.rows
    return {
        "title": ranking.title,
        "conclusion": conclusion(ranking),
        "plot": plots.comparison(
            ranking.names,
            [row.accuracy_mean for row in rows],
            [row.accuracy_se for row in rows],
            [list(by_seed(row).values()) for row in rows],
        ),
        "rows": [_row(row, name) for row, name in zip(rows, ranking.names, strict=True)],
        "pairs": differences(ranking),
    }


def _row(row: ComparisonRow, name: str) -> dict[str, str]:
    cost = row.cost or RunCost(wall_seconds=row.wall_seconds)
    return {
        "label": name,
        "head": plain(row.head),
        "seeds": plain(len(row.seeds) or None),
        "accuracy": decimals(row.accuracy_mean),
        "error": "–" if row.accuracy_se is None else f"± {decimals(row.accuracy_se)}",
        "cold": decimals(row.cold_start),
        "rounds": decimals(cost.rounds, 0),
        "calls": decimals(cost.client_calls, 0),
        "sent": size(cost.bytes_up),
        "seconds": decimals(cost.wall_seconds, 0),
    }


def _facts(details: ComparisonDetails) -> list[tuple[str, str]]:
    found = [(label, getattr(details, name)) for name, label in _FACTS]
    facts = [(label, str(value)) for label, value in found if value is not None]
    if details.secagg is not None:
        facts.append(("Secure aggregation", "on" if details.secagg else "OFF"))
    return facts
