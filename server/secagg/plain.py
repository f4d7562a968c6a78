"""The same exchanges without masks, for simulations that ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from penchant.server.secagg.group import GroupLog, cut_into_groups

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
        groups = cut_into_groups(ready, announce.group)
        number_of = {node: number for number, group in enumerate(groups) for node in group}
        totals: dict[int, Total] = {}
        survivors: dict[int, list[int]] = {}
        for node in ready:
            plain = log.read(MASKED, node, replies, Plain)
            if plain is None:
                continue
            if len(plain.vector) != announce.words * announce.ring // 8:
                log.lose(MASKED, node, f"a vector of {len(plain.vector)} bytes")
                continue
            number = number_of[node]
            total = totals.setdefault(number, np.zeros(announce.words, np.int64))
            total += np.frombuffer(plain.vector, f"<i{announce.ring // 8}")
            survivors.setdefault(number, []).append(node)
        if not totals:
            raise TooFewDevices(
                f"none of {len(log.cohort)} devices sent a vector; "
                f"find out why they refuse{log.why(log.cohort)}"
            )
        sums = {number: GroupSum(total, tuple(survivors[number])) for number, total in totals.items()}
        whole: Total = np.sum(list(totals.values()), axis=0, dtype=np.int64)
        there = [node for group in survivors.values() for node in group]
        return log.aggregate(whole, there, groups=tuple(map(len, groups)), sums=sums)

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """There is nothing to complete: a plain attempt can be tried again."""
        raise JournalError("a plain attempt asks for no unmasking: try the round again instead")
