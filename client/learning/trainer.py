"""Local training: a person's pairs, the shared factors as received and the personal ones, one call a round.

Everything a call needs comes as an argument and everything it makes goes back: nothing is kept between
calls, the reward model is only read. Two threads may train two people with one model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from penchant.client.learning.outcome import Counts, Outcome
from penchant.common.config import TrainingConfig
from penchant.common.errors import ConfigError, DataError, DeviceError
from penchant.common.model.davidson import bradley_terry, davidson, tie_probability
from penchant.common.model.factors import MergedWeights, Split, Vector
from penchant.common.model.recomputed import blocks_recomputed
from penchant.common.model.reward import PreparedPairs, RewardModel, Texts
from penchant.common.model.step_memory import Portion
from penchant.common.shares import HEADS, Fitting

Leaves = dict[str, Tensor]
Rates = dict[str, float]


@dataclass(frozen=True, slots=True)
class _Fit:
    """Steps taken, and the margins before the first of them if that saw all pairs."""

    steps: int
    first: Tensor | None = field(repr=False)


class LocalTrainer:
    """Trains, fits and evaluates one method (a `Split`) on one reward model.

    Args:
        model: shared by all people of the process.
        split: which tensors are shared and which personal.
        training: rates, epochs, the order of updates, the L2 penalty.
        start: the personal vector that `training.l2_to_start` pulls towards (the common start).
        step_bytes: what a step may hold until its gradients are there: a batch that would hold more is
            computed in portions; None for the fixed bound (`common/model/step_memory.py`).
    """

    def __init__(
        self,
        model: RewardModel,
        split: Split,
        training: TrainingConfig,
        start: Vector | None = None,
        *,
        step_bytes: int | None = None,
    ) -> None:
        if training.l2_to_start and start is None:
            raise ConfigError(
                "training.l2_to_start needs the common start of the personal part; give it, or set that to 0"
            )
        if start is not None:
            split.personal.check(start)
        self._model = model
        self._split = split
        self._training = training
        self._start = start
        self._step_bytes = step_bytes

    @property
    def split(self) -> Split:
        """Which tensors are shared and which personal."""
        return self._split

    def train(self, shared: Vector, personal: Vector, prepared: PreparedPairs, seed: int) -> Outcome:
        """One round's local training. The same inputs and seed give the same bits on the same machine.

        Where the rule fits anew (`Fitting.ANEW`), `personal` is the common start: one half of the pairs fits
        the personal part, and the other half trains what is shared at where that led (first-order MAML: Finn,
        Abbeel and Levine, ICML 2017; in rounds: Fallah, Mokhtari and Ozdaglar, NeurIPS 2020).

        Raises:
            DataError: there are no pairs.
            DeviceError: training ended in values that are not finite.
        """
        settings = self._training
        leaves = self._leaves(shared, personal)
        personal_rates, shared_rates = rates_of(self._split, settings)
        then = shared_rates if settings.update_order == "alternating" else personal_rates | shared_rates
        first, second, epochs = prepared, prepared, settings.alone_epochs
        if self._split.rule.fitting is Fitting.ANEW:
            first, second = halves(self._model, prepared, seed)
            then, epochs = shared_rates, settings.alone_epochs or settings.local_epochs
        alone = self._fit(leaves, personal_rates, epochs, first, seed)
        both = self._fit(leaves, then, settings.local_epochs, second, seed + 1)
        whole = alone if alone.steps else both
        before = self._before(whole if first is second else _Fit(0, None), shared, personal, prepared)
        new_shared, new_personal = self._vectors(leaves)
        steps = alone.steps + both.steps
        return Outcome(new_shared - shared, new_personal, prepared.choices, before, steps)

    def refit(self, shared: Vector, personal: Vector, prepared: PreparedPairs, seed: int) -> Outcome:
        """A closing round's training: `fit_personal` as configured, and nothing shared. Errors as `train`."""
        leaves, fit = self._fitted(shared, personal, prepared, seed)
        before = self._before(fit, shared, personal, prepared)
        none = np.zeros(0, dtype=np.float32)
        return Outcome(none, self._vectors(leaves)[1], prepared.choices, before, fit.steps)

    def fit_personal(
        self,
        shared: Vector,
        personal: Vector,
        prepared: PreparedPairs,
        seed: int,
        *,
        epochs: int | None = None,
        lr: float | None = None,
    ) -> Vector:
        """Fit the personal part alone on frozen shared factors (the final fit, and a new person's start).

        `epochs` and `lr` default to the configuration's final_fit_epochs and final_fit_lr; a personal head
        takes the same rate. Errors as `train`.
        """
        leaves, _ = self._fitted(shared, personal, prepared, seed, epochs=epochs, lr=lr)
        return self._vectors(leaves)[1]

    def evaluate(
        self, shared: Vector, personal: Vector, prepared: PreparedPairs, nu: float | None = None
    ) -> Counts:
        """Count the choices whose chosen response scores higher (equal scores are not correct), and sum the
        losses; ties are counted apart.

        nu: with which ties are expected, as of `nu_of`; by default that of these pairs.
        """
        margins = self._model.judged(prepared, self._effective(self._leaves(shared, personal)))
        return counts_of(margins, prepared, nu)

    def margins(self, shared: Vector, personal: Vector, prepared: PreparedPairs) -> Vector:
        """Rewards of the chosen less those of the rejected responses, float32 [pairs]."""
        found = self._model.judged(prepared, self._effective(self._leaves(shared, personal)))
        return np.asarray(found.cpu().numpy(), dtype=np.float32)

    def gain_of_deviating(self, shared: Vector, personal: Vector, prepared: PreparedPairs) -> float:
        """The derivative of the pairs' log-likelihood, in nats, in the logarithm of the scale of the personal
        deviations (`ShareRule.spread`), where they are: above 0 if they ought to be larger."""
        leaves = self._leaves(shared, personal)
        log_scale = torch.zeros((), device=self._model.device, requires_grad=True)

        def scaled() -> Leaves:
            grown = {name: leaves[name] * log_scale.exp() for name in self._split.deviations(leaves)}
            return leaves | grown

        gain = 0.0
        for some, again in self._parts(prepared, self._portions(prepared, scaled())):
            with blocks_recomputed(again):
                margins = self._model.margins(some, self._effective(scaled()))
            loss = _weighed(davidson(margins, some.ties, some.nu), some.weights).sum()
            gain -= float(torch.autograd.grad(loss, log_scale)[0])
        return gain

    def at_once(self, shared: Vector, personal: Vector, prepared: PreparedPairs) -> bool:
        """Whether a step on all of the pairs, or on as many as a batch has, is within the bound, and what is
        frozen of them lies in one piece."""
        if len(self._model.pieces(prepared)) > 1:
            return False
        leaves = self._leaves(shared, personal)
        for rates in rates_of(self._split, self._training):
            for name, rate in rates.items():
                leaves[name].requires_grad_(rate > 0)
        memory, size = self._model.step_memory, self._training.batch_size
        effective, bound = self._effective(leaves), memory.bound(self._step_bytes)
        if 0 < size < len(prepared):
            return memory.of_batches(prepared, effective, size) <= bound
        return memory.of(prepared.texts.packed, effective) <= bound

    def score(self, shared: Vector, personal: Vector, texts: Texts) -> Vector:
        """Rewards [n], float32, of prepared texts."""
        with torch.no_grad():
            scores = self._model.scores(texts, self._effective(self._leaves(shared, personal)))
        return np.asarray(scores.cpu().numpy(), dtype=np.float32)

    def rewards(self, shared: Vector, personal: Vector, texts: Sequence[tuple[str, str]]) -> Vector:
        """Rewards [n], float32, of (prompt, response) texts, however many."""
        found = self._model.rewards(texts, self._effective(self._leaves(shared, personal)))
        return np.asarray(found.cpu().numpy(), dtype=np.float32)

    # --- inner parts ------------------------------------------------------------------------------

    def _fitted(
        self,
        shared: Vector,
        personal: Vector,
        prepared: PreparedPairs,
        seed: int,
        *,
        epochs: int | None = None,
        lr: float | None = None,
    ) -> tuple[Leaves, _Fit]:
        """(leaves whose personal part is fitted, what that took), as `fit_personal` documents."""
        epochs = self._training.final_fit_epochs if epochs is None else epochs
        rate = self._training.final_fit_lr if lr is None else lr
        leaves = self._leaves(shared, personal)
        rates = dict.fromkeys(self._split.personal.names, rate)
        return leaves, self._fit(leaves, rates, epochs, prepared, seed)

    def _before(self, fit: _Fit, shared: Vector, personal: Vector, prepared: PreparedPairs) -> Counts:
        """Counts of the model that a fit began with: its first step knows them where it saw all pairs."""
        if fit.first is None:
            return self.evaluate(shared, personal, prepared)
        return counts_of(fit.first, prepared)

    def _leaves(self, shared: Vector, personal: Vector) -> Leaves:
        """Shared and personal tensors by name, on the model's device."""
        split = self._split
        tensors = split.shared.unflatten(shared) | split.personal.unflatten(personal)
        return {name: tensor.to(self._model.device) for name, tensor in tensors.items()}

    def _effective(self, leaves: Leaves) -> MergedWeights:
        split = self._split
        shared = {name: leaves[name] for name in split.shared.names}
        personal = {name: leaves[name] for name in split.personal.names}
        return split.effective(shared, personal)

    def _vectors(self, leaves: Leaves) -> tuple[Vector, Vector]:
        """Leaves -> (shared, personal) vectors. DeviceError unless all are finite."""
        split = self._split
        shared = split.shared.flatten({name: leaves[name] for name in split.shared.names})
        personal = split.personal.flatten({name: leaves[name] for name in split.personal.names})
        if not (np.isfinite(shared).all() and np.isfinite(personal).all()):
            raise DeviceError("local training diverged; lower the learning rates")
        return shared, personal

    def _fit(
        self, leaves: Leaves, rates: Mapping[str, float], epochs: int, prepared: PreparedPairs, seed: int
    ) -> _Fit:
        """Train the leaves that have a rate, in place, with a fresh optimiser, the others frozen."""
        if prepared.choices == 0:
            raise DataError("there are no preference pairs to train on; record some choices first")
        trained = {name: leaves[name].requires_grad_() for name, rate in rates.items() if rate > 0}
        steps, first = 0, None
        if trained and epochs:
            optimizers = optimizers_of(self._split, self._training, trained, rates)
            last, portions = None, list[Portion]()
            for batch in batches_of(self._model, prepared, self._training.batch_size, epochs, seed):
                if batch is not last:  # all pairs at once are the same ones each time
                    last, portions = batch, self._portions(batch, leaves)
                gradients, margins = self._gradients(leaves, trained, batch, portions, len(prepared))
                first = margins if steps == 0 and len(batch) == len(prepared) else first
                for tensor, gradient in zip(trained.values(), gradients, strict=True):
                    tensor.grad = gradient
                for optimizer in optimizers:
                    optimizer.step()
                steps += 1
        for tensor in trained.values():
            tensor.requires_grad_(False)
            tensor.grad = None
        return _Fit(steps, first)

    def _gradients(
        self,
        leaves: Leaves,
        trained: Leaves,
        batch: PreparedPairs,
        portions: Sequence[Portion],
        pairs: int,
    ) -> tuple[list[Tensor], Tensor]:
        """Of the mean of the objective's losses over the batch, of the L2 penalty, and of the prior's part in
        the mean over all `pairs`, for the leaves in training; and the margins [of the batch]."""
        tensors = list(trained.values())
        total: list[Tensor] = []
        seen = []
        for part, again in self._parts(batch, portions):
            with blocks_recomputed(again):
                margins = self._model.margins(part, self._effective(leaves))
            seen.append(margins.detach())
            loss = self._model.losses(margins, part).sum() / len(batch)
            if not total:
                loss = loss + self._pull(trained) + self._prior(leaves, trained) / pairs
            gradients = torch.autograd.grad(loss, tensors)
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
        return total, torch.cat(seen)

    def _portions(self, batch: PreparedPairs, leaves: Leaves) -> list[Portion]:
        """The batch in portions within the bound in bytes, whose frozen states lie in one piece, and of at
        most `training.micro_batch_size` pairs."""
        memory, most = self._model.step_memory, self._training.micro_batch_size
        effective, found = self._effective(leaves), list[Portion]()
        for rows in self._model.pieces(batch):
            cut = memory.portions(self._model.piece(batch, rows), effective, self._step_bytes, most)
            found += [replace(one, rows=rows[one.rows.start : one.rows.stop]) for one in cut]
        return found

    def _parts(
        self, batch: PreparedPairs, portions: Sequence[Portion]
    ) -> Iterator[tuple[PreparedPairs, bool]]:
        """The pairs of each portion, and whether blocks are computed again on their way back."""
        for one in portions:
            whole = len(one.rows) == len(batch)
            yield batch if whole else self._model.subset(batch, one.rows), one.recomputed

    def _pull(self, trained: Leaves) -> Tensor | float:
        """(l2_to_start/2) ‖personal - common start‖² over the personal tensors in training."""
        if self._start is None or not self._training.l2_to_start:
            return 0.0
        start = self._split.personal.unflatten(self._start)
        distances = [
            (trained[name] - value.to(self._model.device)).square().sum()
            for name, value in start.items()
            if name in trained
        ]
        return self._training.l2_to_start / 2 * torch.stack(distances).sum() if distances else 0.0

    def _prior(self, leaves: Leaves, trained: Leaves) -> Tensor | float:
        """‖D‖² / 2σ² over the personal deviations in training: minus their prior's log density."""
        found = [
            trained[name].square().sum() / (2 * deviation**2)
            for name, deviation in self._split.deviations(leaves).items()
            if name in trained
        ]
        return torch.stack(found).sum() if found else 0.0


def rates_of(split: Split, training: TrainingConfig) -> tuple[Rates, Rates]:
    """Learning rates of the personal and of the shared tensors, by name."""
    personal = dict.fromkeys(split.personal.names, training.lr_personal)
    shared = dict.fromkeys(split.shared.names, training.lr_shared)
    for rates in (personal, shared):
        rates |= {name: training.lr_head for name in HEADS if name in rates}
    if split.rule.fitting is Fitting.LAST:
        personal = dict.fromkeys(personal, 0.0)
    shared.pop(split.spread_tensor, None)  # training pairs don't say how far people lie apart
    return personal, shared


def optimizers_of(
    split: Split, training: TrainingConfig, trained: Leaves, rates: Mapping[str, float]
) -> list[torch.optim.Optimizer]:
    """Fresh optimisers of the personal and of the shared tensors in training."""
    own = training.optimizer
    shared = own if training.shared_optimizer == "same" else training.shared_optimizer
    made: list[torch.optim.Optimizer] = []
    for names, kind in ((split.personal.names, own), (split.shared.names, shared)):
        groups = [{"params": [trained[n]], "lr": rates[n]} for n in names if n in trained]
        if groups:
            rule = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
            on_gpu = any(trained[n].is_cuda for n in names if n in trained)  # there, calls are what costs
            made.append(rule(groups, weight_decay=training.weight_decay, foreach=on_gpu))
    return made


def halves(model: RewardModel, prepared: PreparedPairs, seed: int) -> tuple[PreparedPairs, PreparedPairs]:
    """The pairs in two halves at random, with choices in each; twice all where there is one choice."""
    if prepared.choices < 2:
        return prepared, prepared
    order = torch.randperm(
        len(prepared), generator=torch.Generator().manual_seed(seed & (2**63 - 1))
    ).tolist()
    ties = set() if prepared.ties is None else set(prepared.ties.nonzero().flatten().tolist())
    sorts = [place for place in order if place not in ties], [place for place in order if place in ties]
    first, second = ([place for sort in sorts for place in sort[start::2]] for start in (0, 1))
    return model.subset(prepared, first), model.subset(prepared, second)


def batches_of(
    model: RewardModel, prepared: PreparedPairs, size: int, epochs: int, seed: int
) -> Iterator[PreparedPairs]:
    """All pairs at once, or each epoch in batches of `size` in an order drawn from the seed."""
    if size == 0 or size >= len(prepared):
        yield from itertools.repeat(prepared, epochs)
        return
    generator = torch.Generator().manual_seed(seed & (2**63 - 1))
    for _ in range(epochs):
        order = torch.randperm(len(prepared), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield model.subset(prepared, order[start : start + size])


def counts_of(margins: Tensor, prepared: PreparedPairs, nu: float | None = None) -> Counts:
    """What the margins [pairs] of some pairs say."""
    every, nu = margins, prepared.nu if nu is None else nu
    weights = None if prepared.weights is None else prepared.weights.to(margins.device)
    if prepared.ties is not None:
        choices = ~prepared.ties.to(margins.device)
        margins, weights = margins[choices], None if weights is None else weights[choices]
    losses = _weighed(bradley_terry(margins.double()), weights)
    expected = tie_probability(every.double().cpu().numpy(), nu).sum() if nu else 0.0
    return Counts(
        int((margins > 0).sum()),
        len(margins),
        float(losses.sum()),
        int((margins == 0).sum()),
        len(every) - len(margins),
        float(expected),
    )


def _weighed(each: Tensor, weights: Tensor | None) -> Tensor:
    return each if weights is None else each * weights
