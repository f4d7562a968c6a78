"""The owner's model, loaded once and kept in memory for whoever asks it again and again.

Its scores are those of `Device.rank`. As soon as the device has another model (trained, a round that
finished, something forgotten), that one answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penchant.client.device.device import Device, ModelInUse
from penchant.client.learning.model_cache import ModelCache, device_models
from penchant.common.model.batches import within

__all__ = ["TextScore", "WarmModel", "small_cache"]

CACHE_BYTES = 256 << 20
"""Activations of texts that may come again. The usual limit would be filled with texts that don't."""
PASS_TOKENS = 8192
"""Tokens of one pass: for MiniLM some 80 MB of activations."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """What the model says of one text.

    Attributes:
        raw: the score; differences are log-odds.
        tokens: how many tokens of it the model read.
        cut: whether it has more.
    """

    raw: float = field(repr=False)
    tokens: int
    cut: bool

    @property
    def bounded(self) -> float:
        """The score in [0, 1], by the logistic function: the same order."""
        return 0.5 * (1 + math.tanh(self.raw / 2))


@dataclass(frozen=True)
class _Loaded:
    version: int
    model: ModelInUse
    conversational: bool


class WarmModel:
    """The model of one device. One thread may use it at a time.

    Making it loads the model; errors as `Device.rank`.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._loaded = self._load()
        self.scores([("", "warm")])

    @property
    def personal(self) -> bool:
        """Whether a personal part was fitted; without one it is the model that knows nobody."""
        return self._loaded.model.personal

    @property
    def conversational(self) -> bool:
        """Whether it learned from conversations (`conversation_form`)."""
        return self._loaded.conversational

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read at most."""
        return self._loaded.model.planned.model.max_tokens

    def refresh(self) -> None:
        """Take the device's model, if it is another one than a moment ago."""
        if self._device.vault.version() != self._loaded.version:
            self._loaded = self._load()

    def scores(self, texts: Sequence[tuple[str, str]]) -> list[TextScore]:
        """What the model says of (prompt, response) texts, in the order given, in as few passes as memory
        allows."""
        self.refresh()
        model, most = self._loaded.model, self.max_tokens
        whole = model.planned.model.lengths(texts)
        read = [min(length, most) for length in whole]
        raw = [
            score
            for rows in within(read, PASS_TOKENS)
            for score in model.scores(texts[rows.start : rows.stop])
        ]
        return [
            TextScore(float(score), length, length < full)
            for score, length, full in zip(raw, read, whole, strict=True)
        ]

    def _load(self) -> _Loaded:
        version = self._device.vault.version()  # before the rest: what changes meanwhile is seen next time
        model = self._device.model_in_use()
        return _Loaded(version, model, self._device.conversational())


def small_cache(folder: Path | None = None) -> ModelCache:
    """Where a process that serves keeps its models.

    folder: where frozen states may lie that memory has no place for, of a process that trains too; without
        one nothing is written.
    """
    return device_models(None, folder, CACHE_BYTES)
