"""What people remember, and keys that are kept under it: scrypt (RFC 7914), slow and large on purpose.

The cost is the one that OWASP recommends (N = 2^17, r = 8, p = 1): 128 MB and about a third of a second for
each guess. A sealed key names the cost that it was made with, so that older files open after it has risen.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from penchant.common.crypto.keys import open_at_rest, seal_at_rest
from penchant.common.errors import SecretSharingError, UsageError

__all__ = [
    "LEAST",
    "MOST",
    "RECOMMENDED",
    "ScryptCost",
    "is_sealed",
    "open_key",
    "refuse_weak",
    "seal_key",
    "stretched",
]

LEAST: Final = 12  # characters of a password or passphrase, repetitions counted once
MOST: Final = 1024
_DIFFERENT: Final = 5  # characters that differ from one another
_UNFORESEEN: Final = 8  # characters that are not the one next to the one before, on a keyboard or in a row
_KEYBOARD: Final = "`1234567890-= qwertyuiop[]\\ asdfghjkl;' zxcvbnm,./"
_MARK: Final = b"penchant-scrypt"
_MEMORY: Final = 1 << 30  # the most that parameters in a file may ask for


@dataclass(frozen=True)
class ScryptCost:
    """scrypt's parameters: N, r and p."""

    n: int
    r: int = 8
    p: int = 1

    def __str__(self) -> str:
        return f"{self.n}${self.r}${self.p}"


RECOMMENDED: Final = ScryptCost(2**17)
OLD: Final = ScryptCost(2**15)  # until 0.3, where the file does not say


def stretched(secret: bytes, salt: bytes, cost: ScryptCost = RECOMMENDED) -> bytes:
    """32 bytes from a password or passphrase, at the price of scrypt's parameters.

    Raises ValueError for parameters that scrypt does not allow, or that need more than 1 GB.
    """
    needed = 128 * cost.r * (cost.n + cost.p + 2)
    if min(cost.n, cost.r, cost.p) < 1 or needed > _MEMORY:
        raise ValueError("scrypt's parameters are out of range, or ask for too much memory")
    return hashlib.scrypt(secret, salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=2 * needed, dklen=32)


def refuse_weak(secret: str, what: str = "passphrase") -> None:
    """UsageError for what can be guessed whatever a guess costs: short, repeated, a row of keys."""
    if not LEAST <= len(secret) <= MOST:
        raise UsageError(f"a {what} has {LEAST} to {MOST} characters")
    if len(set(secret)) < _DIFFERENT:
        raise UsageError(f"a {what} has at least five different characters")
    if _period(secret) < LEAST or _unforeseen(secret) < _UNFORESEEN:
        raise UsageError(
            f"this {what} repeats itself or follows keys in a row; take four words drawn at random"
        )


def seal_key(key: bytes, passphrase: str, purpose: str, cost: ScryptCost = RECOMMENDED) -> bytes:
    """`key` as one line of ASCII that opens with the passphrase, and for the same purpose, only."""
    salt = os.urandom(16)
    header = f"{_MARK.decode()}${cost}${salt.hex()}"
    under = stretched(passphrase.encode(), salt, cost)
    sealed = seal_at_rest(under, key, _bound(purpose, header))
    return f"{header}${sealed.hex()}\n".encode()


def is_sealed(data: bytes) -> bool:
    """Whether these are bytes that `seal_key` may have made."""
    return data.startswith(_MARK)


def open_key(data: bytes, passphrase: str, purpose: str) -> tuple[bytes, ScryptCost]:
    """(key, cost) of what `seal_key` made.

    Raises SecretSharingError for a wrong passphrase, another purpose, or changed bytes.
    """
    try:
        header, _, sealed = data.decode("ascii").strip().rpartition("$")
        _, n, r, p, salt = header.split("$")
        cost = ScryptCost(int(n), int(r), int(p))
        under = stretched(passphrase.encode(), bytes.fromhex(salt), cost)
        body = bytes.fromhex(sealed)
    except (ValueError, OverflowError):
        raise SecretSharingError("this is not a sealed key, or it is damaged") from None
    return open_at_rest(under, body, _bound(purpose, header)), cost


def _bound(purpose: str, header: str) -> bytes:
    """What a sealed key is bound to; not to the protocol's version, which a file at rest outlives."""
    return b"\0".join((b"penchant sealed key", purpose.encode(), header.encode()))


def _period(secret: str) -> int:
    """The length of the shortest text of which `secret` is a repetition, cut off anywhere."""
    return next(n for n in range(1, len(secret) + 1) if secret[n:] == secret[:-n])


def _unforeseen(secret: str) -> int:
    """How many characters are neither the one before again nor next to it in a row."""
    small = secret.lower()
    return 1 + sum(not _neighbours(before, after) for before, after in pairwise(small))


def _neighbours(one: str, other: str) -> bool:
    if abs(ord(one) - ord(other)) <= 1:
        return True
    at, to = _KEYBOARD.find(one), _KEYBOARD.find(other)
    return at >= 0 and to >= 0 and abs(at - to) == 1
