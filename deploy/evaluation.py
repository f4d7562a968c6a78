"""How well models rank pairs that come from elsewhere: all together, person by person, pair by pair."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from penchant.client.learning.merged_model import MergedModel
from penchant.common.data.importers.reading import read_choices
from penchant.common.data.preferences import Preference, comparison_of, without_ties
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.trl_format import AskedColumns, Labelled, column_names
from penchant.common.errors import DataError, UsageError
from penchant.common.model.strengths import weights_of
from penchant.common.wording import counted

__all__ = ["Evaluation", "GroupAccuracy", "Models", "PairScore", "evaluate", "write_scores"]

NOBODY = "(nobody)"
"""The group of pairs that don't say whose they are."""


@dataclass(frozen=True)
class PairScore:
    """What a model made of one pair: the scores of the response that was chosen and of the other one.

    group: whose pair it is, or of what kind; own: scored by the model of that person; weight: what the choice
    counts by its strength, among those of its group.
    """

    group: str
    own: bool
    chosen: float
    rejected: float
    weight: float = 1.0

    @property
    def correct(self) -> bool:
        """Whether the chosen response scores higher; equal scores are not correct."""
        return self.chosen > self.rejected

    @property
    def loss(self) -> float:
        """Minus the log-probability of the choice (Bradley and Terry)."""
        margin = self.chosen - self.rejected
        return math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)


@dataclass(frozen=True)
class GroupAccuracy:
    """The pairs of one person or kind: how many, how many are ranked right, how many have equal scores."""

    group: str
    own: bool
    pairs: int
    correct: int
    tied: int

    @property
    def accuracy(self) -> float:
        """The part of the pairs that is ranked right."""
        return self.correct / self.pairs


@dataclass(frozen=True)
class Evaluation:
    """How well models rank the pairs of a file.

    `pairs` are its choices, in the order in which they were read, and `ties` how many pairs it has beside
    them in which neither response was preferred.
    """

    source: str
    pairs: tuple[PairScore, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    ties: int = 0

    @property
    def accuracy(self) -> float:
        """The part of all pairs that is ranked right."""
        return fmean(pair.correct for pair in self.pairs)

    @property
    def tied(self) -> int:
        """How many pairs have two equal scores, which count as ranked wrong."""
        return sum(pair.chosen == pair.rejected for pair in self.pairs)

    @property
    def log_loss(self) -> float:
        """The mean of the pairs' losses, each counting by its choice's strength where that is known; one that
        knows nothing has ln 2 = .693."""
        return fmean((pair.loss for pair in self.pairs), (pair.weight for pair in self.pairs))

    @cached_property
    def groups(self) -> tuple[GroupAccuracy, ...]:
        """Every person or kind, in the order in which they were met."""
        found: dict[tuple[str, bool], list[PairScore]] = {}
        for pair in self.pairs:
            found.setdefault((pair.group, pair.own), []).append(pair)
        return tuple(
            GroupAccuracy(
                group, own, len(some), sum(p.correct for p in some), sum(p.chosen == p.rejected for p in some)
            )
            for (group, own), some in found.items()
        )

    @property
    def mean_over_groups(self) -> float:
        """The mean of the groups' accuracies, in which everybody counts the same."""
        return fmean(group.accuracy for group in self.groups)

    @property
    def standard_error(self) -> float | None:
        """Of `mean_over_groups`, over groups; None for one group."""
        if len(self.groups) < 2:
            return None
        return stdev(group.accuracy for group in self.groups) / math.sqrt(len(self.groups))

    def to_dict(self) -> dict[str, Any]:
        """All but the single pairs, for JSON."""
        return {
            "source": self.source,
            "pairs": len(self.pairs),
            "accuracy": self.accuracy,
            "mean_over_groups": self.mean_over_groups,
            "standard_error": self.standard_error,
            "log_loss": self.log_loss,
            "tied": self.tied,
            "ties": self.ties,
            "groups": [
                {"group": g.group, "own": g.own, "pairs": g.pairs, "accuracy": g.accuracy, "tied": g.tied}
                for g in self.groups
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Models:
    """Who scores whose pairs.

    everybody: scores the pairs of whom `own` knows nothing.
    own: a person -> their own model, or None.
    trained_on: a person -> what was compared in their training, whichever won.
    """

    everybody: MergedModel
    own: Callable[[str], MergedModel | None] = lambda person: None
    trained_on: Callable[[str], Collection[tuple[str, frozenset[str]]]] = lambda person: ()


def evaluate(
    source: Path,
    models: Models,
    *,
    by: str | None = None,
    columns: Sequence[str] = (),
    bad_rows: BadRows = "refuse",
) -> Evaluation:
    """How well models rank the pairs of a file or folder, in any format that choices are read in.

    Args:
        source: the file or folder; which part of a data set a row says that it is for makes no difference.
        models: who scores whose pairs.
        by: the column that says whose a pair is, or of what kind; person, worker or user_id if None.
        columns: other names of columns, as ``prompt=question``.
        bad_rows: whether rows that can't be used are refused, or skipped and named in the notes.

    Raises:
        DataError: there is nothing to read, all of it are ties, or a row can't be used.
    """
    log = RowLog(bad_rows)
    found = read_choices(source, log, asked=AskedColumns(by or ""), columns=column_names(tuple(columns)))
    report = log.finish(source)
    notes = [*found.notes, *([report.summary()] if report.bad else [])]
    scored: dict[int, PairScore] = {}
    tied: list[PairScore] = []
    seen = 0
    for person, places in _by_person(found.labelled).items():
        pairs = [found.labelled[place].preference for place in places]
        own = None if person is None else models.own(person)
        if person is not None and own is not None:
            seen += _met(without_ties(pairs), models.trained_on(person))
        scores = (own or models.everybody).both_scores(pairs)
        group = NOBODY if person is None else person
        weights = weights_of(pairs)
        each = [1.0] * len(pairs) if weights is None else weights.tolist()
        for place, pair, weight, (chosen, rejected) in zip(places, pairs, each, scores, strict=True):
            score = PairScore(group, own is not None, chosen, rejected, weight)
            if pair.tie:
                tied.append(score)
            else:
                scored[place] = score
    if not scored:
        raise DataError(f"{source} holds ties alone; give choices of one response, which can be ranked right")
    if seen:
        compare = "compares" if seen == 1 else "compare"
        notes.append(f"{counted(seen, 'pair')} {compare} what their person's model was trained on")
    if tied:
        apart, choices_apart = _apart(tied), _apart(scored.values())
        notes.append(
            f"{counted(len(tied), 'tie')} left out of the accuracy: their two scores lie {apart:.2f} apart "
            f"in the mean, those of choices {choices_apart:.2f}"
        )
    return Evaluation(str(source), tuple(scored[place] for place in sorted(scored)), tuple(notes), len(tied))


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """Every pair's scores, one a line: CSV where the file is called so, JSON lines otherwise.

    They hold no text; pairs come in the order in which they were read, and `pair` counts them from 1.

    Raises:
        UsageError: the file is there already, or can't be written.
    """
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                table = csv.DictWriter(file, ["pair", "group", "own", "chosen", "rejected"])
                table.writeheader()
                table.writerows(_rows(evaluation))
            else:
                file.writelines(json.dumps(row) + "\n" for row in _rows(evaluation))
    except FileExistsError:
        raise UsageError(f"{path} is there already; choose another file for the scores") from None
    except OSError as error:
        raise UsageError(f"can't write the scores to {path}: {error.strerror}") from None


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for number, pair in enumerate(evaluation.pairs, 1):
        yield {
            "pair": number,
            "group": pair.group,
            "own": pair.own,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }


def _apart(pairs: Collection[PairScore]) -> float:
    return fmean(abs(pair.chosen - pair.rejected) for pair in pairs)


def _by_person(labelled: Sequence[Labelled]) -> dict[str | None, list[int]]:
    """Person -> the places of their pairs, in order."""
    places: dict[str | None, list[int]] = {}
    for place, row in enumerate(labelled):
        places.setdefault(row.person, []).append(place)
    return places


def _met(pairs: Sequence[Preference], trained: Collection[tuple[str, frozenset[str]]]) -> int:
    return sum(comparison_of(pair) in trained for pair in pairs)
