"""The overview: what needs attention, the fleet, and the latest runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from penchant.common.errors import PenchantError
from penchant.server.console.audit_filter import AuditEntry, AuditFilter
from penchant.server.console.operations import RunOperations
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import (
    accuracy_chart,
    accuracy_sparks,
    all_runs,
    loss_chart,
    run_of,
)
from penchant.server.console.views.devices import tells_of
from penchant.server.console.views.run import stages_of
from penchant.server.monitoring import alerts
from penchant.server.monitoring.fleet import FleetStatus, MemberListStatus
from penchant.server.monitoring.run_history import RunLocation, RunSummary, summary_of

__all__ = ["PUT_AWAY", "overview", "put_away"]

PUT_AWAY = "put a notice away"  # what the audit calls it
MOST_AWAY = 1000  # of those put away last
_DULL = {("log in", "done"), ("log out", "done")}
"""Lines of the audit that the overview leaves out."""


def overview(request: ConsoleRequest) -> Response:
    """The fleet's health at a glance."""
    return request.render("overview.html.j2", **overview_facts(request))


def overview_facts(request: ConsoleRequest) -> dict[str, Any]:
    """What the overview shows."""
    operations, now = request.operations, time.time()
    operations.record_acts()
    found = all_runs(operations)
    if found:  # its curves are shown
        found[0] = summary_of(found[0].location, found[0].activity)
    main = found[0] if found else None
    notices = [notice for run in found for notice in alerts.of_run(run, now)]
    fleets = []
    for fleet in operations.fleets():
        try:
            fleets.append(fleet_facts(operations, fleet, found, now))
        except PenchantError as error:  # one damaged fleet must not take the page of all others
            title = f"{fleet.name} can't be read"
            notices.append(alerts.Notice("bad", title, str(error), f"/devices?run={fleet.id}"))
    notices += [notice for fleet in fleets for notice in fleet.notices]
    notices.sort(key=lambda notice: notice.kind != "bad")
    away = _put_away(request)
    shown = [notice for notice in notices if (notice.run, f"notice: {notice.key}") not in away]
    every = request.asked("notices") == "all"
    return {
        "runs": found[:6],
        "more": max(len(found) - 6, 0),
        "fleets": fleets,
        "main": main,
        "notices": notices if every else shown,
        "away": 0 if every else len(notices) - len(shown),
        "may_put_away": {run.location.id for run in found if request.acts_on(run.location)},
        "devices": main.glance.devices if main else 0,
        "dp": main.glance.privacy if main else None,
        "stages": stages_of(main) if main else [],
        "accuracy_chart": accuracy_chart(main) if main and main.last else None,
        "loss_chart": loss_chart(main) if main and main.last else None,
        "sparks": accuracy_sparks(found[:6]),
        "deeds": [d for d in _lately(request) if (d.action, d.outcome) not in _DULL][:6],
    }


def put_away(request: ConsoleRequest) -> Response:
    """Put a notice away for everybody; it comes back when what it tells of happens again.

    Only what is shown now is taken, once and with nothing beside it: else lines about nothing, or the same
    line again and again, could push out of `MOST_AWAY` what was put away elsewhere.
    """
    run, key = run_of(request.operations, request.path("id")), request.form.get("notice", "")
    if set(request.form) - {"csrf", "sure", "notice"}:
        raise HTTPError("A notice is put away by its button alone.", status=422)
    if not key or key not in {notice.key for notice in alerts.of_run(run, time.time())}:
        raise HTTPError("This run has no such notice now.", status=409)
    if (run.location.id, f"notice: {key}") in _put_away(request):
        raise HTTPError("This notice is put away already.", status=409)
    return request.go("/", "Put away. It comes back if it happens again.")


def _put_away(request: ConsoleRequest) -> set[tuple[str, str]]:
    """(run's id, notice) of what the audit says was put away: that is where it is kept."""
    wanted = AuditFilter(action=PUT_AWAY, outcome="done")
    lines = request.context.store.audit_entries(limit=MOST_AWAY, wanted=wanted)
    return {(line.target, line.detail) for line in lines}


def _lately(request: ConsoleRequest) -> list[AuditEntry]:
    """The latest lines of the audit that the account may read."""
    readable = AuditFilter(reader=request.rights, own=request.name)
    return request.context.store.audit_entries(limit=40, wanted=readable)


@dataclass(frozen=True)
class FleetCard:
    """A fleet on the overview: its SuperLink's answer and whether it is fresh, its members and notices."""

    location: RunLocation
    link: FleetStatus
    fresh: bool
    enrolment: MemberListStatus
    notices: tuple[alerts.Notice, ...]


def fleet_facts(
    operations: RunOperations, fleet: RunLocation, found: Sequence[RunSummary], now: float
) -> FleetCard:
    """The state of a fleet's server and its members; `found` holds all runs, of which its own are picked."""
    server = operations.fleet(fleet)
    link, enrolment, asked, tokens = server.link(), server.enrolment(), server.revocations(), server.tokens()
    runs = [run for run in found if tells_of(operations, run.location, fleet)]
    notices = alerts.of_fleet(fleet, link, runs, enrolment, asked, tokens, server.expiries(), now)
    queued = alerts.of_queue(server.queue(), "/runs#queue")
    return FleetCard(fleet, link, link.fresh(now), enrolment, (*notices, *queued))
