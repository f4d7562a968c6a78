"""Where an agent keeps the newest member list that it ever knew, so that an old one is never new again.

On a device it lies in the vault. A simulation holds every agent of a fleet: there each list is one file,
named by its digest, and a vault keeps the digest alone, or memory and disk would grow with the square of the
people.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from penchant.client.vault.vault import Vault
from penchant.common.errors import DeviceError
from penchant.common.storage import write_private

__all__ = ["MEMBERS", "KnownList", "ListByDigest", "ListInVault"]

MEMBERS = "member list"
_LENGTH = 32  # bytes; every list is longer: a signature alone has 64


class KnownList(Protocol):
    """The newest member list that one agent knows, as it was published."""

    def read(self) -> bytes:
        """The list; empty before the first."""

    def keep(self, encoded: bytes) -> None:
        """Take it for the newest, durably."""


class ListInVault:
    """In the device's own vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def read(self) -> bytes:
        """As `KnownList.read`."""
        return self._vault.blob(MEMBERS)

    def keep(self, encoded: bytes) -> None:
        """As `KnownList.keep`."""
        self._vault.keep_blob(MEMBERS, encoded)


class ListByDigest:
    """In a folder that the agents of one simulation share; the vault keeps the list's sha256."""

    def __init__(self, vault: Vault, folder: Path) -> None:
        self._vault = vault
        self._folder = folder

    def read(self) -> bytes:
        """As `KnownList.read`. DeviceError when the file is missing, or is not what the digest says."""
        kept = self._vault.blob(MEMBERS)
        if len(kept) != _LENGTH:
            return kept  # none, or the list itself: simulations of 0.2 and before
        path = self._folder / kept.hex()
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise DeviceError(f"can't read the member list {path}: {error.strerror}; put it back") from None
        if hashlib.sha256(encoded).digest() != kept:
            raise DeviceError(f"the member list {path} was changed; put back what it was")
        return encoded

    def keep(self, encoded: bytes) -> None:
        """As `KnownList.keep`; the file is durable before the digest is."""
        digest = _digest(encoded)
        path = self._folder / digest.hex()
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, encoded, replace=False)
        self._vault.keep_blob(MEMBERS, digest)


@lru_cache(maxsize=2)
def _digest(encoded: bytes) -> bytes:
    """sha256 of a list: all agents of a simulation keep the same object, as long as the fleet is large."""
    return hashlib.sha256(encoded).digest()
