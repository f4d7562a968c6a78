"""When a run's training ends, and with which round's factors: what devices' held-out choices say.

Every round's sum tells how many held-out choices are ranked right by the factors that the round before ended
with. Training ends `federation.stop_after` rounds after the best round, if the rounds since then are worse by
more than chance often makes them; the closing round follows, on the factors of the best. One cohort's figure
is noisy: a round goes by its own and those of its neighbours, pooled by choices. The best of many is also the
luckiest: of k rounds it leads by sqrt(2 ln k) standard errors or so where all are the same, which is asked of
a fall and one more (in quadrature). Where noise hides how many choices were judged, nothing is told apart,
and every round is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from penchant.common.config import RunConfig
from penchant.server.journal import RoundLog
from penchant.server.measured import Measurement, lead_by_luck, measurements

__all__ = ["ends_with"]

_BESIDE = 3  # rounds on either side that a round is judged with
_Counts = tuple[float, int]  # choices ranked right, choices judged


def ends_with(config: RunConfig, logs: Sequence[RoundLog]) -> int | None:
    """The round whose factors the run ends with, once training is over before its time; None until then, and
    where the last round's stay.

    logs: of all finished rounds, in order.
    """
    known, patience = _candidates(config, logs), config.federation.stop_after
    if not known:
        return None
    best = max(range(len(known)), key=lambda at: (_part(_pooled(known, at)), -at))  # the first of equals
    since = known[best + 1 + _BESIDE :]
    if known[-1].after - known[best].after < patience or not since:
        return None
    return known[best].after if _is_worse(_sum(since), _pooled(known, best), len(known)) else None


def _candidates(config: RunConfig, logs: Sequence[RoundLog]) -> list[Measurement]:
    """Measured factors that a run may end with: not its start, and none of the warm-up, which are others."""
    federation = config.federation
    if not federation.stop_after or config.adapter.rule.shares_nothing:
        return []
    return [
        one
        for one in measurements(logs)
        if one.log.judged and not one.fitted and one.after > federation.warmup_rounds
    ]


def _is_worse(counts: _Counts, best: _Counts, rounds: int) -> bool:
    """Whether choices are ranked right less often than in the best of so many rounds, by more than chance
    often makes of them."""
    both = _part((counts[0] + best[0], counts[1] + best[1]))
    error = sqrt(both * (1 - both) * (1 / counts[1] + 1 / best[1]))  # as if nothing had changed
    return _part(best) - _part(counts) > lead_by_luck(rounds) * error


def _pooled(known: Sequence[Measurement], at: int) -> _Counts:
    return _sum(known[max(0, at - _BESIDE) : at + _BESIDE + 1])


def _sum(known: Sequence[Measurement]) -> _Counts:
    judged = [one.log.judged or 0 for one in known]
    right = sum(count * (one.accuracy or 0.0) for count, one in zip(judged, known, strict=True))
    return right, sum(judged)


def _part(counts: _Counts) -> float:
    return round(counts[0] / counts[1], 9)  # so that equal counts are equal, however many are pooled
