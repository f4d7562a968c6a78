"""The server's role in secure aggregation, and the driver that a round calls.

A cohort larger than a group is split into groups of equal size (within one), each its own instance of the
protocol, in lockstep: one exchange per stage carries all groups' messages. Each group's sum is exact; the
groups' sums are added up in clear. **A group that fails is left out** — its devices count as dropped out
and the reason is kept in `Aggregate.failed` — and the round fails only when no group is left: one group's
bad luck does not cost the others their work, and what was learned about it is nothing.

A group is in one of the states `Sharing` -> `Collecting` -> `Confirming` -> `Opening`; each has `requests()`
for its members and `receive(replies)`, which returns the next state, in the end a `GroupSum`, or raises.
Devices may lie: a reply that does not decode or verify costs its sender the attempt, and is named.

Section and figure numbers are those of eprint 2017/281.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from penchant.common.codec import U8, U32, U64, AtMost, Many, decode_any, decode_record, encode, encode_record
from penchant.common.errors import (
    CodecError,
    JournalError,
    NotUnmasked,
    ProtocolError,
    RoundFailed,
    SecretSharingError,
    SignatureError,
    TooFewDevices,
    TooManyDropouts,
)
from penchant.common.identity import Membership
from penchant.common.keys import AgreementKey, Verifier, check_point, verify
from penchant.common.messages import (
    MAX_GROUP,
    MAX_WORDS,
    Abort,
    AbortCode,
    Announce,
    Collect,
    Confirmation,
    Confirmations,
    Delivery,
    Digest,
    Entry,
    Indices,
    Kind,
    Masked,
    Plain,
    Ready,
    Roster,
    Shares,
    Survivors,
    Unmasking,
)
from penchant.common.prg import Ring, accumulate, ring_type
from penchant.common.protocol import (
    commitment,
    confirmation_text,
    context_digest,
    entry_text,
    masked_text,
    pair_mask_key,
    roster_digest,
    self_mask_key,
    threshold,
)
from penchant.common.shamir import Combiner, correct

__all__ = [
    "STAGES",
    "Aggregate",
    "Aggregation",
    "Exchange",
    "Journal",
    "MemoryJournal",
    "PlainAggregation",
    "Record",
    "SecureAggregation",
    "unmask_asked",
]

STAGES: Final = ("keys", "shares", "masked", "confirm", "unmask")
NAMED_MOST: Final = 5  # devices that an error names
LEAST: Final = 3  # devices below which no group is opened, whatever the devices' own policies say

Exchange = Callable[[str, Mapping[int, bytes]], Mapping[int, bytes]]
"""(stage, node -> request) -> node -> reply. A node that is missing in the replies has dropped out."""

Total = NDArray[np.int64]


# --- what a round gets, and gives -----------------------------------------------------------------


@dataclass(frozen=True)
class Aggregate:
    """The sum of a round.

    total: int64 [words], the sum of the survivors' quantised vectors as centred integers.
    survivors: nodes whose vectors are in the sum, ascending. cohort: all nodes that were asked.
    dropped: stage -> nodes that were silent, aborted or were set aside there.
    aborts: node -> the code that it sent. set_aside: node -> what it did wrong, or may have done.
    groups: sizes of the rosters. failed: group -> why its devices are not in the sum.
    """

    total: Total = field(repr=False)
    survivors: tuple[int, ...]
    cohort: tuple[int, ...]
    dropped: Mapping[str, tuple[int, ...]]
    aborts: Mapping[int, AbortCode]
    set_aside: Mapping[int, str]
    groups: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)


class Record(NamedTuple):
    """One line of a journal. kind "cohort": key is 0; "asked": the group; "reply": the node."""

    kind: str
    key: int
    payload: bytes


class Journal(Protocol):
    """Where an attempt writes what it needs to be completed after a crash."""

    def record(self, kind: str, key: int, payload: bytes) -> None:
        """Keep one `Record`, durably before this returns."""


class MemoryJournal:
    """A journal for tests and for attempts whose loss costs nothing."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, kind: str, key: int, payload: bytes) -> None:
        """As `Journal.record`, but lost with the process."""
        self.records.append(Record(kind, key, payload))


class Aggregation(Protocol):
    """A way to add up a cohort's vectors; another protocol can stand in here."""

    def run(
        self, announce: Announce, nodes: Sequence[int], exchange: Exchange, journal: Journal
    ) -> Aggregate:
        """One attempt. Raises `TooFewDevices`, `TooManyDropouts` or `NotUnmasked`; all are `RoundFailed`.

        Whether the round may be tried again is not in the error but in the journal: `unmask_asked`.
        """

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """The sum of an attempt that crashed after it asked for unmasking, from its journal.

        Raises `NotUnmasked` if too few replies had arrived: the round is skipped, never run again.
        """


def unmask_asked(records: Iterable[Record]) -> bool:
    """Whether an unmask request may have left: then the round is completed or skipped, never tried again."""
    return any(record.kind == "asked" for record in records)


# --- bookkeeping of one attempt -------------------------------------------------------------------

M = TypeVar("M")


class _Log:
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
        if payload is None:
            self.lose(stage, node)
            return None
        try:
            reply = decode_any(payload, (kind, Abort))
        except ProtocolError as error:
            self.lose(stage, node, str(error))
            return None
        if isinstance(reply, Abort):
            self.aborts[node] = reply.code
            self.lose(stage, node)
            return None
        return cast("M", reply)

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


# --- one group ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """What stays the same for a group through an attempt. nodes: by index in the roster."""

    number: int
    context: bytes
    ring: int
    words: int
    roster: Roster
    digest: bytes
    nodes: tuple[int, ...]
    log: _Log
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
                f"{n - len(present)} of {n} devices lost by stage {stage}, at most {n - self.needed} can be: "
                f"nothing was revealed; try again with more devices{self.log.why(self.nodes)}"
            )


@dataclass(frozen=True)
class Sharing:
    """U1 is known; sends the roster, awaits sealed shares (figure 4, round 1)."""

    group: _Group

    def requests(self) -> dict[int, bytes]:
        roster = encode(self.group.roster)
        return dict.fromkeys(self.group.nodes, roster)

    def receive(self, replies: Mapping[int, bytes]) -> Collecting:
        group, n = self.group, len(self.group.nodes)
        sealed: dict[int, tuple[bytes, ...]] = {}
        for index, node in enumerate(group.nodes):
            shares = group.log.read("shares", node, replies, Shares)
            if shares is None:
                continue
            if len(shares.sealed) != n - 1:
                group.log.lose("shares", node, f"{len(shares.sealed)} sealed shares for {n - 1} peers")
                continue
            sealed[index] = shares.sealed
        group.enough("shares", list(sealed))
        return Collecting(group, sealed)


@dataclass(frozen=True)
class Collecting:
    """U2 has shared; forwards the sealed shares, awaits masked vectors (figure 4, round 2)."""

    group: _Group
    sealed: Mapping[int, tuple[bytes, ...]]

    def requests(self) -> dict[int, bytes]:
        sharers = tuple(self.sealed)
        requests = {}
        for receiver in sharers:
            # a sender's tuple has no place for the sender itself
            sealed = tuple(
                self.sealed[sender][receiver - (receiver > sender)]
                for sender in sharers
                if sender != receiver
            )
            requests[self.group.nodes[receiver]] = encode(Delivery(sharers, sealed))
        return requests

    def receive(self, replies: Mapping[int, bytes]) -> Confirming:
        group = self.group
        total: Ring = np.zeros(group.words, ring_type(group.ring))
        survivors = []
        for index in self.sealed:
            node = group.nodes[index]
            masked = group.log.read("masked", node, replies, Masked)
            if masked is None:
                continue
            fault = self._fault(index, masked)
            if fault:
                group.log.lose("masked", node, fault)
                continue
            np.add(total, np.frombuffer(masked.vector, total.dtype), out=total)
            survivors.append(index)
        group.enough("masked", survivors)
        return Confirming(group, tuple(self.sealed), tuple(survivors), total)

    def _fault(self, index: int, masked: Masked) -> str:
        group = self.group
        if len(masked.vector) != group.words * group.ring // 8:
            return f"a vector of {len(masked.vector)} bytes"
        text = masked_text(group.context, group.digest, masked.vector)
        key = group.roster.entries[index].certificate.public_key
        return "" if group.verify(key, text, masked.signature) else "a vector without its signature"


@dataclass(frozen=True)
class Confirming:
    """U3's vectors are in the masked sum; names the survivors, awaits signatures (figure 4, round 3)."""

    group: _Group
    sharers: tuple[int, ...]
    survivors: tuple[int, ...]
    total: Ring

    def requests(self) -> dict[int, bytes]:
        named = encode(Survivors(self.sharers, self.survivors))
        return {self.group.nodes[index]: named for index in self.survivors}

    def receive(self, replies: Mapping[int, bytes]) -> Opening:
        group = self.group
        text = confirmation_text(group.context, group.digest, self.sharers, self.survivors)
        signatures: dict[int, bytes] = {}
        for index in self.survivors:
            node = group.nodes[index]
            confirmation = group.log.read("confirm", node, replies, Confirmation)
            if confirmation is None:
                continue
            key = group.roster.entries[index].certificate.public_key
            if group.verify(key, text, confirmation.signature):
                signatures[index] = confirmation.signature
            else:
                group.log.lose("confirm", node, "a confirmation without its signature")
        group.enough("confirm", list(signatures))
        return Opening(group, self.sharers, self.survivors, signatures, self.total)


@dataclass(frozen=True, slots=True)
class _Cohort:
    """All nodes that an attempt asked; journaled before its first unmask request leaves."""

    nodes: Annotated[tuple[U64, ...], Many(1_000_000)]


@dataclass(frozen=True, slots=True)
class _Asked:
    """All that completing a group needs but the replies; journaled before the first unmask request leaves."""

    context: Digest
    ring: U8
    words: U32
    nodes: Annotated[tuple[U64, ...], Many(MAX_GROUP)]
    roster: Roster
    sharers: Indices
    survivors: Indices
    total: Annotated[bytes, AtMost(8 * MAX_WORDS)]


@dataclass(frozen=True)
class GroupSum:
    """A group's unmasked sum: int64 [words], and the nodes in it."""

    total: Total
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Opening:
    """The survivors are confirmed; forwards the signatures, awaits shares, unmasks (figure 4, round 4)."""

    group: _Group
    sharers: tuple[int, ...]
    survivors: tuple[int, ...]
    signatures: Mapping[int, bytes]
    total: Ring

    def requests(self) -> dict[int, bytes]:
        confirmed = encode(Confirmations(tuple(self.signatures), tuple(self.signatures.values())))
        return {self.group.nodes[index]: confirmed for index in self.signatures}

    def asked(self) -> bytes:
        """The record from which `resumed` makes this state again."""
        group = self.group
        return encode_record(
            _Asked(
                group.context,
                group.ring,
                group.words,
                group.nodes,
                group.roster,
                self.sharers,
                self.survivors,
                self.total.tobytes(),
            )
        )

    @classmethod
    def resumed(cls, number: int, asked: _Asked, log: _Log, check: Verifier) -> Opening:
        """The state that `asked` recorded. Every survivor may have confirmed: their replies decide."""
        group = _Group(
            number,
            asked.context,
            asked.ring,
            asked.words,
            asked.roster,
            roster_digest(asked.roster),
            asked.nodes,
            log,
            check,
        )
        total = np.frombuffer(asked.total, ring_type(asked.ring)).copy()
        return cls(group, asked.sharers, asked.survivors, dict.fromkeys(asked.survivors, b""), total)

    def receive(self, replies: Mapping[int, bytes]) -> GroupSum:
        """Rebuild seeds of U3 and mask keys of U2 \\ U3, take the masks off.

        Raises:
            TooManyDropouts: fewer than t devices answered; nothing was revealed.
            NotUnmasked: enough answered, but too many lied.
        """
        group = self.group
        answers: dict[int, Unmasking] = {}
        lost = len(self.sharers) - len(self.survivors)
        for index in self.signatures:
            node = group.nodes[index]
            answer = group.log.read("unmask", node, replies, Unmasking)
            if answer is None:
                continue
            if (len(answer.seed_shares), len(answer.key_shares)) != (len(self.survivors), lost):
                group.log.lose("unmask", node, "shares for other devices than asked")
                continue
            answers[index] = answer
        group.enough("unmask", list(answers))
        seeds, keys = self._rebuild(answers)
        self._remove_masks(seeds, keys)
        survivors = tuple(group.nodes[index] for index in self.survivors)
        return GroupSum(self.total.view(f"<i{group.ring // 8}").astype(np.int64), survivors)

    def _rebuild(self, answers: Mapping[int, Unmasking]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Seeds by index of U3, private mask keys by index of U2 \\ U3, each as its owner announced it."""
        group, alive = self.group, frozenset(self.survivors)
        rebuilder = _Rebuilder(group, answers)
        entries = group.roster.entries
        seeds = {}
        for at, index in enumerate(self.survivors):
            shares = {giver: answer.seed_shares[at] for giver, answer in answers.items()}
            seeds[index] = rebuilder.secret(index, shares, self._seed_fits)
        keys = {}
        for at, index in enumerate(index for index in self.sharers if index not in alive):
            shares = {giver: answer.key_shares[at] for giver, answer in answers.items()}
            keys[index] = rebuilder.secret(
                index, shares, lambda index, key: AgreementKey(key).public() == entries[index].mask_key
            )
        return seeds, keys

    def _seed_fits(self, index: int, seed: bytes) -> bool:
        entry = self.group.roster.entries[index]
        return commitment(seed, self.group.context, entry.certificate.member) == entry.commitment

    def _remove_masks(self, seeds: Mapping[int, bytes], keys: Mapping[int, bytes]) -> None:
        """Subtract self masks of U3, and what devices of U3 added for those who were lost (section 6)."""
        group = self.group
        context, digest = group.context, group.digest
        subtract = [self_mask_key(seed, context, digest, index) for index, seed in seeds.items()]
        add: list[bytes] = []
        for lost, key in keys.items():
            private = AgreementKey(key)
            for index in self.survivors:
                agreed = private.agree(group.roster.entries[index].mask_key)
                mask = pair_mask_key(agreed, context, digest, index, lost)
                (subtract if index > lost else add).append(mask)
        accumulate(self.total, add, subtract)


class _Rebuilder:
    """Rebuilds one secret after another from the shares of the same givers, in spite of wrong ones.

    A share that does not fit was spoilt by its giver or by the dealer who cut it: shares carry no proof of
    which. Both are named, and neither is left out of what follows: whoever gave a share that did not fit
    only comes last among those that are combined first.
    """

    def __init__(self, group: _Group, givers: Iterable[int]) -> None:
        self._group = group
        self._givers = list(givers)
        self._combiner = self._combine()

    def _combine(self) -> Combiner:
        """Lagrange's coefficients for the first t, the same for all secrets."""
        return Combiner(giver + 1 for giver in self._givers[: self._group.needed])

    def secret(self, owner: int, shares: Mapping[int, bytes], fits: Callable[[int, bytes], bool]) -> bytes:
        """The owner's secret; `fits` tells whether it is the one that was announced."""
        try:
            secret = self._combiner.combine([shares[point - 1] for point in self._combiner.points])
            if fits(owner, secret):
                return secret
        except SecretSharingError:
            pass
        return self._corrected(owner, shares, fits)

    def _corrected(
        self, owner: int, shares: Mapping[int, bytes], fits: Callable[[int, bytes], bool]
    ) -> bytes:
        group = self._group
        member = self._member(owner)
        try:
            secret, wrong = correct({giver + 1: shares[giver] for giver in self._givers}, group.needed)
        except SecretSharingError as error:
            raise NotUnmasked(f"what member {member} shared can't be rebuilt: {error}") from None
        if not fits(owner, secret):
            if (
                wrong or len(shares) == group.needed
            ):  # too few shares to tell a lying dealer from lying givers
                raise NotUnmasked(
                    f"what member {member} shared can't be rebuilt: somebody lied, too few to tell"
                )
            group.log.suspect("unmask", group.nodes[owner], "shared another secret than announced")
            raise NotUnmasked(f"member {member} shared another secret than it announced: leave it out")
        self._name(owner, [point - 1 for point in wrong])
        return secret

    def _name(self, owner: int, givers: Sequence[int]) -> None:
        """Note who and whose share did not fit; put the givers last."""
        for giver in givers:
            reason = f"its share of what member {self._member(owner)} dealt is wrong: one of the two lied"
            self._group.log.suspect("unmask", self._group.nodes[giver], reason)
            self._givers.remove(giver)
            self._givers.append(giver)
        self._combiner = self._combine()

    def _member(self, index: int) -> int:
        return self._group.roster.entries[index].certificate.member


# --- the drivers ----------------------------------------------------------------------------------

_State = Sharing | Collecting | Confirming | Opening


@dataclass(frozen=True)
class SecureAggregation:
    """The protocol over a cohort. `membership` is the server's own copy of the authority's latest list.

    verify: how signatures are verified; only a simulator injects another (`keys.SignatureCache`).
    """

    membership: Membership
    verify: Verifier = verify

    def run(
        self, announce: Announce, nodes: Sequence[int], exchange: Exchange, journal: Journal
    ) -> Aggregate:
        """One attempt, five exchanges.

        Raises:
            TooFewDevices: fewer than three devices advertised keys.
            TooManyDropouts: every group lost a third of its roster or more; nothing was revealed.
            NotUnmasked: every group is past unmasking and could not be unmasked.
        """
        log = _Log(nodes)
        groups = self._advertise(announce, log, exchange)
        states: dict[int, _State | GroupSum] = {g.number: Sharing(g) for g in groups}
        failed: dict[int, RoundFailed] = {}
        for stage in STAGES[1:]:
            if stage == "unmask":
                journal.record("cohort", 0, encode_record(_Cohort(log.cohort)))
            states = self._step(stage, states, failed, exchange, journal)
        return _add_up(cast("dict[int, GroupSum]", states), failed, groups, log)

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """As `Aggregation.complete`. Duplicate records do no harm.

        Who was lost before the crash, and why, is not known any more: `dropped` has stage unmask alone.
        """
        cohort: tuple[int, ...] = ()
        asked: dict[int, _Asked] = {}
        replies: dict[int, bytes] = {}
        for record in records:
            if record.kind == "cohort":
                cohort = _read(record, _Cohort).nodes
            elif record.kind == "asked":
                asked[record.key] = _read(record, _Asked)
            elif record.kind == "reply":
                replies[record.key] = record.payload
        if not asked:
            raise JournalError("no unmask request was journaled: try the round again instead")
        log = _Log(cohort)
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

    def _advertise(self, announce: Announce, log: _Log, exchange: Exchange) -> list[_Group]:
        """Stage keys (figure 4, round 0): collect entries, drop what no device would accept, form groups."""
        request = encode(announce)
        replies = exchange("keys", dict.fromkeys(log.cohort, request))
        context = context_digest(announce)
        entries: dict[int, Entry] = {}
        seen: set[bytes] = set()
        for node in log.cohort:
            entry = log.read("keys", node, replies, Entry)
            if entry is None:
                continue
            try:
                self._check_entry(entry, context, seen)
            except ProtocolError as error:
                log.lose("keys", node, str(error))
                continue
            entries[node] = entry
        if len(entries) < LEAST:
            raise TooFewDevices(
                f"{len(entries)} of {len(log.cohort)} devices advertised keys, {LEAST} are the least; "
                f"wait for more devices, or mend why they refuse{log.why(log.cohort)}"
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
        self, announce: Announce, context: bytes, entries: Mapping[int, Entry], log: _Log
    ) -> list[_Group]:
        """As few groups as the announced bound allows, of equal size within one, by member number."""
        nodes = sorted(entries, key=lambda node: entries[node].certificate.member)
        count = -(-len(nodes) // announce.group)
        groups = []
        for number in range(count):
            part = nodes[number * len(nodes) // count : (number + 1) * len(nodes) // count]
            roster = Roster(tuple(entries[node] for node in part))
            groups.append(
                _Group(
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
        exchange: Exchange,
        journal: Journal,
    ) -> dict[int, _State | GroupSum]:
        """One exchange for all groups that are left."""
        active = {number: state for number, state in states.items() if not isinstance(state, GroupSum)}
        if not active:
            return {}
        for number, state in active.items():  # durable before any unmask request leaves
            if isinstance(state, Opening):
                journal.record("asked", number, state.asked())
        requests = {node: payload for state in active.values() for node, payload in state.requests().items()}
        replies = exchange(stage, requests)
        if stage == "unmask":
            for node, payload in replies.items():
                journal.record("reply", node, payload)
        after: dict[int, _State | GroupSum] = {}
        for number, state in active.items():
            try:
                after[number] = state.receive(replies)
            except RoundFailed as error:
                failed[number] = error
        return after


def _read(record: Record, kind: type[M]) -> M:
    try:
        return decode_record(record.payload, kind)
    except CodecError as error:
        raise JournalError(
            f"record {record.kind} {record.key} of the journal can't be read: {error}"
        ) from None


def _add_up(
    sums: Mapping[int, GroupSum], failed: Mapping[int, RoundFailed], groups: Sequence[_Group], log: _Log
) -> Aggregate:
    """The groups' sums in clear; the first failure, if no group is left."""
    if not sums:
        raise next(iter(failed.values()))
    total: Total = np.sum([group.total for group in sums.values()], axis=0, dtype=np.int64)
    return log.aggregate(
        total,
        (node for group in sums.values() for node in group.survivors),
        groups=tuple(len(group.nodes) for group in groups),
        failed={number: str(error) for number, error in failed.items()},
    )


@dataclass(frozen=True)
class PlainAggregation:
    """The same sum without protection: the server sees every vector. For comparison and for tests.

    Two exchanges, keys and masked. Devices refuse unless their owner's policy allows it.
    """

    def run(
        self, announce: Announce, nodes: Sequence[int], exchange: Exchange, journal: Journal
    ) -> Aggregate:
        """One attempt; raises `TooFewDevices` if nobody sends a vector."""
        if announce.kind is not Kind.PLAIN:
            raise ProtocolError("plain aggregation needs an announcement that says so")
        log, context = _Log(nodes), context_digest(announce)
        replies = exchange("keys", dict.fromkeys(log.cohort, encode(announce)))
        ready = []
        for node in log.cohort:
            answer = log.read("keys", node, replies, Ready)
            if answer is not None and answer.context != context:
                log.lose("keys", node, "ready for another context")
            elif answer is not None:
                ready.append(node)
        replies = exchange("masked", dict.fromkeys(ready, encode(Collect(context))))
        total: Total = np.zeros(announce.words, np.int64)
        survivors = []
        for node in ready:
            plain = log.read("masked", node, replies, Plain)
            if plain is None:
                continue
            if len(plain.vector) != announce.words * announce.ring // 8:
                log.lose("masked", node, f"a vector of {len(plain.vector)} bytes")
                continue
            total += np.frombuffer(plain.vector, f"<i{announce.ring // 8}")
            survivors.append(node)
        if not survivors:
            raise TooFewDevices(
                f"none of {len(log.cohort)} devices sent a vector; mend why they refuse{log.why(log.cohort)}"
            )
        return log.aggregate(total, survivors, groups=(len(ready),))

    def complete(self, records: Iterable[Record]) -> Aggregate:
        """There is nothing to complete: a plain attempt can be tried again."""
        raise JournalError("a plain attempt asks for no unmasking: try the round again instead")
