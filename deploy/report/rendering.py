"""What the report pages have in common: rendering, the methods' names, and numbers as people read them."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined

Row = Mapping[str, Any]


def write(path: Path, template: str, page: Mapping[str, Any]) -> None:
    """Render `template` with `page`, every text escaped, and put the file in place in one step."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(environment.get_template(template).render(page), encoding="utf-8")
    os.replace(partial, path)


def base_name(result: Row) -> str:
    """The base model without its owner or folder."""
    return str(result["base_model"]).rstrip("/").rsplit("/", 1)[-1]


def version_of(result: Row) -> str:
    """The version of penchant that wrote `result`, or this one."""
    versions = result.get("versions") or {}
    try:
        return str(versions.get("penchant") or importlib.metadata.version("penchant"))
    except importlib.metadata.PackageNotFoundError:
        return ""


def toml(config: object) -> str:
    """A configuration as TOML."""
    return tomli_w.dumps(dict(config)) if isinstance(config, Mapping) else str(config or "")


def listed(parts: Iterable[str]) -> str:
    """``a, b and c`` of those that are not empty."""
    present = [part for part in parts if part]
    return " and ".join(filter(None, [", ".join(present[:-1]), *present[-1:]]))


def percent(value: float) -> str:
    """A part of 1 in percent."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def plain(value: object) -> str:
    """`value`, or a dash for null."""
    return "–" if value is None else f"{value}"


def decimals(value: float | None, digits: int = 3) -> str:
    """A rounded number, or a dash for null."""
    return "–" if value is None else f"{value:.{digits}f}"


def span(values: Sequence[int]) -> str:
    """``7``, or ``7 to 9``."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def per_client(row: Row, key: str) -> float | None:
    """Bytes of one client, from those of a whole round."""
    total, cohort = row.get(key), row.get("cohort")
    return total / cohort if total is not None and cohort else None


def kilo(value: float | None) -> float | None:
    """Bytes as kilobytes."""
    return None if value is None else value / 1000


def typical(values: Iterable[float | None]) -> float | None:
    """The median of what is not null."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def size(value: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            amount = value / size
            return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.1f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float | None) -> str | None:
    """Seconds as a person says them."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
