"""Keeps the processes of one simulation on Ray: they outlive who asked for them by seconds only.

``python -m penchant.deploy.simulation.ray_guard COMMAND…`` runs COMMAND until it ends or standard input
does. Standard input is a pipe to the process that asked: it closes however that process ends, kill -9
included. Flower and Ray start processes in sessions of their own; all of them inherit `MARK`, which names
the run directory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

from penchant.deploy.process_table import with_environment

__all__ = ["MARK", "guarded", "stop_marked"]

MARK = "PENCHANT_SIMULATION_IN"
"""Environment variable of every process of a simulation: the absolute path of its run directory."""

POLITE_SECONDS = 10.0  # for Flower and Ray to end on their own
LOOK_SECONDS = 0.2


def guarded(command: list[str]) -> list[str]:
    """The command line that runs `command` under a guard."""
    return [sys.executable, "-P", "-m", "penchant.deploy.simulation.ray_guard", *command]


def stop_marked(directory: str, patience: float = 0.0) -> None:
    """Kill what is left of a simulation in `directory`, after `patience` seconds, but for this process.

    Processes are found by `MARK` in their environment, where the system shows it (Linux). Elsewhere
    Flower's own watch over parents has to do.
    """
    end = time.monotonic() + patience
    while pids := with_environment(MARK, directory):
        if time.monotonic() >= end:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def main() -> None:
    """Run the command until it ends or standard input does; then leave nothing behind."""
    alone = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        alone.set()

    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=listen, daemon=True).start()
    while child.poll() is None and not alone.wait(LOOK_SECONDS):
        pass
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(POLITE_SECONDS)
    child.kill()
    stop_marked(os.environ[MARK], POLITE_SECONDS)
    os._exit(child.wait())  # the listener may still be waiting


if __name__ == "__main__":
    main()
