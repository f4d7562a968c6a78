"""One model as it scores: a base model, and the shared and personal factors merged into weights over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from penchant.client.learning.model_cache import PlannedModel
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.data.preferences import Preference, without_ties
from penchant.common.model.factors import MergedWeights, Vector
from penchant.common.model.reward import Pair, RewardModel

__all__ = ["MergedModel"]

AT_A_TIME = 64
"""Pairs whose texts are in memory at the same time."""


@dataclass(frozen=True)
class MergedModel:
    """A model that scores texts, and the settings that it was made with.

    conversations: whether most of the choices that it was learned from were between answers in conversations,
    in whose form it is then asked; also where that is not known.
    """

    model: RewardModel
    weights: MergedWeights = field(repr=False)
    settings: ModelConfig
    adapter: AdapterConfig
    conversations: bool = True

    @classmethod
    def of(
        cls, planned: PlannedModel, factors: Vector, personal: Vector | None, *, conversations: bool = True
    ) -> Self:
        """The model of somebody's personal part, or of the common start, with announced factors."""
        shared, start = planned.parts(factors)
        own = start if personal is None or personal.shape != start.shape else personal
        weights = planned.split.merged(shared, own)
        return cls(planned.model, weights, planned.plan.model, planned.plan.adapter, conversations)

    def scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """The score of each (prompt, response)."""
        return [float(score) for score in self.model.rewards(texts, self.weights)]

    def unread(self, pairs: Sequence[Preference]) -> list[str]:
        """What must be said of texts that the model does not read to their end, of choices and of ties."""
        tied = [(pair.prompt, text) for pair in pairs if pair.tie for text in (pair.chosen, pair.rejected)]
        read = self.model.reading(without_ties(pairs), tied)
        return read.said(self.model.max_tokens, self.settings.truncation)

    def both_scores(self, pairs: Sequence[Pair]) -> Iterator[tuple[float, float]]:
        """(score of the chosen, score of the rejected response) of each pair, in order."""
        for begin in range(0, len(pairs), AT_A_TIME):
            prepared = self.model.prepare(pairs[begin : begin + AT_A_TIME])
            chosen, rejected = self.model.both_scores(prepared, self.weights)
            yield from zip(chosen.tolist(), rejected.tolist(), strict=True)
