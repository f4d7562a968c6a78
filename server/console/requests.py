"""The checks between a browser and the pages: hosts, origins, headers, sessions, forged forms, roles.

`Shield` is around everything. A page or an action is a plain function of a `ConsoleRequest`; `page` and
`action` let nobody through who has no session and no right, and an action leaves its lines in the audit: one
before anything is done, one with how it ended.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from penchant.common.errors import PenchantError
from penchant.common.network import Budget
from penchant.common.printable import is_printable
from penchant.server.console.accounts import ConsoleStore, Session
from penchant.server.console.allowed import FOR_OPERATORS, NO_ROLE, AllowedOperations, place_of
from penchant.server.console.at_once import AtOnce, HTTPError
from penchant.server.console.drafts import Drafts
from penchant.server.console.forms import SAFE, Endpoint, Form, posted, secure_form
from penchant.server.console.operations import RunOperations
from penchant.server.console.provider_login import ProviderLogin
from penchant.server.console.rights import Rights, Role
from penchant.server.console.watch import Watch
from penchant.server.monitoring.run_history import RunLocation

__all__ = [
    "ConfirmQuestion",
    "ConsoleContext",
    "ConsoleRequest",
    "HTTPError",
    "Rescue",
    "action",
    "page",
]

log = logging.getLogger(__name__)

DOWNLOADS = 2  # at the same time, of everybody
LOGINS = 8  # that may wait for a look at a password, or for the provider
OF_ANSWERS = ("sure", "asked", "back")  # fields of the form that answers a question
AGAIN = "x-penchant-mark"  # the header in which a page that lies open says which one it is


def _places_for_logins() -> AtOnce:
    return AtOnce("logins", total=LOGINS, each=2, retry_after=2)


@dataclass(frozen=True)
class ConsoleContext:
    """What all pages share.

    Attributes:
        store: the console's own file.
        operations: what can be done with the runs.
        templates: the pages' templates.
        hosts: the names by which browsers may address this server, such as "127.0.0.1:8080".
        https: whether browsers reach it by TLS.
        provider: who lets people in beside passwords.
        cookie: the name of the session's cookie.
        downloads: places for downloads, each of which is a process.
        logins: places for looks at a password, which cost memory and time, for strangers.
        refusals: how often the audit says that a network is slowed down.
        known_logins: the same for browsers and networks that were let in before: strangers can't fill them.
        provider_logins: places for logins that wait for the provider, for strangers.
        known_provider_logins: the same for browsers that were let in before.
        drafts: forms that a login interrupted.
        tokens: join tokens that were handed out and not shown yet.
        secrets: what a page shows once about a second factor: its key, then its recovery codes.
        watch: whether pages that lie open have become others.
    """

    store: ConsoleStore
    operations: RunOperations
    templates: Environment
    hosts: frozenset[str]
    https: bool = False
    provider: ProviderLogin | None = None
    cookie: str = field(init=False)
    downloads: AtOnce = field(
        default_factory=lambda: AtOnce("downloads", total=DOWNLOADS, each=1, retry_after=10)
    )
    logins: AtOnce = field(default_factory=_places_for_logins)
    refusals: Budget = field(default_factory=lambda: Budget(1))
    known_logins: AtOnce = field(default_factory=_places_for_logins)
    provider_logins: AtOnce = field(default_factory=_places_for_logins)
    known_provider_logins: AtOnce = field(default_factory=_places_for_logins)
    drafts: Drafts = field(default_factory=Drafts)
    tokens: Drafts = field(default_factory=Drafts)
    secrets: Drafts = field(default_factory=Drafts)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "watch", Watch(self.store, self.operations))
        # __Host-: the browser itself refuses it without TLS, or for another host or path.
        object.__setattr__(self, "cookie", "__Host-penchant" if self.https else "penchant")

    def set_cookie(
        self, response: Response, name: str, value: str, age: float = 0.0, *, linked: bool = False
    ) -> None:
        """A cookie that no script reads, no other site sends, and that ends with the browser.

        Args:
            response: what brings it.
            name: its name.
            value: its value.
            age: seconds after which it ends instead.
            linked: whether it comes with a link of another site, as a provider's way back is one.
        """
        same: Literal["lax", "strict"] = "lax" if linked else "strict"
        response.set_cookie(
            name, value, int(age) or None, path="/", secure=self.https, httponly=True, samesite=same
        )

    def drop_cookie(self, response: Response, name: str) -> None:
        """Have the browser forget a cookie."""
        response.delete_cookie(name, path="/", secure=self.https, httponly=True)


@dataclass
class ConsoleRequest:
    """One request of somebody who is logged in."""

    context: ConsoleContext
    http_request: Request
    session: Session
    csrf: str
    form: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""  # why nothing was done, for the audit
    mark: str = ""  # of a page that changes by itself: another one once it has become another
    again: bool = False  # it lies open, and looks whether it has become another
    role: Role = "viewer"  # what the page or act needs

    @property
    def address(self) -> str:
        return address_of(self.http_request)

    @property
    def name(self) -> str:
        """The account's."""
        return self.session.account.name

    @property
    def rights(self) -> Rights:
        """The account's."""
        return self.session.account.rights

    @property
    def operator(self) -> bool:
        """Whether the account may act somewhere, not only look."""
        return self.rights.may_anywhere("operator")

    @property
    def role_shown(self) -> str:
        """The account's role in a word, or that it is not the same everywhere."""
        return "roles by fleet" if self.rights.fleets else self.rights.elsewhere

    @property
    def operations(self) -> AllowedOperations:
        """What the account may reach of the console's operations, in this request."""
        return AllowedOperations(self.context.operations, self.rights, self.role)

    def acts_on(self, location: RunLocation) -> bool:
        """Whether the account may act on a run or a fleet."""
        return self.operations.may(location, "operator")

    def asked(self, key: str, default: str = "") -> str:
        """A parameter of the address."""
        return self.http_request.query_params.get(key, default)

    def given(self, key: str, most: int = 300) -> str:
        """A field of the form, in one line. Refused when it is too long, or not all of it can be seen."""
        text = " ".join(self.form.get(key, "").split())
        if len(text) > most:
            raise HTTPError(f"{key} is longer than {most} characters", status=400)
        if not is_printable(text):
            raise HTTPError(f"{key} contains invisible characters; type it again", status=422)
        return text

    def path(self, key: str) -> str:
        """A part of the path."""
        return str(self.http_request.path_params[key])

    def render(self, template: str, code: int = 200, **page: Any) -> HTMLResponse:
        """A page made from a template, with an HTTP status."""
        flash = None if self.again else self.context.store.take_flash(self.session)
        return HTMLResponse(self.text(template, flash=flash, **page), code)

    def refuse(self, why: str, template: str, **page: Any) -> HTMLResponse:
        """The form once more, because nothing was done; the audit says `why`."""
        self.refused = why
        return self.render(template, 422, **page)

    def text(self, template: str, **page: Any) -> str:
        """A page or a part of one, as HTML."""
        around = {"request": self, "path": self.http_request.url.path, "csrf": self.csrf, "flash": None}
        return self.context.templates.get_template(template).render(around | page)

    def go(self, path: str, say: str = "") -> RedirectResponse:
        """To another page, which says `say`."""
        if say:
            self.context.store.set_flash(self.session, say)
        return RedirectResponse(path, 303)

    def sent_by_us(self) -> bool:
        """Whether the form carries its session's token against forgery."""
        return hmac.compare_digest(self.form.get("csrf", "").encode(), self.csrf.encode())


View = Callable[[ConsoleRequest], Response]


@dataclass(frozen=True)
class Rescue:
    """How a long form outlives its session. Nothing is done; what was written is only shown once more.

    Attributes:
        logged_out: the answer where there is no session any more.
        too_old: the answer where the form is of an earlier session, or was forged.
    """

    logged_out: Callable[[Request, Form], Response]
    too_old: View


@dataclass(frozen=True)
class ConfirmQuestion:
    """What is asked before something is done that is not easily undone. It is a page, so it needs no script.

    title, text: with {what} for the run or fleet, and {FIELD} for the form's fields. yes, no: the answers.
    facts: what else they name, as it is now; HTTPError where there is nothing to ask.
    """

    title: str
    text: str
    yes: str
    no: str
    facts: Callable[[ConsoleRequest], Mapping[str, str]] = lambda request: {}

    @property
    def digest(self) -> str:
        """Another one for each question: an answer has it, and is to this question alone."""
        return hashlib.sha256(f"{self.title}\n{self.text}".encode()).hexdigest()[:32]

    def about(self, what: str, form: Mapping[str, str]) -> ConfirmQuestion:
        """The same with what the form is about."""
        known = defaultdict(str, {**form, "what": what})
        return replace(self, title=self.title.format_map(known), text=self.text.format_map(known))


def page(context: ConsoleContext, view: View, role: Role = "viewer", *, live: bool = False) -> Endpoint:
    """The entrance of a page. One that is `live` asks every other second whether it has become another."""

    async def endpoint(request: Request) -> Response:
        def work() -> Response:
            shown = request.headers.get(AGAIN) if live else None
            console_request = console_request_of(context, request, used=shown is None)
            if console_request is None:
                return to_login(context, request) if shown is None else Response(status_code=401)
            if live:
                account, run = console_request.session.account, request.path_params.get("id")
                console_request.mark = context.watch.mark(account, run)
                console_request.again = shown is not None
                if shown == console_request.mark:
                    return Response(status_code=204)
            if not admitted(console_request, role, _subject(context, request, {})):
                return not_admitted(console_request)
            return answered(replace(console_request, role=role), view)

        return await run_in_threadpool(work)

    return endpoint


def action(
    context: ConsoleContext,
    view: View,
    name: str,
    role: Role = "operator",
    rescue: Rescue | None = None,
    question: ConfirmQuestion | None = None,
) -> Endpoint:
    """The entrance of an action, which leaves its lines in the audit under `name`. With a `question`, nothing
    is done before the form says that it was answered."""

    def work(request: Request, form: Form) -> Response:
        console_request = console_request_of(context, request, form)
        if console_request is None:
            return rescue.logged_out(request, form) if rescue else to_login(context, request)
        target = "/".join(map(str, request.path_params.values())) or form.get("name", "")
        place = _subject(context, request, form)
        note = partial(
            context.store.note, console_request.name, console_request.address, name, target, fleet=place or ""
        )
        if not console_request.sent_by_us():
            note("refused: the form was forged or too old")
            if rescue and admitted(console_request, role, place):
                return answered(replace(console_request, role=role), rescue.too_old)
            return refusal(
                console_request, 403, "This form is too old, or not ours. Nothing was done; try again."
            )
        if not admitted(console_request, role, place):
            note("refused: not an operator")
            return not_admitted(console_request)
        console_request = replace(console_request, role=role)
        if question and not _is_answered(console_request, question):
            return answered(console_request, partial(_asked, question=question))
        about = ", ".join(f"{key}: {form[key]}" for key in sorted(_TOLD & set(form)) if form[key])
        begun = note("begun", about)
        try:
            response = view(console_request)
        except HTTPError as refused:
            note(f"refused: {refused}", about, begun)
            return refusal(console_request, refused.status, str(refused), refused.retry_after)
        except PenchantError as error:
            note(error.outcome, about, begun)
            back = local(form["back"]) if "back" in form else back_to(request)
            return console_request.go(back, f"Not done: {error}")
        except Exception as error:
            note(f"failed: {type(error).__name__}", about, begun)
            raise
        note(_outcome(console_request, response), about, begun)
        return response

    return posted(work)


def _asked(console_request: ConsoleRequest, question: ConfirmQuestion) -> Response:
    """The question, and the form once more with the answer and the page that it came from: the answer comes
    from an address that can't be looked at."""
    form = console_request.form
    return console_request.render(
        "sure.html.j2",
        question=_put(console_request, question),
        sent={key: value for key, value in form.items() if key not in ("csrf", *OF_ANSWERS)},
        back=local(form["back"]) if "back" in form else back_to(console_request.http_request),
    )


def _put(console_request: ConsoleRequest, question: ConfirmQuestion) -> ConfirmQuestion:
    """The question about what the form is about, as things are now."""
    facts = question.facts(console_request)
    wanted, operations = console_request.http_request.path_params.get("id"), console_request.operations
    known = {one.id: one.name for one in (*operations.fleets(), *operations.locations())}
    what = known.get(str(wanted), "what is not here any more")
    return question.about(what, {**console_request.form, **facts})


def _is_answered(console_request: ConsoleRequest, question: ConfirmQuestion) -> bool:
    """Whether the form says yes, and to a question that would be the same now. Where nothing can be asked any
    more the act itself says why, for the audit too."""
    form = console_request.form
    if form.get("sure") != "yes" or "asked" not in form:
        return form.get("sure") == "yes"
    try:
        return form["asked"] == _put(console_request, question).digest
    except PenchantError:
        return True


def _subject(context: ConsoleContext, request: Request, form: Form) -> str | None:
    """The place that a request is about, as `Rights` names it: of the run or fleet in its path, or of the one
    where its form wants a run. None where it names none that there is."""
    wanted = request.path_params.get("id") or form.get("where", "")
    if not wanted:
        return "" if "where" in form else None
    for location in (*context.operations.fleets(), *context.operations.locations()):
        if location.id == wanted:
            return place_of(context.operations, location)
    return None


def admitted(console_request: ConsoleRequest, role: Role, place: str | None) -> bool:
    """Whether the account may what a page or act needs where it is about; somewhere, if it is about no place.

    What the account may not even look at it is let through to: there it finds nothing.
    """
    rights = console_request.rights
    if place is None or not rights.may("viewer", place):
        return role == "none" or rights.may_anywhere(role)
    return rights.may(role, place)


def not_admitted(console_request: ConsoleRequest) -> Response:
    """The page that says so."""
    somewhere = console_request.rights.may_anywhere("viewer")
    return refusal(console_request, 403, FOR_OPERATORS if somewhere else NO_ROLE)


def _outcome(console_request: ConsoleRequest, response: Response) -> str:
    """What the audit says of an action: done only where the answer says so."""
    if response.status_code < 400 and not console_request.refused:
        return "done"
    return f"refused: {console_request.refused or f'answered with {response.status_code}'}"


_TOLD = {"name", "where", "token", "member", "why", "label", "days", "round", "number", "confirm",
         "begin_with", "notice", "turn", "at", "every", "place", "tag", "tags", "called", "held",
         "release"}  # fmt: skip
"""Fields of forms that the audit keeps."""


def console_request_of(
    context: ConsoleContext, request: Request, form: Form | None = None, *, used: bool = True
) -> ConsoleRequest | None:
    """The request of somebody whose session is still open; None when there is no such session.

    Args:
        context: what all pages share.
        request: the request of the browser.
        form: the form that it posts, if any.
        used: whether a person caused the request, so that the session isn't idle.
    """
    token = request.cookies.get(context.cookie, "")
    session = context.store.session(token, used=used) if token else None
    return (
        None if session is None else ConsoleRequest(context, request, session, secure_form(token), form or {})
    )


def answered(console_request: ConsoleRequest, view: View) -> Response:
    """A view's answer; an error of ours as a page."""
    try:
        return view(console_request)
    except HTTPError as refused:
        return refusal(console_request, refused.status, str(refused), refused.retry_after)
    except PenchantError as error:
        return refusal(console_request, 500, str(error))


def refusal(console_request: ConsoleRequest, status: int, text: str, retry_after: int = 0) -> Response:
    """A page that says no, and why, and after how many seconds it is worth another try."""
    console_request.mark = ""  # it does not change by itself
    response = console_request.render("refusal.html.j2", status, status=status, text=text)
    if retry_after:
        response.headers["retry-after"] = str(retry_after)
    return response


def to_login(context: ConsoleContext, request: Request) -> Response:
    """To the login page, and after it back to the page that was asked for."""
    after = ""
    if request.method in SAFE:
        after = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.headers.get("hx-request"):  # a part of a page: the whole page must go
        return Response(status_code=401, headers={"HX-Redirect": "/login"})
    return RedirectResponse(f"/login?next={quote(after)}" if len(after) > 1 else "/login", 303)


def back_to(request: Request) -> str:
    """The page that an action came from; the overview when the browser doesn't tell."""
    found = urlsplit(request.headers.get("referer", ""))
    same = found.netloc == request.headers.get("host")
    return local(found.path + (f"?{found.query}" if found.query else "")) if same else "/"


def local(path: str) -> str:
    """`path` if it leads to a page of ours, else the overview."""
    fine = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if fine else "/"


def address_of(request: Request) -> str:
    """Where the browser is."""
    return request.client.host if request.client else ""


def fresh_token() -> str:
    """For a form before there is a session."""
    return secrets.token_urlsafe(32)
