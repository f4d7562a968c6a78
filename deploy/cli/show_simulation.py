"""A simulation for people at a terminal: progress while it works, a table at the end."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from penchant.common.config import RunConfig
from penchant.deploy import run_directory
from penchant.deploy.cli.errors import on_interrupt
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import Progress, SimulationSetup, prepare
from penchant.server.journal import RoundLog

__all__ = ["ProgressBars", "run_and_show", "show_result"]


class ProgressBars(Progress):
    """Progress as a bar with the last round's figures."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=False,
        )
        self._console = console
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, text: str) -> None:
        """As `Progress.stage`."""
        if self._task is None:
            self._task = self._bars.add_task(text, total=None, figures="")
        else:
            self._bars.update(self._task, description=text)

    def round(self, log: RoundLog, last: int) -> None:
        """As `Progress.round`."""
        figures = [f"{log.survivors}/{log.cohort} clients"]
        if log.train_loss is not None:
            figures.append(f"loss {log.train_loss:.3f}")
        if log.val_accuracy is not None:
            figures.append(f"validation {log.val_accuracy:.1%}")
        if self._task is not None:
            self._bars.update(self._task, completed=log.round, total=last, figures=", ".join(figures))
        if not self._console.is_terminal and (log.round % 10 == 0 or log.round == last):
            self._console.print(f"round {log.round}/{last}: {', '.join(figures)}, {log.seconds:.1f} s")


def run_and_show(config: RunConfig, directory: Path, world: SimulationSetup | None = None) -> None:
    """Run or resume the federation of `directory`, and print its result."""
    console = Console(highlight=False)
    result = run_directory.read_result(directory)
    if result is None:
        with on_interrupt(f"go on with --resume {directory}"):
            result = _run(config, directory, world, console)
    show_result(result, directory, console)


def _run(
    config: RunConfig, directory: Path, world: SimulationSetup | None, console: Console
) -> dict[str, Any]:
    with run_directory.claim(directory):
        pass  # refuse at once where another process works: what follows takes seconds
    world = world or prepare(config)
    errors = Console(stderr=True, highlight=False)
    for line in world.caveats():
        errors.print(f"[yellow]note:[/] {line}" if config.privacy.secagg else f"[red]note:[/] {line}")
    if not config.privacy.secagg:
        errors.print(
            "[bold red]WITHOUT SECURE AGGREGATION:[/] every update goes to the server in clear, and an "
            "update tells much about the choices behind it. Simulated people only."
        )
    with ProgressBars(console) as drawn:
        return simulate(world, directory, drawn)


def show_result(result: dict[str, Any], directory: Path, console: Console | None = None) -> None:
    """The table of a finished run."""
    console = console or Console(highlight=False)
    scores = sorted(row["accuracy"] for row in result["per_client"])
    log = result["rounds_log"]
    table = Table(
        title=f"{result['dataset']}, {result['base_model']}, share {result['share']}", title_justify="left"
    )
    table.add_column("what", style="bold")
    table.add_column("value", justify="right")
    spread = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    rows = [
        ("people, and choices of each", f"{result['clients']}, {result['pairs']}"),
        (
            f"personal accuracy ({result.get('evaluated_on', 'test')}, mean over people)",
            f"{result['accuracy']['personal']:.3f} ± {spread:.3f}",
        ),
        ("  worst, median, best person", " ".join(f"{s:.2f}" for s in _quantiles(scores))),
        ("rounds, seed", f"{result['rounds']}, {result['seed']}"),
        ("secure aggregation", "on" if result["secagg"] else "OFF"),
    ]
    if log:
        up = statistics.mean(row["bytes_up"] / row["cohort"] for row in log)
        rows.append(("a client's upload a round", f"{up / 1000:.1f} kB"))
    rows.append(("time, peak memory", f"{result['wall_seconds']:.0f} s, {result['peak_rss_mb']:.0f} MB"))
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    console.print(f"{directory / run_directory.RESULT}  {directory / 'report.html'}", soft_wrap=True)


def _quantiles(scores: list[float]) -> tuple[float, float, float]:
    return scores[0], statistics.median(scores), scores[-1]
