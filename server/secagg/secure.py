"""Secure aggregation: the groups of a cohort, driven through the stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from penchant.common.crypto.keys import Verifier, check_point, verify
from penchant.common.errors import (
    JournalError,
    NotUnmasked,
    ProtocolError,
    RoundFailed,
    SignatureError,
    TooFewDevices,
)
from penchant.common.membership.identity import Membership
from penchant.common.secagg.stages import CONFIRM, EXCHANGES, KEYS, UNMASK
from penchant.common.secagg.transcript import (
    context_digest,
    entry_text,
    roster_digest,
)
from penchant.common.wire.codec import (
    U64,
    Many,
    encode,
    encode_record,
)
from penchant.common.wire.messages import (
    Announce,
    Entry,
    Roster,
)
from penchant.server.secagg.aggregation import (
    ASKED,
    COHORT,
    REPLY,
    Aggregate,
    ExchangeWithGroup,
    GroupSum,
    Record,
    RecordStore,
    Take,
)
from penchant.server.secagg.group import Group, GroupLog, added, cut_into_groups, read_reply
from penchant.server.secagg.stages import (
    LEAST,
    Collecting,
    Confirming,
    Opening,
    Sharing,
    UnmaskRecord,
)

__all__ = ["SecureAggregation"]


@dataclass(frozen=True, slots=True)
class _Cohort:
    """All nodes that an attempt asked; journaled before its first unmask request leaves."""

    nodes: Annotated[tuple[U64, ...], Many(1_000_000)]


_State = Sharing | Collecting | Confirming | Opening


@dataclass(frozen=True)
class SecureAggregation:
    """The protocol over a cohort. `membership` is the server's own copy of the authority's latest list.

    verify: how signatures are verified; only a simulator injects another (`keys.SignatureCache`).
    """

    membership: Membership
    verify: Verifier = verify

    def run(
        self, announce: Announce, nodes: Sequence[int], exchange: ExchangeWithGroup, journal: RecordStore
    ) -> Aggregate:
        """One attempt, five exchanges.

        Raises:
            TooFewDevices: fewer than three devices advertised keys.
            TooManyDropouts: every group lost a third of its roster or more; nothing was revealed.
            NotUnmasked: every group is past unmasking and could not be unmasked.
        """
        log = GroupLog(nodes)
        groups = self._advertise(announce, log, exchange)
        states: dict[int, _State | GroupSum] = {g.number: Sharing(g) for g in groups}
        failed: dict[int, RoundFailed] = {}
        for stage in EXCHANGES[1:]:
            if stage == UNMASK:
                journal.record(COHORT, 0, encode_record(_Cohort(log.cohort)))
            states = self._step(stage, states, failed, exchange, journal)
        return _add_up(cast("dict[int, GroupSum]", states), failed, groups, log)

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """As `Aggregation.complete`. Duplicate records do no harm.

        Who was lost before the crash, and why, is not known any more: `dropped` has stage unmask alone.
        """
        cohort: tuple[int, ...] = ()
        asked: dict[int, UnmaskRecord] = {}
        replies: dict[int, bytes] = {}
        for record in records:
            if record.kind == COHORT:
                cohort = read_reply(record, _Cohort).nodes
            elif record.kind == ASKED:
                asked[record.key] = read_reply(record, UnmaskRecord)
            elif record.kind == REPLY:
                replies[record.key] = record.payload
        if not asked:
            raise JournalError("no unmask request was journaled: try the round again instead")
        log = GroupLog(cohort)
        states: dict[int, Opening] = {
            number: Opening.resumed(number, group, log, self.verify) for number, group in asked.items()
        }
        failed: dict[int, RoundFailed] = {}
        sums = {}
        for number, state in states.items():
            try:
                sums[number] = state.receive(replies)
            except RoundFailed as error:
                failed[number] = NotUnmasked(f"group {number} can't be completed: {error}")
        return _add_up(sums, failed, [state.group for state in states.values()], log)

    def _advertise(self, announce: Announce, log: GroupLog, exchange: ExchangeWithGroup) -> list[Group]:
        """Stage keys (figure 4, round 0): collect entries, drop what no device would accept, form groups."""
        request = encode(announce)
        replies = exchange(KEYS, dict.fromkeys(log.cohort, request))
        context = context_digest(announce)
        entries: dict[int, Entry] = {}
        seen: set[bytes] = set()
        for node in log.cohort:
            entry = log.read(KEYS, node, replies, Entry)
            if entry is None:
                continue
            try:
                self._check_entry(entry, context, seen)
            except ProtocolError as error:
                log.lose(KEYS, node, str(error))
                continue
            entries[node] = entry
        if len(entries) < LEAST:
            raise TooFewDevices(
                f"{len(entries)} of {len(log.cohort)} devices advertised keys, at least {LEAST} are needed; "
                f"wait for more devices, or find out why they refuse{log.why(log.cohort)}"
            )
        return self._groups(announce, context, entries, log)

    def _check_entry(self, entry: Entry, context: bytes, seen: set[bytes]) -> None:
        """The checks that every device makes too: one bad entry would make all of them abort."""
        certificate = entry.certificate
        if entry.context != context:
            raise SignatureError("keys for another context")
        self.membership.check(certificate)
        if not self.verify(certificate.public_key, entry_text(entry), entry.signature):
            raise SignatureError("keys without their signature")
        check_point(entry.mask_key)
        check_point(entry.channel_key)
        values = {certificate.public_key, entry.mask_key, entry.channel_key}
        if len(values) < 3 or values & seen:
            raise SignatureError("keys that someone has already")
        seen |= values

    def _groups(
        self, announce: Announce, context: bytes, entries: Mapping[int, Entry], log: GroupLog
    ) -> list[Group]:
        """The groups of everybody whose entry is sound, by member number."""
        nodes = sorted(entries, key=lambda node: entries[node].certificate.member)
        groups = []
        for number, part in enumerate(cut_into_groups(nodes, announce.group)):
            roster = Roster(tuple(entries[node] for node in part))
            groups.append(
                Group(
                    number,
                    context,
                    announce.ring,
                    announce.words,
                    roster,
                    roster_digest(roster),
                    tuple(part),
                    log,
                    self.verify,
                )
            )
        return groups

    @staticmethod
    def _step(
        stage: str,
        states: Mapping[int, _State | GroupSum],
        failed: dict[int, RoundFailed],
        exchange: ExchangeWithGroup,
        journal: RecordStore,
    ) -> dict[int, _State | GroupSum]:
        """One exchange for all groups that are left."""
        active = {number: state for number, state in states.items() if not isinstance(state, GroupSum)}
        if not active:
            return {}
        for number, state in active.items():  # durable before any unmask request leaves
            if isinstance(state, Opening):
                journal.record(ASKED, number, state.asked())
        requests = {node: payload for state in active.values() for node, payload in state.requests().items()}
        if stage == CONFIRM:  # the survivors are known
            journal.about_to_reveal(len(requests))
        take = _takers(active)
        replies = exchange(stage, requests, take) if take else exchange(stage, requests)
        if stage == UNMASK:
            for node, payload in replies.items():
                journal.record(REPLY, node, payload)
        after: dict[int, _State | GroupSum] = {}
        for number, state in active.items():
            try:
                after[number] = state.receive(replies)
            except RoundFailed as error:
                failed[number] = error
        return after


def _takers(active: Mapping[int, _State]) -> Take | None:
    """What adds a masked vector to its group's sum on arrival; None in the other stages."""
    arriving = {
        node: state.arriving
        for state in active.values()
        if isinstance(state, Collecting)
        for node in state.group.nodes
    }

    def take(node: int, reply: bytes) -> None:
        if node in arriving:
            arriving[node].take(node, reply)

    return take if arriving else None


def _add_up(
    sums: Mapping[int, GroupSum], failed: Mapping[int, RoundFailed], groups: Sequence[Group], log: GroupLog
) -> Aggregate:
    """The groups' sums in clear; the first failure, if no group is left."""
    if not sums:
        raise next(iter(failed.values()))
    return log.aggregate(
        added([group.total for group in sums.values()]),
        (node for group in sums.values() for node in group.survivors),
        groups=tuple(len(group.nodes) for group in groups),
        failed={number: str(error) for number, error in failed.items()},
        sums=dict(sums),
    )
