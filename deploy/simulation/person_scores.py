"""Everybody's accuracy in a simulation, and how it spreads: for whom the mean says what is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.common.csv_text import csv_text
from penchant.deploy.json_tables import plain_value

__all__ = ["FEW", "PEOPLE_FILE", "AccuracySpread", "ClientScore", "DataThird", "spread_of", "table_of"]

PEOPLE_FILE = "people.csv"
"""What `table_of` makes is called in a run, and beside models that were written."""

FEW = 10
"""Of fewer test pairs than this, one person's accuracy is mostly chance."""
DRAWS = 2000
TENTH = 0.1


@dataclass(frozen=True)
class ClientScore:
    """How one person's model does on the pairs that were held out; exists in a simulation only.

    n_train: how many pairs the person trained on; None in results of earlier versions.
    right: a digit for each test pair, in order, 1 where it is ranked right; None in those as well.
    """

    client: str
    n_test: int | None = None
    accuracy: float | None = None
    n_train: int | None = None
    right: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DataThird:
    """People with about as many training pairs: from `least` to `most` of them."""

    least: int
    most: int
    people: int
    accuracy: float


@dataclass(frozen=True)
class AccuracySpread:
    """How accuracy spreads over the people of a run.

    Attributes:
        over_people: the mean over people, in which everybody counts the same.
        interval: its 95% interval, by drawing people anew with replacement (percentile bootstrap; Efron and
            Tibshirani 1993, chapter 13); None of one person, who says nothing of others.
        over_pairs: the part of all test pairs that is ranked right, in which everybody counts by their pairs.
        pairs_interval: its 95% interval, from the same draws: a person's pairs come together or not at all;
            None of one person.
        worst_tenth: the mean over the tenth of the people who are served worst, at least one.
        well_tested: the mean over people with `FEW` test pairs or more, and how many they are; None where
            these are all or nobody.
        groups: thirds of the people by how many pairs they trained on; empty where everybody has as many.
    """

    over_people: float
    interval: tuple[float, float] | None
    over_pairs: float
    pairs_interval: tuple[float, float] | None
    worst_tenth: float
    well_tested: tuple[float, int] | None
    groups: tuple[DataThird, ...]

    def to_dict(self) -> dict[str, Any]:
        """The table of result.json."""
        table: dict[str, Any] = plain_value(self)
        if self.well_tested is not None:
            table["well_tested"] = dict(zip(("accuracy", "people"), self.well_tested, strict=True))
        return table


def spread_of(scores: Sequence[ClientScore]) -> AccuracySpread | None:
    """The spread over those people whose accuracy is known; None when that is nobody."""
    known = [score for score in scores if score.accuracy is not None]
    if not known:
        return None
    accuracy = np.array([score.accuracy for score in known], dtype=np.float64)
    tested = np.array([score.n_test or 0 for score in known], dtype=np.float64)
    interval, pairs_interval = _intervals(accuracy, tested)
    well = tested >= FEW
    worst = np.sort(accuracy)[: max(1, round(TENTH * len(known)))]
    return AccuracySpread(
        over_people=float(accuracy.mean()),
        interval=interval,
        over_pairs=_over_pairs(accuracy, tested),
        pairs_interval=pairs_interval,
        worst_tenth=float(worst.mean()),
        well_tested=(float(accuracy[well].mean()), int(well.sum())) if 0 < well.sum() < len(known) else None,
        groups=_groups(known),
    )


def table_of(scores: Sequence[ClientScore], folders: Sequence[str] | None = None) -> bytes:
    """Everybody's figures as CSV that no spreadsheet computes: person, training and test pairs, accuracy;
    before them the folder of each person's model, where there are any."""
    rows: list[tuple[object, ...]] = [("person", "train_pairs", "test_pairs", "accuracy")]
    rows += [(score.client, score.n_train, score.n_test, score.accuracy) for score in scores]
    if folders is not None:
        before = ("folder", *folders)
        rows = [(folder, *row) for folder, row in zip(before, rows, strict=True)]
    return csv_text(rows).encode()


def _over_pairs(accuracy: NDArray[np.float64], tested: NDArray[np.float64]) -> float:
    total = tested.sum()
    return float((accuracy * tested).sum() / total) if total else float(accuracy.mean())


def _intervals(
    accuracy: NDArray[np.float64], tested: NDArray[np.float64]
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Of the mean over people, and of that over pairs; None where there are no people to draw among."""
    people = len(accuracy)
    if people < 2:
        return None, None
    generator = np.random.default_rng(0)
    drawn = np.empty((DRAWS, 2))  # mean over people, mean over pairs
    for draw in range(DRAWS):
        some = generator.integers(people, size=people)
        drawn[draw] = accuracy[some].mean(), _over_pairs(accuracy[some], tested[some])
    return _interval(drawn[:, 0]), _interval(drawn[:, 1])


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _groups(known: Sequence[ClientScore]) -> tuple[DataThird, ...]:
    """Thirds by training pairs. People with as many are in one group, so a third may be missing."""
    counts = [score.n_train for score in known if score.n_train is not None]
    if len(counts) < len(known) or len(set(counts)) < 2:
        return ()
    edges = [float(edge) for edge in np.quantile(counts, [1 / 3, 2 / 3])]
    found: list[DataThird] = []
    for number in range(3):
        some = [s for s, count in zip(known, counts, strict=True) if _third(count, edges) == number]
        if some:
            own = [count for count in counts if _third(count, edges) == number]
            mean = float(np.mean([score.accuracy for score in some if score.accuracy is not None]))
            found.append(DataThird(min(own), max(own), len(some), mean))
    return tuple(found)


def _third(count: int, edges: Sequence[float]) -> int:
    return sum(count > edge for edge in edges)
