"""All runs: the list, and some of them compared."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from penchant.common import wording
from penchant.common.settings import dotted_table
from penchant.server.console import charts
from penchant.server.console.operations import FleetOperations
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import (
    MOST_COMPARED,
    accuracy_spark,
    all_runs,
    measured_curve,
    paged,
    run_of,
    whole_number,
)
from penchant.server.console.views.devices import fleet_named
from penchant.server.monitoring.fleet import QueuedRun
from penchant.server.monitoring.run_history import RunLocation, RunSummary

__all__ = ["compare", "dequeue", "move", "retry", "runs"]
RUNS_A_PAGE = 50


def runs(request: ConsoleRequest) -> Response:
    """All runs, a page of them at a time."""
    listed = paged(request, all_runs(request.operations), RUNS_A_PAGE)
    sparks = {run.location.id: accuracy_spark(run) for run in listed.rows}
    return request.render("runs.html.j2", listed=listed, sparks=sparks, queues=_queues(request))


def _queues(request: ConsoleRequest) -> list[tuple[RunLocation, Sequence[QueuedRun]]]:
    """(fleet, runs that wait) of each fleet in which some do."""
    operations = request.operations
    found = [(fleet, operations.fleet(fleet).queue()) for fleet in operations.fleets()]
    return [(fleet, waiting) for fleet, waiting in found if waiting]


def dequeue(request: ConsoleRequest) -> Response:
    """Take a run out of its fleet's queue."""
    fleet, number = _queued(request)
    fleet.dequeue(number)
    return request.go("/runs#queue", f"Run {number} of the queue waits no more.")


def move(request: ConsoleRequest) -> Response:
    """Put a run at another place of its fleet's queue."""
    fleet, number = _queued(request)
    fleet.move_in_queue(number, whole_number(request.given("place"), "place"))
    return request.go("/runs#queue")


def retry(request: ConsoleRequest) -> Response:
    """Try a run of the queue again that was refused."""
    fleet, number = _queued(request)
    fleet.retry_queued(number)
    return request.go("/runs#queue", f"Run {number} of the queue waits for its turn again.")


def _queued(request: ConsoleRequest) -> tuple[FleetOperations, int]:
    """(the fleet of the path, the number of a run of its queue, which the form has)."""
    fleet = request.operations.fleet(fleet_named(request))
    return fleet, whole_number(request.given("number"), "number")


def compare(request: ConsoleRequest) -> Response:
    """The curves of some runs in one drawing, and where their configurations differ."""
    wanted = list(dict.fromkeys(request.http_request.query_params.getlist("run")))
    if len(wanted) > MOST_COMPARED:
        raise HTTPError(f"At most {MOST_COMPARED} runs can be compared at a time.", status=400)
    found = [run_of(request.operations, one) for one in wanted]
    series = [
        charts.Series(run.location.name, measured_curve(run, lambda one: one.accuracy), look)
        for look, run in enumerate(found, 1)
    ]
    losses = [
        charts.Series(run.location.name, measured_curve(run, lambda one: one.train_loss), look)
        for look, run in enumerate(found, 1)
    ]
    return request.render(
        "compare.html.j2",
        runs=found,
        accuracy=charts.lines(
            series,
            title="Fleet accuracy on held-out choices",
            x_label="after round",
            text=lambda y: wording.percent(y),
            height=300,
            width=charts.WIDE,
        ),
        loss=charts.lines(
            losses,
            title="Training loss",
            x_label="after round",
            text=lambda y: f"{y:.3g}",
            height=240,
            width=charts.WIDE,
        ),
        differences=differences([run for run in found if run.config]),
    )


def differences(found: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    """Configuration keys that are not the same in all runs, with each run's value."""
    tables = [
        {key: str(value) for key, value in dotted_table(run.config).items()} if run.config else {}
        for run in found
    ]
    keys = sorted({key for table in tables for key in table})
    rows = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
