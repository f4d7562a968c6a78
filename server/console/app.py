"""The console as one ASGI application. `PAGES` and `ACTIONS` are all there is, and what tests go through."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from penchant.server.console import entrance
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.forms import Endpoint, Form, posted
from penchant.server.console.look import Look
from penchant.server.console.operations import RunOperations
from penchant.server.console.provider_login import ProviderLogin
from penchant.server.console.requests import (
    ConfirmQuestion,
    ConsoleContext,
    Rescue,
    View,
    action,
    admitted,
    answered,
    console_request_of,
    not_admitted,
    page,
)
from penchant.server.console.rights import Role
from penchant.server.console.shield import Shield
from penchant.server.console.views import (
    account,
    audit,
    devices,
    find,
    new_run,
    overview,
    privacy,
    releases,
    run,
    runs,
)
from penchant.server.monitoring.labels import FILTERS

__all__ = ["ACTIONS", "LIVE", "PAGES", "QUESTIONS", "build_app"]

log = logging.getLogger(__name__)
ELSEWHERE = "This console is not served under that name. Add it with --origin.\n"

PAGES: Sequence[tuple[str, View, Role]] = (
    ("/", overview.overview, "viewer"),
    ("/runs", runs.runs, "viewer"),
    ("/find", find.find, "viewer"),
    ("/runs/compare", runs.compare, "viewer"),
    ("/runs/compare/charts/{file}", runs.compared_file, "viewer"),
    ("/runs/new", new_run.new, "operator"),
    ("/runs/{id}", run.run, "viewer"),
    ("/runs/{id}/rounds.csv", run.rounds_csv, "viewer"),
    ("/runs/{id}/charts/{file}", run.chart_file, "viewer"),
    ("/runs/{id}/delete", run.confirm_delete, "operator"),
    ("/devices", devices.devices, "viewer"),
    ("/devices/{id}/tokens/{token}", devices.token, "operator"),
    ("/devices/{id}/members/{member}", devices.device, "viewer"),
    ("/privacy", privacy.privacy, "viewer"),
    ("/releases", releases.releases, "viewer"),
    ("/releases/{id}/{round}.zip", releases.download, "viewer"),
    ("/audit", audit.audit, "viewer"),
    ("/audit.csv", audit.as_csv, "viewer"),
    ("/audit.jsonl", audit.as_jsonl, "viewer"),
    ("/account", account.account, "none"),
)

ACTIONS: Sequence[tuple[str, View, str, Role]] = (
    ("/runs/new", new_run.start, "start a run", "operator"),
    ("/runs/{id}/stop", run.stop, "stop a run", "operator"),
    ("/runs/{id}/resume", run.resume, "resume a run", "operator"),
    ("/runs/{id}/delete", run.delete, "delete a run", "operator"),
    ("/runs/{id}/notice", overview.put_away, overview.PUT_AWAY, "operator"),
    ("/queue/{id}/remove", runs.dequeue, "remove a run from the queue", "operator"),
    ("/queue/{id}/move", runs.move, "move a run in the queue", "operator"),
    ("/queue/{id}/retry", runs.retry, "try a run of the queue again", "operator"),
    ("/devices/{id}/tokens", devices.invite, "hand out a token", "operator"),
    ("/devices/{id}/notes", devices.note, "name and tag a device", "operator"),
    ("/devices/{id}/withdrawals", devices.withdraw, "withdraw a token", "operator"),
    ("/devices/{id}/revocations", devices.ask_revocation, "ask for a revocation", "operator"),
    ("/releases/{id}/promote", releases.promote, "promote a release", "operator"),
    ("/releases/{id}/hold", releases.hold, "hold the release", "operator"),
    ("/releases/{id}/all", releases.to_everybody, "promote a canary to all", "operator"),
    ("/releases/{id}/sign", releases.ask_again, "ask for a release's signature", "operator"),
    ("/releases/{id}/rollback", releases.roll_back, "roll a release back", "operator"),
    ("/account/second-factor", account.begin, "begin a second factor", "none"),
    ("/account/second-factor/confirm", account.confirm, "set a second factor", "none"),
    ("/account/second-factor/remove", account.remove, "remove a second factor", "none"),
)

QUESTIONS: Mapping[str, ConfirmQuestion] = {
    "/runs/{id}/stop": ConfirmQuestion(
        "Stop {what}?",
        "The round in progress is lost. Finished rounds are kept, and the run can be resumed.",
        "Stop it",
        "Let it run",
    ),
    "/queue/{id}/remove": ConfirmQuestion(
        "Take run {number} out of the queue?",
        "Its configuration is forgotten. A run that comes again and again comes no more.",
        "Take it out",
        "Leave it in",
    ),
    "/devices/{id}/withdrawals": ConfirmQuestion(
        "Take token {token} back?",
        "Nobody joins with it any more, and a device that asked with it is told so. It needs another token.",
        "Take it back",
        "Leave it",
    ),
    "/devices/{id}/revocations": ConfirmQuestion(
        "Have {device} of {what} revoked for good?",
        "Once the authority has signed, devices refuse to sit in a round with it, and nobody can take that "
        "back: its owner needs another token, and is another member then. What it gave to finished rounds "
        "stays in their sums. {reason}",
        "Ask for it",
        "Leave it in",
        devices.asked_revocation,
    ),
    "/releases/{id}/promote": ConfirmQuestion(
        "Promote the adapter of round {round} of {what}{to}?",
        "{follows}",
        "Promote it",
        "Change nothing",
        releases.asked_promotion,
    ),
    "/releases/{id}/rollback": ConfirmQuestion(
        "Use release {number} of {what} again?",
        "{follows}",
        "Use it again",
        "Change nothing",
        releases.asked_return,
    ),
    "/releases/{id}/all": ConfirmQuestion(
        "Use {release} on all devices of {what}?",
        "A part of them tries it; by their counts: {verdict}. All then fetch it in place of the one in use.",
        "Use it on all",
        "Go on trying",
        releases.asked_canary,
    ),
}
"""What is asked before it is done."""

LIVE = frozenset(
    {
        "/",
        "/devices/{id}/members/{member}",
        "/runs",
        "/runs/compare",
        "/runs/{id}",
        "/devices",
        "/privacy",
        "/releases",
        "/audit",
    }
)
"""Pages that change by themselves."""


def build_app(
    store: ConsoleStore,
    operations: RunOperations,
    *,
    hosts: frozenset[str],
    https: bool = False,
    provider: ProviderLogin | None = None,
) -> Starlette:
    """The console's web application.

    Args:
        store: the console's own file.
        operations: what can be done with the runs.
        hosts: the names and ports under which browsers may address it.
        https: whether browsers reach it by TLS.
        provider: who lets people in beside the passwords of the store.
    """
    look = Look(FILTERS)
    context = ConsoleContext(store, operations, look.templates, hosts, https, provider)
    routes = [
        Route("/login", entrance.login_page(context), methods=["GET"]),
        Route("/login", entrance.login(context), methods=["POST"]),
        Route("/login/code", entrance.code_page(context), methods=["GET"]),
        Route("/login/code", entrance.code(context), methods=["POST"]),
        Route("/login/provider", entrance.to_provider(context), methods=["GET"]),
        Route("/login/provider/back", entrance.from_provider(context), methods=["GET"]),
        Route("/logout", entrance.logout(context), methods=["POST"]),
        Route("/healthz", healthy, methods=["GET"]),
        Route("/runs/check", check(context), methods=["POST"]),
        Route("/runs/check", to_new_run, methods=["GET"]),  # the address of a form that is read again
    ]
    rescues = {"/runs/new": Rescue(partial(entrance.kept_for_login, context), new_run.too_old)}
    routes += [
        Route(path, page(context, view, role, live=path in LIVE), methods=["GET"])
        for path, view, role in PAGES
    ]
    routes += [
        Route(
            path,
            action(context, view, name, role, rescue=rescues.get(path), question=QUESTIONS.get(path)),
            methods=["POST"],
        )
        for path, view, name, role in ACTIONS
    ]
    routes.append(Route("/static/{name:path}", look.static, methods=["GET"]))
    handlers = {HTTPException: partial(nothing_here, context), Exception: partial(broken, context)}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(Shield, hosts=hosts, https=https, elsewhere=ELSEWHERE)
    return app


# --- the form of a run, while it is written ------------------------------------------------------


def check(context: ConsoleContext) -> Endpoint:
    """The verdict on a run that somebody writes: no action, so no line in the audit.

    While it is written, the parts that change by themselves; else the whole form once more.
    """

    def work(request: Request, form: Form) -> Response:
        live = bool(request.headers.get("hx-request"))
        console_request = console_request_of(context, request, form)
        if console_request is None or (live and not console_request.sent_by_us()):
            # Not to the login: what was written would be lost.
            return _cut_off(context) if live else entrance.kept_for_login(context, request, form)
        if not admitted(console_request, "operator", None):
            return not_admitted(console_request)
        console_request = replace(console_request, role="operator")
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
