"""A run at a terminal, with the facts of the console: `penchant server status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from penchant.server.measured import Measurement
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
from penchant.server.privacy_figures import not_begun

__all__ = ["run_facts", "show_run"]

SHOWN = 20  # attempts, the latest; --json has all
WIDE = 32
ROOM = 110  # columns of a terminal from which on why a round lost devices has a column of its own
_COLOURS = {"running": "green", "finished": "green", "failed": "red", "damaged": "red", "stopped": "yellow"}
_BLOCKS = " ▁▂▃▄▅▆▇█"


def run_facts(directory: Path, *, whole: bool = True) -> RunSummary:
    """The facts of a run's directory, a simulation's or a served run's; `whole` as of `summary_of`."""
    kind: Kind = "served" if run_directory.is_served(directory) else "simulation"
    location = RunLocation(directory.name, one_line(directory.absolute().name), directory, kind)
    activity = activity_of(directory) if kind == "served" else Activity(running=run_directory.busy(directory))
    return summary_of(location, activity, whole=whole)


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
        for part in _attempts(run, roomy=console.width >= ROOM):
            console.print(part)
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
        ("fleet accuracy", _accuracy(run)),
        ("training loss", wording.decimals(run.loss)),
        ("devices seen", str(JournalReader(run.location.directory).count_devices())),
        (
            "devices lost, last ten rounds",
            f"{wording.percent(lost)}: {labels.lost(run.dropped)}" if lost else "nobody",
        ),
        ("secure aggregation", "on" if run.config and run.config.privacy.secagg else "OFF"),
        ("privacy", _privacy(run)),
    ]
    if run.histogram is not None:
        rows.insert(1, ("people by accuracy", _histogram(run.histogram[1])))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _accuracy(run: RunSummary) -> str:
    """``67.1%, after round 12``."""
    if run.accuracy is None:
        return wording.percent(None)
    return f"{wording.percent(run.accuracy)}, {labels.after_round(run.accuracy_after)}"


def _privacy(run: RunSummary) -> str:
    figures = JournalReader(run.location.directory).privacy()
    if figures is None:
        return not_begun(run.config)
    return " ".join(filter(None, (figures.words(run.tried), figures.caveat)))


def _histogram(people: list[int]) -> str:
    """``0% ▁▂█▃ 100%``, one block for each tenth."""
    most = max(*people, 1)
    blocks = "".join(_BLOCKS[-(-n * (len(_BLOCKS) - 1) // most)] for n in people)
    return f"0% {blocks} 100%"


def _stages(stages: Sequence[Stage]) -> str:
    parts = [f"{labels.stage(s.name).lower()} {s.answered}/{s.asked}" for s in stages]
    return " → ".join(parts) or "announced"


def _attempts(run: RunSummary, *, roomy: bool) -> Iterator[RenderableType]:
    """The last attempts, and who was lost or why one failed: beside each, or below all where there is no
    room."""
    table = Table(box=None, pad_edge=False)
    measured = run.by_round
    shown = [(_row(one, measured.get(one.round)), _why(one)) for one in run.attempts[-SHOWN:]]
    for name in ("round", "phase", "state", "clients", "loss after", "accuracy after", "sent", "took"):
        table.add_column(name, justify="left" if name in ("phase", "state") else "right", no_wrap=True)
    if roomy:
        table.add_column("lost, or why")
    for row, why in shown:
        table.add_row(*row, *[why] * roomy)
    yield table
    if not roomy:
        yield from (Text(f"{row[0]}: {why}") for row, why in shown if why not in ("", labels.lost({})))


def _row(attempt: AttemptRecord, measured: Measurement | None) -> tuple[str, ...]:
    number = f"{attempt.round}.{attempt.attempt}" if attempt.attempt > 1 else str(attempt.round)
    head = (number, labels.phase(attempt.phase), attempt.state)
    log = attempt.log
    if log is None:
        return (*head, "", "", "", "", "")
    return (
        *head,
        f"{log.survivors}/{log.cohort}",
        wording.decimals(measured.train_loss if measured else None),
        wording.percent(measured.accuracy if measured else None),
        wording.size(log.bytes_up),
        wording.duration(log.seconds),
    )


def _why(attempt: AttemptRecord) -> str:
    """Who was lost where, or why it failed; empty where nothing is known."""
    log = attempt.log
    if log is None:
        return one_line(attempt.why or "")
    return "; ".join([labels.lost(log.dropped), *map(one_line, labels.left_out(log.failed))])
