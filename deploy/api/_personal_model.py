"""One person's reward model: it scores and ranks responses as that person would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Self

from penchant._checks import path_given
from penchant.client.device.conversation_form import prompt_of, response_of
from penchant.client.device.export import Export, export_peft
from penchant.client.device.exported_model import load_exported
from penchant.client.learning.merged_model import MergedModel
from penchant.common.data.trl_format import render
from penchant.common.errors import DataError, UsageError
from penchant.deploy.evaluation import Evaluation, Models, evaluate

__all__ = ["PersonalModel", "RankedResponse"]

Messages = list[dict[str, Any]]


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

    Made by `SimulationResult.personal_model`, `SimulationResult.shared_model`,
    `SimulationResult.fit_newcomer` and `PersonalModel.load`.
    """

    def __init__(self, merged: MergedModel) -> None:
        self._merged = merged

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """The score of each response to a prompt, in the order given."""
        if isinstance(responses, str) or not isinstance(responses, Sequence) or not responses:
            raise DataError("responses must be a list with at least one text")
        if not all(isinstance(text, str) for text in (prompt, *responses)):
            raise DataError("the prompt and every response must be a text")
        return self._merged.scores([(prompt, response) for response in responses])

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

    def reward(
        self, prompts: Sequence[str | Messages], completions: Sequence[str | Messages], **columns: object
    ) -> list[float]:
        """The score of each completion of the prompt in the same place: a reward function as TRL's
        `GRPOTrainer` and `RLOOTrainer` take it (``reward_funcs=model.reward``).

        Args:
            prompts: texts, or conversations as lists of messages. Those are asked in the form that the model
                was trained in: a line ``role: content`` a message, or, where its choices were plain texts,
                the last message's text, without roles.
            completions: of the same kind; a conversation's messages that answer the prompt.
            columns: whatever else a trainer hands over, which makes no difference.

        Raises:
            DataError: a prompt is a text and its completion a conversation, or the other way round, or there
                is no message in one.
        """
        del columns
        asked = zip(prompts, completions, strict=True)
        form = self._merged.conversations
        return self._merged.scores([_as_trained(p, completion, form) for p, completion in asked])

    def evaluate(self, source: str | Path, *, by: str | None = None) -> Evaluation:
        """How well the model ranks the pairs of a file, all together and by group.

        Args:
            source: a file or folder of choices in any format that `load_preferences` reads.
            by: the column that says which group a pair belongs to, such as RewardBench's "subset"; the person
                (person, worker or user_id) if None.

        Raises:
            DataError: there is no pair that can be used.
        """
        return evaluate(path_given("source", source), Models(self._merged), by=by)

    def export(self, directory: str | Path, base: str | None = None, *, gguf: bool = False) -> None:
        """Write the model as plain peft files, which need no penchant to be used.

        Args:
            directory: an empty directory, or one that is not there yet.
            base: where whoever loads the files finds the base model, if not where it was published.
            gguf: whether a policy's adapter is also written as `adapter.gguf`, for llama.cpp.

        Raises:
            UsageError: the directory is in use, or the model can't be held by a peft adapter; or, with
                `gguf`, it is not a policy or penchant[gguf] is missing.
            BaseModelError: with `gguf`, it is not known where llama.cpp keeps this base model's weights.
        """
        directory = path_given("directory", directory)
        if base is not None and not isinstance(base, str):
            raise UsageError(f"base is {base!r}; give the name or the folder of a base model, as a text")
        export_peft(Export.of(self._merged, base, gguf=gguf), directory, tried=self._merged)

    def export_onnx(self, directory: str | Path) -> None:
        """Write the model as one ONNX file with its tokenizer and a card, for runtimes without torch. What is
        written was loaded in onnxruntime, and gives these scores to 1e-4.

        Raises:
            UsageError: the directory is in use, the model has no score head, or penchant[onnx] is missing.
            BaseModelError: the base model can't be written as ONNX.
        """
        from penchant.client.device.onnx_export import export_onnx

        export_onnx(self._merged, path_given("directory", directory))

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The model that `export`, `penchant device export` or `penchant export` wrote into a directory.

        Raises:
            DataError: the directory does not hold one. BaseModelError: its base model is another one now.
        """
        return cls(load_exported(path_given("directory", directory)))

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a PersonalModel can't be pickled; use export, and PersonalModel.load where it is needed"
        )

    def __repr__(self) -> str:
        merged = self._merged
        return f"PersonalModel(base_model={merged.settings.base_model!r}, share={merged.adapter.share!r})"


def _as_trained(prompt: str | Messages, completion: str | Messages, conversation: bool) -> tuple[str, str]:
    """(prompt, response) as the model was trained: in the form of conversations, or plain."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DataError("one of prompt and completion is a text and the other a conversation")
    answered = render("completion", completion)
    if not completion:
        raise DataError("a completion has no message")
    response = answered if conversation else response_of(completion[-1], conversation=False)
    return prompt_of(prompt, conversation=conversation), response


def _sigmoid(margin: float) -> float:
    return 0.5 * (1 + math.tanh(margin / 2))
