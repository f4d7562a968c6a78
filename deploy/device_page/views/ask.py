"""Ask: a prompt, several responses to it, the one first that the owner would like most."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from starlette.responses import Response

from penchant.common.errors import PenchantError, UsageError
from penchant.common.printable import one_line
from penchant.common.wording import counted
from penchant.deploy.device_page.background import Tell
from penchant.deploy.device_page.page_requests import TEXT_MOST, PageRequest
from penchant.deploy.device_page.writers import PolicyWriter
from penchant.server.console.at_once import HTTPError

__all__ = ["ask", "look", "now", "pick", "send", "take_back"]

COUNT_MOST = 16  # responses
PATIENCE = 1.0  # seconds for which a page waits for the responses


def ask(request: PageRequest) -> Response:
    """Where to ask, and what came of it the last time."""
    if request.by_script:  # a response was picked by one
        return _came(request, request.context.take_flash())
    return _page(request)


def now(request: PageRequest) -> Response:
    """How far it is; the responses once they are there."""
    return request.progress(request.context.asking, "/ask/now", lambda: _came(request), "#came")


def look(request: PageRequest) -> Response:
    """How far it is, with what is being typed meanwhile: for a browser without scripts."""
    return _page(request, **_typed(request))


def send(request: PageRequest) -> Response:
    """Have responses written, and rank them."""
    try:
        _begin(request)
    except (HTTPError, PenchantError) as refused:  # what was typed stays where it was typed
        status = refused.status if isinstance(refused, HTTPError) else 422
        return _page(request, status, refused=one_line(str(refused), 500), **_typed(request))
    request.context.asking.wait(PATIENCE)
    return request.go("/ask")


def pick(request: PageRequest) -> Response:
    """The owner takes one of the responses."""
    place, context = request.number(request.form.get("place", ""), -1), request.context
    with context.at_model():  # whoever forgets everything holds it
        picked = context.desk.pick(request.form.get("mark", ""), place)
    if not picked:
        raise HTTPError("that response is not to be had any more; nothing was recorded", status=409)
    return request.go("/ask")


def take_back(request: PageRequest) -> Response:
    """Record nothing of it after all."""
    context = request.context
    with context.at_model():
        taken_back = context.desk.take_back(request.form.get("mark", ""))
    if not taken_back:
        raise HTTPError("there is nothing to take back", status=409)
    return request.go("/ask", "Taken back.")


# --- inner parts --------------------------------------------------------------------------------------


def _begin(request: PageRequest) -> None:
    """Begin with what the form asks for."""
    context = request.context
    writer, desk = context.desk.writer, context.desk
    prompt, count = request.form.get("prompt", ""), request.number(request.form.get("count", ""), 0)
    if writer is None:
        raise UsageError("nobody writes responses here: `penchant device open --upstream URL`")
    if not prompt.strip():
        raise UsageError("the prompt is empty; say what the responses are to respond to")
    if len(prompt) > TEXT_MOST or not 2 <= count <= COUNT_MOST:
        raise HTTPError(f"2 to {COUNT_MOST} responses, and a prompt of {TEXT_MOST} characters", status=413)

    def written(tell: Tell) -> str:
        desk.begin(prompt, count)
        tell(f"{counted(count, 'response')} are being written")
        with context.model if isinstance(writer, PolicyWriter) else nullcontext():
            texts = writer.write(prompt, count)
        tell(f"ranking {counted(len(texts), 'response')}")
        with context.model:
            desk.rank(prompt, texts)
        return ""

    context.asking.start("Asking", written)


def _page(
    request: PageRequest, status: int = 200, *, refused: str = "", prompt: str | None = None, count: str = ""
) -> Response:
    """The whole page; in its form what was asked last, where nothing else is given."""
    desk = request.context.desk
    typed: dict[str, Any] = {
        "prompt": desk.prompt if prompt is None else prompt,
        "count": count or desk.count,
    }
    state = request.context.asking.state
    return request.render(
        "ask.html.j2",
        status,
        desk=desk,
        state=state,
        count_most=COUNT_MOST,
        refused=refused,
        said="",
        by_script=False,
        **typed,
    )


def _came(request: PageRequest, said: str = "") -> Response:
    """What is under the form: work that is being done, and the responses."""
    context = request.context
    return request.part(
        "ask_came.html.j2", desk=context.desk, state=context.asking.state, said=said, by_script=True
    )


def _typed(request: PageRequest) -> dict[str, Any]:
    """What the form holds now, for `_page`."""
    return {"prompt": request.form.get("prompt", ""), "count": request.form.get("count", "")[:4]}
