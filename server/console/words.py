"""Numbers, times and names as people read them; the filters of the pages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from markupsafe import Markup

__all__ = ["FILTERS"]

_STAGES = {
    "keys": "Keys",
    "shares": "Shares",
    "masked": "Masked sums",
    "confirm": "Confirm",
    "unmask": "Unmask",
    "status": "Roll call",
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


def percent(value: float | None, digits: int = 1) -> str:
    """A part of 1 in percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f} %".replace(" ", "\u202f")


def decimals(value: float | None, digits: int = 3) -> str:
    """A rounded number; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def whole(value: int | float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def size(value: float | None) -> str:
    """Bytes in the unit that suits them."""
    if value is None:
        return "–"
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= one:
            amount = value / one
            return f"{amount:.0f}\u202f{unit}" if amount >= 100 else f"{amount:.1f}\u202f{unit}"
    return f"{value:.0f}\u202fB"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f}\u202fms"
    if seconds < 60:
        return f"{seconds:.0f}\u202fs" if seconds >= 10 else f"{seconds:.1f}\u202fs"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}\u202fd {hours}\u202fh"
    return f"{hours}\u202fh {minutes}\u202fmin" if hours else f"{minutes}\u202fmin {rest}\u202fs"


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


def counted(number: int, one: str, many: str = "") -> str:
    """``1 device``, ``7 devices``."""
    return f"{whole(number)} {one if number == 1 else many or one + 's'}"


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
    "shape": shape,
}
