"""Whose accuracy a round's accuracy is: that of the shared factors which the round began with.

Devices judge a model before they train it, so what round 7 measures are the factors that round 6 ended with,
and those of the last round are measured by the closing one, after the personal part was fitted once more. A
release, a best round, a curve or a table that says how well a round did goes by this.

How sure it is goes by people, not by choices: those of one person are alike, by taste or because they share
texts, so a thousand choices of ten people say little more than ten numbers do. How many choices each of them
judged is in no sum; an error is that of people who judged as many each, and too small where a few judged most
of them. Rounds are compared as if others had judged each: where the same people did, what they differ by
cancels, and less of a difference would do; nothing that the server has says by how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import log, sqrt
from typing import Protocol, TypeVar

from penchant.server.journal import RoundLog

__all__ = [
    "APART",
    "Measurement",
    "best",
    "by_round",
    "lead_by_luck",
    "maybe_as_good",
    "measured_after",
    "measurements",
]

APART = 2.0
"""Standard errors of a difference beyond which it is more than chance."""


@dataclass(frozen=True)
class Measurement:
    """How well the shared factors did that one round ended with.

    after: that round; 0: those that the run began with. log: of the round whose devices measured them.
    """

    after: int
    log: RoundLog

    @property
    def accuracy(self) -> float | None:
        """The part of held-out choices that was ranked right; None where nobody holds any back."""
        return self.log.val_accuracy

    @property
    def train_loss(self) -> float | None:
        """The mean loss of a choice to learn from."""
        return self.log.train_loss

    @property
    def fitted(self) -> bool:
        """Whether everybody had fitted the personal part once more: no other round is measured so."""
        return self.log.phase == "close"

    @property
    def error(self) -> float | None:
        """One standard error of the accuracy, by people: by what their own accuracies differ by where the sum
        tells (20 people or more), else at its most, as if a person's choices were all right or all wrong.
        With noise, that by a noised number of people, and the noise itself. None where neither is known."""
        part = self.log.val_accuracy
        if part is None:
            return None
        if self.log.judged:
            people = max(min(self.log.survivors, self.log.judged), 1)
            return sqrt(_between_people(part, people, tuple(self.log.histogram or ())))
        if not self.log.judges:
            return None
        noise = self.log.count_noise or 0.0
        return sqrt(part * (1 - part) / self.log.judges + noise**2 * (1 + part**2))  # of one sum over another

    def is_told_apart(self, other: Measurement, errors: float = APART) -> bool:
        """Whether the difference of the accuracies is more than so many standard errors of it."""
        ours, theirs = self.error, other.error
        if self.accuracy is None or other.accuracy is None or ours is None or theirs is None:
            return False
        return abs(self.accuracy - other.accuracy) > errors * sqrt(ours**2 + theirs**2)


def lead_by_luck(count: int) -> float:
    """Standard errors of a difference by which the best of `count` alike may well lead another: the largest
    of them leads their mean by sqrt(2 ln count) or so, and one more is asked for (in quadrature)."""
    return sqrt(2 + 2 * log(count))


@lru_cache(maxsize=1 << 15)  # pages ask for it of each round of a run, again and again
def _between_people(part: float, most: int, tenths: tuple[int, ...]) -> float:
    """The variance of the accuracy `part` over people who judged as many choices each: those of the tenths of
    accuracy, or where these tell nothing, `most` people who ranked all right or all wrong.

    Where in a tenth somebody is, nobody knows: anywhere alike, and in the first and the last at its end, as
    people of few choices are.
    """
    people = sum(tenths)
    if people < 2:
        return part * (1 - part) / most
    last, width = len(tenths) - 1, 1 / len(tenths)
    places = [0.0, *((tenth + 0.5) * width for tenth in range(1, last)), 1.0]
    apart = sum(n * ((place - part) ** 2 + width**2 / 12) for place, n in zip(places, tenths, strict=True))
    return apart / (people * (people - 1))


class _Round(Protocol):
    """A finished round, and which round's factors its devices measured; None in records that don't say."""

    @property
    def round(self) -> int: ...

    @property
    def measured_on(self) -> int | None: ...


R = TypeVar("R", bound=_Round)


def measured_after(rounds: Iterable[R]) -> Iterator[tuple[int, R]]:
    """(the round whose factors were measured, the round that measured them), of finished rounds in order: the
    one before it, where its record doesn't say."""
    before = 0
    for one in rounds:
        yield before if one.measured_on is None else one.measured_on, one
        before = one.round


def measurements(logs: Iterable[RoundLog]) -> list[Measurement]:
    """What finished rounds measured, in their order. logs: of all finished rounds, in order."""
    return [Measurement(after, log) for after, log in measured_after(logs)]


def by_round(logs: Iterable[RoundLog]) -> dict[int, Measurement]:
    """round -> how well the factors did that it ended with; without rounds that nobody measured yet."""
    found = measurements(logs)
    measured = {one.after: one for one in found}
    for one in found:
        if one.fitted:  # it moves no factors: its own are those that it measured
            measured[one.log.round] = one
    return measured


def best(measured: Iterable[Measurement]) -> Measurement | None:
    """The most accurate factors of a finished round; the final fit would make a comparison unfair."""
    return max(_comparable(measured), key=lambda one: (one.accuracy or 0.0, one.after), default=None)


def maybe_as_good(measured: Iterable[Measurement]) -> list[Measurement]:
    """The factors that may be as good as the best or better: their accuracies are not lower by more than
    people and the luck of the best of so many make often, or it is not known how sure they are."""
    known = _comparable(measured)
    first = best(known)
    if first is None:
        return []
    errors = max(APART, lead_by_luck(len(known)))
    return [one for one in known if one.after != first.after and not one.is_told_apart(first, errors)]


def _comparable(measured: Iterable[Measurement]) -> list[Measurement]:
    return [one for one in measured if one.accuracy is not None and one.after and not one.fitted]
