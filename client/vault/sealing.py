"""What a device keeps at rest is sealed: AES-256-GCM under a root key of 32 random bytes, `vault.root`.

With a passphrase the root key is itself sealed, under scrypt at the recommended cost
(`common.crypto.passphrase`); without one the file is for its owner alone, and that is all that guards it.
What must be destroyed one by one has keys of its own besides (`client.vault.erasable`).

Until 0.3 the key was `vault.key`, or came from the passphrase and `vault.salt` at a quarter of the cost. Such
a home gets a root key when it is next opened, `Vault` seals anew what it holds, and the old file is
overwritten.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from penchant.client.vault.ownership import check_directory
from penchant.common.crypto.keys import derive, open_at_rest, seal_at_rest
from penchant.common.crypto.passphrase import (
    OLD,
    RECOMMENDED,
    ScryptCost,
    is_sealed,
    open_key,
    refuse_weak,
    seal_key,
    stretched,
)
from penchant.common.errors import DeviceError, SecretSharingError
from penchant.common.storage import erase, replace_erasing, write_private

__all__ = ["SealedStorage"]

ROOT_FILE: Final = "vault.root"
CHECK_FILE: Final = "vault.check"
OLD_KEY_FILE: Final = "vault.key"
OLD_SALT_FILE: Final = "vault.salt"
_CHECK: Final = b"penchant vault"
_CLEAR: Final = b"penchant-key$"
_PURPOSE: Final = "device"
_CELL: Final = b"penchant cell at rest\0"  # without the protocol's version, which a file outlives


class SealedStorage:
    """Seals and opens bytes. `repr` shows nothing of the key."""

    __slots__ = ("_home", "_key", "before")

    def __init__(self, key: bytes) -> None:
        """From 32 uniform bytes."""
        self._key = key
        self._home: Path | None = None
        self.before: SealedStorage | None = None  # what an earlier version sealed, and the vault still holds

    def __repr__(self) -> str:
        return "SealedStorage()"

    @classmethod
    def of(cls, home: Path, passphrase: str | None = None, cost: ScryptCost = RECOMMENDED) -> SealedStorage:
        """The sealed storage of a directory, made at the first call: by passphrase if one is given then.

        cost: of a guess at the passphrase, in what is made or upgraded.

        Raises DeviceError for a wrong or missing passphrase, a key file that others can read, or a directory
        that is another user's or that others can write in; UsageError for a weak new passphrase.
        """
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_directory(home)
            return cls._of(home, passphrase, cost)
        except OSError as error:
            raise DeviceError(f"can't use the device's directory {home}: {error.strerror}") from None

    @staticmethod
    def asks_passphrase(home: Path) -> bool | None:
        """Whether the directory is protected by a passphrase; None before it is protected at all."""
        root = home / ROOT_FILE
        if root.exists():
            return is_sealed(root.read_bytes())
        if (home / OLD_SALT_FILE).exists():
            return True
        return False if (home / OLD_KEY_FILE).exists() else None

    @classmethod
    def _of(cls, home: Path, passphrase: str | None, cost: ScryptCost) -> SealedStorage:
        _refuse_other_way(home, passphrase)
        root = home / ROOT_FILE
        old = _old_key(home, passphrase)
        if not root.exists():
            if old is not None:
                _check(cls(old), home)
            elif passphrase is not None:
                refuse_weak(passphrase)
            key = os.urandom(32)
            write_private(root, _written(key, passphrase, cost), replace=False)
        storage = cls(_root_key(root, passphrase, cost))
        storage._home = home
        if old is None:
            _check(storage, home)
        else:
            storage.before = cls(old)
        return storage

    def upgraded(self) -> None:
        """Nothing is sealed in the way of an earlier version any more: its key is overwritten."""
        if self.before is None or self._home is None:
            return
        self.before = None
        write_private(self._home / CHECK_FILE, self.seal(_CHECK, "check"))
        for name in (OLD_KEY_FILE, OLD_SALT_FILE):
            path = self._home / name
            try:
                if path.exists():
                    erase(path)
            except OSError as error:
                raise DeviceError(f"can't erase {path}: {error.strerror}; open the device again") from None

    def under(self, key: bytes) -> SealedStorage:
        """A storage that opens with this one's key and `key` (32 bytes) together."""
        return SealedStorage(derive(self._key, _CELL + key))

    def seal(self, data: bytes, purpose: str) -> bytes:
        """`data` under a fresh nonce; it opens for the same purpose only. 28 bytes longer."""
        return seal_at_rest(self._key, data, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """What `seal` sealed. DeviceError for a wrong passphrase or key, or changed bytes."""
        try:
            return open_at_rest(self._key, sealed, purpose.encode())
        except SecretSharingError:
            raise DeviceError(
                "this does not open: wrong passphrase or key, or the file was changed"
            ) from None


def _refuse_other_way(home: Path, passphrase: str | None) -> None:
    asks = SealedStorage.asks_passphrase(home)
    if asks and passphrase is None:
        raise DeviceError(f"{home} is protected by a passphrase: give it (--passphrase)")
    if passphrase == "":
        raise DeviceError("the passphrase is empty; choose one")
    if asks is False and passphrase is not None:
        raise DeviceError(f"{home} is protected by a key file, not by a passphrase")


def _check(storage: SealedStorage, home: Path) -> None:
    """Refuse another key than the first, before anything is written under it."""
    check = home / CHECK_FILE
    if not check.exists():
        write_private(check, storage.seal(_CHECK, "check"), replace=False)
    if storage.open(check.read_bytes(), "check") != _CHECK:
        raise DeviceError(f"{check} is damaged")


def _written(key: bytes, passphrase: str | None, cost: ScryptCost) -> bytes:
    if passphrase is None:
        return _CLEAR + key.hex().encode() + b"\n"
    return seal_key(key, passphrase, _PURPOSE, cost)


def _root_key(root: Path, passphrase: str | None, cost: ScryptCost) -> bytes:
    """What the file holds; one that was sealed at a lower cost than today's is sealed anew."""
    data = root.read_bytes()
    if not is_sealed(data):
        return _from_clear(root, data)
    if passphrase is None:  # another process made the file under one just now
        raise DeviceError(f"{root.parent} is protected by a passphrase: give it (--passphrase)")
    try:
        key, found = open_key(data, passphrase, _PURPOSE)
    except SecretSharingError:
        raise DeviceError("this does not open: wrong passphrase or key, or the file was changed") from None
    if found.n < cost.n:
        replace_erasing(root, seal_key(key, passphrase, _PURPOSE, cost), failure=DeviceError)
    return key


def _from_clear(root: Path, data: bytes) -> bytes:
    _refuse_open_to_others(root)
    try:
        key = bytes.fromhex(data.removeprefix(_CLEAR).decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != 32 or not data.startswith(_CLEAR):
        raise DeviceError(f"{root} is damaged: it holds no key")
    return key


def _old_key(home: Path, passphrase: str | None) -> bytes | None:
    """The key of an earlier version, while there is one."""
    salt, path = home / OLD_SALT_FILE, home / OLD_KEY_FILE
    if salt.exists() and passphrase is not None:
        return stretched(passphrase.encode(), salt.read_bytes(), OLD)
    if not path.exists():
        return None
    _refuse_open_to_others(path)
    key = path.read_bytes()
    if len(key) != 32:
        raise DeviceError(f"{path} is damaged: it holds {len(key)} bytes instead of 32")
    return key


def _refuse_open_to_others(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise DeviceError(f"{path} can be read by others; chmod 600 it, and think about who has read it")
