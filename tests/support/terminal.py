"""`penchant server …` as an operator types it, in this process."""

from __future__ import annotations

import sys

import pytest

from penchant.deploy.cli.main import main


def server_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """-> the exit code."""
    monkeypatch.setattr(sys, "argv", ["penchant", "server", *map(str, words)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
