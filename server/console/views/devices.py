"""The devices of a fleet: who is connected, invitations, revocation."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import segno
from markupsafe import Markup
from starlette.responses import Response

from penchant.common.durations import DAY
from penchant.common.errors import JournalError
from penchant.common.wire.codec import PROTOCOL_VERSION
from penchant.server.console.operations import RunOperations
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import all_runs, ordered, paged, whole_number
from penchant.server.monitoring.fleet import DeviceNote, FleetStatus, MemberListStatus, Revocation, Token
from penchant.server.monitoring.run_history import (
    DeviceRecord,
    JournalReader,
    RunLocation,
    RunSummary,
    summary_of,
)

__all__ = [
    "ask_revocation",
    "asked_revocation",
    "device",
    "devices",
    "invite",
    "note",
    "token",
    "withdraw",
]
DEVICES_A_PAGE = 50
TOKENS_SHOWN = 15


def devices(request: ConsoleRequest) -> Response:
    """Who belongs, who is there, and who was met: of a fleet (its latest run), or of a simulation."""
    return request.render("devices.html.j2", **devices_facts(request))


def devices_facts(request: ConsoleRequest) -> dict[str, Any]:
    """What the page of devices shows."""
    operations, now = request.operations, time.time()
    found = all_runs(operations)
    subject, run = subject_of(request, found)
    met, run = met_by(run)
    around: dict[str, Any] = {"subjects": subjects(operations, found), "subject": subject, "run": run}
    if subject is None:
        return around
    search = " ".join(request.asked("q").split())[:80]
    about = people_of(operations, subject)
    listed = known(subject, run, met, about, now)
    rows, order = ordered(
        request, [one for one in listed if one.is_called(search)], ORDERS, "member", "#fleet"
    )
    page = paged(request, rows, DEVICES_A_PAGE)
    every = request.asked("tokens") == "all"
    shown = [t for i, t in enumerate(about.tokens) if every or i < TOKENS_SHOWN or t.state == "waiting"]
    return {
        **around,
        **vars(about),
        "which": request.asked("run") or subject.id,
        "tokens_shown": shown,
        "tokens_hidden": len(about.tokens) - len(shown),
        "every_token": every,
        "rows": _judged(operations, subject, page.rows),
        "count": page.count,
        "met": len(met),
        "recent": sum(one.here or now - (one.seen or 0.0) < DAY for one in listed),
        "fresh": about.link is not None and about.link.fresh(now),
        "search": search,
        "order": order,
        "page": page.number,
        "pages": page.pages,
    }


@dataclass(frozen=True)
class Known:
    """A device as the console knows it.

    It is put together from the authority's list, the enrolment registry, the SuperLink and the run's journal.
    `node` is None before the SuperLink admits the device, `look` is the style that `state` is shown in,
    `seen` is in Unix seconds or None for never, `here` says whether it is online now, and `protocol` is the
    version that it answered with, None before it did. `name` is what the operator calls it, or what its
    invitation was for, and `tags` are its tags. `ready` says whether it would take part now, None where that
    can't be told; `why` says it in words.
    """

    member: int
    name: str
    node: str | None
    state: str
    look: str
    here: bool
    seen: float | None
    joined: int
    last: int | None
    protocol: int | None
    tags: tuple[str, ...] = ()
    ready: bool | None = None
    why: str = ""

    def is_called(self, search: str) -> bool:
        """Whether its number begins so, its name or a tag has it in it, or it is its node or its state."""
        wanted = search.casefold()
        return (
            str(self.member).startswith(wanted)
            or wanted in self.name.casefold()
            or any(wanted in tag for tag in self.tags)
            or wanted in (self.node, self.state)
        )


ORDERS: Mapping[str, Callable[[Known], Any]] = {
    "member": lambda device: device.member,
    "seen": lambda device: (not device.here, -(device.seen or 0.0), device.member),
    "joined": lambda device: (-device.joined, device.member),
    "name": lambda device: device.name.casefold() or None,
    "state": lambda device: (device.state, device.member),
    "last": lambda device: None if device.last is None else (-device.last, device.member),
}
"""What the list goes by: of times and counts the latest and most first."""


def met_by(run: RunSummary | None) -> tuple[Sequence[DeviceRecord], RunSummary | None]:
    """(whom a run has met, the run): nobody where its journal is damaged, which the run then says."""
    if run is None or run.state == "damaged":
        return (), run
    try:
        return JournalReader(run.location.directory).devices(), run
    except JournalError:
        return (), summary_of(run.location, run.activity)


def known(
    subject: RunLocation,
    run: RunSummary | None,
    met: Sequence[DeviceRecord],
    about: FleetPeople,
    now: float,
) -> list[Known]:
    """All devices: those that were met, and those of a fleet's members that were not yet."""
    devices = {device.member: device for device in met}
    tokens = {token.member: token for token in about.tokens if token.member is not None}
    enrolment, link = about.enrolment, about.link
    numbers = set(devices) | set(tokens) | (enrolment.members if enrolment else set())
    return [
        _noted(
            _known(number, devices.get(number), tokens.get(number), subject, run, link, now),
            about.notes.get(number, DeviceNote()),
        )
        for number in numbers
    ]


def _noted(known: Known, note: DeviceNote) -> Known:
    """The same with what the operator noted of it."""
    return replace(known, name=note.name or known.name, tags=note.tags)


def _judged(operations: RunOperations, subject: RunLocation, listed: Sequence[Known]) -> list[Known]:
    """The same with whether each would take part, and why not; of a simulation that is not told."""
    if subject.kind != "fleet":
        return list(listed)
    told = operations.fleet(subject).readiness({one.member: one.node for one in listed})
    return [replace(one, ready=told[one.member][0], why=told[one.member][1]) for one in listed]


def _known(
    number: int,
    device: DeviceRecord | None,
    enrolled: Token | None,
    subject: RunLocation,
    run: RunSummary | None,
    link: FleetStatus | None,
    now: float,
) -> Known:
    name = (enrolled.node if enrolled else None) or (device.node if device else None)
    node = link.nodes.get(name) if link is not None and name is not None else None
    here = link is not None and link.fresh(now) and node is not None and node.online
    heard = [device.seen] if device else []
    if node is not None and link is not None:
        heard += [moment for moment in (link.at if node.online else node.until,) if moment is not None]
    if link is None:
        look, state = ("good" if run and run.state == "running" else "", "simulated")
    elif not link.fresh(now):
        look, state = "", "unknown"
    else:
        look, state = ("good", "online") if here else ("", "offline")
    return Known(
        member=number,
        name=enrolled.label if enrolled else "",
        node=name,
        state=state if heard or name else "not seen yet",
        look=look,
        here=here,
        seen=max(heard, default=None),
        joined=device.joined if device else 0,
        last=device.last if device else None,
        protocol=PROTOCOL_VERSION if device else None,  # a device of another one is never ready
    )


def subjects(operations: RunOperations, found: Sequence[RunSummary]) -> list[RunLocation]:
    """What has devices: fleets first, then runs that belong to none."""
    alone = [run.location for run in found if operations.fleet_of(run.location) is None]
    return [*operations.fleets(), *alone]


def subject_of(
    request: ConsoleRequest, found: Sequence[RunSummary]
) -> tuple[RunLocation | None, RunSummary | None]:
    """The fleet or run that is asked for (the first without a question), and the run that describes it."""
    listed, wanted = subjects(request.operations, found), request.asked("run")
    run = next((run for run in found if run.location.id == wanted), None)
    if run is not None:
        return request.operations.fleet_of(run.location) or run.location, run
    location = next((location for location in listed if wanted in ("", location.id)), None)
    if location is None and wanted:
        raise HTTPError("There is no such run. It may have been deleted.", status=404)
    return location, next(
        (run for run in found if location and tells_of(request.operations, run.location, location)), None
    )


def tells_of(operations: RunOperations, run: RunLocation, subject: RunLocation) -> bool:
    fleet = operations.fleet_of(run)
    return run.id == subject.id or (fleet is not None and fleet.id == subject.id)


@dataclass(frozen=True)
class FleetPeople:
    """Who belongs to a fleet, is invited to it, or is to leave it; of a simulation nobody.

    Attributes:
        enrolment: the member list; None where there is none.
        link: what the SuperLink said last; None where there is none.
        revocations: the revocations that were asked for.
        pending: the members whose revocation the authority has not signed yet.
        tokens: the invitations.
        notes: what the operator noted of members.
    """

    enrolment: MemberListStatus | None = None
    link: FleetStatus | None = None
    revocations: Sequence[Revocation] = ()
    pending: AbstractSet[int] = frozenset()
    tokens: Sequence[Token] = ()
    notes: Mapping[int, DeviceNote] = field(default_factory=dict)


def people_of(operations: RunOperations, subject: RunLocation) -> FleetPeople:
    """Members, invitations and revocations of a fleet; a simulation has none."""
    if subject.kind != "fleet":
        return FleetPeople()
    fleet = operations.fleet(subject)
    asked = fleet.revocations()
    return FleetPeople(
        enrolment=fleet.enrolment(),
        link=fleet.link(),
        revocations=asked,
        pending={r.member for r in asked if r.signed is None},
        tokens=fleet.tokens(),
        notes=fleet.notes(),
    )


def qr_code(text: str) -> Markup:
    """A QR code as SVG without style attributes."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(
        out, kind="svg", xmldecl=False, svgns=False, omitsize=True, svgclass="qr", lineclass=None, border=3,
        dark="#000", light="#fff",
    )  # fmt: skip
    return Markup(out.getvalue().decode())


def fleet_named(request: ConsoleRequest) -> RunLocation:
    """The fleet of the path. Refused where there is none: simulated devices need no token."""
    wanted = request.path("id")
    for fleet in request.operations.fleets():
        if fleet.id == wanted:
            return fleet
    raise HTTPError(
        "There is no such fleet; simulated devices need no token and can't be revoked.", status=404
    )


def device(request: ConsoleRequest) -> Response:
    """One device of a fleet: what is on record of it, and what it is called."""
    operations, now, location = request.operations, time.time(), fleet_named(request)
    member = whole_number(request.path("member"), "member")
    found = all_runs(operations)
    met, run = met_by(next((run for run in found if tells_of(operations, run.location, location)), None))
    about = people_of(operations, location)
    listed = [one for one in known(location, run, met, about, now) if one.member == member]
    if not listed:
        raise HTTPError(f"This fleet has no member {member}.", status=404)
    (shown,) = _judged(operations, location, listed)
    return request.render(
        "device.html.j2",
        location=location,
        run=run,
        device=shown,
        note=about.notes.get(member, DeviceNote()),
        token=next((token for token in about.tokens if token.member == member), None),
        members=about.enrolment.members if about.enrolment else (),
        revoked=about.enrolment is not None and member in about.enrolment.revoked,
        pending=about.pending,
        revocations=[one for one in about.revocations if one.member == member],
        contributed=operations.fleet(location).contributed(member),
    )


def note(request: ConsoleRequest) -> Response:
    """Call a device so, and give it these tags and no others."""
    location = fleet_named(request)
    member = whole_number(request.given("member"), "member")
    tags = request.given("tags").replace(",", " ").split()
    request.operations.fleet(location).note(member, request.given("called", 80), tags)
    return request.go(f"/devices/{location.id}/members/{member}", "Kept.")


def invite(request: ConsoleRequest) -> Response:
    """Hand out a join token: shown on the next page, once, and nowhere kept."""
    location = fleet_named(request)
    label = request.given("label", 80)
    days = whole_number(request.given("days") or "7", "days")
    if not 1 <= days <= 90:
        raise HTTPError("An invitation is good for 1 to 90 days.", status=422)
    token = request.operations.fleet(location).invite(label, days)
    kept = {"label": label, "expires": str(token.expires), "text": token.text}
    request.context.tokens.keep(f"{request.csrf} {token.id}", kept)
    return request.go(f"/devices/{location.id}/tokens/{token.id}")


def token(request: ConsoleRequest) -> Response:
    """A token that was just handed out, once: the page loaded again has none, and makes none."""
    location = fleet_named(request)
    kept = request.context.tokens.take(f"{request.csrf} {request.path('token')}")
    if kept is None:
        raise HTTPError(
            "This token was shown already, and is kept nowhere. If nobody has it, withdraw it and hand out "
            "another one.",
            status=410,
        )
    return request.render(
        "token.html.j2",
        location=location,
        label=kept["label"],
        expires=float(kept["expires"]),
        text=kept["text"],
        qr=qr_code(kept["text"]),
    )


def withdraw(request: ConsoleRequest) -> Response:
    """Take back an invitation, or deny the request that came with it."""
    location = fleet_named(request)
    request.operations.fleet(location).withdraw(request.given("token"))
    return request.go(
        f"/devices?run={location.id}#invite",
        f"Token {request.given('token')} lets nobody in any more.",
    )


def asked_revocation(request: ConsoleRequest) -> Mapping[str, str]:
    """Whom a revocation is about. HTTPError where there is nobody, or it is asked for already."""
    location = fleet_named(request)
    member, why = whole_number(request.given("member"), "member"), request.given("why")
    about = people_of(request.operations, location)
    if about.enrolment is None or member not in about.enrolment.members:
        raise HTTPError(f"{location.name} has no member {member}.", status=422)
    if member in about.pending:
        raise HTTPError(f"Member {member}: asked for already; the authority has not signed yet.", status=409)
    labels = [token.label for token in about.tokens if token.member == member]
    name = about.notes.get(member, DeviceNote()).name or "".join(labels)
    return {
        "device": f"member {member}, {name}," if name else f"member {member}",
        "reason": f"The reason that it is given: {why}" if why else "It is given no reason.",
    }


def ask_revocation(request: ConsoleRequest) -> Response:
    """Ask the authority to take a member out."""
    location = fleet_named(request)
    member = whole_number(request.given("member"), "member")
    request.operations.fleet(location).ask_revocation(member, request.given("why"), request.name)
    return request.go(
        f"/devices?run={location.id}",
        f"The authority is asked to revoke member {member}; pending until it has signed.",
    )
