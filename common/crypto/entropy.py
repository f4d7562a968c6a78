"""Where keys, seeds and shares get their randomness from.

A device draws from its operating system. Tests and simulations pass `SeededEntropy` to a constructor;
no configuration key, command line option or message reaches this choice.
"""

from __future__ import annotations

import os
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import derive

__all__ = ["Entropy", "SeededEntropy", "SystemEntropy"]


class Entropy(Protocol):
    """A source of uniform bytes."""

    def draw(self, count: int) -> bytes:
        """`count` fresh uniform bytes."""


class SystemEntropy:
    """The operating system's generator."""

    def draw(self, count: int) -> bytes:
        """`count` bytes of `os.urandom`."""
        return os.urandom(count)


class SeededEntropy:
    """A reproducible stream for tests and simulations: AES-256-CTR under HKDF(seed, label).

    Different labels give independent streams. Whoever knows the seed knows every secret drawn here.
    """

    def __init__(self, seed: bytes, label: str) -> None:
        key = derive(seed, domain("seeded-entropy", label.encode()))
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def draw(self, count: int) -> bytes:
        """The next `count` bytes of the stream."""
        return self._stream.update(bytes(count))
