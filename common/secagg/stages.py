"""The exchanges of a round, in their order; docs/glossary.md has the paper's names for them."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CONFIRM",
    "EXCHANGES",
    "KEYS",
    "MASKED",
    "PLAIN_EXCHANGES",
    "SHARES",
    "STAGES",
    "STATUS",
    "UNMASK",
]

STATUS: Final = "status"
KEYS: Final = "keys"
SHARES: Final = "shares"
MASKED: Final = "masked"
CONFIRM: Final = "confirm"
UNMASK: Final = "unmask"

EXCHANGES: Final = (KEYS, SHARES, MASKED, CONFIRM, UNMASK)
"""What a round with secure aggregation asks, one after the other."""

PLAIN_EXCHANGES: Final = (KEYS, MASKED)
"""What a round without it asks."""

STAGES: Final = (STATUS, *EXCHANGES)
"""What a device answers to: readiness, and the five exchanges of a round."""
