"""Where a command gets a passphrase: a file or standard input, the environment, or the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from penchant.common.errors import UsageError

__all__ = ["asked", "first_line", "given"]

_MOST = 4096  # characters of a line


def given(file: str, variable: str) -> str | None:
    """The passphrase from `file` (``-`` for standard input), or from one of the environment's two variables:
    `variable` holds it, or `variable`_FILE names its file. None when there is neither, or no `variable`."""
    if file:
        return first_line(file)
    if not variable:
        return None
    if variable in os.environ:
        return os.environ[variable]  # empty as well: that is for the caller to refuse
    named = os.environ.get(f"{variable}_FILE")
    return first_line(named) if named else None


def first_line(file: str) -> str:
    """The first line of a file, ``-`` for standard input. UsageError when it is empty or can't be read."""
    try:
        if file == "-":
            line = sys.stdin.readline(_MOST)
        else:
            with Path(file).expanduser().open(encoding="utf-8") as opened:
                line = opened.readline(_MOST)
    except OSError as error:
        raise UsageError(f"can't read a passphrase from {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"can't read a passphrase from {file}: it is not UTF-8") from None
    found = line.rstrip("\r\n")
    if not found:
        raise UsageError(f"{'standard input' if file == '-' else file} holds no passphrase in its first line")
    return found


def asked(prompt: str, *, new: bool, told: bool, how: str) -> str:
    """Typed at the terminal, twice for a new one.

    Without a terminal it is the first line of standard input if the user has `told` us to ask, else a
    UsageError that says `how` to give it.
    """
    if sys.stdin.isatty():
        return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=new))
    if told:
        return first_line("-")
    raise UsageError(f"there is no terminal to ask for the passphrase at; {how}")
