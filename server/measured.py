"""Whose accuracy a round's accuracy is: that of the shared factors which the round began with.

Devices judge a model before they train it, so what round 7 measures are the factors that round 6 ended with,
and those of the last round are measured by the closing one, after the personal part was fitted once more. A
release, a best round, a curve or a table that says how well a round did goes by this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Protocol, TypeVar

from penchant.server.journal import RoundLog

__all__ = ["APART", "Measurement", "best", "by_round", "measured_after", "measurements"]

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
        """One standard error of the accuracy: by the number of choices; with noise by the number of people,
        and the noise itself. None where that is not known."""
        part, noise = self.log.val_accuracy, self.log.count_noise or 0.0
        count = self.log.judged or self.log.judges
        if part is None or not count:
            return None
        return sqrt(part * (1 - part) / count + noise**2 * (1 + part**2))  # of a sum over another sum

    def is_told_apart(self, other: Measurement) -> bool:
        """Whether the difference of the accuracies is more than chance would make of the choices."""
        if self.accuracy is None or other.accuracy is None or self.error is None or other.error is None:
            return False
        return abs(self.accuracy - other.accuracy) > APART * sqrt(self.error**2 + other.error**2)


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
    known = [one for one in measured if one.accuracy is not None and one.after and not one.fitted]
    return max(known, key=lambda one: (one.accuracy or 0.0, one.after), default=None)
