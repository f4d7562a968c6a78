"""Keys and their uses: Ed25519 (RFC 8032), X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM.

All of it comes from `cryptography`. Callers pass messages and derivation infos built by
`protocol.domain`, so that no signature or key made for one purpose serves another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from penchant.common.errors import SecretSharingError

__all__ = [
    "AgreementKey",
    "SignatureCache",
    "Verifier",
    "check_point",
    "derive",
    "open_at_rest",
    "open_sealed",
    "seal",
    "seal_at_rest",
    "verify",
]

Verifier = Callable[[bytes, bytes, bytes], bool]
"""(public key, message, signature) -> whether the signature holds."""


# --- signatures -----------------------------------------------------------------------------------


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is an Ed25519 signature of `message` under `public_key` (32 bytes)."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class SignatureCache:
    """A `Verifier` that remembers signatures which held, for simulations in one process only.

    A simulated cohort verifies each signature once per device, n^2 in all, on one machine. A device must
    never share such a memory with anybody: it is injected by constructor and by the simulator alone.
    """

    def __init__(self, limit: int = 1 << 16) -> None:
        self._held: set[tuple[bytes, bytes, bytes]] = set()
        self._limit = limit

    def __call__(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """As `verify`."""
        key = (public_key, message, signature)
        if key in self._held:
            return True
        if not verify(public_key, message, signature):
            return False
        if len(self._held) >= self._limit:
            self._held.clear()
        self._held.add(key)
        return True


# --- agreement ------------------------------------------------------------------------------------

_PRIME: Final = 2**255 - 19
# u-coordinates of order 1, 2, 4 and 8 on the curve and on its twist (RFC 7748, section 6.1; SafeCurves).
_LOW_ORDER: Final = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _PRIME - 1,
    }
)


def check_point(public_key: bytes) -> None:
    """Refuse an X25519 public key that is not canonical or of low order; raises `SecretSharingError`."""
    u = int.from_bytes(public_key, "little")
    if len(public_key) != 32 or u >= _PRIME or u in _LOW_ORDER:
        raise SecretSharingError("an X25519 public key is malformed or of low order")


class AgreementKey:
    """An X25519 private key. `repr` shows nothing of it."""

    __slots__ = ("_key",)

    def __init__(self, private: bytes) -> None:
        """From 32 uniform bytes."""
        self._key = X25519PrivateKey.from_private_bytes(private)

    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def agree(self, peer: bytes) -> bytes:
        """The 32 bytes shared with `peer`'s public key; raises `SecretSharingError` for low-order points."""
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise SecretSharingError("an X25519 public key is malformed or of low order") from None


# --- derivation and sealing -----------------------------------------------------------------------

_SHA256: Final = hashes.SHA256()
# A sealing key is derived for one message from one sender to one receiver in one attempt: no nonce is needed.
_NONCE: Final = bytes(12)


def derive(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 without salt: `length` bytes from `secret`, bound to `info`."""
    return HKDF(_SHA256, length, None, info).derive(secret)


def seal_at_rest(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM under a key that serves again: a fresh nonce (12 bytes), then what `seal` would give."""
    nonce = os.urandom(len(_NONCE))
    return nonce + _encrypted(key, nonce, plaintext, associated)


def open_at_rest(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """What `seal_at_rest` sealed; raises `SecretSharingError` if it was changed, or under another key."""
    return _decrypted(key, sealed[: len(_NONCE)], sealed[len(_NONCE) :], associated)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM under a key that is used for this one message: plaintext + 16 bytes."""
    return _encrypted(key, _NONCE, plaintext, associated)


def open_sealed(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """What `seal` sealed; raises `SecretSharingError` if it was changed or sealed for another purpose."""
    return _decrypted(key, _NONCE, sealed, associated)


def _encrypted(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    return AESGCM(key).encrypt(nonce, plaintext, associated)


def _decrypted(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except (InvalidTag, ValueError):  # ValueError: not even a nonce is there
        raise SecretSharingError("a sealed share does not open: changed, or meant for someone else") from None
