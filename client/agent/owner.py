"""Whose device it is: what the agent asks of its owner, anew for each message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penchant.client.agent.policy import OwnerPolicy
from penchant.common.data.preferences import Preference
from penchant.common.errors import UsageError
from penchant.common.membership.identity import Identity, Membership

__all__ = ["Choices", "FixedOwner", "Owner", "member_identity"]


@dataclass(frozen=True)
class Choices:
    """The owner's recorded preferences: those to learn from, and those kept aside to judge the model by."""

    train: Sequence[Preference] = field(repr=False)
    validation: Sequence[Preference] = field(repr=False)


class Owner(Protocol):
    """The person behind an agent. What they change takes effect with the next message."""

    def policy(self) -> OwnerPolicy:
        """What they allow now."""

    def identity(self) -> Identity | None:
        """Who they are in their fleet; None once they have left it."""

    def membership(self) -> Membership:
        """The authority that they believe, with the member list known when they joined. Asked once, at the
        agent's start: newer lists come with greetings."""

    def choices(self) -> Choices:
        """What they prefer, as recorded now."""


def member_identity(owner: Owner) -> Identity:
    """Who the owner is in their fleet. UsageError when they are in none."""
    identity = owner.identity()
    if identity is None:
        raise UsageError("this device is in no fleet; join one first")
    return identity


@dataclass(frozen=True)
class FixedOwner:
    """An owner who changes nothing, for simulations and tests.

    Attributes:
        allows: the owner's policy.
        member: the identity of the device.
        trusts: the authority and its member list.
        prefers: the owner's choices.
    """

    allows: OwnerPolicy
    member: Identity = field(repr=False)
    trusts: Membership = field(repr=False)
    prefers: Choices = field(repr=False)

    def policy(self) -> OwnerPolicy:
        """As `Owner.policy`."""
        return self.allows

    def identity(self) -> Identity | None:
        """As `Owner.identity`."""
        return self.member

    def membership(self) -> Membership:
        """As `Owner.membership`."""
        return self.trusts

    def choices(self) -> Choices:
        """As `Owner.choices`."""
        return self.prefers
