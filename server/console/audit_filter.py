"""Lines of the audit, and which of them are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from penchant.server.console.rights import Rights

__all__ = ["OUTCOMES", "AuditEntry", "AuditFilter"]

OUTCOMES = ("done", "begun", "refused", "failed")
"""How an act can end; "begun" is one whose end is not on record."""


@dataclass(frozen=True)
class AuditEntry:
    """One line of the audit.

    Attributes:
        number: of the line, from 1.
        at: Unix seconds.
        account: who.
        address: from where; empty at the server itself.
        action: what.
        target: on what.
        outcome: "begun", "done", or why it was not.
        detail: what was given with it.
        fleet: the id of the fleet that it is about; empty where it is about none.
    """

    number: int
    at: float
    account: str
    address: str
    action: str
    target: str
    outcome: str
    detail: str
    fleet: str = ""


@dataclass(frozen=True)
class AuditFilter:
    """Which lines of the audit are wanted. What is empty or None leaves all of them.

    Attributes:
        account: whose.
        action: of what.
        outcome: one of `OUTCOMES`.
        since: Unix seconds of the first moment.
        until: Unix seconds of the first moment that is too late.
        reader: whose rights bound it: lines about fleets that the account may look at.
        own: the reader's account, whose own lines are always there.
    """

    account: str = ""
    action: str = ""
    outcome: str = ""
    since: float | None = None
    until: float | None = None
    reader: Rights = field(default_factory=lambda: Rights("viewer"))
    own: str = ""

    def condition(self) -> tuple[str, list[Any]]:
        """The same in SQL, and its values."""
        parts: list[tuple[str, list[Any]]] = [self._readable()]
        if self.account:
            parts.append(("account = ?", [self.account]))
        if self.action:
            parts.append(("action = ?", [self.action]))
        if self.outcome:
            parts.append(("(outcome = ? OR outcome LIKE ?)", [self.outcome, f"{self.outcome}:%"]))
        if self.since is not None:
            parts.append(("at >= ?", [self.since]))
        if self.until is not None:
            parts.append(("at < ?", [self.until]))
        return " AND ".join(text for text, _ in parts), [value for _, values in parts for value in values]

    def _readable(self) -> tuple[str, list[Any]]:
        """Lines about named fleets by the role there, all others by the role elsewhere, and one's own."""
        seen = [fleet for fleet in self.reader.fleets if self.reader.may("viewer", fleet)]
        if self.reader.may("viewer"):
            hidden = [fleet for fleet in self.reader.fleets if fleet not in seen]
            return f"(account = ? OR fleet NOT IN ({_marks(hidden)}))", [self.own, *hidden]
        return f"(account = ? OR fleet IN ({_marks(seen)}))", [self.own, *seen]


def _marks(values: list[str]) -> str:
    return ", ".join("?" for _ in values)
