"""The releases that an authority has signed so far, with which it compares what a server asks for next.

When a release was made, and whether it takes devices back, is the server's word. The authority knows what it
signed, and so does not take that word where the two can't both be true.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from penchant.common.errors import AgreementError
from penchant.common.membership.release_manifest import ReleaseContents, ReleaseRequest
from penchant.common.wire.codec import decode_record

__all__ = ["SignedBefore"]

_UNSAID = "and does not say that it takes devices back: promote a later round"


@dataclass(frozen=True)
class SignedBefore:
    """All of them, by their numbers, the first one first."""

    releases: tuple[tuple[int, ReleaseContents], ...]

    @classmethod
    def of(cls, db: sqlite3.Connection) -> SignedBefore:
        """As the authority's record has them."""
        rows = db.execute("SELECT sequence, contents FROM releases ORDER BY sequence")
        return cls(tuple((int(n), decode_record(bytes(asked), ReleaseRequest).contents) for n, asked in rows))

    def refuse_unsaid(self, asked: ReleaseContents) -> None:
        """AgreementError where a release takes devices back and does not say so: it was made before the
        newest that was signed, or its factors were signed as made at another moment, and others since."""
        if asked.rollback or not self.releases:
            return
        newest = self._newest()
        if asked.promoted < newest[1].promoted:
            raise AgreementError(
                f"the release was made before {_named(newest)}, which was signed before, {_UNSAID}"
            )
        same = [one for one in self.releases if one[1].factors == asked.factors]
        moved = [one for one in same if one[1].promoted != asked.promoted]
        if moved and moved[-1] != self.releases[-1]:
            raise AgreementError(
                f"the release has the factors of {_named(moved[-1])}, made at another moment, with others "
                f"signed since, {_UNSAID}"
            )

    def lines(self, asked: ReleaseContents) -> tuple[str, ...]:
        """How a release stands to them, for whoever signs it."""
        told = []
        if self.releases and asked.rollback:
            told.append(f"it takes devices back: signed last was {_named(self.releases[-1])}")
        later = [one for one in self.releases if one[1].run == asked.run and one[1].round > asked.round]
        if later and not asked.rollback:
            told.append(f"of this run {_named(later[-1])} was signed before: devices go to an earlier round")
        others = [
            one
            for one in self.releases
            if (one[1].run, one[1].round) == (asked.run, asked.round) and one[1].factors != asked.factors
        ]
        if others:
            told.append(f"of this very round {_named(others[-1])} was signed before, with other factors")
        return tuple(told)

    def _newest(self) -> tuple[int, ReleaseContents]:
        return max(self.releases, key=lambda one: one[1].promoted)


def _named(release: tuple[int, ReleaseContents]) -> str:
    return f"{release[1].name} (number {release[0]}, round {release[1].round})"
