"""When a run's training ends, and with which round's factors: what devices' held-out choices say.

Every round's sum tells how many held-out choices are ranked right by the factors that the round before ended
with. Once that has not risen for `federation.stop_after` rounds, the closing round follows, on the factors of
the best. One cohort's figure is noisy: a round goes by its own and its two neighbours', pooled by choices.
"""

from __future__ import annotations

from collections.abc import Sequence

from penchant.common.config import RunConfig
from penchant.server.journal import RoundLog
from penchant.server.measured import Measurement, measurements

__all__ = ["ends_with", "is_over"]

_BESIDE = 1  # rounds on either side that a round is judged with


def is_over(config: RunConfig, logs: Sequence[RoundLog]) -> bool:
    """Whether training ends before the next round: the best factors are `federation.stop_after` rounds old.

    logs: of all finished rounds, in order.
    """
    known, patience = _candidates(config, logs), config.federation.stop_after
    return bool(known) and known[-1].after - _best(known) >= patience


def ends_with(config: RunConfig, logs: Sequence[RoundLog]) -> int | None:
    """The round whose factors the closing round is about; None for those of the last one.

    The last round's own were not measured: they stay where those before them were the best so far.
    """
    known = _candidates(config, logs)
    if not known:
        return None
    best = _best(known)
    return None if best == known[-1].after else best


def _candidates(config: RunConfig, logs: Sequence[RoundLog]) -> list[Measurement]:
    """Measured factors that a run may end with: not its start, and none of the warm-up, which are others."""
    federation = config.federation
    if not federation.stop_after or config.adapter.rule.shares_nothing:
        return []
    return [
        one
        for one in measurements(logs)
        if one.accuracy is not None and not one.fitted and one.after > federation.warmup_rounds
    ]


def _best(known: Sequence[Measurement]) -> int:
    """The best round, the first of several that are as good."""
    return -max((_pooled(known, at), -one.after) for at, one in enumerate(known))[1]


def _pooled(known: Sequence[Measurement], at: int) -> float:
    near = known[max(0, at - _BESIDE) : at + _BESIDE + 1]
    weights = [one.log.judged or 1 for one in near]
    right = sum(weight * (one.accuracy or 0.0) for weight, one in zip(weights, near, strict=True))
    return round(right / sum(weights), 9)  # so that equal counts are equal, however many are pooled
