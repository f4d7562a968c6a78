"""Who is there: asking devices for their state, and waiting until enough of them are ready."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from flwr.serverapp import Grid

from penchant.common.errors import JournalError, ProtocolError
from penchant.common.secagg.stages import KEYS, STATUS
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import AbortCode, Hello, Status
from penchant.server.exchange import exchange_of
from penchant.server.run import ServerRun, finished_rounds
from penchant.server.secagg.aggregation import Aggregate
from penchant.server.waiting import Waiting

Ready = Mapping[int, int]
"""Member number -> node."""
GREETING_SECONDS = 60.0  # without any answer: a device that is there says so in seconds, and is asked again
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # between two looks for devices that have come back
COUNT_SECONDS = 0.5  # between two notes of how many devices have answered


class Availability:
    """Which member answers at which node. Each node is asked once, and again while it is not ready.

    run: as it is now; only who belongs to it is called to a round.
    """

    def __init__(self, run: ServerRun, grid: Grid) -> None:
        self.run = run
        self._grid = grid
        self._known: dict[int, int] = {}  # node -> member
        self._goes_by: dict[int, bytes] = {}  # node -> digest of the member list that it knew last
        self._unready: dict[int, int] = {}  # node -> member, of those that answered so
        self._silent: frozenset[int] = frozenset()  # nodes that gave no answer

    def wait_for_cohort(self, *, anew: bool = False) -> dict[int, int]:
        """As `poll`, once a cohort is there, or all the members there are, or the run's patience is over.

        anew: everybody is asked again, also those who were ready before.
        """
        if anew:
            self._known.clear()
        end, pause = time.monotonic() + self.run.patience, FIRST_PAUSE
        wanted = self.run.cohort if self.run.members is None else min(self.run.cohort, self.run.members)
        said: Waiting | None = None
        since = time.time()
        try:
            if self.run.patience and len(self._belonging()) < wanted:  # devices may take a minute to answer
                said = self._tell(wanted, since, said)
            while len(ready := self.poll()) < wanted and (left := end - time.monotonic()) > 0:
                said = self._tell(wanted, since, said)
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            if said is not None:
                self._waits(None)
        return ready

    def _tell(self, wanted: int, since: float, said: Waiting | None) -> Waiting:
        """Say what is waited for, if that is something else than what was said last; -> what is said now."""
        waiting = Waiting(
            round=self.run.journal.settled() + 1,
            needed=wanted,
            ready=tuple(sorted(self._belonging())),
            unready=tuple(sorted(m for m in self._unready.values() if self.run.belongs(m))),
            silent=tuple(sorted(self._silent)),
            since=since,
            until=since + self.run.patience,
        )
        if waiting != said:
            self._waits(waiting)
        return waiting

    def _waits(self, waiting: Waiting | None) -> None:
        with suppress(JournalError):  # only shown
            self.run.waits(waiting)

    def _belonging(self) -> dict[int, int]:
        return {member: node for node, member in self._known.items() if self.run.belongs(member)}

    def poll(self) -> dict[int, int]:
        """Member number -> node, of all that are connected and ready."""
        present = set(self._grid.get_node_ids())
        self._known = {node: member for node, member in self._known.items() if node in present}
        asked = present - set(self._known)
        self._unready = {}
        self.announce_settled(sorted(asked), GREETING_SECONDS)
        self._silent = frozenset(asked - set(self._known) - set(self._unready))
        return self._belonging()

    def announce_settled(self, nodes: Iterable[int], seconds: float = math.inf) -> None:
        """Report the finished rounds to `nodes`, so that they commit what they staged; note who is ready.

        Waits no longer than `seconds` for the next answer, and than a deadline of the run's: a node may be
        gone and not yet known to be.
        """
        self._greet(nodes, b"", seconds)

    def send_list(self, nodes: Iterable[int]) -> int:
        """Send the run's member list to those of `nodes` that go by another one; -> how many bytes that took.

        Whoever takes it over is ready for a round that goes by it; who does not refuses that round, and the
        operator is told how many those are.
        """
        current = self.run.list_digest
        behind = [node for node in nodes if self._goes_by.get(node) != current]
        if not behind:
            return 0
        sent = self._greet(behind, self.run.membership, GREETING_SECONDS)
        left = sum(self._goes_by.get(node) != current for node in behind)
        if left:
            self.run.tell(
                f"{left} of {len(behind)} devices have not said that they take the newest member list"
            )
        return sent

    def heard(self, aggregate: Aggregate) -> None:
        """Note what a finished attempt has shown of the list that its devices go by.

        Who advertised keys for it goes by the run's. Who refused it for the list may have gone back to an
        older one (a device that was restored from a back-up), so it is greeted anew before the next round.
        """
        out = aggregate.dropped.get(KEYS, ())
        for node in aggregate.cohort:
            if node not in out:
                self._goes_by[node] = self.run.list_digest
            elif aggregate.aborts.get(node) is AbortCode.MEMBERSHIP:
                self._known.pop(node, None)
                self._goes_by.pop(node, None)

    def _greet(self, nodes: Iterable[int], membership: bytes, seconds: float) -> int:
        """Greet `nodes`, with a member list or none, and note what they say; -> bytes that were sent."""
        run = self.run
        hello = encode(Hello(run.id, finished_rounds(run.journal), membership))
        wire = exchange_of(run.config.federation, self._grid, STATUS, in_turn=run.in_turn, silence=seconds)
        ready: dict[int, int] = {}  # member -> node
        for node, payload in wire(STATUS, dict.fromkeys(nodes, hello)).items():
            try:
                status = decode(payload, Status)
            except ProtocolError:
                continue
            if not run.belongs(status.member):  # whatever number somebody makes up
                continue
            self._goes_by[node] = status.list_digest
            if status.ready:
                self._known[node] = status.member
                ready[status.member] = node
            else:
                self._unready[node] = status.member
        with suppress(JournalError):  # only shown
            run.journal.seen(ready)
        return wire.bytes_down
