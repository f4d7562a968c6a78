"""A run's process does not outlive the SuperLink that began it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import os, signal, sys, time
from penchant.deploy.flower.with_parent import end_with_parent
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as one that waits in a message to nobody
end_with_parent(0.2)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
time.sleep(600)
"""


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def within(seconds: float, what: object) -> bool:
    """Whether `what()` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_a_run_ends_after_its_parent_was_killed_and_not_before(tmp_path: Path) -> None:
    named = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(named)])
    try:
        assert within(60, lambda: named.exists() and named.read_text())
        child = int(named.read_text())
        time.sleep(1.5)
        assert lives(child)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert within(30, lambda: not lives(child))
    finally:
        parent.kill()
        parent.wait()
