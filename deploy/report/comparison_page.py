"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.deploy.comparison.conclusions import (
    UNITS,
    Group,
    conclusion,
    differences,
    grouped,
    headline,
    method_of,
    setting_names,
)
from penchant.deploy.comparison.statistics import by_seed
from penchant.deploy.report import plots
from penchant.deploy.report.rendering import Row, decimals, plain, size, version_of

_FACTS = (
    ("dataset", "Data set"),
    ("base_model", "Base model"),
    ("clients", "People"),
    ("pairs", "Choices a person"),
    ("rounds", "Rounds"),
    ("evaluated_on", "Scored on"),
)


def page(rows: Sequence[Row], details: Row) -> dict[str, Any]:
    """Everything that comparison.html.j2 shows, as texts and plots. The best method comes first."""
    groups = grouped(rows)
    dataset = details.get("dataset")
    strap = [str(details[key]) for key in ("dataset", "base_model") if details.get(key)]
    return {
        "title": "penchant: which methods pay" + (f" on {dataset}" if dataset else ""),
        "strap": " · ".join(strap) or "comparison",
        "headline": headline(groups),
        "curves": learning_curves(rows),
        "accuracy_text": _accuracy_text(rows),
        "groups": [_group(group, place) for place, group in enumerate(groups)],
        "has_cold": any(row.get("cold_start") is not None for row in rows),
        "has_cost": all(row.get("cost") for row in rows),
        "pairs_text": "Both methods of a line saw the same people with the same seed, so what a seed makes "
        "easy or hard for both cancels out. A point is one held-out pair in a hundred.",
        "facts": _facts(details),
        "caveats": list(details.get("caveats") or []),
        "command": details.get("command") or "",
        "version": version_of(details),
    }


def learning_curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Accuracy against choices a person and against people, for what was varied; the other held fixed.

    -> [{title, plot}], one for each value of the other where both were varied.
    """
    names = setting_names(rows)
    found = []
    for axis, fixed in (("pairs", "clients"), ("clients", "pairs")):
        held = sorted({row.get(fixed) or 0 for row in rows})
        for value in held:
            own = [row for row in rows if (row.get(fixed) or 0) == value]
            if len({row.get(axis) for row in own}) < 2:
                continue
            title = f"More {UNITS[axis]}" + (f", with {value} {UNITS[fixed]}" if len(held) > 1 else "")
            plot = plots.curves(_curves(own, axis, names), UNITS[axis], salt=f"curves-{axis}-{value}")
            found.append({"title": title, "plot": plot})
    newcomers = _newcomers(rows, names)
    if newcomers:
        plot = plots.curves(newcomers, "choices of a newcomer", salt="curves-newcomers")
        found.append({"title": "People who came after the training, shared factors frozen", "plot": plot})
    return found


def _newcomers(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> list[plots.Curve]:
    """A line a method, where each has one row: accuracy of newcomers by their number of choices."""
    methods = [method_of(row) for row in rows]
    if len(set(methods)) < len(methods):
        return []
    lines = []
    for row, key in zip(rows, methods, strict=True):
        after = [at for at in row.get("cold_start_curve") or [] if at["choices"]]
        if after:
            at, means = [a["choices"] for a in after], [a["mean"] for a in after]
            lines.append(plots.Curve(names[key], at, means, [a["se"] for a in after]))
    return lines


def _curves(rows: Sequence[Row], axis: str, names: Mapping[tuple[str, str], str]) -> list[plots.Curve]:
    """A curve for each method, in one order for all plots of a page."""
    made = []
    for kind, name in names.items():
        own = sorted((row for row in rows if method_of(row) == kind), key=lambda row: int(row[axis]))
        if own:
            made.append(
                plots.Curve(
                    name,
                    [int(row[axis]) for row in own],
                    [row["accuracy_mean"] for row in own],
                    [row.get("accuracy_se") for row in own],
                )
            )
    return made


def _accuracy_text(rows: Sequence[Row]) -> str:
    costs = [row.get("cost") or {} for row in rows]
    spent = {(cost.get("client_calls"), cost.get("local_epochs")) for cost in costs}
    budget = ""
    if all(costs):
        budget = (
            " Each had the same budget."
            if len(spent) == 1
            else " Methods differ in rounds and in clients a round; the table says what each cost."
        )
    return (
        f"Same people and same choices for each method.{budget} Filled dots are means over seeds, the bar is "
        "one standard error to each side; rings are single seeds; dotted is guessing."
    )


def _group(group: Group, place: int) -> dict[str, Any]:
    rows = group.rows
    return {
        "title": group.title,
        "conclusion": conclusion(group),
        "plot": plots.comparison(
            group.names,
            [row["accuracy_mean"] for row in rows],
            [row.get("accuracy_se") for row in rows],
            [list(by_seed(row).values()) for row in rows],
            salt=f"comparison-{place}",
        ),
        "rows": [_row(row, name) for row, name in zip(rows, group.names, strict=True)],
        "pairs": differences(group),
    }


def _row(row: Row, name: str) -> dict[str, str]:
    seeds = row.get("seeds")
    error = row.get("accuracy_se")
    cost = row.get("cost") or {}
    sent = cost.get("bytes_up")
    return {
        "label": name,
        "head": plain(row.get("head")),
        "seeds": f"{len(seeds)}" if isinstance(seeds, list | tuple) else plain(seeds),
        "accuracy": f"{row['accuracy_mean']:.3f}",
        "error": f"± {error:.3f}" if error is not None else "–",
        "cold": decimals(row.get("cold_start"), 3),
        "rounds": decimals(cost.get("rounds"), 0),
        "calls": decimals(cost.get("client_calls"), 0),
        "sent": "–" if sent is None else size(sent),
        "seconds": decimals(cost.get("wall_seconds", row.get("wall_seconds")), 0),
    }


def _facts(details: Row) -> list[tuple[str, str]]:
    facts = [(label, str(details[key])) for key, label in _FACTS if details.get(key) is not None]
    if details.get("secagg") is not None:
        facts.append(("Secure aggregation", "on" if details["secagg"] else "OFF"))
    return facts
