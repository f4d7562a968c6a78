"""The body of a request, read within bounds: a form, a file that is handed over, what a program sends."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from penchant.server.console.at_once import HTTPError

__all__ = ["BODY_SECONDS", "read_body"]

BODY_SECONDS = 30.0  # for all of a body to come, unless it may take longer


async def read_body(
    request: Request, most: int, *, seconds: float = BODY_SECONDS, what: str = "the body", advice: str = ""
) -> bytes:
    """The bytes of a body, no matter what its header says of their number.

    Args:
        request: of whom nothing was read before.
        most: bytes that it may have; the first one more ends the reading.
        seconds: for all of it to come.
        what: what a refusal calls it.
        advice: what the refusal of a body that is too long ends with.

    Raises:
        HTTPError: with status 413, 408, or 400 where it ended too early; one line, quoting nothing of it.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise HTTPError(f"{what} is longer than {_size(most)}{advice}", status=413)
                parts.append(part)
    except TimeoutError:
        raise HTTPError(f"{what} did not come within {seconds:g} seconds", status=408) from None
    except ClientDisconnect:
        raise HTTPError(f"{what} ended before all of it had come", status=400) from None
    return b"".join(parts)


def _size(most: int) -> str:
    mebibytes, rest = divmod(most, 1 << 20)
    return f"{most} bytes" if rest or not mebibytes else f"{mebibytes} MiB"
