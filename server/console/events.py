"""What changes by itself: server-sent events, each with a part of a page as HTML."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from penchant.common.errors import PenchantError
from penchant.server.console.forms import Endpoint
from penchant.server.console.requests import ConsoleContext, ConsoleRequest, console_request_of
from penchant.server.monitoring.run_history import JournalReader
from penchant.server.waiting import read_waiting

__all__ = ["event", "live"]

LOOK_SECONDS = 0.5  # between two looks whether anything changed
BEAT_SECONDS = 15.0  # between two signs of life
LONGEST_SECONDS = 3600.0  # the browser then comes again by itself

Parts = Callable[[ConsoleRequest], Mapping[str, str]]


def live(context: ConsoleContext, parts: Parts) -> Endpoint:
    """The entrance of a stream: all parts at first, then those that became others."""

    async def endpoint(request: Request) -> Response:
        console_request = await run_in_threadpool(_watching, context, request)
        if console_request is None:
            return Response(status_code=204)  # tells an EventSource not to come again
        try:
            await run_in_threadpool(_mark, console_request)
        except PenchantError:
            return Response(status_code=204)
        return StreamingResponse(
            _stream(console_request, parts),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    return endpoint


def _watching(context: ConsoleContext, request: Request) -> ConsoleRequest | None:
    """The request of a session that is still open; a page that lies open does not keep it so."""
    return console_request_of(context, request, used=False)


async def _stream(console_request: ConsoleRequest, parts: Parts) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    began = beat = time.monotonic()
    sent: dict[str, str] = {}  # the page may be older than the stream: all parts once
    mark: object = None
    while time.monotonic() - began < LONGEST_SECONDS:
        if sent:
            await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        if now - beat >= BEAT_SECONDS:
            beat = now
            if (
                await run_in_threadpool(_watching, console_request.context, console_request.http_request)
                is None
            ):
                return  # logged out, idle for too long, or the account is gone
            yield ": still here\n\n"
        try:
            found = await run_in_threadpool(_mark, console_request)
            if found == mark:
                continue
            fresh = await run_in_threadpool(parts, console_request)
        except PenchantError:
            return  # it was deleted, say; the page asks again and learns it
        mark = found
        for name, html in fresh.items():
            if sent.get(name) != html:
                sent[name] = html
                yield event(name, html)


def _mark(console_request: ConsoleRequest) -> object:
    """Something that changes whenever one of the runs does, or on pages of all of them a fleet."""
    wanted = console_request.http_request.path_params.get("id")
    operations = console_request.context.operations
    locations = [location for location in operations.locations() if wanted in (None, location.id)]
    said = [tuple(operations.log(location, 1)) for location in locations] if wanted else []
    fleets = [] if wanted else [operations.fleet(fleet).mark() for fleet in operations.fleets()]
    return (
        [(JournalReader(one.directory).mark, read_waiting(one.directory)) for one in locations],
        operations.activity(locations),
        said,
        fleets,
    )


def event(name: str, html: str) -> str:
    """One server-sent event."""
    lines = "\n".join(f"data: {line}" for line in html.splitlines())
    return f"event: {name}\n{lines}\n\n"
