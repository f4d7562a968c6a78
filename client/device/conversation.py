"""A conversation of the owner with their personal policy, in memory only."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from penchant.client.device.device import Device
from penchant.common.data.trl_format import Message
from penchant.common.model.prompt_form import Prompt

__all__ = ["Conversation"]


class Conversation:
    """What was said so far, and who answers. Nothing of it is kept on disk or logged.

    The model is the one in use when the conversation begins. Where it has a chat template, or learned from
    conversations, it reads all that was said; otherwise it knows single prompts, and reads the last message.

    Args:
        device: the owner's.
        tokens: of an answer, at most.
        temperature: of sampling.
        seed: with the same one the same messages get the same answers; None draws another one for each
            conversation.

    Raises:
        UsageError: the device's model ranks and doesn't write. BaseModelError as loading.
    """

    def __init__(
        self, device: Device, *, tokens: int = 256, temperature: float = 0.8, seed: int | None = None
    ) -> None:
        self._generator = device.generator()
        self._reads_all = self._generator.templated or device.knows_conversations()
        self._tokens, self._temperature, self._given = tokens, temperature, seed
        self._messages: list[Message] = []
        self._seed = self._turns = 0
        self.left_out = 0
        """Messages at the beginning that the model has no room for any more."""
        self.begin_anew()

    def answer(self, said: str, tell: Callable[[str], None]) -> str:
        """The answer to what the owner says; `tell` is given each piece of it as it is written.

        Where it is cut short by an exception, such as the owner's Ctrl-C, neither was said. UsageError for a
        blank message or numbers out of range.
        """
        messages: list[Message] = [*self._messages, {"role": "user", "content": said}]
        left_out = self.left_out
        if self._reads_all:
            while len(messages) - left_out > 1 and not self._has_room(messages[left_out:]):
                left_out += 2
        asked: Prompt = messages[left_out:] if self._reads_all else said
        answer = self._generator.speak(
            asked,
            tell,
            seed=self._seed + self._turns,
            tokens=self._tokens,
            temperature=self._temperature,
        )
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        self._turns, self.left_out = self._turns + 1, left_out
        return answer

    def begin_anew(self) -> None:
        """Forget what was said."""
        self._messages, self._turns, self.left_out = [], 0, 0
        self._seed = secrets.randbits(31) if self._given is None else self._given

    def _has_room(self, messages: list[Message]) -> bool:
        return self._generator.length(messages) + self._tokens <= self._generator.most_tokens
