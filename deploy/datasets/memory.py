"""Preferences that are in memory already: a mapping of people, a table, or rows in TRL's format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from penchant.common.data.importers.choices import Tally
from penchant.common.data.preferences import Federation, Preference, kind_of
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes
from penchant.common.data.trl_format import (
    STRENGTH,
    STRENGTHS,
    TIE,
    AskedColumns,
    collect_preferences,
    parse_preference,
)
from penchant.common.errors import DataError
from penchant.deploy.datasets.files import people_of
from penchant.deploy.datasets.prepared import Prepared, to_federation

__all__ = ["federation_of", "preference_of"]

PERSON = "person"
Row = tuple[str, Mapping[str, Any]]


def federation_of(
    source: object,
    name: str,
    sizes: Sizes,
    seed: int,
    *,
    clients: int | None = None,
    bad_rows: BadRows = "refuse",
    person_column: str | None = None,
) -> Federation:
    """Everybody's training, validation and test pairs, from preferences in memory.

    Args:
        source: a mapping of each person's name to their preferences (`Preference`, a row in TRL's format, or
            ``(prompt, chosen, rejected)``), oldest first; a pandas DataFrame or a `datasets.Dataset` with a
            column that names the person; or such rows.
        name: what results call the data.
        sizes: how many pairs of each part a person is asked for.
        seed: of everything drawn.
        clients: how many people take part, drawn by `seed`; everybody if None.
        bad_rows: "refuse" data with bad rows, or "skip" them and say so in the caveats.
        person_column: the column that names the person, if it is not a usual one.

    Raises:
        DataError: the source is of another kind, rows are bad, or somebody has too few preferences.
    """
    log = RowLog(bad_rows)
    if isinstance(source, Mapping) and person_column is not None:
        raise DataError("a mapping names its people itself; a person column is for tables and rows")
    asked = AskedColumns(PERSON if isinstance(source, Mapping) else person_column or "")
    labelled = collect_preferences(_counted(_rows(source, log), log), log, asked)
    report = log.finish(name)
    people, shortfalls, caveats = people_of(labelled, name, sizes, seed)
    tally = Tally()
    tally.count(row.preference for row in labelled)
    prepared = Prepared(
        name, people, shortfalls, [*tally.lines(), *caveats], report, strict=bad_rows == "refuse"
    )
    return to_federation(prepared, sizes, clients, seed)


def preference_of(given: object) -> Preference:
    """One preference, from any form in which it may be handed over; DataError for anything else."""
    return given if isinstance(given, Preference) else parse_preference(_columns(given))


def _columns(given: object) -> Mapping[str, Any]:
    if isinstance(given, Preference):
        return {
            "prompt": given.prompt,
            "chosen": given.chosen,
            "rejected": given.rejected,
            TIE: given.tie,
            STRENGTH: given.strength,
        }
    if isinstance(given, Mapping):
        return given
    if isinstance(given, tuple | list) and len(given) == 3:
        return dict(zip(("prompt", "chosen", "rejected"), given, strict=True))
    raise DataError(
        "a preference must be a Preference, a row with 'chosen' and 'rejected', or "
        f"(prompt, chosen, rejected), not {_kind(given)}"
    )


def _kind(value: object) -> str:
    return "None" if value is None else kind_of(value)


def _counted(rows: Iterable[Row], log: RowLog) -> Iterator[Row]:
    for row in rows:
        log.met()
        yield row


def _rows(source: object, log: RowLog) -> Iterator[Row]:
    """Where each preference is, in words, and its columns."""
    if isinstance(source, Mapping):
        yield from _of_people(source, log)
    elif hasattr(source, "columns") and hasattr(source, "to_dict"):  # a DataFrame
        yield from _numbered(map(_without_empty_cells, source.to_dict("records")), log)
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | bytearray):
        # rows, or a datasets.Dataset
        yield from _numbered(source, log)
    else:
        raise DataError(
            f"preferences must be a mapping of people, a table or rows, not {_kind(source)}; see "
            "penchant.load_preferences"
        )


def _without_empty_cells(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of a DataFrame, which has NaN where a column of numbers is empty."""
    return {name: value for name, value in row.items() if name not in STRENGTHS or value == value}


def _of_people(source: Mapping[Any, Any], log: RowLog) -> Iterator[Row]:
    for person, preferences in source.items():
        if hasattr(preferences, "column_names"):
            raise DataError(
                f"this is a dictionary of data sets; choose one of its splits, as in data[{person!r}]"
            )
        if isinstance(preferences, str | bytes | Mapping) or not isinstance(preferences, Iterable):
            raise DataError(f"the preferences of {person!r} must be a list, not {_kind(preferences)}")
        for where, row in _numbered(preferences, log, f"{person}: "):
            yield where, {**row, PERSON: person}


def _numbered(rows: Iterable[object], log: RowLog, whose: str = "") -> Iterator[Row]:
    for number, given in enumerate(rows, start=1):
        where = f"{whose}preference {number}"
        try:
            yield where, _columns(given)
        except DataError as error:
            log.met()
            log.reject(where, error)
