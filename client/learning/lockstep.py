"""Local training of several people at a time, in lockstep: the steps of all are computed together.

Each keeps what a `LocalTrainer` gives: own factors, shared ones as received, data order, draws, optimiser's
state, and an outcome that is the same within the arithmetic's tolerance. Whoever has done their steps drops
out. One whose training diverges gets an error instead of an outcome, and nobody else notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penchant.client.learning.outcome import Counts, Outcome
from penchant.client.learning.trainer import Leaves, Rates, batches_of, counts_of, optimizers_of, rates_of
from penchant.common.config import TrainingConfig
from penchant.common.errors import ConfigError, DeviceError
from penchant.common.model.batches import within
from penchant.common.model.factors import Layout, Split, Vector
from penchant.common.model.reward import JoinedPairs, PreparedPairs, RewardModel
from penchant.common.model.stacked import StackedTail, composes_stacked, stacked_weights
from penchant.common.shares import Fitting

__all__ = ["Learner", "LockstepTrainer", "can_lockstep", "people_bytes", "why_one_by_one"]


@dataclass(frozen=True)
class Learner:
    """One person's part of a group: vectors as `LocalTrainer.train` takes them, and at least one pair."""

    shared: Vector = field(repr=False)
    personal: Vector = field(repr=False)
    prepared: PreparedPairs = field(repr=False)
    seed: int = field(repr=False)


@dataclass(frozen=True)
class _Fits:
    """Steps that each one took, and each one's margins before the first of them if that saw all pairs."""

    steps: list[int]
    first: list[Tensor | None]


def can_lockstep(model: RewardModel, split: Split, training: TrainingConfig) -> bool:
    """Whether people can be trained together: the base model bears texts of several in one pass, the share
    rule composes many factors at once and does not fit anew in each round, and no batch is to be held in
    parts."""
    return not why_one_by_one(model, split, training)


def why_one_by_one(model: RewardModel, split: Split, training: TrainingConfig) -> str:
    """Why people can't be trained together, in a few words; nothing where they can."""
    if model.stacked is None:
        return "this base model, with what is trained of it, does not read several people's texts in one row"
    if training.micro_batch_size:
        return "training.micro_batch_size holds each batch in parts"
    if split.rule.fitting is Fitting.ANEW:
        return f'share "{split.rule.name}" fits everybody anew in each round'
    return "" if composes_stacked(split) else f'share "{split.rule.name}" composes one person at a time'


def people_bytes(split: Split, prepared: PreparedPairs) -> int:
    """What one person of a group holds in memory: six times the factors (received, trained, gradient, two of
    the optimiser's and a copy), and the pairs' activations twice."""
    factors = 4 * (split.shared.size + split.personal.size)
    return 6 * factors + 2 * prepared.state_bytes


_Work = Callable[[Sequence[Learner]], "list[Outcome | DeviceError]"]
Vectors = npt.NDArray[np.float32]


class LockstepTrainer:
    """Trains, fits and evaluates groups of people. Arguments as of `LocalTrainer`.

    step_bytes: what a step's activations may take together; people whose own do not fit beside others' are
    computed one portion after the other, each at least one person.

    Raises:
        ConfigError: people can't be trained together (`can_lockstep`).
    """

    def __init__(
        self,
        model: RewardModel,
        split: Split,
        training: TrainingConfig,
        start: Vector | None = None,
        *,
        step_bytes: int,
    ) -> None:
        tail = model.stacked
        if tail is None or why_one_by_one(model, split, training):
            raise ConfigError("these people can't be trained together; serve them one by one")
        if training.l2_to_start and start is None:
            raise ConfigError("training.l2_to_start needs the common start of the personal part; give it")
        self._model, self._split, self._training = model, split, training
        self._tail: StackedTail = tail
        self._start = {} if start is None else _to(split.personal.unflatten(start), model.device)
        self._step_bytes = step_bytes

    def train(self, people: Sequence[Learner]) -> list[Outcome | DeviceError]:
        """As `LocalTrainer.train` of each, in the given order; an error for who has diverged."""
        return self._in_order(people, self._train)

    def refit(self, people: Sequence[Learner]) -> list[Outcome | DeviceError]:
        """As `LocalTrainer.refit` of each, in the given order; an error for who has diverged."""
        return self._in_order(people, self._refit)

    def evaluate(self, people: Sequence[Learner]) -> list[Counts]:
        """As `LocalTrainer.evaluate` of each, in the given order; seeds are not read."""
        leaves = self._leaves(people)
        found: list[Counts] = []
        for some in self._portions([one.prepared for one in people]):
            joined = self._model.join([one.prepared for one in people[some]])
            with torch.no_grad():
                margins = self._margins(joined, {name: leaf[some] for name, leaf in leaves.items()})
            parts = torch.split(margins.cpu(), list(joined.counts))
            found += [counts_of(own, one.prepared) for own, one in zip(parts, people[some], strict=True)]
        return found

    # --- inner parts ------------------------------------------------------------------------------

    def _in_order(self, people: Sequence[Learner], work: _Work) -> list[Outcome | DeviceError]:
        """What `work` makes of the people, who are worked on in order of their steps: most come first."""
        order = sorted(range(len(people)), key=lambda place: -len(people[place].prepared))
        made = work([people[place] for place in order])
        return [outcome for _, outcome in sorted(zip(order, made, strict=True), key=lambda both: both[0])]

    def _train(self, people: Sequence[Learner]) -> list[Outcome | DeviceError]:
        settings = self._training
        leaves = self._leaves(people)
        personal_rates, shared_rates = rates_of(self._split, settings)
        then = shared_rates if settings.update_order == "alternating" else personal_rates | shared_rates
        joins = _Joins(self._model, keep=settings.batch_size == 0)
        alone = self._fit(leaves, personal_rates, settings.alone_epochs, people, joins, 0)
        both = self._fit(leaves, then, settings.local_epochs, people, joins, 1)
        first = [a if s else b for a, s, b in zip(alone.first, alone.steps, both.first, strict=True)]
        steps = [a + b for a, b in zip(alone.steps, both.steps, strict=True)]
        return self._outcomes(people, leaves, first, steps, closing=False)

    def _refit(self, people: Sequence[Learner]) -> list[Outcome | DeviceError]:
        settings = self._training
        leaves = self._leaves(people)
        rates = dict.fromkeys(self._split.personal.names, settings.final_fit_lr)
        joins = _Joins(self._model, keep=settings.batch_size == 0)
        fits = self._fit(leaves, rates, settings.final_fit_epochs, people, joins, 0)
        return self._outcomes(people, leaves, fits.first, fits.steps, closing=True)

    def _outcomes(
        self,
        people: Sequence[Learner],
        leaves: Leaves,
        first: Sequence[Tensor | None],
        steps: Sequence[int],
        *,
        closing: bool,
    ) -> list[Outcome | DeviceError]:
        unseen = [one for one, margins in zip(people, first, strict=True) if margins is None]
        evaluated = iter(self.evaluate(unseen) if unseen else ())
        shared, personal = (_rows(layout, leaves) for layout in (self._split.shared, self._split.personal))
        made: list[Outcome | DeviceError] = []
        for place, one in enumerate(people):
            margins = first[place]
            before = next(evaluated) if margins is None else counts_of(margins, one.prepared)
            if not (np.isfinite(shared[place]).all() and np.isfinite(personal[place]).all()):
                made.append(DeviceError("local training diverged; lower the learning rates"))
                continue
            update = np.zeros(0, dtype=np.float32) if closing else shared[place] - one.shared
            made.append(Outcome(update, personal[place], one.prepared.choices, before, steps[place]))
        return made

    def _fit(
        self, leaves: Leaves, rates: Rates, epochs: int, people: Sequence[Learner], joins: _Joins, more: int
    ) -> _Fits:
        """Train the leaves that have a rate, in place, with fresh optimisers, the others frozen. Those come
        first who have most to do. more: is added to the seeds."""
        names = [name for name, rate in rates.items() if rate > 0]
        steps, first = [0] * len(people), _nothing(len(people))
        if not names or not epochs:
            return _Fits(steps, first)
        size = self._training.batch_size
        sources = [batches_of(self._model, p.prepared, size, epochs, p.seed + more) for p in people]
        group = _Group(leaves, names, lambda own: optimizers_of(self._split, self._training, own, rates))
        precisions = self._precisions(leaves, people)
        while batches := [batch for source in sources if (batch := next(source, None)) is not None]:
            sources = sources[: len(batches)]
            group.keep(len(batches))
            margins = self._gradients(group, batches, joins, precisions)
            if steps[0] == 0:
                first = _of_all_pairs(margins, batches, people)
            group.step()
            steps = [done + (place < len(batches)) for place, done in enumerate(steps)]
        return _Fits(steps, first)

    def _gradients(
        self, group: _Group, batches: Sequence[PreparedPairs], joins: _Joins, precisions: Leaves
    ) -> Tensor:
        """Give each tensor in training its gradient: of each one's mean loss over the batch, L2 penalty and
        prior. -> everybody's margins, [all pairs]."""
        margins: list[Tensor] = []
        gradients: dict[str, list[Tensor]] = {name: [] for name in group.trained}
        for some in self._portions(batches):
            joined = joins.of(batches[some])
            part = {name: leaf[some].detach() for name, leaf in group.leaves.items()}
            trained = {name: part[name].requires_grad_() for name in group.trained}
            found = self._margins(joined, part)
            counts = torch.tensor(joined.counts, device=found.device)
            losses = self._model.losses(found, joined) / torch.repeat_interleave(counts, counts)
            own_precisions = {name: precision[some] for name, precision in precisions.items()}
            loss = losses.sum() + self._pull(trained) + _prior(trained, own_precisions)
            for name, own in zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True):
                gradients[name].append(own)
            margins.append(found.detach())
        for name, tensor in group.trained.items():
            tensor.grad = torch.cat(gradients[name]) if len(gradients[name]) > 1 else gradients[name][0]
        return torch.cat(margins)

    def _margins(self, joined: JoinedPairs, leaves: Mapping[str, Tensor]) -> Tensor:
        split = self._split
        shared = {name: leaves[name] for name in split.shared.names}
        personal = {name: leaves[name] for name in split.personal.names}
        return self._model.stacked_margins(joined, stacked_weights(split, shared, personal))

    def _portions(self, batches: Sequence[PreparedPairs]) -> Iterator[slice]:
        """People whose step is computed at once, as far as the activations' bytes allow."""
        sizes = [self._tail.size(batch.texts.packed) for batch in batches]
        for some in within(sizes, self._step_bytes):
            yield slice(some.start, some.stop)

    def _pull(self, trained: Leaves) -> Tensor | float:
        """The sum of everybody's L2 penalty, as `LocalTrainer` has it."""
        if not self._training.l2_to_start:
            return 0.0
        distances = [(trained[n] - v).square().sum() for n, v in self._start.items() if n in trained]
        return self._training.l2_to_start / 2 * torch.stack(distances).sum() if distances else 0.0

    def _precisions(self, leaves: Leaves, people: Sequence[Learner]) -> Leaves:
        """What each one's squared deviations weigh in the loss, 1 / 2σ² over the pairs, [N] by tensor; none
        where the rule has no prior. The shared number that says σ is trained by nobody's pairs."""
        spread = self._split.spread_tensor
        if not spread:
            return {}
        each = [
            {
                name: 1 / (2 * deviation**2 * len(one.prepared))
                for name, deviation in self._split.deviations({spread: leaves[spread][place]}).items()
            }
            for place, one in enumerate(people)
        ]
        return {
            name: torch.tensor([one[name] for one in each], device=self._model.device) for name in each[0]
        }

    def _leaves(self, people: Sequence[Learner]) -> Leaves:
        """Everybody's tensors by name, [N, …], on the model's device."""
        split = self._split
        leaves: Leaves = {}
        for layout, vectors in (
            (split.shared, [one.shared for one in people]),
            (split.personal, [one.personal for one in people]),
        ):
            for vector in vectors:
                layout.check(vector)
            rows = torch.from_numpy(np.stack(vectors)).to(self._model.device)
            parts = torch.split(rows, [spec.size for spec in layout.specs], dim=1)
            for spec, part in zip(layout.specs, parts, strict=True):
                leaves[spec.name] = part.reshape(len(people), *spec.shape).clone()
        return leaves


def _prior(trained: Leaves, precisions: Leaves) -> Tensor | float:
    """The sum of everybody's ‖D‖² / 2σ² over their own number of pairs."""
    found = [
        (trained[name].square().flatten(1).sum(1) * precision).sum()
        for name, precision in precisions.items()
        if name in trained
    ]
    return torch.stack(found).sum() if found else 0.0


def _of_all_pairs(
    margins: Tensor, batches: Sequence[PreparedPairs], people: Sequence[Learner]
) -> list[Tensor | None]:
    """Each one's part of a step's margins, where the step saw all of the one's pairs."""
    parts = torch.split(margins.cpu(), [len(batch) for batch in batches])
    return [
        part if len(batch) == len(one.prepared) else None
        for part, batch, one in zip(parts, batches, people, strict=True)
    ]


def _nothing(count: int) -> list[Tensor | None]:
    return [None] * count


class _Joins:
    """People's pairs in one, kept where steps see all pairs and so the same ones each time."""

    def __init__(self, model: RewardModel, *, keep: bool) -> None:
        self._model, self._keep = model, keep
        self._kept: dict[tuple[int, ...], tuple[list[PreparedPairs], JoinedPairs]] = {}

    def of(self, batches: Sequence[PreparedPairs]) -> JoinedPairs:
        """These people's pairs in one."""
        if not self._keep:
            return self._model.join(batches)
        key = tuple(id(batch) for batch in batches)  # which are held, so that no other comes by their ids
        if key not in self._kept:
            self._kept[key] = list(batches), self._model.join(batches)
        return self._kept[key][1]


class _Group:
    """Those who are still in training: the first of everybody's leaves, and the optimisers of theirs.

    leaves: of these people; optimisers change them in place. trained: those in training, by name.
    """

    def __init__(
        self, everybodys: Leaves, names: Sequence[str], made: Callable[[Leaves], list[torch.optim.Optimizer]]
    ) -> None:
        self._everybodys = self.leaves = everybodys
        self.trained = {name: everybodys[name].detach() for name in names}
        self._optimizers = made(self.trained)

    def keep(self, count: int) -> None:
        """From now on, train the first `count` people alone; what the others have is theirs."""
        if count == len(next(iter(self.leaves.values()))):
            return
        self.leaves = {name: leaf[:count] for name, leaf in self._everybodys.items()}
        fewer = {name: self.leaves[name].detach() for name in self.trained}
        renewed = [(self.trained[name], fewer[name]) for name in fewer]
        self._optimizers = [_narrowed(optimizer, renewed, count) for optimizer in self._optimizers]
        self.trained = fewer

    def step(self) -> None:
        """One step of all optimisers."""
        for optimizer in self._optimizers:
            optimizer.step()


def _narrowed(
    optimizer: torch.optim.Optimizer, renewed: Sequence[tuple[Tensor, Tensor]], count: int
) -> torch.optim.Optimizer:
    """The optimiser of the first `count` people's tensors, with what it knew of them. renewed: (before, now)
    of all its tensors, and maybe of others'."""
    now = {id(before): after for before, after in renewed}
    groups = [{**group, "params": [now[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    rule: Any = type(optimizer)
    made: torch.optim.Optimizer = rule(groups)
    for before, after in renewed:
        for key, value in optimizer.state.get(before, {}).items():
            made.state[after][key] = value[:count] if value.shape == before.shape else value
    return made


def _rows(layout: Layout, leaves: Leaves) -> Vectors:
    """Everybody's tensors -> vectors [N, size] as the layout has them, float32."""
    people = len(next(iter(leaves.values())))
    found = [leaves[name].detach().to("cpu", torch.float32).reshape(people, -1) for name in layout.names]
    return torch.cat(found, dim=1).numpy() if found else np.zeros((people, 0), dtype=np.float32)


def _to(tensors: Leaves, device: torch.device) -> Leaves:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
