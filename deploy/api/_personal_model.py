"""One person's reward model: it scores and ranks responses as that person would."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from penchant._checks import path_given
from penchant.client.device.export import ADAPTER_FILE, HEAD_FILE, Export, export_peft
from penchant.client.learning.model_cache import PlannedModel
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import BaseModelError, ConfigError, DataError, UsageError
from penchant.common.foreign_files import read_json
from penchant.common.model.factors import MergedWeights, Vector
from penchant.common.model.reward import RewardModel, load_reward_model
from penchant.common.settings import build_section, section_table
from penchant.common.storage import write_private

__all__ = ["PersonalModel", "RankedResponse"]

SETTINGS_FILE = "penchant.json"
_ADAPTER = "base_model.model."


@dataclass(frozen=True, slots=True)
class RankedResponse:
    """One response and its score; a higher score is liked more.

    `over_next` is the probability that the person would rather have this response than the next one below;
    None for the last one.
    """

    response: str = field(repr=False)
    score: float
    over_next: float | None = None


class PersonalModel:
    """One person's reward model. Differences of scores are log-odds (Bradley and Terry).

    Made by `SimulationResult.personal_model`, `SimulationResult.fit_newcomer` and `PersonalModel.load`.
    """

    def __init__(
        self, model: RewardModel, weights: MergedWeights, settings: ModelConfig, adapter: AdapterConfig
    ) -> None:
        self._model = model
        self._weights = weights
        self._settings = settings
        self._adapter = adapter

    @classmethod
    def _of(cls, planned: PlannedModel, factors: Vector, personal: Vector | None) -> Self:
        """The model of somebody's personal part, or of the common start, with announced factors."""
        shared, start = planned.parts(factors)
        fits = personal is not None and personal.shape == start.shape
        weights = planned.split.merged(shared, personal if personal is not None and fits else start)
        return cls(planned.model, weights, planned.plan.model, planned.plan.adapter)

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """The score of each response to a prompt, in the order given."""
        if isinstance(responses, str) or not isinstance(responses, Sequence) or not responses:
            raise DataError("responses must be a list with at least one text")
        if not all(isinstance(text, str) for text in (prompt, *responses)):
            raise DataError("the prompt and every response must be a text")
        texts = self._model.prepare_texts([(prompt, response) for response in responses])
        with torch.no_grad():
            return [float(value) for value in self._model.scores(texts, self._weights)]

    def rank(self, prompt: str, responses: Sequence[str]) -> list[RankedResponse]:
        """The responses to a prompt, the one that the person would like most first."""
        scores = self.score(prompt, responses)
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        over = [_sigmoid(scores[one] - scores[next_]) for one, next_ in pairwise(best)]
        return [
            RankedResponse(responses[index], scores[index], sure)
            for index, sure in zip(best, [*over, None], strict=True)
        ]

    def preference(self, prompt: str, a: str, b: str) -> float:
        """The probability that the person would choose response `a` rather than `b`."""
        first, second = self.score(prompt, [a, b])
        return _sigmoid(first - second)

    def export(self, directory: str | Path, base: str | None = None) -> None:
        """Write the model as plain peft files, which need no penchant to be used.

        base: where whoever loads the files finds the base model, if not where it was published.

        Raises:
            UsageError: the directory is in use, or the model can't be held by a peft adapter.
        """
        directory = path_given("directory", directory)
        if base is not None and not isinstance(base, str):
            raise UsageError(f"base is {base!r}; give the name or the folder of a base model, as a text")
        export_peft(
            Export(
                effective=self._weights,
                model=self._settings,
                adapter=self._adapter,
                base=base or self._model.published,
                digest=self._model.digest,
                pooling=self._model.pooling,
                max_tokens=self._model.max_tokens,
                part=self._model.part,
                classifier=self._model.classifier,
            ),
            directory,
        )
        settings = {
            "model": section_table(self._settings),
            "adapter": section_table(self._adapter),
            "digest": self._model.digest,
        }
        write_private(directory / SETTINGS_FILE, json.dumps(settings, indent=2).encode())

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The model that `export` wrote into a directory.

        Raises:
            DataError: the directory does not hold one. BaseModelError: its base model is another one now.
        """
        directory = path_given("directory", directory)
        try:
            table: dict[str, Any] = read_json(directory / SETTINGS_FILE, DataError)
            settings = build_section(ModelConfig, table["model"], "model")
            adapter = build_section(AdapterConfig, table["adapter"], "adapter")
            head = load_file(directory / HEAD_FILE)["weight"]
            path = directory / ADAPTER_FILE
            tensors = load_file(path) if path.is_file() else {}
        except (OSError, ValueError, KeyError, TypeError, ConfigError, SafetensorError) as error:
            raise DataError(
                f"{directory} does not hold a model that PersonalModel.export wrote: {error}"
            ) from None
        model = load_reward_model(settings, adapter)
        if model.digest != table.get("digest"):
            raise BaseModelError(
                f"{settings.base_model} is not the base model that {directory} was exported with; "
                "load the same weights, or train again"
            )
        return cls(model, _weights(tensors, head, model.device), settings, adapter)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a PersonalModel can't be pickled; use export, and PersonalModel.load where it is needed"
        )

    def __repr__(self) -> str:
        return f"PersonalModel(base_model={self._settings.base_model!r}, share={self._adapter.share!r})"


def _weights(tensors: dict[str, torch.Tensor], head: torch.Tensor, device: torch.device) -> MergedWeights:
    """The factors of peft's file, by module."""
    ending = ".lora_A.weight"
    adapted = [name.removeprefix(_ADAPTER).removesuffix(ending) for name in tensors if name.endswith(ending)]
    adapters = {
        module: (
            tensors[f"{_ADAPTER}{module}.lora_A.weight"].to(device),
            tensors[f"{_ADAPTER}{module}.lora_B.weight"].to(device),
        )
        for module in adapted
    }
    return MergedWeights(adapters, head.to(device))


def _sigmoid(margin: float) -> float:
    return 0.5 * (1 + math.tanh(margin / 2))
