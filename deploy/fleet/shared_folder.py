"""Files in folders that somebody else can write to: read and written here, and nowhere else.

Server and authority leave each other files, and neither trusts the other's. A folder is opened once and all
is done by its descriptor; links are never followed; only regular files are read, without waiting for a pipe,
up to a size, as strict JSON where it is JSON. A file is written under a random name that did not exist, in a
folder that only the writer writes to, and moved to its place.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from penchant.common.errors import SharedFileError, UsageError
from penchant.common.foreign_files import finite_json, open_regular

__all__ = ["SharedFolder", "opened", "read_regular", "strict_json"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHARED = stat.S_IWGRP | stat.S_IWOTH
DEEPEST = 8  # levels of lists and tables in JSON
ASIDE = ".refused"


@contextmanager
def opened(path: Path, *, writes: bool = False) -> Iterator[SharedFolder]:
    """The folder at `path`, inside the block.

    writes: whether this side is the one that writes files into it. A folder that others could write to is
    then closed to them, or refused where it is not ours to close.

    UsageError when there is no such folder, it is a link, or others can write to it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"there is no folder {path} that is not a link: {error.strerror}") from None
    try:
        if writes:
            _keep_to_ourselves(descriptor, path)
        yield SharedFolder(path, descriptor)
    finally:
        os.close(descriptor)


class SharedFolder:
    """An open folder. Names are single components; those with odd characters are not listed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._at = descriptor

    def names(self, *patterns: str) -> list[str]:
        """The names that match one of `patterns`, in order. Whether they are files, `read` says."""
        found = [name for name in os.listdir(self._at) if _NAME.fullmatch(name)]
        return sorted(n for n in found if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns))

    def odd(self, pattern: str) -> list[str]:
        """The names that match and hold characters that no name here has."""
        return sorted(
            n for n in os.listdir(self._at) if fnmatch.fnmatchcase(n, pattern) and not _NAME.fullmatch(n)
        )

    def has(self, name: str) -> bool:
        """Whether a regular file lies there."""
        try:
            return stat.S_ISREG(os.stat(name, dir_fd=self._at, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def read(self, name: str, most: int) -> bytes:
        """The whole file. SharedFileError unless it is a regular file of at most `most` bytes."""
        try:
            file = open_regular(name, at=self._at)
        except OSError as error:
            raise SharedFileError(f"{name} is not a plain file: {error.strerror}") from None
        return _whole(file, name, most)

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file in the place of what was there, durably. UsageError when that can't be done."""
        temporary = f".{token_hex(16)}.tmp"
        try:
            descriptor = os.open(temporary, _CREATE, 0o644, dir_fd=self._at)
            try:
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, name, src_dir_fd=self._at, dst_dir_fd=self._at)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=self._at)
                raise
            os.fsync(self._at)
        except OSError as error:
            raise UsageError(f"can't write {self.path / name}: {error.strerror}") from None

    def remove(self, name: str) -> bool:
        """Take a file (or a link) out of the folder; -> whether it is gone. The other side's folder may be
        closed to us."""
        try:
            os.unlink(name, dir_fd=self._at)
        except OSError:
            return not self._there(name)
        return True

    def set_aside(self, name: str) -> bool:
        """Move what lies at `name`, of whatever kind, out of the way; -> whether it is."""
        try:
            os.rename(name, name + ASIDE, src_dir_fd=self._at, dst_dir_fd=self._at)
        except OSError:
            return not self._there(name)
        return True

    def _there(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._at, follow_symlinks=False)
        except OSError:
            return False
        return True


def read_regular(path: Path, most: int) -> bytes:
    """A file that a person named: a link is followed, a pipe is not waited for.

    UsageError unless it is a regular file of at most `most` bytes.
    """
    try:
        file = open_regular(path, links=True)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    try:
        return _whole(file, str(path), most)
    except SharedFileError as error:
        raise UsageError(str(error)) from None


def strict_json(data: bytes) -> Any:
    """What JSON says. SharedFileError for NaN and Infinity, numbers out of range, a key given twice, lists
    and tables nested too deeply, and all that is no JSON in UTF-8."""
    try:
        value = finite_json(data.decode("utf-8"), once=True)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SharedFileError(f"not the JSON that belongs here: {what}") from None
    if _depth(value) > DEEPEST:
        raise SharedFileError("not the JSON that belongs here: nested too deeply")
    return value


# --- inner parts --------------------------------------------------------------------------------------

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _keep_to_ourselves(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"{path} belongs to another user, who could change what is written there; make a folder of your "
            "own, and let the other side read it"
        )
    if status.st_mode & _SHARED:  # as an earlier version made it
        try:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~_SHARED)
        except OSError as error:
            raise UsageError(f"others can write to {path}: {error.strerror}; chmod go-w {path}") from None


def _whole(file: BinaryIO | None, name: str, most: int) -> bytes:
    if file is None:
        raise SharedFileError(f"{name} is not a plain file")
    try:
        with file:
            data = file.read(most + 1)
    except OSError as error:
        raise SharedFileError(f"can't read {name}: {error.strerror}") from None
    if len(data) > most:
        raise SharedFileError(f"{name} has more than {most} bytes")
    return data


def _depth(value: Any) -> int:
    """How deeply lists and tables are nested."""
    level, depth = [value], 0
    while level:
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        held = any(isinstance(one, dict | list) for one in level)
        depth, level = depth + held, inner
    return depth
