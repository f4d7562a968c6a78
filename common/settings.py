"""Sections of settings: frozen dataclasses that check themselves, from and to plain tables."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from penchant.common.errors import ConfigError

S = TypeVar("S", bound="Section")
_HINTS: dict[Any, Mapping[str, Any]] = {}  # by section


@dataclass(frozen=True)
class Section:
    """Checks every field's type; subclasses add ranges in `_check`."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in fields(self):
            value = _coerce(f"{self._title()}.{f.name}", hints[f.name], getattr(self, f.name))
            object.__setattr__(self, f.name, value)
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for a value out of range."""

    @classmethod
    def _title(cls) -> str:
        return cls.__name__.removesuffix("Config").lower()

    def _range(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise ConfigError(f"{self._title()}.{name} is {value}; it must lie in {low:g} … {high:g}")


def section_table(section: Section) -> dict[str, Any]:
    """A plain dict of `section`, tuples as lists."""
    result: dict[str, Any] = {}
    for f in fields(section):
        value = getattr(section, f.name)
        if isinstance(value, Section):
            result[f.name] = section_table(value)
        else:
            result[f.name] = list(value) if isinstance(value, tuple) else value
    return result


def _hints(cls: type[Section]) -> Mapping[str, Any]:
    """The types of a section's fields, resolved once: a plan is read anew at every exchange."""
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def build_section(cls: type[S], table: Mapping[str, Any], where: str) -> S:
    """A section from a table; ConfigError names the first unknown or missing key."""
    hints = _hints(cls)
    known = {f.name: f for f in fields(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(_unknown(dotted, str(key), list(known)))
        kind = hints[key]
        if isinstance(kind, type) and issubclass(kind, Section):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{dotted} must be a table")
            values[key] = build_section(kind, value, dotted)
        else:
            values[key] = value
    missing = [n for n, f in known.items() if n not in values and _required(f)]
    if missing:
        raise ConfigError(f"{where or 'the configuration'} lacks {', '.join(missing)}")
    return cls(**values)


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _unknown(dotted: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else f"; known here: {', '.join(sorted(known))}"
    return f'unknown configuration key "{repr(dotted)[1:-1]}"{hint}'  # in one line, whatever it holds


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind` (int where a float is wanted, list where a tuple is), else ConfigError."""
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind) or not isinstance(value, str):
            raise ConfigError(f"{name} is {_shown(value)}; choose one of {', '.join(get_args(kind))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list")
        (item, _) = get_args(kind)
        return tuple(_coerce(name, item, v) for v in value)
    if kind in (int, float) and isinstance(value, int) and value.bit_length() > 64:
        raise ConfigError(f"{name} is a number of {value.bit_length()} bits; it must be a far smaller one")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {_shown(value)}; it must be {_spoken(kind)}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; it must be a finite number")
    if kind is str and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{name} holds half a surrogate pair, which is no text")
    return value


def _shown(value: object) -> str:
    """`value` for an error's one line: not much of it, whatever came."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."


def _spoken(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind, str(kind))
