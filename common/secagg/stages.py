"""The exchanges of a round, in their order; the paper's names for them stand in docs/glossary.md."""

from __future__ import annotations

__all__ = ["STAGES"]
STAGES = ("status", "keys", "shares", "masked", "confirm", "unmask")
"""What a device answers to: readiness, and the five exchanges of a round."""
