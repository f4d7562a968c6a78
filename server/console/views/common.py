"""The console's pages, each a function of a `ConsoleRequest`, from what run_history and operations tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from markupsafe import Markup

from penchant.common import wording
from penchant.common.secagg.update_vector import CORRECT, LOSS, TOTAL, WEIGHT
from penchant.server.console import charts
from penchant.server.console.operations import RunOperations
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.measured import Measurement
from penchant.server.monitoring import labels
from penchant.server.monitoring.run_history import RunLocation, RunSummary, summary_of

MOST_COMPARED = 6
COUNTERS = {
    WEIGHT: "how many choices were learned from, over all",
    LOSS: "training loss, added up",
    CORRECT: "held-out choices ranked right, over all",
    TOTAL: "held-out choices, over all",
}

T = TypeVar("T")


# --- what pages share -----------------------------------------------------------------------------


def all_runs(operations: RunOperations) -> list[RunSummary]:
    """The facts of every run: running ones first, then by their latest change; what can't be read last."""
    locations = operations.locations()
    activity = operations.activity(locations)
    found = [
        summary_of(location, activity[location.id], whole=activity[location.id].running)
        for location in locations
    ]
    return sorted(found, key=lambda run: (run.state == "damaged", run.state != "running", -run.touched))


def location_of(operations: RunOperations, wanted: str) -> RunLocation:
    """The run with this id. Refused when there is none: an id is looked up, never made into a path."""
    for location in operations.locations():
        if location.id == wanted:
            return location
    raise HTTPError("There is no such run. It may have been deleted.", status=404)


def run_of(operations: RunOperations, wanted: str) -> RunSummary:
    """Its facts."""
    location = location_of(operations, wanted)
    return summary_of(location, operations.activity([location])[location.id])


def chosen(request: ConsoleRequest) -> tuple[list[RunSummary], RunSummary | None]:
    """All runs, and the one that a page is about, read whole: the one asked for, or the first that can be."""
    found = all_runs(request.operations)
    if request.asked("run"):
        return found, run_of(request.operations, request.asked("run"))
    whole = (summary_of(run.location, run.activity) for run in found)
    return found, next((run for run in whole if run.state != "damaged"), None)


@dataclass(frozen=True)
class ListPage(Generic[T]):
    """One page of a list: its rows, which page it is (from 1), of how many, and how many rows there are."""

    rows: Sequence[T]
    number: int
    pages: int
    count: int


def paged(request: ConsoleRequest, rows: Sequence[T], each: int) -> ListPage[T]:
    """The page of a list that is asked for with `page`; the last one where there are fewer."""
    pages = max(-(-len(rows) // each), 1)
    number = min(max(whole_number(request.asked("page", "1"), "page"), 1), pages)
    return ListPage(rows[(number - 1) * each : number * each], number, pages, len(rows))


def whole_number(text: str, what: str) -> int:
    """A whole number from a form or an address. Refused for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise HTTPError(f"{what} must be a whole number", status=422)
    return int(text)


def curve(run: RunSummary, value: Callable[[Any], float | None]) -> list[tuple[float, float | None]]:
    """(round, value) of every finished round."""
    return [(float(log.round), value(log)) for log in run.logs]


def measured_curve(
    run: RunSummary, value: Callable[[Measurement], float | None]
) -> list[tuple[float, float | None]]:
    """(round, value) of the factors that each round ended with; 0: those that the run began with."""
    return [(float(one.after), value(one)) for one in run.measured]


def accuracy_spark(run: RunSummary) -> Markup:
    """The accuracy of a run as a small line in a table."""
    return charts.spark(run.accuracies, f"accuracy of {run.location.name} by round")


def accuracy_chart(run: RunSummary, height: int = 220) -> Markup:
    """How well choices that no model learned from are ranked, by round."""
    return charts.lines(
        [charts.Series("Fleet accuracy", measured_curve(run, lambda one: one.accuracy))],
        title="Fleet accuracy on held-out choices",
        x_label="after round",
        text=lambda y: wording.percent(y, 0 if round(100 * y, 6) % 1 == 0 else 1),
        reference=(0.5, "guessing"),
        height=height,
    )


def loss_chart(run: RunSummary, height: int = 220) -> Markup:
    """Training loss by round."""
    return charts.lines(
        [charts.Series("Training loss", measured_curve(run, lambda one: one.train_loss), 2)],
        title="Training loss, mean over choices",
        x_label="after round",
        text=lambda y: f"{y:.3g}",
        height=height,
    )


def histogram_chart(run: RunSummary) -> Markup | None:
    """People per tenth of accuracy in the latest round that reports it; None where none does."""
    found = run.histogram
    if found is None:
        return None
    return charts.bars(
        [float(n) for n in found[1]],
        [f"{10 * i}–{10 * i + 10}" for i in range(len(found[1]))],
        title=f"People by their accuracy, {labels.after_round(found[0])}",
        text=lambda n: wording.whole(n),
        axis="percent of their own held-out choices ranked right",
    )
