"""Disks that are full: a small file system for one device, and a file that takes all that is left of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """`folder` as a file system of two megabytes."""
    if os.getuid() != 0:
        raise PermissionError("mounting a file system needs root")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a failed test may still hold it


def fill(disk: Path) -> Path:
    """Not one byte is left of an agent's disk, nor the room that SQLite keeps for its next journal."""
    for journal in disk.glob("*-journal"):  # of no transaction: the agent waits for a message
        journal.unlink()
    ballast = disk / BALLAST
    with ballast.open("wb") as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                continue
    return ballast
