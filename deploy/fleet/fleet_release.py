"""The release that a fleet uses: what `penchant server export` gives, what runs can begin with, and what new
devices start from.

Each run keeps its own releases (`server/releases.py`); promoting one, or rolling back, makes it the fleet's.
While the fleet holds, it goes on with what it has, and what is promoted meanwhile waits. A canary is a
release that a part of the devices tries first, while everything else stays with the one in use.
`release.json` in the server's directory says which one is in use, whether the fleet holds, and which one is
tried. Whoever changes it has the fleet's turn (`server.releases.turn`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from penchant.common.errors import JournalError, UsageError
from penchant.common.foreign_files import read_json
from penchant.common.membership.release_manifest import EVERYBODY
from penchant.common.storage import write_durably
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.run_directory import RUN_NAME
from penchant.server.releases import FleetRelease, Release, release_name, released

__all__ = [
    "FLEET_RELEASE",
    "chosen",
    "found",
    "hold",
    "read",
    "refuse_canary",
    "resolved",
    "share_of",
    "to_everybody",
    "tried",
    "unhold",
]

FLEET_RELEASE = "release.json"
FILE_MOST = 4096  # bytes
_NEWER: dict[str, Any] = {"canary": "", "share": 0}  # not in files of an earlier version


def read(server: Path) -> FleetRelease:
    """What a server's directory says. JournalError when the file is damaged."""
    path = server / FLEET_RELEASE
    try:
        table = read_json(path, JournalError, FILE_MOST)
    except FileNotFoundError:
        return FleetRelease()
    damaged = JournalError(f"{path} is damaged; promote a release again once it is moved away")
    if not isinstance(table, dict):
        raise damaged
    table = _NEWER | table
    if set(table) != set(FleetRelease.__dataclass_fields__):
        raise damaged
    now = FleetRelease(**table)
    if type(now.held) is not bool or type(now.share) is not int:
        raise damaged
    if not all(type(one) is str and _is_name(one) for one in (now.used, now.waiting, now.canary)):
        raise damaged
    if not (0 < now.share < EVERYBODY if now.canary else now.share == 0):
        raise damaged
    return now


def chosen(server: Path, run: str, number: int) -> FleetRelease:
    """A release of a run was promoted, or rolled back to: the fleet uses it, or once it holds no more. A
    canary is over with that."""
    now, name = replace(read(server), canary="", share=0), release_name(run, number)
    if now.held:
        return _write(server, replace(now, waiting="" if name == now.used else name))
    return _write(server, replace(now, used=name))


def refuse_canary(server: Path, share: int) -> None:
    """UsageError unless a part of the devices could try a release now."""
    now = read(server)
    if not 0 < share < EVERYBODY:
        raise UsageError("a canary reaches a part of the devices: more than none, and not all of them")
    if now.held:
        raise UsageError(f"the fleet holds {now.used}; `penchant server release unhold` first")
    if not now.used:
        raise UsageError(
            "no release is in use, so there is nothing to go back to; promote the first one to all"
        )


def tried(server: Path, run: str, number: int, share: int) -> FleetRelease:
    """A part of the devices tries a release first. Errors as `refuse_canary`."""
    refuse_canary(server, share)
    now, name = read(server), release_name(run, number)
    if name == now.used:
        raise UsageError(f"{name} is in use already")
    return _write(server, replace(now, canary=name, share=share))


def to_everybody(server: Path) -> FleetRelease:
    """What a part of the devices tries is in use from now on. UsageError where nothing is tried."""
    now = read(server)
    if not now.canary:
        raise UsageError("no release is tried by a part of the devices; promote one with --canary")
    return _write(server, replace(now, used=now.canary, canary="", share=0))


def share_of(text: str) -> int:
    """A part of the devices in ten-thousandths, from words such as 10%. UsageError for anything else."""
    try:
        share = round(float(text.removesuffix("%")) * 100)
    except (ValueError, OverflowError):
        share = 0
    if not text.endswith("%") or not 0 < share < EVERYBODY:
        raise UsageError(f"{text!r} is no part of the devices; write 10% or so, from 0.01% to 99.99%")
    return share


def hold(server: Path) -> FleetRelease:
    """Stay with what is in use. UsageError where nothing is, where a part of the devices tries another one,
    or where the fleet holds already."""
    now = read(server)
    if not now.used:
        raise UsageError("no release is in use that could be held; promote one first")
    if now.held:
        raise UsageError(f"the fleet holds {now.used} already")
    if now.canary:
        raise UsageError(
            f"{now.canary} is tried by a part of the devices; promote it to all or roll back first"
        )
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
