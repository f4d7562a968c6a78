"""Best of n for any chat program: an upstream writes n answers, and the owner's model picks the one to show.

The upstream is whatever speaks OpenAI's API. It is told of a conversation no more than the program sent, and
of the owner nothing: that it is asked for several answers is all that it can see.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from penchant.client.device.conversation_form import prompt_of, response_of
from penchant.client.device.warm_model import TextScore
from penchant.common.errors import DataError, UsageError
from penchant.common.foreign_files import finite_json
from penchant.deploy.device_api.bodies import Fields, check_depth
from penchant.deploy.device_api.dialects import ApiRefusal
from penchant.deploy.device_api.score_queue import ScoreQueue

__all__ = ["BEST_OF_MOST", "BestOf", "PassedOn", "PickedAnswer", "UpstreamSettings"]

BEST_OF_MOST = 64
CONNECT_SECONDS = 10.0
ANSWER_MOST = 32 << 20  # bytes of one answer of the upstream
ERROR_MOST = 1 << 20  # bytes of an error that is passed on
AT_ONCE = 4  # requests of one conversation, where the upstream writes one answer at a time
RETRY_SECONDS = 5
COUNT_MOST = 1 << 63  # tokens; a sum of longer numbers may have more digits than Python writes

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


@dataclass(frozen=True)
class PickedAnswer:
    """The answer for the program: the upstream's, with the owner's best choices only.

    scores: those of all choices that could be scored, the best first.
    """

    completion: Json = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    streamed: bool
    usage_streamed: bool

    def events(self) -> list[bytes]:
        """The same as the events of a stream: each choice, its end, and usage where that was asked for."""
        common = {key: value for key, value in self.completion.items() if key not in ("choices", "usage")}
        common["object"] = "chat.completion.chunk"
        chunks: list[Json] = []
        for choice in self.completion["choices"]:
            place = choice["index"]
            delta = _delta(choice["message"])
            chunks.append({**common, "choices": [{"index": place, "delta": delta, "finish_reason": None}]})
            end = {"index": place, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}
            chunks.append({**common, "choices": [end]})
        if self.usage_streamed:
            chunks.append({**common, "choices": [], "usage": self.completion.get("usage")})
        written = [json.dumps(chunk, ensure_ascii=False).encode() for chunk in chunks]
        return [b"data: " + one + b"\n\n" for one in (*written, b"[DONE]")]


class BestOf:
    """Asks the upstream for n answers and lets the owner's model choose.

    `running` must be entered in the event loop that asks.
    """

    def __init__(self, settings: UpstreamSettings, queue: ScoreQueue, most: int) -> None:
        """most: conversations that are with the upstream at the same time."""
        self.settings = settings
        self._queue = queue
        self._places = most
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

    async def models(self, authorization: str) -> bytes:
        """The upstream's list of models, as it writes it. PassedOn and ApiRefusal as `answer`."""
        return await self._asked("GET", "models", None, authorization)

    async def answer(self, table: Json, fields: Fields, authorization: str) -> PickedAnswer:
        """The answer to a request for a chat completion.

        Args:
            table: the request's body.
            fields: the same, checked.
            authorization: the program's own header, for an upstream that is shown it.

        Raises:
            ApiRefusal: the request can't be answered, or the upstream can't. PassedOn: its own error.
        """
        streamed, wanted = fields.flag("stream", False), fields.whole("n", 1, least=1)
        asked = max(self.settings.best_of, wanted)
        if asked > BEST_OF_MOST:
            raise ApiRefusal(422, f"'n' must be {BEST_OF_MOST} or less")
        conversational = self._queue.model.conversational
        try:
            prompt = fields.bounded(
                "messages", prompt_of(fields.entries("messages"), conversation=conversational)
            )
        except DataError as error:
            raise ApiRefusal(422, f"{error}; the owner's model reads texts only") from None
        if not self._places:
            raise ApiRefusal(503, "too many conversations are with the upstream", RETRY_SECONDS)
        body = {key: value for key, value in table.items() if key not in ("stream", "stream_options", "n")}
        self._places -= 1
        try:
            completions = await self._completions(body, asked, authorization)
        finally:
            self._places += 1
        options = table.get("stream_options")
        usage = isinstance(options, dict) and options.get("include_usage") is True
        choices, scores = await self._ranked(prompt, completions, conversational)
        picked = [{**choice, "index": place} for place, choice in enumerate(choices[:wanted])]
        completion = {**completions[0], "choices": picked}
        if len(completions) > 1:
            completion["usage"] = _summed([one.get("usage") for one in completions])
        completion["penchant"] = {"asked": asked, "scores": list(scores)}
        return PickedAnswer(completion, scores, streamed, usage)

    # --- inner parts ---------------------------------------------------------------------------------

    async def _completions(self, body: Json, asked: int, authorization: str) -> list[Json]:
        """Answers of the upstream that hold as many choices as are asked for, together."""
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

    async def _ranked(
        self, prompt: str, completions: Sequence[Json], conversational: bool
    ) -> tuple[list[Json], tuple[float, ...]]:
        """All choices, the owner's best first, and the scores of those that are texts; others come last."""
        texts: list[tuple[str, str]] = []
        readable: list[Json] = []
        others: list[Json] = []
        for choice in (choice for one in completions for choice in one["choices"]):
            try:
                texts.append((prompt, response_of(choice["message"], conversation=conversational)))
                readable.append(choice)
            except DataError:
                others.append(choice)
        scores: list[TextScore] = await self._queue.scores(texts) if texts else []
        order = sorted(range(len(scores)), key=lambda place: -scores[place].raw)
        best = tuple(scores[place].bounded for place in order)
        return [*(readable[place] for place in order), *others], best


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


def _summed(usages: Sequence[object]) -> dict[str, int]:
    """What all answers together cost, as far as the upstream says so."""
    total: dict[str, int] = {}
    for usage in usages:
        for name, count in usage.items() if isinstance(usage, Mapping) else ():
            if isinstance(count, int) and not isinstance(count, bool) and abs(count) < COUNT_MOST:
                total[name] = total.get(name, 0) + count
    return total


def _delta(message: Json) -> Json:
    """A whole message as the one piece of a stream."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return {"role": "assistant", **message}
    numbered = [{"index": n, **call} if isinstance(call, dict) else call for n, call in enumerate(calls)]
    return {"role": "assistant", **message, "tool_calls": numbered}
