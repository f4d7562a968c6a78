"""What the console can have done, and what it can ask for, beside reading journals.

The console is the server's; starting simulations, Flower's control interface and enrolment are composed in
`penchant.deploy`, which hands in one object of this shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from penchant.common.config import RunConfig
from penchant.server.console.facts import Place, Work
from penchant.server.releases import Release

__all__ = ["Enrolment", "Link", "Node", "Operations", "Revocation", "Token", "fleet_recipe"]

FRESH_SECONDS = 15.0  # an answer as old is not called the present


@dataclass(frozen=True)
class Node:
    """A device's connection, as the SuperLink knows it. until: Unix seconds, when it went offline; None
    before it first came."""

    online: bool
    until: float | None = None


@dataclass(frozen=True)
class Link:
    """What a fleet's SuperLink said last.

    state: "asked" (it has not answered yet), "up", or "silent" (the latest question got no answer). nodes:
    node id -> connection, as of `at` (Unix seconds; None: it never answered).
    """

    state: Literal["asked", "up", "silent"] = "asked"
    nodes: Mapping[str, Node] = field(default_factory=dict)
    at: float | None = None

    @property
    def online(self) -> int | None:
        """Nodes that were online at that moment; None when it never answered."""
        return None if self.at is None else sum(node.online for node in self.nodes.values())

    def fresh(self, now: float) -> bool:
        """Whether this is how things stand now (Unix seconds)."""
        return self.state == "up" and self.at is not None and now - self.at < FRESH_SECONDS


@dataclass(frozen=True)
class Token:
    """An invitation. label: whom it is for. made, expires: Unix seconds. state: "open", "expired",
    "waiting" for the authority, "enrolled" or "out". member: who came with it. node: as what it connects,
    once the SuperLink lets it. fingerprint: of its request, to compare with what the device shows. text:
    what the device's owner types or scans; shown once."""

    id: str
    label: str
    made: float
    expires: float
    state: str = "open"
    member: int | None = None
    node: str | None = None
    fingerprint: str = ""
    text: str = field(default="", repr=False)

    @property
    def look(self) -> str:
        """How its state is shown."""
        return {"enrolled": "good", "waiting": "warn", "out": "bad"}.get(self.state, "")


@dataclass(frozen=True)
class Revocation:
    """Somebody asked to take a member out. signed: the number of the authority's list that did, or None
    while it is pending."""

    member: int
    why: str
    by: str
    at: float
    signed: int | None


@dataclass(frozen=True)
class Enrolment:
    """Who belongs to a fleet. list_number, expires: of the authority's list that the server holds."""

    members: frozenset[int]
    revoked: frozenset[int]
    list_number: int
    expires: float


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
