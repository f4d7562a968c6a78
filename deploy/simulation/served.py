"""Who is served worse by their own model than by the one for all, beyond noise, and what devices chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from penchant.client.learning.chosen import Blend, chance_of
from penchant.common.shares import ONE_FOR_ALL, Head, find_share

__all__ = [
    "ALPHA",
    "NOT_KNOWN",
    "ModelsInUse",
    "Served",
    "Versus",
    "beyond_noise",
    "ranked_right",
    "served",
    "versus",
    "why_not_served",
]

ALPHA = 0.05
"""How likely it may be that anybody at all is counted by chance."""
NOT_KNOWN = "Who is served worse than by one model for all is not known here"
"""For people, before `why_not_served`."""


@dataclass(frozen=True)
class Versus:
    """One person's own model against everybody's on the same held-out pairs: how many only the one ranks
    right, how many only the other, and how many everybody's ranks right of how many."""

    ahead: int
    behind: int
    common: int
    pairs: int


@dataclass(frozen=True)
class Served:
    """Own models against the population's of the same run, over people.

    people: who were judged; accuracy: that of the population's model, mean over people; worse, better: for
    how many people their own model is worse, or better, beyond noise.
    """

    people: int
    accuracy: float
    worse: int
    better: int

    def words(self) -> str:
        """For a table: how many are worse off, and how many better."""
        return f"{self.worse} worse, {self.better} better of {self.people}"


def ranked_right(margins: Sequence[float]) -> str:
    """A digit for each held-out pair, in order: 1 where it is ranked right."""
    return "".join("1" if margin > 0 else "0" for margin in margins)


def versus(own: str, common: str) -> Versus:
    """One person's own model against everybody's, each as `ranked_right` tells it of the same pairs."""
    both = list(zip(own, common, strict=True))
    return Versus(both.count(("1", "0")), both.count(("0", "1")), common.count("1"), len(common))


def why_not_served(share: str, head: str | None) -> str:
    """Why a run with this share says nothing of people who are served worse than by one model for all.

    head: whose the score head is.
    """
    rule = find_share(share)
    if rule is not None and rule.shares_everything and head != Head.PERSONAL.value:
        return f"share {share} trains one model for all"
    if rule is not None and rule.spread is not None:
        return "the version that made this result did not compare them"
    return (
        f"share {share} trains no model for all beside people's own; penchant compare --shares "
        f"{share},{ONE_FOR_ALL} on the same data compares with one, person by person"
    )


@dataclass(frozen=True)
class ModelsInUse:
    """For how many people their device has chosen their own model, everybody's, or the one halfway between,
    by their held-out choices."""

    own: int
    halfway: int
    everybodys: int

    @classmethod
    def of(cls, blends: Sequence[Blend]) -> Self | None:
        """None where no device had a choice."""
        if not blends:
            return None
        count = Counter(blend.percent for blend in blends)
        return cls(count[100], count[50], count[0])

    def words(self) -> str:
        """For a table."""
        return f"own {self.own}, halfway {self.halfway}, everybody's {self.everybodys}"


def served(rows: Sequence[Versus]) -> Served:
    """Counts of people, each direction tested by itself."""
    return Served(
        people=len(rows),
        accuracy=sum(row.common / row.pairs for row in rows) / len(rows),
        worse=beyond_noise([chance_of(row.behind, row.ahead) for row in rows]),
        better=beyond_noise([chance_of(row.ahead, row.behind) for row in rows]),
    )


def beyond_noise(chances: Sequence[float], alpha: float = ALPHA) -> int:
    """How many of some tests' p-values are significant together (Holm 1979)."""
    ordered = sorted(chances)
    for found, chance in enumerate(ordered):
        if chance > alpha / (len(ordered) - found):
            return found
    return len(ordered)
