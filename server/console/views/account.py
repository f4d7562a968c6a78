"""One's own account: what it may do, and its second factor."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from starlette.responses import Response

from penchant.server.console import second_factor
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.devices import qr_code

__all__ = ["account", "begin", "confirm", "remove"]

WRONG = "This code is wrong, or was used already. Wait for the app’s next one."


def account(request: ConsoleRequest) -> Response:
    """What the account may do and where; a second factor that was begun, and recovery codes, once."""
    return _page(request)


def _page(request: ConsoleRequest, error: str = "", status: int = 200) -> Response:
    store, own = request.context.store, request.session.account
    kept = request.context.secrets.take(request.csrf) or {}
    key = kept.get("key", "")
    if key:  # until a code confirms it, the page can be loaded again
        request.context.secrets.keep(request.csrf, {"key": key})
    uri = second_factor.uri(bytes.fromhex(key), own.name) if key else ""
    named = [
        (fleet.name, own.rights.fleets[fleet.id])
        for fleet in request.operations.fleets()
        if fleet.id in own.rights.fleets
    ]
    return request.render(
        "account.html.j2",
        status,
        account=own,
        fleets=named,
        error=error,
        qr=qr_code(uri) if uri else None,
        secret=parse_qs(urlsplit(uri).query)["secret"][0] if uri else "",
        codes=kept.get("codes", "").split(),
        codes_left=store.recovery_codes_left(own.name),
    )


def begin(request: ConsoleRequest) -> Response:
    """Make a key, which the next page shows."""
    own = request.session.account
    if own.issuer or own.second_factor:
        raise HTTPError("This account has a second factor already, or has it at its provider.", status=409)
    request.context.secrets.keep(request.csrf, {"key": second_factor.new_key().hex()})
    return request.go("/account#second")


def confirm(request: ConsoleRequest) -> Response:
    """Ask for codes from now on, once one shows that the app has the key."""
    kept = request.context.secrets.take(request.csrf) or {}
    if "key" not in kept:
        raise HTTPError("The key was shown too long ago. Begin once more.", status=410)
    codes = request.context.store.set_second_factor(
        request.name, bytes.fromhex(kept["key"]), request.given("code", 64), request.session
    )
    if codes is None:
        request.context.secrets.keep(request.csrf, kept)
        return _refused(request)
    request.context.secrets.keep(request.csrf, {"codes": " ".join(codes)})
    return request.go(
        "/account#second",
        "From now on a code is asked for after your password. Other browsers are logged out.",
    )


def remove(request: ConsoleRequest) -> Response:
    """Ask for codes no more; whoever does so must have one. Tries are limited as those of logging in."""
    store = request.context.store
    place = store.place_of(request.name, request.address)
    wait = store.admit(request.name, place)
    if wait > 0:
        raise HTTPError("Too many tries. Try again later.", status=429, retry_after=int(wait) + 1)
    if not store.drop_second_factor(request.name, request.given("code", 64)):
        return _refused(request)
    store.forget_tries(request.name, place)
    return request.go("/account#second", "Your password alone lets you in from now on.")


def _refused(request: ConsoleRequest) -> Response:
    request.refused = "wrong code"
    return _page(request, WRONG, 422)
