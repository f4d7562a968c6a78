"""Numbers and texts as they are shown, the same wherever a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def percent(value: float | None, digits: int = 1, *, error: float | None = None) -> str:
    """A part of 1 in percent, with its standard error where there is one; a dash for None."""
    if value is None:
        return "–"
    spread = "" if error is None else f" ± {100 * error:.{digits}f}"
    return f"{100 * value:.{digits}f}{spread}%"


def decimals(value: float | None, digits: int = 3) -> str:
    """A rounded number; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def whole(value: int | float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def counted(number: int, one: str, many: str = "") -> str:
    """``1 device``, ``7 devices``."""
    return f"{whole(number)} {one if number == 1 else many or one + 's'}"


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


def points(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def plain(value: object) -> str:
    """A value as it is; a dash for None."""
    return "–" if value is None else f"{value}"


def span(values: Sequence[int]) -> str:
    """The least and the greatest of some numbers: ``7``, or ``7 to 9``."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def listed(parts: Iterable[str]) -> str:
    """``a, b and c`` of those that are not empty."""
    present = [part for part in parts if part]
    return " and ".join(filter(None, [", ".join(present[:-1]), *present[-1:]]))


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers, neighbours as a span: ``1–3, 7, 9–12``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in spans)
