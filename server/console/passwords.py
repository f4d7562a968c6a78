"""Passwords of the console's accounts: scrypt (RFC 7914) with a salt of each its own."""

from __future__ import annotations

import hmac
import os
import threading

from penchant.common.crypto.passphrase import BLOCK, COST, LANES, stretched
from penchant.common.errors import UsageError

__all__ = ["LEAST", "check", "hashed", "refuse_weak"]

LEAST = 12  # characters of a password
MOST = 1024
_AT_ONCE = threading.BoundedSemaphore(2)  # a flood of logins costs two cores at most, and 64 MB


def refuse_weak(password: str) -> None:
    """UsageError for a password that is too short, too long, or one character over and over."""
    if not LEAST <= len(password) <= MOST:
        raise UsageError(f"a password has {LEAST} to {MOST} characters")
    if len(set(password)) < 5:
        raise UsageError("a password has at least five different characters")


def hashed(password: str) -> str:
    """What is kept of a password: ``scrypt$N$r$p$salt$hash``, the last two in hex."""
    salt = os.urandom(16)
    return f"scrypt${COST}${BLOCK}${LANES}${salt.hex()}${_derive(password, salt, COST, BLOCK, LANES).hex()}"


def check(password: str, kept: str) -> bool:
    """Whether `password` is the one that `kept` was made from; takes equally long for both answers."""
    try:
        name, cost, block, lanes, salt, wanted = kept.split("$")
        parameters = int(cost), int(block), int(lanes)
        known, right = bytes.fromhex(salt), bytes.fromhex(wanted)
    except ValueError:
        return False
    return name == "scrypt" and hmac.compare_digest(_derive(password, known, *parameters), right)


def _derive(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    with _AT_ONCE:
        return stretched(password.encode("utf-8", "surrogatepass")[: 4 * MOST], salt, cost, block, lanes)
