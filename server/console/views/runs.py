"""All runs: the list, and some of them compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.responses import Response

from penchant.common import wording
from penchant.common.settings import dotted_table
from penchant.server import charts
from penchant.server.console.operations import FleetOperations
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import (
    BAND,
    MOST_COMPARED,
    Span,
    accuracy_series,
    accuracy_sparks,
    all_runs,
    measured_curve,
    ordered,
    paged,
    run_of,
    span_of,
    whole_number,
)
from penchant.server.console.views.devices import fleet_named
from penchant.server.console.views.run import chart_response
from penchant.server.monitoring.fleet import QueuedRun
from penchant.server.monitoring.run_history import RunLocation, RunSummary, State

__all__ = ["compare", "compared_file", "dequeue", "move", "retry", "runs"]
RUNS_A_PAGE = 50
STATES = get_args(State)
ORDERS: Mapping[str, Callable[[RunSummary], Any]] = {
    "now": lambda run: 0,  # those that run first, then by their latest change
    "name": lambda run: run.location.name.casefold(),
    "state": lambda run: run.state,
    "rounds": lambda run: run.settled,
    "accuracy": lambda run: run.accuracy,
    "moved": lambda run: run.touched,
}


def runs(request: ConsoleRequest) -> Response:
    """All runs, a page of them at a time."""
    search, state = " ".join(request.asked("q").split())[:80], request.asked("state")
    if state not in ("", *STATES):
        raise HTTPError(f"A run is one of {', '.join(STATES)}.", status=400)
    every = all_runs(request.operations)
    found = [run for run in every if state in ("", run.state) and _is_called(run, search)]
    rows, order = ordered(request, found, ORDERS, "now")
    listed = paged(request, rows, RUNS_A_PAGE)
    return request.render(
        "runs.html.j2",
        listed=listed,
        order=order,
        orders=ORDERS,
        every=len(every),
        search=search,
        state=state,
        states=STATES,
        sparks=accuracy_sparks(listed.rows),
        queues=_queues(request),
    )


def _is_called(run: RunSummary, search: str) -> bool:
    """Whether its name has that in it, or its share is called so."""
    share = run.config.adapter.share if run.config else ""
    return search.casefold() in run.location.name.casefold() or (bool(search) and search == share)


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
    found, span = _asked_for(request), span_of(request)
    drawn: dict[str, Any] = {**compared(found, span)}
    return request.render(
        "compare.html.j2",
        runs=found,
        span=span,
        kept=[("run", run.location.id) for run in found],
        **drawn,
        differences=differences([run for run in found if run.config]),
    )


def compared(found: Sequence[RunSummary], span: Span) -> dict[str, charts.LineChart]:
    """The charts of some runs in one drawing each, by name. span: of the rounds that are shown."""
    query = urlencode([("run", run.location.id) for run in found])
    losses = [
        charts.Series(run.location.name, measured_curve(run, lambda one: one.train_loss), look)
        for look, run in enumerate(found, 1)
    ]
    shared: dict[str, Any] = {"x_label": "after round", "width": charts.WIDE}
    whole = {
        "accuracy": charts.LineChart(
            "Fleet accuracy on held-out choices",
            lambda y: wording.percent(y),
            300,
            BAND if any(one.error is not None for run in found for one in run.measured) else "",
            f"/runs/compare/charts/accuracy{{}}?{query}",
            series=[accuracy_series(run, run.location.name, look) for look, run in enumerate(found, 1)],
            **shared,
        ),
        "loss": charts.LineChart(
            "Training loss",
            lambda y: f"{y:.3g}",
            240,
            files=f"/runs/compare/charts/loss{{}}?{query}",
            series=losses,
            **shared,
        ),
    }
    return {name: span.part_of(chart) for name, chart in whole.items()}


def compared_file(request: ConsoleRequest) -> Response:
    """A chart of the comparison as a file."""
    name, _, ending = request.path("file").rpartition(".")
    return chart_response(compared(_asked_for(request), span_of(request)).get(name), "compared", name, ending)


def _asked_for(request: ConsoleRequest) -> list[RunSummary]:
    wanted = list(dict.fromkeys(request.http_request.query_params.getlist("run")))
    if len(wanted) > MOST_COMPARED:
        raise HTTPError(f"At most {MOST_COMPARED} runs can be compared at a time.", status=400)
    return [run_of(request.operations, one) for one in wanted]


def differences(found: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    """Configuration keys that are not the same in all runs, with each run's value."""
    tables = [
        {key: str(value) for key, value in dotted_table(run.config).items()} if run.config else {}
        for run in found
    ]
    keys = sorted({key for table in tables for key in table})
    rows = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
