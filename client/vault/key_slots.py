"""Keys that can be destroyed: each has a place in a file, and is overwritten there when it is to be gone.

What is sealed under such a key can't be read from then on, wherever its bytes still lie: in a rollback
journal whose blocks were released, or in a copy without this file. The file grows by whole blocks and is
never replaced, so that a file system which writes in place (docs/threat-model.md) has each key in one spot.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from penchant.common.errors import DeviceError
from penchant.common.storage import sync_directory

__all__ = ["KeySlots"]

_SIZE: Final = 32
_BLOCK: Final = 4096  # more than an inode holds: a file in its inode would go through the journal
_FREE: Final = bytes(_SIZE)


class KeySlots:
    """A file of random keys of 32 bytes. Whoever uses it holds the lock of the database that names slots."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, count: int) -> list[tuple[int, bytes]]:
        """(slot, new key) `count` times, on disk before this returns. DeviceError when the disk refuses."""
        if not count:
            return []
        keys = self._read()
        free = [slot for slot in range(len(keys) // _SIZE) if _at(keys, slot) == _FREE][:count]
        free += range(len(keys) // _SIZE, len(keys) // _SIZE + count - len(free))
        taken = [(slot, os.urandom(_SIZE)) for slot in free]
        blocks = -(-(max(free) + 1) * _SIZE // _BLOCK)
        keys.extend(bytes(max(0, blocks * _BLOCK - len(keys))))
        self._write(keys, dict(taken))
        return taken

    def keys(self) -> bytearray:
        """All slots as they are now, for `at`."""
        return self._read()

    def keep_only(self, used: Collection[int]) -> None:
        """Destroy every key but those in the slots `used`. DeviceError when the disk refuses."""
        keys = self._read()
        gone = [s for s in range(len(keys) // _SIZE) if s not in used and _at(keys, s) != _FREE]
        if gone:
            self._write(keys, dict.fromkeys(gone, _FREE))

    @staticmethod
    def at(keys: bytearray, slot: int) -> bytes:
        """The key in a slot. DeviceError when there is none any more."""
        found = _at(keys, slot)
        if len(found) != _SIZE or found == _FREE:
            raise DeviceError("this does not open: its key was destroyed, or the file of keys was changed")
        return found

    def _read(self) -> bytearray:
        try:
            return bytearray(self._path.read_bytes())
        except FileNotFoundError:
            return bytearray()
        except OSError as error:
            raise DeviceError(f"can't read {self._path}: {error.strerror}") from None

    def _write(self, keys: bytearray, changes: dict[int, bytes]) -> None:
        """The changed slots, in place; `keys` is what the file holds, as long as it is to be."""
        for slot, key in changes.items():
            keys[slot * _SIZE : (slot + 1) * _SIZE] = key
        first = min(changes) * _SIZE // _BLOCK * _BLOCK
        last = max(changes) * _SIZE // _BLOCK * _BLOCK + _BLOCK
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                there = os.fstat(descriptor).st_size
                first = min(first, there // _BLOCK * _BLOCK)
                _write_all(descriptor, memoryview(keys)[first:last], first)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if not there:
                sync_directory(self._path.parent)
        except OSError as error:
            why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise DeviceError(f"{self._path}: {why}; nothing was changed") from None


def _at(keys: bytearray, slot: int) -> bytes:
    return bytes(keys[slot * _SIZE : (slot + 1) * _SIZE])


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done
