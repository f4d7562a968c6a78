"""What local training makes, and what of it a round's sum counts. Without torch, as an agent is."""

from __future__ import annotations

from dataclasses import dataclass, field

from penchant.client.learning.chosen import Blend
from penchant.common.model.factors import Vector
from penchant.common.secagg.update_vector import Contribution

__all__ = ["Counts", "Outcome", "contribution_of"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What pairs say of a model: correct of total, and the sum of their Bradley-Terry losses, each times what
    its strength makes it count; tied are those, none of them correct, whose two scores are equal.

    Ties that the person said are in none of these four, but counted in `ties`; `ties_expected` of them the
    model expects among all pairs.
    """

    correct: int = field(repr=False)
    total: int = field(repr=False)
    loss_sum: float = field(repr=False)
    tied: int = field(default=0, repr=False)
    ties: int = field(default=0, repr=False)
    ties_expected: float = field(default=0.0, repr=False)

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else float("nan")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What local training made.

    shared_update: trained minus received shared vector, float32 [d_shared];
    personal: the new personal vector, float32 [d_personal];
    weight: number of choices; before: counts of the model it started from, on the training pairs;
    steps: optimiser steps taken; judged: counts on the pairs held out, none if it was not judged;
    blend: how much of the personal part's deviation was left, None where there was nothing to choose between.
    """

    shared_update: Vector = field(repr=False)
    personal: Vector = field(repr=False)
    weight: int = field(repr=False)
    before: Counts
    steps: int
    judged: Counts = Counts(0, 0, 0.0)
    blend: Blend | None = None

    @property
    def loss_sum(self) -> float:
        """Sum of the losses of the model it started from."""
        return self.before.loss_sum


def contribution_of(outcome: Outcome, *, in_histogram: bool) -> Contribution:
    """The part of an outcome that goes into the round's sum."""
    return Contribution(
        update=outcome.shared_update,
        weight=outcome.weight,
        loss=outcome.loss_sum,
        correct=outcome.judged.correct,
        total=outcome.judged.total,
        in_histogram=in_histogram,
    )
