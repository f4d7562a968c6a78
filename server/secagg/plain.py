"""The same exchanges without masks, for simulations that ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    AbortCode,
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
)
from penchant.server.secagg.group import GroupLog, added, cut_into_groups, decoded
from penchant.server.secagg.vector_sum import VectorSum

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
        groups = cut_into_groups(ready, announce.group)
        arriving = [_vector_sum(announce, group) for group in groups]
        number_of = {node: number for number, group in enumerate(groups) for node in group}

        def take(node: int, reply: bytes) -> None:
            if node in number_of:
                arriving[number_of[node]].take(node, reply)

        exchange(MASKED, dict.fromkeys(ready, encode(Collect(context))), take)
        sums = {}
        for number, (group, vectors) in enumerate(zip(groups, arriving, strict=True)):
            there = tuple(group[place] for place in vectors.survivors(MASKED, log))
            if there:
                sums[number] = GroupSum(vectors.total, there)
        if not sums:
            raise TooFewDevices(
                f"none of {len(log.cohort)} devices sent a vector; "
                f"find out why they refuse{log.why(log.cohort)}"
            )
        return log.aggregate(
            added([one.total for one in sums.values()]),
            (node for one in sums.values() for node in one.survivors),
            groups=tuple(map(len, groups)),
            sums=sums,
        )

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """There is nothing to complete: a plain attempt can be tried again."""
        raise JournalError("a plain attempt asks for no unmasking: try the round again instead")


def _vector_sum(announce: Announce, nodes: Sequence[int]) -> VectorSum:
    """The sum of a group, int64 [words]."""

    def read(place: int, reply: bytes) -> NDArray[Any] | AbortCode | str:
        plain = decoded(reply, Plain)
        if not isinstance(plain, Plain):
            return plain
        if len(plain.vector) != announce.words * announce.ring // 8:
            return f"a vector of {len(plain.vector)} bytes"
        return np.frombuffer(plain.vector, f"<i{announce.ring // 8}")

    return VectorSum(nodes, np.zeros(announce.words, np.int64), read)
