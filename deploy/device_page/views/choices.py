"""My choices: found, turned round, deleted, taken out and brought in. `edit` has the form for one."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence

from starlette.responses import Response

from penchant.client.device.preference_store import Recorded, RecordedTie, held_out
from penchant.common.data.importers.reading import Found
from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import RowLog, rows_of_memory
from penchant.common.data.trl_format import json_lines
from penchant.common.errors import DataError, UsageError
from penchant.common.printable import one_line
from penchant.common.wording import counted
from penchant.deploy.device_api.bodies import ApiLimits
from penchant.deploy.device_api.dialects import ApiRefusal
from penchant.deploy.device_api.feedback import bounded_choices
from penchant.deploy.device_page.background import Tell
from penchant.deploy.device_page.page_requests import PageRequest
from penchant.deploy.device_page.uploads import UploadForm
from penchant.server.console.at_once import HTTPError

__all__ = [
    "choices",
    "delete",
    "export",
    "export_ties",
    "named",
    "pair_of",
    "settle",
    "take",
    "turn",
    "untie",
    "who",
]

ON_A_PAGE = 20
PEOPLE_SHOWN = 200
ROWS_MOST = 500_000  # of one file, the bad ones among them
LIMITS = ApiLimits(choices=100_000, choice_characters=128 << 20)  # that one file may make
PATIENCE = 2.0  # seconds for which a page waits for a deletion to end


def choices(request: PageRequest) -> Response:
    """The recorded choices and ties, the latest first, or those with a text in them."""
    wanted, kept = request.asked("q"), request.device.store.all_marked()
    recorded = [row for _, row in kept if isinstance(row, Recorded)]
    latest = sorted(kept, key=lambda marked: (marked[1].recorded, marked[1].number), reverse=True)
    found = [(mark, row) for mark, row in latest if _holds(pair_of(row), wanted)]
    pages = max(1, -(-len(found) // ON_A_PAGE))
    page = min(max(request.number(request.asked("page"), 1), 1), pages)
    rows = found[(page - 1) * ON_A_PAGE : page * ON_A_PAGE]
    return request.render(
        "choices.html.j2",
        rows=[
            (
                row,
                pair_of(row),
                named(row),
                row.said if isinstance(row, RecordedTie) else "",
                held_out(pair_of(row)),
                mark.hex(),
            )
            for mark, row in rows
        ],
        ties=len(kept) - len(recorded),
        found=len(found),
        wanted=wanted,
        page=page,
        pages=pages,
        sources=dict(sorted(Counter(row.source for row in recorded).items())),
    )


def named(row: Recorded | RecordedTie) -> str:
    """How a form says which choice it is about. A number alone would not do: that of a choice which is gone
    goes to the next one that is recorded, and a tab that lies open would mean that one by it."""
    return f"{row.number}-{hashlib.sha256(row.encode()).hexdigest()[:32]}"


def pair_of(row: Recorded | RecordedTie) -> Preference:
    """The two responses, the preferred one first; of a tie, as they were shown."""
    return row.pair if isinstance(row, RecordedTie) else row.preference


def export(request: PageRequest) -> Response:
    """All choices, as `penchant device import` takes them."""
    lines = json_lines(row.preference for row in request.device.store.recorded())
    headers = {"content-disposition": 'attachment; filename="choices.jsonl"'}
    return Response("".join(lines), headers=headers, media_type="application/jsonl")


def export_ties(request: PageRequest) -> Response:
    """All ties, as `penchant device import` takes them, and `penchant device label` and `open --ask` too:
    those ask what was not answered on their device, as a tie neither."""
    lines = json_lines(tie.preference for tie in request.device.store.ties())
    headers = {"content-disposition": 'attachment; filename="ties.jsonl"'}
    return Response("".join(lines), headers=headers, media_type="application/jsonl")


def settle(request: PageRequest) -> Response:
    """One of a tie's two responses is the preferred one after all."""
    better = request.form.get("better", "")
    if better not in ("first", "second"):
        raise HTTPError("the better one is the first or the second", status=422)
    if not request.device.store.settle(_tie_meant(request), better == "first"):
        raise _gone()
    return request.go(_back(request), "The tie is a choice now. Train, and the model learns it.")


def untie(request: PageRequest) -> Response:
    """Forget one tie, and what was learned from it."""
    return _forget(request, "Deleting a tie", [], [_tie_meant(request)])


def turn(request: PageRequest) -> Response:
    """The other response is the preferred one."""
    if not request.device.store.turn_round(_meant(request)):
        raise _gone()
    return request.go(
        _back(request), "The choice is the other way round now. Train, and the model learns it."
    )


def delete(request: PageRequest) -> Response:
    """Forget one choice, and what was learned from it."""
    return _forget(request, "Deleting a choice", [_meant(request)], [])


def _forget(
    request: PageRequest, what: str, chosen: Sequence[Recorded], ties: Sequence[RecordedTie]
) -> Response:
    context = request.context

    def forget(tell: Tell) -> str:
        with context.model:
            try:
                done = context.device.forget_choices(chosen, ties)
            finally:
                context.let_go()  # which choices speak for a response, what they taught the sitting's model
                context.sitting.prepare()
        if done.why_not:
            return f"Deleted. The model is deleted too, and was not fitted anew: {one_line(done.why_not)}"
        return "Deleted, and the model was fitted anew to the rest." if done.fitted else "Deleted."

    context.work.start(what, forget)
    context.work.wait(PATIENCE)
    state = context.work.state
    if state is None or state.running:
        return request.go("/model")  # which says how far it is
    return request.go(_back(request), f"Not done: {one_line(state.wrong)}" if state.wrong else state.outcome)


def take(request: PageRequest) -> Response:
    """Record the choices of a file, all or none."""
    upload = request.upload or UploadForm({}, None)
    if upload.file is None:
        raise HTTPError("no file was chosen", status=422)
    log = RowLog("skip", most=ROWS_MOST)
    try:
        found = bounded_choices(rows_of_memory(upload.file, log), log, LIMITS)
    except ApiRefusal as refused:
        raise HTTPError(str(refused), status=refused.status) from None
    report = log.finish(upload.file.name)
    if report.bad and upload.fields.get("skip") != "yes":
        raise HTTPError(f"{report.summary()}; correct them, or leave them out", status=422)
    if report.bad:
        found.notes.append(report.summary())
    if len(found.people) > 1:
        mark = secrets.token_hex(8)
        request.context.waiting = (mark, upload.file.name, found)
        people = found.people[:PEOPLE_SHOWN]
        return request.render(
            "who.html.j2", 422, file=upload.file.name, mark=mark, people=people, count=len(found.people)
        )
    return _recorded(request, upload.file.name, found, None)


def who(request: PageRequest) -> Response:
    """Record the choices of the person that the owner is, of the file that the form asks about."""
    context = request.context
    with context.at_model():  # whoever forgets everything holds it
        waiting = context.waiting
        if waiting is None or waiting[0] != request.form.get("mark", ""):
            raise HTTPError("that file is not there any more; choose it again", status=409)
        context.waiting = None
        _, name, found = waiting
        person = request.form.get("person", "")
        if person not in found.people:
            raise HTTPError("nobody of that name is in the file; choose it again", status=422)
        return _recorded(request, name, found, person)


# --- inner parts --------------------------------------------------------------------------------------


def _recorded(request: PageRequest, name: str, found: Found, person: str | None) -> Response:
    kept = found.of(person)
    if not kept:
        raise DataError(f"{name} holds no choices")
    added = request.device.record(kept, f"file {one_line(name, 100)}")
    notes = " ".join(f"{one_line(note, 300)}." for note in found.notes)
    tied = f" and {counted(added.ties, 'tie')}" if added.ties else ""
    choices = counted(added.new - added.ties, "new choice")
    said = f"{choices}{tied} recorded, {added.repeated} were there already."
    return request.go("/choices", f"{said} {notes}".strip())


def _holds(p: Preference, wanted: str) -> bool:
    text = wanted.casefold()
    return any(text in part.casefold() for part in (p.prompt, p.chosen, p.rejected))


def _meant(request: PageRequest) -> Recorded:
    said = request.form.get("choice", "")
    for row in request.device.store.recorded():
        if said.startswith(f"{row.number}-") and said == named(row):
            return row
    raise _gone()


def _tie_meant(request: PageRequest) -> RecordedTie:
    said = request.form.get("choice", "")
    for tie in request.device.store.ties():
        if said == named(tie):
            return tie
    raise _gone()


def _gone() -> UsageError:
    return UsageError("that choice is not there any more")


def _back(request: PageRequest) -> str:
    page = request.number(request.form.get("page", ""), 1)
    return f"/choices?page={page}"
