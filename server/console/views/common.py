"""The console's pages, each a function of a `ConsoleRequest`, from what run_history and operations tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from penchant.common import wording
from penchant.common.secagg.update_vector import CORRECT, LOSS, TOTAL, WEIGHT
from penchant.server.console import charts
from penchant.server.console.requests import ConsoleContext, ConsoleRequest, HTTPError
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

Fragments = Mapping[str, str]


# --- what pages share -----------------------------------------------------------------------------


def all_runs(context: ConsoleContext) -> list[RunSummary]:
    """The facts of every run: running ones first, then by their latest change; what can't be read last."""
    locations = context.operations.locations()
    activity = context.operations.activity(locations)
    found = [summary_of(location, activity[location.id]) for location in locations]
    return sorted(found, key=lambda run: (run.state == "damaged", run.state != "running", -run.touched))


def location_of(context: ConsoleContext, wanted: str) -> RunLocation:
    """The run with this id. Refused when there is none: an id is looked up, never made into a path."""
    for location in context.operations.locations():
        if location.id == wanted:
            return location
    raise HTTPError("There is no such run. It may have been deleted.", status=404)


def run_of(context: ConsoleContext, wanted: str) -> RunSummary:
    """Its facts."""
    location = location_of(context, wanted)
    return summary_of(location, context.operations.activity([location])[location.id])


def chosen(request: ConsoleRequest) -> tuple[list[RunSummary], RunSummary | None]:
    """All runs, and the one that a page is about: the one asked for, or the first."""
    found = all_runs(request.context)
    wanted = request.asked("run")
    if not wanted:
        return found, found[0] if found and found[0].state != "damaged" else None
    for run in found:
        if run.location.id == wanted:
            return found, run
    raise HTTPError("There is no such run. It may have been deleted.", status=404)


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
    known = [one.accuracy for one in run.measured if one.accuracy is not None]
    return charts.spark(known, f"accuracy of {run.location.name} by round")


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
