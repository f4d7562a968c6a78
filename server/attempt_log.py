"""What the journal notes of one attempt at a round, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from penchant.common.errors import JournalError
from penchant.server.availability import COUNT_SECONDS
from penchant.server.journal import Journal
from penchant.server.secagg.aggregation import ASKED, REPLY, Record


class AttemptLog:
    """One attempt's lines in the journal: what completing it after a crash would need, and how far it is.

    enough: called with the number of parts that the sum would have, before anything of the sum is revealed.
        It may raise a RoundFailed, and then nothing is revealed.
    """

    def __init__(
        self, journal: Journal, number: int, attempt: int, enough: Callable[[int], None] = lambda _: None
    ) -> None:
        self._enough = enough
        self._revealing = False  # an unmask request may have left
        self._journal = journal
        self._place = (number, attempt)
        self._kept: set[tuple[str, int]] = set()
        self._answered = 0  # in this stage
        self._told = 0.0

    def record(self, kind: str, key: int, payload: bytes) -> None:
        """Keep a line durably, once; "asked" also marks the attempt as past unmasking, and from there on
        replies are kept as they arrive."""
        if (kind, key) in self._kept:
            return
        self._journal.record(*self._place, kind, key, payload)
        if kind == ASKED:
            self._journal.unmasking(*self._place)
            self._revealing = True
        self._kept.add((kind, key))

    def about_to_reveal(self, survivors: int) -> None:
        """Stop the attempt where too few are left for its sum."""
        self._enough(survivors)

    def arrived(self, stage: str, node: int, payload: bytes) -> None:
        """Keep a reply that opens the sum on its arrival; count all of them now and then."""
        if self._revealing:
            self.record(REPLY, node, payload)
        self._answered += 1
        if time.monotonic() - self._told >= COUNT_SECONDS:
            self._tell(lambda: self._journal.answered(*self._place, stage, self._answered))

    def asked(self, stage: str, devices: int) -> None:
        """Show that a stage begins."""
        self._answered = 0
        self._tell(lambda: self._journal.stage(*self._place, stage, devices))

    def over(self, stage: str) -> None:
        """Show that a stage is over, and how many answered."""
        self._tell(lambda: self._journal.answered(*self._place, stage, self._answered, over=True))

    def _tell(self, what: Callable[[], None]) -> None:
        """Write what is only shown: a round does not fail for it."""
        with suppress(JournalError):
            what()
        self._told = time.monotonic()

    def records(self) -> list[Record]:
        """All lines of the attempt."""
        return [Record(*line) for line in self._journal.records(*self._place)]
