"""The server's role in secure aggregation, and the driver that a round calls.

A cohort larger than a group is split into groups of equal size (within one), each its own instance of the
protocol, in lockstep: one exchange per stage carries all groups' messages. Each group's sum is exact; the
groups' sums are added up in clear. **A group that fails is left out** — its devices count as dropped out
and the reason is kept in `Aggregate.failed` — and the round fails only when no group is left: a failed
group does not affect the others, and nothing about it is revealed.

A group is in one of the states `Sharing` -> `Collecting` -> `Confirming` -> `Opening`; each has `requests()`
for its members and `receive(replies)`, which returns the next state, in the end a `GroupSum`, or raises.
Masked vectors are added while they arrive (`Collecting.arriving`), so that none is kept.
Devices may lie: a reply that does not decode or verify costs its sender the attempt, and is named.

Section and figure numbers are those of eprint 2017/281.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np

from penchant.common.crypto.keys import AgreementKey, Verifier
from penchant.common.crypto.masks import Ring, accumulate, ring_type
from penchant.common.secagg.stages import CONFIRM, MASKED, SHARES, UNMASK
from penchant.common.secagg.transcript import (
    commitment,
    confirmation_text,
    masked_text,
    pair_mask_key,
    roster_digest,
    self_mask_key,
)
from penchant.common.wire.codec import (
    U8,
    U32,
    U64,
    AtMost,
    Many,
    encode,
    encode_record,
)
from penchant.common.wire.messages import (
    MAX_GROUP,
    MAX_WORDS,
    AbortCode,
    Confirmation,
    Confirmations,
    Delivery,
    Digest,
    Indices,
    Masked,
    Roster,
    Shares,
    Survivors,
    Unmasking,
)
from penchant.server.secagg.aggregation import GroupSum
from penchant.server.secagg.group import Group, GroupLog, decoded
from penchant.server.secagg.rebuild import Rebuilder
from penchant.server.secagg.vector_sum import VectorSum

__all__ = ["LEAST", "Collecting", "Confirming", "Opening", "Sharing", "UnmaskRecord"]

LEAST: Final = 3  # devices below which no group is opened, whatever the devices' own policies say


# --- one group ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharing:
    """U1 is known; sends the roster, awaits sealed shares (figure 4, round 1)."""

    group: Group

    def requests(self) -> dict[int, bytes]:
        roster = encode(self.group.roster)
        return dict.fromkeys(self.group.nodes, roster)

    def receive(self, replies: Mapping[int, bytes]) -> Collecting:
        group, n = self.group, len(self.group.nodes)
        sealed: dict[int, tuple[bytes, ...]] = {}
        for index, node in enumerate(group.nodes):
            shares = group.log.read(SHARES, node, replies, Shares)
            if shares is None:
                continue
            if len(shares.sealed) != n - 1:
                group.log.lose(SHARES, node, f"{len(shares.sealed)} sealed shares for {n - 1} peers")
                continue
            sealed[index] = shares.sealed
        group.enough(SHARES, list(sealed))
        return Collecting.of(group, sealed)


@dataclass(frozen=True)
class Collecting:
    """U2 has shared; forwards the sealed shares, awaits masked vectors (figure 4, round 2)."""

    group: Group
    sealed: Mapping[int, tuple[bytes, ...]]
    arriving: VectorSum  # of U2, by place in `sealed`

    @classmethod
    def of(cls, group: Group, sealed: Mapping[int, tuple[bytes, ...]]) -> Collecting:
        """The state in which no vector has arrived. sealed: index of U2 -> what it sealed for its peers."""
        sharers = tuple(sealed)

        def read(place: int, reply: bytes) -> Ring | AbortCode | str:
            masked = decoded(reply, Masked)
            if not isinstance(masked, Masked):
                return masked
            fault = _fault(group, sharers[place], masked)
            return fault or np.frombuffer(masked.vector, ring_type(group.ring))

        total = np.zeros(group.words, ring_type(group.ring))
        return cls(group, sealed, VectorSum([group.nodes[index] for index in sharers], total, read))

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

    def receive(self, _: Mapping[int, bytes]) -> Confirming:
        """The replies are in `arriving` by now, and were not kept."""
        group, sharers = self.group, tuple(self.sealed)
        survivors = tuple(sharers[place] for place in self.arriving.survivors(MASKED, group.log))
        group.enough(MASKED, survivors)
        return Confirming(group, sharers, survivors, self.arriving.total)


def _fault(group: Group, index: int, masked: Masked) -> str:
    """What is wrong with a device's vector; "" if nothing is."""
    if len(masked.vector) != group.words * group.ring // 8:
        return f"a vector of {len(masked.vector)} bytes"
    text = masked_text(group.context, group.digest, masked.vector)
    key = group.roster.entries[index].certificate.public_key
    return "" if group.verify(key, text, masked.signature) else "a vector without its signature"


@dataclass(frozen=True)
class Confirming:
    """U3's vectors are in the masked sum; names the survivors, awaits signatures (figure 4, round 3)."""

    group: Group
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
            confirmation = group.log.read(CONFIRM, node, replies, Confirmation)
            if confirmation is None:
                continue
            key = group.roster.entries[index].certificate.public_key
            if group.verify(key, text, confirmation.signature):
                signatures[index] = confirmation.signature
            else:
                group.log.lose(CONFIRM, node, "a confirmation without its signature")
        group.enough(CONFIRM, list(signatures))
        return Opening(group, self.sharers, self.survivors, signatures, self.total)


@dataclass(frozen=True, slots=True)
class UnmaskRecord:
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
class Opening:
    """The survivors are confirmed; forwards the signatures, awaits shares, unmasks (figure 4, round 4)."""

    group: Group
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
            UnmaskRecord(
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
    def resumed(cls, number: int, asked: UnmaskRecord, log: GroupLog, check: Verifier) -> Opening:
        """The state that `asked` recorded. Every survivor may have confirmed: their replies decide."""
        group = Group(
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
            answer = group.log.read(UNMASK, node, replies, Unmasking)
            if answer is None:
                continue
            if (len(answer.seed_shares), len(answer.key_shares)) != (len(self.survivors), lost):
                group.log.lose(UNMASK, node, "shares for devices that were not asked for")
                continue
            answers[index] = answer
        group.enough(UNMASK, list(answers))
        seeds, keys = self._rebuild(answers)
        self._remove_masks(seeds, keys)
        survivors = tuple(group.nodes[index] for index in self.survivors)
        return GroupSum(self.total.view(f"<i{group.ring // 8}").astype(np.int64), survivors)

    def _rebuild(self, answers: Mapping[int, Unmasking]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Seeds by index of U3, private mask keys by index of U2 \\ U3, each as its owner announced it."""
        group, alive = self.group, frozenset(self.survivors)
        rebuilder = Rebuilder(group, answers)
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


# --- the drivers ----------------------------------------------------------------------------------
