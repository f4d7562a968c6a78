"""How many may do something costly at the same time: all together, and each of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from penchant.common.errors import ConsoleError

__all__ = ["AtOnce", "HTTPError"]


class HTTPError(ConsoleError):
    """A request that gets no answer but an HTTP status and a text.

    retry_after: after how many seconds the browser may ask again; 0 says nothing about it.
    """

    def __init__(self, text: str, *, status: int = 400, retry_after: int = 0) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


class AtOnce:
    """Places for work that takes a while. Nobody waits for one: who gets none is refused. Thread-safe."""

    def __init__(self, what: str, *, total: int, each: int, retry_after: int) -> None:
        """`what` is the plural that a refusal names, such as "downloads"."""
        self._what = what
        self._total = total
        self._each = each
        self._retry_after = retry_after
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def place(self, whose: str) -> Iterator[None]:
        """A place for as long as the block lasts. HTTPError, 429 or 503, when there is none."""
        self._take(whose)
        try:
            yield
        finally:
            with self._lock:
                self._held[whose] -= 1
                self._held += Counter()  # what is at zero goes

    def _take(self, whose: str) -> None:
        with self._lock:
            if self._held[whose] >= self._each:
                text = f"You have {self._each} of these {self._what} under way; wait for the end of one."
                raise HTTPError(text, status=429, retry_after=self._retry_after)
            if self._held.total() >= self._total:
                text = f"Too many {self._what} are under way; try again in a moment."
                raise HTTPError(text, status=503, retry_after=self._retry_after)
            self._held[whose] += 1
