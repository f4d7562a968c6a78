"""What a device knows of its fleet's release, and what it looks at before it takes another one.

A device remembers the newest manifest that was meant for it, whether or not it uses that release: an older
one is refused, or the server could bring a release back that was taken back. It keeps that apart for each
fleet that it was in, so that it may come back to one. Two processes may fetch at once: what is known is
looked at again in the transaction that changes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from penchant.client.agent.policy import OwnerPolicy, checked_factors
from penchant.client.learning.model_cache import ModelCache, PlannedModel
from penchant.client.vault.budget import RELEASED
from penchant.client.vault.vault import BlobChange, ReadBlob, Vault
from penchant.common.config import Plan
from penchant.common.errors import AgreementError, BaseModelError, PolicyRefusal
from penchant.common.membership.release_manifest import (
    MAX_RELEASE,
    ReleaseContents,
    ReleaseManifest,
    ReleaseOffer,
    SignedRelease,
)
from penchant.common.model import announced
from penchant.common.model.factors import Vector
from penchant.common.wire.codec import U32, U64, AtMost, Many, decode_record, encode_record
from penchant.common.wire.messages import Digest

__all__ = [
    "RELEASE",
    "KeptRelease",
    "KnownFleets",
    "KnownRelease",
    "ReleaseMark",
    "checked_release",
    "known_release",
    "newest_offered",
    "noted",
    "refuse_use",
]

RELEASE, FLEETS = "release", "fleets' releases"
"""The names of the blobs in the vault: the newest release, and what is known of each fleet's."""
FLEETS_MOST = 64  # remembered: the last ones of which a release was known


@dataclass(frozen=True, slots=True)
class KeptRelease:
    """What the vault keeps of a release. signed: its signed manifest; fetched: Unix seconds."""

    signed: Annotated[bytes, AtMost(MAX_RELEASE)]
    fetched: U64

    def encode(self) -> bytes:
        """For the vault."""
        return encode_record(self)


@dataclass(frozen=True, slots=True)
class ReleaseMark:
    """How far a device is with the releases of one fleet.

    Attributes:
        fleet: the digest of the authority's key.
        sequence: of the newest manifest that was meant for this device.
        manifest: the digest of that one.
        canary: whether that one was for a part of the devices.
        promoted: the latest moment at which one that the device knew was made, in milliseconds.
    """

    fleet: Digest
    sequence: U32
    manifest: Digest
    canary: bool
    promoted: U64

    def refuse_set_back(self, offered: ReleaseManifest) -> None:
        """PolicyRefusal where `offered`, of the same fleet, would take the device back without the authority
        having said so; AgreementError for two manifests of one number."""
        if offered.sequence < self.sequence:
            raise PolicyRefusal(
                f"release manifest {offered.sequence} is offered, {self.sequence} is known: "
                "the server is behind"
            )
        if offered.sequence == self.sequence and offered.digest != self.manifest:
            raise AgreementError(f"there are two release manifests {self.sequence}: tell the authority")
        if offered.contents.promoted < self.promoted and not offered.contents.rollback:
            raise PolicyRefusal(
                f"release {offered.contents.name} is older than one that this device knows, and its manifest "
                "does not say that the fleet goes back to it"
            )


@dataclass(frozen=True, slots=True)
class KnownFleets:
    """What a device knows of the releases of each fleet that it was in: the one that it heard of last is the
    last one."""

    marks: Annotated[tuple[ReleaseMark, ...], Many(FLEETS_MOST)] = ()

    @classmethod
    def of(cls, blob: ReadBlob) -> KnownFleets:
        """As the vault keeps it."""
        kept, newest = blob(FLEETS), blob(RELEASE)
        if not kept and newest:  # of a version that kept no marks
            return cls().after(_manifest(newest))
        return decode_record(kept, cls) if kept else cls()

    def refuse_set_back(self, offered: ReleaseManifest) -> None:
        """As `ReleaseMark.refuse_set_back`, with what is known of the fleet of `offered`."""
        mark = self._mark(offered)
        if mark is not None:
            mark.refuse_set_back(offered)

    def is_before_canary(self, offered: ReleaseManifest) -> bool:
        """Whether `offered` is older than what is known of its fleet, and that was for a part of the devices:
        while it is being taken back, an honest server offers what it offered before."""
        mark = self._mark(offered)
        return mark is not None and mark.canary and offered.sequence < mark.sequence

    def after(self, manifest: ReleaseManifest) -> KnownFleets:
        """The same once this manifest is known, which is not older."""
        contents, mark = manifest.contents, self._mark(manifest)
        latest = max(contents.promoted, 0 if mark is None else mark.promoted)
        new = ReleaseMark(contents.fleet, manifest.sequence, manifest.digest, contents.is_canary, latest)
        others = [one for one in self.marks if one.fleet != contents.fleet]
        return KnownFleets((*others, new)[-FLEETS_MOST:])

    def _mark(self, manifest: ReleaseManifest) -> ReleaseMark | None:
        return next((one for one in self.marks if one.fleet == manifest.contents.fleet), None)


@dataclass(frozen=True)
class KnownRelease:
    """The newest release that this device knows of.

    Attributes:
        manifest: what the authority signed.
        fetched: when it was fetched, in Unix seconds.
        in_use: whether the model on this device is made of it.
    """

    manifest: ReleaseManifest
    fetched: int
    in_use: bool


def known_release(vault: Vault) -> KnownRelease | None:
    """The newest release that the device knows of, None before the first."""
    kept = vault.blob(RELEASE)
    if not kept:
        return None
    found, latest = decode_record(kept, KeptRelease), vault.latest()
    return KnownRelease(_manifest(kept), found.fetched, latest is not None and latest[0] == RELEASED)


def noted(signed: bytes, manifest: ReleaseManifest, fetched: int) -> BlobChange:
    """What remembers a release: its signed manifest, when it was `fetched`, in Unix seconds, and how far the
    device is with its fleet. As `ReleaseMark.refuse_set_back` where the device is further by then."""

    def change(blob: ReadBlob) -> dict[str, bytes]:
        known = KnownFleets.of(blob)
        known.refuse_set_back(manifest)
        kept = KeptRelease(signed, fetched).encode()
        return {RELEASE: kept, FLEETS: encode_record(known.after(manifest))}

    return change


def newest_offered(
    offer: bytes, member: int, authority: bytes, known: KnownFleets
) -> tuple[bytes, ReleaseManifest] | None:
    """(signed bytes, manifest) of the newest release in an offer that is meant for a member; None for none,
    or for what is older than a canary that the member knows.

    Raises AgreementError for an offer that can't be read or contradicts itself, PolicyRefusal for one that
    the authority has not signed or that is older than what is `known` of the same fleet.
    """
    found = ReleaseOffer.decode(offer).newest_for(member, authority)
    if found is None or known.is_before_canary(found[1]):
        return None
    known.refuse_set_back(found[1])
    return found


def refuse_use(contents: ReleaseContents, policy: OwnerPolicy) -> None:
    """PolicyRefusal unless the owner allows such a model here: before its numbers are fetched."""
    policy.check_use(Plan.decode(contents.plan))
    most = policy.max_message_mb << 20
    if contents.size > most:
        raise PolicyRefusal(
            f"the release has {contents.size} bytes; the owner allows {most} (max_message_mb)"
        )


def checked_release(
    contents: ReleaseContents, data: bytes, policy: OwnerPolicy, model_cache: ModelCache
) -> tuple[PlannedModel, Vector]:
    """(model, announced factors) of a release whose numbers are `data`; loads the base model.

    Raises AgreementError when they are not those of the manifest or not numbers of such a model,
    PolicyRefusal when the owner does not allow it, BaseModelError when the base model here is another one.
    """
    refuse_use(contents, policy)
    if len(data) != contents.size or hashlib.sha256(data).digest() != contents.factors:
        raise AgreementError("the numbers are not those that the release's manifest names; fetch it again")
    planned = model_cache.of(Plan.decode(contents.plan))
    if planned.model_signature.digest != contents.base:
        raise BaseModelError("the release is of another base model under this name; ask the operator which")
    policy.check_size(planned.split)
    size = announced.length(planned.plan, planned.split)
    factors = checked_factors(data, size, policy.max_factor)
    shared, start = planned.parts(factors)
    policy.check_norms(planned.split, shared, start, planned.model.weight_norms)
    return planned, factors


def _manifest(kept: bytes) -> ReleaseManifest:
    return decode_record(decode_record(kept, KeptRelease).signed, SignedRelease).manifest
