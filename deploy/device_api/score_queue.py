"""Requests of many programs, one model: what waits at the same time is scored together, and only so much
may wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from penchant.client.device.warm_model import TextScore, WarmModel
from penchant.deploy.device_api.bodies import ApiLimits
from penchant.deploy.device_api.dialects import ApiRefusal

__all__ = ["ScoreQueue"]

Text = tuple[str, str]
BATCH_TEXTS = 512  # scored before the next ones who wait have their turn
RETRY_SECONDS = 1


@dataclass(eq=False)
class _Waiting:
    texts: Sequence[Text] = field(repr=False)
    answer: asyncio.Future[list[TextScore]]


class ScoreQueue:
    """Scores texts with one model, in one thread, in the order in which they came.

    `running` must be entered in the event loop that asks.
    """

    def __init__(self, model: WarmModel, limits: ApiLimits) -> None:
        self.model = model
        self._limits = limits
        self._waiting: deque[_Waiting] = deque()
        self._held = 0  # requests that wait or are being scored
        self._texts = 0  # theirs
        self._there = asyncio.Event()

    async def scores(self, texts: Sequence[Text]) -> list[TextScore]:
        """What the model says of (prompt, response) texts, in their order.

        ApiRefusal when too many wait; errors as `Device.rank`.
        """
        full = self._held >= self._limits.waiting or self._texts + len(texts) > self._limits.waiting_texts
        if full:
            raise ApiRefusal(503, "too many requests wait to be scored; try again in a second", RETRY_SECONDS)
        one = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._held += 1
        self._texts += len(texts)
        self._waiting.append(one)
        self._there.set()
        try:
            return await one.answer
        finally:
            self._held -= 1
            self._texts -= len(texts)
            with suppress(ValueError):  # who stopped waiting before their turn; all others are out by now
                self._waiting.remove(one)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Score what comes, until the block ends."""
        with ThreadPoolExecutor(1, thread_name_prefix="scores") as thread:
            work = asyncio.create_task(self._work(thread))
            try:
                yield
            finally:
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work

    # --- inner parts ---------------------------------------------------------------------------------

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await self._there.wait()
            batch = self._batch()
            if not self._waiting:
                self._there.clear()
            if batch:
                await self._score(batch, thread)

    def _batch(self) -> list[_Waiting]:
        """Those who have waited longest, as many as are scored together; at least one, if anybody waits."""
        batch: list[_Waiting] = []
        texts = 0
        while self._waiting and (not batch or texts + len(self._waiting[0].texts) <= BATCH_TEXTS):
            batch.append(self._waiting.popleft())
            texts += len(batch[-1].texts)
        return batch

    async def _score(self, batch: Sequence[_Waiting], thread: ThreadPoolExecutor) -> None:
        texts = [text for one in batch for text in one.texts]
        try:
            found = await asyncio.get_running_loop().run_in_executor(thread, self.model.scores, texts)
        except Exception as error:  # whatever it is belongs to those who asked, and ends nobody else's work
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        rest = iter(found)
        for one in batch:
            own = [next(rest) for _ in one.texts]
            if not one.answer.done():
                one.answer.set_result(own)
