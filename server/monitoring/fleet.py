"""What an interface shows of a fleet: connected nodes, tokens, revocations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from penchant.common.wording import counted

__all__ = [
    "ConnectedNode",
    "DeviceNote",
    "Expiry",
    "FleetStatus",
    "MemberListStatus",
    "QueuedRun",
    "Revocation",
    "Token",
]
FRESH_SECONDS = 15.0  # an answer as old is not called the present


@dataclass(frozen=True)
class ConnectedNode:
    """A device's connection, as the SuperLink knows it. until: Unix seconds, when it went offline; None
    before it first came."""

    online: bool
    until: float | None = None


@dataclass(frozen=True)
class FleetStatus:
    """What a fleet's SuperLink said last.

    state: "asked" (it has not answered yet), "up", or "silent" (the latest question got no answer). nodes:
    node id -> connection, as of `at` (Unix seconds; None: it never answered). wrong: (title, text) of other
    parts of the server that did no work then.
    """

    state: Literal["asked", "up", "silent"] = "asked"
    nodes: Mapping[str, ConnectedNode] = field(default_factory=dict)
    at: float | None = None
    wrong: Sequence[tuple[str, str]] = ()

    @property
    def online(self) -> int | None:
        """Nodes that were online at that moment; None when it never answered."""
        return None if self.at is None else sum(node.online for node in self.nodes.values())

    def fresh(self, now: float) -> bool:
        """Whether this is still the current state (Unix seconds)."""
        return self.state == "up" and self.at is not None and now - self.at < FRESH_SECONDS


@dataclass(frozen=True)
class Token:
    """An invitation.

    Attributes:
        id: the name of the invitation in the console.
        label: the operator's name for its recipient.
        made: when it was made, in Unix seconds.
        expires: when it expires, in Unix seconds.
        state: "open", "expired", "waiting" for the authority, "declined" by it, "enrolled" or "out".
        member: the number of the member that joined with it.
        node: the node as which that member connects, once the SuperLink admits it.
        fingerprint: the fingerprint of its request, to compare with the one that the device shows.
        text: what the device's owner types or scans; it is shown once.
    """

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
        return {"enrolled": "good", "waiting": "warn", "declined": "bad", "out": "bad"}.get(self.state, "")


@dataclass(frozen=True)
class DeviceNote:
    """What the operator noted of a device: a name of its own (empty: that of its invitation), and tags."""

    name: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Revocation:
    """A request to take a member out.

    `signed` is the number of the authority's list that took it out, or None while the request is pending.
    """

    member: int
    why: str
    by: str
    at: float
    signed: int | None


@dataclass(frozen=True)
class Expiry:
    """Something of a fleet that ends at a moment (`at`, Unix seconds).

    name: what it is, in one word for programs. what: the same, as a sentence begins with it. since: when it
    was made. cure: what to do about it. soon: how many seconds before its end somebody has to be told.
    """

    name: str
    what: str
    since: float
    at: float
    cure: str
    soon: float


@dataclass(frozen=True)
class MemberListStatus:
    """Who belongs to a fleet, by the authority's list that the server holds, with its number and expiry."""

    members: frozenset[int]
    revoked: frozenset[int]
    list_number: int
    expires: float


@dataclass(frozen=True)
class QueuedRun:
    """A run that waits for its turn.

    Attributes:
        number: its number, the same as long as it waits.
        name: what it shall be called; of one that comes again, what comes before its number; may be empty.
        config: its configuration, in TOML.
        begin_with: the round or release that it begins with; empty for none.
        days: how many days it may take.
        due: Unix seconds before which it does not begin; 0 for none.
        every: seconds from one beginning to the next; 0 for one that comes once.
        by: who wants it.
        added: when that was, Unix seconds.
        why: why it was refused when it was tried last; empty where it wasn't.
        began: the name of the run that is just being made of it; empty where none is.
        tag: whom it asks, by their tag; empty: everybody.
    """

    number: int
    name: str
    config: str = field(repr=False)
    begin_with: str
    days: int
    due: float
    every: float
    by: str
    added: float
    why: str = ""
    began: str = ""
    tag: str = ""

    @property
    def held(self) -> bool:
        """Whether it does not begin by itself any more."""
        return bool(self.why) and not self.every

    @property
    def often(self) -> str:
        """How often it comes again, in words; empty for once."""
        for seconds, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
            if self.every and self.every % seconds == 0:
                return f"every {counted(int(self.every // seconds), unit)}"
        return f"every {self.every:g} s" if self.every else ""

    @property
    def called(self) -> str:
        """What a page calls it."""
        return self.name or f"run {self.number}"
