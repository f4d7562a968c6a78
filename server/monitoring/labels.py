"""Numbers, times and names as people read them; the filters of the pages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from markupsafe import Markup

from penchant.common.secagg.stages import CONFIRM, KEYS, MASKED, SHARES, STATUS, UNMASK
from penchant.common.wording import counted, decimals, duration, percent, size, whole

__all__ = ["FILTERS"]

_STAGES = {
    KEYS: "Keys",
    SHARES: "Shares",
    MASKED: "Masked sums",
    CONFIRM: "Confirm",
    UNMASK: "Unmask",
    STATUS: "Roll call",
}
_STATES = {
    "new": "not started",
    "running": "running",
    "stopped": "stopped",
    "failed": "failed",
    "finished": "finished",
    "damaged": "unreadable",
}
_PHASES = {"warmup": "warm-up", "main": "main", "close": "closing"}


def moment(at: float | None) -> Markup:
    """A moment (Unix seconds) as a <time> that the page's script makes local and relative."""
    if at is None:
        return Markup("<span class=muted>never</span>")
    then = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        then.isoformat(timespec="seconds"), then.strftime("%Y-%m-%d %H:%M UTC")
    )


def clock(at: float | None) -> Markup:
    """The same, as local date and time without what is relative."""
    if at is None:
        return Markup("–")
    then = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}" data-clock>{}</time>').format(
        then.isoformat(timespec="seconds"), then.strftime("%Y-%m-%d %H:%M UTC")
    )


def stage(name: str) -> str:
    """A stage's name on pages."""
    return _STAGES.get(name, name)


def state(name: str) -> str:
    """A run's state in words."""
    return _STATES.get(name, name)


def phase(name: str) -> str:
    """A phase's name on pages."""
    return _PHASES.get(name, name)


def lost(dropped: Mapping[str, int]) -> str:
    """``2 at keys, 1 at masked sums``."""
    parts = [f"{count} at {stage(name).lower()}" for name, count in dropped.items() if count]
    return ", ".join(parts) or "nobody"


def left_out(failed: Mapping[str, str]) -> list[str]:
    """``without group 2: why``, for each group of devices that is not in a round's sum."""
    return [f"without group {group}: {why}" for group, why in failed.items()]


def shape(sides: tuple[int, ...]) -> str:
    """``2 × 384``; a single number's is a dash."""
    return " × ".join(map(str, sides)) or "–"


FILTERS = {
    "percent": percent,
    "decimals": decimals,
    "whole": whole,
    "size": size,
    "duration": duration,
    "moment": moment,
    "clock": clock,
    "counted": counted,
    "stage": stage,
    "state": state,
    "phase": phase,
    "lost": lost,
    "left_out": left_out,
    "shape": shape,
}
