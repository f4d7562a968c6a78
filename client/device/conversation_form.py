"""In which form a person's model knows conversations: as it was trained, so it must be asked.

What was imported from chats is one text with a line ``role: content`` a message
(`penchant.common.data.trl_format.render`). Plain rows are a prompt and a response behind it, without roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penchant.common.data.trl_format import render
from penchant.common.errors import DataError

if TYPE_CHECKING:  # commands read this before they need torch
    from penchant.common.model.reward import Pair

__all__ = ["form_said", "learned_from_conversations", "prompt_of", "response_of"]

ANSWERS = "assistant: "
SPOKEN = ("user: ", "system: ", ANSWERS)


def learned_from_conversations(choices: Iterable[Pair]) -> bool:
    """Whether most of some choices are between answers in conversations; so also without any choices."""
    spoken = [choice.chosen.startswith(ANSWERS) and choice.prompt.startswith(SPOKEN) for choice in choices]
    return 2 * sum(spoken) >= len(spoken)


def form_said(conversation: bool) -> str:
    """How a model is asked about conversations, in a sentence for its card."""
    if conversation:
        return (
            "It is asked about a conversation as it was trained: a line `role: content` a message, each\n"
            "ended by a newline, and behind them `assistant: ` and the response."
        )
    return (
        "It was learned from plain texts: of a conversation it is asked with the last message's text, and\n"
        "the response behind it, without roles."
    )


def prompt_of(messages: Sequence[Mapping[str, Any]], *, conversation: bool) -> str:
    """What was said before a response: all of it, a line a message, or in the plain form the last one's text.

    DataError when there is nothing, or a message that is no text.
    """
    if not messages:
        raise DataError("'messages' is empty")
    rendered = render("messages", list(messages), ends_with_newline=True)
    return rendered if conversation else _plain("messages", messages[-1])


def response_of(message: Mapping[str, Any], *, conversation: bool) -> str:
    """A response to it in the same form. DataError when the message is no text."""
    answer = {**message, "role": "assistant"}
    return render("message", [answer]) if conversation else _plain("message", answer)


def _plain(name: str, message: Mapping[str, Any]) -> str:
    """A message's text alone."""
    return render(name, [{**message, "role": ""}]).removeprefix(": ")
