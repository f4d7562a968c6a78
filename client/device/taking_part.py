"""Whether a device takes part in rounds now, as its owner is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from penchant.client.agent.connection_note import QUIET_SECONDS, ConnectionNote
from penchant.common.membership.manifest import shown_day
from penchant.common.wording import duration

if TYPE_CHECKING:  # which needs a model
    from penchant.client.device.device import Report

__all__ = ["TakingPart"]


@dataclass(frozen=True)
class TakingPart:
    """Whether the device can be asked to take part, and if not, why.

    Attributes:
        agent: whether the agent is running.
        heard: when the server answered last, in Unix seconds, 0 for never.
        refused: why the server takes nothing from this device any more; empty while it does.
        why_not: why the device takes no part now; empty when it does.
        last_taken: the day on which it last took part; empty before the first.
    """

    agent: bool
    heard: float
    refused: str
    why_not: str
    last_taken: str

    @classmethod
    def of(cls, report: Report, agent: bool, note: ConnectionNote | None, now: float) -> Self:
        """As the device reports it and its relay noted; `agent` says whether the agent is running, `now` is
        in Unix seconds."""
        heard, refused = (note.heard, note.refused) if note is not None else (0.0, "")
        why = report.absent or refused
        if not why and not agent:
            why = "the agent is not running (penchant device serve)"
        if not why and now - heard > QUIET_SECONDS:
            quiet = f"no word from the server for {duration(now - heard)}"
            ago = quiet if heard else "no word from the server yet"
            why = f"{ago}: nothing connects this device (penchant device connect)"
        day = "" if report.last_taken is None else shown_day(report.last_taken)
        return cls(agent, heard, refused, why, day)
