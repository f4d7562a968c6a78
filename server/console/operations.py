"""What the console can have done, and what it can ask for, beside reading journals.

The console is the server's; starting simulations, Flower's control interface and enrolment are composed in
`penchant.deploy`, which hands in one object of this shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from penchant.common.config import RunConfig
from penchant.server.monitoring.fleet import Enrolment, Link, Revocation, Token
from penchant.server.monitoring.run_history import Place, Work
from penchant.server.releases import Release

__all__ = ["Operations", "fleet_recipe"]


def fleet_recipe(fleet: Place) -> str:
    """What the recipe of a fleet's run is called."""
    return f"The fleet {fleet.name}, A shared, everybody asked"


class Operations(Protocol):
    """Everything that a page may do. Each raises a PenchantError of one line when it can't."""

    def places(self) -> Sequence[Place]:
        """All runs."""

    def fleets(self) -> Sequence[Place]:
        """The servers of fleets of real devices; their runs are among the places."""

    def fleet_of(self, place: Place) -> Place | None:
        """The fleet of a served run; None for a simulation."""

    def work(self, places: Sequence[Place]) -> Mapping[str, Work]:
        """place id -> whether something works on it."""

    def recipes(self) -> Mapping[str, str]:
        """Name -> configuration in TOML to start from."""

    def simulates(self) -> bool:
        """Whether simulated runs can be started here."""

    def check(self, toml: str, fleet: Place | None = None) -> RunConfig:
        """The configuration that a text makes; ConfigError when it can't be run from here. fleet: on it."""

    def start(self, name: str, toml: str, fleet: Place | None = None) -> Place:
        """Begin a new run: of a fleet, or else a simulated one on this machine."""

    def stop(self, place: Place) -> None:
        """Stop what works on it; finished rounds stand."""

    def resume(self, place: Place) -> None:
        """Go on after the last finished round."""

    def delete(self, place: Place) -> None:
        """Remove its directory, for good."""

    def log(self, place: Place, lines: int) -> Sequence[str]:
        """The last lines that the server of this run said."""

    def link(self, fleet: Place) -> Link:
        """What the fleet's SuperLink said last. Never waits for it: it is asked beside."""

    def mark(self, fleet: Place) -> object:
        """Something that changes whenever who belongs to a fleet, or is online, does."""

    def enrolment(self, fleet: Place) -> Enrolment:
        """Who belongs to a fleet."""

    def tokens(self, fleet: Place) -> Sequence[Token]:
        """Invitations, the latest first, without their text."""

    def invite(self, fleet: Place, label: str, days: int) -> Token:
        """A new invitation, with its text."""

    def revocations(self, fleet: Place) -> Sequence[Revocation]:
        """What was asked for, the latest first."""

    def ask_revocation(self, fleet: Place, member: int, why: str, by: str) -> None:
        """Ask the authority to take a member out."""

    def releases(self, place: Place) -> Sequence[Release]:
        """Promoted versions, the latest first."""

    def promote(self, place: Place, round: int, by: str) -> Release:
        """Make a round's shared adapter the current release."""

    def roll_back(self, place: Place, number: int, by: str) -> Release:
        """Make an earlier release the current one again."""

    def export(self, place: Place, round: int) -> bytes:
        """A ZIP file with a round's shared adapter in peft's format."""
