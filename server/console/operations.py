"""What the console can have done, and what it can ask for, beside reading journals.

The console is the server's; starting simulations, Flower's control interface and enrolment are composed in
`penchant.deploy`, which hands in one object that is a `RunOperations`. The other two it gives out itself, for
one fleet or for one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from penchant.common.config import RunConfig
from penchant.common.membership.release_manifest import EVERYBODY
from penchant.server.canary import CanaryVerdict
from penchant.server.monitoring.fleet import (
    DeviceNote,
    Expiry,
    FleetStatus,
    MemberListStatus,
    QueuedRun,
    Revocation,
    Token,
)
from penchant.server.monitoring.run_history import Activity, RunLocation
from penchant.server.releases import FleetRelease, OfferedRelease, Release
from penchant.server.waiting import Waiting

__all__ = ["AT_ONCE", "FleetOperations", "ReleaseOperations", "RunOperations", "RunTurn", "fleet_recipe"]


@dataclass(frozen=True)
class RunTurn:
    """When a run of a fleet begins, and with which factors.

    Attributes:
        by: the account of whoever wants it.
        begin_with: RUN:ROUND or RUN:release-NUMBER; empty for the common start.
        queue: whether it waits until the runs before it are over.
        at: a date and time of the server's clock before which it does not begin; empty for none.
        every: seconds from one beginning to the next; 0 for a run that comes once.
        tag: whom it asks, by their tag; empty: everybody.
    """

    by: str = ""
    begin_with: str = ""
    queue: bool = False
    at: str = ""
    every: float = 0.0
    tag: str = ""

    @property
    def waits(self) -> bool:
        """Whether it goes into the queue."""
        return self.queue or bool(self.at) or self.every > 0


def fleet_recipe(fleet: RunLocation) -> str:
    """What the recipe of a fleet's run is called."""
    return f"Everybody of {fleet.name}"


AT_ONCE = RunTurn()
"""A run that begins now, with the common start."""


class FleetOperations(Protocol):
    """What a page may ask of one fleet's server. Each raises a PenchantError of one line when it can't."""

    def link(self) -> FleetStatus:
        """What the fleet's SuperLink said last. Never waits for it: it is asked in another thread."""

    def missing(self, run: RunLocation, waiting: Waiting) -> Sequence[tuple[int, str]]:
        """(member, why) of all that are not ready while a run waits for them."""

    def notes(self) -> Mapping[int, DeviceNote]:
        """Member -> what the operator noted of it."""

    def note(self, member: int, name: str, tags: Sequence[str]) -> None:
        """Call a member so, and give it these tags and no others."""

    def readiness(self, nodes: Mapping[int, str | None]) -> Mapping[int, tuple[bool | None, str]]:
        """Member -> (whether it would take part now, in words why); None: it can't be told.

        nodes: the members that are asked about, each with its node.
        """

    def contributed(self, member: int) -> str:
        """What sums of the fleet's runs hold of a member."""

    def mark(self) -> object:
        """Something that changes whenever who belongs to the fleet, or is online, does."""

    def enrolment(self) -> MemberListStatus:
        """Who belongs to the fleet."""

    def expiries(self) -> Sequence[Expiry]:
        """What of the fleet ends one day: its member list and its certificates."""

    def queue(self) -> Sequence[QueuedRun]:
        """Runs that wait for their turn, the next one first."""

    def beginnings(self) -> Sequence[tuple[str, str]]:
        """(what a run can begin with, in words): the releases of the fleet's runs, the latest first."""

    def release(self) -> FleetRelease:
        """Which release the fleet uses."""

    def hold(self, held: bool) -> FleetRelease:
        """Stay with the release in use whatever is promoted, or hold no more; -> what is in use then."""

    def to_everybody(self, release: str) -> FleetRelease:
        """The release that a part of the devices tries first is for all of them; -> what is in use then.
        Refused where another one is tried by now."""

    def ask_again(self) -> str:
        """Ask the authority once more to sign what was chosen last; -> its name."""

    def canary_verdict(self) -> CanaryVerdict:
        """What the counts of a canary's devices say of it, beside the release in use."""

    def offered(self) -> OfferedRelease:
        """What the fleet's devices can fetch."""

    def dequeue(self, number: int) -> None:
        """Take a run out of the queue."""

    def move_in_queue(self, number: int, place: int) -> None:
        """Put a run at a place of the queue, 1 for the next."""

    def retry_queued(self, number: int) -> None:
        """Try a run of the queue again that was refused."""

    def tokens(self) -> Sequence[Token]:
        """Invitations, the latest first, without their text."""

    def invite(self, label: str, days: int) -> Token:
        """A new invitation, with its text. `label` is what the operator calls the device."""

    def withdraw(self, token: str) -> None:
        """Take back the invitation of this id, and deny the request that came with it. Not once a member
        joined with it."""

    def revocations(self) -> Sequence[Revocation]:
        """What was asked for, the latest first."""

    def ask_revocation(self, member: int, why: str, by: str) -> None:
        """Ask the authority to take a member out. `by` is the account of whoever asks."""


class ReleaseOperations(Protocol):
    """What a page may do with the shared adapter of one run. Each raises a PenchantError when it can't."""

    def promoted(self) -> Sequence[Release]:
        """Promoted versions, the latest first."""

    def promote(self, round: int, by: str, share: int = EVERYBODY) -> Release:
        """Make a round's shared adapter the current release; share: of the devices that try it first, in
        ten-thousandths."""

    def roll_back(self, number: int, by: str) -> Release:
        """Make an earlier release the current one again."""

    def export(self, round: int) -> bytes:
        """A ZIP file with a round's shared adapter in peft's format."""


class RunOperations(Protocol):
    """Runs, and the way to what belongs to them. Each raises a PenchantError of one line when it can't."""

    def record_acts(self) -> None:
        """Take into the audit what was done to fleets at the command line meanwhile."""

    def locations(self) -> Sequence[RunLocation]:
        """All runs."""

    def fleets(self) -> Sequence[RunLocation]:
        """The servers of fleets of real devices; their runs are among the locations."""

    def fleet_of(self, location: RunLocation) -> RunLocation | None:
        """The fleet of a served run; None for a simulation."""

    def fleet(self, fleet: RunLocation) -> FleetOperations:
        """What can be asked of a fleet's server; ConsoleError for a simulation, which has none."""

    def releases(self, location: RunLocation) -> ReleaseOperations:
        """What can be done with a run's shared adapter."""

    def activity(self, locations: Sequence[RunLocation]) -> Mapping[str, Activity]:
        """location id -> whether a process runs it."""

    def mark(self, location: RunLocation) -> object:
        """Something that changes whenever what a run's directory or its log tells does."""

    def recipes(self) -> Mapping[str, str]:
        """Name -> configuration in TOML to start from."""

    def simulates(self) -> bool:
        """Whether simulated runs can be started here."""

    def objections(self, config: RunConfig, fleet: RunLocation | None) -> Sequence[str]:
        """Why devices of a fleet whose owners changed nothing in their policy would take no part."""

    def copied(self, location: RunLocation) -> str:
        """The configuration of a run, as TOML, for another like it."""

    def hindrance(self, location: RunLocation, config: RunConfig) -> str:
        """Why a run can't go on as it is configured; empty where it can."""

    def check(self, toml: str, fleet: RunLocation | None = None, tag: str = "") -> RunConfig:
        """The configuration that a text makes; ConfigError when it can't be run from here. With a `fleet`, on
        its devices: all of them, or those with a `tag`."""

    def start(
        self, name: str, toml: str, fleet: RunLocation | None = None, turn: RunTurn = AT_ONCE
    ) -> RunLocation | None:
        """Begin a new run: of a fleet, or else a simulated one on this machine; -> None where it waits.

        turn: when it begins and with what; of a fleet's run alone.
        """

    def stop(self, location: RunLocation) -> None:
        """Stop the process that runs it; finished rounds are kept."""

    def resume(self, location: RunLocation) -> None:
        """Go on after the last finished round."""

    def delete(self, location: RunLocation) -> None:
        """Remove its directory, for good."""

    def log(self, location: RunLocation, lines: int) -> Sequence[str]:
        """The last lines that the server of this run said."""
