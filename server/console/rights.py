"""What an account may do, and where: `Rights.may` is asked before every page and every act.

An account has one role on this machine and on every fleet that is not named, and others on fleets by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from penchant.common.errors import UsageError

__all__ = ["ROLES", "Rights", "Role", "refuse_unknown_role"]

Role = Literal["none", "viewer", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
"""From the one that may least to the one that may most: nothing, look, act."""


@dataclass(frozen=True)
class Rights:
    """The roles of an account.

    Attributes:
        elsewhere: on this machine, and on each fleet that is not in `fleets`.
        fleets: on these fleets, by the id that the console gives to the server's directory.
    """

    elsewhere: Role = "none"
    fleets: Mapping[str, Role] = field(default_factory=lambda: MappingProxyType({}))

    def may(self, role: Role, fleet: str = "") -> bool:
        """Whether the account may what `role` may on a fleet; on this machine where that is empty."""
        return ROLES.index(self.fleets.get(fleet, self.elsewhere)) >= ROLES.index(role)

    def may_anywhere(self, role: Role) -> bool:
        """Whether there is a place where it may what `role` may."""
        return any(self.may(role, fleet) for fleet in ("", *self.fleets))


def refuse_unknown_role(*roles: str) -> None:
    """UsageError unless each is a role."""
    if not set(roles) <= set(ROLES):
        raise UsageError(f"a role is one of {', '.join(ROLES)}")
