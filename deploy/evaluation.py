"""How well models rank pairs that come from elsewhere: all together, person by person, pair by pair."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from penchant.client.learning.merged_model import MergedModel
from penchant.common.csv_text import csv_text
from penchant.common.data.importers.reading import read_choices
from penchant.common.data.preferences import Preference, comparison_of
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.trl_format import AskedColumns, Labelled, column_names
from penchant.common.errors import DataError, UsageError
from penchant.common.model.strengths import weights_of
from penchant.common.wording import counted

__all__ = ["Evaluation", "GroupAccuracy", "Models", "PairScore", "evaluate", "write_scores"]

Comparison = tuple[str, frozenset[str]]
_COLUMNS = ("pair", "group", "own", "chosen", "rejected", "row")  # of the table of scores
NOBODY = "(nobody)"
"""The group of pairs that don't say whose they are."""


@dataclass(frozen=True)
class PairScore:
    """What a model made of one pair: the scores of the response that was chosen and of the other one.

    group: whose pair it is, or of what kind; own: scored by its person's own model; weight: what the choice
    counts by its strength, among its person's; number: its place among all comparisons that were read, ties
    included, from 1; row: the row of the file that it comes from, or the rows.
    """

    group: str
    own: bool
    chosen: float
    rejected: float
    weight: float = 1.0
    number: int = 0
    row: str = ""

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
    """The pairs of one person or kind: how many, how many are ranked right, how many have equal scores, and
    how many were scored by their person's own model."""

    group: str
    pairs: int
    correct: int
    tied: int
    own_pairs: int

    @property
    def own(self) -> bool:
        """Whether all pairs were scored by their person's own model."""
        return self.own_pairs == self.pairs

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
        found: dict[str, list[PairScore]] = {}
        for pair in self.pairs:
            found.setdefault(pair.group, []).append(pair)
        return tuple(
            GroupAccuracy(
                group,
                pairs=len(some),
                correct=sum(p.correct for p in some),
                tied=sum(p.chosen == p.rejected for p in some),
                own_pairs=sum(p.own for p in some),
            )
            for group, some in found.items()
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
                {
                    "group": g.group,
                    "own": g.own,
                    "own_pairs": g.own_pairs,
                    "pairs": g.pairs,
                    "accuracy": g.accuracy,
                    "tied": g.tied,
                }
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
    all_trained_on: what was compared in anybody's training; what `everybody` comes from.
    person_column: the column that names the people of `own`, where a file has it; a usual one if empty.
    """

    everybody: MergedModel
    own: Callable[[str], MergedModel | None] = lambda person: None
    trained_on: Callable[[str], Collection[Comparison]] = lambda person: ()
    all_trained_on: Callable[[], Collection[Comparison]] = lambda: ()
    person_column: str = ""


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
        by: the column that says of what kind a pair is, by which pairs are grouped; else they are grouped by
            person. Where nothing else names people (`Models.person_column`, person, worker or user_id, or a
            program's own way), this column says whose a pair is as well.
        columns: other names of columns, as ``prompt=question``.
        bad_rows: whether rows that can't be used are refused, or skipped and named in the notes.

    Raises:
        DataError: there is nothing to read, all of it are ties, or a row can't be used.
    """
    log = RowLog(bad_rows)
    asked = AskedColumns(kind=by or "", familiar=models.person_column)
    found = read_choices(source, log, asked=asked, columns=column_names(tuple(columns)))
    report = log.finish(source)
    notes = [*found.notes, *([report.summary()] if report.bad else [])]
    notes += models.everybody.unread([row.preference for row in found.labelled])
    scored: dict[int, PairScore] = {}
    tied: list[PairScore] = []
    for person, places in _by_person(found.labelled).items():
        own = None if person is None else models.own(person)
        rows = [found.labelled[place] for place in places]
        for place, row, score in zip(places, rows, _scores(rows, own or models.everybody), strict=True):
            group = row.person if by is None else row.kind
            judged = PairScore(
                NOBODY if group is None else group, own is not None, *score, number=place + 1, row=row.where
            )
            if row.preference.tie:
                tied.append(judged)
            else:
                scored[place] = judged
    if not scored:
        raise DataError(f"{source} holds ties alone; give choices of one response, which can be ranked right")
    notes += _trained_on(found.labelled, scored, models)
    if tied:
        apart, choices_apart = _apart(tied), _apart(scored.values())
        notes.append(
            f"{counted(len(tied), 'tie')} left out of the accuracy: their two scores lie {apart:.2f} apart "
            f"in the mean, those of choices {choices_apart:.2f}"
        )
    return Evaluation(str(source), tuple(scored[place] for place in sorted(scored)), tuple(notes), len(tied))


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """Every pair's scores, one a line: CSV where the file is called so, JSON lines otherwise.

    They hold no text. Pairs come in the order in which they were read; `pair` counts them from 1 with the
    ties among them, which are not written, and `row` is where the row stands that a pair comes from, or the
    rows: file and line.

    Raises:
        UsageError: the file is there already, or can't be written.
    """
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                file.write(csv_text([_COLUMNS, *(list(row.values()) for row in _rows(evaluation))]))
            else:
                file.writelines(json.dumps(row) + "\n" for row in _rows(evaluation))
    except FileExistsError:
        raise UsageError(f"{path} is there already; choose another file for the scores") from None
    except OSError as error:
        raise UsageError(f"can't write the scores to {path}: {error.strerror}") from None


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for pair in evaluation.pairs:
        values = pair.number, pair.group, pair.own, pair.chosen, pair.rejected, pair.row
        yield dict(zip(_COLUMNS, values, strict=True))


def _apart(pairs: Collection[PairScore]) -> float:
    return fmean(abs(pair.chosen - pair.rejected) for pair in pairs)


def _by_person(labelled: Sequence[Labelled]) -> dict[str | None, list[int]]:
    """Person -> the places of their pairs, in order."""
    places: dict[str | None, list[int]] = {}
    for place, row in enumerate(labelled):
        places.setdefault(row.person, []).append(place)
    return places


def _scores(rows: Sequence[Labelled], model: MergedModel) -> Iterator[tuple[float, float, float]]:
    """Of each pair of one person: the scores of the two responses, and its weight among the person's."""
    pairs = [row.preference for row in rows]
    weights = weights_of(pairs)
    each = [1.0] * len(pairs) if weights is None else weights.tolist()
    for weight, (chosen, rejected) in zip(each, model.both_scores(pairs), strict=True):
        yield chosen, rejected, weight


def _trained_on(labelled: Sequence[Labelled], scored: Mapping[int, PairScore], models: Models) -> list[str]:
    """What must be said of choices that compare what the model that scored them was trained on."""
    own: dict[str | None, list[Preference]] = {}
    shared: list[Preference] = []
    for place, score in scored.items():
        row = labelled[place]
        (own.setdefault(row.person, []) if score.own else shared).append(row.preference)
    met = sum(_met(pairs, models.trained_on(person)) for person, pairs in own.items() if person is not None)
    both = (
        (met, "their person's model"),
        (_met(shared, models.all_trained_on()) if shared else 0, "the shared model"),
    )
    return [
        f"{counted(seen, 'pair')} {'compares' if seen == 1 else 'compare'} what {whose} was trained on"
        for seen, whose in both
        if seen
    ]


def _met(pairs: Sequence[Preference], trained: Collection[Comparison]) -> int:
    return sum(comparison_of(pair) in trained for pair in pairs)
