"""Real processes for tests: started, watched, and stopped with all that they started."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from penchant.server.journal import Journal

PROGRAM = [sys.executable, "-c", "from penchant.deploy.cli.main import main; main()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(words: list[str], log: Path, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts; the whole family is stopped at the end."""
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, **more)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            stop(process, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send `how` to a process and to all that it started, and wait for its end."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        if member.is_running():
            member.send_signal(how)
    process.wait(120)


def wait_for(what: str, true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.5)


def finished(directory: Path) -> list[int]:
    """The rounds that stand in the journal of a run's directory."""
    if not (directory / "journal.db").exists():
        return []
    journal = Journal(directory)
    try:
        return [number for number, _ in journal.finished()]
    finally:
        journal.close()
