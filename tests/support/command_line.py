"""`penchant` as the command line runs it, in this process: what it prints, and how it ends.

A process of its own takes seconds to import torch. What a real one adds, signals, terminals, exit codes of
Python itself, has tests that start one.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest

from penchant.deploy.cli.main import main

__all__ = ["device_command", "penchant_command"]


def device_command(*words: str, home: Path, typed: str = "") -> CompletedProcess[str]:
    """`penchant device WORDS` of the device in `home`, with what its owner types."""
    return penchant_command("device", *words, environment={"PENCHANT_HOME": str(home)}, typed=typed)


def penchant_command(
    *words: str, environment: Mapping[str, str] = {}, typed: str = ""
) -> CompletedProcess[str]:
    """`penchant WORDS`, with these variables beside those of the process."""
    line = ["penchant", *words]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch("sys.argv", line),
        mock.patch("sys.stdin", io.StringIO(typed)),
        mock.patch.dict(os.environ, {"COLUMNS": "120", **environment}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    return CompletedProcess(
        line, code if isinstance(code, int) else int(bool(code)), out.getvalue(), err.getvalue()
    )
