"""Cold start in simulation: people kept out of the federation, who come when it is trained.

Each fits the personal part alone, on frozen shared factors, to 1, 2, 5, … of their training choices
(`client/learning/newcomer.py`), and is judged on their held-out ones like everybody else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from penchant.client.learning.model_cache import PlannedModel
from penchant.client.learning.newcomer import fit_newcomer
from penchant.common.config import EvaluateOn
from penchant.common.data.preferences import Federation, Person, without_ties
from penchant.common.data.splits import seeded
from penchant.common.errors import DataError
from penchant.common.model.factors import Vector

__all__ = ["CHOICES", "ColdStart", "cold_start", "hold_out"]

CHOICES = (0, 1, 2, 5, 10, 20, 50)
"""Numbers of choices after which newcomers are judged, as far as `data.pairs` goes."""

LEFT = 2
"""People that must remain to be trained on."""


@dataclass(frozen=True)
class ColdStart:
    """How newcomers do after a number of choices: over people, the mean accuracy and its standard error."""

    choices: int
    people: int
    mean: float
    se: float | None = None


def hold_out(federation: Federation, count: int, seed: int) -> tuple[Federation, tuple[Person, ...]]:
    """(those who stay, `count` newcomers drawn by `seed`); with a larger count only more are kept out.

    Raises:
        DataError: fewer than two would stay.
    """
    if not count:
        return federation, ()
    most = len(federation.people) - LEFT
    if count > most:
        raise DataError(
            f"{count} people can't be held out of {len(federation.people)}; at least {LEFT} must stay"
        )
    names = sorted((p.name for p in federation.people), key=lambda n: seeded(seed, "newcomer", n).random())
    drawn = set(names[:count])
    stay = tuple(person for person in federation.people if person.name not in drawn)
    newcomers = tuple(person for person in federation.people if person.name in drawn)
    return replace(federation, people=stay), newcomers


def cold_start(
    planned: PlannedModel,
    factors: Vector,
    newcomers: Sequence[Person],
    pairs: int,
    part: EvaluateOn,
    workers: int = 1,
) -> list[ColdStart]:
    """Accuracy by number of choices.

    Who has fewer choices than a row asks for is in it with all they have, so that rows have the same people.
    mean: over newcomers, of the part of their held-out pairs that is ranked right; se: its standard error
    over people, None for one.
    """
    numbers = [number for number in CHOICES if number <= pairs]

    def judge(person: Person) -> list[float]:
        judged = planned.model.prepare(without_ties(person.test if part == "test" else person.validation))
        choices = without_ties(person.train)  # rows count choices
        shared, start = planned.parts(factors)
        trainer = planned.trainer(start)
        fitted = [fit_newcomer(planned, factors, choices[:number]) for number in numbers]
        return [trainer.evaluate(shared, personal, judged).accuracy for personal in fitted]

    with ThreadPoolExecutor(workers) as pool:
        by_person = list(pool.map(judge, newcomers))
    return [_row(number, [row[i] for row in by_person]) for i, number in enumerate(numbers)]


def _row(choices: int, accuracies: Sequence[float]) -> ColdStart:
    count = len(accuracies)
    return ColdStart(
        choices=choices,
        people=count,
        mean=statistics.fmean(accuracies),
        se=statistics.stdev(accuracies) / math.sqrt(count) if count > 1 else None,
    )
