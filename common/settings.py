"""Settings: each is declared once, and its check, flag, reference page and form all come from there.

A section is a frozen dataclass whose fields are made with `setting`. The section checks itself against the
types and ranges of its fields; `settings_of` lists what was declared, for flags, pages and forms.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from penchant.common.errors import ConfigError
from penchant.common.printable import quoted

S = TypeVar("S", bound="Section")
T = TypeVar("T")
Choices = tuple[Any, ...] | Callable[[], tuple[Any, ...]]

_DECLARED = "penchant.setting"  # the key of a field's metadata


class RenamedSetting(FutureWarning):
    """A setting was given by its old name, which is read for one more version."""


# --- declaring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declaration:
    """What is said of a setting beside its name, type and default."""

    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: Choices = ()
    flag: str = ""
    switch: tuple[Any, Any] | None = None
    group: str = ""
    old: tuple[str, ...] = ()
    stored: str = ""
    added: bool = False
    simulated: bool = False
    usual: bool = False


def setting(
    default: T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Choices = (),
    flag: str = "",
    switch: tuple[T, T] | None = None,
    group: str = "",
    old: tuple[str, ...] = (),
    stored: str = "",
    added: bool = False,
    simulated: bool = False,
    usual: bool = False,
) -> T:
    """Declare a setting: the one place that a new setting touches.

    Args:
        default: the value where nothing else is said.
        help: what the setting means, in one sentence.
        low: the smallest number that is allowed; give `high` with it.
        high: the largest number that is allowed.
        choices: the values that are allowed, where the type is not a Literal that lists them; a function is
            called when a value is checked, so that a registry can still grow.
        flag: the flag of `penchant simulate`, where it is not the name with dashes.
        switch: the two values that a flag "--yes/--no" stands for, where the type is not bool.
        group: the heading that the setting is listed under, where it is not that of its section.
        old: former names, which are read with a notice.
        stored: the name in a plan's bytes and in a configuration's digest, where those keep a former name.
        added: whether it came after runs of other versions: bytes and digests leave it out where it has its
            default, so that earlier runs keep theirs.
        simulated: whether it means something to simulations alone, and nothing to real devices.
        usual: whether whoever starts a run looks at it first: forms and files show it even at its default.
    """
    declared = Declaration(
        help, low, high, choices, flag, switch, group, old, stored, added, simulated, usual
    )
    return dataclasses.field(default=default, metadata={_DECLARED: declared})


def within(low: float, high: float, *, added: bool = False) -> dict[str, Any]:
    """Metadata of a field that no flag sets, but which has a range. added: as of a setting."""
    return {_DECLARED: Declaration(low=low, high=high, added=added)}


def as_in(section: type[Section], name: str) -> dict[str, Any]:
    """Metadata of a field that is copied from a setting: it has the range and the choices of its source, and
    was added when that was."""
    source = _known(section)[name].declared
    return {
        _DECLARED: Declaration(low=source.low, high=source.high, choices=source.choices, added=source.added)
    }


# --- a section checks itself ----------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Checks every field's type and range; subclasses check in `_check` what concerns several fields."""

    def __post_init__(self) -> None:
        for f in _known(type(self)).values():
            value = _checked(self._key(f.name), f.kind, f.declared, getattr(self, f.name))
            object.__setattr__(self, f.name, value)
        self._check()

    def to_toml(self) -> str:
        """All of it, defaults included, so that a file of it explains itself."""
        return tomli_w.dumps(section_table(self))

    def _check(self) -> None:
        """Raise ConfigError for values that contradict each other."""

    @classmethod
    def _title(cls) -> str:
        return cls.__name__.removesuffix("Config").lower()

    @classmethod
    def _group(cls) -> str:
        """The heading that its settings are listed under."""
        return cls._title().capitalize() or "Run"

    @classmethod
    def _simulated(cls) -> bool:
        """Whether all of its settings mean something to simulations alone."""
        return False

    def _key(self, name: str) -> str:
        """A setting's full name, as messages write it."""
        return f"{self._title()}.{name}" if self._title() else name


@dataclass(frozen=True)
class _Field:
    """A field of a section, with its type resolved."""

    name: str
    kind: Any
    declared: Declaration
    default: Any
    required: bool

    @property
    def section(self) -> type[Section] | None:
        is_section = isinstance(self.kind, type) and issubclass(self.kind, Section)
        return self.kind if is_section else None

    @property
    def stored(self) -> str:
        return self.declared.stored or self.name


_KNOWN: dict[Any, Mapping[str, _Field]] = {}  # by section


def _known(cls: type[Section]) -> Mapping[str, _Field]:
    """A section's fields by name, resolved once: a plan is read anew at every exchange."""
    if cls not in _KNOWN:
        _KNOWN[cls] = _resolved(cls)
    return _KNOWN[cls]


def _resolved(cls: type[Section]) -> Mapping[str, _Field]:
    hints, plain, missing = get_type_hints(cls), Declaration(), dataclasses.MISSING
    return {
        f.name: _Field(
            f.name,
            hints[f.name],
            f.metadata.get(_DECLARED, plain),
            f.default,
            required=f.default is missing and f.default_factory is missing,
        )
        for f in fields(cls)
    }


def _checked(name: str, kind: Any, declared: Declaration, value: Any) -> Any:
    """`value` as a setting of this kind holds it; ConfigError unless it is what was declared."""
    if kind is str:
        _check_choices(name, kind, declared, value)  # first: they say more than that it must be a text
    value = _coerce(name, kind, value)
    _check_range_of(name, declared, value)
    _check_choices(name, kind, declared, value)
    return value


def _check_range_of(name: str, declared: Declaration, value: Any) -> None:
    if declared.low is not None and declared.high is not None:
        _check_range(name, declared.low, declared.high, value)


def _check_choices(name: str, kind: Any, declared: Declaration, value: Any) -> None:
    allowed = _listed(declared.choices)
    if not allowed or value in allowed:
        return
    if kind is str:
        raise ConfigError(f"{name} is {quoted(value)}; choose one of {', '.join(map(str, allowed))}")
    raise ConfigError(f"{name} is {quoted(value)}; it must be {' or '.join(map(str, allowed))}")


def _check_range(name: str, low: float, high: float, value: Any) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must lie in {low:g} … {high:g}")


def _listed(choices: Choices) -> tuple[Any, ...]:
    return choices() if callable(choices) else choices


# --- what was declared ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One setting, as a flag, a page or a form shows it."""

    key: str  # "training.lr_shared"
    kind: Any
    default: Any
    group: str
    declared: Declaration
    simulated: bool = False  # means nothing to real devices

    @property
    def help(self) -> str:
        return self.declared.help

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def flag(self) -> str:
        """The flag of `penchant simulate`; "--yes/--no" for a switch."""
        dashed = self.name.replace("_", "-")
        usual = f"--{dashed}/--no-{dashed}" if self.kind is bool else f"--{dashed}"
        return self.declared.flag or usual

    @property
    def old_keys(self) -> tuple[str, ...]:
        """Former keys, dotted."""
        return tuple(self.key.removesuffix(self.name) + old for old in self.declared.old)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that are allowed; empty where they can't be listed."""
        if get_origin(self.kind) is Literal:
            return get_args(self.kind)
        return (True, False) if self.kind is bool else _listed(self.declared.choices)

    @property
    def allowed(self) -> str:
        """Range, choices or type in words."""
        if self.choices:
            return ", ".join(value if isinstance(value, str) else json.dumps(value) for value in self.choices)
        if self.declared.low is not None and self.declared.high is not None:
            return f"{_number(self.declared.low)} to {_number(self.declared.high)}"
        if get_origin(self.kind) is tuple:
            return "a list of whole numbers" if get_args(self.kind)[0] is int else "a list of texts"
        return _spoken(self.kind)

    @property
    def default_text(self) -> str:
        """The default as TOML spells it."""
        return as_toml(self.default)

    def checked(self, value: Any) -> Any:
        """`value` as a configuration holds it; ConfigError with the line that a configuration would give."""
        return _checked(self.key, self.kind, self.declared, value)


def as_toml(value: Any) -> str:
    """A setting's value, or a path, as TOML spells it, in one line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(as_toml, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def settings_of(cls: type[Section], prefix: str = "") -> tuple[Setting, ...]:
    """Every setting of a section and of the sections in it, in the order in which they are declared."""
    found: list[Setting] = []
    for f in _known(cls).values():
        key = f"{prefix}.{f.name}" if prefix else f.name
        if f.section:
            found += settings_of(f.section, key)
        else:
            group, simulated = f.declared.group or cls._group(), f.declared.simulated or cls._simulated()
            found.append(Setting(key, f.kind, f.default, group, f.declared, simulated))
    return tuple(found)


def settings_by_group(cls: type[Section]) -> dict[str, list[Setting]]:
    """`settings_of` under their headings."""
    groups: dict[str, list[Setting]] = {}
    for one in settings_of(cls):
        groups.setdefault(one.group, []).append(one)
    return groups


# --- from and to plain tables ---------------------------------------------------------------------


def section_table(section: Section, *, stored: bool = False) -> dict[str, Any]:
    """A plain dict of `section`, tuples as lists.

    stored: as bytes and digests keep it, under former names and without added settings at their defaults.
    """
    result: dict[str, Any] = {}
    for f in _known(type(section)).values():
        value = getattr(section, f.name)
        if stored and f.declared.added and value == f.default:
            continue
        if isinstance(value, Section):
            value = section_table(value, stored=stored)
        result[f.stored if stored else f.name] = list(value) if isinstance(value, tuple) else value
    return result


def dotted_table(section: Section) -> dict[str, Any]:
    """Every setting of `section` and of the sections in it, by its dotted key, tuples as lists."""
    flat: dict[str, Any] = {}
    for name, value in section_table(section).items():
        inner = getattr(section, name)
        found = dotted_table(inner).items() if isinstance(inner, Section) else ()
        flat |= {f"{name}.{key}": v for key, v in found} if found else {name: value}
    return flat


def build_section(cls: type[S], table: Mapping[str, Any], where: str, *, stored: bool = False) -> S:
    """A section from a table; ConfigError names the first unknown or missing key.

    Old names are read with a notice. stored: the table has the names that bytes and digests keep, and no
    others.
    """
    if not stored:
        table = current_names(cls, table, where)
    return _built(cls, table, where, stored)


def _built(cls: type[S], table: Mapping[str, Any], where: str, stored: bool) -> S:
    known = {f.stored if stored else f.name: f for f in _known(cls).values()}
    values: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(_unknown(dotted, str(key), list(known)))
        inner = known[key].section
        if inner:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{dotted} must be a table")
            value = _built(inner, value, dotted, stored)
        values[known[key].name] = value
    missing = [key for key, f in known.items() if f.name not in values and f.required]
    if missing:
        raise ConfigError(f"{where or 'the configuration'} lacks {', '.join(missing)}")
    return cls(**values)


def _unknown(dotted: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else f"; known here: {', '.join(sorted(known))}"
    return f'unknown configuration key "{repr(dotted)[1:-1]}"{hint}'  # in one line, whatever it holds


# --- old names ------------------------------------------------------------------------------------


def current_names(
    cls: type[Section], table: Mapping[str, Any], where: str = "", *, quiet: bool = False
) -> dict[str, Any]:
    """`table`, nested, with today's names in place of old ones, and one notice for all of them.

    Raises:
        ConfigError: a setting is given by both names.
    """
    renamed: dict[str, str] = {}
    result = _renamed_table(cls, table, where, renamed)
    if not quiet:
        _notice(renamed)
    return result


def current_keys(cls: type[Section], changes: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """As `current_names`, for a flat table with dotted keys."""
    new = {old: one.key for one in settings_of(cls) for old in one.old_keys}
    renamed = {key: new[key] for key in changes if key in new}
    for old, key in renamed.items():
        if key in changes:
            raise _both(old, key)
    if not quiet:
        _notice(renamed)
    return {renamed.get(key, key): value for key, value in changes.items()}


def known_keys(cls: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """`values`, a flat table with dotted keys; ConfigError names the first that is no setting."""
    known = [one.key for one in settings_of(cls)]
    for key in values:
        if key not in known:
            raise ConfigError(_unknown(key, key, known))
    return values


def _renamed_table(
    cls: type[Section], table: Mapping[str, Any], where: str, renamed: dict[str, str]
) -> dict[str, Any]:
    known = _known(cls)
    new = {old: f.name for f in known.values() for old in f.declared.old}
    result: dict[str, Any] = {}
    for key, value in table.items():
        name, before = new.get(key, key), f"{where}." if where else ""
        if key in new:
            renamed[f"{before}{key}"] = f"{before}{name}"
            if name in table:
                raise _both(f"{before}{key}", f"{before}{name}")
        inner = known[name].section if name in known else None
        if inner and isinstance(value, Mapping):
            value = _renamed_table(inner, value, f"{before}{name}", renamed)
        result[name] = value
    return result


def _both(old: str, new: str) -> ConfigError:
    return ConfigError(f"{old} is the old name of {new}, and both are given; drop {old}")


def _notice(renamed: Mapping[str, str]) -> None:
    if renamed:
        pairs = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        text = f"settings have new names: {pairs}; the old ones are read for one more version"
        warnings.warn(text, RenamedSetting, stacklevel=_level_outside() - 1)


def _level_outside() -> int:
    """The stack level, seen from here, of the call that came from outside of penchant."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "penchant":
        level, frame = level + 1, frame.f_back
    return level


# --- one value ------------------------------------------------------------------------------------


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind` (int where a float is wanted, list where a tuple is), else ConfigError."""
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind) or not isinstance(value, str):
            raise ConfigError(f"{name} is {quoted(value)}; choose one of {', '.join(get_args(kind))}")
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
        raise ConfigError(f"{name} is {quoted(value)}; it must be {_spoken(kind)}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; it must be a finite number")
    if kind is str and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{name} contains a lone surrogate, so it is not valid text")
    return value


def _spoken(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if isinstance(kind, type) and issubclass(kind, Section):
        title = kind.__name__.removesuffix("Config").lower()
        changed = f'RunConfig().changed({{"{title}.…": …}})'
        return f"a {kind.__name__}; to change single settings, write {changed}"
    return names.get(kind, str(kind))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
