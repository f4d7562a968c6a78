"""The console's pages. Each is a function of a visit; what it shows comes from `facts` and `Operations`."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import segno
from markupsafe import Markup
from starlette.responses import Response

from penchant.common.codec import PROTOCOL_VERSION
from penchant.common.errors import PenchantError
from penchant.server.console import attention, charts, words
from penchant.server.console.facts import STAGES, Attempt, Device, Ledger, Place, RunFacts, facts_of
from penchant.server.console.operations import Link, fleet_recipe
from penchant.server.console.web import Desk, Refused, Visit

__all__ = [
    "ask_revocation",
    "audit",
    "check",
    "compare",
    "confirm_delete",
    "delete",
    "devices",
    "download",
    "invite",
    "live_devices",
    "live_overview",
    "live_run",
    "new",
    "overview",
    "privacy",
    "promote",
    "releases",
    "resume",
    "roll_back",
    "run",
    "runs",
    "start",
    "stop",
]  # fmt: skip

LOG_LINES = 200
ROUNDS_SHOWN = 15
DEVICES_A_PAGE = 50
TOKENS_SHOWN = 15
DEEDS_A_PAGE = 50
MOST_COMPARED = 6
BINS = tuple(f"accuracy {i}/10" for i in range(10))
COUNTERS = {
    "weight": "how many choices were learned from, over all",
    "loss": "training loss, added up",
    "correct": "held-out choices ranked right, over all",
    "total": "held-out choices, over all",
}

Fragments = Mapping[str, str]


# --- what pages share -----------------------------------------------------------------------------


def all_runs(desk: Desk) -> list[RunFacts]:
    """The facts of every run: those at work first, then the one that moved last."""
    places = desk.operations.places()
    work = desk.operations.work(places)
    found = [facts_of(place, work[place.id]) for place in places]
    return sorted(found, key=lambda run: (run.state != "running", -run.touched))


def place_of(desk: Desk, wanted: str) -> Place:
    """The run with this id. Refused when there is none: an id is looked up, never made into a path."""
    for place in desk.operations.places():
        if place.id == wanted:
            return place
    raise Refused("There is no such run. It may have been deleted.", status=404)


def run_of(desk: Desk, wanted: str) -> RunFacts:
    """Its facts."""
    place = place_of(desk, wanted)
    return facts_of(place, desk.operations.work([place])[place.id])


def chosen(visit: Visit) -> tuple[list[RunFacts], RunFacts | None]:
    """All runs, and the one that a page is about: the one asked for, or the first."""
    found = all_runs(visit.desk)
    wanted = visit.asked("run")
    if not wanted:
        return found, found[0] if found else None
    for run in found:
        if run.place.id == wanted:
            return found, run
    raise Refused("There is no such run. It may have been deleted.", status=404)


def curve(run: RunFacts, value: Callable[[Any], float | None]) -> list[tuple[float, float | None]]:
    """(round, value) of every finished round."""
    return [(float(log.round), value(log)) for log in run.logs]


def accuracy_chart(run: RunFacts, height: int = 220) -> Markup:
    """How well choices that no model learned from are ranked, by round."""
    return charts.lines(
        [charts.Series("Fleet accuracy", curve(run, lambda log: log.val_accuracy))],
        title="Fleet accuracy on held-out choices",
        text=lambda y: words.percent(y, 0 if round(100 * y, 6) % 1 == 0 else 1),
        reference=(0.5, "guessing"),
        height=height,
    )


def loss_chart(run: RunFacts, height: int = 220) -> Markup:
    """Training loss by round."""
    return charts.lines(
        [charts.Series("Training loss", curve(run, lambda log: log.train_loss), 2)],
        title="Training loss, mean over choices",
        text=lambda y: f"{y:.3g}",
        height=height,
    )


def histogram_chart(run: RunFacts) -> Markup | None:
    """People per tenth of accuracy in the latest round that tells; None where none does."""
    found = run.histogram
    if found is None:
        return None
    labels = [f"{10 * i}–{10 * i + 10}" for i in range(len(found[1]))]
    return charts.bars(
        [float(n) for n in found[1]],
        labels,
        title=f"People by their accuracy, round {found[0]}",
        text=lambda n: words.whole(n),
        axis="percent of their own held-out choices ranked right",
    )


_DULL = {("log in", "done"), ("log out", "done")}
"""Lines of the audit that the overview leaves out."""


# --- overview -------------------------------------------------------------------------------------


def overview(visit: Visit) -> Response:
    """The fleet's health at a glance."""
    return visit.render("overview.html.j2", **overview_facts(visit))


def overview_facts(visit: Visit) -> dict[str, Any]:
    """What the overview shows."""
    desk, now = visit.desk, time.time()
    found = all_runs(desk)
    main = found[0] if found else None
    notices = [notice for run in found for notice in attention.of_run(run, now)]
    fleets = [fleet_facts(desk, fleet, found, now) for fleet in desk.operations.fleets()]
    notices += [notice for fleet in fleets for notice in fleet["notices"]]
    notices.sort(key=lambda notice: notice.kind != "bad")
    ledger = Ledger(main.place.directory) if main else None
    return {
        "runs": found[:6],
        "more": max(len(found) - 6, 0),
        "fleets": fleets,
        "main": main,
        "notices": notices,
        "devices": ledger.count_devices() if ledger else 0,
        "stages": stages_of(main) if main else [],
        "accuracy_chart": accuracy_chart(main) if main and main.logs else None,
        "loss_chart": loss_chart(main) if main and main.logs else None,
        "sparks": {
            run.place.id: charts.spark(
                [log.val_accuracy for log in run.logs if log.val_accuracy is not None],
                f"accuracy of {run.place.name} by round",
            )
            for run in found[:6]
        },
        "deeds": [d for d in desk.store.deeds(limit=40) if (d.action, d.outcome) not in _DULL][:6],
    }


def fleet_facts(desk: Desk, fleet: Place, found: Sequence[RunFacts], now: float) -> dict[str, Any]:
    """How a fleet's server and its members are. found: all runs."""
    link, enrolment = desk.operations.link(fleet), desk.operations.enrolment(fleet)
    asked, tokens = desk.operations.revocations(fleet), desk.operations.tokens(fleet)
    runs = [run for run in found if _tells_of(desk, run.place, fleet)]
    return {
        "place": fleet,
        "link": link,
        "fresh": link.fresh(now),
        "enrolment": enrolment,
        "notices": list(attention.of_fleet(fleet, link, runs, enrolment, asked, tokens, now)),
    }


def live_overview(visit: Visit) -> Fragments:
    """The parts of the overview that change by themselves."""
    return {"overview": visit.text("overview_live.html.j2", **overview_facts(visit))}


# --- runs -----------------------------------------------------------------------------------------


def runs(visit: Visit) -> Response:
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


def compare(visit: Visit) -> Response:
    """The curves of some runs in one drawing, and where their configurations differ."""
    wanted = list(dict.fromkeys(visit.request.query_params.getlist("run")))
    if len(wanted) > MOST_COMPARED:
        raise Refused(f"At most {MOST_COMPARED} runs can be compared at a time.", status=400)
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
            text=lambda y: words.percent(y),
            height=300,
            width=charts.WIDE,
        ),
        loss=charts.lines(
            losses, title="Training loss", text=lambda y: f"{y:.3g}", height=240, width=charts.WIDE
        ),
        differences=differences([run for run in found if run.config]),
    )


def differences(found: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Configuration keys that are not the same in all runs, with each run's value."""
    tables = [_flat(run) for run in found]
    keys = sorted({key for table in tables for key in table})
    rows = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(run: RunFacts) -> dict[str, str]:
    from penchant.common.config import section_table

    table = section_table(run.config) if run.config else {}
    flat: dict[str, str] = {}
    for key, value in table.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{key}.{name}".rstrip("."): str(v) for name, v in inner}
    return flat


def new(visit: Visit) -> Response:
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
        text = (place.directory / "config.toml").read_text(encoding="utf-8")
        fleet = operations.fleet_of(place) or fleet
    return _form(visit, visit.asked("name"), text, wanted, fleet=fleet)


def _form(
    visit: Visit,
    name: str,
    text: str,
    wanted: str = "",
    *,
    fleet: Place | None = None,
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
        verdict=verdict(visit, text, fleet),
    )


def verdict(visit: Visit, text: str, fleet: Place | None) -> dict[str, Any]:
    """Whether a configuration can run, on a fleet or simulated, and what it would do."""
    try:
        return {"config": visit.desk.operations.check(text, fleet), "error": "", "fleet": fleet}
    except PenchantError as error:
        return {"config": None, "error": str(error), "fleet": fleet}


def check(visit: Visit) -> Response:
    """The verdict on a configuration while it is written. Changes nothing."""
    from starlette.responses import HTMLResponse

    said = verdict(visit, visit.form.get("config", ""), chosen_fleet(visit))
    return HTMLResponse(visit.text("verdict.html.j2", verdict=said))


def chosen_fleet(visit: Visit) -> Place | None:
    """The fleet that a form names; None: on this machine, simulated. Refused when there is none such."""
    where = visit.given("where")
    for fleet in visit.desk.operations.fleets():
        if fleet.id == where:
            return fleet
    if where:
        raise Refused("There is no such fleet.", status=404)
    return None


def start(visit: Visit) -> Response:
    """Begin a new run."""
    name, text, fleet = visit.given("name", 64), visit.form.get("config", ""), chosen_fleet(visit)
    try:
        place = visit.desk.operations.start(name, text, fleet)
    except PenchantError as error:
        visit.desk.store.note(visit.name, visit.address, "start a run", name, f"refused: {error}")
        return _form(visit, name, text, fleet=fleet, error=str(error), status=422)
    return visit.go(f"/runs/{place.id}", f"{place.name} has begun.")


# --- one run --------------------------------------------------------------------------------------


def stages_of(run: RunFacts) -> list[dict[str, Any]]:
    """The five stages of the attempt at work (or of the last one), each as it stands."""
    last: Attempt | None = run.attempts[-1] if run.attempts else None
    if last is None:
        return []
    known = {s.name: s for s in Ledger(run.place.directory).stages(last.round, last.attempt)}
    secagg = run.config is None or run.config.privacy.secagg
    names = STAGES if secagg else ("keys", "masked")
    over = last.state not in ("started", "unmasking")
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
        seconds = None if stage is None or stage.ended is None else stage.ended - stage.began
        rows.append({"name": name, "state": state, "stage": stage, "seconds": seconds})
    return rows


def run_facts(visit: Visit, run: RunFacts) -> dict[str, Any]:
    """What a run's page shows."""
    logs = run.logs
    shown = [a for a in reversed(run.attempts) if a.log or a.state in ("failed", "skipped")]
    every = visit.asked("rounds") == "all"
    traffic = [
        charts.Series(
            "sent by a device", curve(run, lambda g: g.bytes_up / g.cohort if g.cohort else None), 1
        ),
        charts.Series(
            "received by a device", curve(run, lambda g: g.bytes_down / g.cohort if g.cohort else None), 2
        ),
    ]
    return {
        "run": run,
        "stages": stages_of(run),
        "current": run.attempts[-1] if run.attempts else None,
        "accuracy": accuracy_chart(run) if logs else None,
        "loss": loss_chart(run) if logs else None,
        "histogram": histogram_chart(run),
        "people": _people(run),
        "traffic": charts.lines(traffic, title="Traffic of one device", text=words.size, zero=True),
        "seconds": charts.lines(
            [charts.Series("Seconds", curve(run, lambda g: g.seconds), 3)],
            title="Time of a round",
            text=words.duration,
            zero=True,
        ),
        "lost": charts.lines(
            [charts.Series("lost", curve(run, lambda g: float(g.cohort - g.survivors)), 4)],
            title="Devices lost in a round",
            text=lambda y: f"{y:g}",
            zero=True,
            least=4,
        ),
        "rows": shown if every else shown[:ROUNDS_SHOWN],
        "hidden": 0 if every else max(len(shown) - ROUNDS_SHOWN, 0),
        "log": list(visit.desk.operations.log(run.place, LOG_LINES)),
    }


def _people(run: RunFacts) -> str:
    """Why there is no histogram."""
    last = run.last
    if last is None:
        return "The first round has not ended yet."
    if run.config is not None and not run.config.data.validation_pairs:
        return "Nobody keeps choices back to measure with (data.validation_pairs is 0)."
    return "Below 20 honest people in a sum, a histogram could point at one of them: none is made."


def run(visit: Visit) -> Response:
    """One run, live."""
    found = run_of(visit.desk, visit.path("id"))
    text = found.config.to_toml() if found.config else ""
    return visit.render("run.html.j2", config_text=text, **run_facts(visit, found))


PARTS = ("head", "now", "curves", "rounds", "log")


def live_run(visit: Visit) -> Fragments:
    """The parts of a run's page that change by themselves."""
    page = run_facts(visit, run_of(visit.desk, visit.path("id")))
    return {part: visit.text(f"run_{part}.html.j2", **page) for part in PARTS}


def stop(visit: Visit) -> Response:
    """Stop what works on a run."""
    place = place_of(visit.desk, visit.path("id"))
    visit.desk.operations.stop(place)
    return visit.go(f"/runs/{place.id}", f"{place.name} has stopped. Finished rounds stand.")


def resume(visit: Visit) -> Response:
    """Go on with a run."""
    place = place_of(visit.desk, visit.path("id"))
    visit.desk.operations.resume(place)
    return visit.go(f"/runs/{place.id}", f"{place.name} goes on.")


def confirm_delete(visit: Visit) -> Response:
    """Whether a run is really to be deleted."""
    return visit.render("delete.html.j2", run=run_of(visit.desk, visit.path("id")), error="")


def delete(visit: Visit) -> Response:
    """Delete a run whose name was typed."""
    found = run_of(visit.desk, visit.path("id"))
    if visit.given("confirm") != found.place.name:
        visit.desk.store.note(
            visit.name, visit.address, "delete a run", found.place.id, "refused: another name was typed"
        )
        return visit.render(
            "delete.html.j2", 422, run=found, error="That is not its name. Nothing was deleted."
        )
    visit.desk.operations.delete(found.place)
    return visit.go("/runs", f"{found.place.name} is deleted.")


# --- devices --------------------------------------------------------------------------------------


def devices(visit: Visit) -> Response:
    """Who belongs, who is there, and who was met: of a fleet (its latest run), or of a simulation."""
    return visit.render("devices.html.j2", **devices_facts(visit))


def devices_facts(visit: Visit) -> dict[str, Any]:
    """What the page of devices shows."""
    desk, now = visit.desk, time.time()
    found = all_runs(desk)
    subject, run = subject_of(visit, found)
    around: dict[str, Any] = {"subjects": subjects(desk, found), "subject": subject, "run": run}
    if subject is None:
        return around
    search = "".join(c for c in visit.asked("q") if c.isascii() and c.isdigit())[:20]
    order = visit.asked("order", "member")
    if order not in ORDERS:
        raise Refused("Devices can be listed by member, seen or joined.", status=400)
    number = max(_whole(visit.asked("page", "1"), "page"), 1)
    met = Ledger(run.place.directory).devices() if run else []
    about = belonging(desk, subject)
    listed = known(subject, run, met, about, now)
    rows = sorted((one for one in listed if str(one.member).startswith(search)), key=ORDERS[order])
    every = visit.asked("tokens") == "all"
    shown = [t for i, t in enumerate(about["tokens"]) if every or i < TOKENS_SHOWN or t.state == "waiting"]
    return {
        **around,
        **about,
        "which": visit.asked("run") or subject.id,
        "tokens_shown": shown,
        "tokens_hidden": len(about["tokens"]) - len(shown),
        "every_token": every,
        "rows": rows[(number - 1) * DEVICES_A_PAGE : number * DEVICES_A_PAGE],
        "count": len(rows),
        "met": len(met),
        "recent": sum(one.here or now - (one.seen or 0.0) < 86400 for one in listed),
        "fresh": about["link"] is not None and about["link"].fresh(now),
        "search": search,
        "order": order,
        "page": number,
        "pages": max(-(-len(rows) // DEVICES_A_PAGE), 1),
    }


DEVICE_PARTS = ("numbers", "list", "invitations", "revocations")


def live_devices(visit: Visit) -> Fragments:
    """The parts of the page of devices that change by themselves."""
    page = devices_facts(visit)
    if page["subject"] is None:
        return {}
    return {part: visit.text(f"devices_{part}.html.j2", **page) for part in DEVICE_PARTS}


@dataclass(frozen=True)
class Known:
    """A device as the console knows it: from the authority's list, the enrolment desk, the SuperLink and the
    run's journal. node: None before the SuperLink lets it in. look: how `state` is shown. seen: Unix
    seconds, None: never; here: it is online now. protocol: of what it answered, None before it did."""

    member: int
    node: str | None
    state: str
    look: str
    here: bool
    seen: float | None
    joined: int
    last: int | None
    protocol: int | None


ORDERS: Mapping[str, Callable[[Known], Any]] = {
    "member": lambda device: device.member,
    "seen": lambda device: (not device.here, -(device.seen or 0.0), device.member),
    "joined": lambda device: (-device.joined, device.member),
}


def known(
    subject: Place, run: RunFacts | None, met: Sequence[Device], about: Mapping[str, Any], now: float
) -> list[Known]:
    """All devices: those that were met, and those of a fleet's members that were not yet."""
    devices = {device.member: device for device in met}
    nodes = {token.member: token.node for token in about["tokens"] if token.member is not None}
    enrolment, link = about["enrolment"], about["link"]
    numbers = set(devices) | set(nodes) | (enrolment.members if enrolment else set())
    return [
        _known(number, devices.get(number), nodes.get(number), subject, run, link, now) for number in numbers
    ]


def _known(
    number: int,
    device: Device | None,
    enrolled: str | None,
    subject: Place,
    run: RunFacts | None,
    link: Link | None,
    now: float,
) -> Known:
    name = enrolled or (device.node if device else None)
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
        node=name,
        state=state if heard or name else "not met yet",
        look=look,
        here=here,
        seen=max(heard, default=None),
        joined=device.joined if device else 0,
        last=device.last if device else None,
        protocol=PROTOCOL_VERSION if device else None,  # a device of another one is never ready
    )


def subjects(desk: Desk, found: Sequence[RunFacts]) -> list[Place]:
    """What has devices: fleets first, then runs that belong to none."""
    alone = [run.place for run in found if desk.operations.fleet_of(run.place) is None]
    return [*desk.operations.fleets(), *alone]


def subject_of(visit: Visit, found: Sequence[RunFacts]) -> tuple[Place | None, RunFacts | None]:
    """The fleet or run that is asked for (the first without a question), and the run that tells of it."""
    listed, wanted = subjects(visit.desk, found), visit.asked("run")
    run = next((run for run in found if run.place.id == wanted), None)
    if run is not None:
        return visit.desk.operations.fleet_of(run.place) or run.place, run
    place = next((place for place in listed if wanted in ("", place.id)), None)
    if place is None and wanted:
        raise Refused("There is no such run. It may have been deleted.", status=404)
    return place, next((run for run in found if place and _tells_of(visit.desk, run.place, place)), None)


def _tells_of(desk: Desk, run: Place, subject: Place) -> bool:
    fleet = desk.operations.fleet_of(run)
    return run.id == subject.id or (fleet is not None and fleet.id == subject.id)


def belonging(desk: Desk, subject: Place) -> dict[str, Any]:
    """Members, invitations and revocations of a fleet; a simulation has none."""
    if subject.kind != "fleet":
        return {"enrolment": None, "link": None, "revocations": [], "pending": set(), "tokens": []}
    asked = desk.operations.revocations(subject)
    return {
        "enrolment": desk.operations.enrolment(subject),
        "link": desk.operations.link(subject),
        "revocations": asked,
        "pending": {r.member for r in asked if r.signed is None},
        "tokens": desk.operations.tokens(subject),
    }


def qr_code(text: str) -> Markup:
    """A QR code as SVG without style attributes."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(
        out, kind="svg", xmldecl=False, svgns=False, omitsize=True, svgclass="qr", lineclass=None, border=3,
        dark="#000", light="#fff",
    )  # fmt: skip
    return Markup(out.getvalue().decode())


def fleet_named(visit: Visit) -> Place:
    """The fleet of the path. Refused where there is none: simulated devices need no token."""
    wanted = visit.path("id")
    for fleet in visit.desk.operations.fleets():
        if fleet.id == wanted:
            return fleet
    raise Refused("There is no such fleet; simulated devices need no token and can't be revoked.", status=404)


def invite(visit: Visit) -> Response:
    """Hand out a join token: shown in the answer to this form, once, and nowhere kept."""
    place = fleet_named(visit)
    label = visit.given("label", 80)
    days = _whole(visit.given("days") or "7", "days")
    if not 1 <= days <= 90:
        raise Refused("An invitation is good for 1 to 90 days.", status=422)
    token = visit.desk.operations.invite(place, label, days)
    return visit.render("token.html.j2", place=place, token=token, qr=qr_code(token.text))


def ask_revocation(visit: Visit) -> Response:
    """Ask the authority to take a member out."""
    place = fleet_named(visit)
    member = _whole(visit.given("member"), "member")
    visit.desk.operations.ask_revocation(place, member, visit.given("why"), visit.name)
    return visit.go(
        f"/devices?run={place.id}",
        f"The authority is asked to revoke member {member}; pending until it has signed.",
    )


# --- privacy, releases, audit ---------------------------------------------------------------------


def privacy(visit: Visit) -> Response:
    """What the server saw, round by round."""
    found, run = chosen(visit)
    if run is None:
        return visit.render("privacy.html.j2", runs=found, run=None)
    sums = Ledger(run.place.directory).sums()
    shown = list(reversed(run.logs))
    every = visit.asked("rounds") == "all"
    smallest = min((log.survivors for log in run.logs), default=None)
    return visit.render(
        "privacy.html.j2",
        runs=found,
        run=run,
        sums=sums,
        numbers={s.phase: sum(_product(shape) for _, shape in s.parts) for s in sums},
        rows=shown if every else shown[:ROUNDS_SHOWN],
        hidden=0 if every else max(len(shown) - ROUNDS_SHOWN, 0),
        smallest=smallest,
        counters=COUNTERS,
        bin_names=BINS,
    )


def _product(sides: Sequence[int]) -> int:
    product = 1
    for side in sides:
        product *= side
    return product


def releases(visit: Visit) -> Response:
    """Versions of the shared adapter."""
    found, run = chosen(visit)
    if run is None:
        return visit.render("releases.html.j2", runs=found, run=None)
    candidates = [a for a in reversed(run.attempts) if a.log is not None and a.digest]
    every = visit.asked("rounds") == "all"
    best = max(
        (a for a in candidates if a.log and a.log.val_accuracy is not None),
        key=lambda a: a.log.val_accuracy if a.log and a.log.val_accuracy is not None else 0.0,
        default=None,
    )
    promoted = list(visit.desk.operations.releases(run.place))
    return visit.render(
        "releases.html.j2",
        runs=found,
        run=run,
        candidates=candidates if every else candidates[:ROUNDS_SHOWN],
        hidden=0 if every else max(len(candidates) - ROUNDS_SHOWN, 0),
        best=best.round if best else None,
        releases=promoted,
        current=next((release for release in promoted if release.current), None),
        by_round={a.round: a for a in candidates},
    )


def promote(visit: Visit) -> Response:
    """Make a round's adapter the current release."""
    place = place_of(visit.desk, visit.path("id"))
    made = visit.desk.operations.promote(place, _whole(visit.given("round"), "round"), visit.name)
    return visit.go(
        f"/releases?run={place.id}", f"Release {made.number} is the adapter of round {made.round}."
    )


def roll_back(visit: Visit) -> Response:
    """Make an earlier release the current one again."""
    place = place_of(visit.desk, visit.path("id"))
    made = visit.desk.operations.roll_back(place, _whole(visit.given("number"), "number"), visit.name)
    return visit.go(f"/releases?run={place.id}", f"Release {made.number} is current again.")


def download(visit: Visit) -> Response:
    """A round's shared adapter as a ZIP of peft's files."""
    place = place_of(visit.desk, visit.path("id"))
    number = _whole(visit.path("round"), "round")
    begun = visit.desk.store.note(
        visit.name, visit.address, "download an adapter", f"{place.id}/{number}", "begun"
    )
    try:
        data = visit.desk.operations.export(place, number)
    except PenchantError as error:
        visit.desk.store.note(
            visit.name, visit.address, "download an adapter", f"{place.id}/{number}", f"failed: {error}",
            "", begun,
        )  # fmt: skip
        raise
    visit.desk.store.note(
        visit.name, visit.address, "download an adapter", f"{place.id}/{number}", "done", "", begun
    )
    name = f"{place.id}-round-{number}.zip"
    return Response(
        data, media_type="application/zip", headers={"content-disposition": f'attachment; filename="{name}"'}
    )


def audit(visit: Visit) -> Response:
    """Who did what."""
    before = _whole(visit.asked("before"), "before") if visit.asked("before") else None
    account = visit.asked("account")[:32]
    rows = visit.desk.store.deeds(limit=DEEDS_A_PAGE + 1, before=before, account=account)
    return visit.render(
        "audit.html.j2",
        rows=rows[:DEEDS_A_PAGE],
        older=rows[DEEDS_A_PAGE - 1].number if len(rows) > DEEDS_A_PAGE else None,
        before=before,
        account=account,
        accounts=[one.name for one in visit.desk.store.accounts()],
        broken=visit.desk.store.broken(),
    )


def _whole(text: str, what: str) -> int:
    """A whole number from a form or an address. Refused for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise Refused(f"{what} must be a whole number", status=422)
    return int(text)
