"""How the groups of a round become one update.

The mean over all people is the whole story where everybody is honest. One liar within the public bounds can
move it anywhere, and can't be seen: only sums over groups are opened. The other rules take the mean update of
each group as one voice and withstand some that are false: median and trimmed mean, coordinate by coordinate
(Yin et al., ICML 2018), and Multi-Krum (Blanchard et al., NeurIPS 2017). A group is false if one liar is in
it, so they help where groups are small and many (docs/robustness.md). To add a rule, write a class with
`name`, `least` and `combine` and register it: here (`_OWN`) or in a package of one's own (docs/plugins.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.common.registry import COMBINATIONS

__all__ = ["Combination", "GroupMeans", "check_groups", "combination", "register_combination"]

Update = NDArray[np.float64]


@dataclass(frozen=True)
class GroupMeans:
    """What a rule works on.

    Attributes:
        means: the example-weighted mean update of each group, float64 [groups, d_shared].
        weights: the example weight of each group, int64 [groups], all above 0.
        pooled: the example-weighted mean over all people of all groups, float64 [d_shared].
    """

    means: NDArray[np.float64] = field(repr=False)
    weights: NDArray[np.int64] = field(repr=False)
    pooled: Update = field(repr=False)


@runtime_checkable
class Combination(Protocol):
    """How the mean updates of groups become the update of a round."""

    @property
    def name(self) -> str:
        """What `federation.combine` calls it."""
        ...

    @property
    def least(self) -> int:
        """The fewest groups that it makes sense with."""
        ...

    def combine(self, groups: GroupMeans, false_groups: float) -> Update:
        """One update, float64 [d_shared], that depends on nothing but the arguments.

        `false_groups` is the part of the groups that may be false, from 0 to below a half.
        """
        ...


# --- by name --------------------------------------------------------------------------------------


def register_combination(rule: Combination) -> None:
    """Make a rule known by its name, for this process. ConfigError when the name is taken or not valid.

    A package that is installed does the same for every process by an entry point in the group
    "penchant.combinations".
    """
    COMBINATIONS.register(rule, Combination, _WANTED)


def combination(name: str) -> Combination:
    """The rule of a name. ConfigError that lists the choices when there is none."""
    found: Combination = COMBINATIONS.find(name, Combination, _WANTED)  # type: ignore[type-abstract]
    return found


_WANTED = "a Combination, which has name, least and combine"


def check_groups(config: RunConfig, cohort: int) -> None:
    """ConfigError where a cohort of this size makes fewer groups than the configured rule needs."""
    rule = combination(config.federation.combine)
    groups = -(-cohort // config.privacy.group_size)
    if groups < rule.least:
        raise ConfigError(
            f"federation.combine {rule.name} needs at least {rule.least} groups, but a cohort of {cohort} in "
            f"groups of up to {config.privacy.group_size} makes {groups}; lower privacy.group_size as far as "
            "the owners' policies allow, or raise federation.cohort",
            about=("federation.combine",),
        )


# --- penchant's own -------------------------------------------------------------------------------


class Mean:
    """The mean over all people, weighted by their pairs; one liar can move it anywhere."""

    name = "mean"
    least = 1

    def combine(self, groups: GroupMeans, false_groups: float) -> Update:
        """The mean over everybody, whatever group they are in."""
        return groups.pooled


class Median:
    """The median of the groups, coordinate by coordinate: sound while fewer than half of them are false."""

    name = "median"
    least = 3

    def combine(self, groups: GroupMeans, false_groups: float) -> Update:
        """The middle value, or the mean of the two in the middle."""
        return np.asarray(np.median(groups.means, axis=0))


class TrimmedMean:
    """The mean of the groups without the lowest and the highest values, coordinate by coordinate."""

    name = "trimmed_mean"
    least = 3

    def combine(self, groups: GroupMeans, false_groups: float) -> Update:
        """The mean of what is left when as many as may be false are cut off at either end."""
        count = len(groups.means)
        cut = min(_false_among(count, false_groups), (count - 1) // 2)
        return np.asarray(np.sort(groups.means, axis=0)[cut : count - cut].mean(axis=0))


class MultiKrum:
    """The mean of the groups that lie closest to the others; as many as may be false are left out."""

    name = "multi_krum"
    least = 5

    def combine(self, groups: GroupMeans, false_groups: float) -> Update:
        """Of n groups, f of which may be false, the mean of the n - f with the least sum of squared distances
        to the n - f - 2 groups nearest to them; f is at most what n > 2f + 2 allows."""
        means = groups.means
        count = len(means)
        false = min(_false_among(count, false_groups), max((count - 3) // 2, 0))
        distances = _squared_distances(means)
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances, axis=1)[:, : max(count - false - 2, 1)].sum(axis=1)
        chosen = np.sort(np.argsort(scores, kind="stable")[: count - false])
        return np.asarray(means[chosen].mean(axis=0))


def _false_among(count: int, part: float) -> int:
    return ceil(round(part * count, 9))


def _squared_distances(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """[groups, groups], row by row: memory stays that of one row's differences."""
    return np.stack([np.square(means - one).sum(axis=1) for one in means])


_OWN: tuple[Combination, ...] = (Mean(), Median(), TrimmedMean(), MultiKrum())
for _rule in _OWN:
    COMBINATIONS.add(_rule.name, _rule, own=True)
