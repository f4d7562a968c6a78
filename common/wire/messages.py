"""Every message of a round, in the order in which they travel.

========  ==========================  =========================================
stage     server -> device            device -> server
========  ==========================  =========================================
status    `Hello`                     `Status`
keys      `Announce`                  `Entry` (secagg) or `Ready` (plain)
shares    `Roster`                    `Shares`
masked    `Delivery` or `Collect`     `Masked` or `Plain`
confirm   `Survivors`                 `Confirmation`
unmask    `Confirmations`             `Unmasking`
========  ==========================  =========================================

A device that refuses answers `Abort` with one code, whatever the stage; a server sends none, it is silent
when a round is over. Devices are named by member number in certificates and by *index in the roster*
(its entries ascend by member number) everywhere else. There is no field for a threshold: devices compute
it (`protocol.threshold`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Final

from penchant.common import errors
from penchant.common.wire.codec import U8, U16, U32, U64, AtMost, Exactly, Many, message

__all__ = [
    "MAX_FACTORS",
    "MAX_GROUP",
    "MAX_PLAN",
    "MAX_WORDS",
    "Abort",
    "AbortCode",
    "Announce",
    "Certificate",
    "Collect",
    "Confirmation",
    "Confirmations",
    "Delivery",
    "Entry",
    "Finished",
    "Hello",
    "Kind",
    "Masked",
    "Plain",
    "Ready",
    "Roster",
    "Shares",
    "Status",
    "Survivors",
    "Unmasking",
    "abort_code",
]

MAX_GROUP: Final = 1024  # devices in one group
MAX_PLAN: Final = 1 << 16  # bytes
MAX_FACTORS: Final = 1 << 28  # bytes: 64M float32
MAX_WORDS: Final = 1 << 26  # ring elements in a masked vector
MAX_MEMBERSHIP: Final = 1 << 22  # bytes of an encoded member list
MAX_MANIFEST: Final = 1 << 18  # bytes of a signed run manifest: the plans of three phases, and little else
SHARE: Final = 33  # bytes of one share: an element of a prime field a little above 2^256
SEALED: Final = 2 * SHARE + 16  # a seed share, a key share, the tag of AES-256-GCM

Digest = Annotated[bytes, Exactly(32)]
PublicKey = Annotated[bytes, Exactly(32)]
Signature = Annotated[bytes, Exactly(64)]
SecretShare = Annotated[bytes, Exactly(SHARE)]
RunId = Annotated[bytes, Exactly(16)]
Indices = Annotated[tuple[U16, ...], Many(MAX_GROUP)]


class Kind(IntEnum):
    """How a round's vectors are sent."""

    SECAGG = 1
    PLAIN = 2


class AbortCode(IntEnum):
    """All that a device says when it refuses. Details are for its owner, not for the server."""

    MALFORMED = 1  # not a message of this protocol version
    STAGE = 2  # not the stage, round, attempt or run that is open; or burnt already
    POLICY = 3  # the owner's policy forbids it
    MEMBERSHIP = 4  # member list old, stale or unsigned; a revoked or unlisted identity
    CERTIFICATE = 5  # an identity that the authority did not certify
    AGREEMENT = 6  # the parties were not sent the same
    SIGNATURE = 7  # a signature is missing, wrong, repeated or by an outsider
    SHARES = 8  # a key or a share that can't be right
    CONFIGURATION = 9  # plan, factors, ring or bounds that the device can't accept
    UNAVAILABLE = 10  # not ready: busy, no data, battery, ...
    INTERNAL = 11  # the device's own failure


_CODES: Final[tuple[tuple[type[errors.PenchantError], AbortCode], ...]] = (
    (errors.CodecError, AbortCode.MALFORMED),
    (errors.StageError, AbortCode.STAGE),
    (errors.PolicyRefusal, AbortCode.POLICY),
    (errors.MembershipError, AbortCode.MEMBERSHIP),
    (errors.CertificateError, AbortCode.CERTIFICATE),
    (errors.AgreementError, AbortCode.AGREEMENT),
    (errors.SignatureError, AbortCode.SIGNATURE),
    (errors.SecretSharingError, AbortCode.SHARES),
    (errors.ConfigError, AbortCode.CONFIGURATION),
    (errors.BaseModelError, AbortCode.CONFIGURATION),
    (errors.DataError, AbortCode.UNAVAILABLE),
)


def abort_code(error: BaseException) -> AbortCode:
    """The one code that stands for `error` on the wire; `INTERNAL` for anything without its own."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), AbortCode.INTERNAL)


@message(1)
@dataclass(frozen=True, slots=True)
class Abort:
    """The sender is out of this attempt."""

    code: AbortCode


# --- readiness ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """A round that is final, with the attempt that made it: what devices staged in it is committed."""

    round: U32
    attempt: U16


FinishedRounds = Annotated[tuple[Finished, ...], Many(4096)]


@message(2)
@dataclass(frozen=True, slots=True)
class Hello:
    """Asks for readiness, and says which rounds of a run are final. The version is in every header."""

    run: RunId
    finished: FinishedRounds
    membership: Annotated[bytes, AtMost(MAX_MEMBERSHIP)] = b""  # a signed member list, where yours is another


@message(3)
@dataclass(frozen=True, slots=True)
class Status:
    """Whether the device would take part now, under which member number, and by which member list."""

    ready: bool
    member: U64
    list_digest: Digest  # of the newest member list that the device knows


# --- keys -----------------------------------------------------------------------------------------


@message(4)
@dataclass(frozen=True, slots=True)
class Announce:
    """Opens an attempt of a round; the same bytes for every device (`protocol.context_digest` covers all)."""

    kind: Kind
    run: RunId
    round: U32
    attempt: U16
    group: U16  # most devices in one group: with the plan's bounds it excludes overflow
    ring: U8  # bits of a ring element: 32 or 64
    words: U32  # ring elements in a device's vector
    base: Digest  # of the base model
    plan: Annotated[bytes, AtMost(MAX_PLAN)]  # canonical encoding of the plan
    finished: FinishedRounds
    list_digest: Digest  # of the member list that the round goes by
    manifest: Annotated[bytes, AtMost(MAX_MANIFEST)]  # of the run, signed by the authority
    factors: Annotated[bytes, AtMost(MAX_FACTORS)] = field(repr=False)  # shared factors, float32 LE


@dataclass(frozen=True, slots=True)
class Certificate:
    """The enrolment authority's word that `public_key` is member number `member`."""

    member: U64
    public_key: PublicKey
    signature: Signature


@message(5)
@dataclass(frozen=True, slots=True)
class Entry:
    """One device's signed part of the roster (advertised keys)."""

    certificate: Certificate
    context: Digest
    mask_key: PublicKey  # X25519, for pairwise masks
    channel_key: PublicKey  # X25519, for sealing shares
    commitment: Digest  # to the self-mask seed
    signature: Signature


@message(6)
@dataclass(frozen=True, slots=True)
class Ready:
    """Plain rounds: the device takes part, in this context."""

    context: Digest


# --- shares ---------------------------------------------------------------------------------------


@message(7)
@dataclass(frozen=True, slots=True)
class Roster:
    """U1: the entries of a group, by ascending member number."""

    entries: Annotated[tuple[Entry, ...], Many(MAX_GROUP)]


@message(8)
@dataclass(frozen=True, slots=True)
class Shares:
    """Sealed shares for every other device of the roster, in the roster's order."""

    sealed: Annotated[tuple[Annotated[bytes, Exactly(SEALED)], ...], Many(MAX_GROUP)]


# --- masked ---------------------------------------------------------------------------------------


@message(9)
@dataclass(frozen=True, slots=True)
class Delivery:
    """U2, the receiver included, and what the others of U2 sealed for it, in the same order."""

    sharers: Indices
    sealed: Annotated[tuple[Annotated[bytes, Exactly(SEALED)], ...], Many(MAX_GROUP)]


@message(10)
@dataclass(frozen=True, slots=True)
class Masked:
    """The masked vector, ring elements in little endian, signed over context, roster and vector."""

    signature: Signature
    vector: Annotated[bytes, AtMost(8 * MAX_WORDS)] = field(repr=False)


@message(11)
@dataclass(frozen=True, slots=True)
class Collect:
    """Plain rounds: asks for the vector as it is."""

    context: Digest


@message(12)
@dataclass(frozen=True, slots=True)
class Plain:
    """The quantised vector without masks. Only where the owner's policy allows it."""

    vector: Annotated[bytes, AtMost(8 * MAX_WORDS)] = field(repr=False)


# --- confirm --------------------------------------------------------------------------------------


@message(13)
@dataclass(frozen=True, slots=True)
class Survivors:
    """U2, and U3: whose vectors arrived."""

    sharers: Indices
    survivors: Indices


@message(14)
@dataclass(frozen=True, slots=True)
class Confirmation:
    """The device's signature over context, roster, U2 and U3."""

    signature: Signature


# --- unmask ---------------------------------------------------------------------------------------


@message(15)
@dataclass(frozen=True, slots=True)
class Confirmations:
    """Who of U3 confirmed, with their signatures in the same order."""

    signers: Indices
    signatures: Annotated[tuple[Signature, ...], Many(MAX_GROUP)]


@message(16)
@dataclass(frozen=True, slots=True)
class Unmasking:
    """Seed shares of U3 and key shares of U2 \\ U3, each in ascending order: never both of one device."""

    seed_shares: Annotated[tuple[SecretShare, ...], Many(MAX_GROUP)] = field(repr=False)
    key_shares: Annotated[tuple[SecretShare, ...], Many(MAX_GROUP)] = field(repr=False)
