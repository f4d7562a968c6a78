"""What both roles of secure aggregation compute alike: digests, texts to sign, keys to derive, the threshold.

Section numbers are those of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning" (eprint 2017/281); figure 4 there is the protocol, with the underlined parts of the active variant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import derive
from penchant.common.wire.codec import encode, encode_record
from penchant.common.wire.messages import Announce, Entry, Roster

__all__ = [
    "commitment",
    "confirmation_text",
    "context_digest",
    "entry_text",
    "masked_text",
    "pair_mask_key",
    "roster_digest",
    "seal_key",
    "sealed_for",
    "self_mask_key",
    "threshold",
]


def context_digest(announce: Announce) -> bytes:
    """SHA-256 over all that a device was sent: version, run, round, attempt, configuration, base, factors.

    It has 32 bytes. Devices that were sent different things can't agree on it (docs/protocol.md#stages).
    """
    return hashlib.sha256(domain("context", encode(announce))).digest()


def roster_digest(roster: Roster) -> bytes:
    """SHA-256 over the roster's canonical bytes, 32 bytes."""
    return hashlib.sha256(domain("roster", encode_record(roster))).digest()


def threshold(n: int) -> int:
    """t = floor(2n/3) + 1 of `n` devices: fewer than a third may be lost, a third may collude."""
    return 2 * n // 3 + 1


def _index(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _indices(numbers: Sequence[int]) -> bytes:
    return b"".join(map(_index, numbers))


# --- texts to sign --------------------------------------------------------------------------------


def entry_text(entry: Entry) -> bytes:
    """What a device signs in the keys stage (figure 4, round 0): all of its entry but the signature."""
    certificate = encode_record(entry.certificate)
    return domain("entry", certificate, entry.context, entry.mask_key, entry.channel_key, entry.commitment)


def masked_text(context: bytes, roster: bytes, vector: bytes | memoryview) -> bytes:
    """What a device signs with its masked vector: context, roster and the vector's SHA-256."""
    return domain("masked", context, roster, hashlib.sha256(vector).digest())


def confirmation_text(
    context: bytes, roster: bytes, sharers: Sequence[int], survivors: Sequence[int]
) -> bytes:
    """What a device signs in the confirm stage (figure 4, round 3): context, roster, U2 and U3."""
    return domain("confirm", context, roster, _indices(sharers), _indices(survivors))


# --- derived keys ---------------------------------------------------------------------------------


def commitment(seed: bytes, context: bytes, member: int) -> bytes:
    """The 32 bytes that commit `member` to its seed: hiding as HKDF is a PRF, binding as SHA-256 resists
    collisions."""
    return derive(seed, domain("commitment", context, member.to_bytes(8, "big")))


def self_mask_key(seed: bytes, context: bytes, roster: bytes, index: int) -> bytes:
    """The AES-256 key of the self mask PRG(b_u) (section 6, figure 4, round 2)."""
    return derive(seed, domain("self-mask", context, roster, _index(index)))


def pair_mask_key(agreed: bytes, context: bytes, roster: bytes, one: int, other: int) -> bytes:
    """The AES-256 key of the mask PRG(s_{u,v}) that two devices share (section 6, figure 4, round 2)."""
    low, high = sorted((one, other))
    return derive(agreed, domain("pair-mask", context, roster, _index(low), _index(high)))


def seal_key(agreed: bytes, context: bytes, roster: bytes, sender: int, receiver: int) -> bytes:
    """The AES-256-GCM key for the one message of shares from `sender` to `receiver` (figure 4, round 1)."""
    return derive(agreed, domain("seal", context, roster, _index(sender), _index(receiver)))


def sealed_for(context: bytes, roster: bytes, sender: int, receiver: int) -> bytes:
    """The associated data of that message."""
    return domain("shares", context, roster, _index(sender), _index(receiver))
