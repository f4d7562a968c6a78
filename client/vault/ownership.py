"""Whose files these are: what an owner says counts only where nobody else could have written it.

As OpenSSH does with its own files: a directory or a file that others can write is refused, not mended.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from penchant.common.errors import ConfigError, DeviceError

__all__ = ["check_directory", "read_owned"]

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_directory(directory: Path) -> None:
    """DeviceError unless `directory` belongs to this process's user, and no other can write in it."""
    found = directory.stat()
    if found.st_uid != os.geteuid():
        who = _name(found.st_uid)
        raise DeviceError(f"{directory} belongs to {who}; work on it as that user: sudo -u {who} penchant …")
    if found.st_mode & OTHERS_WRITE:
        raise DeviceError(f"others can write in {directory}: chmod go-w {directory}, and see what is in it")


def read_owned(path: Path) -> str:
    """The text of a file that this process's user or root wrote, and nobody else could have.

    Raises ConfigError when others can write it, OSError or UnicodeDecodeError when it can't be read.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno())  # of what is read, whatever the name stands for by then
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{path} belongs to {_name(found.st_uid)}; only its owner's word counts")
        if found.st_mode & OTHERS_WRITE:
            raise ConfigError(f"others can write {path}: chmod go-w {path}, and see what is in it")
        return file.read().decode("utf-8")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
