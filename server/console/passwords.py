"""Passwords of the console's accounts: scrypt (RFC 7914) with a salt of each its own."""

from __future__ import annotations

import hmac
import os
import threading

from penchant.common.crypto.passphrase import LEAST, MOST, RECOMMENDED, ScryptCost, refuse_weak, stretched

__all__ = ["LEAST", "check", "cost_of", "hashed", "nobody", "refuse_weak_password", "spend"]

_AT_ONCE = threading.BoundedSemaphore(2)  # a flood of logins costs two cores at most, and 256 MB


def refuse_weak_password(password: str) -> None:
    """UsageError for a password that is too short, too long, or easily guessed."""
    refuse_weak(password, "password")


def hashed(password: str, cost: ScryptCost = RECOMMENDED) -> str:
    """What is kept of a password: ``scrypt$N$r$p$salt$hash``, the last two in hex."""
    salt = os.urandom(16)
    return f"scrypt${cost}${salt.hex()}${_derive(password, salt, cost).hex()}"


def check(password: str, kept: str) -> bool:
    """Whether `password` is the one that `kept` was made from; takes equally long for both answers."""
    cost = cost_of(kept)
    if cost is None:
        return False
    try:
        salt, right = (bytes.fromhex(part) for part in kept.split("$")[4:])
        return hmac.compare_digest(_derive(password, salt, cost), right)
    except ValueError:
        return False


def cost_of(kept: str) -> ScryptCost | None:
    """What `kept` was made with; None when it is not a hash of this kind."""
    try:
        name, n, r, p, _, _ = kept.split("$")
        return ScryptCost(int(n), int(r), int(p)) if name == "scrypt" else None
    except ValueError:
        return None


def nobody(cost: ScryptCost) -> str:
    """What a password is held against where there is no account: as much work, never right."""
    return f"scrypt${cost}${'00' * 16}${'00' * 32}"


def spend(password: str, cost: ScryptCost) -> None:
    """Take as long as a check at this cost."""
    check(password, nobody(cost))


def _derive(password: str, salt: bytes, cost: ScryptCost) -> bytes:
    with _AT_ONCE:
        return stretched(password.encode("utf-8", "surrogatepass")[: 4 * MOST], salt, cost)
