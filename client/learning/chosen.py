"""Which model is in use, the person's own, everybody's or one between, and why; without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penchant.common.wire.codec import U8, U32

__all__ = ["CHANCE", "Blend", "chance_of"]

CHANCE = 0.05
"""How likely chance may be to give another model its lead over a person's own, at most."""

_NAMES = {100: "the person's own model", 50: "the model halfway to everybody's", 0: "everybody's model"}


@dataclass(frozen=True, slots=True)
class Blend:
    """What a person's held-out choices said of their own model, everybody's, and the one halfway between.

    Attributes:
        percent: of the own deviation that is in use: 100, 50 or 0.
        tried: of the model that ranked most held-out choices right; the own one where none ranked more.
        ahead, behind: how many of them that one alone has right, against the own model, and how many only the
            own one.
        judged: how many were held out.
    """

    percent: U8 = field(default=100, repr=False)
    tried: U8 = field(default=100, repr=False)
    ahead: U32 = field(default=0, repr=False)
    behind: U32 = field(default=0, repr=False)
    judged: U32 = field(default=0, repr=False)

    def words(self) -> str:
        """Which model is in use, and why, in one sentence without its full stop."""
        used, tried = _NAMES[self.percent], _NAMES[self.tried]
        if self.tried == 100:
            return f"{used} is in use: no other ranks more of {self.judged} held-out choices right"
        lead = (
            f"ranks {self.ahead} of {self.judged} held-out choices right that the own one has wrong, and "
            f"{self.behind} the other way round"
        )
        likely = 100 * chance_of(self.ahead, self.behind)
        chance = f"chance alone makes such a lead in {likely:.2g} of 100 cases"
        if self.percent == 100:
            return f"{used} is in use: {tried} {lead}, but {chance}"
        return f"{used} is in use: it {lead}; {chance}"


def chance_of(ahead: int, behind: int) -> float:
    """How likely chance alone is to give one model so great a lead over another, or a greater one, where only
    the one is right `ahead` times and only the other `behind` times: the exact one-sided sign test (McNemar).
    """
    count = ahead + behind
    ways = sum(math.comb(count, k) for k in range(ahead, count + 1))
    return ways / (1 << count)
