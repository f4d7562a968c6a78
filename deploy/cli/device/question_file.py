"""A prompt and responses to it, as a file has them: lines, or JSON where a response has several lines or the
prompt is a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.client.device.conversation_form import prompt_of, response_of
from penchant.common.data.preferences import check_text, kind_of
from penchant.common.errors import DataError, UsageError
from penchant.common.foreign_files import read_json
from penchant.deploy.cli.device.options import lines_of

__all__ = ["QuestionFile", "question_in"]

Message = Mapping[str, Any]


@dataclass(frozen=True)
class QuestionFile:
    """What is to be ranked: a text and responses behind it, or messages and answers to the last of them."""

    prompt: str | Sequence[Message] = field(repr=False)
    responses: Sequence[str] = field(repr=False)

    def as_trained(self, *, conversation: bool) -> tuple[str, list[str]]:
        """Prompt and responses in the form that the model was trained in. DataError for a message that is no
        text."""
        if isinstance(self.prompt, str):
            return self.prompt, list(self.responses)
        prompt = prompt_of(self.prompt, conversation=conversation)
        return prompt, [response_of({"content": one}, conversation=conversation) for one in self.responses]


def question_in(file: str, prompt: str) -> QuestionFile:
    """The question that a file holds; `prompt` goes with a file that has responses only.

    Raises DataError if it can't be read, UsageError if a prompt is given to a file that has one.
    """
    if not file.endswith(".json"):
        return QuestionFile(prompt, lines_of(file))
    found = read_json(Path(file), DataError)
    if isinstance(found, list):
        return QuestionFile(prompt, _texts(file, found))
    if not isinstance(found, dict) or "responses" not in found:
        raise DataError(f"{file} must hold a list of responses, or an object with prompt and responses")
    if prompt and "prompt" in found:
        raise UsageError(f"{file} has a prompt of its own; leave --prompt out")
    asked = found.get("prompt", prompt)
    if not isinstance(asked, str) and not (
        isinstance(asked, list) and asked and all(isinstance(one, dict) for one in asked)
    ):
        raise DataError(f"{file}: 'prompt' must be a text or a list of messages, not {_odd(asked)}")
    return QuestionFile(asked, _texts(file, found["responses"]))


def _odd(asked: object) -> str:
    if not isinstance(asked, list):
        return kind_of(asked)
    return "a list of other things" if asked else "an empty list"


def _texts(file: str, found: object) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise DataError(f"{file}: the responses must be a list of texts")
    for one in found:
        check_text("a response", one)
    return list(found)
