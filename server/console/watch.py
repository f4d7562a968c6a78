"""Whether a page that lies open has become another: one look for everybody who asks.

Pages that lie open ask every other second, in requests that are answered at once: no tab holds a connection.
The look that answers them all reads no run; it costs the system calls that tell of each file when it changed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from penchant.server.console.accounts import Account, ConsoleStore
from penchant.server.console.allowed import place_of
from penchant.server.console.audit_filter import AuditFilter
from penchant.server.console.operations import RunOperations

__all__ = ["Watch"]

LOOK_SECONDS = 1.0  # that a look is good for
REST = 100  # and this many times as long as it took: looking costs a hundredth of a core at most
KEPT = 1000  # of runs that are looked at one by one
CLOCK_SECONDS = 60.0  # after which a page is another anyway: it tells of times and of what expires


@dataclass(frozen=True)
class _Look:
    """What was found: facts by the place that they are about, as `Rights` names it."""

    until: float
    facts: tuple[tuple[str, object], ...]
    lines: dict[object, object] = field(default_factory=dict)  # latest of the audit, by who may read what


class Watch:
    """Looks whether runs, fleets or the audit have changed. Thread-safe; who asks waits for a look that is
    under way, and gets what it found, as far as it is about what the account may look at."""

    def __init__(
        self, store: ConsoleStore, operations: RunOperations, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: seconds."""
        self._store = store
        self._operations = operations
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str | None, _Look] = OrderedDict()

    def mark(self, account: Account, run: str | None = None) -> str:
        """Changes whenever a page that the account sees does: one of this run, or any of all runs."""
        with self._lock:
            look = self._look(run)
            seen = [fact for place, fact in look.facts if account.rights.may("viewer", place)]
            found = [*seen, int(self._clock() // CLOCK_SECONDS)]
            if run is None:
                found.append(self._line(look, account))
            return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def _look(self, run: str | None) -> _Look:
        """The last one, as long as it is good."""
        now = self._clock()
        known = self._known.get(run)
        if known is not None and now < known.until:
            return known
        facts = tuple(self._facts(run))
        took = self._clock() - now
        look = self._known[run] = _Look(now + max(LOOK_SECONDS, REST * took), facts)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return look

    def _facts(self, run: str | None) -> Iterator[tuple[str, object]]:
        operations = self._operations
        locations = [one for one in operations.locations() if run in (None, one.id)]
        activity = operations.activity(locations)
        for one in locations:
            yield place_of(operations, one), (one.id, operations.mark(one), activity[one.id])
        for fleet in operations.fleets():
            yield fleet.id, operations.fleet(fleet).mark()

    def _line(self, look: _Look, account: Account) -> object:
        """The number of the latest line of the audit that the account may read, as of the look."""
        wanted = AuditFilter(reader=account.rights, own=account.name)
        key = repr(wanted.condition())
        if key not in look.lines:
            latest = self._store.audit_entries(limit=1, wanted=wanted)
            look.lines[key] = [entry.number for entry in latest]
        return look.lines[key]
