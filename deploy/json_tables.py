"""Frozen records and the tables of JSON files that they are written to and read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from penchant.common.errors import RunDirectoryError

__all__ = ["from_table", "plain_value"]

R = TypeVar("R")


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
        RunDirectoryError: this is not a table, or a key without a default is missing.
    """
    if not isinstance(table, Mapping):
        raise RunDirectoryError(f"{what} must be a table of names and values")
    known = {f.name: f for f in dataclasses.fields(record)}  # type: ignore[arg-type]
    for name, field in known.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in table:
            raise RunDirectoryError(f"{what} has no {name!r}; it is damaged, or another program wrote it")
    given = {name: value for name, value in table.items() if name in known}
    return record(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
