"""Who may see the owner's page: one browser, which came by a link that works once.

Every user of the machine reaches its loopback addresses, and a browser sends a cookie to every port of one
host. So the page lies under an address that nobody can guess, and the cookie is for that address alone:
another program's port is never shown it.

Whoever has a copy of the cookie has what the owner's browser has, until it is worth nothing: once the page is
closed, or idle, or `MOST_SECONDS` old however much it is used, or once the owner has opened another page.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Callable

__all__ = ["LINKED", "MOST_SECONDS", "Entrance"]

LINKED = "/enter/"
"""Before the secret of the link; the one address that may be followed from elsewhere."""
MOST_SECONDS = 12 * 3600.0
"""A session ends after so long: a stolen cookie that is used again and again would keep it open."""


def since_boot() -> float:
    """Seconds since the machine came up, those that it slept among them where it counts such."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Entrance:
    """One link, one session, both in memory only: they end with the process. Thread-safe.

    Attributes:
        root: the address under which all pages are, such as "/Qk2…".
        cookie: the name of the session's cookie.
    """

    def __init__(
        self,
        idle_seconds: float = math.inf,
        clock: Callable[[], float] = since_boot,
        is_newest: Callable[[], bool] = lambda: True,
    ) -> None:
        """idle_seconds: after so long without use nobody is let in any more; the link ends as well.
        is_newest: tells whether the owner has opened no other page since; asked at each request.
        """
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._is_newest = is_newest
        self._began = self._used = clock()
        self._ended = False
        self.root = f"/{secrets.token_urlsafe(16)}"
        self.cookie = f"penchant-{secrets.token_hex(8)}"
        self._link: str | None = secrets.token_urlsafe(32)
        self._session: bytes | None = None
        self._csrf = secrets.token_urlsafe(32)
        self._lock = threading.Lock()

    @property
    def link(self) -> str:
        """The path that lets a browser in, once; empty when it was used."""
        return f"{LINKED}{self._link}" if self._link is not None else ""

    @property
    def over(self) -> bool:
        """Whether nobody is let in any more: it was ended, nobody used it for long, it has been open for as
        long as any may be, or the owner has opened another page."""
        now = self._clock()
        too_long = now - self._used > self._idle_seconds or now - self._began > MOST_SECONDS
        return self._ended or too_long or not self._is_newest()

    def end(self) -> None:
        """Let nobody in any more, by link or by cookie."""
        self._ended = True

    @property
    def csrf(self) -> str:
        """What each form must carry."""
        return self._csrf

    def admit(self, key: str) -> str | None:
        """The token of the session for the key of the link, which is used up by that; None for any other."""
        with self._lock:
            if self._link is None or self.over or not _same(key, self._link):
                return None
            self._used = self._clock()
            token = secrets.token_urlsafe(32)
            self._link, self._session = None, _digest(token)
            return token

    def knows(self, cookies: str) -> bool:
        """Whether a header Cookie holds the session's token.

        Cookies of other programs on this machine come with it, of any shape, and take nothing away from it.
        """
        pairs = (pair.strip().partition("=") for pair in cookies.split(";"))
        given = [value.strip('"') for name, _, value in pairs if name == self.cookie]
        with self._lock:
            session = self._session
            if session is None or self.over:
                return False
            known = any(hmac.compare_digest(_digest(one), session) for one in given)
            if known:
                self._used = self._clock()
            return known

    def sent_by_us(self, form_token: str) -> bool:
        """Whether a form carries the token of the session's forms."""
        return _same(form_token, self._csrf)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _same(given: str, ours: str) -> bool:
    return hmac.compare_digest(_digest(given), _digest(ours))
