"""The page of a comparison: which methods pay, by how much, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penchant.deploy import plots
from penchant.deploy.pages import (
    ALONE,
    ONE_FOR_ALL,
    Row,
    decimals,
    listed,
    method,
    percent,
    plain,
    points,
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
)


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


def page(rows: Sequence[Row], details: Row) -> dict[str, Any]:
    """Everything that comparison.html.j2 shows, as texts and a plot. The best method comes first."""
    ordered = sorted(rows, key=lambda row: -row["accuracy_mean"])
    names = _names(ordered)
    dataset = details.get("dataset")
    strap = [str(details[key]) for key in ("dataset", "base_model") if details.get(key)]
    return {
        "title": "penchant: which methods pay" + (f" on {dataset}" if dataset else ""),
        "strap": " · ".join(strap) or "comparison",
        "headline": _headline(ordered, names),
        "conclusion": _conclusion(ordered, names),
        "accuracy_text": "Same people, same choices, same budget for each method. Filled dots are means over "
        "seeds, the bar is one standard error to each side; rings are single seeds; dotted is guessing.",
        "plot": plots.comparison(
            names,
            [row["accuracy_mean"] for row in ordered],
            [row.get("accuracy_se") for row in ordered],
            [list(_by_seed(row).values()) for row in ordered],
        ),
        "rows": [_row(row, name) for row, name in zip(ordered, names, strict=True)],
        "has_cold": any(row.get("cold_start") is not None for row in ordered),
        "pairs": _pairs(ordered, names),
        "pairs_text": "Both methods of a line saw the same people with the same seed, so what a seed makes "
        "easy or hard for both cancels out. A point is one held-out pair in a hundred.",
        "facts": _facts(details),
        "caveats": list(details.get("caveats") or []),
        "command": details.get("command") or "",
        "version": version_of(details),
    }


def _names(rows: Sequence[Row]) -> list[str]:
    """A name for each row; with head and pairs, where the share alone doesn't tell rows apart."""
    names = [method(str(row["share"])) for row in rows]
    for key, text in (("head", "{} head"), ("pairs", "{} choices")):
        if len(set(names)) < len(names) and len({row.get(key) for row in rows}) > 1:
            names = [f"{name}, {text.format(row.get(key))}" for name, row in zip(names, rows, strict=True)]
    return names


def _first(rows: Sequence[Row], share: str) -> int | None:
    return next((i for i, row in enumerate(rows) if row["share"] == share), None)


def _headline(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Does sharing with a personal part pay against everyone alone?"""
    personal = next((i for i, row in enumerate(rows) if row["share"] not in (ALONE, ONE_FOR_ALL)), None)
    alone = _first(rows, ALONE)
    if personal is None or alone is None:
        return f"Best: {names[0]}, {percent(rows[0]['accuracy_mean'])} of held-out choices."
    gap = difference(rows[personal], rows[alone])
    if gap is None:
        return "Too few seeds to say which method pays."
    share = rows[personal]["share"]
    return {
        "better": f"Sharing {share} and keeping the rest personal pays.",
        "worse": "Sharing does harm here: everyone alone does better.",
        "unclear": f"Sharing {share} shows no clear gain over everyone alone.",
    }[gap.verdict]


def _conclusion(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """In plain words: the best, what it gains, and where sharing does not help."""
    best = rows[0]
    error = best.get("accuracy_se")
    spread = f" ± {100 * error:.1f}" if error is not None else ""
    mean = f"{100 * best['accuracy_mean']:.1f}{spread}%"
    first = f"“{names[0]}” does best: {mean} of held-out choices ranked right."
    sentences = [first]
    for share in (ALONE, ONE_FOR_ALL):
        other = _first(rows, share)
        if other is not None and other != 0:
            sentences.append(_gain(best, rows[other], method(share)))
    alone = _first(rows, ALONE)
    return [" ".join(sentences), *(_no_help(rows, names, alone) if alone is not None else [])]


def _gain(best: Row, other: Row, words: str) -> str:
    gap = difference(best, other)
    if gap is None:
        by = points(best["accuracy_mean"] - other["accuracy_mean"])
        return f"Against {words} that is {by} points, from too few seeds to say that it is no chance."
    return (
        f"Against {words} that is {points(gap.mean)} points, {_IN_WORDS[gap.verdict]} "
        f"(95% interval {points(gap.low)} to {points(gap.high)}, {gap.seeds} seeds)."
    )


def _no_help(rows: Sequence[Row], names: Sequence[str], alone: int) -> list[str]:
    """One sentence for each kind of method that does not beat everyone alone."""
    found: dict[str, list[str]] = {"worse": [], "unclear": []}
    for row, name in zip(rows, names, strict=True):
        gap = difference(row, rows[alone])
        if row is not rows[alone] and gap is not None and gap.verdict in found:
            found[gap.verdict].append(f"“{name}” ({points(gap.mean)} points)")
    starts = {
        "worse": "Clearly worse than everyone alone",
        "unclear": "Not clearly better",
    }
    return [f"{starts[verdict]}: {listed(methods)}." for verdict, methods in found.items() if methods]


def _pairs(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, str]]:
    """Each method against everyone alone, each against one model for all, and the best two."""
    wanted: list[tuple[int, int]] = []
    for share in (ALONE, ONE_FOR_ALL):
        other = _first(rows, share)
        if other is not None:
            wanted += [(i, other) for i in range(len(rows)) if i != other and (other, i) not in wanted]
    if len(rows) > 1 and (0, 1) not in wanted:
        wanted.append((0, 1))
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


def _row(row: Row, name: str) -> dict[str, str]:
    seeds = row.get("seeds")
    error = row.get("accuracy_se")
    return {
        "label": name,
        "head": plain(row.get("head")),
        "seeds": f"{len(seeds)}" if isinstance(seeds, list | tuple) else plain(seeds),
        "accuracy": f"{row['accuracy_mean']:.3f}",
        "error": f"± {error:.3f}" if error is not None else "–",
        "cold": decimals(row.get("cold_start"), 3),
        "seconds": decimals(row.get("wall_seconds"), 0),
    }


def _facts(details: Row) -> list[tuple[str, str]]:
    facts = [(label, str(details[key])) for key, label in _FACTS if details.get(key) is not None]
    if details.get("secagg") is not None:
        facts.append(("Secure aggregation", "on" if details["secagg"] else "OFF"))
    return facts
