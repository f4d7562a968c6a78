"""What an operator does with a fleet's release, beside promoting one: one act after the other.

Each changes which release the fleet uses, and asks the authority to sign what devices are to start from.
"""

from __future__ import annotations

from penchant.common.errors import UsageError
from penchant.deploy.fleet import fleet_release, release_signature
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.releases import FleetRelease, turn

__all__ = ["ask_again", "hold", "to_everybody", "unhold"]


def hold(server_directory: ServerDirectory) -> FleetRelease:
    """Stay with the release in use. Errors as `fleet_release.hold`."""
    with turn(server_directory.path):
        return fleet_release.hold(server_directory.path)


def unhold(server_directory: ServerDirectory) -> FleetRelease:
    """Hold no more: what waits is in use. Errors as `fleet_release.unhold`."""
    with turn(server_directory.path):
        waited = fleet_release.read(server_directory.path).waiting
        now = fleet_release.unhold(server_directory.path)
        if waited:
            release_signature.ask(server_directory, now.used)
        return now


def to_everybody(server_directory: ServerDirectory, release: str = "") -> FleetRelease:
    """What a part of the devices tries is for all of them; with a `release`, only if it is this one.

    UsageError where another one is tried by now; others as `fleet_release.to_everybody`.
    """
    with turn(server_directory.path):
        tried = fleet_release.read(server_directory.path).canary
        if release and tried and tried != release:
            raise UsageError(f"{tried} is tried by now, not {release}; look at it before all devices use it")
        now = fleet_release.to_everybody(server_directory.path)
        release_signature.ask(server_directory, now.used)
        return now


def ask_again(server_directory: ServerDirectory) -> str:
    """Ask the authority once more for what was chosen last; -> its name.

    UsageError where nothing is in use, or it can't be signed.
    """
    with turn(server_directory.path):
        now = fleet_release.read(server_directory.path)
        if not now.used:
            raise UsageError("no release is in use yet; promote one first")
        if now.canary:
            why = release_signature.ask(server_directory, now.canary, now.share)
        else:
            why = release_signature.ask(server_directory, now.used)
        if why:
            raise UsageError(f"{now.canary or now.used} can't be signed: {why}")
        return now.canary or now.used
