"""How sure a personal model is: a Laplace approximation over the personal part, shared factors frozen.

The personal part θ has a Gaussian prior, choices follow Bradley and Terry, and with ties Davidson
(`common/model/davidson.py`, whose curvature W then is), each counting by its strength. Around the most
probable θ the posterior is taken as Gaussian, its precision the prior's plus JᵀWJ (generalised Gauss-Newton),
with J the gradients of the pairs' margins and W = σ(m)σ(-m) (MacKay 1992; Daxberger et al., "Laplace Redux",
NeurIPS 2021; the mode's margins as in Immer et al., AISTATS 2021). With few choices (n) and many numbers (d)
all of it is done in the n × n dual form, as in Gaussian process classification (Rasmussen and Williams 2006,
chapter 3): no d × d matrix is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penchant.common.errors import ConfigError, DeviceError
from penchant.common.model.davidson import CHOICES, PairLikelihood
from penchant.common.model.factors import MergedWeights, Split, Vector
from penchant.common.model.recomputed import blocks_recomputed
from penchant.common.model.reward import Pair, RewardModel, Texts
from penchant.common.shares import HEAD

__all__ = ["Belief", "Laplace", "Posterior", "Prior", "linear_optimum", "probability"]

Array = NDArray[np.float64]
Text = tuple[str, str]  # prompt and response

_CHUNK = 8  # texts whose gradients are taken together at most: memory grows with the square
_OUTER, _INNER, _HALVINGS = 20, 50, 12
_SETTLED, _INNER_SETTLED = 1e-4, 1e-10  # nats


@dataclass(frozen=True, eq=False)
class Prior:
    """What is held of a personal part before any choice: N(mean, diag(variance)).

    Attributes:
        mean: the most probable value of each number, float32 [d].
        variance: the variance of each, one number for all or [d].

    Raises:
        ConfigError: a variance is not positive.
    """

    mean: Vector
    variance: float | Array

    def __post_init__(self) -> None:
        values = np.asarray(self.variance)
        if values.shape not in ((), self.mean.shape):
            raise ConfigError(f"a prior has {self.mean.shape} means and {values.shape} variances")
        if not (values > 0).all() or not np.isfinite(values).all():
            raise ConfigError(f"a prior's variance is {values.min()}; it must be positive")

    def distance(self, personal: Array) -> float:
        """Σ (θ - mean)² / variance of a personal part [d]."""
        return float((np.square(personal - self.mean) / self.variance).sum())


@dataclass(frozen=True)
class Belief:
    """What is believed of some numbers: mean [m] and standard error [m]."""

    mean: Array
    error: Array

    @property
    def probability(self) -> Array:
        """Of margins: how likely the first response is chosen, [m]."""
        return probability(self.mean, self.error)


def probability(margin: Array, error: Array) -> Array:
    """E[σ(m)] for m ~ N(margin, error²), by MacKay's probit approximation: σ(margin / √(1 + π error²/8))."""
    return np.asarray(_sigmoid(margin / np.sqrt(1 + math.pi * error**2 / 8)))


class Posterior:
    """A Gaussian over personal parts. Made by `Laplace`.

    vector: the most probable personal part, float32 [d], or the one it was taken at.
    evidence: the logarithm of the marginal likelihood of the choices, in nats: priors are compared by it.
    """

    def __init__(
        self,
        prior: Prior,
        vector: Vector,
        gradients: Array,
        margins: Array,
        likelihood: PairLikelihood = CHOICES,
    ) -> None:
        """gradients: of the pairs' margins at `vector`, [n, d]; margins [n]; likelihood: of the pairs."""
        self.prior = prior
        self.vector = vector
        self._root = np.sqrt(likelihood.curvature(margins))
        self._gradients = gradients
        inner = np.eye(len(margins)) + self._kernel(gradients) * np.outer(self._root, self._root)
        self._factor = np.linalg.cholesky(inner)
        fit = -likelihood.loss(margins) - prior.distance(vector.astype(np.float64)) / 2
        self.evidence = fit - float(np.log(np.diag(self._factor)).sum())

    def covariance(self, gradients: Array) -> Array:
        """Of m numbers with these gradients [m, d] -> [m, m]."""
        known = self._known(gradients)
        return np.asarray(gradients * self.prior.variance @ gradients.T - known.T @ known)

    def error(self, gradients: Array) -> Array:
        """Standard error of numbers with these gradients, [m, d] -> [m]."""
        before = (np.square(gradients) * self.prior.variance).sum(axis=1)
        variance = before - np.square(self._known(gradients)).sum(axis=0)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))  # rounding may leave a hair below zero

    def _kernel(self, gradients: Array) -> Array:
        """The prior's covariance of the choices' margins [n] with m numbers -> [n, m]."""
        return np.asarray(self._gradients * self.prior.variance @ gradients.T)

    def _known(self, gradients: Array) -> Array:
        """[n, m]: what the choices took off the prior's covariance, as a factor."""
        return np.asarray(np.linalg.solve(self._factor, self._root[:, None] * self._kernel(gradients)))


class Laplace:
    """Fits personal parts, with the shared factors frozen, and says how sure they are.

    Args:
        model, split: as in `LocalTrainer`; the split must have a personal part.
        shared: the shared factors, float32 [d_shared].
        step_bytes: what the gradients of some texts may hold until they are there: of long texts fewer are
            taken together. None for the fixed bound (`common/model/step_memory.py`).

    Raises:
        ConfigError: nothing is personal.
    """

    def __init__(
        self, model: RewardModel, split: Split, shared: Vector, *, step_bytes: int | None = None
    ) -> None:
        if not split.personal.size:
            raise ConfigError(f'share "{split.rule.name}" has no personal part that one could be unsure of')
        self._model = model
        self._split = split
        self._step_bytes = step_bytes
        device = model.device
        specs = split.personal.specs
        names = np.repeat([spec.name for spec in specs], [spec.size for spec in specs])
        of_head, of_b = names == HEAD, np.char.endswith(names, ".lora_B")
        self._in_head = of_head & (not of_head.all())
        # From the score back to the texts: a part has a slope only where those before it are not zero.
        parts = (self._in_head, of_b, ~self._in_head & ~of_b)
        self._parts = [part for part in parts if part.any()]
        self._shared = {name: t.to(device) for name, t in split.shared.unflatten(shared).items()}

    def fit(self, prior: Prior, pairs: Sequence[Pair], near: Vector | None = None) -> Posterior:
        """The most probable personal part under `prior` given some choices, and the posterior around it.

        Without choices it is the prior. Deterministic: Gauss-Newton from `near`, or the prior's mean; each
        step solves the model linearised there to the end, and is halved until it pays. Near the fit to most
        of the choices a third of the steps do.

        Raises:
            DeviceError: values are not finite.
        """
        begin = prior.mean if near is None or not pairs else near
        personal = begin.astype(np.float64)
        margins, gradients = self.margin_gradients(begin, pairs)
        likelihood = PairLikelihood.of(pairs)
        best = _objective(prior, personal, margins, likelihood)

        def objective(tried: Array) -> float:
            return _objective(prior, tried, self._margins(_vector(tried), pairs), likelihood)

        for _ in range(_OUTER):
            target = prior.mean + linear_optimum(prior, personal, margins, gradients, likelihood)
            personal, found = _halved(personal, target, objective, best)
            margins, gradients = self.margin_gradients(_vector(personal), pairs)
            if best - found < _SETTLED:
                break
            best = found
        return Posterior(prior, _vector(personal), gradients, margins, likelihood)

    def prior(self, mean: Vector, spread: float, pairs: Sequence[Pair], *, head: float = 1.0) -> Prior:
        """N(mean, diag(variance)) under which the margins of pairs such as these have the standard deviation
        `spread` from the personal factors, and head · `spread` from a personal head beside them: to first
        order and in the root mean square, whatever the scale of texts, factors and head.

        A head reaches everything that the embedding says, with as many numbers; factors under a common head
        little, and what people differ in: they are to be moved first. A factor's slopes are those behind
        heads (and an A's behind Bs) drawn from this prior: where the mean is near zero they vanish, and the
        factor would be left free. Who chose what in the pairs doesn't matter. Where a part has no slope its
        variance is 1.
        """
        variance = np.ones(len(mean))
        drawn = np.random.default_rng(0).standard_normal(len(mean))
        away = np.zeros(len(mean))
        for part in self._parts:
            places = [mean + away, mean - away] if away.any() else [mean]
            slopes = [self.margin_gradients(_vector(place), pairs)[1][:, part] for place in places if pairs]
            squared = float(np.mean([np.square(own).sum(axis=1).mean() for own in slopes])) if slopes else 0.0
            if squared > 0:
                variance[part] = (spread * (head if part is self._in_head else 1.0)) ** 2 / squared
                away[part] = (np.sqrt(variance) * drawn)[part]
        return Prior(mean, variance)

    def learned_variance(self) -> Array:
        """[d_personal]: each number's variance in the population where the fleet learned it, else NaN."""
        known = self._split.deviations(self._shared)
        parts = [np.full(s.size, known.get(s.name, np.nan) ** 2) for s in self._split.personal.specs]
        return np.concatenate(parts)

    def choose(
        self, mean: Vector, spreads: Sequence[float], pairs: Sequence[Pair], *, head: float = 1.0
    ) -> Posterior:
        """Of the posteriors under priors of these spreads, the one that made the choices likeliest: the
        evidence decides (MacKay 1992), no choice is held out. Errors as `fit`."""
        fitted = [self.fit(self.prior(mean, spread, pairs, head=head), pairs) for spread in spreads]
        return max(fitted, key=lambda posterior: posterior.evidence)

    def around(self, prior: Prior, personal: Vector, pairs: Sequence[Pair]) -> Posterior:
        """The posterior around a personal part that was trained by other means."""
        margins, gradients = self.margin_gradients(personal, pairs)
        return Posterior(prior, personal, gradients, margins, PairLikelihood.of(pairs))

    def margins(self, posterior: Posterior, pairs: Sequence[Pair]) -> Belief:
        """What is believed of the margins of pairs."""
        margins, gradients = self.margin_gradients(posterior.vector, pairs)
        return Belief(margins, posterior.error(gradients))

    def scores(self, posterior: Posterior, texts: Sequence[Text]) -> Belief:
        """What is believed of the rewards of (prompt, response) texts."""
        scores, gradients = self.score_gradients(posterior.vector, texts)
        return Belief(scores, posterior.error(gradients))

    def margin_gradients(self, personal: Vector, pairs: Sequence[Pair]) -> tuple[Array, Array]:
        """Margins [n] at a personal part, and their gradients in it, [n, d]: the same bits whatever was read
        before."""
        places: dict[Text, int] = {}
        chosen = [places.setdefault((p.prompt, p.chosen), len(places)) for p in pairs]
        rejected = [places.setdefault((p.prompt, p.rejected), len(places)) for p in pairs]
        scores, gradients = self._gradients(personal, list(places), alone=True)
        return scores[chosen] - scores[rejected], gradients[chosen] - gradients[rejected]

    def score_gradients(self, personal: Vector, texts: Sequence[Text]) -> tuple[Array, Array]:
        """Rewards [n] at a personal part, and their gradients in it, [n, d]. DeviceError unless finite."""
        return self._gradients(personal, texts, alone=False)

    # --- inner parts ------------------------------------------------------------------------------

    def _gradients(self, personal: Vector, texts: Sequence[Text], *, alone: bool) -> tuple[Array, Array]:
        """As `score_gradients`; alone: of texts as `RewardModel.prepare` reads them."""
        scores, gradients = np.zeros(len(texts)), np.zeros((len(texts), self._split.personal.size))
        leaves = {n: t.to(self._model.device) for n, t in self._split.personal.unflatten(personal).items()}
        for tensor in leaves.values():
            tensor.requires_grad_()
        effective = self._split.effective(self._shared, leaves)
        done = 0
        while done < len(texts):
            chunk = self._taken(texts[done : done + _CHUNK], effective, alone=alone)
            some = slice(done, done + chunk.count)
            scores[some], gradients[some] = self._slopes(chunk, effective, list(leaves.values()))
            done = some.stop
        if not (np.isfinite(scores).all() and np.isfinite(gradients).all()):
            raise DeviceError("rewards are not finite; the personal part is damaged or diverged; train again")
        return scores, gradients

    def _taken(self, texts: Sequence[Text], effective: MergedWeights, *, alone: bool) -> Texts:
        """The first of some texts, as many as the bound allows, at least one."""
        count = len(texts)
        while True:
            taken = self._model.prepare_texts(texts[:count], alone=alone)
            memory = self._model.step_memory
            if count == 1 or memory.slopes_fit(taken.packed, effective, self._step_bytes):
                return taken
            count = (count + 1) // 2

    def _slopes(
        self, texts: Texts, effective: MergedWeights, leaves: Sequence[Tensor]
    ) -> tuple[Array, Array]:
        """Rewards [n] of some texts, and their gradients in the leaves [n, d]. One text alone that is above
        the bound has its blocks computed again on the way back."""
        memory = self._model.step_memory
        single = texts.count == 1 and memory.of(texts.packed, effective) > memory.bound(self._step_bytes)
        with blocks_recomputed(single and memory.can_recompute(effective)):
            values = self._model.scores(texts, effective)
        each = torch.eye(len(values), device=values.device)  # row k asks for the gradients of value k
        if single:  # for what is computed again, one by one
            found = torch.autograd.grad(values, leaves, each[0], retain_graph=True)
        else:
            found = torch.autograd.grad(values, leaves, each, is_grads_batched=True, retain_graph=True)
        rows = torch.cat([slopes.reshape(len(values), -1) for slopes in found], dim=1)
        return values.detach().cpu().numpy(), rows.cpu().numpy()

    def _margins(self, personal: Vector, pairs: Sequence[Pair]) -> Array:
        if not pairs:
            return np.zeros(0)
        prepared = self._model.prepare(pairs)
        leaves = {n: t.to(self._model.device) for n, t in self._split.personal.unflatten(personal).items()}
        margins = self._model.judged(prepared, self._split.effective(self._shared, leaves))
        return np.asarray(margins.double().cpu().numpy())


def linear_optimum(
    prior: Prior,
    personal: Array,
    margins: Array,
    gradients: Array,
    likelihood: PairLikelihood = CHOICES,
) -> Array:
    """θ - mean at the optimum of the model linearised at `personal` (Rasmussen and Williams, algorithm 3.1).

    Newton's step is halved until it pays: where one choice contradicts a confident mean, whole steps go to
    and fro for ever.
    """
    if not len(margins):
        return np.zeros_like(personal)
    kernel = gradients * prior.variance @ gradients.T
    fixed = margins - gradients @ (personal - prior.mean)  # margins at the mean, to first order

    def objective(weights: Array) -> float:
        found = kernel @ weights
        return float(likelihood.loss(fixed + found) + weights @ found / 2)

    weights = np.zeros(len(margins))
    best = objective(weights)
    for _ in range(_INNER):
        reached = fixed + kernel @ weights
        curvature = likelihood.curvature(reached)
        root = np.sqrt(curvature)
        inner = np.eye(len(margins)) + kernel * np.outer(root, root)
        goal = curvature * (kernel @ weights) + likelihood.slope(reached)
        after = goal - root * np.linalg.solve(inner, root * (kernel @ goal))
        weights, found = _halved(weights, after, objective, best)
        if best - found < _INNER_SETTLED:
            break
        best = found
    return np.asarray(prior.variance * (weights @ gradients))


def _halved(
    place: Array, target: Array, objective: Callable[[Array], float], best: float
) -> tuple[Array, float]:
    """The first of the steps 1, 1/2, 1/4, … towards `target` that lowers the objective; or none."""
    for halving in range(_HALVINGS):
        tried = place + (target - place) / 2**halving
        found = objective(tried)
        if found < best:
            return tried, found
    return place, best


def _objective(prior: Prior, personal: Array, margins: Array, likelihood: PairLikelihood) -> float:
    """Minus the logarithm of the posterior density, up to a constant."""
    return likelihood.loss(margins) + prior.distance(personal) / 2


def _vector(personal: Array | Vector) -> Vector:
    return personal.astype(np.float32)


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))
