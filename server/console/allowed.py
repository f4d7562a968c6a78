"""What an account may reach: the console's operations, without what it may not look at, or act on.

A page reads what there is through these alone. What an account may not see is not there for it: its address
is answered like one of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penchant.common.config import RunConfig
from penchant.server.console.at_once import HTTPError
from penchant.server.console.operations import (
    AT_ONCE,
    FleetOperations,
    ReleaseOperations,
    RunOperations,
    RunTurn,
    fleet_recipe,
)
from penchant.server.console.rights import Rights, Role
from penchant.server.monitoring.run_history import Activity, RunLocation

__all__ = ["FOR_OPERATORS", "NO_ROLE", "AllowedOperations", "place_of", "refuse_without_role"]

FOR_OPERATORS = "This is for operators; your account may look, not act."
NO_ROLE = "Your account has no role here. Whoever runs this console can give it one."


def place_of(operations: RunOperations, location: RunLocation) -> str:
    """Where a run or a fleet belongs, as `Rights` names it: the fleet's id, or empty for this machine."""
    if location.kind == "fleet":
        return location.id
    fleet = operations.fleet_of(location)
    return fleet.id if fleet is not None else ""


def refuse_without_role(rights: Rights, role: Role, place: str) -> None:
    """HTTPError 403 unless an account with these rights may what `role` may at this place."""
    if not rights.may(role, place):
        raise HTTPError(FOR_OPERATORS, status=403)


@dataclass(frozen=True)
class AllowedOperations:
    """The `RunOperations` of one account in one request.

    Attributes:
        all: what can be done by whoever may everything.
        rights: the account's.
        role: what the request needs; where the account has less, nothing is there.
    """

    all: RunOperations
    rights: Rights
    role: Role = "viewer"

    def may(self, location: RunLocation, role: Role) -> bool:
        """Whether the account may what `role` may with a run or a fleet."""
        place = place_of(self.all, location) if self.rights.fleets else ""
        return self.rights.may(role, place)

    def record_acts(self) -> None:
        """As `RunOperations.record_acts`: of all fleets, whoever looks."""
        self.all.record_acts()

    def locations(self) -> Sequence[RunLocation]:
        """The runs that the account may reach."""
        return [location for location in self.all.locations() if self.may(location, self.role)]

    def fleets(self) -> Sequence[RunLocation]:
        """The fleets that it may reach."""
        return [fleet for fleet in self.all.fleets() if self.may(fleet, self.role)]

    def fleet_of(self, location: RunLocation) -> RunLocation | None:
        """As `RunOperations.fleet_of`."""
        return self.all.fleet_of(location)

    def fleet(self, fleet: RunLocation) -> FleetOperations:
        """What can be asked of a fleet's server. HTTPError for one that it may not reach."""
        return self.all.fleet(self._reached(fleet))

    def releases(self, location: RunLocation) -> ReleaseOperations:
        """What can be done with a run's shared adapter. HTTPError for one that it may not reach."""
        return self.all.releases(self._reached(location))

    def activity(self, locations: Sequence[RunLocation]) -> Mapping[str, Activity]:
        """As `RunOperations.activity`."""
        return self.all.activity(locations)

    def mark(self, location: RunLocation) -> object:
        """As `RunOperations.mark`."""
        return self.all.mark(location)

    def recipes(self) -> Mapping[str, str]:
        """The recipes, but those of fleets that it may not reach."""
        here = {fleet.id for fleet in self.fleets()}
        hidden = {fleet_recipe(fleet) for fleet in self.all.fleets() if fleet.id not in here}
        return {name: text for name, text in self.all.recipes().items() if name not in hidden}

    def simulates(self) -> bool:
        """Whether it may start simulated runs here."""
        return self.rights.may(self.role) and self.all.simulates()

    def objections(self, config: RunConfig, fleet: RunLocation | None) -> Sequence[str]:
        """As `RunOperations.objections`."""
        return self.all.objections(config, fleet)

    def copied(self, location: RunLocation) -> str:
        """As `RunOperations.copied`."""
        return self.all.copied(self._reached(location))

    def hindrance(self, location: RunLocation, config: RunConfig) -> str:
        """As `RunOperations.hindrance`."""
        return self.all.hindrance(self._reached(location), config)

    def check(self, toml: str, fleet: RunLocation | None = None, tag: str = "") -> RunConfig:
        """As `RunOperations.check`. HTTPError where it may start nothing at that place."""
        refuse_without_role(self.rights, "operator", "" if fleet is None else fleet.id)
        return self.all.check(toml, fleet, tag)

    def start(
        self, name: str, toml: str, fleet: RunLocation | None = None, turn: RunTurn = AT_ONCE
    ) -> RunLocation | None:
        """As `RunOperations.start`. HTTPError where it may start nothing at that place."""
        refuse_without_role(self.rights, "operator", "" if fleet is None else fleet.id)
        return self.all.start(name, toml, fleet, turn)

    def stop(self, location: RunLocation) -> None:
        """As `RunOperations.stop`."""
        self.all.stop(self._acted_on(location))

    def resume(self, location: RunLocation) -> None:
        """As `RunOperations.resume`."""
        self.all.resume(self._acted_on(location))

    def delete(self, location: RunLocation) -> None:
        """As `RunOperations.delete`."""
        self.all.delete(self._acted_on(location))

    def log(self, location: RunLocation, lines: int) -> Sequence[str]:
        """As `RunOperations.log`."""
        return self.all.log(self._reached(location), lines)

    def _reached(self, location: RunLocation) -> RunLocation:
        if not self.may(location, self.role):
            raise HTTPError("There is no such run. It may have been deleted.", status=404)
        return location

    def _acted_on(self, location: RunLocation) -> RunLocation:
        refuse_without_role(self.rights, "operator", place_of(self.all, location))
        return location
