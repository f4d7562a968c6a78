"""A federation with noise on its sums, and in share lore fast enough for ten thousand people on one core.

Plans, clipping, rounding, noise, the reading of sums and the server's step are the product's own. Two things
are not, and change no figure. Masks, which cancel in every sum, messages, vaults and signatures are left out.
And in share lore everybody trains at once: its embeddings are frozen and AdamW works element by element, so
that one training of all people's tensors is everybody's own (a test holds it to the product's trainer). In
other shares (`OneByOne`) the product's trainer trains everybody in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache, PlannedModel
from penchant.client.learning.outcome import contribution_of
from penchant.common.config import RunConfig, TrainingConfig
from penchant.common.crypto.entropy import Entropy, SeededEntropy
from penchant.common.data.preferences import Person, Preference
from penchant.common.model.davidson import bradley_terry
from penchant.common.model.factors import Vector
from penchant.common.privacy.discrete_gaussian import discrete_gaussian
from penchant.common.secagg.update_vector import Contribution, UpdateLayout
from penchant.server.cohort import next_cohort
from penchant.server.noise_terms import settle_noise
from penchant.server.optimizers import ServerState, server_optimizer
from penchant.server.run import cohort_size

__all__ = ["Fleet", "Learned", "OneByOne", "Pairs", "fleet_of", "noise_of", "ring_sum", "signed"]

TOGETHER = (4, 1)  # k^2 shares of noise are drawn as one of k times the sigma, for speed

Training = Callable[[Vector, Sequence[int], Tensor], tuple[list[Contribution], Tensor]]
"""Announced factors, who is asked and their weights -> what they send and their new weights."""


@dataclass(frozen=True)
class Pairs:
    """Everybody's pairs: embeddings of the chosen minus the rejected, [people, pairs, d], zero where somebody
    has fewer; weight [people, pairs], one over a person's number of pairs where there is one."""

    differences: Tensor
    weight: Tensor

    @classmethod
    def of(cls, planned: PlannedModel, pairs: Sequence[Sequence[Preference]]) -> Pairs:
        """The model reads every text once."""
        places: dict[tuple[str, str], int] = {}
        for pair in (pair for own in pairs for pair in own):
            for text in (pair.chosen, pair.rejected):
                places.setdefault((pair.prompt, text), len(places))
        embedded = planned.model.prepare_texts(list(places)).packed
        if planned.plan.model.normalize:
            embedded = normalize(embedded, dim=1) * planned.plan.model.normalize
        most = max(map(len, pairs))
        differences, weight = torch.zeros(len(pairs), most, embedded.shape[1]), torch.zeros(len(pairs), most)
        for at, own in enumerate(pairs):
            if own:
                chosen = [places[pair.prompt, pair.chosen] for pair in own]
                rejected = [places[pair.prompt, pair.rejected] for pair in own]
                differences[at, : len(own)] = embedded[chosen] - embedded[rejected]
                weight[at, : len(own)] = 1 / len(own)
        return cls(differences, weight)

    def some(self, who: Sequence[int]) -> Pairs:
        return Pairs(self.differences[list(who)], self.weight[list(who)])

    def margins(self, basis: Tensor, own: Tensor) -> Tensor:
        """[people, pairs] for bases [people, rank, d] and weights over them [people, rank]."""
        heads = torch.einsum("nr,nrd->nd", own, basis)
        return torch.einsum("npd,nd->np", self.differences, heads)

    def losses(self, basis: Tensor, own: Tensor) -> Tensor:
        """Everybody's mean loss, [people]."""
        return (bradley_terry(self.margins(basis, own)) * self.weight).sum(dim=1)

    def accuracies(self, basis: Tensor, own: Tensor) -> Tensor:
        """Of everybody who has pairs."""
        right = ((self.margins(basis, own) > 0) * self.weight).sum(dim=1)
        return right[self.weight.sum(dim=1) > 0]


@dataclass(frozen=True)
class Learned:
    """Shared factors, and everybody's weights over them, float32 [people, rank]."""

    shared: Vector
    personal: Tensor


@dataclass(frozen=True)
class Fleet:
    """People, and the plans of a run that is settled for them."""

    config: RunConfig
    people: Sequence[Person]
    cache: ModelCache
    cohort: int

    @classmethod
    def of(cls, config: RunConfig, people: Sequence[Person], cache: ModelCache) -> Fleet:
        torch.set_num_threads(1)
        cls._check(config)
        cohort = cohort_size(config, len(people))
        return cls(settle_noise(config, cohort, len(people)), people, cache, cohort)

    @classmethod
    def _check(cls, config: RunConfig) -> None:
        if config.adapter.share != "lore" or config.training.batch_size or config.training.alone_epochs:
            raise ValueError("everybody trains at once in share lore, in whole batches and jointly, only")

    @property
    def planned(self) -> PlannedModel:
        return self.cache.of(self.config.plan("main", self.cohort))

    @property
    def layout(self) -> UpdateLayout:
        planned = self.planned
        return UpdateLayout.of(planned.plan, planned.split)

    def start(self) -> tuple[ServerState, Tensor]:
        """The server's state and everybody's weights before the first round."""
        settings = self.config.federation
        shared, own = self.planned.split.initial(self.planned.plan.seed)
        state = server_optimizer(settings.server_optimizer).init(shared, own, settings)
        return state, torch.from_numpy(own).repeat(len(self.people), 1)

    def learn(self) -> Learned:
        """All rounds and the closing one."""
        pairs = Pairs.of(self.planned, [person.train for person in self.people])
        shared, personal = self.rounds(lambda shared, who, own: self.round(shared, own, pairs.some(who)))
        return Learned(shared, self.fitted(shared, personal, pairs))

    def rounds(self, train: Training) -> tuple[Vector, Tensor]:
        """All rounds but the closing one: the factors that they end with, and everybody's weights."""
        layout = self.layout
        state, personal = self.start()
        entropy = SeededEntropy(self.config.seed.to_bytes(32, "big"), "noised fleet")
        after = None
        for number in range(1, self.config.federation.rounds + 1):
            turn, after = next_cohort(
                range(len(self.people)), self.cohort, seed=self.config.seed, round=number, after=after
            )
            sent, personal[list(turn)] = train(state.factors, turn, personal[list(turn)])
            mean = layout.read(ring_sum(layout, sent, entropy), len(turn)).mean
            state = state.moved(mean, self.config.federation)
        return state.factors, personal

    def round(self, shared: Vector, personal: Tensor, pairs: Pairs) -> tuple[list[Contribution], Tensor]:
        """What people with these weights and pairs send for the announced factors, and their new weights."""
        settings = self.config.training
        basis, own = self._basis(shared, len(personal)), personal.clone()
        before = pairs.losses(basis, own)
        rates = ((own, settings.lr_personal), (basis, settings.lr_shared))
        self._train(pairs, basis, own, rates, settings.local_epochs)
        updates = basis.reshape(len(own), -1).numpy() - shared
        counts = (pairs.weight > 0).sum(dim=1).tolist()
        sent = [
            Contribution(update, count, loss * count, 0, 0)
            for update, count, loss in zip(updates, counts, before.tolist(), strict=True)
        ]
        return sent, own

    def fitted(self, shared: Vector, personal: Tensor, pairs: Pairs) -> Tensor:
        """Everybody's weights after the closing round."""
        settings, own = self.config.training, personal.clone()
        basis = self._basis(shared, len(personal))
        self._train(pairs, basis, own, ((own, settings.final_fit_lr),), settings.final_fit_epochs)
        return own

    def losses(self, shared: Vector, personal: Tensor, pairs: Pairs) -> NDArray[np.float64]:
        """Everybody's mean loss on pairs, [people]."""
        found = pairs.losses(self._basis(shared, len(personal)), personal)
        return np.asarray(found.double().numpy())

    def accuracy(self, learned: Learned) -> float:
        """The mean over people of their own model's accuracy on `data.evaluate`."""
        part = self.config.data.evaluate
        pairs = Pairs.of(self.planned, [getattr(person, part) for person in self.people])
        return float(pairs.accuracies(self._basis(learned.shared, len(self.people)), learned.personal).mean())

    def _basis(self, shared: Vector, people: int) -> Tensor:
        """[people, rank, d]"""
        (spec,) = self.planned.split.shared.specs
        return torch.from_numpy(shared.copy()).reshape(1, *spec.shape).repeat(people, 1, 1)

    def _train(
        self, pairs: Pairs, basis: Tensor, own: Tensor, rates: Sequence[tuple[Tensor, float]], epochs: int
    ) -> None:
        """In place, those tensors that have a rate."""
        settings = self.config.training
        if not epochs:
            return
        optimizers = [_optimizer(tensor.requires_grad_(), rate, settings) for tensor, rate in rates]
        for _ in range(epochs):
            loss = pairs.losses(basis, own).sum()
            loss = loss + settings.l2_to_start / 2 * own.square().sum()  # lore's weights start at 0
            for (tensor, _), found in zip(
                rates, torch.autograd.grad(loss, [tensor for tensor, _ in rates]), strict=True
            ):
                tensor.grad = found
            for optimizer in optimizers:
                optimizer.step()
        for tensor, _ in rates:
            tensor.requires_grad_(False)
            tensor.grad = None


class OneByOne(Fleet):
    """A fleet of any share: the product's trainer trains everybody in turn."""

    @classmethod
    def _check(cls, config: RunConfig) -> None:
        """Any configuration will do."""

    def learn(self) -> Learned:
        """All rounds and the closing one."""
        planned, closing = self.planned, self.cache.of(self.config.plan("close", self.cohort))
        start = planned.split.initial(planned.plan.seed)[1]

        def train(shared: Vector, who: Sequence[int], own: Tensor) -> tuple[list[Contribution], Tensor]:
            sent, left = [], own.clone()
            for at, person in enumerate(who):
                pairs = self.people[person].train
                outcome = work(planned, shared, start, own[at].numpy(), pairs, (), 0)
                sent.append(contribution_of(outcome, in_histogram=False))
                left[at] = torch.from_numpy(outcome.personal)
            return sent, left

        shared, personal = self.rounds(train)
        for at, person in enumerate(self.people):
            outcome = work(closing, shared, start, personal[at].numpy(), person.train, (), 0)
            personal[at] = torch.from_numpy(outcome.personal)
        return Learned(shared, personal)

    def accuracy(self, learned: Learned) -> float:
        """As of every fleet."""
        part, planned = self.config.data.evaluate, self.planned
        start = planned.split.initial(planned.plan.seed)[1]
        trainer = planned.trainer(start)
        found = []
        for person, own in zip(self.people, learned.personal, strict=True):
            if pairs := getattr(person, part):
                counts = trainer.evaluate(learned.shared, own.numpy(), planned.model.prepare(pairs))
                found.append(counts.accuracy)
        return float(np.mean(found))


def fleet_of(config: RunConfig, people: Sequence[Person], cache: ModelCache) -> Fleet:
    """The fastest fleet of a configuration's share."""
    kind = Fleet if config.adapter.share == "lore" else OneByOne
    return kind.of(config, people, cache)


def _optimizer(tensor: Tensor, rate: float, settings: TrainingConfig) -> torch.optim.Optimizer:
    rule = torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.AdamW
    return rule([tensor], lr=rate, weight_decay=settings.weight_decay)


def ring_sum(layout: UpdateLayout, sent: Sequence[Contribution], entropy: Entropy) -> NDArray[np.int64]:
    """The sum that masks would hide the parts of, int64 [words]; nobody drops out.

    Each adds as much noise as is needed where a third does.
    """
    total = np.zeros(layout.words, dtype=f"<u{layout.ring // 8}")
    for contribution in sent:
        total += layout.quantise(contribution, entropy.draw(32))
    return signed(total, layout.ring) + noise_of(layout, len(sent), entropy)


def noise_of(layout: UpdateLayout, shares: int, entropy: Entropy) -> NDArray[np.int64]:
    """The sum of so many shares of noise, int64 [words]; zeros where sums are exact.

    16 shares are drawn as one discrete Gaussian of four times the sigma: their sum is one, to 10^-400000.
    """
    total = np.zeros(layout.words, np.int64)
    if layout.noise is None:
        return total
    for times in TOGETHER:
        draws, shares = divmod(shares, times**2)
        for _ in range(draws):
            total += discrete_gaussian(layout.words, times * layout.noise.sigma, entropy)
    return total


def signed(total: NDArray[np.unsignedinteger], ring: int) -> NDArray[np.int64]:
    """Ring elements as the integers nearest to 0."""
    return total.astype(f"<u{ring // 8}").view(f"<i{ring // 8}").astype(np.int64)
