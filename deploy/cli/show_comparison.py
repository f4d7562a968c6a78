"""A comparison for people at a terminal: progress while it works, then a table and what it means."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from penchant.common.config import RunConfig
from penchant.common.printable import one_line
from penchant.common.wording import decimals, size
from penchant.deploy.cli.drawing import Drawing, note, plain_column, unmasked_warning
from penchant.deploy.comparison import conclusions
from penchant.deploy.comparison.cases import Case
from penchant.deploy.comparison.runner import PAGE, TABLE, Comparison, ComparisonProgress, compare
from penchant.deploy.comparison.table import ComparisonDetails, RunCost
from penchant.deploy.report import PAGES
from penchant.deploy.simulation.result import RunResult
from penchant.server.journal import RoundLog

__all__ = ["compare_and_show", "show_comparison"]


class ComparisonBars(ComparisonProgress):
    """Two bars, for the cases and for the rounds of the one that runs; and a line a finished case."""

    def __init__(self, console: Drawing) -> None:
        self._console = console
        self._bars = Bars(
            plain_column("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._cases = self._bars.add_task("cases", total=None)
        self._case = self._bars.add_task("", total=None)
        self._place = ""

    def __enter__(self) -> ComparisonBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, case: Case, number: int, cases: int) -> None:
        """As `ComparisonProgress.begin`."""
        self._place = f"{number}/{cases}"
        self._bars.update(self._cases, completed=number - 1, total=cases)
        self._bars.reset(self._case, description=one_line(case.name), completed=0, total=None)

    def round(self, log: RoundLog, last: int) -> None:
        """As `Progress.round`."""
        self._bars.update(self._case, completed=log.round, total=last)

    def end(self, case: Case, result: RunResult) -> None:
        """As `ComparisonProgress.end`."""
        self._bars.advance(self._cases)
        seconds = decimals(result.wall_seconds, 0)
        self._console.print(f"{self._place} {one_line(case.name)}: {result.accuracy:.3f} in {seconds} s")


def compare_and_show(configs: Sequence[RunConfig], directory: Path) -> None:
    """Run, resume or read the comparison of `directory`, and print its table and conclusions."""
    console = Drawing()
    errors = Drawing(stderr=True)
    if not all(config.privacy.secagg for config in configs):
        errors.print(unmasked_warning())
    with ComparisonBars(console) as drawn:
        command = shlex.join(["penchant", *sys.argv[1:]])
        found = compare(configs, directory, drawn, command=command, pages=PAGES)
    for line in found.details.caveats:
        errors.print(note(line))
    show_comparison(found, directory, console)


def show_comparison(found: Comparison, directory: Path, console: Drawing | None = None) -> None:
    """The table, the paired differences, and in words what they mean."""
    console = console or Drawing()
    rankings = conclusions.rankings_of(found.rows)
    for ranking in rankings:
        console.print(_accuracies(ranking, found.details))
        console.print(_differences(ranking))
    console.print(one_line(conclusions.headline(rankings)), style="bold")
    for ranking in rankings:
        for sentence in conclusions.conclusion(ranking):
            console.print(one_line(sentence))
    console.print(one_line(f"{directory / TABLE}  {directory / PAGE}"), soft_wrap=True)


def _accuracies(ranking: conclusions.MethodRanking, details: ComparisonDetails) -> Table:
    about = [details.dataset, details.base_model, ranking.title]
    table = Table(
        title=one_line(", ".join(part for part in about if part)),
        title_justify="left",
        caption="rounds, client calls (one client's training in one round), bytes that all clients sent, and "
        "seconds are those of one run",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("method", style="bold")
    table.add_column("accuracy ± s.e.", justify="right", no_wrap=True)
    for name in ("seeds", "rounds", "calls", "sent", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in zip(ranking.names, ranking.rows, strict=True):
        error, cost = row.accuracy_se, row.cost or RunCost()
        table.add_row(
            one_line(name),
            f"{row.accuracy_mean:.3f}" + ("" if error is None else f" ± {error:.3f}"),
            f"{len(row.seeds)}",
            decimals(cost.rounds, 0),
            decimals(cost.client_calls, 0),
            size(cost.bytes_up),
            decimals(cost.wall_seconds, 0),
        )
    return table


def _differences(ranking: conclusions.MethodRanking) -> Table | str:
    lines = conclusions.differences(ranking)
    if not lines:
        return "Differences need at least two seeds, the same ones for two methods at least."
    table = Table(title="seed by seed, in percentage points", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("difference", style="bold")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("in words", no_wrap=True)
    for line in lines:
        table.add_row(one_line(line.label), line.difference, line.interval, line.words)
    return table
