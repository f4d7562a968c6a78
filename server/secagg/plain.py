"""The same exchanges without masks, for simulations that ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penchant.common.errors import (
    JournalError,
    ProtocolError,
    TooFewDevices,
)
from penchant.common.secagg.stages import KEYS, MASKED
from penchant.common.secagg.transcript import (
    context_digest,
)
from penchant.common.wire.codec import (
    encode,
)
from penchant.common.wire.messages import (
    Announce,
    Collect,
    Kind,
    Plain,
    Ready,
)
from penchant.server.secagg.aggregation import (
    Aggregate,
    ExchangeWithGroup,
    GroupSum,
    Record,
    RecordStore,
    Total,
)
from penchant.server.secagg.group import GroupLog

__all__ = ["PlainAggregation"]


@dataclass(frozen=True)
class PlainAggregation:
    """The same sum without protection: the server sees every vector. For comparison and for tests.

    Two exchanges, keys and masked. Devices refuse unless their owner's policy allows it.
    """

    def run(
        self, announce: Announce, nodes: Sequence[int], exchange: ExchangeWithGroup, journal: RecordStore
    ) -> Aggregate:
        """One attempt; raises `TooFewDevices` if nobody sends a vector."""
        if announce.kind is not Kind.PLAIN:
            raise ProtocolError("plain aggregation needs an announcement that says so")
        log, context = GroupLog(nodes), context_digest(announce)
        replies = exchange(KEYS, dict.fromkeys(log.cohort, encode(announce)))
        ready = []
        for node in log.cohort:
            answer = log.read(KEYS, node, replies, Ready)
            if answer is not None and answer.context != context:
                log.lose(KEYS, node, "ready for another context")
            elif answer is not None:
                ready.append(node)
        replies = exchange(MASKED, dict.fromkeys(ready, encode(Collect(context))))
        vectors: dict[int, Total] = {}
        for node in ready:
            plain = log.read(MASKED, node, replies, Plain)
            if plain is None:
                continue
            if len(plain.vector) != announce.words * announce.ring // 8:
                log.lose(MASKED, node, f"a vector of {len(plain.vector)} bytes")
                continue
            vectors[node] = np.frombuffer(plain.vector, f"<i{announce.ring // 8}").astype(np.int64)
        if not vectors:
            raise TooFewDevices(
                f"none of {len(log.cohort)} devices sent a vector; mend why they refuse{log.why(log.cohort)}"
            )
        groups = _groups(ready, announce.group)
        sums = {number: _sum(group, vectors) for number, group in enumerate(groups)}
        total: Total = np.sum([one.total for one in sums.values() if one is not None], axis=0, dtype=np.int64)
        opened = {number: one for number, one in sums.items() if one is not None}
        return log.aggregate(total, vectors, groups=tuple(map(len, groups)), sums=opened)

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """There is nothing to complete: a plain attempt can be tried again."""
        raise JournalError("a plain attempt asks for no unmasking: try the round again instead")


def _groups(nodes: Sequence[int], most: int) -> list[Sequence[int]]:
    """As few groups of at most `most` as it takes, of equal size within one: as masked rounds have them."""
    count = -(-len(nodes) // most)
    return [
        nodes[number * len(nodes) // count : (number + 1) * len(nodes) // count] for number in range(count)
    ]


def _sum(group: Sequence[int], vectors: Mapping[int, Total]) -> GroupSum | None:
    """The sum of a group's vectors; None where nobody of it sent one."""
    there = tuple(node for node in group if node in vectors)
    if not there:
        return None
    return GroupSum(np.sum([vectors[node] for node in there], axis=0, dtype=np.int64), there)
