"""The text that a language model reads of a prompt and a response: training, scoring and writing ask here.

With a chat template a prompt is a user's message and a response the assistant's, or the prompt is what came
before in a conversation; the template is the tokenizer's own, run in transformers' sandbox. Only the template
writes the tokens that say where a message begins and ends: in what somebody said they are ordinary text.
Without a template a text is read as it stands in the data, the response right behind its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from penchant.common.config import TemplateName
from penchant.common.data.trl_format import Message, messages_in, render
from penchant.common.errors import BaseModelError, DataError

__all__ = ["FormedText", "Prompt", "PromptForm", "joined"]

Prompt = str | Sequence[Message]
"""A prompt as data has it, or what was said before in a conversation."""

_ANSWERS = "assistant:"  # how the line of a response begins where a conversation is one text
_TURNS: list[Message] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]
_INSTRUCTED: list[Message] = [{"role": "system", "content": "d"}, *_TURNS]
_NESTED = 8  # how often a mark may be within another that was broken up


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
        text = self._plain(prompt if isinstance(prompt, str) else _spoken(prompt) + _ANSWERS)
        return FormedText(text, len(text), complete=False)

    def whole(self, prompt: Prompt, response: str) -> FormedText:
        """A prompt with a response to it.

        The response's part begins where the text parts from what `prompt` gives, as in TRL: mostly behind the
        whole of that.

        Raises:
            BaseModelError: the template can't hold such a conversation.
            DataError: what was said holds a token of the template that can't be made ordinary text.
        """
        messages = self._messages(prompt)
        if not messages:
            before = self._plain(prompt if isinstance(prompt, str) else _spoken(prompt))
            return FormedText(joined(before, self._plain(response)), len(before), complete=False)
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

    @cached_property
    def _marks(self) -> _Marks:
        """The tokens that nobody's text may make: the special ones, and others that the template writes
        around messages, which some tokenizers don't call special."""
        told = ""
        for messages in (_TURNS, _INSTRUCTED):
            with suppress(BaseModelError):  # some hold no system's message
                told += self._filled(messages, asks=True)
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        marks = {str(token): bool(token.normalized) for token in added if token.special or str(token) in told}
        special = map(str, getattr(self.tokenizer, "all_special_tokens", ()))
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        normalizer = None if backend is None else backend.normalizer
        return _Marks(
            {*marks, *special},
            [text for text, normalized in marks.items() if normalized],
            None if normalizer is None else normalizer.normalize_str,
        )

    def _plain(self, text: str) -> str:
        """What somebody said, as it is read: without a template as it stands."""
        return self._marks.broken_up(text) if self.templated else text

    def _rendered(self, messages: Sequence[Message], *, asks: bool) -> str:
        """asks: what comes next is to be the assistant's answer."""
        said = [{**message, "content": self._plain(message["content"])} for message in messages]
        return self._filled(said, asks=asks)

    def _filled(self, messages: Sequence[Message], *, asks: bool) -> str:
        """The template with these messages in it."""
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=asks, tokenize=False)
            )
        except Exception as error:  # a template may raise whatever it likes; it would quote the messages
            raise BaseModelError(
                "the base model's chat template can't hold such a conversation "
                f"({type(error).__name__}); set model.template to none"
            ) from None


class _Marks:
    """The texts that a tokenizer reads as tokens which say where messages begin and end.

    Args:
        texts: all of them.
        normalized: those that are looked for in the normalised text, so that other texts may make them too.
        normalize: how texts are normalised; None where they are not.
    """

    def __init__(
        self, texts: Iterable[str], normalized: Iterable[str], normalize: Callable[[str], str] | None
    ) -> None:
        self._normalize = normalize
        others = [normalize(text).strip() for text in normalized] if normalize else []
        lowers = normalize is not None and "A" not in normalize("A")
        self._written = _any_of(texts, re.IGNORECASE if others and lowers else re.NOFLAG)
        self._read = _any_of(others)

    def broken_up(self, text: str) -> str:
        """A text with a blank behind the first character of each such text in it; any other as it is.

        Raises:
            DataError: that does not help.
        """
        for _ in range(_NESTED):
            if not self._written.search(text):
                break
            text = self._written.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)
        read = self._normalize(text) if self._normalize else ""
        if self._written.search(text) or self._read.search(read):
            raise DataError(
                "a text holds a token of the base model's chat template, and can't be told from it; "
                "leave it out, or set model.template to none"
            )
        return text


def _any_of(texts: Iterable[str], flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """Where any of some texts is, the longest first; nowhere without any."""
    longest_first = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", flags)


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
