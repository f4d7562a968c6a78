"""The enrolment service: four paths behind the gateway, by which devices come in, fetch what they start from,
and say that they left.

    GET  /enrol/ca       the CA's certificate; the device compares its digest with its token's
    POST /enrol/join     a JoinRequest -> a JoinReply, empty while the authority is awaited
    POST /enrol/release  a member's ReleaseAsk -> a ReleaseOffer, or the numbers of a release in it
    POST /enrol/leave    a LeaveNotice: the authority is asked to revoke the member who signed it

    GET  /check        for the gateway alone: whether an enrolled device signed a request to the SuperLink

It listens on a Unix socket that only the gateway reaches. Bodies are small, the codec is strict, each network
has a budget, errors are one line of JSON. Its log names tokens by their digest, and no keys.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from penchant.common.errors import (
    CertificateError,
    CodecError,
    EnrolmentError,
    MembershipError,
    PenchantError,
    TokenError,
)
from penchant.common.membership.enrolment import MAX_JOIN_REQUEST, MAX_LEAVE_NOTICE, JoinRequest
from penchant.common.membership.join_token import token_name
from penchant.common.membership.release_manifest import MAX_RELEASE_ASK
from penchant.common.network import Budget
from penchant.common.printable import one_line
from penchant.common.terminal import log_to_stderr
from penchant.deploy.fleet import node_gate
from penchant.deploy.fleet.enrolment import EnrolmentRegistry, Registrar
from penchant.deploy.fleet.node_gate import NodeProof
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.console.at_once import HTTPError
from penchant.server.console.request_body import read_body

__all__ = ["CHECK", "PATHS", "build_service", "serve"]

log = logging.getLogger(__name__)

PATHS = (("ca", "GET"), ("join", "POST"), ("release", "POST"), ("leave", "POST"))
"""(path below /enrol/, method)."""

CHECK = "/check"
"""The path that the gateway asks before it passes anything on to the SuperLink."""

AT_ONCE = 1000  # connections; how many of them may enrol is the gateway's to say

COLLECT_SECONDS = 2.0  # between two looks into answers/
_CODES = {CodecError: 400, CertificateError: 400, TokenError: 403, EnrolmentError: 403, MembershipError: 503}


def build_service(
    server_directory: ServerDirectory,
    registrar: Registrar,
    *,
    clock: Callable[[], float] = time.time,
    collect: bool = True,
) -> Starlette:
    """The enrolment service of a server; with `collect` it looks into `answers/` from time to time."""
    registry, budget, turn = (
        EnrolmentRegistry(server_directory),
        Budget(server_directory.settings.enrol_per_minute),
        asyncio.Lock(),
    )
    if collect:
        registry.recheck_nodes()

    async def ca(request: Request) -> Response:
        _spend(budget, request)
        return Response(server_directory.ca, media_type="application/x-pem-file")

    async def join(request: Request) -> Response:
        _spend(budget, request)
        body = await _body(request, MAX_JOIN_REQUEST)
        asked = JoinRequest.decode(body)
        try:
            async with turn:  # one at a time: each is a few reads and writes
                reply = await run_in_threadpool(registry.ask, asked, registrar, now=clock())
        except PenchantError as error:
            log.warning("token %s is refused: %s", token_name(asked.token), error)
            raise
        log.info("token %s: %s", token_name(asked.token), "answered" if reply.answer else "waiting")
        return Response(reply.encode(), media_type="application/octet-stream")

    async def leave(request: Request) -> Response:
        _spend(budget, request)
        body = await _body(request, MAX_LEAVE_NOTICE)
        async with turn:
            number = await run_in_threadpool(registry.left, body)
        log.info("member %d says that its owner left; the authority is asked to revoke it", number)
        return Response(status_code=204)

    async def release(request: Request) -> Response:
        _spend(budget, request)
        body = await _body(request, MAX_RELEASE_ASK)
        async with turn:
            number, found = await run_in_threadpool(registry.asked_release, body, now=clock())
        what = "offer" if isinstance(found, bytes) else "numbers"
        log.info("member %d fetches a release's %s", number, what)
        if isinstance(found, bytes):
            return Response(found, media_type="application/octet-stream")
        return FileResponse(found, media_type="application/octet-stream")

    async def check(request: Request) -> Response:
        """204: pass it on; 401: don't. It is asked by the gateway, which sends the headers and no body."""
        sent = request.headers.getlist
        headers = node_gate.KEY_HEADER, node_gate.TIME_HEADER, node_gate.SIGNATURE_HEADER
        proof = NodeProof(*(sent(name) for name in headers))
        passes = await run_in_threadpool(node_gate.admits, proof, registry.knows_node, clock)
        return Response(status_code=204 if passes else 401)

    async def look() -> None:
        while True:
            try:
                async with turn:
                    await run_in_threadpool(registry.collect, registrar)
            except (PenchantError, OSError) as error:
                log.warning("can't look for answers: %s", error)
            await asyncio.sleep(COLLECT_SECONDS)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(look()) if collect else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()

    return Starlette(
        routes=[
            Route("/enrol/ca", ca, methods=["GET"]),
            Route("/enrol/join", join, methods=["POST"]),
            Route("/enrol/release", release, methods=["POST"]),
            Route("/enrol/leave", leave, methods=["POST"]),
            Route(CHECK, check, methods=["GET"]),
        ],
        exception_handlers={PenchantError: _refused, HTTPException: _http, Exception: _failed},
        lifespan=lifespan,
    )


def serve(server_directory: ServerDirectory, registrar: Registrar) -> None:
    """Serve on the server's socket until SIGTERM."""
    import uvicorn

    log_to_stderr()
    uvicorn.run(
        build_service(server_directory, registrar),
        uds=str(server_directory.enrol_socket),
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        limit_concurrency=AT_ONCE,
    )


# --- inner parts --------------------------------------------------------------------------------------


def _spend(budget: Budget, request: Request) -> None:
    if not budget.spend(request.headers.get("x-real-ip", "")):
        raise HTTPException(429, "too many requests; try again in a minute")


async def _body(request: Request, most: int) -> bytes:
    try:
        return await read_body(request, most, what="the request")
    except HTTPError as refused:
        raise HTTPException(refused.status, str(refused)) from None


async def _refused(request: Request, error: Exception) -> Response:
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), 503)
    return _said(code, str(error) if code != 503 else "the server can't do this now; try again later")


async def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _failed(request, error)
    return _said(error.status_code, error.detail)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("no answer: %s", type(error).__name__)
    return _said(500, "the server failed")


def _said(code: int, text: str) -> Response:
    return JSONResponse({"error": one_line(text)}, status_code=code)
