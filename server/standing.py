"""How well runs stand against each other, by what masked sums say of held-out choices, and which go on.

Runs with the same seed and cohort size ask the same people in the same rounds, so their counts are of the
same choices. A run's standing pools those of its last rounds, each of the factors that the round before ended
with. Somebody who is asked in several of them judges the same choices again: they count for the error once.

Who goes on is chosen by the rule of one standard error (Breiman, Friedman, Olshen and Stone 1984): not the
best, but the cheapest that the counts do not tell apart from it. Counts are taken as if they were of
different choices, which asks for a larger lead than paired ones need; the server has no pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from penchant.common.config import RunConfig
from penchant.server.journal import RoundLog
from penchant.server.measured import Measurement, measurements
from penchant.server.stopping import ends_with

__all__ = ["POOLED", "RunStanding", "going_on", "pooled_standing", "standing"]

POOLED = 3
"""Rounds whose counts make a standing."""


@dataclass(frozen=True)
class RunStanding:
    """accuracy: the part of held-out choices that is ranked right, or the mean of it over people with noise;
    error: its standard error; judged: how many choices were judged, None where noise hides it."""

    accuracy: float
    error: float
    judged: int | None = None

    def leads(self, other: RunStanding) -> bool:
        """Whether it is ahead by more than one standard error of the difference."""
        return self.accuracy - other.accuracy > sqrt(self.error**2 + other.error**2)


def standing(
    config: RunConfig, logs: Sequence[RoundLog], people: int, noise: float = 0.0
) -> RunStanding | None:
    """How a run stands after its last finished round; None where nothing is known of held-out choices.

    Args:
        config: the run's configuration.
        logs: of all finished rounds, in order.
        people: how many take part in the run.
        noise: the standard deviation of the noise on a round's mean count, as a part of its range.
    """
    return pooled_standing(_pooled(config, logs), people, noise)


def pooled_standing(pooled: Sequence[Measurement], people: int, noise: float = 0.0) -> RunStanding | None:
    """How well factors stand by the counts of some rounds, all with an accuracy; None without any. Arguments
    as of `standing`."""
    if not pooled:
        return None
    asked = sum(one.log.survivors for one in pooled)
    judged = [one.log.judged for one in pooled]
    asked_of = [one.log.judges or one.log.survivors for one in pooled]  # where choices are not counted
    weights = [many if n is None else n for many, n in zip(asked_of, judged, strict=True)]
    right = sum(weight * (one.accuracy or 0.0) for weight, one in zip(weights, pooled, strict=True))
    total = sum(weights)
    if not total:
        return None
    part = (right + 1) / (total + 2)  # so that none or all right is not taken for certain
    once = total * min(1.0, people / asked)  # without those who judged again
    variance = part * (1 - part) / once + noise**2 * (1 + part**2) / len(pooled)
    counted = None if any(n is None for n in judged) else total
    return RunStanding(round(right / total, 9), sqrt(variance), counted)


def going_on(standings: Sequence[RunStanding | None], stay: int) -> list[int]:
    """Which of some runs go on, by their places, in order.

    Args:
        standings: of the runs, the cheapest first; None for one that nothing is known of.
        stay: how many go on.
    """
    left, chosen = list(range(len(standings))), list[int]()
    while left and len(chosen) < stay:
        known = [(place, one) for place in left if (one := standings[place]) is not None]
        place = left[0]
        if known:
            best = max((one for _, one in known), key=lambda one: one.accuracy)
            place = next(place for place, one in known if not best.leads(one))
        left.remove(place)
        chosen.append(place)
    return sorted(chosen)


def _pooled(config: RunConfig, logs: Sequence[RoundLog]) -> list[Measurement]:
    """The measurements that a standing is made of: the last, or those around the round that training, once
    over before its time, ended with."""
    known = [one for one in measurements(logs) if one.accuracy is not None and one.after and not one.fitted]
    best = ends_with(config, logs)
    if best is None:
        return known[-POOLED:]
    return [one for one in known if abs(one.after - best) <= POOLED // 2]
