"""Release manifests: which shared factors a fleet's devices may start from, signed by its authority.

A manifest names the round of a run that the authority signed, the digest of the numbers that a device
fetches, the base model and the plan that belong to them, what the run has cost in privacy by then, how many
people and choices are behind it, and how accurate these very factors were. The server asks for a signature
with a `ReleaseRequest`, a file; the authority gives the number and the signature, and answers with a
`SignedRelease`. A device fetches a `ReleaseOffer` with a `ReleaseAsk`, and uses the newest manifest in it
that is meant for it.

Epsilon, counts and accuracy are what the server says: the authority can't check them. It does check that run,
base model and plan are those of a run manifest that it signed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from penchant.common.config import Plan
from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import Verifier, verify
from penchant.common.errors import AgreementError, CertificateError, CodecError, ConfigError, PolicyRefusal
from penchant.common.membership.identity import CLOCK_SKEW, Authority, Identity, authority_digest
from penchant.common.membership.manifest import PrivacyParameter, RunManifest
from penchant.common.printable import is_printable
from penchant.common.wire.codec import U16, U32, U64, AtMost, Many, decode_record, encode_record
from penchant.common.wire.messages import MAX_FACTORS, MAX_PLAN, Digest, PublicKey, RunId, Signature

__all__ = [
    "EVERYBODY",
    "MAX_OFFER",
    "MAX_RELEASE",
    "MAX_RELEASE_ASK",
    "ReleaseAccuracy",
    "ReleaseAsk",
    "ReleaseContents",
    "ReleaseManifest",
    "ReleaseOffer",
    "ReleaseRequest",
    "SignedRelease",
    "sign_release",
]

EVERYBODY: Final = 10_000
"""The share of a release that all devices use; a canary's is smaller. In ten-thousandths of the devices."""
MAX_RELEASE: Final = MAX_PLAN + 4096
"""Bytes of a signed release manifest, and of the request for one: a plan, and little else."""
MAX_OFFER: Final = 2 * MAX_RELEASE + 64
"""Bytes of what a device gets."""
MAX_RELEASE_ASK: Final = 32 + 8 + 4 + 32 + 64
_NAME: Final = 120  # bytes
_NUMBER: Final = 40  # bytes of a number as text
_LATEST: Final = 32503680000  # the year 3000, in Unix seconds
_PROMISES: Final = ("delta", "epsilon")


@dataclass(frozen=True, slots=True)
class ReleaseAccuracy:
    """How well the released factors did, before anybody trained on.

    Attributes:
        value: the part of held-out choices that was ranked right, from 0 to 1.
        error: one standard error of it, by people; empty where that is not known.
        measured_in: the round whose devices measured the factors that the released round ended with.
        fitted: whether everybody had fitted the personal part once more by then.
    """

    value: Annotated[str, AtMost(_NUMBER)]
    error: Annotated[str, AtMost(_NUMBER)]
    measured_in: U32
    fitted: bool


@dataclass(frozen=True, slots=True)
class ReleaseContents:
    """What the server wants to have signed.

    Attributes:
        id: 16 bytes drawn anew for each request: the same release again, by a rollback say, has another.
        fleet: the digest of the authority's key.
        name: how the fleet calls the release, as in run-1:release-2.
        rollback: whether devices may have one that was made later. Without it no device goes back.
        share: which part of the devices use it, in ten-thousandths: `EVERYBODY`, or a canary's part.
        run: the run's id.
        round: the round that ended with these factors.
        base: the digest of the base model.
        plan: the encoded plan of the run's main rounds.
        factors: SHA-256 of the numbers as devices fetch them: little-endian float32, the shared factors, then
            the start of the personal part where the plan says that it is sent.
        size: how many bytes those are.
        privacy: "delta" and "epsilon", what the run had cost each person at most by the end of that round;
            nothing where sums are exact. What the run began with has cost more (`begins_with`).
        begins_with: the round and digest that the run began with; empty for none.
        rounds: how many finished rounds the factors are made of.
        people: how many people are in the sum of the last of them.
        contributions: how many there are in the sums of all of them, a person once for each round.
        choices: how many choices to learn from there are in that last sum.
        accuracy: one record, or none where nobody measured these factors yet.
        promoted: when the release was made, in milliseconds, so that one is older than another.
    """

    id: RunId
    fleet: Digest
    name: Annotated[str, AtMost(_NAME)]
    rollback: bool
    share: U16
    run: RunId
    round: U32
    base: Digest
    plan: Annotated[bytes, AtMost(MAX_PLAN)]
    factors: Digest
    size: U32
    privacy: Annotated[tuple[PrivacyParameter, ...], Many(len(_PROMISES))]
    begins_with: Annotated[str, AtMost(4 * _NAME)]
    rounds: U32
    people: U32
    contributions: U64
    choices: U64
    accuracy: Annotated[tuple[ReleaseAccuracy, ...], Many(1)]
    promoted: U64

    def check(self) -> None:
        """AgreementError unless the parts fit one another; nobody signs, and no device uses, any other."""
        try:
            phase = Plan.decode(self.plan).phase
        except ConfigError as error:
            raise AgreementError(f"the plan of the release can't be read: {error}") from None
        sound = (
            is_printable(self.name)
            and bool(self.name)
            and is_printable(self.begins_with)
            and 0 < self.share <= EVERYBODY
            and phase == "main"
            and 0 < self.rounds <= self.round
            and 0 < self.size <= MAX_FACTORS
            and self.size % 4 == 0
            and self.promoted <= 1000 * _LATEST
            and tuple(one.name for one in self.privacy) in ((), _PROMISES)
            and all(_is_number(one.value) for one in self.privacy)
            and all(_is_sound(one) for one in self.accuracy)
        )
        if not sound:
            raise AgreementError("the release manifest contradicts itself; ask the operator for another one")

    def check_run(self, run: RunManifest) -> None:
        """AgreementError unless these are factors of that run, with its base model and its plan."""
        same = (self.run, self.base) == (run.run, run.base) and self.round <= run.rounds
        if not (same and run.allows(Plan.decode(self.plan))):
            raise AgreementError(
                "the release names a run, a base model or a plan that is not in the run's signed manifest"
            )

    @property
    def is_canary(self) -> bool:
        """Whether only a part of the devices use it."""
        return self.share < EVERYBODY

    def is_same_model(self, other: ReleaseContents) -> bool:
        """Whether a device that uses the one has nothing to fetch for the other."""
        mine = self.run, self.round, self.base, self.plan, self.factors
        return mine == (other.run, other.round, other.base, other.plan, other.factors)

    def lines(self) -> tuple[str, ...]:
        """The content, a line each, for whoever signs it and for owners."""
        whom = f"for {self.share / 100:g} % of the devices first" if self.is_canary else "for every device"
        model = Plan.decode(self.plan).model.base_model
        return (
            f"release {self.name}, round {self.round} of run {self.run.hex()}, {whom}",
            *(("it takes the fleet back to this release from a newer one",) if self.rollback else ()),
            f"made {_shown(self.promoted // 1000)} (UTC)",
            f"factors of {self.size} bytes, digest {self.factors.hex()}",
            f"base model {model}, digest {self.base.hex()[:16]}…",
            f"made of {self.rounds} rounds: {self.people} people and {self.choices} choices in the last sum, "
            f"{self.contributions} contributions in all",
            self._privacy_line(),
            *map(_accuracy_line, self.accuracy or (None,)),
        )

    def _privacy_line(self) -> str:
        told = ", ".join(f"{one.name} {one.value}" for one in self.privacy)
        begun = f"; its run began with {self.begins_with}, which has cost more" if self.begins_with else ""
        return f"privacy spent: {told or 'sums were exact, no epsilon bounds them'}{begun}"


@dataclass(frozen=True, slots=True)
class ReleaseManifest:
    """A release as the authority signs it.

    Attributes:
        sequence: greater than that of any release that this authority signed before.
        signed: when it was signed, in Unix seconds.
        contents: what the server asked for.
    """

    sequence: U32
    signed: U64
    contents: ReleaseContents

    @property
    def digest(self) -> bytes:
        """SHA-256 of the record."""
        return hashlib.sha256(encode_record(self)).digest()

    def check(self) -> None:
        """AgreementError unless the parts fit one another."""
        self.contents.check()
        if not self.sequence or self.signed > _LATEST:
            raise AgreementError("the release manifest contradicts itself; ask the operator for another one")


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """A release manifest with the authority's signature, as it travels and as it lies in files."""

    manifest: ReleaseManifest
    signature: Signature

    def reaches(self, member: int) -> bool:
        """Whether it is meant for this member: for always the same part of them, another one for each
        signature, which the server can't foretell."""
        text = domain("canary", self.signature, member.to_bytes(8, "big"))
        drawn = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        return drawn * EVERYBODY < self.manifest.contents.share << 64

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode_record(self)

    @classmethod
    def read(cls, encoded: bytes, authority: bytes, *, verify: Verifier = verify) -> ReleaseManifest:
        """The manifest in `encoded`, if `authority` (a public key of 32 bytes) has signed it for its fleet.

        Raises PolicyRefusal when it has not, AgreementError when it can't be read or contradicts itself.
        """
        try:
            signed = decode_record(encoded, cls)
        except CodecError as error:
            raise AgreementError(f"the release manifest can't be read: {error}") from None
        if not verify(authority, _text(signed.manifest), signed.signature):
            raise PolicyRefusal("the release manifest is not signed by this fleet's authority")
        if signed.manifest.contents.fleet != authority_digest(authority):
            raise PolicyRefusal("the release is another fleet's; ask the operator for this one's")
        signed.manifest.check()
        return signed.manifest


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A server asks the authority to sign a release: a file."""

    contents: ReleaseContents

    def encode(self) -> bytes:
        """The request as a file."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes) -> ReleaseRequest:
        """Undo `encode`; AgreementError for anything else, or contents that contradict themselves."""
        try:
            asked = decode_record(data, cls)
        except CodecError as error:
            raise AgreementError(f"this does not ask for a release's signature: {error}") from None
        asked.contents.check()
        return asked


@dataclass(frozen=True, slots=True)
class ReleaseOffer:
    """What a server offers its devices: the signed manifest for everybody, that of a canary, or both."""

    signed: Annotated[tuple[Annotated[bytes, AtMost(MAX_RELEASE)], ...], Many(2)] = ()

    def encode(self) -> bytes:
        """The body of the reply."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes) -> ReleaseOffer:
        """Undo `encode`; AgreementError for anything else."""
        try:
            return decode_record(data, cls)
        except CodecError as error:
            raise AgreementError(f"what the server offers can't be read: {error}") from None

    def newest_for(self, member: int, authority: bytes) -> tuple[bytes, ReleaseManifest] | None:
        """(signed bytes, manifest) of the newest release that is meant for a member; None where none is.

        Every manifest in the offer is checked, as `SignedRelease.read` does, also those for others.
        """
        read = [(one, SignedRelease.read(one, authority)) for one in self.signed]
        meant = [found for found in read if decode_record(found[0], SignedRelease).reaches(member)]
        return max(meant, key=lambda found: found[1].sequence, default=None)


@dataclass(frozen=True, slots=True)
class ReleaseAsk:
    """A member asks its server for the offer, or for a release's numbers; its own key signs that.

    Attributes:
        public_key: the member's.
        moment: when it asks, in Unix seconds: what is older than some minutes is refused.
        factors: the digest of the numbers; empty for the offer.
    """

    public_key: PublicKey
    moment: U64
    factors: Annotated[bytes, AtMost(32)]
    signature: Signature

    @classmethod
    def of(cls, identity: Identity, authority: bytes, moment: int, factors: bytes = b"") -> ReleaseAsk:
        """What a member of the fleet whose authority's key has this 32-byte digest asks at `moment`."""
        public = identity.certificate.public_key
        return cls(public, moment, factors, identity.sign(_ask_text(authority, public, moment, factors)))

    def encode(self) -> bytes:
        """The body of the request."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes, authority: bytes, now: float) -> ReleaseAsk:
        """Undo `encode`. CodecError for anything else; CertificateError unless the member signed it just now,
        for the fleet of this authority."""
        ask = decode_record(data, cls)
        text = _ask_text(authority, ask.public_key, ask.moment, ask.factors)
        if not verify(ask.public_key, text, ask.signature):
            raise CertificateError("the request is not signed by the member that it names")
        if abs(now - ask.moment) > CLOCK_SKEW:
            raise CertificateError("the request is not of now: this device's clock or the server's is wrong")
        return ask


def sign_release(authority: Authority, manifest: ReleaseManifest) -> SignedRelease:
    """Sign a release. AgreementError when it contradicts itself."""
    manifest.check()
    return SignedRelease(manifest, authority.sign(_text(manifest)))


def _text(manifest: ReleaseManifest) -> bytes:
    return domain("release manifest", encode_record(manifest))


def _ask_text(authority: bytes, public_key: bytes, moment: int, factors: bytes) -> bytes:
    return domain("release ask", authority, public_key, moment.to_bytes(8, "big"), factors)


def _is_number(text: str) -> bool:
    """Whether it is how a finite number, not below zero, is written."""
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and value >= 0 and repr(value) == text


def _is_sound(accuracy: ReleaseAccuracy) -> bool:
    known = _is_number(accuracy.value) and float(accuracy.value) <= 1
    return known and (not accuracy.error or _is_number(accuracy.error)) and accuracy.measured_in > 0


def _accuracy_line(accuracy: ReleaseAccuracy | None) -> str:
    if accuracy is None:
        return "accuracy: nobody measured these factors yet"
    error = f" ± {float(accuracy.error):.3f}" if accuracy.error else ""
    after = ", after everybody fitted the personal part once more" if accuracy.fitted else ""
    return (
        f"accuracy {float(accuracy.value):.3f}{error} on held-out choices, measured on these factors by the "
        f"devices of round {accuracy.measured_in}{after}"
    )


def _shown(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
