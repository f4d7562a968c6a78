"""A run at a terminal, with the facts of the console: `penchant server status`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penchant.common import wording
from penchant.common.printable import one_line
from penchant.deploy import run_directory
from penchant.deploy.cli.drawing import Drawing
from penchant.deploy.fleet.run_activity import activity_of
from penchant.server.monitoring import labels
from penchant.server.monitoring.run_history import (
    Activity,
    AttemptRecord,
    JournalReader,
    Kind,
    RunLocation,
    RunSummary,
    Stage,
    summary_of,
)

__all__ = ["run_facts", "show_run"]

SHOWN = 20  # attempts, the latest; --json has all
WIDE = 32
_COLOURS = {"running": "green", "finished": "green", "failed": "red", "damaged": "red", "stopped": "yellow"}
_BLOCKS = " ▁▂▃▄▅▆▇█"


def run_facts(directory: Path) -> RunSummary:
    """The facts of a run's directory, a simulation's or a served run's."""
    kind: Kind = "served" if run_directory.is_served(directory) else "simulation"
    location = RunLocation(directory.name, one_line(directory.absolute().name), directory, kind)
    activity = activity_of(directory) if kind == "served" else Activity(running=run_directory.busy(directory))
    return summary_of(location, activity)


def show_run(run: RunSummary, console: Drawing | None = None) -> None:
    """Print how far it is, the stage that it is in, what it learned, and its last attempts."""
    console = console or Drawing()
    console.print(_heading(run))
    if run.config is None:
        return
    console.print(_figures(run))
    if run.open is not None:
        stages = JournalReader(run.location.directory).stages(run.open.round, run.open.attempt)
        console.print(Text(f"round {run.open.round}, attempt {run.open.attempt}: {_stages(stages)}"))
    if run.attempts:
        console.print(_attempts(run.attempts))
    earlier = len(run.attempts) - SHOWN
    if earlier > 0:
        console.print(f"{earlier} earlier; --json has all")


def _heading(run: RunSummary) -> RenderableType:
    colour = _COLOURS.get(run.state, "white")
    line = Text.assemble((one_line(run.location.name), "bold"), "  ", (labels.state(run.state), colour))
    if run.total:
        line.append(f"  {run.settled} of {run.total} rounds")
    if run.remaining is not None:
        line.append(f", about {wording.duration(run.remaining)} to go")
    if run.why:
        line.append(f"\n{one_line(run.why)}")
    if not run.total:
        return line
    return Group(line, ProgressBar(run.total, run.settled, width=WIDE), Text())


def _figures(run: RunSummary) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    lost = run.lost_part
    rows: list[tuple[str, str]] = [
        ("fleet accuracy", wording.percent(run.accuracy)),
        ("training loss", wording.decimals(run.loss)),
        ("devices met", str(JournalReader(run.location.directory).count_devices())),
        ("lost in ten rounds", f"{wording.percent(lost)}: {labels.lost(run.dropped)}" if lost else "nobody"),
        ("secure aggregation", "on" if run.config and run.config.privacy.secagg else "OFF"),
        ("privacy", _privacy(run)),
    ]
    if run.histogram is not None:
        rows.insert(1, ("people by accuracy", _histogram(run.histogram[1])))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _privacy(run: RunSummary) -> str:
    figures = JournalReader(run.location.directory).privacy()
    if figures is None:
        return "no noise: sums are exact"
    return " ".join(filter(None, (figures.words(len(run.attempts)), figures.caveat)))


def _histogram(people: list[int]) -> str:
    """``0% ▁▂█▃ 100%``, one block for each tenth."""
    most = max(*people, 1)
    blocks = "".join(_BLOCKS[-(-n * (len(_BLOCKS) - 1) // most)] for n in people)
    return f"0% {blocks} 100%"


def _stages(stages: Sequence[Stage]) -> str:
    parts = [f"{labels.stage(s.name).lower()} {s.answered}/{s.asked}" for s in stages]
    return " → ".join(parts) or "announced"


def _attempts(attempts: Sequence[AttemptRecord]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("round", "phase", "state", "clients", "loss", "accuracy", "sent", "took", "lost, or why"):
        left = name in ("phase", "state", "lost, or why")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "lost, or why")
    for attempt in attempts[-SHOWN:]:
        table.add_row(*_row(attempt))
    return table


def _row(attempt: AttemptRecord) -> tuple[str, ...]:
    number = f"{attempt.round}.{attempt.attempt}" if attempt.attempt > 1 else str(attempt.round)
    head = (number, labels.phase(attempt.phase), attempt.state)
    log = attempt.log
    if log is None:
        return (*head, "", "", "", "", "", one_line(attempt.why or ""))
    return (
        *head,
        f"{log.survivors}/{log.cohort}",
        wording.decimals(log.train_loss),
        wording.percent(log.val_accuracy),
        wording.size(log.bytes_up),
        wording.duration(log.seconds),
        "; ".join([labels.lost(log.dropped), *map(one_line, labels.left_out(log.failed))]),
    )
