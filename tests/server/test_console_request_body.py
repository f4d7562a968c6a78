"""The one reader of bodies: whatever comes, in whatever pieces, it ends within its bounds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from penchant.server.console.at_once import HTTPError
from penchant.server.console.request_body import read_body

ROOT = Path(__file__).parents[2]
GONE: dict[str, Any] = {"type": "http.disconnect"}


def of_pieces(pieces: Iterable[bytes], end: dict[str, Any] | None = None) -> tuple[Request, list[bytes]]:
    """A request whose body comes in pieces, and what is left of them.

    end: what comes after the pieces in the place of the last one; the sender falls silent where it is {}.
    """
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        if left:
            more = len(left) > 1 or end is not None
            return {"type": "http.request", "body": left.pop(0), "more_body": more}
        if end:
            return end
        await asyncio.Event().wait()
        raise AssertionError("nothing ends this wait")

    return Request({"type": "http", "method": "POST", "headers": []}, receive), left


def refusal(request: Request, most: int, **more: Any) -> tuple[int, str]:
    with pytest.raises(HTTPError) as raised:
        asyncio.run(read_body(request, most, **more))
    return raised.value.status, str(raised.value)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=8))
def test_a_body_is_the_same_in_whatever_pieces_it_comes(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert asyncio.run(read_body(of_pieces(pieces)[0], len(whole))) == whole
    if whole:
        status, why = refusal(of_pieces(pieces)[0], len(whole) - 1)
        assert (status, why) == (413, f"the body is longer than {len(whole) - 1} bytes")


def test_of_a_body_that_is_too_long_nothing_more_is_read() -> None:
    request, left = of_pieces([b"x" * 8] * 100)
    advice = "; send less"
    assert refusal(request, 16, what="the file", advice=advice) == (
        413,
        "the file is longer than 16 bytes; send less",
    )
    assert len(left) == 97
    assert refusal(of_pieces([b"x" * (3 << 20)])[0], 2 << 20)[1] == "the body is longer than 2 MiB"


def test_a_body_that_stops_is_not_waited_for() -> None:
    assert refusal(of_pieces([b"x"], {})[0], 9, seconds=0.05) == (
        408,
        "the body did not come within 0.05 seconds",
    )


def test_half_a_body_is_none() -> None:
    assert refusal(of_pieces([b"x"], GONE)[0], 9) == (400, "the body ended before all of it had come")


def test_nobody_else_reads_a_body() -> None:
    reads = re.compile(r"request\.(stream|body|form|json)\(")
    own = "server/console/request_body.py"
    found = [
        path
        for room in ("client", "common", "deploy", "server")
        for path in (ROOT / room).rglob("*.py")
        if reads.search(path.read_text(encoding="utf-8"))
    ]
    assert [path.relative_to(ROOT).as_posix() for path in found] == [own]
