"""My model: trained, judged beside the one for all, and tried on texts of the owner's."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from penchant.client.device.device import Quality
from penchant.common.errors import PenchantError
from penchant.common.printable import one_line
from penchant.common.wording import counted
from penchant.deploy.device_page.background import Tell, WorkState
from penchant.deploy.device_page.page_requests import TEXT_MOST, PageRequest
from penchant.deploy.device_page.picture import why_no_training
from penchant.server.console.at_once import HTTPError

__all__ = ["look", "model", "now", "rank", "train"]

RESPONSES_MOST = 50


def model(request: PageRequest) -> Response:
    """How good it is, and what it likes; looked at in the background where that isn't known."""
    if request.by_script:  # training was begun by one
        return _part(request, request.context.take_flash())
    return _page(request)


def now(request: PageRequest) -> Response:
    """How far the work is; what is seen of the model once it is done."""
    work = request.context.work
    return request.progress(work, "/model/now", lambda: _part(request), "#seen")


def look(request: PageRequest) -> Response:
    """My model as it is now, with what is being typed under it: for a browser without scripts."""
    return _page(request, prompt=request.form.get("prompt", ""), responses=request.form.get("responses", ""))


def train(request: PageRequest) -> Response:
    """Begin to learn from all choices but the held-out ones."""
    context = request.context

    def learn(tell: Tell) -> str:
        with context.model:
            report = context.device.train(tell)
        context.pictures.look(context.model)
        return f"Trained on {counted(report.choices - report.held_out, 'choice')}."

    try:
        context.work.start("Training", learn)
    except HTTPError as busy:
        return request.go("/model", f"Not done: {busy}")
    return request.go("/model")


def rank(request: PageRequest) -> Response:
    """Responses of the owner's, a line each, best first."""
    prompt, text = request.form.get("prompt", ""), request.form.get("responses", "")
    responses = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    try:
        if len(prompt) + len(text) > TEXT_MOST or len(responses) > RESPONSES_MOST:
            raise HTTPError(f"at most {RESPONSES_MOST} responses, and {TEXT_MOST} characters", status=413)
        with request.context.at_model():
            ranked = request.device.rank(prompt, responses)
    except (HTTPError, PenchantError) as refused:  # what was typed stays where it was typed
        status = refused.status if isinstance(refused, HTTPError) else 422
        return _page(request, status, refused=one_line(str(refused), 500), prompt=prompt, responses=text)
    return _page(request, ranked=ranked, prompt=prompt, responses=text)


# --- inner parts --------------------------------------------------------------------------------------


def _page(
    request: PageRequest,
    status: int = 200,
    *,
    ranked: object = None,
    refused: str = "",
    prompt: str = "",
    responses: str = "",
) -> Response:
    tried: dict[str, Any] = {"ranked": ranked, "refused": refused, "prompt": prompt, "responses": responses}
    return request.render("model.html.j2", status, said="", **tried, **_seen(request))


def _part(request: PageRequest, said: str = "") -> Response:
    """What is above the form, and what is to be said there."""
    return request.part("model_seen.html.j2", said=said, **_seen(request))


def _seen(request: PageRequest) -> dict[str, Any]:
    """What is above the form: work that is being done, and the model."""
    context = request.context
    # Asked before the picture is: what ends between the two has left its own, and words to show.
    at_work = context.work.running
    picture = context.pictures.latest()
    if picture is None and not at_work and len(context.device.store):
        context.work.start("Looking at the model", lambda tell: _looked(request))
    state: WorkState | None = context.work.state
    running = state is not None and state.running
    if picture is None and not running:
        picture = context.pictures.latest()  # it was looked at in the meantime
    return {
        "state": state,
        "picture": picture,
        "model": None if running else context.pictures.said(context.model),
        "quality": None if picture is None or picture.quality is None else _shares(picture.quality),
        "choices": len(context.device.store),
        "untrainable": why_no_training(context.device),
    }


def _looked(request: PageRequest) -> str:
    request.context.pictures.look(request.context.model)
    return ""


def _shares(quality: Quality) -> dict[str, float | int]:
    """What part of the held-out choices each model ranks right, and how many there are."""
    total = quality.personal.total
    return {
        "total": total,
        "personal": quality.personal.correct / total,
        "common": quality.common.correct / total,
    }
