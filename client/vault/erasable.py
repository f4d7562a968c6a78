"""What is sealed so that it can be destroyed: each sealed value has a key of its own in a file of slots.

A value opens with both: the device's root key, which a passphrase may protect, and the key in its slot. When
its row is gone from the database, the slot is overwritten: that value is gone from every block it was written
to. The database's own lock guards the slots: all of this is called inside a transaction of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from penchant.client.vault.key_slots import KeySlots
from penchant.client.vault.sealing import SealedStorage
from penchant.common.errors import DeviceError

__all__ = ["ErasableStorage"]

_NUMBER: Final = 4  # bytes of a slot's number, before what is sealed


class ErasableStorage:
    """Seals values under keys that can be destroyed. `repr` shows nothing of a key."""

    def __init__(self, storage: SealedStorage, slots: Path) -> None:
        self._storage = storage
        self._slots = KeySlots(slots)

    def __repr__(self) -> str:
        return "ErasableStorage()"

    def seal(self, values: Sequence[tuple[bytes, str]]) -> list[bytes]:
        """Each (data, purpose) under a key of its own, which is on disk before this returns."""
        taken = self._slots.take(len(values))
        return [
            slot.to_bytes(_NUMBER, "big") + self._storage.under(key).seal(data, purpose)
            for (data, purpose), (slot, key) in zip(values, taken, strict=True)
        ]

    def open(self, sealed: Iterable[tuple[bytes, str]]) -> list[bytes]:
        """What `seal` sealed for these purposes. DeviceError for a destroyed or wrong key, or other bytes."""
        keys = self._slots.keys()
        return [self._open(keys, data, purpose) for data, purpose in sealed]

    def open_what_opens(self, sealed: Iterable[tuple[bytes, str]]) -> list[bytes | None]:
        """As `open`; None for what doesn't open, because its key is gone say."""
        keys = self._slots.keys()
        return [self._opened(keys, data, purpose) for data, purpose in sealed]

    def destroy_but(self, sealed: Iterable[bytes]) -> None:
        """Destroy the keys of all values but these: the database must name no others, durably."""
        self._slots.keep_only({_slot(data) for data in sealed})

    def _open(self, keys: bytearray, data: bytes, purpose: str) -> bytes:
        return self._storage.under(KeySlots.at(keys, _slot(data))).open(data[_NUMBER:], purpose)

    def _opened(self, keys: bytearray, data: bytes, purpose: str) -> bytes | None:
        try:
            return self._open(keys, data, purpose)
        except DeviceError:
            return None


def _slot(sealed: bytes) -> int:
    if len(sealed) < _NUMBER:
        raise DeviceError("this does not open: the file was changed")
    return int.from_bytes(sealed[:_NUMBER], "big")
