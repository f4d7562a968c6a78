"""Frozen records and the tables of JSON files that they are written to and read from."""

from __future__ import annotations

import collections.abc
import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from penchant.common.errors import RunDirectoryError

__all__ = ["from_table", "plain_value"]

R = TypeVar("R")

LARGEST: Final = 10.0**18  # of a number in a table


def plain_value(value: Any) -> Any:
    """A record as a table, tuples as lists, at any depth; what JSON knows already stays as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    return value


def from_table(record: type[R], table: object, what: str) -> R:
    """The record that a table holds; a key that is missing takes its default, an unknown one is left alone.

    what: how errors name the table.

    Raises:
        RunDirectoryError: this is not a table, a key without a default is missing, or a value is of another
            kind than the record says.
    """
    if not isinstance(table, Mapping):
        raise RunDirectoryError(f"{what} must be a table of names and values")
    known = {f.name: f for f in dataclasses.fields(record)}  # type: ignore[arg-type]
    for name, field in known.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in table:
            raise RunDirectoryError(f"{what} has no {name!r}; it is damaged, or another program wrote it")
    given = {name: value for name, value in table.items() if name in known}
    hints = get_type_hints(record)
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise RunDirectoryError(f"{what} has a {name!r} of another kind; it is damaged")
    return record(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def _fits(value: object, hint: Any) -> bool:
    """Whether a value of JSON, or a record made of one, is what an annotation says; numbers must be such as
    can be reckoned with."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is tuple:
        each = inner[0] if inner else Any
        return isinstance(value, list | tuple) and all(_fits(item, each) for item in value)
    if kind is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and _fits(item, inner[1]) for key, item in value.items()
        )
    if hint is float:
        return type(value) in (int, float) and abs(value) <= LARGEST  # type: ignore[arg-type]
    if hint is int:
        return type(value) is int and abs(value) <= LARGEST
    if hint in (bool, str, NoneType) or dataclasses.is_dataclass(hint):
        return type(value) is hint
    return True
