"""Whether a page that lies open has become another: one look for everybody who asks.

Pages that lie open ask every other second, in requests that are answered at once: no tab holds a connection.
The look that answers them all reads no run; it costs the system calls that tell of each file when it changed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.operations import RunOperations

__all__ = ["Watch"]

LOOK_SECONDS = 1.0  # that a look is good for
REST = 100  # and this many times as long as it took: looking costs a hundredth of a core at most
KEPT = 1000  # of runs that are looked at one by one
CLOCK_SECONDS = 60.0  # after which a page is another anyway: it tells of times and of what expires


class Watch:
    """Looks whether runs, fleets or the audit have changed. Thread-safe; who asks waits for a look that is
    under way, and gets what it found."""

    def __init__(
        self, store: ConsoleStore, operations: RunOperations, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: seconds."""
        self._store = store
        self._operations = operations
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str | None, tuple[float, str]] = OrderedDict()

    def mark(self, run: str | None = None) -> str:
        """Changes whenever a page does: one of this run, or any of all runs."""
        with self._lock:
            now = self._clock()
            until, mark = self._known.get(run, (now, ""))
            if now < until:
                return mark
            mark = hashlib.sha256(repr(self._look(run)).encode()).hexdigest()[:16]
            took = self._clock() - now
            self._known[run] = now + max(LOOK_SECONDS, REST * took), mark
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return mark

    def _look(self, run: str | None) -> object:
        operations = self._operations
        locations = [one for one in operations.locations() if run in (None, one.id)]
        found: list[object] = [
            [(one.id, operations.mark(one)) for one in locations],
            operations.activity(locations),
            [operations.fleet(fleet).mark() for fleet in operations.fleets()],
            int(self._clock() // CLOCK_SECONDS),
        ]
        return found if run else [*found, [entry.number for entry in self._store.audit_entries(limit=1)]]
