"""Checks of what a call was given, each in one line that says what belongs there."""

from __future__ import annotations

import os
from pathlib import Path

from penchant.common.errors import UsageError
from penchant.common.printable import quoted

__all__ = ["path_given", "whole_number_given"]


def path_given(name: str, value: object) -> Path:
    """The path that an argument is. UsageError for anything else."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise UsageError(f"{name} is {quoted(value)}; give a path, as a text or a pathlib.Path")
    return Path(path)


def whole_number_given(name: str, value: object, least: int, most: int) -> int:
    """The whole number that an argument is. UsageError for anything else, and outside of its range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{name} is {quoted(value)}; give a whole number from {least} to {most}")
    return value
