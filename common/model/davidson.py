"""Choices and ties between two responses: Davidson's model, of which Bradley and Terry's is the case ν = 0.

With m the margin, the score of one response less that of the other, and ν ≥ 0 (Davidson, *On Extending the
Bradley-Terry Model to Accommodate Ties in Paired Comparison Experiments*, JASA 65, 1970):

    P(first) = e^(m/2) / Z,    P(second) = e^(-m/2) / Z,    P(tie) = ν / Z,    Z = e^(m/2) + e^(-m/2) + ν

A tie is likeliest where the scores are equal, and draws them together. Among choices alone the odds stay e^m
whatever ν is, so that scores mean the same with ties and without. ν is each person's own, from the ties among
their training pairs (`nu_of`): it is 0 without ties, everything then is Bradley and Terry's to the bit, and
nothing about ties has to be known to anybody else.

How strong a choice was (`common/model/strengths.py`) multiplies its log-likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from penchant.common.model.strengths import mean_strength, weights_of

__all__ = [
    "CHOICES",
    "PLAIN",
    "Habits",
    "PairLikelihood",
    "bradley_terry",
    "davidson",
    "habits_of",
    "is_tie",
    "nu_of",
    "tie_probability",
]

Array = NDArray[np.float64]


def is_tie(pair: object) -> bool:
    """Whether neither response of a pair was preferred, as its `tie` says; one that has none is a choice."""
    return bool(getattr(pair, "tie", ""))


def nu_of(pairs: Sequence[object]) -> float:
    """ν of somebody who said this of pairs: 2 ties / (choices + 1), 0 without ties.

    Equal scores then tie as often as these pairs did; the one choice more keeps it finite.
    """
    ties = sum(map(is_tie, pairs))
    return 2 * ties / (len(pairs) - ties + 1)


@dataclass(frozen=True)
class Habits:
    """How a person answers, which all of their pairs say and a few of them don't.

    Attributes:
        nu: how often with a tie, as of `nu_of`.
        strength: the strength of their average choice, 0 where none is known (`mean_strength`).
    """

    nu: float = 0.0
    strength: float = 0.0


PLAIN = Habits()
"""Of somebody who makes choices, and says no more of them."""


def habits_of(pairs: Sequence[object]) -> Habits:
    """Those of somebody who said this of pairs."""
    return Habits(nu_of(pairs), mean_strength(pairs))


def bradley_terry(margins: Tensor) -> Tensor:
    """-log σ(margin) of each pair (Bradley and Terry 1952): the negative log-likelihood of its choice."""
    return F.softplus(-margins)


def davidson(margins: Tensor, ties: Tensor | None, nu: float | Tensor) -> Tensor:
    """The negative log-likelihood of what was said of each pair, [pairs].

    ties: [pairs] bool, where neither response was preferred; None: nowhere, `bradley_terry` then. nu: above 0
    where there are any; one number, or each pair's own, [pairs].
    """
    if ties is None:
        return bradley_terry(margins)
    log_nu = (
        nu.log().to(margins.dtype) if isinstance(nu, Tensor) else torch.full_like(margins, float(np.log(nu)))
    )
    whole = torch.logsumexp(torch.stack([margins / 2, -margins / 2, log_nu]), dim=0)
    return whole - torch.where(ties, log_nu, margins / 2)


def tie_probability(margins: Array, nu: float) -> Array:
    """P(tie) of pairs with these margins."""
    small = np.exp(-np.abs(margins) / 2)  # Z = (1 + small² + ν small) / small
    return np.asarray(nu * small / (1 + small**2 + nu * small))


class PairLikelihood:
    """The log-likelihood of what was said of n pairs, as a function of their margins [n].

    For choices alone, of no known strength, it computes what Bradley and Terry's model does, to the bit.
    """

    def __init__(self, ties: Sequence[bool], nu: float, weights: Array | None = None) -> None:
        """ties: of each pair whether it is one; nu: as of `nu_of`, above 0 if there are ties; weights: what
        each pair counts (`weights_of`)."""
        self.nu = nu
        self._ties = np.asarray(ties, dtype=bool)
        self._weights = weights

    @classmethod
    def of(cls, pairs: Sequence[object], habits: Habits | None = None) -> PairLikelihood:
        """That of some pairs; habits: of all that the person said, by default of these."""
        habits = habits_of(pairs) if habits is None else habits
        return cls([is_tie(pair) for pair in pairs], habits.nu, weights_of(pairs, habits.strength))

    def loss(self, margins: Array) -> float:
        """Minus the log-likelihood of all pairs."""
        return float(self._weighed(self._losses(margins)).sum())

    def slope(self, margins: Array) -> Array:
        """The derivative of each pair's log-likelihood in its margin, [n]."""
        return self._weighed(self._slope(margins))

    def curvature(self, margins: Array) -> Array:
        """Minus the second derivative of each pair's log-likelihood in its margin, [n]; of a choice of mean
        strength and a tie it is the same, and never below 0."""
        return self._weighed(self._curvature(margins))

    def _weighed(self, each: Array) -> Array:
        return each if self._weights is None else each * self._weights

    def _losses(self, margins: Array) -> Array:
        if not self.nu:
            return np.asarray(np.logaddexp(0, -margins))
        half = np.abs(margins) / 2
        whole = half + np.log1p(np.exp(-2 * half) + self.nu * np.exp(-half))
        return np.asarray(whole - np.where(self._ties, np.log(self.nu), margins / 2))

    def _slope(self, margins: Array) -> Array:
        if not self.nu:
            return np.asarray(1 - _sigmoid(margins))
        small = np.exp(-np.abs(margins) / 2)
        pull = np.sign(margins) * (1 - small**2) / (1 + small**2 + self.nu * small) / 2
        return np.asarray(np.where(self._ties, -pull, 0.5 - pull))

    def _curvature(self, margins: Array) -> Array:
        if not self.nu:
            likely = _sigmoid(margins)
            return np.asarray(likely * (1 - likely))
        small = np.exp(-np.abs(margins) / 2)
        return np.asarray(
            small * (4 * small + self.nu * (1 + small**2)) / (1 + small**2 + self.nu * small) ** 2 / 4
        )


CHOICES = PairLikelihood((), 0.0)
"""That of any number of choices, with no tie among them."""


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))
