"""What a device knows of its fleet's release, and what it looks at before it takes another one.

A device remembers the newest manifest that was meant for it, whether or not it uses that release: an older
one is refused, or the server could bring a release back that was taken back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from penchant.client.agent.policy import OwnerPolicy, checked_factors
from penchant.client.learning.model_cache import ModelCache, PlannedModel
from penchant.client.vault.budget import RELEASED
from penchant.client.vault.vault import Vault
from penchant.common.config import Plan
from penchant.common.errors import AgreementError, BaseModelError, PolicyRefusal
from penchant.common.membership.release_manifest import (
    MAX_RELEASE,
    ReleaseContents,
    ReleaseManifest,
    ReleaseOffer,
    SignedRelease,
    refuse_set_back,
)
from penchant.common.model import announced
from penchant.common.model.factors import Vector
from penchant.common.wire.codec import U64, AtMost, decode_record, encode_record

__all__ = [
    "RELEASE",
    "KeptRelease",
    "KnownRelease",
    "checked_release",
    "known_release",
    "newest_offered",
    "refuse_use",
]

RELEASE = "release"
"""The name of the blob in the vault."""


@dataclass(frozen=True, slots=True)
class KeptRelease:
    """What the vault keeps of a release. signed: its signed manifest; fetched: Unix seconds."""

    signed: Annotated[bytes, AtMost(MAX_RELEASE)]
    fetched: U64

    def encode(self) -> bytes:
        """For the vault."""
        return encode_record(self)


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
    manifest = decode_record(found.signed, SignedRelease).manifest
    return KnownRelease(manifest, found.fetched, latest is not None and latest[0] == RELEASED)


def newest_offered(
    offer: bytes, member: int, authority: bytes, known: KnownRelease | None
) -> tuple[bytes, ReleaseManifest] | None:
    """(signed bytes, manifest) of the newest release in an offer that is meant for a member; None for none.

    Raises AgreementError for an offer that can't be read or contradicts itself, PolicyRefusal for one that
    the authority has not signed or that is older than what is `known` of the same fleet.
    """
    found = ReleaseOffer.decode(offer).newest_for(member, authority)
    if found is not None and known is not None and known.manifest.contents.fleet == found[1].contents.fleet:
        refuse_set_back(known.manifest, found[1])
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
