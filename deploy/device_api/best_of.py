"""Best of n for any chat program: an upstream writes n answers, and the owner's model picks the one to show.

The upstream is whatever speaks OpenAI's API. It is told of a conversation no more than the program sent, and
of the owner nothing: that it is asked for several answers is all that it can see.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from penchant.client.device.conversation_form import prompt_of, response_of
from penchant.client.device.warm_model import TextScore
from penchant.common.errors import DataError
from penchant.deploy.device_api.bodies import Fields
from penchant.deploy.device_api.dialects import ApiRefusal
from penchant.deploy.device_api.score_queue import ScoreQueue
from penchant.deploy.device_api.upstream import (
    BEST_OF_MOST,
    RETRY_SECONDS,
    Json,
    Upstream,
    UpstreamSettings,
)

__all__ = ["BestOf", "PickedAnswer"]

COUNT_MOST = 1 << 63  # tokens; a sum of longer numbers may have more digits than Python writes


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
        self._upstream = Upstream(settings)
        self._queue = queue
        self._places = most

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold connections to the upstream until the block ends."""
        async with self._upstream.running():
            yield

    async def models(self, authorization: str) -> bytes:
        """The upstream's list of models, as it writes it. PassedOn and ApiRefusal as `answer`."""
        return await self._upstream.models(authorization)

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
        asked = max(self._upstream.settings.best_of, wanted)
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
            completions = await self._upstream.completions(body, asked, authorization)
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
