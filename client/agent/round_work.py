"""The one door through which an owner's data leaves: the vector, at a moment that the plan fixes.

From the reply to `keys` on no choice of its owner decides whether, when or how much a device sends
(docs/threat-model.md#what-leaves-in-clear-and-what-it-depends-on). So whatever fails in the work on
them looks the same from outside: a vector of zeros with weight 0, inside the same masks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from penchant.client.learning.outcome import Outcome
from penchant.client.learning.workplace import Job, Workplace
from penchant.common.errors import PenchantError

__all__ = ["Pace", "RoundWork", "WallClock"]


HEAD_START = 0.05
"""Seconds that the reply to `keys` has to leave before the agent's own part of the work begins, which takes
the longer the more choices there are."""


class Pace(Protocol):
    """The time that passes on a device."""

    def now(self) -> float:
        """Seconds since some fixed moment; they never go back."""

    def wait(self, until: float) -> None:
        """Return at that moment, at once if it is over."""


class WallClock:
    """Real time."""

    def now(self) -> float:
        """As `Pace.now`."""
        return time.monotonic()

    def wait(self, until: float) -> None:
        """As `Pace.wait`."""
        time.sleep(max(until - time.monotonic(), 0.0))


class RoundWork:
    """The work of one attempt, from the reply to `keys` until the vector leaves.

    Args:
        workplace: does it, and ends it.
        job: says what is to be done; it reads the owner's choices.
        seconds: how long it may take, from now on.
        pace: the time that passes; None where there is no onlooker, and nothing is waited for.
        ahead: works in a separate thread, which begins a moment from now; otherwise when the outcome is
            asked for.
    """

    def __init__(
        self,
        workplace: Workplace,
        job: Callable[[], Job],
        seconds: float,
        *,
        pace: Pace | None,
        ahead: bool,
    ) -> None:
        self._workplace, self._job, self._pace = workplace, job, pace
        self._due = pace.now() + seconds if pace else 0.0
        self._seconds = seconds
        self._found: Outcome | str = ""
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="work", daemon=True) if ahead else None
        if self._thread is not None:
            self._thread.start()

    def outcome(self) -> Outcome | str:
        """What came of it: an outcome, or why there is none. Returns when the time of the work is over, not
        before and not after, whatever the work did."""
        if self._thread is None:
            self._run()
        elif self._pace is None:
            self._thread.join()
        if self._pace is not None:
            self._pace.wait(self._due)
        if self._thread is not None and self._thread.is_alive():
            self.drop()
            return f"the training took longer than the {self._seconds:g} s that the plan gives it"
        return self._found

    def drop(self) -> None:
        """Nothing will come of it: end it, or what would be begun."""
        self._dropped.set()
        if self._thread is not None and self._thread.is_alive():
            self._workplace.cancel()

    def _run(self) -> None:
        if self._thread is not None and self._pace is not None:
            self._dropped.wait(HEAD_START)
        if self._dropped.is_set():
            return
        try:
            job = self._job()
            if not self._dropped.is_set():  # while the choices were read
                left = max(self._due - self._pace.now(), 0.0) if self._pace else None
                self._found = self._workplace.work(job, left)
        except PenchantError as error:
            self._found = str(error)
        except Exception as error:  # its text may hold what must not be shown; no kind of it may leave
            self._found = f"the work failed: {type(error).__name__}"
