"""Which pair to ask about next: the one whose answer would say most about the person.

Under the Laplace posterior (`client/learning/laplace.py`) the margin of a pair is Gaussian. What an answer
tells about the personal part, in nats, is the doubt about the answer less the doubt that would remain if the
personal part were known (BALD: Houlsby et al. 2011; expected information gain: Lindley 1956). It is large
where the model is unsure of the margin, not where the margin is near zero: a person may really be undecided.
Where the person's answers hold ties, a tie is a third answer (`common/model/davidson.py`).
Earlier choices count by their strength; an answer counts as one of mean strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penchant.client.learning.laplace import Array, Belief, Laplace, Posterior, Prior, linear_optimum
from penchant.common.model.davidson import PairLikelihood, nu_of, tie_probability
from penchant.common.model.reward import Pair
from penchant.common.model.strengths import strength_of

__all__ = ["ActiveLearner", "information"]

# E[g(x)], x ~ N(0, 1), by the trapezoidal rule: fine enough for standard errors to 100.
_NODES = np.linspace(-8.0, 8.0, 2001)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


def information(mean: Array, error: Array, nu: float = 0.0) -> Array:
    """What an answer tells about the personal part, in nats, for margins N(mean, error²), [m] -> [m].

    Between 0, where the margin is known, and log 2, or log 3 with ties. It does not depend on which response
    is called first. nu: Davidson's, of the person.
    """
    margins = mean[:, None] + error[:, None] * _NODES
    if nu:
        return _of_three(margins, nu)
    likely = 1 / (1 + np.exp(-np.clip(margins, -700, 700)))
    remaining = (np.logaddexp(0, margins) - margins * likely) @ _WEIGHTS  # E of the entropy of σ(m)
    expected = likely @ _WEIGHTS
    return np.asarray(np.maximum(_entropy(expected) - remaining, 0.0))  # rounding may leave a hair below zero


def _of_three(margins: Array, nu: float) -> Array:
    """The same where a tie is an answer too, for margins at the nodes [m, nodes]."""
    decided = 1 - tie_probability(margins, nu)
    first = decided / (1 + np.exp(-np.clip(margins, -700, 700)))
    answers = np.stack([first, decided - first, 1 - decided])  # [3, m, nodes]
    remaining = -(answers * np.log(np.clip(answers, 1e-300, 1.0))).sum(axis=0) @ _WEIGHTS
    expected = answers @ _WEIGHTS
    doubt = -(expected * np.log(np.clip(expected, 1e-300, 1.0))).sum(axis=0)
    return np.asarray(np.maximum(doubt - remaining, 0.0))


def _entropy(p: Array) -> Array:
    p = np.clip(p, 1e-300, 1.0)
    q = np.clip(1 - p, 1e-300, 1.0)
    return np.asarray(-(p * np.log(p) + q * np.log(q)))


@dataclass(frozen=True)
class _View:
    """Candidates and earlier choices as seen at one personal part: margins [m] and gradients [m, d]."""

    margins: Array
    gradients: Array
    posterior: Posterior
    known: tuple[Array, Array]


class ActiveLearner:
    """Asks about candidate pairs, one at a time, the most informative first.

    Between two questions the model is taken as linear in the personal part. It is fitted anew, and the
    candidates' gradients taken there, after 1, 2, 4, 8, … answers: an answer costs milliseconds.

    Args:
        laplace, prior: as for `Laplace.fit`.
        candidates: pairs to choose from; who is `chosen` in them says nothing until it is answered.
        known: choices that were made before.
    """

    def __init__(
        self, laplace: Laplace, prior: Prior, candidates: Sequence[Pair], known: Sequence[Pair] = ()
    ) -> None:
        self._laplace = laplace
        self._prior = prior
        self._candidates = list(candidates)
        self._known = list(known)
        self.answers: list[tuple[int, bool | None]] = []  # None: a tie
        self._view = self._look()

    @property
    def open(self) -> list[int]:
        """Candidates that were not asked about, in order."""
        asked = {index for index, _ in self.answers}
        return [index for index in range(len(self._candidates)) if index not in asked]

    def informative(self) -> Array:
        """What an answer about each candidate would tell, in nats, [m]."""
        now = self.beliefs()
        return information(now.mean, now.error, nu_of([*self._known, *self.choices()]))

    def beliefs(self) -> Belief:
        """What is believed of each candidate's margin after all answers, [m]."""
        margins, posterior = self._now()
        return Belief(margins, posterior.error(self._view.gradients))

    def margins(self) -> Array:
        """The posterior mean of each candidate's margin, [m]."""
        return self._now()[0]

    def question(self, among: Sequence[int] | None = None) -> int | None:
        """The open candidate that is most informative, by index; None when all are answered.

        Of several that are equally informative it is the first.

        Args:
            among: indices of the candidates to choose from; None for all that are open.
        """
        left = self.open if among is None else [index for index in self.open if index in set(among)]
        return max(left, key=self.informative().__getitem__) if left else None

    def answer(self, index: int, first: bool | None) -> None:
        """Note whether the `chosen` of candidate `index` was really preferred; None: neither, a tie.

        Raises:
            ValueError: it was answered before, or there is no such candidate.
        """
        if index not in self.open:
            raise ValueError(f"candidate {index} is not open")
        self.answers.append((index, first))
        if _is_power_of_two(len(self.answers)):
            self._view = self._look()

    def undo(self) -> None:
        """Forget the last answer; its candidate is open again."""
        self.answers.pop()

    def choices(self) -> list[Pair]:
        """The answered pairs, the preferred response chosen or as ties, in the order of the answers."""
        return [_answered(self._candidates[index], first) for index, first in self.answers]

    def posterior(self) -> Posterior:
        """What is known after all answers, fitted to the end."""
        return self._laplace.fit(self._prior, [*self._known, *self.choices()])

    # --- inner parts ------------------------------------------------------------------------------

    def _look(self) -> _View:
        posterior = self.posterior()
        seen = self._laplace.margin_gradients(posterior.vector, self._candidates)
        known = self._laplace.margin_gradients(posterior.vector, self._known)
        return _View(*seen, posterior, known)

    def _now(self) -> tuple[Array, Posterior]:
        """Margins of the candidates and the posterior after all answers, in the model linear at the view."""
        view = self._view
        rows = [index for index, _ in self.answers]
        sides = np.array([-1.0 if first is False else 1.0 for _, first in self.answers])
        likelihood = PairLikelihood.of([*self._known, *self.choices()])
        before, slopes = view.known
        own = np.concatenate([slopes, view.gradients[rows] * sides[:, None]])
        at = view.posterior.vector.astype(np.float64)
        seen = np.concatenate([before, view.margins[rows] * sides])
        personal = self._prior.mean + linear_optimum(self._prior, at, seen, own, likelihood)
        reached = seen + own @ (personal - at)
        posterior = Posterior(self._prior, personal.astype(np.float32), own, reached, likelihood)
        return view.margins + view.gradients @ (personal - at), posterior


@dataclass(frozen=True)
class _Answer:
    prompt: str
    chosen: str
    rejected: str
    tie: str = ""


def _answered(pair: Pair, first: bool | None) -> Pair:
    if first is None:
        return _Answer(pair.prompt, pair.chosen, pair.rejected, "equal")
    if first and strength_of(pair) is None:
        return pair
    better, worse = (pair.chosen, pair.rejected) if first else (pair.rejected, pair.chosen)
    return _Answer(pair.prompt, better, worse)  # how strongly was not asked


def _is_power_of_two(number: int) -> bool:
    return math.log2(number).is_integer()
