"""What a device keeps at rest is sealed: AES-256-GCM under a key from a passphrase or from a key file.

A passphrase goes through scrypt (RFC 7914, N = 2^15, r = 8, p = 1: about 32 MB and a tenth of a second); the
salt lies beside what it protects. A key file holds 32 random bytes that only its owner can read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from penchant.client.vault.ownership import check_directory
from penchant.common.crypto.keys import open_at_rest, seal_at_rest
from penchant.common.crypto.passphrase import stretched
from penchant.common.errors import DeviceError, SecretSharingError
from penchant.common.storage import write_private

__all__ = ["SealedStorage"]

KEY_FILE: Final = "vault.key"
SALT_FILE: Final = "vault.salt"
CHECK_FILE: Final = "vault.check"
_CHECK: Final = b"penchant vault"


class SealedStorage:
    """Seals and opens bytes. `repr` shows nothing of the key."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """From 32 uniform bytes."""
        self._key = key

    def __repr__(self) -> str:
        return "SealedStorage()"

    @classmethod
    def of(cls, home: Path, passphrase: str | None = None) -> SealedStorage:
        """The box of a device's directory, made at the first call: by passphrase if one is given then.

        Raises DeviceError for a wrong or missing passphrase, a key file that others can read, or a directory
        that is another user's or that others can write in.
        """
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_directory(home)
            return cls._of(home, passphrase)
        except OSError as error:
            raise DeviceError(f"can't use the device's directory {home}: {error.strerror}") from None

    @staticmethod
    def asks_passphrase(home: Path) -> bool | None:
        """Whether the directory is protected by a passphrase; None before it is protected at all."""
        if (home / SALT_FILE).exists():
            return True
        return False if (home / KEY_FILE).exists() else None

    @classmethod
    def _of(cls, home: Path, passphrase: str | None) -> SealedStorage:
        if (home / SALT_FILE).exists() or (passphrase is not None and not (home / KEY_FILE).exists()):
            return cls._checked(home, _from_passphrase(home, passphrase))
        if passphrase is not None:
            raise DeviceError(f"{home} is protected by a key file, not by a passphrase")
        return cls._checked(home, _from_file(home / KEY_FILE))

    @classmethod
    def _checked(cls, home: Path, key: bytes) -> SealedStorage:
        """Refuse another key than the first, before anything is written under it."""
        box, check = cls(key), home / CHECK_FILE
        if not check.exists():
            write_private(check, box.seal(_CHECK, "check"), replace=False)
        if box.open(check.read_bytes(), "check") != _CHECK:
            raise DeviceError(f"{check} is damaged")
        return box

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


def _from_passphrase(home: Path, passphrase: str | None) -> bytes:
    if passphrase is None:
        raise DeviceError(f"{home} is protected by a passphrase: give it (--passphrase)")
    if not passphrase:
        raise DeviceError("the passphrase is empty; choose one")
    salt = home / SALT_FILE
    if not salt.exists():
        write_private(salt, os.urandom(16), replace=False)
    return stretched(passphrase.encode(), salt.read_bytes())


def _from_file(path: Path) -> bytes:
    if not path.exists():
        write_private(path, os.urandom(32), replace=False)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise DeviceError(f"{path} can be read by others; chmod 600 it, and think about who has read it")
    key = path.read_bytes()
    if len(key) != 32:
        raise DeviceError(f"{path} is damaged: it holds {len(key)} bytes instead of 32")
    return key
