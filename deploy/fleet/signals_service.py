"""What monitoring asks a fleet's server: three paths, on loopback unless a token guards them.

    GET /metrics   figures in Prometheus' text form
    GET /healthz   200: this process is alive
    GET /readyz    200: devices can take part; 503 otherwise. JSON with the reasons

Nothing here changes anything, and no name of a person or a device is told. Beyond loopback `/metrics` and
`/readyz` want the token that stands in a file, as `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from penchant.common.errors import ConfigError, PenchantError
from penchant.common.foreign_files import read_bytes
from penchant.common.network import is_loopback
from penchant.common.printable import one_line
from penchant.deploy.fleet.fleet_watch import FleetWatch
from penchant.deploy.fleet.listen_address import ListenAddress
from penchant.server.monitoring.metrics import CONTENT_TYPE, exposition

__all__ = ["build_signals", "serve_signals", "token_in"]

log = logging.getLogger(__name__)

AT_ONCE = 50  # connections
BEAT_SECONDS = 15.0
TOKEN_LEAST, TOKEN_MOST = 16, 512  # characters


def token_in(path: Path) -> str:
    """The token in a file. ConfigError when it can't be read, or is too short to be one."""
    try:
        text = read_bytes(path, ConfigError, 4096).decode("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        raise ConfigError(
            f"{path} holds no token; write one into it: openssl rand -hex 32 > {path.name}"
        ) from None
    if not TOKEN_LEAST <= len(text) <= TOKEN_MOST or not re.fullmatch(r"[!-~]+", text):
        raise ConfigError(f"the token in {path} must be {TOKEN_LEAST} to {TOKEN_MOST} letters and digits")
    return text


def build_signals(
    watch: FleetWatch,
    *,
    token: str = "",
    loopback_only: bool = True,
    beat: Callable[[], None] = lambda: None,
) -> Starlette:
    """The three paths over a fleet. token: what /metrics and /readyz want to see; empty for nothing.
    loopback_only: refuse requests that are made to another name, as a stranger's page in a browser would.
    beat: called again and again by what answers, as long as it does."""

    def check(request: Request) -> None:
        if loopback_only and not is_loopback(_host_of(request)):
            raise HTTPException(421, "ask for 127.0.0.1 or localhost")
        if not token:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        sent = given.encode("utf-8", "surrogateescape")
        if kind.lower() != "bearer" or not hmac.compare_digest(sent, token.encode()):
            raise HTTPException(401, "a token is wanted", {"WWW-Authenticate": "Bearer"})

    async def metrics(request: Request) -> Response:
        check(request)
        look = await run_in_threadpool(watch.look)
        return Response(exposition(look.figures), media_type=CONTENT_TYPE)

    async def ready(request: Request) -> Response:
        check(request)
        try:
            reasons = (await run_in_threadpool(watch.look)).unready
        except (PenchantError, OSError) as error:
            reasons = (one_line(str(error)),)
        return JSONResponse({"ready": not reasons, "reasons": list(reasons)}, 503 if reasons else 200)

    async def alive(request: Request) -> Response:
        return JSONResponse({"alive": True})

    routes = [
        Route("/metrics", metrics, methods=["GET"]),
        Route("/readyz", ready, methods=["GET"]),
        Route("/healthz", alive, methods=["GET"]),
    ]
    handlers = {PenchantError: _unread, OSError: _unread, Exception: _failed}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        beating = asyncio.create_task(_beat(beat))
        yield
        beating.cancel()

    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def serve_signals(
    watch: FleetWatch,
    where: ListenAddress,
    token: str = "",
    announce: Callable[[], None] = lambda: None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM; announce: called once the port is ours, beat: again and again from then on.

    ConfigError for an address beyond loopback without a token, GatewayError for one that can't be had.
    """
    import uvicorn

    if not where.on_loopback and not token:
        raise ConfigError(
            f"{where} is not loopback: others read it only with a token; name its file with metrics_token, "
            "and put a TLS proxy in front"
        )
    config = uvicorn.Config(
        build_signals(watch, token=token, loopback_only=where.on_loopback, beat=beat),
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=AT_ONCE,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    listener = where.bind()
    beat()  # before anybody can look for it
    announce()
    uvicorn.Server(config).run(sockets=[listener])


# --- inner parts --------------------------------------------------------------------------------------


async def _beat(beat: Callable[[], None]) -> None:
    while True:
        beat()
        await asyncio.sleep(BEAT_SECONDS)


def _host_of(request: Request) -> str:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


async def _unread(request: Request, error: Exception) -> Response:
    """What can't be read of the fleet: a scrape that fails says so in Prometheus."""
    log.warning("no figures: %s", one_line(str(error)))
    return PlainTextResponse(f"{one_line(str(error))}\n", status_code=503)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("no answer: %s", type(error).__name__)
    return PlainTextResponse("the server failed\n", status_code=500)
