"""All runs: the list, two of them compared, and starting another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import HTMLResponse, Response

from penchant.common import wording
from penchant.common.config import RunConfig
from penchant.common.errors import PenchantError
from penchant.common.settings import dotted_table, settings_by_group
from penchant.server.console import charts
from penchant.server.console.operations import fleet_recipe
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import (
    MOST_COMPARED,
    accuracy_spark,
    all_runs,
    location_of,
    measured_curve,
    run_of,
)
from penchant.server.monitoring.run_history import RunLocation, RunSummary, config_text

__all__ = ["check", "compare", "new", "runs", "start"]


def runs(request: ConsoleRequest) -> Response:
    """All runs."""
    found = all_runs(request.context)
    sparks = {run.location.id: accuracy_spark(run) for run in found}
    return request.render("runs.html.j2", runs=found, sparks=sparks)


def compare(request: ConsoleRequest) -> Response:
    """The curves of some runs in one drawing, and where their configurations differ."""
    wanted = list(dict.fromkeys(request.http_request.query_params.getlist("run")))
    if len(wanted) > MOST_COMPARED:
        raise HTTPError(f"At most {MOST_COMPARED} runs can be compared at a time.", status=400)
    found = [run_of(request.context, one) for one in wanted]
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


def new(request: ConsoleRequest) -> Response:
    """The form of a new run."""
    operations, wanted = request.context.operations, request.asked("from")
    recipes, fleets = operations.recipes(), operations.fleets()
    fleet = None if operations.simulates() or not fleets else fleets[0]
    if not wanted:
        wanted = fleet_recipe(fleet) if fleet else next(iter(recipes))
    if wanted in recipes:
        text = recipes[wanted]
        fleet = next((one for one in fleets if fleet_recipe(one) == wanted), fleet)
    else:
        location = location_of(request.context, wanted)
        text = config_text(location.directory)
        fleet = operations.fleet_of(location) or fleet
    return _form(request, request.asked("name"), text, wanted, fleet=fleet)


def _form(
    request: ConsoleRequest,
    name: str,
    text: str,
    wanted: str = "",
    *,
    fleet: RunLocation | None = None,
    error: str = "",
) -> Response:
    found = all_runs(request.context)
    page: dict[str, Any] = {
        "recipes": list(request.context.operations.recipes()),
        "runs": [run for run in found if run.config],
        "wanted": wanted,
        "fleets": request.context.operations.fleets(),
        "simulates": request.context.operations.simulates(),
        "where": fleet.id if fleet else "",
        "name": name,
        "text": text,
        "error": error,
        "settings": settings_by_group(RunConfig),
        "verdict": verdict(request, text, fleet),
    }
    return request.refuse(error, "new.html.j2", **page) if error else request.render("new.html.j2", **page)


def verdict(request: ConsoleRequest, text: str, fleet: RunLocation | None) -> dict[str, Any]:
    """Whether a configuration can run, on a fleet or simulated, and what it would do."""
    try:
        config = request.context.operations.check(text, fleet)
    except PenchantError as error:
        return {"config": None, "error": str(error), "fleet": fleet, "objections": []}
    objections = request.context.operations.objections(config, fleet)
    return {"config": config, "error": "", "fleet": fleet, "objections": list(objections)}


def check(request: ConsoleRequest) -> Response:
    """The verdict on a configuration while it is written. Changes nothing."""

    said = verdict(request, request.form.get("config", ""), chosen_fleet(request))
    return HTMLResponse(request.text("verdict.html.j2", verdict=said))


def chosen_fleet(request: ConsoleRequest) -> RunLocation | None:
    """The fleet that a form names; None: on this machine, simulated. Refused when there is none such."""
    where = request.given("where")
    for fleet in request.context.operations.fleets():
        if fleet.id == where:
            return fleet
    if where:
        raise HTTPError("There is no such fleet.", status=404)
    return None


def start(request: ConsoleRequest) -> Response:
    """Begin a new run."""
    name, text, fleet = request.given("name", 64), request.form.get("config", ""), chosen_fleet(request)
    try:
        location = request.context.operations.start(name, text, fleet)
    except PenchantError as error:
        return _form(request, name, text, fleet=fleet, error=str(error))
    return request.go(f"/runs/{location.id}", f"{location.name} has begun.")
