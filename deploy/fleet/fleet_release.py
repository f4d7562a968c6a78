"""The release that a fleet uses: what `penchant server export` gives, and what runs can begin with.

Each run keeps its own releases (`server/releases.py`); promoting one, or rolling back, makes it the fleet's.
While the fleet holds, it goes on with what it has, and what is promoted meanwhile waits.
`release.json` in the server's directory says which one is in use, and whether the fleet holds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from penchant.common.errors import JournalError, UsageError
from penchant.common.foreign_files import read_json
from penchant.common.storage import write_durably
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.run_directory import RUN_NAME
from penchant.server.releases import FleetRelease, Release, release_name, released

__all__ = ["FLEET_RELEASE", "chosen", "found", "hold", "read", "resolved", "unhold"]

FLEET_RELEASE = "release.json"
FILE_MOST = 4096  # bytes


def read(server: Path) -> FleetRelease:
    """What a server's directory says. JournalError when the file is damaged."""
    path = server / FLEET_RELEASE
    try:
        table = read_json(path, JournalError, FILE_MOST)
    except FileNotFoundError:
        return FleetRelease()
    if not isinstance(table, dict) or set(table) != set(FleetRelease.__dataclass_fields__):
        raise JournalError(f"{path} is damaged; promote a release again once it is moved away")
    used, held, waiting = table["used"], table["held"], table["waiting"]
    if type(held) is not bool or not all(type(one) is str and _is_name(one) for one in (used, waiting)):
        raise JournalError(f"{path} is damaged; promote a release again once it is moved away")
    return FleetRelease(used, held, waiting)


def chosen(server: Path, run: str, number: int) -> FleetRelease:
    """A release of a run was promoted, or rolled back to: the fleet uses it, or once it holds no more."""
    now, name = read(server), release_name(run, number)
    if now.held:
        return _write(server, replace(now, waiting="" if name == now.used else name))
    return _write(server, replace(now, used=name))


def hold(server: Path) -> FleetRelease:
    """Stay with what is in use. UsageError where nothing is, or the fleet holds already."""
    now = read(server)
    if not now.used:
        raise UsageError("no release is in use that could be held; promote one first")
    if now.held:
        raise UsageError(f"the fleet holds {now.used} already")
    return _write(server, replace(now, held=True))


def unhold(server: Path) -> FleetRelease:
    """Hold no more: what was promoted last is in use. UsageError where the fleet doesn't hold."""
    now = read(server)
    if not now.held:
        raise UsageError("the fleet does not hold; what is promoted is in use at once")
    return _write(server, FleetRelease(now.last))


def resolved(server_directory: ServerDirectory, begin_with: str) -> str:
    """`begin_with` as of `penchant server run --from`, where "release" is the one that the fleet uses.

    UsageError when none is in use.
    """
    if begin_with != "release":
        return begin_with
    used = read(server_directory.path).used
    if not used:
        raise UsageError("this fleet uses no release yet; promote one, or name a run: RUN:ROUND")
    return used


def found(server_directory: ServerDirectory, name: str) -> tuple[Path, Release]:
    """(directory of its run, release) of "RUN:release-NUMBER". UsageError when it is gone."""
    run, _, which = name.rpartition(":")
    if run not in server_directory.runs():
        raise UsageError(f"run {run}, whose {which} is in use, is gone; promote a release of another run")
    return server_directory.run(run), released(server_directory.run(run), which)


def _is_name(text: str) -> bool:
    run, _, which = text.rpartition(":")
    number = which.removeprefix("release-")
    named = bool(RUN_NAME.fullmatch(run)) and which != number
    return not text or (named and number.isascii() and number.isdigit())


def _write(server: Path, now: FleetRelease) -> FleetRelease:
    try:
        write_durably(server / FLEET_RELEASE, (json.dumps(asdict(now)) + "\n").encode())
    except OSError as error:
        raise JournalError(f"can't write {server / FLEET_RELEASE}: {error.strerror}") from None
    return now
