"""Shared adapters that can be released: promote, roll back, download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.responses import Response

from penchant.common.errors import PenchantError
from penchant.common.membership.release_manifest import EVERYBODY
from penchant.server.console.allowed import place_of
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import (
    chosen,
    location_of,
    ordered,
    paged,
    run_of,
    whole_number,
)
from penchant.server.console.views.devices import fleet_named
from penchant.server.console.views.run import ROUNDS_A_PAGE
from penchant.server.measured import best, maybe_as_good
from penchant.server.monitoring.run_history import AttemptRecord, RunLocation
from penchant.server.releases import Release, release_name

__all__ = [
    "ask_again",
    "asked_canary",
    "asked_promotion",
    "asked_return",
    "download",
    "hold",
    "promote",
    "releases",
    "roll_back",
    "to_everybody",
]

CANARIES = (1, 5, 10, 25, 50)  # percent of the devices


def releases(request: ConsoleRequest) -> Response:
    """Versions of the shared adapter."""
    found, run = chosen(request)
    if run is None:
        return request.render("releases.html.j2", runs=found, run=None, fleet=None)
    location = run.location
    measured = run.by_round
    orders: dict[str, Callable[[AttemptRecord], Any]] = {
        "round": lambda a: a.round,
        "accuracy": lambda a: measured[a.round].accuracy if a.round in measured else None,
        "loss": lambda a: measured[a.round].train_loss if a.round in measured else None,
        "people": lambda a: a.log and a.log.survivors,
    }
    versions = [a for a in run.attempts if a.log is not None and a.digest]
    candidates, order = ordered(request, versions, orders, "-round", "#versions")
    highest = best(measured.values())
    fleet = request.operations.fleet_of(location)
    used = request.operations.fleet(fleet).release() if fleet else None
    offered = request.operations.fleet(fleet).offered() if fleet else None
    verdict = request.operations.fleet(fleet).canary_verdict() if fleet and used and used.canary else None
    promoted = list(request.operations.releases(location).promoted())
    current = next((release for release in promoted if release.current), None)
    return request.render(
        "releases.html.j2",
        runs=found,
        run=run,
        fleet=fleet,
        used=used,
        offered=offered,
        verdict=verdict,
        canaries=CANARIES,
        listed=paged(request, candidates, ROUNDS_A_PAGE),
        order=order,
        measured=measured,
        best=highest.after if highest else None,
        alike=len(maybe_as_good(measured.values())),
        releases=promoted,
        in_use=_named(used.used, location, promoted) if used else current,
        last=_named(used.last, location, promoted) if used else current,
        canary=_named(used.canary, location, promoted) if used else None,
    )


def _named(name: str, location: RunLocation, promoted: list[Release]) -> Release | None:
    """The release of this run that its fleet calls so; None where it is another run's, or there is none."""
    return next((r for r in promoted if release_name(location.directory.name, r.number) == name), None)


def promote(request: ConsoleRequest) -> Response:
    """Make a round's adapter the current release."""
    location = location_of(request.operations, request.path("id"))
    released = request.operations.releases(location)
    number, share = _promotion(request)
    made = released.promote(number, request.name, share)
    return request.go(
        f"/releases?run={location.id}", f"Release {made.number} is the adapter of round {made.round}."
    )


def _promotion(request: ConsoleRequest) -> tuple[int, int]:
    """(round, part of the devices that gets it first in ten-thousandths), as a form has it."""
    number, percent = whole_number(request.given("round"), "round"), request.given("canary")
    part = whole_number(percent, "canary") if percent else 100
    if percent and not 0 < part < 100:
        raise HTTPError("A part of the devices is 1 to 99 percent of them.", status=422)
    return number, part * (EVERYBODY // 100)


def asked_promotion(request: ConsoleRequest) -> Mapping[str, str]:
    """What promoting a round would do. HTTPError where it can't be done."""
    run, (number, share) = run_of(request.operations, request.path("id")), _promotion(request)
    if not any(one.round == number and one.log and one.digest for one in run.attempts):
        raise HTTPError(f"{run.location.name} has no adapter of round {number}.", status=422)
    to = "" if share == EVERYBODY else f" to {share / 100:g}% of the devices first"
    return {"round": str(number), "to": to, "follows": _follows(request, run.location, share)}


def asked_return(request: ConsoleRequest) -> Mapping[str, str]:
    """What going back to a release would do. HTTPError where there is no such release."""
    location = location_of(request.operations, request.path("id"))
    number = whole_number(request.given("number"), "number")
    if not any(one.number == number for one in request.operations.releases(location).promoted()):
        raise HTTPError(f"{location.name} has no release {number}.", status=422)
    name = release_name(location.directory.name, number)
    return {"number": str(number), "follows": _follows(request, location, EVERYBODY, name)}


def _follows(request: ConsoleRequest, location: RunLocation, share: int, again: str = "") -> str:
    """What choosing a release of a run means for its fleet now; `again`: its name where it is an old one."""
    fleet = request.operations.fleet_of(location)
    if fleet is None:
        if share != EVERYBODY:
            raise HTTPError("A simulation has no devices that could try a release first.", status=422)
        whose = f"{location.name}, whose devices are simulated"
        return f"It is then the current release of {whose}: none fetches it."
    now = request.operations.fleet(fleet).release()
    over = f" {now.canary} is tried no more." if now.canary else ""
    over = f" {now.waiting} waits no more." if now.waiting else over
    if share != EVERYBODY:
        if now.held or not now.used:
            why = f"{fleet.name} holds {now.used}" if now.held else f"{fleet.name} uses no release yet"
            raise HTTPError(f"{why}: nothing can be tried first.", status=422)
        return (
            f"{share / 100:g}% of the devices of {fleet.name} fetch it, once the authority has signed it. "
            f"All others stay with {now.used}, and so do exports and new runs.{over}"
        )
    if again and again == now.used:
        return f"{now.used} stays in use.{over}"
    if now.held:
        return f"{fleet.name} holds {now.used}: this one waits, and no device fetches it till then.{over}"
    place = f" in place of {now.used}" if now.used else ""
    return (
        f"All devices of {fleet.name} fetch it{place}, and new ones start from it, once the authority has "
        f"signed it. Exports give it at once.{over}"
    )


def roll_back(request: ConsoleRequest) -> Response:
    """Make an earlier release the current one again."""
    location = location_of(request.operations, request.path("id"))
    released = request.operations.releases(location)
    made = released.roll_back(whole_number(request.given("number"), "number"), request.name)
    return request.go(f"/releases?run={location.id}", f"Release {made.number} is current again.")


def hold(request: ConsoleRequest) -> Response:
    """Have a fleet stay with the release in use, or hold no more."""
    fleet = fleet_named(request)
    now = request.operations.fleet(fleet).hold(request.given("held") == "yes")
    what = "stays in use, whatever is promoted" if now.held else "is in use"
    return request.go("/releases", f"{now.used} {what}.")


def to_everybody(request: ConsoleRequest) -> Response:
    """Have all devices of a fleet use the release that a part of them tries: the one that the form names."""
    release = asked_canary(request)["release"]
    now = request.operations.fleet(fleet_named(request)).to_everybody(release)
    return request.go("/releases", f"{now.used} is in use.")


def asked_canary(request: ConsoleRequest) -> Mapping[str, str]:
    """Which release is to be for all devices. HTTPError unless it is the one that a part of them tries."""
    operations = request.operations.fleet(fleet_named(request))
    release, tried = request.given("release"), operations.release().canary
    if not release:
        raise HTTPError("The form names no release. Use the button of the page.", status=422)
    if release != tried:
        now = f"{tried} is tried by now" if tried else "None is tried by now"
        raise HTTPError(f"{now}, not {release}. Nothing was done; look at the page again.", status=409)
    return {"release": release, "verdict": operations.canary_verdict().words()}


def ask_again(request: ConsoleRequest) -> Response:
    """Ask the authority once more to sign the release that was chosen last."""
    name = request.operations.fleet(fleet_named(request)).ask_again()
    return request.go("/releases", f"The authority is asked to sign {name}.")


def download(request: ConsoleRequest) -> Response:
    """A round's shared adapter as a ZIP of peft's files."""
    location = location_of(request.operations, request.path("id"))
    number = whole_number(request.path("round"), "round")
    with request.context.downloads.place(request.session.digest):  # each is a process of its own
        data = _exported(request, location, number)
    name = f"{location.id}-round-{number}.zip"
    return Response(
        data, media_type="application/zip", headers={"content-disposition": f'attachment; filename="{name}"'}
    )


def _exported(request: ConsoleRequest, location: RunLocation, number: int) -> bytes:
    """The ZIP file; that it was asked for, and how it ended, is in the audit."""
    note = partial(
        request.context.store.note,
        request.name,
        request.address,
        "download an adapter",
        f"{location.id}/{number}",
        fleet=place_of(request.operations, location),
    )
    begun = note("begun")
    try:
        data = request.operations.releases(location).export(number)
    except PenchantError as error:
        note(f"failed: {error}", "", begun)
        raise
    note("done", "", begun)
    return data
