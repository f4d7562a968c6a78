"""A run directory: who may write into it, and what it says about itself."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, PenchantError, RunDirectoryError
from penchant.common.foreign_files import CONFIG_MOST, read_bytes, read_json
from penchant.common.storage import write_durably

__all__ = [
    "CONFIG",
    "MODEL_SIGNATURE",
    "RESULT",
    "RUN_NAME",
    "SERVER",
    "START",
    "busy",
    "claim",
    "create",
    "held_locks",
    "is_held",
    "is_served",
    "read_config",
    "read_result",
    "refuse_used",
    "versions",
    "write_json",
]

CONFIG = "config.toml"
RESULT = "result.json"
START = "start.safetensors"  # only where the run begins with an earlier round of another
MODEL_SIGNATURE = "blueprint.json"  # only in the directory of a served run
SERVER = ".server"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOCK = ".lock"
_NO_RUN = {_LOCK, f".{CONFIG}.tmp", START, f".{START}.tmp"}
_NOTHING: Mapping[str, bytes | None] = MappingProxyType({})
_DISTRIBUTIONS = ("penchant", "flwr", "torch", "transformers", "peft", "numpy", "cryptography")


def create(
    directory: Path, config: RunConfig, start: bytes = b"", more: Mapping[str, bytes | None] = _NOTHING
) -> None:
    """Make `directory` a run directory of `config`: it is one once the configuration is in it, which comes
    last.

    Args:
        directory: where.
        config: the run's configuration.
        start: the file of the earlier round that it begins with; empty for none.
        more: what else is there from the beginning, by file name; None for a file that this run has not, of
            which nothing may be left by a process that was killed.

    Raises RunDirectoryError when anything is there already, or another process is at it.
    """
    refuse_used(directory, more)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with claim(directory):
            refuse_used(directory, more)  # another process may have been quicker
            for name, data in {START: start or None, **more}.items():
                (directory / name).unlink(missing_ok=True)  # of a process that was killed before it was a run
                if data is not None:
                    write_durably(directory / name, data)
            write_durably(directory / CONFIG, config.to_toml().encode())
    except OSError as error:
        raise RunDirectoryError(f"can't write into {directory}: {error.strerror}") from None


def refuse_used(directory: Path, more: Collection[str] = ()) -> None:
    """RunDirectoryError when there is anything at `directory` but a folder without a run.

    What is left of a process that was killed before the configuration was in place is not a run.

    more: names of files that such a process may have left, beside those of every run.
    """
    left = _NO_RUN.union(more, (f".{name}.tmp" for name in more))
    if directory.exists() and (not directory.is_dir() or {p.name for p in directory.iterdir()} - left):
        raise RunDirectoryError(
            f"{directory} is in use; choose another directory, or go on with the run that is there",
            on_command_line=f"{directory} is in use; choose another --out, "
            f"or go on there with --resume {directory}",
        )


def refuse_unservable(config: RunConfig) -> None:
    """ConfigError for a configuration that real devices can't take part in."""
    if not config.federation.cohort:
        raise ConfigError(
            "federation.cohort is 0; a served run needs to know how many devices to ask",
            about=("federation.cohort",),
        )
    if not config.privacy.secagg:
        raise ConfigError("a served run is with secure aggregation; set privacy.secagg to true")


def is_served(directory: Path) -> bool:
    """Whether real devices take part in the run, and it is not a simulation."""
    return (directory / MODEL_SIGNATURE).is_file()


def read_config(directory: Path) -> RunConfig:
    """The configuration of a run directory; RunDirectoryError when it is not one."""
    if not (directory / CONFIG).exists() or (directory / CONFIG).is_dir():
        raise RunDirectoryError(f"{directory} is not a run directory: it has no {CONFIG}")
    try:
        text = read_bytes(directory / CONFIG, ConfigError, CONFIG_MOST).decode("utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read configuration {directory / CONFIG}: {error}") from None
    return RunConfig.from_toml(text)


def read_result(directory: Path) -> dict[str, Any] | None:
    """The result of a finished run, or None while it is not finished."""
    path = directory / RESULT
    try:
        result = read_json(path, RunDirectoryError)
    except FileNotFoundError:
        return None
    if not isinstance(result, dict):
        raise RunDirectoryError(
            f"{path} holds no result; move it away, and the run writes it anew when it goes on",
            on_command_line=f"{path} holds no result; move it away, and --resume writes it anew",
        )
    return result


@contextmanager
def claim(directory: Path, what: str = _LOCK, taken: PenchantError | None = None) -> Iterator[None]:
    """Be the only process that works in `directory`; the claim ends with the process, however it ends.

    Args:
        directory: where.
        what: the lock to take. SERVER claims the server's part alone, which another process runs on Ray.
        taken: what is raised where another process has it, instead of a RunDirectoryError.
    """
    with _lock_file(directory, what) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            error = RunDirectoryError(f"another process works in {directory}; wait for it to end")
            raise taken or error from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def busy(directory: Path, held: set[tuple[int, int]] | None = None) -> bool:
    """Whether a process works in `directory`, without asking it or getting in its way (Linux).

    held: the locks that `held_locks` returned; give them where many directories are looked at.
    """
    locks = held_locks() if held is None else held
    return any(is_held(directory / name, locks) for name in (_LOCK, SERVER))


def is_held(lock: Path, held: set[tuple[int, int]]) -> bool:
    """Whether some process has locked this file. held: what `held_locks` returned."""
    try:
        found = lock.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) in held


def held_locks() -> set[tuple[int, int]]:
    """(device, inode) of every file that some process has locked."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        parts = line.split()
        if len(parts) > 5 and parts[1] == "FLOCK":
            major, minor, inode = parts[5].split(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return found


def _lock_file(directory: Path, name: str) -> TextIO:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(directory / name, flags, 0o666)
    except OSError as error:
        raise RunDirectoryError(f"can't work in {directory}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunDirectoryError(f"can't work in {directory}: {name} is not a regular file")
    return open(descriptor, "a")


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader never sees half of it."""
    write_durably(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def versions() -> dict[str, str]:
    """What this run was made with: Python, machine and the distributions that decide its numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
