"""Lengths of time in seconds that several rooms count in."""

from __future__ import annotations

__all__ = ["DAY"]

DAY = 86400
