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
from penchant.server.console.views.common import MOST_COMPARED, all_runs, curve, place_of, run_of
from penchant.server.monitoring.run_history import RunLocation, RunSummary, config_text

__all__ = ["check", "compare", "new", "runs", "start"]


def runs(visit: ConsoleRequest) -> Response:
    """All runs."""
    found = all_runs(visit.desk)
    sparks = {
        run.place.id: charts.spark(
            [log.val_accuracy for log in run.logs if log.val_accuracy is not None],
            f"accuracy of {run.place.name} by round",
        )
        for run in found
    }
    return visit.render("runs.html.j2", runs=found, sparks=sparks)


def compare(visit: ConsoleRequest) -> Response:
    """The curves of some runs in one drawing, and where their configurations differ."""
    wanted = list(dict.fromkeys(visit.request.query_params.getlist("run")))
    if len(wanted) > MOST_COMPARED:
        raise HTTPError(f"At most {MOST_COMPARED} runs can be compared at a time.", status=400)
    found = [run_of(visit.desk, one) for one in wanted]
    series = [
        charts.Series(run.place.name, curve(run, lambda log: log.val_accuracy), look)
        for look, run in enumerate(found, 1)
    ]
    losses = [
        charts.Series(run.place.name, curve(run, lambda log: log.train_loss), look)
        for look, run in enumerate(found, 1)
    ]
    return visit.render(
        "compare.html.j2",
        runs=found,
        accuracy=charts.lines(
            series,
            title="Fleet accuracy on held-out choices",
            text=lambda y: wording.percent(y),
            height=300,
            width=charts.WIDE,
        ),
        loss=charts.lines(
            losses, title="Training loss", text=lambda y: f"{y:.3g}", height=240, width=charts.WIDE
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


def new(visit: ConsoleRequest) -> Response:
    """The form of a new run."""
    operations, wanted = visit.desk.operations, visit.asked("from")
    recipes, fleets = operations.recipes(), operations.fleets()
    fleet = None if operations.simulates() or not fleets else fleets[0]
    if not wanted:
        wanted = fleet_recipe(fleet) if fleet else next(iter(recipes))
    if wanted in recipes:
        text = recipes[wanted]
        fleet = next((one for one in fleets if fleet_recipe(one) == wanted), fleet)
    else:
        place = place_of(visit.desk, wanted)
        text = config_text(place.directory)
        fleet = operations.fleet_of(place) or fleet
    return _form(visit, visit.asked("name"), text, wanted, fleet=fleet)


def _form(
    visit: ConsoleRequest,
    name: str,
    text: str,
    wanted: str = "",
    *,
    fleet: RunLocation | None = None,
    error: str = "",
    status: int = 200,
) -> Response:
    found = all_runs(visit.desk)
    return visit.render(
        "new.html.j2",
        status,
        recipes=list(visit.desk.operations.recipes()),
        runs=[run for run in found if run.config],
        wanted=wanted,
        fleets=visit.desk.operations.fleets(),
        simulates=visit.desk.operations.simulates(),
        where=fleet.id if fleet else "",
        name=name,
        text=text,
        error=error,
        settings=settings_by_group(RunConfig),
        verdict=verdict(visit, text, fleet),
    )


def verdict(visit: ConsoleRequest, text: str, fleet: RunLocation | None) -> dict[str, Any]:
    """Whether a configuration can run, on a fleet or simulated, and what it would do."""
    try:
        return {"config": visit.desk.operations.check(text, fleet), "error": "", "fleet": fleet}
    except PenchantError as error:
        return {"config": None, "error": str(error), "fleet": fleet}


def check(visit: ConsoleRequest) -> Response:
    """The verdict on a configuration while it is written. Changes nothing."""

    said = verdict(visit, visit.form.get("config", ""), chosen_fleet(visit))
    return HTMLResponse(visit.text("verdict.html.j2", verdict=said))


def chosen_fleet(visit: ConsoleRequest) -> RunLocation | None:
    """The fleet that a form names; None: on this machine, simulated. Refused when there is none such."""
    where = visit.given("where")
    for fleet in visit.desk.operations.fleets():
        if fleet.id == where:
            return fleet
    if where:
        raise HTTPError("There is no such fleet.", status=404)
    return None


def start(visit: ConsoleRequest) -> Response:
    """Begin a new run."""
    name, text, fleet = visit.given("name", 64), visit.form.get("config", ""), chosen_fleet(visit)
    try:
        place = visit.desk.operations.start(name, text, fleet)
    except PenchantError as error:
        visit.desk.store.note(visit.name, visit.address, "start a run", name, f"refused: {error}")
        return _form(visit, name, text, fleet=fleet, error=str(error), status=422)
    return visit.go(f"/runs/{place.id}", f"{place.name} has begun.")
