"""Processes as the system knows them: never one taken for another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.processes import wait_for

from penchant.deploy import process_table

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def test_a_process_is_known_by_when_it_began() -> None:
    """In the count that the console has kept since its first version: what it wrote down goes on to hold."""
    with subprocess.Popen(SLEEP, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        words = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        assert process_table.began(child.pid) == words[19]
        time.sleep(0.05)
        assert process_table.began(child.pid) == words[19]
        assert process_table.began(os.getpid()) != words[19]
        child.kill()
        wait_for("its remains", lambda: process_table.began(child.pid) is None, 20)
    assert process_table.began(child.pid) is None


def test_the_clock_may_be_set_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the clock is set, the system tells another moment for its own start, and so for all processes."""
    before = process_table.began(os.getpid())
    boot, created = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600.0)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created + 3600.0)
    assert process_table.began(os.getpid()) == before


def test_processes_are_found_by_what_their_environment_says() -> None:
    marked = {"PENCHANT_MARK": "/a directory/with = and \u00fc"}
    with subprocess.Popen(SLEEP, stdout=subprocess.PIPE, env=os.environ | marked) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert process_table.with_environment("PENCHANT_MARK", marked["PENCHANT_MARK"]) == [child.pid]
        assert process_table.with_environment("PENCHANT_MARK", "/a directory") == []
        child.kill()
        child.wait()
    assert process_table.with_environment("PENCHANT_MARK", marked["PENCHANT_MARK"]) == []


def test_a_process_does_not_find_itself() -> None:
    own = psutil.Process().environ().get("PATH", "")
    assert os.getpid() not in process_table.with_environment("PATH", own)
