"""Masks rebuilt from the secret shares of those who are left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from penchant.common.crypto.shamir import Combiner, correct
from penchant.common.errors import (
    NotUnmasked,
    SecretSharingError,
)
from penchant.common.secagg.stages import UNMASK
from penchant.server.secagg.group import Group


class Rebuilder:
    """Rebuilds one secret after another from the shares of the same givers, in spite of wrong ones.

    A share that does not fit was spoilt by its giver or by the dealer who cut it: shares carry no proof of
    which. Both are named, and neither is left out of what follows: whoever gave a share that did not fit
    only comes last among those that are combined first.
    """

    def __init__(self, group: Group, givers: Iterable[int]) -> None:
        self._group = group
        self._givers = list(givers)
        self._combiner = self._combine()

    def _combine(self) -> Combiner:
        """Lagrange's coefficients for the first t, the same for all secrets."""
        return Combiner(giver + 1 for giver in self._givers[: self._group.needed])

    def secret(self, owner: int, shares: Mapping[int, bytes], fits: Callable[[int, bytes], bool]) -> bytes:
        """The owner's secret; `fits` says whether it is the one that was announced."""
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
                    f"what member {member} shared can't be rebuilt: "
                    "somebody lied, and too few answered to tell who"
                )
            group.log.suspect(UNMASK, group.nodes[owner], "shared a different secret than announced")
            raise NotUnmasked(f"member {member} shared a different secret than it announced: leave it out")
        self._name(owner, [point - 1 for point in wrong])
        return secret

    def _name(self, owner: int, givers: Sequence[int]) -> None:
        """Note who and whose share did not fit; put the givers last."""
        for giver in givers:
            reason = f"its share of what member {self._member(owner)} dealt is wrong: one of the two lied"
            self._group.log.suspect(UNMASK, self._group.nodes[giver], reason)
            self._givers.remove(giver)
            self._givers.append(giver)
        self._combiner = self._combine()

    def _member(self, index: int) -> int:
        return self._group.roster.entries[index].certificate.member
