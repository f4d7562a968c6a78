"""Logging in and out: by a password and, where the account has one, a second factor; or by a provider."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from penchant.common.errors import ConsoleError
from penchant.common.printable import one_line
from penchant.common.wording import duration
from penchant.server.console.accounts import CODE_SECONDS, DEVICE_SECONDS, LoginPlace
from penchant.server.console.at_once import AtOnce
from penchant.server.console.forms import MOST_FORM, Endpoint, Form, posted, retry, secure_form
from penchant.server.console.provider_login import LOGIN_SECONDS, BegunLogin, ProviderLogin
from penchant.server.console.provider_settings import VouchedPerson
from penchant.server.console.requests import (
    ConsoleContext,
    HTTPError,
    address_of,
    console_request_of,
    fresh_token,
    local,
)

__all__ = [
    "code",
    "code_page",
    "from_provider",
    "kept_for_login",
    "login",
    "login_page",
    "logout",
    "to_provider",
]

KEPT = "kept."  # before the names of fields that wait for a login
MOST_LOGIN = MOST_FORM + 8 * 1024  # bytes of a form that waits, with those names and the password
BACK = "/login/provider/back"
BY_PROVIDER = "somebody by the provider"  # in the audit, where no name is known

Entrance = Callable[..., Response]


# --- the page -------------------------------------------------------------------------------------


def login_page(context: ConsoleContext) -> Endpoint:
    """The entrance."""

    async def endpoint(request: Request) -> Response:
        if await run_in_threadpool(console_request_of, context, request):
            return RedirectResponse(local(request.query_params.get("next", "/")), 303)
        return await run_in_threadpool(_entrance, context, request, request.query_params.get("next", "/"))

    return endpoint


def kept_for_login(context: ConsoleContext, request: Request, form: Form) -> Response:
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
    *,
    code: bool = False,
) -> Response:
    """The form of a login; that of the second factor where a code is asked for."""
    token = request.cookies.get(f"{context.cookie}-form") or fresh_token()
    left = context.provider is not None and request.query_params.get("left") == "provider"
    text = context.templates.get_template("code.html.j2" if code else "login.html.j2").render(
        csrf=secure_form(token),
        after=local(after),
        error=error,
        name=name,
        nobody=context.provider is None and not context.store.accounts(),
        kept={f"{KEPT}{key}": text for key, text in (kept or {}).items() if key != "csrf"},
        provider=context.provider.provider.settings.name if context.provider else "",
        leave=context.provider.end_session(_address(context, request, "/login"))
        if left and context.provider
        else "",
    )
    response = HTMLResponse(text, status)
    context.set_cookie(response, f"{context.cookie}-form", token)
    return response


def _from_our_form(context: ConsoleContext, request: Request, form: Form) -> bool:
    own = request.cookies.get(f"{context.cookie}-form", "")
    return bool(own) and hmac.compare_digest(form.get("csrf", "").encode(), secure_form(own).encode())


def _kept(form: Form) -> dict[str, str]:
    return {key.removeprefix(KEPT): text for key, text in form.items() if key.startswith(KEPT)}


# --- the password ---------------------------------------------------------------------------------


def login(context: ConsoleContext) -> Endpoint:
    """Let somebody in, or not; both are in the audit."""
    return posted(partial(_let_in, context), MOST_LOGIN)


def _let_in(context: ConsoleContext, request: Request, form: Form) -> Response:
    name, address = one_line(form.get("name", ""), 64), address_of(request)
    after, kept = local(form.get("next", "/")), _kept(form)
    entrance = partial(_entrance, context, request, after, kept=kept)
    if not _from_our_form(context, request, form):
        return entrance("This form is too old. Try once more.", name, 403)
    already = console_request_of(context, request) if kept and not form.get("password") else None
    if already is not None:  # in another tab, by the provider
        context.drafts.keep(already.csrf, kept)
        return RedirectResponse(after, 303)
    device = request.cookies.get(f"{context.cookie}-device", "")
    place = context.store.place_of(name, address, device)
    try:
        with _places(context, place).place(place.key):
            wait = context.store.admit(name, place)
            if wait > 0:
                return _slowed_down(context, request, entrance, name, wait)
            token = context.store.login(name, form.get("password", ""), place)
    except HTTPError as full:
        return _full(entrance, full, name)
    if token is None:
        context.store.note(name, address, "log in", "", "refused: wrong name or password")
        return entrance("Name or password is wrong.", name, 401)
    if context.store.half_login(token) is not None:
        response = _entrance(context, request, after, kept=kept, code=True)
        context.set_cookie(response, f"{context.cookie}-half", token, CODE_SECONDS)
        return response
    return _welcome(context, request, name, token, after, device, kept)


def _places(context: ConsoleContext, place: LoginPlace) -> AtOnce:
    return context.known_logins if place.known else context.logins


def _places_at_provider(context: ConsoleContext, place: LoginPlace) -> AtOnce:
    """Apart from those for passwords: a slow provider must not hold these up."""
    return context.known_provider_logins if place.known else context.provider_logins


def _full(entrance: Entrance, full: HTTPError, name: str = "") -> Response:
    response = entrance(str(full), name, full.status)
    response.headers.update(retry(full))
    return response


def _welcome(
    context: ConsoleContext,
    request: Request,
    name: str,
    token: str,
    after: str,
    device: str,
    kept: Form | None = None,
    *,
    linked: bool = False,
) -> Response:
    """The session's cookie, and on to the page that was asked for; linked: the browser comes from another
    site, so that cookies of ours go along only from a page of ours on."""
    address = address_of(request)
    context.store.note(name, address, "log in", "")
    if kept:
        context.drafts.keep(secure_form(token), kept)
    if linked:
        text = context.templates.get_template("entered.html.j2").render(after=after)
        response: Response = HTMLResponse(text)
    else:
        response = RedirectResponse(after, 303)
    context.set_cookie(response, context.cookie, token)
    device = context.store.remember(name, device, address)
    context.set_cookie(response, f"{context.cookie}-device", device, DEVICE_SECONDS)
    for over in ("form", "half", "provider"):
        context.drop_cookie(response, f"{context.cookie}-{over}")
    return response


def _slowed_down(
    context: ConsoleContext, request: Request, entrance: Entrance, name: str, wait: float
) -> Response:
    """Not now. The audit says so once in a while, not each time: strangers would fill the disk with it."""
    address = address_of(request)
    if context.refusals.spend(address):
        context.store.note(name or BY_PROVIDER, address, "log in", "", "refused: too many tries")
    text = f"Too many tries. The next one is looked at in {duration(max(wait, 1.0))}."
    response = entrance(text, name, 429)
    response.headers["retry-after"] = str(int(wait) + 1)
    return response


# --- the second factor ----------------------------------------------------------------------------


def code_page(context: ConsoleContext) -> Endpoint:
    """A page that is loaded again: the login begins once more."""

    async def endpoint(request: Request) -> Response:
        return RedirectResponse("/login", 303)

    return endpoint


def code(context: ConsoleContext) -> Endpoint:
    """Let somebody in whose password was right, or not; both are in the audit."""
    return posted(partial(_let_in_by_code, context), MOST_LOGIN)


def _let_in_by_code(context: ConsoleContext, request: Request, form: Form) -> Response:
    after, kept = local(form.get("next", "/")), _kept(form)
    half = request.cookies.get(f"{context.cookie}-half", "")
    name, address = context.store.half_login(half), address_of(request)
    if name is None or not _from_our_form(context, request, form):
        return _entrance(context, request, after, "This took too long. Log in once more.", "", 403, kept)
    device = request.cookies.get(f"{context.cookie}-device", "")
    place = context.store.place_of(name, address, device)

    def again(text: str, _: str, status: int) -> Response:
        return _entrance(context, request, after, text, "", status, kept, code=True)

    wait = context.store.admit(name, place)
    if wait > 0:
        return _slowed_down(context, request, again, name, wait)
    token = context.store.second(half, form.get("code", ""), place)
    if token is None:
        context.store.note(name, address, "log in", "", "refused: wrong code")
        return again("This code is wrong, or was used already. Wait for the app’s next one.", "", 401)
    return _welcome(context, request, name, token, after, device, kept)


# --- a provider -----------------------------------------------------------------------------------


def to_provider(context: ConsoleContext) -> Endpoint:
    """To the provider's page."""

    def work(request: Request) -> Response:
        after = local(request.query_params.get("next", "/"))
        entrance = partial(_entrance, context, request, after)
        if context.provider is None:
            return entrance("No provider is set up here.", "", 404)
        device, back = request.cookies.get(f"{context.cookie}-device", ""), _address(context, request, BACK)
        place = context.store.provider_place(address_of(request), device)
        try:
            with _places_at_provider(context, place).place(place.key):
                url, kept = context.provider.begin(back, after, device)
        except HTTPError as error:
            return _full(entrance, error)
        response = RedirectResponse(url, 303)
        context.set_cookie(response, f"{context.cookie}-provider", kept, LOGIN_SECONDS, linked=True)
        return response

    return _in_thread(work)


def from_provider(context: ConsoleContext) -> Endpoint:
    """Let somebody in for whom the provider vouches, or not; both are in the audit."""

    def work(request: Request) -> Response:
        if context.provider is None:
            return _entrance(context, request, "/", "No provider is set up here.", "", 404)
        return _let_in_by_provider(context, context.provider, request)

    return _in_thread(work)


def _let_in_by_provider(context: ConsoleContext, provider: ProviderLogin, request: Request) -> Response:
    begun = provider.begun(request.cookies.get(f"{context.cookie}-provider", ""))
    device = begun.device if begun else ""
    entrance = partial(_entrance, context, request, begun.after if begun else "/")
    place = context.store.provider_place(address_of(request), device)
    try:
        with _places_at_provider(context, place).place(place.key):
            wait = context.store.admit("", place)
            if wait > 0:
                return _slowed_down(context, request, entrance, "", wait)
            person = _vouched_for(context, provider, request, begun)
        token, name = _admitted(context, provider, request, person), person.account
    except HTTPError as refused:
        return _full(entrance, refused)
    context.store.forget_tries("", place)
    after = local(begun.after) if begun else "/"
    return _welcome(context, request, name, token, after, device, linked=True)


def _vouched_for(
    context: ConsoleContext, provider: ProviderLogin, request: Request, begun: BegunLogin | None
) -> VouchedPerson:
    try:
        return provider.finish(begun, dict(request.query_params), _address(context, request, BACK))
    except HTTPError as refused:
        context.store.note(BY_PROVIDER, address_of(request), "log in", "", f"refused: {refused}")
        raise


def _admitted(
    context: ConsoleContext, provider: ProviderLogin, request: Request, person: VouchedPerson
) -> str:
    """The session's token of somebody who has a role here."""
    trusted, address = provider.provider, address_of(request)
    issuer, rights = trusted.settings.issuer, trusted.rights_of(person)
    if rights is None:
        context.store.end_sessions_of(issuer, person.subject)
        context.store.note(person.account, address, "log in", "", "refused: no rule of oidc.allowed")
        text = f"{person.email or person.subject} has no role here. Whoever runs this console can give one."
        raise HTTPError(text, status=403)
    try:
        return context.store.let_in(person.account, issuer, person.subject, rights)
    except ConsoleError as error:
        context.store.end_sessions_of(issuer, person.subject)
        context.store.note(person.account, address, "log in", "", f"refused: {error}")
        raise HTTPError(
            "This name was somebody else’s before. Whoever runs this console can free it.", status=403
        ) from None


def _address(context: ConsoleContext, request: Request, path: str) -> str:
    """A page of ours under the name by which the browser came: `Shield` knows that name as one of ours."""
    return f"{'https' if context.https else 'http'}://{request.headers['host'].lower()}{path}"


def _in_thread(work: Callable[[Request], Response]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(work, request)

    return endpoint


# --- out ------------------------------------------------------------------------------------------


def logout(context: ConsoleContext) -> Endpoint:
    """Let somebody out."""

    def work(request: Request, form: Form) -> Response:
        console_request, after = console_request_of(context, request, form), "/login"
        if console_request is not None:
            if not console_request.sent_by_us():
                return PlainTextResponse("This form is too old, or not ours.", 403)
            context.store.logout(console_request.session)
            context.store.note(console_request.name, console_request.address, "log out", "")
            after = "/login?left=provider" if console_request.session.account.issuer else after
        response = RedirectResponse(after, 303)
        context.drop_cookie(response, context.cookie)
        return response

    return posted(work)
