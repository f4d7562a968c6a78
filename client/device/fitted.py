"""How sure the model in use is, and whether rightly: fitted when the owner trains, read by whoever ranks.

It belongs to one personal part, to the bit, and to the vault as it was when the choices were read. When the
device has another one (a round has finished, say), or something was forgotten since, what was kept says
nothing about it, and goes when it is next looked at.

Several processes may fit, judge and forget at once. What takes long is computed first; it is kept in one
transaction, and only while the vault, and what is kept here, are as they were when it was begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from penchant.client.device.preference_store import marks_of
from penchant.client.learning.doubt import Doubt
from penchant.client.learning.proxy_gap import ProxyGap
from penchant.client.vault.fitted_store import FittedChange, FittedStore
from penchant.client.vault.vault import Personal
from penchant.common.wire.codec import AtMost, decode_record, encode_record
from penchant.common.wire.messages import Digest

__all__ = ["About", "Fitted", "personal_digest"]

ABOUT, DOUBT, GAP = "about", "doubt", "gap"
_MARKS_MOST = 1 << 30  # bytes


@dataclass(frozen=True, slots=True)
class About:
    """What was fitted to which choices.

    Attributes:
        personal: the digest of the personal part, and of what else it belongs to (`personal_digest`).
        marks: of all choices that were recorded then (`PreferenceStore.marks`), one after the other; without
            the held-out ones that were forgotten since.
        conversations: whether most of the choices were between answers in conversations.
        errors: whether errors were fitted: not where they would be too many numbers.
    """

    personal: Digest
    marks: Annotated[bytes, AtMost(_MARKS_MOST)]
    conversations: bool
    errors: bool


def personal_digest(run: bytes, kept: Personal, version: int) -> bytes:
    """What names a committed personal part, the factors it belongs to, and the vault's version then.

    With the version, whoever is killed while keeping what was fitted to choices that are forgotten meanwhile
    leaves nothing that anybody takes for current.
    """
    numbers = kept.vector.astype("<f4").tobytes()
    parts = (run, kept.round.to_bytes(8, "big"), version.to_bytes(8, "big"), numbers, kept.context)
    whole = hashlib.sha256(b"penchant fitted")
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()


class Fitted:
    """What is kept of the last training."""

    def __init__(self, store: FittedStore) -> None:
        self._store = store

    def keep(self, about: About, doubt: Doubt | None, still: Callable[[], bool]) -> bool:
        """Keep this in the place of what was there, judged by no held-out choice yet; -> whether it was kept.

        still: whether the vault is as it was when the fit was begun. Whoever forgets changes that first and
        empties this afterwards, so that nothing is left of what is kept just before.
        """
        with self._store.changing() as there:
            if not still():
                return False
            _replace(there, about, b"" if doubt is None else doubt.encode(), None)
        return True

    def mark(self) -> bytes:
        """As `FittedStore.mark`."""
        return self._store.mark()

    def judge(self, gap: ProxyGap | None, mark: bytes, still: Callable[[], bool]) -> None:
        """Keep what held-out choices say of what was fitted, unless that was kept anew since.

        mark: from before it was read which choices have a say. still: as of `keep`.
        """
        with self._store.changing() as there:
            about = _about(there)
            if about is not None and there.mark() == mark and still():
                _replace(there, about, there.read(DOUBT), gap)

    def leave_out(self, marks: set[bytes]) -> None:
        """Let held-out choices of these marks have no say any more: marks and gap go, errors stay."""
        with self._store.changing() as there:
            about = _about(there)
            if about is None or not marks & marks_of(about.marks):
                return
            left = b"".join(sorted(marks_of(about.marks) - marks))
            _replace(there, replace(about, marks=left), there.read(DOUBT), None)

    def of(self, personal: bytes | None, still: Callable[[], bool]) -> About | None:
        """What was fitted with the personal part of this digest; that of another is destroyed. None: there
        is no personal part now. still: whether the vault is as it was when the digest was made."""
        with self._store.changing() as there:
            about = _about(there)
            if about is None or about.personal == personal:
                return about
            if not still():  # it may belong to the model that another process has made meanwhile
                return None
            there.replace({})
        self._store.scrub(deleted=True)
        return None

    def doubt(self) -> Doubt:
        """The errors that belong to `of`, where it says that there are any."""
        return Doubt.decode(self._store.read(DOUBT))

    def gap(self) -> ProxyGap | None:
        """What held-out choices said when `of` was fitted; None where there were none, and where a version
        before 0.3 fitted it, which kept nothing of it."""
        kept = self._store.read(GAP)
        return ProxyGap.decode(kept) if kept else None

    def forget(self) -> None:
        """Destroy it."""
        self._store.forget()


def _about(there: FittedChange) -> About | None:
    kept = there.read(ABOUT)
    return decode_record(kept, About) if kept else None


def _replace(there: FittedChange, about: About, doubt: bytes, gap: ProxyGap | None) -> None:
    values = {ABOUT: encode_record(about), DOUBT: doubt, GAP: b"" if gap is None else gap.encode()}
    there.replace({name: data for name, data in values.items() if data})
