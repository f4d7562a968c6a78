"""Who is served worse by their own model than by the one for all, beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penchant.client.learning.chosen import chance_of

__all__ = ["ALPHA", "Served", "Versus", "beyond_noise", "served"]

ALPHA = 0.05
"""How likely it may be that anybody at all is counted by chance."""


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
