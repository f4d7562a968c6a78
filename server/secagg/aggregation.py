"""The seam between the round and a protocol that adds vectors up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from penchant.common.wire.messages import (
    AbortCode,
    Announce,
)

__all__ = [
    "ASKED",
    "COHORT",
    "REPLY",
    "Aggregate",
    "Aggregation",
    "ExchangeWithGroup",
    "GroupSum",
    "MemoryRecords",
    "Record",
    "RecordStore",
    "Take",
    "must_not_be_repeated",
]
Take = Callable[[int, bytes], None]
"""(node, reply), called for each reply as it arrives: once a node at most, in no order."""
Total = NDArray[np.int64]


class ExchangeWithGroup(Protocol):
    """Sends one message to each node in a stage and waits for the replies."""

    def __call__(
        self, stage: str, requests: Mapping[int, bytes], take: Take | None = None, /
    ) -> Mapping[int, bytes]:
        """node -> request, -> node -> reply. A node that is missing in the replies has dropped out.

        With `take`, each reply is given to it instead and not kept: the replies that are returned are none.
        """


@dataclass(frozen=True)
class GroupSum:
    """A group's sum in clear: int64 [words], and the nodes in it."""

    total: Total = field(repr=False)
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Aggregate:
    """The sum of a round.

    Attributes:
        total: the sum of the survivors' quantised vectors as centred integers, int64 [words].
        survivors: the nodes whose vectors are in the sum, ascending.
        cohort: all nodes that were asked.
        dropped: stage -> the nodes that were silent, aborted or were set aside there.
        aborts: node -> the code that it sent.
        set_aside: node -> what it did wrong, or may have done.
        groups: the sizes of the rosters.
        failed: group -> why its devices are not in the sum.
        sums: group -> the sum of that group alone; empty where a protocol makes one sum only.
    """

    total: Total = field(repr=False)
    survivors: tuple[int, ...]
    cohort: tuple[int, ...]
    dropped: Mapping[str, tuple[int, ...]]
    aborts: Mapping[int, AbortCode]
    set_aside: Mapping[int, str]
    groups: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    sums: Mapping[int, GroupSum] = field(default_factory=dict)

    @property
    def opened(self) -> Mapping[int, GroupSum]:
        """Every sum that was opened, by group; the whole as group 0 where a protocol makes one sum only."""
        return self.sums or {0: GroupSum(self.total, self.survivors)}


COHORT: Final = "cohort"
ASKED: Final = "asked"
REPLY: Final = "reply"


class Record(NamedTuple):
    """One line of a journal. Its key is 0 for kind `COHORT`, the group for `ASKED`, the node for `REPLY`."""

    kind: str
    key: int
    payload: bytes


class RecordStore(Protocol):
    """What a protocol reports to the round: how far it is, and what completing it after a crash needs."""

    def record(self, kind: str, key: int, payload: bytes) -> None:
        """Keep one `Record`, durably before this returns.

        A record `ASKED` is the point of no return: the round is never run again. Every reply from there on
        is kept as it arrives, as a record `REPLY`.
        """

    def about_to_reveal(self, survivors: int) -> None:
        """The last moment to stop: what follows settles who is in the sum, and then reveals it.

        survivors: how many devices' vectors the sum would hold. Raises a `RoundFailed` when that is too few.
        """


class MemoryRecords:
    """A journal for tests and for attempts whose loss costs nothing."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, kind: str, key: int, payload: bytes) -> None:
        """As `RecordStore.record`, but lost with the process."""
        self.records.append(Record(kind, key, payload))

    def about_to_reveal(self, survivors: int) -> None:
        """As `RecordStore.about_to_reveal`; any number will do."""


class Aggregation(Protocol):
    """A way to add up a cohort's vectors; another protocol can take its place."""

    def run(
        self, announce: Announce, nodes: Sequence[int], exchange: ExchangeWithGroup, journal: RecordStore
    ) -> Aggregate:
        """One attempt. Raises `TooFewDevices`, `TooManyDropouts` or `NotUnmasked`; all are `RoundFailed`.

        Whether the round may be tried again is not in the error but in the journal: `must_not_be_repeated`.
        """

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """The sum of an attempt that crashed after it asked for unmasking, from its journal.

        Raises `NotUnmasked` if too few replies had arrived: the round is skipped, never run again.
        """


def must_not_be_repeated(records: Iterable[Record]) -> bool:
    """Whether the attempt came so far that its round is completed or skipped, and never tried again.

    For this protocol: whether an unmask request may have left.
    """
    return any(record.kind == ASKED for record in records)
