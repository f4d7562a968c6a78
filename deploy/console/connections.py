"""Connections to the console: how many one network may hold, and how long the head of a request may take.

uvicorn knows a limit for all connections together, which a single stranger could use up, and waits for the
head of a request for as long as it takes.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from pathlib import Path
from typing import ClassVar

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from penchant.common.network import network_of

__all__ = ["BoundedConnection", "bounded_server"]


class BoundedConnection(H11Protocol):
    """uvicorn's connection, with limits against strangers.

    A proxy on this machine speaks for many: connections from loopback are not counted.
    """

    EACH: ClassVar[int] = 64  # connections of one network; a browser with six tabs holds a dozen
    HEAD_SECONDS: ClassVar[float] = 10.0
    _held: ClassVar[Counter[str]] = Counter()

    _network = ""
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if not _loopback(address):
            self._network = network_of(address)
            self._held[self._network] += 1
            if self._held[self._network] > self.EACH:
                transport.abort()
                return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._network:
            self._held[self._network] -= 1
            if not self._held[self._network]:
                del self._held[self._network]
            self._network = ""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._idle():
            self._expect_head()
        super().data_received(data)
        if self.cycle is not before or not self._idle():
            self._head_is_there()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.HEAD_SECONDS, self.transport.abort)

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def bounded_server(app: Starlette, tls: tuple[Path | None, Path | None], most: int) -> uvicorn.Server:
    """uvicorn over such connections, ready to run on a socket: it logs no request, tells nobody what it is,
    and believes no proxy. tls: certificate and key, in PEM; most: connections at the same time, in all."""
    certificate, key = tls
    config = uvicorn.Config(
        app,
        ssl_certfile=certificate,
        ssl_keyfile=str(key) if key else None,
        access_log=False,
        log_config=None,
        log_level="warning",
        http=BoundedConnection,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(network_of(address).split("/")[0]).is_loopback or address == "::1"
    except ValueError:
        return True  # a Unix socket
