"""A server that speaks OpenAI's API, named by the owner: it is asked for several answers to one conversation.

It is told of a conversation no more than is in the request, and of the owner nothing. Nothing but the URL
that the owner named is asked: no redirect is followed, and no proxy of the environment's is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from penchant.common.errors import UsageError
from penchant.common.foreign_files import finite_json
from penchant.deploy.device_api.bodies import check_depth
from penchant.deploy.device_api.dialects import ApiRefusal

__all__ = ["BEST_OF_MOST", "Json", "PassedOn", "Upstream", "UpstreamSettings"]

BEST_OF_MOST = 64
CONNECT_SECONDS = 10.0
ANSWER_MOST = 32 << 20  # bytes of one answer of the upstream
ERROR_MOST = 1 << 20  # bytes of an error that is passed on
AT_ONCE = 4  # requests of one conversation, where the upstream writes one answer at a time
RETRY_SECONDS = 5

Json = dict[str, Any]


@dataclass(frozen=True)
class UpstreamSettings:
    """Which server writes answers, and how it is asked.

    Attributes:
        url: what an OpenAI client calls its base URL, such as http://127.0.0.1:11434/v1.
        best_of: how many answers the owner's model picks from.
        key: what the upstream is shown as its bearer token; empty for none.
        passes_key: whether it is shown the program's own Authorization instead.
        seconds: for an answer to come.
    """

    url: str
    best_of: int = 4
    key: str = field(default="", repr=False)
    passes_key: bool = False
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if not _is_base(self.url):
            raise UsageError(
                "--upstream must be a URL such as http://127.0.0.1:11434/v1, without a key in it"
            )
        if not 1 <= self.best_of <= BEST_OF_MOST:
            raise UsageError(f"--best-of is {self.best_of}; it must be from 1 to {BEST_OF_MOST}")
        if self.key and self.passes_key:
            raise UsageError("--upstream-key and --pass-authorization exclude each other; give one")
        if not self.key.isascii() or not self.key.isprintable():
            raise UsageError("the upstream's key must be one line of printable ASCII")


class PassedOn(Exception):
    """What the upstream answered instead, to be passed on as it is."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(f"the upstream answered with {status}")
        self.status = status
        self.body = body
        self.headers = headers


class Upstream:
    """Asks the upstream. `running` must be entered in the event loop that asks."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold connections to the upstream until the block ends."""
        timeout = httpx.Timeout(self.settings.seconds, connect=CONNECT_SECONDS)
        # No proxy and no key of the environment's: the owner has named who is asked.
        async with httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=False) as client:
            self._client = client
            try:
                yield
            finally:
                self._client = None

    async def models(self, authorization: str = "") -> bytes:
        """The upstream's list of models, as it writes it. PassedOn and ApiRefusal as `completions`."""
        return await self._asked("GET", "models", None, authorization)

    async def completions(self, body: Json, asked: int, authorization: str = "") -> list[Json]:
        """Answers of the upstream that hold as many choices as are asked for, together.

        Args:
            body: a request for a chat completion, without a number and without a stream.
            asked: how many choices.
            authorization: the program's own header, for an upstream that is shown it.

        Raises:
            ApiRefusal: the upstream can't be asked, or what it answers is no chat completion.
            PassedOn: its own error.
        """
        if asked == 1:
            return [await self._completion(body, authorization)]
        first = await self._first(body, asked, authorization)
        have = len(first["choices"])
        gate = asyncio.Semaphore(AT_ONCE)

        async def another(number: int) -> Json:
            async with gate:
                return await self._completion(_varied(body, number), authorization)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_told(another(number))) for number in range(have, asked)]
        results = [task.result() for task in tasks]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [first, *(result for result in results if not isinstance(result, Exception))]

    # --- inner parts ---------------------------------------------------------------------------------

    async def _first(self, body: Json, asked: int, authorization: str) -> Json:
        """What the upstream answers when it is asked for all choices at once; of one that refuses such a
        request as wrong, what it answers to the same without a number."""
        try:
            return await self._completion({**body, "n": asked}, authorization)
        except PassedOn as error:
            if error.status not in (400, 422):
                raise
        return await self._completion(body, authorization)

    async def _completion(self, body: Json, authorization: str) -> Json:
        data = await self._asked("POST", "chat/completions", {**body, "stream": False}, authorization)
        try:
            found = finite_json(data)
            check_depth(found)
        except (ValueError, RecursionError, ApiRefusal):
            raise ApiRefusal(502, "the upstream's answer is not JSON that can be passed on") from None
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or not choices or not all(map(_is_choice, choices)):
            raise ApiRefusal(502, "the upstream's answer is no chat completion")
        return dict(found)

    async def _asked(self, method: str, path: str, body: Json | None, authorization: str) -> bytes:
        if self._client is None:
            raise ApiRefusal(503, "the upstream is not asked yet", RETRY_SECONDS)
        settings = self.settings
        shown = authorization if settings.passes_key else f"Bearer {settings.key}" if settings.key else ""
        headers = {"authorization": shown} if shown else {}
        url = f"{settings.url.rstrip('/')}/{path}"
        try:
            async with (
                asyncio.timeout(settings.seconds),
                self._client.stream(method, url, json=body, headers=headers) as response,
            ):
                fine = response.status_code == 200
                data = await _bounded(response, ANSWER_MOST if fine else ERROR_MOST)
        except (TimeoutError, httpx.TimeoutException):
            raise ApiRefusal(
                504, f"the upstream did not answer within {settings.seconds:g} seconds"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ApiRefusal(502, f"the upstream can't be asked ({type(error).__name__})") from None
        if fine:
            return data
        if response.status_code < 400:
            raise ApiRefusal(
                502, f"the upstream answered with {response.status_code}; give the URL it leads to"
            )
        kept = ("content-type", "retry-after")
        raise PassedOn(
            response.status_code, data, {k: response.headers[k] for k in kept if k in response.headers}
        )


def _is_base(url: str) -> bool:
    """Whether requests can be made to addresses below a URL, which holds no key."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):  # ValueError: half an IPv6 address, a port that is none
        return False
    return bool(fine) and not parts.query and not parts.fragment and "@" not in parts.netloc


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _varied(body: Json, number: int) -> Json:
    """A request for one more answer: with the same seed it would be the same answer."""
    seed = body.get("seed")
    return {**body, "seed": seed + number} if isinstance(seed, int) and not isinstance(seed, bool) else body


async def _told(work: Any) -> Json | Exception:
    """What comes of some work, or why nothing does: the others are not ended for it."""
    try:
        found: Json = await work
    except (ApiRefusal, PassedOn) as error:
        return error
    return found


async def _bounded(response: httpx.Response, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > most:
            raise ApiRefusal(502, f"the upstream's answer is longer than {most} bytes")
        parts.append(part)
    return b"".join(parts)
