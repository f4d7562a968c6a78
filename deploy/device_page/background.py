"""Work that takes longer than a page: one piece at a time, in a thread, and what is told of it meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from penchant.common.errors import PenchantError
from penchant.server.console.at_once import HTTPError

__all__ = ["BackgroundWork", "Tell", "WorkState"]

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Whom a piece of work tells what it does just now."""


@dataclass(frozen=True)
class WorkState:
    """How far a piece of work is.

    Attributes:
        name: what is done, such as "training".
        step: what is done just now.
        began: when it began, monotonic seconds.
        to_the_end: whether the program does not end before it: it must not be broken off in its midst.
        seconds: how long it took; None while it goes on.
        outcome: what came of it; empty while it goes on, and where it failed.
        wrong: why it failed; empty where it did not.
    """

    name: str
    step: str
    began: float
    to_the_end: bool = False
    seconds: float | None = None
    outcome: str = ""
    wrong: str = ""

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.seconds is None

    @property
    def elapsed(self) -> float:
        """Seconds since it began, or that it took."""
        return time.monotonic() - self.began if self.seconds is None else self.seconds


class BackgroundWork:
    """One piece of work at a time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: WorkState | None = None
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> WorkState | None:
        """Of the latest piece of work; None before the first."""
        return self._state

    @property
    def running(self) -> bool:
        """Whether something is being done."""
        state = self._state
        return state is not None and state.running

    @property
    def goes_to_the_end(self) -> bool:
        """Whether something is being done that must not be broken off."""
        state = self._state
        return state is not None and state.running and state.to_the_end

    def start(self, name: str, work: Callable[[Tell], str], *, to_the_end: bool = False) -> None:
        """Begin. HTTPError when something is being done already.

        work: is given whom to tell what it does just now, and returns what came of it in a sentence.
        to_the_end: it must not be broken off.
        """
        with self._lock:
            if self._state is not None and self._state.running:
                raise HTTPError(f"{self._state.name} is under way; wait for its end", status=409)
            self._state = WorkState(name, "beginning", time.monotonic(), to_the_end)
            self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait for the end, so long at most."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _do(self, work: Callable[[Tell], str]) -> None:
        try:
            self._end(outcome=work(self._tell))
        except PenchantError as error:
            self._end(wrong=str(error))
        except Exception as error:  # a fault of ours: its kind alone is told, nothing of anybody's texts
            log.error("%s: %s", "work behind the page failed", type(error).__name__)
            self._end(wrong=f"a fault of ours ({type(error).__name__})")

    def _tell(self, step: str) -> None:
        with self._lock:
            if self._state is not None:
                self._state = replace(self._state, step=step)

    def _end(self, *, outcome: str = "", wrong: str = "") -> None:
        with self._lock:
            if self._state is not None:
                self._state = replace(
                    self._state, seconds=self._state.elapsed, outcome=outcome, wrong=wrong, step=""
                )
