"""Domain separation: every hash, key and signature names what it is for."""

from __future__ import annotations

from typing import Final

from penchant.common.wire.codec import PROTOCOL_VERSION

__all__ = ["domain"]
_PREFIX: Final = f"penchant/{PROTOCOL_VERSION}/".encode()


def domain(label: str, *parts: bytes) -> bytes:
    """Bytes to sign, hash or derive from: protocol version, purpose, and the parts, each after its length.

    Injective in (label, parts): no two uses of a key or a hash can be taken for one another.
    """
    pieces: list[bytes] = []
    for part in (_PREFIX + label.encode(), *parts):
        pieces += (len(part).to_bytes(8, "big"), part)
    return b"".join(pieces)
