"""The text that a language model reads of a prompt and a response: training, scoring and writing ask here.

With a chat template a prompt is a user's message and a response the assistant's, or the prompt is what came
before in a conversation; the template is the tokenizer's own, run in transformers' sandbox. Without one a
text is read as it stands in the data, the response right behind its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penchant.common.config import TemplateName
from penchant.common.data.trl_format import Message, messages_in, render
from penchant.common.errors import BaseModelError

__all__ = ["FormedText", "Prompt", "PromptForm", "joined"]

Prompt = str | Sequence[Message]
"""A prompt as data has it, or what was said before in a conversation."""

_ANSWERS = "assistant:"  # how the line of a response begins where a conversation is one text


@dataclass(frozen=True)
class FormedText:
    """A text in the form in which a model reads it.

    Attributes:
        text: all of it.
        begun: how many of its characters are the prompt's.
        complete: whether a template made it, which then wrote every special token: none is to be added.
    """

    text: str
    begun: int
    complete: bool


class PromptForm:
    """How the prompts of one base model are read.

    Args:
        tokenizer: transformers', of the base model.
        template: "auto" puts its chat template around prompts, if it has one; "none" never does.
    """

    def __init__(self, tokenizer: Any, template: TemplateName = "auto") -> None:
        self.tokenizer = tokenizer
        self.templated = template == "auto" and bool(getattr(tokenizer, "chat_template", None))

    def prompt(self, prompt: Prompt) -> FormedText:
        """What a response is to go on from. Errors as `whole`."""
        messages = self._messages(prompt)
        if messages:
            text = self._rendered(messages, asks=True)
            return FormedText(text, len(text), complete=True)
        text = prompt if isinstance(prompt, str) else _spoken(prompt) + _ANSWERS
        return FormedText(text, len(text), complete=False)

    def whole(self, prompt: Prompt, response: str) -> FormedText:
        """A prompt with a response to it.

        The response's part begins where the text parts from what `prompt` gives, as in TRL: mostly behind the
        whole of that.

        Raises:
            BaseModelError: the template can't hold such a conversation.
        """
        messages = self._messages(prompt)
        if not messages:
            before = prompt if isinstance(prompt, str) else _spoken(prompt)
            return FormedText(joined(before, response), len(before), complete=False)
        asked = self._rendered(messages, asks=True)
        text = self._rendered([*messages, *_answers(response)], asks=False)
        return FormedText(text, _alike(asked, text), complete=True)

    # --- inner parts ------------------------------------------------------------------------------

    def _messages(self, prompt: Prompt) -> list[Message]:
        """The messages that go into the template; none where there is none, or nothing to answer."""
        if not self.templated:
            return []
        if not isinstance(prompt, str):
            return list(prompt)
        found = messages_in(prompt, ends_with_newline=True)
        if found is not None:
            return found
        return [{"role": "user", "content": prompt.strip()}] if prompt.strip() else []

    def _rendered(self, messages: Sequence[Message], *, asks: bool) -> str:
        """asks: what comes next is to be the assistant's answer."""
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=asks, tokenize=False)
            )
        except Exception as error:  # a template may raise whatever it likes; it would quote the messages
            raise BaseModelError(
                "the base model's chat template can't hold such a conversation "
                f"({type(error).__name__}); set model.template to none"
            ) from None


def joined(prompt: str, response: str) -> str:
    """The text that is read without a template, as in TRL: the response right behind its prompt."""
    return prompt + response


def _alike(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _spoken(messages: Sequence[Message]) -> str:
    return render("messages", list(messages), ends_with_newline=True)


def _answers(response: str) -> list[Message]:
    """The messages of a response: those of a conversation, or its text as the one of the assistant."""
    found = messages_in(response) if response.startswith(f"{_ANSWERS} ") else None
    return [{"role": "assistant", "content": response.strip()}] if found is None else found
