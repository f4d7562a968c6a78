"""Disks for one device: one that is full, and one whose raw blocks can be read."""

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


@contextmanager
def raw_disk(image: Path, folder: Path, kind: str = "ext4") -> Iterator[Path]:
    """`folder` as a file system of 32 megabytes that lies in the file `image`; all is written at the end."""
    if os.getuid() != 0:
        raise PermissionError("mounting a file system needs root")
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(32 << 20)
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True)
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        folder.chmod(0o700)
        yield folder
    finally:
        os.sync()
        subprocess.run(["umount", str(folder)], check=True)


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
