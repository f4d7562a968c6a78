"""Who may ask at all: the door in front of every answer of the device's API.

A page in the owner's own browser is a stranger here, as another user of the machine is: the address that is
asked for must be one of ours (else a foreign name was bound to it), a request that a page of another site
causes is refused, nothing allows one to read an answer, and without the token there is none.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penchant.common.errors import PenchantError
from penchant.deploy.device_api.api_token import has_token_form
from penchant.deploy.device_api.dialects import ApiRefusal, dialect_of, refused

__all__ = ["TOKEN_HEADER", "Door"]

TOKEN_HEADER = "x-penchant-token"
"""Where the token may be instead of Authorization: for programs whose Authorization is for the upstream."""

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": PAGE_POLICY.encode(),
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}


class Door:
    """Refuses foreign hosts, foreign origins and those without the token, and puts headers on every answer.

    Args:
        app: what is behind the door.
        hosts: the Host headers that are ours, in lower case.
        https: whether programs come by TLS.
        token: tells the token that counts at this moment, and is asked at each request: one that was
            withdrawn opens nothing more, on a connection that is open already neither.
        public: addresses that tell nothing of the owner, and need no token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str],
        https: bool,
        token: Callable[[], str],
        public: frozenset[str],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._scheme = "https" if https else "http"
        self._token = token
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        refusal = self._wrong(scope)
        if refusal is not None:
            await refused(refusal, dialect_of(scope["path"]))(scope, receive, guarded)
            return
        await self._app({**scope, "headers": _without_token(scope)}, receive, guarded)

    def _wrong(self, scope: Scope) -> ApiRefusal | None:
        hosts = _all(scope, "host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return ApiRefusal(421, "this API is not served under that name; start it with --name for another")
        origins = _all(scope, "origin")
        if any(origin.lower() != f"{self._scheme}://{hosts[0].lower()}" for origin in origins):
            return ApiRefusal(403, "pages of other sites are not answered")
        if any(site not in ("same-origin", "none") for site in _all(scope, "sec-fetch-site")):
            return ApiRefusal(403, "pages of other sites are not answered")
        if scope["path"] in self._public:
            return None
        try:
            if self._has_token(scope):
                return None
        except PenchantError:  # its text names the owner's files
            return ApiRefusal(503, "nobody is let in: `penchant device api-token` says what is wrong with it")
        return ApiRefusal(401, "the token is missing or wrong; `penchant device api-token` shows it")

    def _has_token(self, scope: Scope) -> bool:
        """Whether the one token that is sent is ours, looked at for as long whatever it is."""
        own = _all(scope, TOKEN_HEADER)
        given = own or [_bearer(value) for value in _all(scope, "authorization")]
        ours = _digest(self._token().encode())
        return len(given) == 1 and hmac.compare_digest(_digest(given[0].encode("latin-1")), ours)


def _without_token(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers for what is behind the door: an Authorization that is there is the program's own, and no
    token of ours, an earlier one neither."""
    return [
        (key, value)
        for key, value in scope["headers"]
        if key != TOKEN_HEADER.encode()
        and not (key == b"authorization" and has_token_form(_bearer(value.decode("latin-1"))))
    ]


def _bearer(value: str) -> str:
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _all(scope: Scope, name: str) -> list[str]:
    """The values of a header, as often as it was sent."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()]
