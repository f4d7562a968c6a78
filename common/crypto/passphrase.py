"""Keys from what people remember: scrypt (RFC 7914), slow on purpose."""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["BLOCK", "COST", "LANES", "stretched"]

COST: Final = 2**15
BLOCK: Final = 8
LANES: Final = 1  # with the two above: 32 MB and about a tenth of a second for each guess
_MEMORY: Final = 64 * 1024 * 1024


def stretched(secret: bytes, salt: bytes, cost: int = COST, block: int = BLOCK, lanes: int = LANES) -> bytes:
    """32 bytes from a password or passphrase, at the price of scrypt's parameters.

    Raises ValueError for parameters that scrypt does not allow, or that need more than 64 MB.
    """
    return hashlib.scrypt(secret, salt=salt, n=cost, r=block, p=lanes, maxmem=_MEMORY, dklen=32)
