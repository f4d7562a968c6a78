"""A command that is run to its end in a separate process, and how its error comes back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from penchant.common.errors import ConsoleError
from penchant.deploy.error_report import AS_JSON, ErrorReport

__all__ = ["refuse_failed", "run_command"]


def run_command(
    words: Sequence[str], seconds: float, late: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says. ConsoleError, with the text `late`, after so many `seconds`.

    environment: what the command's own environment has besides the console's.
    """
    try:
        return subprocess.run(
            list(words),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
            env=os.environ | AS_JSON | dict(environment or {}),
        )
    except subprocess.TimeoutExpired:
        raise ConsoleError(late) from None


def refuse_failed(done: subprocess.CompletedProcess[str], otherwise: str) -> None:
    """ConsoleError with the error of a command that failed, or with `otherwise` if it gave none."""
    if done.returncode != 0:
        report = ErrorReport.last_in(done.stderr)
        raise ConsoleError(report.message if report else otherwise)
