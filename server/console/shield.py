"""The middleware of our pages: security headers, and which requests are let in at all."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penchant.server.console.forms import SAFE

__all__ = ["Shield"]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Shield:
    """Refuses foreign hosts and origins before anything else happens, and puts headers on every answer.

    Args:
        app: what is behind it.
        hosts: the names and ports under which browsers may address it.
        https: whether browsers reach it by TLS.
        elsewhere: what is said to whoever comes by another name.
        linked: the beginning of the addresses to which other sites may link; the rest they may not even have
            read.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], https: bool, elsewhere: str, linked: str = "/"
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._elsewhere = elsewhere
        self._linked = linked
        self._scheme = "https" if https else "http"
        self._headers = dict(HEADERS)
        if https:
            self._headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = dict(message["headers"])
                for name, value in self._headers.items():
                    own[name.encode()] = value.encode()
                if b"cache-control" not in own:
                    own[b"cache-control"] = b"no-store"
                kept = [pair for pair in message["headers"] if pair[0] == b"set-cookie"]
                message["headers"] = [p for p in own.items() if p[0] != b"set-cookie"] + kept
            await send(message)

        wrong = self._wrong(scope)
        if wrong is not None:
            await Response(wrong[1], wrong[0], media_type="text/plain")(scope, receive, shielded)
            return
        await self._app(scope, receive, shielded)

    def _is_ours(self, host: str) -> bool:
        """Whether we are called so: with our port, or, where `hosts` has NAME:*, with any."""
        name, _, port = host.rpartition(":")
        if port.isascii() and port.isdecimal():
            return host in self._hosts or f"{name}:*" in self._hosts
        return host in self._hosts and port != "*"

    def _wrong(self, scope: Scope) -> tuple[int, str] | None:
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1 or not self._is_ours(hosts[0].lower()):
            return 421, self._elsewhere
        if scope["method"] in SAFE and scope["path"].startswith(self._linked):
            return None
        found = dict(headers)
        origin = found.get("origin")
        if origin is not None and origin.lower() != f"{self._scheme}://{hosts[0].lower()}":
            return 403, "This comes from another site. Nothing was done.\n"
        if found.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "This comes from another site. Nothing was done.\n"
        return None
