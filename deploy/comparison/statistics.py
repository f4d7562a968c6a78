"""Paired differences between methods over seeds, with intervals."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from penchant.deploy.comparison.table import ComparisonRow

# Two-sided 95 % quantiles of Student's t for 1 … 30 degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def student_t95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t, to three decimals: a table up to 30 degrees of freedom, and
    beyond it the expansion about the normal quantile (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum([z, *(term / float(freedom**power) for power, term in enumerate(terms, start=1))])


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another, over the same seeds. All in parts of 1."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``unclear`` when the 95 % interval holds 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"


def difference(one: ComparisonRow, other: ComparisonRow) -> Difference | None:
    """The paired difference of two rows: its mean and 95 % interval by Student's t over common seeds.

    None when fewer than two seeds are common to both, or the rows have no ``accuracies``.
    """
    left, right = by_seed(one), by_seed(other)
    gaps = [left[seed] - right[seed] for seed in left if seed in right]
    if len(gaps) < 2:
        return None
    mean = statistics.fmean(gaps)
    freedom = len(gaps) - 1
    quantile = student_t95(freedom)
    half = quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Difference(mean, mean - half, mean + half, len(gaps))


def by_seed(row: ComparisonRow) -> dict[int, float]:
    """Seed -> accuracy; empty where a row does not say both."""
    if not row.seeds or not row.accuracies:
        return {}
    return dict(zip(row.seeds, row.accuracies, strict=True))
