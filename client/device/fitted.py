"""How sure the model in use is: fitted when the owner trains, kept, and read by whoever ranks.

It belongs to one personal part, to the bit. When the device has another one (a round has finished, say), what
was kept says nothing about it, and goes when it is next looked at.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from penchant.client.learning.doubt import Doubt
from penchant.client.vault.fitted_store import FittedStore
from penchant.client.vault.vault import Personal
from penchant.common.wire.codec import U64, decode_record, encode_record
from penchant.common.wire.messages import Digest

__all__ = ["About", "Fitted", "personal_digest"]

ABOUT, DOUBT = "about", "doubt"


@dataclass(frozen=True, slots=True)
class About:
    """What was fitted to which choices.

    Attributes:
        personal: the digest of the personal part, and of the shared factors that belong to it.
        newest: the number of the latest choice that was recorded then.
        conversations: whether most of the choices were between answers in conversations.
        errors: whether errors were fitted: not where they would be too many numbers.
    """

    personal: Digest
    newest: U64
    conversations: bool
    errors: bool


def personal_digest(run: bytes, kept: Personal) -> bytes:
    """What names a committed personal part and the factors it belongs to."""
    parts = (run, kept.round.to_bytes(8, "big"), kept.vector.astype("<f4").tobytes(), kept.context)
    whole = hashlib.sha256(b"penchant fitted")
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()


class Fitted:
    """What is kept of the last training."""

    def __init__(self, store: FittedStore) -> None:
        self._store = store

    def keep(self, about: About, doubt: Doubt | None) -> None:
        """Keep this in the place of what was there."""
        values = {ABOUT: encode_record(about)}
        self._store.replace(values if doubt is None else values | {DOUBT: doubt.encode()})

    def of(self, personal: bytes) -> About | None:
        """What was fitted with the personal part of this digest; that of another is destroyed."""
        kept = self._store.read(ABOUT)
        if not kept:
            return None
        about = decode_record(kept, About)
        if about.personal == personal:
            return about
        self._store.forget()
        return None

    def doubt(self) -> Doubt:
        """The errors that belong to `of`, where it says that there are any."""
        return Doubt.decode(self._store.read(DOUBT))

    def forget(self) -> None:
        """Destroy it."""
        self._store.forget()
