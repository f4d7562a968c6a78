"""Choose: two responses side by side, one key each."""

from __future__ import annotations

from typing import cast

from starlette.responses import Response

from penchant.deploy.device_page.page_requests import PageRequest
from penchant.deploy.device_page.picture import why_no_training
from penchant.deploy.device_page.sitting import Answer
from penchant.server.console.at_once import HTTPError

__all__ = ["answer", "choose"]

ANSWERS = ("first", "second", "equal", "bad", "skip", "undo")


def choose(request: PageRequest) -> Response:
    """The question that is asked now.

    A script that would put it in the place of the last one has the whole page loaded where there is none to
    put there, or something to be said beside it.
    """
    asked = request.context.sitting.now()
    if request.by_script and (asked is None or request.context.flash):
        return Response(headers={"HX-Refresh": "true"})
    if asked is None:
        return request.render("preparing.html.j2")
    untrainable = why_no_training(request.device) if asked.question is None else ""
    return request.render(
        "choose.html.j2", asked=asked, choices=len(request.device.store), untrainable=untrainable
    )


def answer(request: PageRequest) -> Response:
    """Take the answer, and ask on."""
    said = request.form.get("say", "")
    if said not in ANSWERS:
        raise HTTPError("an answer is 1, 2, equal, both bad, skip or undo", status=422)
    turn = request.number(request.form.get("turn", ""), -1)
    try:
        with request.context.at_model():
            taken = request.context.sitting.answer(turn, cast(Answer, said))
    except HTTPError as busy:
        return request.go("/", f"Not done: {busy}")
    late = (
        "Nothing to take back." if said == "undo" else "That question was answered already; here is the next."
    )
    return request.go("/", "" if taken else late)
