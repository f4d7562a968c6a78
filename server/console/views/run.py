"""One run, live: its stages, rounds and curves; stop, resume and delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from penchant.common import wording
from penchant.common.csv_text import csv_text
from penchant.common.secagg.stages import EXCHANGES, PLAIN_EXCHANGES
from penchant.server import charts
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import (
    Span,
    accuracy_chart,
    chart_files,
    curve,
    failures,
    histogram_chart,
    location_of,
    loss_chart,
    ordered,
    paged,
    run_of,
    span_of,
)
from penchant.server.monitoring.run_history import AttemptRecord, RunSummary

__all__ = ["chart_file", "confirm_delete", "delete", "resume", "rounds_csv", "run", "stop"]
CSV_COLUMNS = (
    "round",
    "phase",
    "asked",
    "in_sum",
    "lost",
    "train_loss_after",
    "val_accuracy_after",
    "val_accuracy_error",
    "bytes_up",
    "bytes_down",
    "seconds",
)
"""Loss and accuracy are of the factors after the round; empty where nothing measured them."""
LOG_LINES = 200
ROUNDS_A_PAGE = 25


def stages_of(run: RunSummary) -> list[dict[str, Any]]:
    """The five stages of the current attempt (or of the last one), with the state of each."""
    last = run.current
    if last is None:
        return []
    known = {s.name: s for s in run.glance.stages.get((last.round, last.attempt), ())}
    secagg = run.config is None or run.config.privacy.secagg
    names = EXCHANGES if secagg else PLAIN_EXCHANGES
    over = last.state not in ("started", "unmasking")
    reached = [name for name in names if name in known]
    failed_at = reached[-1] if reached and last.state == "failed" else None  # its answers may be refusals
    rows = []
    for name in names:
        stage = known.get(name)
        state = "waiting"
        if stage is not None:
            state = (
                "done" if stage.ended is not None or over else "now" if run.state == "running" else "halted"
            )
        elif over and last.state == "finished":
            state = "done"  # an old journal
        if name == failed_at:
            state = "halted"
        seconds = None if stage is None or stage.ended is None else stage.ended - stage.began
        rows.append({"name": name, "state": state, "stage": stage, "seconds": seconds})
    return rows


def rounds_csv(request: ConsoleRequest) -> Response:
    """What the charts of a run are drawn from: a row for each finished round, as CSV."""
    run = run_of(request.operations, request.path("id"))
    measured = run.by_round
    rows: list[tuple[object, ...]] = [CSV_COLUMNS]
    for log in run.logs:
        one = measured.get(log.round)
        figures = (None, None, None) if one is None else (one.train_loss, one.accuracy, one.error)
        lost = log.cohort - log.survivors
        people = log.round, log.phase, log.cohort, log.survivors, lost
        rows.append((*people, *figures, log.bytes_up, log.bytes_down, log.seconds))
    headers = {"content-disposition": f'attachment; filename="{run.location.id}-rounds.csv"'}
    return Response(csv_text(rows), media_type="text/csv", headers=headers)


ROUND_ORDERS: Mapping[str, Callable[[AttemptRecord], Any]] = {
    "round": lambda a: (a.round, a.attempt),
    "sum": lambda a: a.log and a.log.survivors,
    "lost": lambda a: a.log and a.log.cohort - a.log.survivors,
    "sent": lambda a: a.log and a.log.bytes_up,
    "took": lambda a: a.log and a.log.seconds,
}
"""What the list of rounds goes by, beside what was measured after them."""
OUTCOMES = ("final", "failed", "skipped")


def run_facts(request: ConsoleRequest, run: RunSummary) -> dict[str, Any]:
    """What a run's page shows."""
    logs, measured = run.logs, run.by_round
    outcome = request.asked("outcome")
    if outcome not in ("", *OUTCOMES):
        raise HTTPError(f"A round is one of {', '.join(OUTCOMES)}.", status=400)
    shown = [a for a in run.attempts if outcome_of(a) and outcome in ("", outcome_of(a))]
    orders = {
        **ROUND_ORDERS,
        "loss": lambda a: measured[a.round].train_loss if a.log and a.round in measured else None,
        "accuracy": lambda a: measured[a.round].accuracy if a.log and a.round in measured else None,
    }
    rows, order = ordered(request, shown, orders, "-round", "#rounds")
    span = span_of(request)
    drawn = charts_of(run, span)
    return {
        "run": run,
        "span": span,
        "missing": missing_of(request, run),
        "hindrance": hindrance_of(request, run),
        "stages": stages_of(run),
        "current": run.current,
        **drawn,
        "accuracy": drawn["accuracy"] if logs else None,
        "loss": drawn["loss"] if logs else None,
        "people": _people(run),
        "listed": paged(request, rows, ROUNDS_A_PAGE),
        "order": order,
        "outcome": outcome,
        "outcomes": OUTCOMES,
        "log": list(request.operations.log(run.location, LOG_LINES)),
    }


def outcome_of(attempt: AttemptRecord) -> str:
    """How an attempt ended; empty while it has not."""
    return "final" if attempt.log else attempt.state if attempt.state in OUTCOMES else ""


def charts_of(run: RunSummary, span: Span) -> dict[str, charts.Chart | None]:
    """All charts of a run's page by their names; None where there is nothing to draw. span: of the rounds
    that curves show."""
    return {
        name: span.part_of(chart) if isinstance(chart, charts.LineChart) else chart
        for name, chart in _whole_charts(run).items()
    }


def _whole_charts(run: RunSummary) -> dict[str, charts.Chart | None]:
    marks = failures(run)
    sent = curve(run, lambda g: g.bytes_up / g.cohort if g.cohort else None)
    received = curve(run, lambda g: g.bytes_down / g.cohort if g.cohort else None)
    return {
        "accuracy": accuracy_chart(run),
        "loss": loss_chart(run),
        "histogram": histogram_chart(run),
        "lost": charts.LineChart(
            "Devices lost in a round",
            lambda y: f"{y:g}",
            files=chart_files(run, "lost"),
            series=[charts.Series("lost", curve(run, lambda g: float(g.cohort - g.survivors)), 4)],
            zero=True,
            least=4,
            marks=marks,
        ),
        "seconds": charts.LineChart(
            "Time of a round",
            wording.duration,
            files=chart_files(run, "seconds"),
            series=[charts.Series("Seconds", curve(run, lambda g: g.seconds), 3)],
            zero=True,
            marks=marks,
        ),
        "traffic": charts.LineChart(
            "Traffic of one device",
            wording.size,
            files=chart_files(run, "traffic"),
            series=[
                charts.Series("sent by a device", sent, 1),
                charts.Series("received by a device", received, 2),
            ],
            zero=True,
        ),
    }


def chart_file(request: ConsoleRequest) -> Response:
    """A chart of a run as a file: what it is drawn from, or its drawing."""
    run = run_of(request.operations, request.path("id"))
    name, _, ending = request.path("file").rpartition(".")
    return chart_response(
        charts_of(run, span_of(request)).get("histogram" if name == "people" else name),
        run.location.id,
        name,
        ending,
    )


def chart_response(chart: charts.Chart | None, of: str, name: str, ending: str) -> Response:
    """A chart as a file with this ending. HTTPError 404 where there is none."""
    if chart is None or ending not in ("csv", "svg"):
        raise HTTPError("There is no such chart.", status=404)
    text, kind = (chart.csv(), "text/csv") if ending == "csv" else (chart.svg(), "image/svg+xml")
    headers = {"content-disposition": f'attachment; filename="{of}-{name}.{ending}"'}
    return Response(text, media_type=kind, headers=headers)


def hindrance_of(request: ConsoleRequest, run: RunSummary) -> str:
    """Why a run that stands still can't go on, however often it is resumed."""
    if run.config is None or run.state not in ("stopped", "failed", "new"):
        return ""
    return request.operations.hindrance(run.location, run.config)


def missing_of(request: ConsoleRequest, run: RunSummary) -> list[tuple[int, str]]:
    """(member, why) of those that a waiting run lacks; nothing where it doesn't wait."""
    fleet = request.operations.fleet_of(run.location)
    if run.waiting is None or fleet is None:
        return []
    return list(request.operations.fleet(fleet).missing(run.location, run.waiting))


def _people(run: RunSummary) -> str:
    """Why there is no histogram."""
    last = run.last
    if last is None:
        return "The first round has not ended yet."
    if run.config is not None and not run.config.data.validation_pairs:
        return "Nobody keeps choices back to measure with (data.validation_pairs is 0)."
    return "Below 20 honest people in a sum, a histogram could point at one of them: none is made."


def run(request: ConsoleRequest) -> Response:
    """One run, live."""
    found = run_of(request.operations, request.path("id"))
    text = found.config.to_toml() if found.config else ""
    return request.render("run.html.j2", config_text=text, **run_facts(request, found))


def stop(request: ConsoleRequest) -> Response:
    """Stop the process that runs a run."""
    location = location_of(request.operations, request.path("id"))
    request.operations.stop(location)
    return request.go(f"/runs/{location.id}", f"{location.name} has stopped. Finished rounds are kept.")


def resume(request: ConsoleRequest) -> Response:
    """Go on with a run."""
    location = location_of(request.operations, request.path("id"))
    request.operations.resume(location)
    return request.go(f"/runs/{location.id}", f"{location.name} goes on.")


def confirm_delete(request: ConsoleRequest) -> Response:
    """Whether a run is really to be deleted."""
    return request.render("delete.html.j2", run=run_of(request.operations, request.path("id")), error="")


def delete(request: ConsoleRequest) -> Response:
    """Delete a run whose name was typed."""
    found = run_of(request.operations, request.path("id"))
    if request.given("confirm") != found.location.name:
        error = "That is not its name. Nothing was deleted."
        return request.refuse("another name was typed", "delete.html.j2", run=found, error=error)
    request.operations.delete(found.location)
    return request.go("/runs", f"{found.location.name} is deleted.")
