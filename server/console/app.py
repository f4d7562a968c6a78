"""The console as one ASGI application. `PAGES` and `ACTIONS` are all there is, and what tests go through."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from penchant.common.printable import one_line
from penchant.common.wording import duration
from penchant.server.console.accounts import DEVICE_SECONDS, ConsoleStore, Role
from penchant.server.console.events import live
from penchant.server.console.operations import RunOperations
from penchant.server.console.requests import (
    ConsoleContext,
    Endpoint,
    Form,
    HTTPError,
    View,
    action,
    address_of,
    answered,
    digest,
    fresh_token,
    local,
    page,
    posted,
    retry,
    secure_form,
    visit_of,
)
from penchant.server.console.shield import Shield
from penchant.server.console.views import audit, devices, overview, privacy, releases, run, runs
from penchant.server.monitoring.labels import FILTERS

__all__ = ["ACTIONS", "LIVE", "PAGES", "build_app"]

log = logging.getLogger(__name__)
HERE = Path(__file__).parent

PAGES: Sequence[tuple[str, View, Role]] = (
    ("/", overview.overview, "viewer"),
    ("/runs", runs.runs, "viewer"),
    ("/runs/compare", runs.compare, "viewer"),
    ("/runs/new", runs.new, "operator"),
    ("/runs/{id}", run.run, "viewer"),
    ("/runs/{id}/delete", run.confirm_delete, "operator"),
    ("/devices", devices.devices, "viewer"),
    ("/privacy", privacy.privacy, "viewer"),
    ("/releases", releases.releases, "viewer"),
    ("/releases/{id}/{round}.zip", releases.download, "viewer"),
    ("/audit", audit.audit, "viewer"),
)

ACTIONS: Sequence[tuple[str, View, str]] = (
    ("/runs/new", runs.start, "start a run"),
    ("/runs/{id}/stop", run.stop, "stop a run"),
    ("/runs/{id}/resume", run.resume, "resume a run"),
    ("/runs/{id}/delete", run.delete, "delete a run"),
    ("/devices/{id}/tokens", devices.invite, "hand out a token"),
    ("/devices/{id}/revocations", devices.ask_revocation, "ask for a revocation"),
    ("/releases/{id}/promote", releases.promote, "promote a release"),
    ("/releases/{id}/rollback", releases.roll_back, "roll a release back"),
)

LIVE = (
    ("/live", overview.live_overview),
    ("/devices/live", devices.live_devices),
    ("/runs/{id}/live", run.live_run),
)


def build_app(
    store: ConsoleStore, operations: RunOperations, *, hosts: frozenset[str], https: bool = False
) -> Starlette:
    """The console's web application.

    Args:
        store: the console's own file.
        operations: what can be done with the runs.
        hosts: the names and ports under which browsers may address it.
        https: whether browsers reach it by TLS.
    """
    desk = ConsoleContext(store, operations, templates(), hosts, https)
    routes = [
        Route("/login", login_page(desk), methods=["GET"]),
        Route("/login", login(desk), methods=["POST"]),
        Route("/logout", logout(desk), methods=["POST"]),
        Route("/healthz", healthy, methods=["GET"]),
        Route("/runs/check", check(desk), methods=["POST"]),
    ]
    routes += [Route(path, live(desk, view), methods=["GET"]) for path, view in LIVE]
    routes += [Route(path, page(desk, view, role), methods=["GET"]) for path, view, role in PAGES]
    routes += [Route(path, action(desk, view, name), methods=["POST"]) for path, view, name in ACTIONS]
    routes.append(Route("/static/{name:path}", static, methods=["GET"]))
    handlers = {HTTPException: partial(nothing_here, desk), Exception: partial(broken, desk)}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(Shield, hosts=hosts, https=https)
    return app


def templates() -> Environment:
    """The pages' templates: every text escaped, every name known."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals["asset"] = asset
    return environment


@cache
def files() -> dict[str, tuple[bytes, str]]:
    """Style sheet, scripts and icon: name -> (what it holds, its type). There are no others to ask for."""
    folder = HERE / "static"
    found = [path for path in folder.rglob("*") if path.suffix in TYPES]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), TYPES[path.suffix]) for path in found}


TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@cache
def asset(name: str) -> str:
    """The address of a file of ours: another one when it holds something else."""
    return f"/static/{name}?{digest(files()[name][0])}"


async def static(request: Request) -> Response:
    """One of our files, which browsers may keep for good."""
    found = files().get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    return Response(
        found[0], media_type=found[1], headers={"cache-control": "public, max-age=31536000, immutable"}
    )


# --- logging in and out ---------------------------------------------------------------------------


def login_page(desk: ConsoleContext) -> Endpoint:
    """The entrance."""

    async def endpoint(request: Request) -> Response:
        if await run_in_threadpool(visit_of, desk, request):
            return RedirectResponse(local(request.query_params.get("next", "/")), 303)
        return _entrance(desk, request, request.query_params.get("next", "/"))

    return endpoint


def _entrance(
    desk: ConsoleContext, request: Request, after: str, error: str = "", name: str = "", status: int = 200
) -> Response:
    token = request.cookies.get(f"{desk.cookie}-form") or fresh_token()
    template = desk.templates.get_template("login.html.j2")
    nobody = not desk.store.accounts()
    text = template.render(csrf=secure_form(token), after=local(after), error=error, name=name, nobody=nobody)
    response = HTMLResponse(text, status)
    desk.set_cookie(response, f"{desk.cookie}-form", token)
    return response


def login(desk: ConsoleContext) -> Endpoint:
    """Let somebody in, or not; both are in the audit."""
    return posted(partial(_let_in, desk))


def _let_in(desk: ConsoleContext, request: Request, form: Form) -> Response:
    name, address = one_line(form.get("name", ""), 64), address_of(request)
    after = local(form.get("next", "/"))
    own = request.cookies.get(f"{desk.cookie}-form", "")
    if not own or not hmac.compare_digest(form.get("csrf", "").encode(), secure_form(own).encode()):
        return _entrance(desk, request, after, "This form is too old. Try once more.", name, 403)
    device = request.cookies.get(f"{desk.cookie}-device", "")
    place = desk.store.place_of(name, address, device)
    places = desk.known_logins if place.known else desk.logins
    try:
        with places.place(place.key):
            wait = desk.store.admit(name, place)
            if wait > 0:
                return _slowed_down(desk, request, after, name, wait)
            token = desk.store.login(name, form.get("password", ""), place)
    except HTTPError as full:
        response = _entrance(desk, request, after, str(full), name, full.status)
        response.headers.update(retry(full))
        return response
    if token is None:
        desk.store.note(name, address, "log in", "", "refused: wrong name or password")
        return _entrance(desk, request, after, "Name or password is wrong.", name, 401)
    desk.store.note(name, address, "log in", "")
    response = RedirectResponse(after, 303)
    desk.set_cookie(response, desk.cookie, token)
    device = desk.store.remember(name, device, address)
    desk.set_cookie(response, f"{desk.cookie}-device", device, DEVICE_SECONDS)
    response.delete_cookie(f"{desk.cookie}-form", path="/", secure=desk.https, httponly=True)
    return response


def _slowed_down(desk: ConsoleContext, request: Request, after: str, name: str, wait: float) -> Response:
    """Not now. The audit says so once in a while, not each time: strangers would fill the disk with it."""
    address = address_of(request)
    if desk.refusals.spend(address):
        desk.store.note(name, address, "log in", "", "refused: too many tries")
    text = f"Too many tries. The next one is looked at in {duration(max(wait, 1.0))}."
    response = _entrance(desk, request, after, text, name, 429)
    response.headers["retry-after"] = str(int(wait) + 1)
    return response


def logout(desk: ConsoleContext) -> Endpoint:
    """Let somebody out."""

    def work(request: Request, form: Form) -> Response:
        visit = visit_of(desk, request, form)
        if visit is not None:
            if not visit.sent_by_us():
                return PlainTextResponse("This form is too old, or not ours.", 403)
            desk.store.logout(visit.session)
            desk.store.note(visit.name, visit.address, "log out", "")
        response = RedirectResponse("/login", 303)
        response.delete_cookie(desk.cookie, path="/", secure=desk.https, httponly=True)
        return response

    return posted(work)


def check(desk: ConsoleContext) -> Endpoint:
    """The verdict on a configuration that somebody writes: no action, so no line in the audit."""

    def work(request: Request, form: Form) -> Response:
        visit = visit_of(desk, request, form)
        if visit is None:
            return Response(status_code=401, headers={"HX-Redirect": "/login"})
        if not visit.operator or not visit.sent_by_us():
            return PlainTextResponse("Not for you, or too old.", 403)
        return answered(visit, runs.check)

    return posted(work)


async def healthy(request: Request) -> Response:
    """For whoever watches the process: it answers."""
    return PlainTextResponse("ok\n")


# --- what is not there, and what broke ------------------------------------------------------------


SAID = {
    404: ("It isn’t here", "No page has this address."),
    405: ("That didn’t work", "This address can’t be asked for in this way."),
    500: (
        "Something broke here",
        "The fault is ours, and the console’s log names it.",
    ),
}


def problem(desk: ConsoleContext, status: int) -> Response:
    """A page for anybody: it says nothing but what went wrong."""
    title, text = SAID.get(status, ("That didn’t work", "The console can’t make anything of this."))
    return HTMLResponse(desk.templates.get_template("error.html.j2").render(title=title, text=text), status)


async def nothing_here(desk: ConsoleContext, request: Request, error: Exception) -> Response:
    """An address without a page."""
    return problem(desk, error.status_code if isinstance(error, HTTPException) else 404)


async def broken(desk: ConsoleContext, request: Request, error: Exception) -> Response:
    """A fault of ours: named in the log, without what was sent."""
    log.error("%s %s: %s", request.method, request.url.path, type(error).__name__)
    return problem(desk, 500)
