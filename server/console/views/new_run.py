"""Starting a run: a form with a field for each setting, or the same as a file, and whether it can run.

What was written is never lost: not where it is refused, where another recipe, place or way to write is
chosen, or where the session has ended meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from starlette.responses import HTMLResponse, Response

from penchant.common.config import RunConfig
from penchant.common.durations import DAY
from penchant.common.errors import ConfigError, PenchantError
from penchant.common.settings import settings_by_group
from penchant.server.console import run_form
from penchant.server.console.operations import AT_ONCE, RunTurn, fleet_recipe
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.run_form import FormField
from penchant.server.console.views.common import all_runs, location_of, whole_number
from penchant.server.monitoring.run_history import RunLocation

__all__ = ["again", "check", "new", "start", "too_old"]

NO_FLEET = "The fleet that this was written for is not there any more. Choose where it shall run."
PERIODS = (
    (0, "once"),
    (DAY, "every day"),
    (7 * DAY, "every week"),
    (28 * DAY, "every four weeks"),
)
"""(seconds, in words): how often a run can come again."""

TOO_OLD = "This form is of an earlier login, or not ours. Nothing was done; look it over, and start it again."


@dataclass(frozen=True)
class Draft:
    """A run as it is written, before anybody has judged it.

    Attributes:
        name: what it shall be called.
        base: the recipe, or the id of the run, that it began with.
        fleet: where it shall run; None: on this machine, simulated.
        fields: one for each setting.
        file: the configuration, where it is written as a file; the fields count for nothing then.
        name_error: what is wrong with the name.
        place_error: what is wrong with where it shall run.
        turn: when a fleet's run begins, and with which factors.
        turn_error: what is wrong with that.
    """

    name: str
    base: str
    fleet: RunLocation | None
    fields: tuple[FormField, ...]
    file: str | None = None
    name_error: str = ""
    place_error: str = ""
    turn: RunTurn = AT_ONCE
    turn_error: str = ""

    @property
    def shown(self) -> tuple[FormField, ...]:
        """The fields that mean something where it shall run."""
        return run_form.applying(self.fields, fleet=self.fleet is not None)

    @property
    def carried(self) -> tuple[FormField, ...]:
        """The others, if anything is in them: it comes back where the place is changed back."""
        shown = {field.name for field in self.shown}
        return tuple(field for field in self.fields if field.changed and field.name not in shown)

    @property
    def toml(self) -> str:
        """The configuration."""
        return run_form.toml_of(self.shown) if self.file is None else self.file


@dataclass(frozen=True)
class Verdict:
    """Whether a draft can run, on a fleet or simulated, and what it would do.

    Attributes:
        config: the configuration; None where it can't run.
        error: why it can't, in one line; empty where single fields say so.
        wrong: the fields that can't be as they are.
        objections: why owners' devices would take no part by default.
        fleet: where it would run.
    """

    config: RunConfig | None
    error: str
    wrong: Sequence[FormField]
    objections: Sequence[str]
    fleet: RunLocation | None

    @property
    def summary(self) -> str:
        """Why it can't run, in one line; empty where it can."""
        if self.error or not self.wrong:
            return self.error
        if len(self.wrong) == 1:
            return self.wrong[0].error
        return f"{len(self.wrong)} settings can't be as they are"


@dataclass(frozen=True)
class Offer:
    """What a form offers, read once for a request.

    Attributes:
        recipes: name -> configuration to begin with.
        fleets: where a run can be, beside this machine.
        simulates: whether one can be on this machine.
    """

    recipes: Mapping[str, str]
    fleets: Sequence[RunLocation]
    simulates: bool

    @classmethod
    def of(cls, request: ConsoleRequest) -> Self:
        """What is offered now."""
        operations = request.operations
        return cls(operations.recipes(), operations.fleets(), operations.simulates())


# --- pages and actions ----------------------------------------------------------------------------


def new(request: ConsoleRequest) -> Response:
    """The form of a new run: what a login interrupted, or else a recipe or a run to begin with."""
    kept = request.context.drafts.take(request.csrf)
    if kept is not None:
        return again(replace(request, form=kept))
    offer = Offer.of(request)
    draft = _begun(request, offer, request.asked("from"), request.asked("name"))
    turn = RunTurn(request.name, request.asked("begin_with")[:200])
    return _page(request, offer, replace(draft, turn=turn) if draft.fleet else draft)


def again(request: ConsoleRequest) -> Response:
    """The form with what was written, after another recipe, place or way to write was chosen in it."""
    offer = Offer.of(request)
    draft = _written(request, offer.fleets)
    note, change = draft.place_error, _CHANGES.get(request.form.get("do", ""))
    if change is not None and not draft.place_error:
        draft, note = change(request, offer, draft)
    return _page(request, offer, draft, note=note)


def too_old(request: ConsoleRequest) -> Response:
    """The form with what was written in an earlier session."""
    offer = Offer.of(request)
    return _page(request, offer, _written(request, offer.fleets), error=TOO_OLD, status=403)


def check(request: ConsoleRequest) -> Response:
    """What changes by itself while a run is written. Changes nothing."""
    fleets = request.operations.fleets()
    draft, verdict = _judged(request, _written(request, fleets))
    return HTMLResponse(request.text("new_live.html.j2", verdict=verdict, **_facts(draft)))


def start(request: ConsoleRequest) -> Response:
    """Begin a new run."""
    fleets = request.operations.fleets()
    draft, verdict = _judged(request, _written(request, fleets))
    if draft.name_error or draft.turn_error or verdict.summary:
        why = draft.name_error or draft.turn_error or verdict.summary
        return _refused(request, draft, verdict, why)
    try:
        location = request.operations.start(draft.name, draft.toml, draft.fleet, draft.turn)
    except ConfigError as error:
        named = "name" in error.about
        draft = replace(draft, name_error=str(error)) if named else draft
        return _refused(request, draft, verdict, str(error))
    except PenchantError as error:
        return _refused(request, draft, verdict, str(error))
    if location is None:
        return request.go("/runs#queue", f"{draft.name or 'The run'} waits for its turn.")
    return request.go(f"/runs/{location.id}", f"{location.name} has begun.")


# --- what is shown --------------------------------------------------------------------------------


def _refused(request: ConsoleRequest, draft: Draft, verdict: Verdict, why: str) -> Response:
    request.refused = why
    return _page(request, Offer.of(request), draft, verdict, error=why, status=422)


def _page(
    request: ConsoleRequest,
    offer: Offer,
    draft: Draft,
    verdict: Verdict | None = None,
    *,
    note: str = "",
    error: str = "",
    status: int = 200,
) -> Response:
    """The form. verdict: on the draft, where it was judged already."""
    if verdict is None:
        draft, verdict = _judged(request, draft)
    page: dict[str, Any] = {
        "recipes": list(offer.recipes),
        "runs": [run for run in all_runs(request.operations) if run.config],
        "fleets": offer.fleets,
        "simulates": offer.simulates,
        "declared": settings_by_group(RunConfig),
        "verdict": verdict,
        "written": _kept(draft, _base(request, offer, draft)),
        "beginnings": _beginnings(request, draft),
        "periods": PERIODS,
        "tags": _tags(request, draft),
        "note": note,
        "error": error,
    }
    return request.render("new.html.j2", status, **page, **_facts(draft))


def _beginnings(request: ConsoleRequest, draft: Draft) -> list[tuple[str, str]]:
    """(what it can begin with, in words), and what was written, whatever it is."""
    if draft.fleet is None:
        return []
    offered = list(request.operations.fleet(draft.fleet).beginnings())
    wanted = draft.turn.begin_with
    return offered if not wanted or wanted in dict(offered) else [*offered, (wanted, wanted)]


def _tags(request: ConsoleRequest, draft: Draft) -> list[tuple[str, int]]:
    """(tag, how many members have it) of the fleet."""
    if draft.fleet is None:
        return []
    fleet = request.operations.fleet(draft.fleet)
    members = fleet.enrolment().members
    found = Counter(tag for m, note in fleet.notes().items() if m in members for tag in note.tags)
    found.setdefault(draft.turn.tag, 0)  # what was written stays
    return sorted((tag, count) for tag, count in found.items() if tag)


def _facts(draft: Draft) -> dict[str, Any]:
    return {"draft": draft, "groups": run_form.grouped(draft.shown)}


def _judged(request: ConsoleRequest, draft: Draft) -> tuple[Draft, Verdict]:
    """A draft with what is wrong at its fields, and the verdict on the whole."""
    if draft.place_error:
        return draft, Verdict(None, draft.place_error, (), (), None)
    wrong = () if draft.file is not None else tuple(field for field in draft.shown if field.error)
    if wrong:
        return draft, Verdict(None, "", wrong, (), draft.fleet)
    operations = request.operations
    try:
        config = operations.check(draft.toml, draft.fleet, draft.turn.tag)
    except PenchantError as error:
        about = error.about if isinstance(error, ConfigError) else ()
        draft = replace(draft, fields=run_form.marked(draft.fields, str(error), about))
        return draft, Verdict(None, str(error), (), (), draft.fleet)
    return draft, Verdict(config, "", (), operations.objections(config, draft.fleet), draft.fleet)


# --- what was written -----------------------------------------------------------------------------


def _written(request: ConsoleRequest, fleets: Sequence[RunLocation]) -> Draft:
    """What a form says."""
    form, name, name_error, place_error = request.form, request.form.get("name", ""), "", ""
    try:
        name = request.given("name", 64)
    except HTTPError as error:
        name_error = str(error)
    try:
        fleet = _chosen_fleet(request, fleets)
    except HTTPError:  # nothing is started elsewhere for it, and nothing that was written is lost
        fleet, place_error = None, NO_FLEET
    file = form["config"].replace("\r\n", "\n") if "config" in form else None
    fields = run_form.typed(form)
    turn, turn_error = _turn(request) if fleet else (AT_ONCE, "")
    return Draft(name, form.get("base", ""), fleet, fields, file, name_error, place_error, turn, turn_error)


def _turn(request: ConsoleRequest) -> tuple[RunTurn, str]:
    """When a run begins and with what, as a form says it, and what is wrong with that."""
    try:
        every = float(whole_number(request.given("every") or "0", "every"))
        request.given("tag", 32)
        given = request.given("begin_with"), request.given("turn") == "queue", request.given("at", 40)
    except HTTPError as error:
        return RunTurn(request.name), str(error)
    return RunTurn(request.name, *given, every, request.given("tag", 32)), ""


def _chosen_fleet(request: ConsoleRequest, fleets: Sequence[RunLocation]) -> RunLocation | None:
    """The fleet that a form names; None: on this machine, simulated. Refused when there is none such."""
    where = request.given("where")
    for fleet in fleets:
        if fleet.id == where:
            return fleet
    if where:
        raise HTTPError("There is no such fleet.", status=404)
    return None


# --- what it begins with --------------------------------------------------------------------------


def _begun(request: ConsoleRequest, offer: Offer, wanted: str, name: str = "") -> Draft:
    """A draft that is as a recipe or a run is; as a file where that can't be shown in fields."""
    recipes, fleets = offer.recipes, offer.fleets
    fleet = None if offer.simulates or not fleets else fleets[0]
    wanted = wanted or (fleet_recipe(fleet) if fleet else next(iter(recipes)))
    if wanted in recipes:
        text = recipes[wanted]
        fleet = next((one for one in fleets if fleet_recipe(one) == wanted), fleet)
    else:
        location = location_of(request.operations, wanted)
        text = request.operations.copied(location)
        fleet = request.operations.fleet_of(location) or fleet
    try:
        return Draft(name, wanted, fleet, run_form.beginning(RunConfig.keys_in(text)))
    except ConfigError:  # of another version, or edited by hand: the verdict says what is wrong
        return Draft(name, wanted, fleet, run_form.beginning({}), text)


def _base(request: ConsoleRequest, offer: Offer, draft: Draft) -> Draft:
    """What a draft began with, before anything was written."""
    try:
        return _begun(request, offer, draft.base)
    except (HTTPError, PenchantError):  # the run is gone meanwhile: whatever is no default was written
        return Draft("", "", None, run_form.beginning({}))


# --- changing one's mind --------------------------------------------------------------------------


def _with_recipe(request: ConsoleRequest, offer: Offer, draft: Draft) -> tuple[Draft, str]:
    """Another recipe or run to begin with, and its place; what was written stays on top of it."""
    try:
        taken = _begun(request, offer, request.form.get("from", ""))
    except (HTTPError, PenchantError) as error:
        return draft, str(error)
    return _on_top(request, offer, draft, taken)


def _with_place(request: ConsoleRequest, offer: Offer, draft: Draft) -> tuple[Draft, str]:
    """Another place. A recipe is made for one, and the usual one of the new place comes instead of it."""
    if draft.base not in offer.recipes:
        return draft, ""
    usual = fleet_recipe(draft.fleet) if draft.fleet else next(iter(offer.recipes))
    return _on_top(request, offer, draft, replace(_begun(request, offer, usual), fleet=draft.fleet))


def _on_top(request: ConsoleRequest, offer: Offer, draft: Draft, taken: Draft) -> tuple[Draft, str]:
    """`draft` as if it had begun with `taken`."""
    before = _base(request, offer, draft)
    result = replace(draft, base=taken.base, fleet=taken.fleet)
    if draft.file is not None:
        untouched = draft.file.strip() in ("", before.toml.strip())
        note = "The file is as you wrote it. To begin with another, empty it first."
        return (replace(result, file=taken.toml), "") if untouched else (result, note)
    if taken.file is not None:
        return draft, f"{taken.base} can’t be shown as fields. Choose “Write it as a file” first."
    kept = _kept(draft, before)
    fields = tuple(kept.get(field.name, field) for field in taken.fields)
    stays = [field.setting.key for field in taken.fields if field.name in kept]
    return replace(result, fields=fields), f"As you wrote it: {', '.join(stays)}." if stays else ""


def _kept(draft: Draft, before: Draft) -> dict[str, FormField]:
    """The fields in which something was written since, by name."""
    was = {field.name: field.text for field in before.fields}
    return {field.name: field for field in draft.fields if field.text != was[field.name]}


def _as_file(request: ConsoleRequest, offer: Offer, draft: Draft) -> tuple[Draft, str]:
    """The same, as a file."""
    return replace(draft, file=draft.toml), ""


def _as_fields(request: ConsoleRequest, offer: Offer, draft: Draft) -> tuple[Draft, str]:
    """The same, as fields; a file that they can't show stays a file."""
    try:
        values = RunConfig.keys_in(draft.toml)
    except ConfigError as error:
        return draft, f"This file can’t be shown as fields yet: {error}"
    carried = {field.name: field for field in draft.carried if field.setting.key not in values}
    fields = tuple(carried.get(field.name, field) for field in run_form.beginning(values))
    return replace(draft, file=None, fields=fields), ""


_CHANGES: Mapping[str, Callable[[ConsoleRequest, Offer, Draft], tuple[Draft, str]]] = {
    "recipe": _with_recipe,
    "place": _with_place,
    "file": _as_file,
    "fields": _as_fields,
}
"""What the buttons of the form do, beside checking and starting."""
