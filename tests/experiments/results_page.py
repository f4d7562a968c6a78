"""Puts figures into the docs: `python tests/experiments/results_page.py [--keep DIR NAME --command …]`.

`--keep DIR NAME --command COMMAND` first copies what `penchant compare --out DIR` wrote to
tests/experiments/results/compare-NAME.json, with the command that made it. Then every block in
docs/results.md and docs/results-history.md between ``<!-- compare NAME -->`` and ``<!-- end -->`` is
written anew from these files: command, table, paired differences with 95% intervals, what they say in
words; and the plots in docs/figures. A test holds the pages against the files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penchant.common.wording import decimals, points, size
from penchant.deploy.comparison.conclusions import (
    MethodRanking,
    conclusion,
    differences,
    headline,
    rankings_of,
)
from penchant.deploy.comparison.methods import head_of
from penchant.deploy.comparison.statistics import difference
from penchant.deploy.comparison.table import ComparisonRow, RunCost
from penchant.deploy.report import plots
from penchant.deploy.report.comparison_page import learning_curves
from penchant.server.charts.chart import Chart

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "experiments" / "results"
PAGE = ROOT / "docs" / "results.md"
HISTORY = ROOT / "docs" / "results-history.md"
PAGES = (PAGE, HISTORY)
FIGURES = ROOT / "docs" / "figures"

BLOCK = re.compile(r"<!-- compare ([\w-]+) -->\n.*?<!-- end -->", re.S)


def keep(directory: Path, name: str, command: str) -> None:
    """Copy a comparison's table, with the command that makes it again."""
    rows = json.loads((directory / "compare.json").read_text(encoding="utf-8"))
    made = {"command": command, "rows": rows}
    (RESULTS / f"compare-{name}.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"compare-{name}.json").read_text(encoding="utf-8"))
    return found


def rows_of(name: str) -> list[ComparisonRow]:
    """The table of a comparison."""
    return [ComparisonRow.from_dict(row) for row in load(name)["rows"]]


def page(text: str) -> str:
    """A page with every block written anew."""
    return BLOCK.sub(lambda found: block(found[1]), text)


def block(name: str) -> str:
    """One comparison in Markdown, between its marks."""
    groups = rankings_of(rows_of(name))
    lines = [f"**{headline(groups)}**", "", f"`{load(name)['command']}`", ""]
    lines += [f"![{figure[1]}](figures/{figure[0]})\n" for figure, _ in figures(name)]
    lines += _group(groups[0]) if len(groups) == 1 else _grid(groups)
    written = "\n".join([f"<!-- compare {name} -->", *lines, "<!-- end -->"])
    return written.replace("\u202f", " ")  # as the page's prose is written


def _group(group: MethodRanking) -> list[str]:
    """Methods at one setting: in words, as a table, and their differences."""
    words = [f"{sentence}\n" for sentence in conclusion(group)]
    table = [
        "| method | head | accuracy | seeds | rounds | sent a run |",
        "|---|---|---|---|---|---|",
        *(_row(row, name) for row, name in zip(group.rows, group.names, strict=True)),
        "",
    ]
    pairs = differences(group)
    compared = ["| difference, in points | mean | 95% interval | |", "|---|---|---|---|"] if pairs else []
    for line in pairs:
        compared.append(f"| {line.label} | {line.difference} | {line.interval} | {line.words} |")
    return [*words, *table, *compared, *([""] if compared else [])]


def _grid(groups: Sequence[MethodRanking]) -> list[str]:
    """Methods at several settings: a line a method, a column a setting; then each against everyone alone."""
    unit = groups[0].title.removeprefix(groups[0].value).strip()
    seeds = {len(row.seeds) for group in groups for row in group.rows}
    titles = " | ".join(group.value for group in groups)
    spoken = " to ".join(f"{count}" for count in sorted({min(seeds), max(seeds)}))
    names = list(dict.fromkeys(name for group in reversed(groups) for name in group.names))
    lines = [f"| {unit} ({spoken} seeds) | {titles} |", "|---" * (len(groups) + 1) + "|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(_cell(group, name) for group in groups)} |")
    alone = next((group.names[group.alone] for group in groups if group.alone is not None), "")
    for name in names:
        if name != alone and any(alone in group.names for group in groups):
            gaps = " | ".join(_gap(group, name, alone) for group in groups)
            lines.append(f"| *{name} − {alone}, points* | {gaps} |")
    return [*lines, ""]


def _cell(group: MethodRanking, name: str) -> str:
    if name not in group.names:
        return ""
    row = group.rows[group.names.index(name)]
    error = row.accuracy_se
    return f"{row.accuracy_mean:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def _gap(group: MethodRanking, one: str, other: str) -> str:
    """The paired difference with its 95% interval."""
    if one not in group.names or other not in group.names:
        return ""
    rows = [group.rows[group.names.index(name)] for name in (one, other)]
    gap = difference(*rows)
    return f"{points(gap.mean)} ({points(gap.low)} … {points(gap.high)})" if gap is not None else ""


def _row(row: ComparisonRow, name: str) -> str:
    cost = row.cost or RunCost()
    error = row.accuracy_se
    spread = f" ± {error:.3f}" if error is not None else ""
    return (
        f"| {name} | {head_of(row)} | {row.accuracy_mean:.3f}{spread} | {len(row.seeds)} | "
        f"{decimals(cost.rounds, 0)} | {size(cost.bytes_up)} |"
    )


def figures(name: str) -> list[tuple[tuple[str, str], str]]:
    """[((file, title), SVG)]: learning curves where something was varied, else every method's accuracy."""
    rows = rows_of(name)
    curves = learning_curves(rows)
    if curves:
        drawn: Sequence[Chart] = [curve.plot for curve in curves]
    else:
        (group,) = rankings_of(rows)
        seeds = [list(row.accuracies) for row in group.rows]
        means = [row.accuracy_mean for row in group.rows]
        errors = [row.accuracy_se for row in group.rows]
        drawn = [plots.comparison(group.names, means, errors, seeds)]
    return [
        ((f"compare-{name}{place or ''}.svg", chart.title), chart.svg()) for place, chart in enumerate(drawn)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", nargs=2, metavar=("DIR", "NAME"))
    parser.add_argument("--command", help="that made DIR")
    chosen = parser.parse_args()
    if bool(chosen.keep) != bool(chosen.command):
        parser.error("--keep and --command go together")
    if chosen.keep:
        keep(Path(chosen.keep[0]), chosen.keep[1], chosen.command)
    for path in PAGES:
        text = page(path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        for name in BLOCK.findall(text):
            for (file, _), svg in figures(name):
                (FIGURES / file).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
