"""Choices that are packed once, when they are read, and not again whenever a job is sent to its process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any

from penchant.common.data.preferences import Preference

__all__ = ["PackedChoices"]


class PackedChoices(tuple[Preference, ...]):
    """A tuple of choices beside the bytes as which it goes to another process, where it is a plain tuple.

    To pack thousands of choices takes the agent some ten milliseconds, and to copy their bytes none.
    """

    def __new__(cls, choices: Iterable[Preference]) -> PackedChoices:
        """Pack `choices`."""
        made = super().__new__(cls, choices)
        made._packed = pickle.dumps(tuple(made), pickle.HIGHEST_PROTOCOL)
        return made

    _packed: bytes

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        """How `pickle` sends it."""
        return pickle.loads, (self._packed,)
