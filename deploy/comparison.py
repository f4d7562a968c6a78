"""What a comparison says: which methods pay, by how much, and how sure that is; in words and as a page.

Methods are compared at one setting only: the same number of choices a person and of people. Several
settings make several groups, and learning curves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.deploy import plots
from penchant.deploy.pages import (
    ALONE,
    ONE_FOR_ALL,
    SHARES,
    Row,
    decimals,
    head_of,
    listed,
    method,
    percent,
    plain,
    points,
    size,
    version_of,
)

# Two-sided 95 % quantiles of Student's t for 1 … 30 degrees of freedom; the normal one beyond.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

_IN_WORDS = {"better": "clearly better", "worse": "clearly worse", "unclear": "no clear difference"}

_FACTS = (
    ("dataset", "Data set"),
    ("base_model", "Base model"),
    ("clients", "People"),
    ("pairs", "Choices a person"),
    ("rounds", "Rounds"),
    ("evaluated_on", "Scored on"),
)

_UNITS = {"pairs": "choices a person", "clients": "people"}

# What a share shares, where that is not its name.
_SHARED = {"AB": "A and B", "kernel": "A and B", "svd": "A and B", "ffa": "B", "lore": "a low-rank basis"}


# --- differences ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another, over the same seeds. All in parts of 1."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``unclear`` when the 95 % interval holds 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"


def difference(one: Row, other: Row) -> Difference | None:
    """The paired difference of two rows: its mean and 95 % interval by Student's t over common seeds.

    None when fewer than two seeds are common to both, or the rows have no ``accuracies``.
    """
    left, right = _by_seed(one), _by_seed(other)
    gaps = [left[seed] - right[seed] for seed in left if seed in right]
    if len(gaps) < 2:
        return None
    mean = statistics.fmean(gaps)
    freedom = len(gaps) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else 1.96
    half = quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Difference(mean, mean - half, mean + half, len(gaps))


def _by_seed(row: Row) -> dict[Any, float]:
    accuracies, seeds = row.get("accuracies"), row.get("seeds")
    if not isinstance(accuracies, Sequence) or not isinstance(seeds, Sequence):
        return {}
    return dict(zip(seeds, accuracies, strict=True))


# --- groups: what may be compared with what -------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The methods at one setting, the best first.

    title: the setting in words, empty where there is only one; value: the same without its unit.
    """

    title: str
    value: str
    rows: tuple[Row, ...]
    names: tuple[str, ...]

    def first(self, share: str) -> int | None:
        """Where the best row stands of everyone alone, or of one model for all."""
        wanted = (i for i, row in enumerate(self.rows) if row["share"] == share and not _personal(row))
        return next(wanted, None)


def grouped(rows: Sequence[Row]) -> list[Group]:
    """The rows by setting, ascending. A method has the same name in all of them."""
    names = _names(rows)
    varied = [key for key in _UNITS if len({row.get(key) for row in rows}) > 1]
    settings = sorted({tuple(row.get(key) or 0 for key in varied) for row in rows})
    groups = []
    for setting in settings:
        own = [row for row in rows if tuple(row.get(key) or 0 for key in varied) == setting]
        own.sort(key=lambda row: -row["accuracy_mean"])
        value, unit = _setting(varied, setting)
        title = f"{value} {unit}".strip()
        groups.append(Group(title, value, tuple(own), tuple(names[_method(row)] for row in own)))
    return groups


def _setting(varied: Sequence[str], setting: tuple[int, ...]) -> tuple[str, str]:
    """(value, unit) in words: ("20", "choices a person"), or ("20 choices of 50 people", "")."""
    if len(varied) == 2:
        return f"{setting[0]} choices of {setting[1]} people", ""
    return (f"{setting[0]}", _UNITS[varied[0]]) if varied else ("", "")


def _method(row: Row) -> tuple[str, str]:
    return str(row["share"]), head_of(row)


def _personal(row: Row) -> bool:
    """Whether something is shared and something, a factor or the head, is personal."""
    share, head = _method(row)
    stays = SHARES[share][1] if share in SHARES else "the rest"
    return share != ALONE and bool(stays or head == "personal")


def _names(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """(share, head) -> name; with the head where the share alone doesn't tell methods apart."""
    shares = [share for share, _ in dict.fromkeys(map(_method, rows))]
    names = {}
    for share, head in map(_method, rows):
        name = method(share)
        if head == "personal" and share in SHARES and share != ALONE and not SHARES[share][1]:
            name = (
                f"{SHARES[share][0].removeprefix('factors ').removeprefix('factor ')} shared, head personal"
            )
        elif shares.count(share) > 1 and share != ALONE:
            name = f"{name}, {head} head"
        names[share, head] = name
    return names


# --- in words -------------------------------------------------------------------------------------


def headline(groups: Sequence[Group]) -> str:
    """Does sharing with a personal part pay against everyone alone?"""
    found = [_gain_of_sharing(group) for group in groups]
    if all(one is None for one in found):
        group = groups[0]
        at = f" with {group.title}" if group.title else ""
        return f"Best{at}: {group.names[0]}, {percent(group.rows[0]['accuracy_mean'])} of held-out choices."
    if len(groups) == 1:
        return _one_headline(*(found[0] or ("", None)))
    by_verdict: dict[str, list[str]] = {"better": [], "unclear": [], "worse": [], "unknown": []}
    for group, one in zip(groups, found, strict=True):
        by_verdict["unknown" if one is None or one[1] is None else one[1].verdict].append(group.value)
    unit = groups[0].title.removeprefix(groups[0].value).strip()
    starts = {
        "better": "Sharing with a personal part pays with",
        "unclear": "no clear gain over everyone alone with",
        "worse": "it does harm with",
        "unknown": "too few seeds to say with",
    }
    text = "; ".join(
        f"{starts[verdict]} {listed(values)} {unit}".strip()
        for verdict, values in by_verdict.items()
        if values
    )
    return f"{text[0].upper()}{text[1:]}."


def _gain_of_sharing(group: Group) -> tuple[str, Difference | None] | None:
    """The share of the best method with a personal part, and its gain; None without something to compare."""
    personal = next((row for row in group.rows if _personal(row)), None)
    alone = group.first(ALONE)
    if personal is None or alone is None:
        return None
    return str(personal["share"]), difference(personal, group.rows[alone])


def _one_headline(share: str, gap: Difference | None) -> str:
    if gap is None:
        return "Too few seeds to say which method pays."
    shared = _SHARED.get(share, share)
    return {
        "better": f"Sharing {shared} and keeping the rest personal pays.",
        "worse": "Sharing does harm here: everyone alone does better.",
        "unclear": f"Sharing {shared} shows no clear gain over everyone alone.",
    }[gap.verdict]


def conclusion(group: Group) -> list[str]:
    """In plain words: the best, what it gains, and where sharing does not help."""
    best = group.rows[0]
    error = best.get("accuracy_se")
    spread = f" ± {100 * error:.1f}" if error is not None else ""
    mean = f"{100 * best['accuracy_mean']:.1f}{spread}%"
    start = f"With {group.title}, " if group.title else ""
    sentences = [f"{start}“{group.names[0]}” does best: {mean} of held-out choices ranked right."]
    for share in (ALONE, ONE_FOR_ALL):
        other = group.first(share)
        if other is not None and other != 0:
            sentences.append(_gain(best, group.rows[other], method(share)))
    return [" ".join(sentences), *_as_good(group), *_no_help(group)]


def _gain(best: Row, other: Row, words: str) -> str:
    gap = difference(best, other)
    if gap is None:
        by = points(best["accuracy_mean"] - other["accuracy_mean"])
        return f"Against {words} that is {by} points, from too few seeds to say that it is no chance."
    return (
        f"Against {words} that is {points(gap.mean)} points, {_IN_WORDS[gap.verdict]} "
        f"(95% interval {points(gap.low)} to {points(gap.high)}, {gap.seeds} seeds)."
    )


def _as_good(group: Group) -> list[str]:
    """One sentence for the methods that can't be told apart from the best."""
    found = []
    for row, name in zip(group.rows[1:], group.names[1:], strict=True):
        gap = difference(group.rows[0], row)
        if gap is not None and gap.verdict == "unclear":
            found.append(f"“{name}” ({points(-gap.mean)} points)")
    return [f"Not told apart from the best: {listed(found)}."] if found else []


def _no_help(group: Group) -> list[str]:
    """One sentence for each kind of method that does not beat everyone alone."""
    alone = group.first(ALONE)
    if alone is None:
        return []
    found: dict[str, list[str]] = {"worse": [], "unclear": []}
    for row, name in zip(group.rows, group.names, strict=True):
        gap = difference(row, group.rows[alone])
        if row is not group.rows[alone] and gap is not None and gap.verdict in found:
            found[gap.verdict].append(f"“{name}” ({points(gap.mean)} points)")
    starts = {
        "worse": "Clearly worse than everyone alone",
        "unclear": "Not clearly better",
    }
    return [f"{starts[verdict]}: {listed(methods)}." for verdict, methods in found.items() if methods]


def differences(group: Group) -> list[dict[str, str]]:
    """Each method against everyone alone, each against one model for all, and the best against the next one
    and against all that can't be told apart from it."""
    rows, names = group.rows, group.names
    wanted: list[tuple[int, int]] = []
    for share in (ALONE, ONE_FOR_ALL):
        other = group.first(share)
        if other is not None:
            wanted += [(i, other) for i in range(len(rows)) if i != other and (other, i) not in wanted]
    for i in range(1, len(rows)):
        gap = difference(rows[0], rows[i])
        close = gap is not None and gap.verdict == "unclear"
        if (i == 1 or close) and (0, i) not in wanted and (i, 0) not in wanted:
            wanted.append((0, i))
    lines = []
    for i, j in wanted:
        gap = difference(rows[i], rows[j])
        if gap is not None:
            lines.append(
                {
                    "label": f"{names[i]} − {names[j]}",
                    "difference": points(gap.mean),
                    "interval": f"{points(gap.low)} … {points(gap.high)}",
                    "words": _IN_WORDS[gap.verdict],
                }
            )
    return lines


# --- the page -------------------------------------------------------------------------------------


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
    names = _names(rows)
    found = []
    for axis, fixed in (("pairs", "clients"), ("clients", "pairs")):
        held = sorted({row.get(fixed) or 0 for row in rows})
        for value in held:
            own = [row for row in rows if (row.get(fixed) or 0) == value]
            if len({row.get(axis) for row in own}) < 2:
                continue
            title = f"More {_UNITS[axis]}" + (f", with {value} {_UNITS[fixed]}" if len(held) > 1 else "")
            plot = plots.curves(_curves(own, axis, names), _UNITS[axis], salt=f"curves-{axis}-{value}")
            found.append({"title": title, "plot": plot})
    newcomers = _newcomers(rows, names)
    if newcomers:
        plot = plots.curves(newcomers, "choices of a newcomer", salt="curves-newcomers")
        found.append({"title": "People who came after the training, shared factors frozen", "plot": plot})
    return found


def _newcomers(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> list[plots.Curve]:
    """A line a method, where each has one row: accuracy of newcomers by their number of choices."""
    methods = [_method(row) for row in rows]
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
        own = sorted((row for row in rows if _method(row) == kind), key=lambda row: int(row[axis]))
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
            [list(_by_seed(row).values()) for row in rows],
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
