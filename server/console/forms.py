"""Forms as browsers send them, and the token that ties one to a session: for every page of ours."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from penchant.server.console.at_once import HTTPError
from penchant.server.console.request_body import read_body

__all__ = ["MOST_FORM", "SAFE", "Endpoint", "Form", "posted", "read_form", "retry", "secure_form"]

MOST_FORM = 128 * 1024  # bytes of a form
SAFE = ("GET", "HEAD")

Form = Mapping[str, str]
Endpoint = Callable[[Request], Awaitable[Response]]


def posted(work: Callable[[Request, Form], Response], most: int = MOST_FORM) -> Endpoint:
    """The entrance of a form of at most so many bytes: it is read, then worked on in a thread."""

    async def endpoint(request: Request) -> Response:
        try:
            form = await read_form(request, most)
        except HTTPError as refused:
            return PlainTextResponse(str(refused), refused.status, retry(refused))
        return await run_in_threadpool(work, request, form)

    return endpoint


async def read_form(request: Request, most: int) -> dict[str, str]:
    """The fields of a form. HTTPError when it is not a form, or as of `read_body`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPError("only a form is understood here", status=415)
    body = await read_body(request, most, what="the form")
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=200)
    except ValueError:
        raise HTTPError("the form can't be read", status=400) from None
    return dict(pairs)


def secure_form(token: str) -> str:
    """What a form of the session with this token must carry: nobody else can know it.

    `Shield` looks at Origin and Sec-Fetch-Site as well. Both are kept: a proxy may drop those headers, and a
    token also ties a form to the session that it was shown in.
    """
    return hmac.digest(token.encode("utf-8", "surrogatepass"), b"penchant console form", "sha256").hex()


def retry(refused: HTTPError) -> dict[str, str]:
    """The header that says when to try again."""
    return {"retry-after": str(refused.retry_after)} if refused.retry_after else {}
