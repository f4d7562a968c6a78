"""The console as one ASGI application. `PAGES` and `ACTIONS` are all there is, and what tests go through."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from functools import partial

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from penchant.common.printable import one_line
from penchant.common.wording import duration
from penchant.server.console.accounts import DEVICE_SECONDS, ConsoleStore, Role
from penchant.server.console.forms import MOST_FORM, Endpoint, Form, posted, retry, secure_form
from penchant.server.console.look import Look
from penchant.server.console.operations import RunOperations
from penchant.server.console.requests import (
    ConsoleContext,
    HTTPError,
    Rescue,
    View,
    action,
    address_of,
    answered,
    console_request_of,
    fresh_token,
    local,
    page,
    refusal,
)
from penchant.server.console.shield import Shield
from penchant.server.console.views import audit, devices, new_run, overview, privacy, releases, run, runs
from penchant.server.monitoring.labels import FILTERS

__all__ = ["ACTIONS", "LIVE", "PAGES", "build_app"]

log = logging.getLogger(__name__)
KEPT = "kept."  # before the names of fields that wait for a login
MOST_LOGIN = MOST_FORM + 8 * 1024  # bytes of a form that waits, with those names and the password
ELSEWHERE = "This console is not served under that name. Add it with --origin.\n"

PAGES: Sequence[tuple[str, View, Role]] = (
    ("/", overview.overview, "viewer"),
    ("/runs", runs.runs, "viewer"),
    ("/runs/compare", runs.compare, "viewer"),
    ("/runs/new", new_run.new, "operator"),
    ("/runs/{id}", run.run, "viewer"),
    ("/runs/{id}/rounds.csv", run.rounds_csv, "viewer"),
    ("/runs/{id}/delete", run.confirm_delete, "operator"),
    ("/devices", devices.devices, "viewer"),
    ("/devices/{id}/tokens/{token}", devices.token, "operator"),
    ("/devices/{id}/members/{member}", devices.device, "viewer"),
    ("/privacy", privacy.privacy, "viewer"),
    ("/releases", releases.releases, "viewer"),
    ("/releases/{id}/{round}.zip", releases.download, "viewer"),
    ("/audit", audit.audit, "viewer"),
)

ACTIONS: Sequence[tuple[str, View, str]] = (
    ("/runs/new", new_run.start, "start a run"),
    ("/runs/{id}/stop", run.stop, "stop a run"),
    ("/runs/{id}/resume", run.resume, "resume a run"),
    ("/runs/{id}/delete", run.delete, "delete a run"),
    ("/queue/{id}/remove", runs.dequeue, "remove a run from the queue"),
    ("/queue/{id}/move", runs.move, "move a run in the queue"),
    ("/queue/{id}/retry", runs.retry, "try a run of the queue again"),
    ("/devices/{id}/tokens", devices.invite, "hand out a token"),
    ("/devices/{id}/notes", devices.note, "name and tag a device"),
    ("/devices/{id}/withdrawals", devices.withdraw, "withdraw a token"),
    ("/devices/{id}/revocations", devices.ask_revocation, "ask for a revocation"),
    ("/releases/{id}/promote", releases.promote, "promote a release"),
    ("/releases/{id}/hold", releases.hold, "hold the release"),
    ("/releases/{id}/all", releases.to_everybody, "promote a canary to all"),
    ("/releases/{id}/sign", releases.ask_again, "ask for a release's signature"),
    ("/releases/{id}/rollback", releases.roll_back, "roll a release back"),
)

LIVE = frozenset(
    {
        "/",
        "/devices/{id}/members/{member}",
        "/runs",
        "/runs/{id}",
        "/devices",
        "/privacy",
        "/releases",
        "/audit",
    }
)
"""Pages that change by themselves."""


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
    look = Look(FILTERS)
    context = ConsoleContext(store, operations, look.templates, hosts, https)
    routes = [
        Route("/login", login_page(context), methods=["GET"]),
        Route("/login", login(context), methods=["POST"]),
        Route("/logout", logout(context), methods=["POST"]),
        Route("/healthz", healthy, methods=["GET"]),
        Route("/runs/check", check(context), methods=["POST"]),
        Route("/runs/check", to_new_run, methods=["GET"]),  # the address of a form that is read again
    ]
    rescues = {"/runs/new": Rescue(partial(_kept_for_login, context), new_run.too_old)}
    routes += [
        Route(path, page(context, view, role, live=path in LIVE), methods=["GET"])
        for path, view, role in PAGES
    ]
    routes += [
        Route(path, action(context, view, name, rescue=rescues.get(path)), methods=["POST"])
        for path, view, name in ACTIONS
    ]
    routes.append(Route("/static/{name:path}", look.static, methods=["GET"]))
    handlers = {HTTPException: partial(nothing_here, context), Exception: partial(broken, context)}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(Shield, hosts=hosts, https=https, elsewhere=ELSEWHERE)
    return app


# --- logging in and out ---------------------------------------------------------------------------


def login_page(context: ConsoleContext) -> Endpoint:
    """The entrance."""

    async def endpoint(request: Request) -> Response:
        if await run_in_threadpool(console_request_of, context, request):
            return RedirectResponse(local(request.query_params.get("next", "/")), 303)
        return _entrance(context, request, request.query_params.get("next", "/"))

    return endpoint


def _kept_for_login(context: ConsoleContext, request: Request, form: Form) -> Response:
    """The entrance, with what was written in it: it goes to the browser and comes back with the password, so
    that nothing is kept here for somebody who may be a stranger."""
    error = "You are logged out. Log in, and the form is there again as you wrote it."
    return _entrance(context, request, "/runs/new", error, status=401, kept=form)


def _entrance(
    context: ConsoleContext,
    request: Request,
    after: str,
    error: str = "",
    name: str = "",
    status: int = 200,
    kept: Form | None = None,
) -> Response:
    token = request.cookies.get(f"{context.cookie}-form") or fresh_token()
    template = context.templates.get_template("login.html.j2")
    nobody = not context.store.accounts()
    hidden = {f"{KEPT}{key}": text for key, text in (kept or {}).items() if key != "csrf"}
    text = template.render(
        csrf=secure_form(token), after=local(after), error=error, name=name, nobody=nobody, kept=hidden
    )
    response = HTMLResponse(text, status)
    context.set_cookie(response, f"{context.cookie}-form", token)
    return response


def login(context: ConsoleContext) -> Endpoint:
    """Let somebody in, or not; both are in the audit."""
    return posted(partial(_let_in, context), MOST_LOGIN)


def _let_in(context: ConsoleContext, request: Request, form: Form) -> Response:
    name, address = one_line(form.get("name", ""), 64), address_of(request)
    after = local(form.get("next", "/"))
    kept = {key.removeprefix(KEPT): text for key, text in form.items() if key.startswith(KEPT)}
    entrance = partial(_entrance, context, request, after, kept=kept)
    own = request.cookies.get(f"{context.cookie}-form", "")
    if not own or not hmac.compare_digest(form.get("csrf", "").encode(), secure_form(own).encode()):
        return entrance("This form is too old. Try once more.", name, 403)
    device = request.cookies.get(f"{context.cookie}-device", "")
    place = context.store.place_of(name, address, device)
    places = context.known_logins if place.known else context.logins
    try:
        with places.place(place.key):
            wait = context.store.admit(name, place)
            if wait > 0:
                return _slowed_down(context, request, entrance, name, wait)
            token = context.store.login(name, form.get("password", ""), place)
    except HTTPError as full:
        response = entrance(str(full), name, full.status)
        response.headers.update(retry(full))
        return response
    if token is None:
        context.store.note(name, address, "log in", "", "refused: wrong name or password")
        return entrance("Name or password is wrong.", name, 401)
    context.store.note(name, address, "log in", "")
    if kept:
        context.drafts.keep(secure_form(token), kept)
    response = RedirectResponse(after, 303)
    context.set_cookie(response, context.cookie, token)
    device = context.store.remember(name, device, address)
    context.set_cookie(response, f"{context.cookie}-device", device, DEVICE_SECONDS)
    response.delete_cookie(f"{context.cookie}-form", path="/", secure=context.https, httponly=True)
    return response


def _slowed_down(
    context: ConsoleContext, request: Request, entrance: Callable[..., Response], name: str, wait: float
) -> Response:
    """Not now. The audit says so once in a while, not each time: strangers would fill the disk with it."""
    address = address_of(request)
    if context.refusals.spend(address):
        context.store.note(name, address, "log in", "", "refused: too many tries")
    text = f"Too many tries. The next one is looked at in {duration(max(wait, 1.0))}."
    response = entrance(text, name, 429)
    response.headers["retry-after"] = str(int(wait) + 1)
    return response


def logout(context: ConsoleContext) -> Endpoint:
    """Let somebody out."""

    def work(request: Request, form: Form) -> Response:
        console_request = console_request_of(context, request, form)
        if console_request is not None:
            if not console_request.sent_by_us():
                return PlainTextResponse("This form is too old, or not ours.", 403)
            context.store.logout(console_request.session)
            context.store.note(console_request.name, console_request.address, "log out", "")
        response = RedirectResponse("/login", 303)
        response.delete_cookie(context.cookie, path="/", secure=context.https, httponly=True)
        return response

    return posted(work)


def check(context: ConsoleContext) -> Endpoint:
    """The verdict on a run that somebody writes: no action, so no line in the audit.

    While it is written, the parts that change by themselves; else the whole form once more.
    """

    def work(request: Request, form: Form) -> Response:
        live = bool(request.headers.get("hx-request"))
        console_request = console_request_of(context, request, form)
        if console_request is None or (live and not console_request.sent_by_us()):
            # Not to the login: what was written would be lost.
            return _cut_off(context) if live else _kept_for_login(context, request, form)
        if not console_request.operator:
            return refusal(console_request, 403, "This is for operators; your account may look, not act.")
        if not console_request.sent_by_us():
            return answered(console_request, new_run.too_old)
        return answered(console_request, new_run.check if live else new_run.again)

    return posted(work)


def _cut_off(context: ConsoleContext) -> Response:
    """In place of a verdict: the session has ended, and what is written stays."""
    return HTMLResponse(context.templates.get_template("logged_out.html.j2").render())


async def to_new_run(request: Request) -> Response:
    """A form that was read again has the address that it was sent to."""
    return RedirectResponse("/runs/new", 303)


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


def problem(context: ConsoleContext, status: int) -> Response:
    """A page for anybody: it says nothing but what went wrong."""
    title, text = SAID.get(status, ("That didn’t work", "The console can’t make anything of this."))
    return HTMLResponse(
        context.templates.get_template("error.html.j2").render(title=title, text=text), status
    )


async def nothing_here(context: ConsoleContext, request: Request, error: Exception) -> Response:
    """An address without a page."""
    return problem(context, error.status_code if isinstance(error, HTTPException) else 404)


async def broken(context: ConsoleContext, request: Request, error: Exception) -> Response:
    """A fault of ours: named in the log, without what was sent."""
    log.error("%s %s: %s", request.method, request.url.path, type(error).__name__)
    return problem(context, 500)
