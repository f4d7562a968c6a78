"""The fields of a new run's form: one for each setting that is declared, with what was typed into it.

A field is read and checked as its declaration says, so that a new setting needs nothing here. What the fields
say together is written as TOML, which is then checked like a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

import tomli_w

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.common.settings import Setting, settings_of

__all__ = [
    "PREFIX",
    "FormField",
    "FormGroup",
    "applying",
    "beginning",
    "grouped",
    "marked",
    "toml_of",
    "typed",
]

PREFIX = "set."  # of the names of inputs: a setting is never taken for another part of the form

_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_TOO_LONG = "a number of far too many digits"
_SURROGATE = re.compile("[\ud800-\udfff]")  # no character: UTF-8 has no bytes for it
_MARKS = frozenset('",[]\n')  # in an item: a list of such items is written as JSON, not with commas


@dataclass(frozen=True)
class FormField:
    """One setting in the form.

    Attributes:
        setting: what was declared.
        text: what the input shows, as it was typed.
        value: what that stands for; the text itself where it can't be read.
        error: what is wrong with it, in one line.
    """

    setting: Setting
    text: str
    value: Any
    error: str = ""

    @property
    def name(self) -> str:
        """Of the input."""
        return PREFIX + self.setting.key

    @property
    def id(self) -> str:
        """Of the input's element."""
        return self.name.replace(".", "-")

    @property
    def control(self) -> str:
        """Which input it takes: "switch", "choice", "number" or "text"."""
        if self.setting.kind is bool and self.text in ("on", "off"):
            return "switch"
        if self.setting.choices:
            return "choice"
        number = self.setting.kind in (int, float) and not isinstance(self.value, str)
        return "number" if number or not self.text else "text"  # letters would not show in one for numbers

    @property
    def options(self) -> tuple[str, ...]:
        """What a choice offers, and what was typed, even if it is none of that."""
        return tuple(dict.fromkeys([*map(_shown, self.setting.choices), self.text]))

    @property
    def low(self) -> str:
        """The smallest number that is allowed."""
        return "" if self.setting.declared.low is None else _shown(self.setting.declared.low)

    @property
    def high(self) -> str:
        """The largest number that is allowed."""
        return "" if self.setting.declared.high is None else _shown(self.setting.declared.high)

    @property
    def step(self) -> str:
        """Of an input for numbers: whole ones, or any."""
        return "1" if self.setting.kind is int else "any"

    @property
    def hint(self) -> str:
        """Range and default in words."""
        default = _shown(self.setting.default) or "empty"
        if self.setting.choices or self.setting.kind is str:
            return f"Default {default}"
        commas = ", with commas" if get_origin(self.setting.kind) is tuple else ""
        return f"{self.setting.allowed[0].upper()}{self.setting.allowed[1:]}{commas}; default {default}"

    @property
    def changed(self) -> bool:
        """Whether it differs from the default."""
        return bool(self.error) or self.value != self.setting.default


@dataclass(frozen=True)
class FormGroup:
    """The fields under one heading: those that one looks at first, and the others, behind a fold."""

    title: str
    usual: tuple[FormField, ...]
    more: tuple[FormField, ...]

    @property
    def id(self) -> str:
        return "group-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower())

    @property
    def changed(self) -> int:
        """How many behind the fold differ from their default."""
        return sum(field.changed for field in self.more)

    def opens(self, written: Collection[str]) -> bool:
        """Whether something behind the fold is wrong, or among the names of those that were written."""
        return any(field.error or field.name in written for field in self.more)


def applying(fields: Iterable[FormField], *, fleet: bool) -> tuple[FormField, ...]:
    """Those that mean something: to real devices, or to a simulation."""
    return tuple(field for field in fields if not (fleet and field.setting.simulated))


def grouped(fields: Iterable[FormField]) -> list[FormGroup]:
    """Under their headings, in the order in which they are declared."""
    found: dict[str, list[FormField]] = {}
    for field in fields:
        found.setdefault(field.setting.group, []).append(field)
    return [
        FormGroup(
            title,
            tuple(field for field in inside if field.setting.declared.usual),
            tuple(field for field in inside if not field.setting.declared.usual),
        )
        for title, inside in found.items()
    ]


def beginning(values: Mapping[str, Any]) -> tuple[FormField, ...]:
    """A field for each setting, filled from a table with dotted keys; the others have their default."""
    return tuple(_filled(one, values.get(one.key, one.default)) for one in settings_of(RunConfig))


def typed(form: Mapping[str, str]) -> tuple[FormField, ...]:
    """A field for each setting, filled with what was typed; the others have their default."""
    return tuple(
        _read(one, form[PREFIX + one.key]) if PREFIX + one.key in form else _filled(one, one.default)
        for one in settings_of(RunConfig)
    )


def marked(fields: Iterable[FormField], error: str, about: Iterable[str]) -> tuple[FormField, ...]:
    """`fields`, those that an error is about with its line."""
    keys = set(about)
    return tuple(replace(field, error=error) if field.setting.key in keys else field for field in fields)


def toml_of(fields: Iterable[FormField]) -> str:
    """The configuration that they make: what differs from the defaults, and nothing else.

    Of a value that TOML can't hold, what the input shows is written, which the check refuses as well.
    """
    top: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for field in fields:
        if field.changed:
            table, _, name = field.setting.key.rpartition(".")
            held = field.value if _writable(field.value) else field.text
            value = list(held) if isinstance(held, tuple) else held
            (tables.setdefault(table, {}) if table else top)[name] = value
    return tomli_w.dumps(top | tables)


# --- one field ------------------------------------------------------------------------------------


def _filled(one: Setting, value: Any) -> FormField:
    try:
        return _judged(one, _shown(value), value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return _judged(one, _TOO_LONG, _TOO_LONG)


def _read(one: Setting, text: str) -> FormField:
    return _judged(one, text, _value_of(one, text.strip()))


def _judged(one: Setting, text: str, value: Any) -> FormField:
    try:
        return FormField(one, text, one.checked(value))
    except ConfigError as error:
        return FormField(one, text, value, str(error))


def _value_of(one: Setting, text: str) -> Any:
    """What a text stands for; itself where it can't be read, so that the setting's own check refuses it."""
    if one.kind is bool:
        return {"on": True, "off": False}.get(text, text)
    if get_origin(one.kind) is tuple:
        whole = get_args(one.kind)[0] is int
        items = _items(text)
        return items if isinstance(items, str) else [_whole(item) if whole else item for item in items]
    if one.kind is int:
        return _whole(text)
    return _number(text) if one.kind is float else text


def _items(text: str) -> list[Any] | str:
    """The items of a list, with commas or as JSON; the text itself where JSON has others than texts and whole
    numbers."""
    if text.startswith("["):
        try:
            found = json.loads(text)
        except RecursionError:
            return text
        except ValueError:
            found = None
        if isinstance(found, list):
            return found if all(_is_item(item) for item in found) else text
    return [item.strip() for item in text.split(",") if item.strip()]


def _is_item(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and _writable(value)


def _writable(value: Any) -> bool:
    """Whether it can be written as a setting's value: a text, a number, a switch, or a list of those."""
    if isinstance(value, tuple | list):
        return all(isinstance(item, str | int | float) and _writable(item) for item in value)
    return isinstance(value, int | float) or (isinstance(value, str) and not _SURROGATE.search(value))


def _whole(text: Any) -> Any:
    return int(text) if isinstance(text, str) and _WHOLE.fullmatch(text) else text


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _shown(value: Any) -> str:
    """A value as a person types it; reading it gives the value again."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        items = [str(item) for item in value]
        plain = all(item and item == item.strip() and not _MARKS & set(item) for item in items)
        return ", ".join(items) if plain else json.dumps(list(value), ensure_ascii=False, default=str)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
