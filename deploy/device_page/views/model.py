"""My model: trained, judged beside the one for all, and tried on texts of the owner's."""

from __future__ import annotations

from starlette.responses import Response

from penchant.client.device.device import Quality
from penchant.common.wording import counted
from penchant.deploy.device_page.background import Tell, WorkState
from penchant.deploy.device_page.page_requests import TEXT_MOST, PageRequest
from penchant.server.console.at_once import HTTPError

__all__ = ["model", "now", "rank", "train"]

RESPONSES_MOST = 50


def model(request: PageRequest) -> Response:
    """How good it is, and what it likes; looked at in the background where that isn't known."""
    return _page(request)


def now(request: PageRequest) -> Response:
    """How far the work is; the whole page once it is done."""
    return request.progress(request.context.work, "/model/now")


def train(request: PageRequest) -> Response:
    """Begin to learn from all choices but the held-out ones."""
    context = request.context

    def learn(tell: Tell) -> str:
        with context.model:
            report = context.device.train(tell)
        context.pictures.look(context.model)
        return f"Trained on {counted(report.choices - report.held_out, 'choice')}."

    context.work.start("Training", learn)
    return request.go("/model")


def rank(request: PageRequest) -> Response:
    """Responses of the owner's, a line each, best first."""
    prompt, text = request.form.get("prompt", ""), request.form.get("responses", "")
    responses = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(prompt) + len(text) > TEXT_MOST or len(responses) > RESPONSES_MOST:
        raise HTTPError(f"at most {RESPONSES_MOST} responses, and {TEXT_MOST} characters", status=413)
    with request.context.at_model():
        ranked = request.device.rank(prompt, responses)
    return _page(request, ranked=ranked, prompt=prompt, responses=text)


# --- inner parts --------------------------------------------------------------------------------------


def _page(request: PageRequest, ranked: object = None, prompt: str = "", responses: str = "") -> Response:
    context = request.context
    picture = context.pictures.latest()
    if picture is None and not context.work.running and len(context.device.store):
        context.work.start("Looking at the model", lambda tell: _looked(request))
    state: WorkState | None = context.work.state
    if picture is None and (state is None or not state.running):
        picture = context.pictures.latest()  # it was looked at in the meantime
    return request.render(
        "model.html.j2",
        state=state,
        picture=picture,
        quality=None if picture is None or picture.quality is None else _shares(picture.quality),
        choices=len(context.device.store),
        ranked=ranked,
        prompt=prompt,
        responses=responses,
    )


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
