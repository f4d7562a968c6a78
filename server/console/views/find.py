"""One field for pages, runs, devices and acts: a page, and what the palette shows while one writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.responses import HTMLResponse, Response

from penchant.common.errors import PenchantError
from penchant.server.console.requests import ConsoleRequest
from penchant.server.monitoring.run_history import RunLocation

__all__ = ["find"]

MOST = 12  # that are shown
PLACES = (
    ("Overview", "/"),
    ("Runs", "/runs"),
    ("Devices", "/devices"),
    ("Privacy", "/privacy"),
    ("Releases", "/releases"),
    ("Audit", "/audit"),
    ("Your account", "/account"),
)
BUTTONS = (("Change the colours", "theme"), ("Change the density of rows", "density"), ("Log out", "logout"))
"""What a button of every page does: (words, the button's id)."""


@dataclass(frozen=True)
class FoundPlace:
    """Something to go to. press: the id of a button that is pressed instead."""

    kind: str
    name: str
    href: str
    note: str = ""
    press: str = ""


def find(request: ConsoleRequest) -> Response:
    """What is called so, of all that the account may see; without a word the pages and acts."""
    search = " ".join(request.asked("q").split())[:80]
    inside = bool(request.http_request.headers.get("hx-request"))
    found = [one for one in _all(request, search, inside) if search.casefold() in one.name.casefold()]
    shown: dict[str, Any] = {"found": found[:MOST], "more": max(len(found) - MOST, 0), "search": search}
    if inside:
        return HTMLResponse(request.text("found.html.j2", **shown))
    return request.render("find.html.j2", **shown)


def _all(request: ConsoleRequest, search: str, inside: bool) -> Iterator[FoundPlace]:
    yield from (FoundPlace("page", name, href) for name, href in PLACES)
    if request.operator:
        yield FoundPlace("act", "Start a run", "/runs/new")
    if inside:
        yield from (FoundPlace("act", name, "#", press=press) for name, press in BUTTONS)
    if not search:
        return
    for location in request.operations.locations():
        yield FoundPlace("run", location.name, f"/runs/{location.id}", _kind(location))
    for fleet in request.operations.fleets():
        try:
            inside_it, note = list(_members(request, fleet)), ""
        except (
            PenchantError
        ):  # one damaged fleet must not take what else there is; its page says what is wrong
            inside_it, note = [], "can’t be read"
        yield FoundPlace("fleet", fleet.name, f"/devices?run={fleet.id}", note)
        yield from inside_it


def _kind(location: RunLocation) -> str:
    return "live fleet" if location.kind == "served" else "simulation"


def _members(request: ConsoleRequest, fleet: RunLocation) -> Iterator[FoundPlace]:
    """The devices of a fleet by number, name and tags, and the list of each tag."""
    operations = request.operations.fleet(fleet)
    invited = {token.member: token.label for token in operations.tokens() if token.member is not None}
    notes = operations.notes()
    for member in sorted(operations.enrolment().members):
        note = notes.get(member)
        name = (note.name if note else "") or invited.get(member, "")
        tags = " ".join(note.tags) if note else ""
        words = " ".join(part for part in (f"member {member}", name, tags) if part)
        yield FoundPlace("device", words, f"/devices/{fleet.id}/members/{member}", fleet.name)
    for tag in sorted({tag for note in notes.values() for tag in note.tags}):
        yield FoundPlace("tag", tag, f"/devices?{urlencode({'run': fleet.id, 'q': tag})}", fleet.name)
