"""The owner's page as one ASGI application. `PAGES`, `ACTIONS` and `UPLOADS` are all that the owner has."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from penchant.client.device.device import Device
from penchant.common.data.preferences import Preference
from penchant.deploy.device_page.asking import AskDesk
from penchant.deploy.device_page.background import BackgroundWork
from penchant.deploy.device_page.entrance import LINKED, Entrance
from penchant.deploy.device_page.page_requests import (
    PageContext,
    PageRequest,
    PageView,
    acted,
    problem,
    shown,
    uploaded,
)
from penchant.deploy.device_page.picture import PictureBook
from penchant.deploy.device_page.safe_text import excerpt, safe_markdown
from penchant.deploy.device_page.sitting import Sitting
from penchant.deploy.device_page.views import ask, choices, choose, edit, fleet, model
from penchant.deploy.device_page.writers import ResponseWriter
from penchant.server.console.at_once import HTTPError
from penchant.server.console.forms import Endpoint
from penchant.server.console.look import Look
from penchant.server.console.shield import Shield
from penchant.server.monitoring.labels import FILTERS

__all__ = ["ACTIONS", "PAGES", "UPLOADS", "build_page"]

log = logging.getLogger(__name__)

IDLE_LOOK = 1.0  # seconds between looks whether anybody uses the page
END_LOOK = 0.1  # seconds between looks whether a parting has ended
END_SECONDS = 120.0  # for which the end of the program waits for that: a server may never answer
ELSEWHERE = "This page is not served under that name.\n"

PAGES: Sequence[tuple[str, PageView]] = (
    ("/", choose.choose),
    ("/ask", ask.ask),
    ("/ask/now", ask.now),
    ("/choices", choices.choices),
    ("/choices/edit", edit.edit),
    ("/choices.jsonl", choices.export),
    ("/ties.jsonl", choices.export_ties),
    ("/model", model.model),
    ("/model/now", model.now),
    ("/fleet", fleet.fleet),
)
ACTIONS: Sequence[tuple[str, PageView]] = (
    ("/choose", choose.answer),
    ("/ask", ask.send),
    ("/ask/look", ask.look),
    ("/ask/pick", ask.pick),
    ("/ask/undo", ask.take_back),
    ("/choices/edit", edit.save),
    ("/choices/turn", choices.turn),
    ("/choices/delete", choices.delete),
    ("/choices/settle", choices.settle),
    ("/choices/untie", choices.untie),
    ("/choices/who", choices.who),
    ("/model/train", model.train),
    ("/model/look", model.look),
    ("/model/rank", model.rank),
    ("/fleet/pause", fleet.pause),
    ("/fleet/resume", fleet.resume),
    ("/fleet/accept", fleet.accept),
    ("/fleet/leave", fleet.leave),
    ("/fleet/forget", fleet.forget),
)
UPLOADS: Sequence[tuple[str, PageView]] = (("/choices/import", choices.take),)


def build_page(
    device: Device,
    comparisons: Sequence[Preference],
    entrance: Entrance,
    *,
    hosts: frozenset[str],
    close: Callable[[], None],
    writer: ResponseWriter | None = None,
) -> Starlette:
    """The owner's page.

    Args:
        device: the owner's; this application alone uses its model from now on.
        comparisons: what is asked on it.
        entrance: who is let in.
        hosts: the names and ports under which the browser may address it.
        close: ends the program.
        writer: who writes responses to the owner's prompts, if anybody does.
    """
    look = Look(FILTERS | {"markdown": safe_markdown, "excerpt": excerpt}, Path(__file__).parent)
    lock = threading.RLock()
    sitting = Sitting(device, comparisons, lock)
    context = PageContext(
        device,
        entrance,
        look.templates,
        sitting,
        lock,
        BackgroundWork(),
        BackgroundWork(),
        PictureBook(device),
        AskDesk(device, writer),
        close,
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=sitting.prepare, daemon=True).start()
        watch = asyncio.create_task(_close_when_over(context))
        yield
        watch.cancel()
        await _parted(context)

    root = entrance.root
    routes = [Route(f"{LINKED}{{key}}", _enter(context), methods=["GET"])]
    routes += [Route(f"{root}{path}", shown(context, view), methods=["GET"]) for path, view in PAGES]
    routes += [Route(f"{root}{path}", acted(context, view), methods=["POST"]) for path, view in ACTIONS]
    routes += [Route(f"{root}{path}", uploaded(context, view), methods=["POST"]) for path, view in UPLOADS]
    routes.append(Route(f"{root}/close", acted(context, _close), methods=["POST"]))
    routes.append(Route("/static/{name:path}", look.static, methods=["GET"]))
    handlers = {HTTPException: partial(_nothing_here, context), Exception: partial(_broken, context)}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.add_middleware(Shield, hosts=hosts, https=False, elsewhere=ELSEWHERE, linked=LINKED)
    return app


def _enter(context: PageContext) -> Endpoint:
    """Let the browser in that follows the link.

    The answer is a page that goes on by itself: a redirect would count as coming from wherever the link was,
    and no cookie of ours would be sent along.
    """

    async def endpoint(request: Request) -> Response:
        entrance = context.entrance
        if request.method != "GET":  # HEAD: whoever looks whether the link leads anywhere uses nothing up
            raise HTTPException(405)
        token = entrance.admit(request.path_params["key"])
        if token is None:
            text = (
                "It works once, in one browser. Stop `penchant device open` and start it again for another."
            )
            return problem(context, 403, "This link is used up", text)
        html = context.templates.get_template("entered.html.j2").render(root=entrance.root)
        response = HTMLResponse(html)
        response.set_cookie(entrance.cookie, token, path=entrance.root, httponly=True, samesite="strict")
        return response

    return endpoint


async def _close_when_over(context: PageContext) -> None:
    """The end, once nobody is let in any more, and nothing is being done."""
    while not context.entrance.over or context.work.running or context.asking.running:
        await asyncio.sleep(IDLE_LOOK)
    context.close()


async def _parted(context: PageContext) -> None:
    """Wait for a parting that is under way: threads are ended with the program, wherever they are."""
    state, looks = context.work.state, 0
    if state is not None and context.work.goes_to_the_end:
        log.warning("%s is under way; the page ends after it", state.name)
    while context.work.goes_to_the_end and looks * END_LOOK < END_SECONDS:
        await asyncio.sleep(END_LOOK)
        looks += 1


def _close(page_request: PageRequest) -> Response:
    """The end: nothing listens any more. Not while the device parts: its owner would not read what is left
    to do."""
    work = page_request.context.work
    if work.goes_to_the_end:
        raise HTTPError("the device is parting from its fleet; close the page once that is done", status=409)
    page_request.context.entrance.end()
    page_request.context.close()
    return problem(page_request.context, 200, "Closed", "Nothing listens any more. Your choices are kept.")


async def _nothing_here(context: PageContext, request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    said = {404: "No page has this address.", 405: "This address can't be asked for in this way."}
    return problem(context, status, "It isn’t here", said.get(status, "Nothing can be made of this."))


async def _broken(context: PageContext, request: Request, error: Exception) -> Response:
    """A fault of ours: its kind in the log, nothing of what was sent."""
    log.error("%s: %s", request.method, type(error).__name__)
    return problem(context, 500, "Something broke here", "The fault is ours; the terminal names its kind.")
