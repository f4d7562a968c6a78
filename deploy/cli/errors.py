"""How a command ends when something is wrong: one line, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from penchant.common.errors import PenchantError


def guarded(work: Callable[[], None], debug: bool) -> None:
    try:
        work()
    except (PenchantError, OSError) as error:  # OSError: a full disk, say
        if debug:
            raise
        raise typer.Exit(report_error(error)) from None
    except KeyboardInterrupt:
        print("penchant: interrupted; go on with --resume DIR", file=sys.stderr)
        raise typer.Exit(130) from None


def report_error(error: PenchantError | OSError) -> int:
    """Print the error in one line; -> the exit code."""
    if isinstance(error, PenchantError):
        text, code = str(error), error.exit_code
    else:
        text, code = ": ".join(str(part) for part in (error.strerror, error.filename) if part), 1
    print(f"penchant: {' '.join((text or type(error).__name__).split())}", file=sys.stderr)
    return code
