"""One group of a cohort: its members, and who dropped out when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np

from penchant.common.crypto.keys import Verifier
from penchant.common.errors import (
    CodecError,
    JournalError,
    ProtocolError,
    TooManyDropouts,
)
from penchant.common.secagg.transcript import (
    threshold,
)
from penchant.common.wire.codec import (
    decode_any,
    decode_record,
)
from penchant.common.wire.messages import (
    Abort,
    AbortCode,
    Roster,
)
from penchant.server.secagg.aggregation import Aggregate, Record, Total

NAMED_MOST: Final = 5  # devices that an error names
M = TypeVar("M")


class GroupLog:
    """Who dropped out where, and why."""

    def __init__(self, cohort: Sequence[int]) -> None:
        self.cohort = tuple(cohort)
        self.dropped: dict[str, list[int]] = {}
        self.aborts: dict[int, AbortCode] = {}
        self.set_aside: dict[int, str] = {}

    def lose(self, stage: str, node: int, reason: str = "") -> None:
        """`node` is out since `stage`; with a reason, because of what it did."""
        self.dropped.setdefault(stage, []).append(node)
        if reason:
            self.suspect(stage, node, reason)

    def suspect(self, stage: str, node: int, reason: str) -> None:
        """Name `node` for what it did, or may have done; the first reason is kept."""
        self.set_aside.setdefault(node, f"{stage}: {reason}")

    def read(self, stage: str, node: int, replies: Mapping[int, bytes], kind: type[M]) -> M | None:
        """The node's reply; None, and noted, if it is silent, aborts or sends something else."""
        payload = replies.get(node)
        reply = "" if payload is None else decoded(payload, kind)
        if isinstance(reply, kind):
            return reply
        self.leave_out(stage, node, cast("AbortCode | str", reply))
        return None

    def leave_out(self, stage: str, node: int, why: AbortCode | str) -> None:
        """`node` is out since `stage`: it aborted, it did something wrong, or "", it was silent."""
        if isinstance(why, AbortCode):
            self.aborts[node] = why
            self.lose(stage, node)
        else:
            self.lose(stage, node, why)

    def why(self, nodes: Iterable[int]) -> str:
        """What is known of those of `nodes` that are out: for an error, "" if they were only silent."""
        asked = frozenset(nodes)
        codes = Counter(code.name for node, code in self.aborts.items() if node in asked)
        said = [f"{count} said {name}" for name, count in sorted(codes.items())]
        named = [f"node {node} {what}" for node, what in self.set_aside.items() if node in asked]
        return "".join(f"; {told}" for told in [*said, *named[:NAMED_MOST]])

    def aggregate(self, total: Total, survivors: Iterable[int], **groups: Any) -> Aggregate:
        dropped = {stage: tuple(sorted(nodes)) for stage, nodes in self.dropped.items()}
        return Aggregate(
            total, tuple(sorted(survivors)), self.cohort, dropped, self.aborts, self.set_aside, **groups
        )


def decoded(payload: bytes, kind: type[M]) -> M | AbortCode | str:
    """A device's reply; its abort code if it aborts, the fault if it sends something else."""
    try:
        reply = decode_any(payload, (kind, Abort))
    except ProtocolError as error:
        return str(error)
    return reply.code if isinstance(reply, Abort) else cast("M", reply)


def cut_into_groups(nodes: Sequence[int], most: int) -> list[Sequence[int]]:
    """As few groups of at most `most` nodes as it takes, of equal size within one, in the order given."""
    count = -(-len(nodes) // most)
    return [
        nodes[number * len(nodes) // count : (number + 1) * len(nodes) // count] for number in range(count)
    ]


def added(totals: Sequence[Total]) -> Total:
    """The sum of one group's sum or more, without a copy of all of them."""
    whole: Total = totals[0].copy()
    for total in totals[1:]:
        np.add(whole, total, out=whole)
    return whole


@dataclass(frozen=True)
class Group:
    """What stays the same for a group through an attempt; `nodes` are by index in the roster."""

    number: int
    context: bytes
    ring: int
    words: int
    roster: Roster
    digest: bytes
    nodes: tuple[int, ...]
    log: GroupLog
    verify: Verifier

    @property
    def needed(self) -> int:
        """t, as every device computes it."""
        return threshold(len(self.nodes))

    def enough(self, stage: str, present: Sequence[int]) -> None:
        """Raise `TooManyDropouts` unless t devices are present."""
        if len(present) < self.needed:
            n = len(self.nodes)
            raise TooManyDropouts(
                f"{n - len(present)} of {n} devices lost by stage {stage}, at most {n - self.needed} may be: "
                f"nothing was revealed; try again with more devices{self.log.why(self.nodes)}"
            )


def read_reply(record: Record, kind: type[M]) -> M:
    try:
        return decode_record(record.payload, kind)
    except CodecError as error:
        raise JournalError(
            f"record {record.kind} {record.key} of the journal can't be read: {error}"
        ) from None
