"""The questions of somebody who brings none: everyday subjects, two answers each, in the public domain."""

from __future__ import annotations

from pathlib import Path

from penchant.client.device.labelling import read_comparisons
from penchant.common.data.preferences import Preference

__all__ = ["starter_comparisons"]

STARTER = Path(__file__).parent / "starter.jsonl"


def starter_comparisons() -> list[Preference]:
    """What to compare; which response is called chosen says nothing."""
    return read_comparisons(STARTER)[0]
