"""The device's API as one ASGI application: the owner's model for the programs of the owner's machine.

`ROUTES` is all there is. Nothing that is sent, asked or answered is logged.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from penchant.client.device.device import Device
from penchant.client.device.warm_model import WarmModel
from penchant.common.errors import PenchantError, UsageError
from penchant.common.printable import one_line
from penchant.deploy.device_api.best_of import BestOf
from penchant.deploy.device_api.bodies import ApiLimits, Fields, body_of, table_of
from penchant.deploy.device_api.description import description, description_page
from penchant.deploy.device_api.dialects import ApiRefusal, dialect_of, refused
from penchant.deploy.device_api.door import Door
from penchant.deploy.device_api.feedback import FEEDBACK_KINDS, record_feedback
from penchant.deploy.device_api.rerank_forms import RerankForm, is_infinity, read_cohere, read_score, read_tei
from penchant.deploy.device_api.score_queue import ScoreQueue
from penchant.deploy.device_api.upstream import PassedOn, UpstreamSettings

__all__ = ["ApiContext", "build_api"]

log = logging.getLogger(__name__)

MODEL_HEADER = "x-penchant-model"
CUT_HEADER = "x-penchant-cut"
SCORES_HEADER = "x-penchant-scores"


@dataclass(frozen=True)
class ApiContext:
    """What all answers share: the owner's device, its model's queue, the limits, and who writes answers, if
    anybody does."""

    device: Device
    queue: ScoreQueue
    limits: ApiLimits
    best_of: BestOf | None

    @property
    def model_name(self) -> str:
        """Which model answers."""
        return "penchant-personal" if self.queue.model.personal else "penchant-common"


Handler = Callable[[ApiContext, Request], Awaitable[Response]]
Read = Callable[[Fields, bool], RerankForm]


def build_api(
    device: Device,
    model: WarmModel,
    *,
    token: Callable[[], str],
    hosts: frozenset[str],
    https: bool = False,
    limits: ApiLimits | None = None,
    upstream: UpstreamSettings | None = None,
) -> Starlette:
    """The API of a device.

    Args:
        device: the owner's, for what is recorded.
        model: its model, which this application alone uses from now on.
        token: tells what every request but those for `PUBLIC` must show at this moment.
        hosts: the names and ports under which programs may address it.
        https: whether they come by TLS.
        limits: of requests.
        upstream: who writes the answers that `/v1/chat/completions` picks from.
    """
    limits = limits or ApiLimits()
    queue = ScoreQueue(model, limits)
    best_of = BestOf(upstream, queue, limits.chats) if upstream else None
    context = ApiContext(device, queue, limits, best_of)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(queue.running())
            if best_of is not None:
                await stack.enter_async_context(best_of.running())
            yield

    app = Starlette(
        routes=[Route(path, _answering(context, work), methods=[method]) for method, path, work in ROUTES],
        exception_handlers={HTTPException: _nothing_here},
        lifespan=lifespan,
    )
    app.add_middleware(Door, hosts=hosts, https=https, token=token, public=PUBLIC)
    return app


# --- what is answered ---------------------------------------------------------------------------------


async def _health(context: ApiContext, request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _description(context: ApiContext, request: Request) -> Response:
    return JSONResponse(description(context.limits))


async def _page(context: ApiContext, request: Request) -> Response:
    return HTMLResponse(description_page(context.limits))


async def _models(context: ApiContext, request: Request) -> Response:
    """The upstream's, for whoever chooses one to chat with; else ours."""
    if context.best_of is not None:
        found = await context.best_of.models(_own_authorization(request))
        return Response(found, media_type="application/json")
    model = {"id": context.model_name, "object": "model", "created": 0, "owned_by": "penchant"}
    return JSONResponse({"object": "list", "data": [model]})


def _scoring(read: Read) -> Handler:
    async def work(context: ApiContext, request: Request) -> Response:
        fields = Fields(await table_of(request, context.limits), context.limits)
        return await _scored(context, read(fields, context.queue.model.conversational))

    return work


async def _scored(context: ApiContext, form: RerankForm) -> Response:
    scores = await context.queue.scores(form.texts)
    cut = sum(score.cut for score in scores)
    if cut and form.whole:
        most = context.queue.model.max_tokens
        raise ApiRefusal(413, f"{cut} texts have more than {most} tokens; send less, or truncate = true")
    headers = {MODEL_HEADER: context.model_name, CUT_HEADER: str(cut)}
    return JSONResponse(form.write(scores, context.model_name), headers=headers)


async def _feedback(context: ApiContext, request: Request) -> Response:
    data = await body_of(request, context.limits, FEEDBACK_KINDS)
    person = request.query_params.get("person")
    skip = request.query_params.get("skip_bad_rows", "false")
    if skip not in ("true", "false"):
        raise ApiRefusal(422, "'skip_bad_rows' must be true or false")
    done = await run_in_threadpool(
        record_feedback, context.device, data, context.limits, person=person, skip_bad_rows=skip == "true"
    )
    answer = {"new": done.added.new, "repeated": done.added.repeated, "notes": done.notes}
    return JSONResponse(answer)


async def _chat(context: ApiContext, request: Request) -> Response:
    if context.best_of is None:
        raise ApiRefusal(404, "nobody writes answers here; start `penchant device serve-api` with --upstream")
    table = await table_of(request, context.limits)
    picked = await context.best_of.answer(table, Fields(table, context.limits), _own_authorization(request))
    scores = ",".join(f"{score:.6f}" for score in picked.scores)
    headers = {MODEL_HEADER: context.model_name, SCORES_HEADER: scores}
    if picked.streamed:
        return Response(b"".join(picked.events()), headers=headers, media_type="text/event-stream")
    return JSONResponse(picked.completion, headers=headers)


def _own_authorization(request: Request) -> str:
    """The program's Authorization for the upstream; our own token stays at the door."""
    return request.headers.get("authorization", "")


def _read_rerank(fields: Fields, conversational: bool) -> RerankForm:
    """TEI's address, at which other servers take Cohere's form: what the body holds decides."""
    if "documents" in fields and "texts" not in fields:
        return read_cohere(fields, conversational, version=1, plain=is_infinity(fields))
    return read_tei(fields, conversational)


def _read_v1(fields: Fields, conversational: bool) -> RerankForm:
    """Cohere's and Jina's address, at which llama.cpp takes TEI's form too."""
    if "texts" in fields and "documents" not in fields:
        return read_tei(fields, conversational)
    return read_cohere(fields, conversational, version=1)


def _read_v2(fields: Fields, conversational: bool) -> RerankForm:
    return read_cohere(fields, conversational, version=2)


ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/health", _health),
    ("GET", "/openapi.json", _description),
    ("GET", "/docs", _page),
    ("GET", "/v1/models", _models),
    ("POST", "/rerank", _scoring(_read_rerank)),
    ("POST", "/reranking", _scoring(_read_rerank)),
    ("POST", "/v1/rerank", _scoring(_read_v1)),
    ("POST", "/v1/reranking", _scoring(_read_v1)),
    ("POST", "/v2/rerank", _scoring(_read_v2)),
    ("POST", "/score", _scoring(read_score)),
    ("POST", "/v1/score", _scoring(read_score)),
    ("POST", "/v1/feedback", _feedback),
    ("POST", "/v1/chat/completions", _chat),
]
PUBLIC = frozenset({"/health", "/openapi.json", "/docs"})


# --- how it ends ----------------------------------------------------------------------------------------


def _answering(context: ApiContext, work: Handler) -> Callable[[Request], Awaitable[Response]]:
    """The work as an endpoint; whatever goes wrong ends here, in the form of the address."""

    async def endpoint(request: Request) -> Response:
        try:
            return await work(context, request)
        except PassedOn as passed:
            return Response(passed.body, passed.status, passed.headers)
        except ApiRefusal as refusal:
            found = refusal
        except UsageError as error:
            found = ApiRefusal(422, one_line(str(error)))
        except PenchantError as error:
            found = ApiRefusal(503, one_line(str(error)))
        except Exception as error:  # a fault of ours: its kind alone is told, what was sent is not
            log.error("%s %s: %s", request.method, request.url.path, type(error).__name__)
            found = ApiRefusal(500, "the server failed; its log names the kind of error")
        return refused(found, dialect_of(request.url.path))

    return endpoint


async def _nothing_here(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    why = {404: "there is nothing at this address", 405: "this address is not asked in that way"}
    found = ApiRefusal(status, why.get(status, "the request can't be answered"))
    answer = refused(found, dialect_of(request.url.path))
    answer.headers.update(getattr(error, "headers", None) or {})  # 405: the methods that there are
    return answer
