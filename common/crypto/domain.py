"""Domain separation: every hash, key and signature names what it is for."""

from __future__ import annotations

from typing import Final

__all__ = ["domain"]
_PREFIX: Final = b"penchant/1/"
"""The version of this form, not of the messages: certificates, lists and sealed files outlive theirs. What is
signed in a round holds the context's digest, and so the version of the announcement."""


def domain(label: str, *parts: bytes) -> bytes:
    """Bytes to sign, hash or derive from: the form's version, purpose, and the parts, each after its length.

    Injective in (label, parts): no two uses of a key or a hash can be taken for one another.
    """
    pieces: list[bytes] = []
    for part in (_PREFIX + label.encode(), *parts):
        pieces += (len(part).to_bytes(8, "big"), part)
    return b"".join(pieces)
