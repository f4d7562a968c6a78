"""A simulation for people at a terminal: progress while it works, a table at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from penchant.common.config import RunConfig
from penchant.common.errors import RoundFailed
from penchant.common.printable import one_line
from penchant.common.wording import counted, percent
from penchant.deploy import run_directory
from penchant.deploy.cli.drawing import Drawing, note, plain_column, unmasked_warning
from penchant.deploy.cli.errors import on_interrupt
from penchant.deploy.earlier_round import begun_with
from penchant.deploy.report import write_report
from penchant.deploy.run_inputs import refuse_edited
from penchant.deploy.simulation.models import RunModels
from penchant.deploy.simulation.person_scores import FEW, AccuracySpread
from penchant.deploy.simulation.race import RacePlan
from penchant.deploy.simulation.race_record import Race
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import REPORT, simulate
from penchant.deploy.simulation.served import NOT_KNOWN
from penchant.deploy.simulation.world import Progress, SimulationSetup, prepare
from penchant.server.journal import RoundLog

__all__ = ["ProgressBars", "race_and_show", "run_and_show", "show_result"]


class ProgressBars(Progress):
    """Progress as a bar with the last round's figures."""

    def __init__(self, console: Drawing) -> None:
        self._bars = Bars(
            plain_column("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            plain_column("{task.fields[figures]}"),
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
            figures.append(f"loss before it {log.train_loss:.3f}")
        if log.val_accuracy is not None:
            figures.append(f"validation before it {percent(log.val_accuracy)}")
        if self._task is not None:
            self._bars.update(self._task, completed=log.round, total=last, figures=", ".join(figures))
        if not self._console.is_terminal and (log.round % 10 == 0 or log.round == last):
            self._console.print(f"round {log.round}/{last}: {', '.join(figures)}, {log.seconds:.1f} s")


def run_and_show(config: RunConfig, directory: Path, world: SimulationSetup | None = None) -> RunModels:
    """Run or resume the federation of `directory`, and print its result; -> the models that it left."""
    console = Drawing()
    result = RunResult.read(directory)
    if result is None:
        with on_interrupt(f"go on with --resume {directory}"):
            with run_directory.claim(directory):
                pass  # refuse at once where another process works: what follows takes seconds
            world = world or prepare(config, start=begun_with(directory))
            with _told_of_dropouts(config, directory):
                result = _run(config, directory, world, console)
    else:
        refuse_edited(directory, config, result.clients)
    show_result(result, directory, console)
    return RunModels(directory, world)


def race_and_show(plan: RacePlan, directory: Path) -> RunModels:
    """Race, or go on racing, in `directory`, run what has won there, and print its result; -> the models that
    it left."""
    with on_interrupt(f"go on with --resume {directory}"):
        errors = Drawing(stderr=True)
        errors.print(note(f"{plan.cost}."))
        with ProgressBars(Drawing()) as drawn, _told_of_dropouts(plan.asked, directory):
            world = plan.run(directory, drawn)
    return run_and_show(world.config, directory, world)


@contextmanager
def _told_of_dropouts(config: RunConfig, directory: Path) -> Iterator[None]:
    """Inside this block, a round that fails says what to do about devices that the simulation silences."""
    try:
        yield
    except RoundFailed as error:
        if config.federation.dropout:
            error.on_command_line = (
                f"{error}; --dropout {config.federation.dropout:g} silences so many: go on with --resume "
                f"{directory}, which draws anew, or begin anew with a smaller --dropout, more --attempts or "
                "a larger --cohort"
            )
        raise


def _run(config: RunConfig, directory: Path, world: SimulationSetup, console: Drawing) -> RunResult:
    errors = Drawing(stderr=True)
    for line in world.caveats():
        errors.print(note(line, "yellow" if config.privacy.secagg else "red"))
    if not config.privacy.secagg:
        errors.print(unmasked_warning())
    with ProgressBars(console) as drawn:
        return simulate(world, directory, drawn, write_report=write_report)


def show_result(result: RunResult, directory: Path, console: Drawing | None = None) -> None:
    """The table of a finished run."""
    console = console or Drawing()
    title = one_line(f"{result.dataset}, {result.base_model}, share {result.share}")
    table = Table(title=title, title_justify="left")
    table.add_column("what", style="bold")
    table.add_column("value", justify="right")
    for name, value in _rows(result):
        table.add_row(name, value)
    console.print(table)
    if result.why_not_served:
        console.print(one_line(f"{NOT_KNOWN}: {result.why_not_served}."))
    where = one_line(f"{directory / run_directory.RESULT}  {directory / REPORT}")
    console.print(where, soft_wrap=True)


def _rows(result: RunResult) -> Iterator[tuple[str, str]]:
    scores = sorted(result.per_person.values())
    error = f" ± {statistics.stdev(scores) / len(scores) ** 0.5:.3f}" if len(scores) > 1 else ""
    yield "people, and choices of each", f"{result.clients}, {result.given}"
    yield (
        f"personal accuracy ({one_line(result.evaluated_on)}, mean over people)",
        f"{result.accuracy:.3f}{error}",
    )
    if scores:
        yield "  worst, median, best person", " ".join(f"{s:.2f}" for s in _quantiles(scores))
    yield from _spread_rows(result.spread)
    if result.served is not None:
        yield "with everybody's model alone", f"{result.served.accuracy:.3f}"
        yield "  one's own is, beyond noise", result.served.words()
    if result.models_in_use is not None:
        yield "models that devices chose", result.models_in_use.words()
    if result.race is not None:
        yield from _race_rows(result.race)
    yield "rounds, seed", f"{result.rounds}, {result.seed}"
    yield "secure aggregation", "on" if result.secagg else "OFF"
    yield "differential privacy of a deployment", _dp(result)
    sent = [row.upload for row in result.rounds_log if row.upload is not None]
    if sent:
        yield "a client's upload a round", f"{statistics.mean(sent) / 1000:.1f} kB"
    if result.wall_seconds is not None and result.peak_rss_mb is not None:
        yield "time, peak memory", f"{result.wall_seconds:.0f} s, {result.peak_rss_mb:.0f} MB"


def _race_rows(race: Race) -> Iterator[tuple[str, str]]:
    """What a race chose, among what, by which counts."""
    yield "chosen by a race, held-out choices", one_line(race.chosen)
    for one in race.entrants:
        yield f"  {one_line(one.name)}", one_line(one.told)
    yield "  rounds of those that lost", f"{race.rounds}"
    if race.epsilon is not None and race.epsilon_left is not None:
        yield "  epsilon of the race, of the run", f"{race.epsilon:.3g}, {race.epsilon_left:.3g}"


def _spread_rows(spread: AccuracySpread | None) -> Iterator[tuple[str, str]]:
    """For whom the mean says what is true."""
    if spread is None:
        return
    if spread.interval is not None:
        yield "  95% interval, people drawn anew", _from_to(spread.interval)
    yield "  worst tenth of the people", f"{spread.worst_tenth:.3f}"
    within = "" if spread.pairs_interval is None else f" ({_from_to(spread.pairs_interval)})"
    yield "of all test pairs together", f"{spread.over_pairs:.3f}{within}"
    if spread.well_tested is not None:
        mean, people = spread.well_tested
        yield f"  people with {FEW} test pairs or more", f"{mean:.3f}, {people} people"
    for group in spread.groups:
        yield f"  people with {group.least} to {group.most} choices", f"{group.accuracy:.3f}, {group.people}"


def _from_to(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _dp(result: RunResult) -> str:
    """What a fleet of real devices would have been promised that takes part as these did."""
    if result.dp is None:
        return "none: sums are exact"
    return f"{result.dp.words()}; each person in {counted(result.dp.participations, 'sum')} at most"


def _quantiles(scores: list[float]) -> tuple[float, float, float]:
    return scores[0], statistics.median(scores), scores[-1]
