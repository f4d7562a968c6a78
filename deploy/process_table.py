"""What must be known of other processes: when one began, and which ones carry a mark in their environment.

Only those who install psutil may import this: the console, and simulations on Ray.
"""

from __future__ import annotations

import os

import psutil

__all__ = ["began", "with_environment"]


def began(pid: int) -> str | None:
    """When a process began, in the system's own count (clock ticks since the system was started); None when
    there is no such process, or only its remains.

    A process id is given out again, but never with the same moment. Changes of the clock don't matter: the
    moment when the system was started moves with them.
    """
    started = psutil.boot_time()  # first: psutil adds this very moment below
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        seconds = process.create_time() - started
    except psutil.Error:
        return None
    return str(round(seconds * os.sysconf("SC_CLK_TCK")))


def with_environment(name: str, value: str) -> list[int]:
    """Other processes whose environment says NAME=VALUE, where the system shows it (Linux). Those that have
    ended, and those of other users, are left out."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(name) == value
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            continue
        if marked and process.pid != os.getpid():
            found.append(process.pid)
    return found
