"""Anybody's preferences, from files or the hub, in TRL's format or as a program exports them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from penchant.common.data.importers.reading import Found, choices_of_rows, read_choices
from penchant.common.data.preferences import Person, Preference, choice_of, each_once, without_ties
from penchant.common.data.row_files import PARTS, RowLog, is_data_file
from penchant.common.data.splits import OwnParts, Shortfall, Sizes, people_from_pairs, people_from_parts
from penchant.common.data.trl_format import PERSON_FIELDS, AskedColumns, Labelled
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DataRequest, DatasetLoader
from penchant.deploy.datasets.prepared import Prepared
from penchant.deploy.datasets.sources import HubSource

__all__ = ["LOADER", "is_hub_id", "is_path", "people_of", "prepare"]

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(:\w[\w.-]*)?")
"""A data set on the hub, ``OWNER/NAME``, and after a colon its split if it is not called train."""


def is_hub_id(source: str) -> bool:
    """Whether a data set on the hub is meant: the hub is not asked for a path that was mistyped, which is
    called like a file of data, or lies in a folder that is there."""
    return bool(HUB_ID.fullmatch(source)) and not is_path(source)


def is_path(source: str) -> bool:
    """Whether a file or folder is meant, be it there or not."""
    return is_data_file(source) or ("/" in source and Path(source).parent.is_dir())


def prepare(asked: DataRequest) -> Prepared:
    """Rows of a file or folder (``asked.path``) or, without one, of the hub's data set ``asked.source``.

    With ``bad_rows="refuse"`` somebody without pairs or with one class is refused as well.
    """
    log = RowLog(asked.bad_rows)
    test_path = _local(asked.test) if asked.test else None
    found = _read(asked.source, asked.path, log, asked)
    labelled, notes, unused = found.labelled, found.notes, found.unused
    if asked.test:
        if any(row.part == "test" for row in labelled):
            raise DataError(f"{asked.source} has a test part itself; drop the other one")
        tested = _read(asked.test, test_path, log, asked)
        labelled = [replace(row, part=row.part or "train") for row in labelled]
        labelled += [replace(row, part="test") for row in tested.labelled]
        notes = [*notes, *(note for note in tested.notes if note not in notes)]
        unused = [*unused, *(note for note in tested.unused if note not in unused)]
    report = log.finish(asked.source)
    if asked.partition is not None:
        labelled = asked.partition.deal(labelled, asked.source, asked.seed)
        notes = [
            *notes,
            f"all people are made up: {asked.source} was dealt out to {asked.partition.people}",
        ]
    people, shortfalls, caveats = people_of(labelled, asked.source, asked.sizes, asked.seed)
    name = Path(asked.source).stem
    strict = asked.bad_rows == "refuse"
    return Prepared(name, people, shortfalls, [*notes, *caveats], report, strict=strict, unused=unused)


def _read(source: str, path: Path | None, log: RowLog, asked: DataRequest) -> Found:
    kind = asked.partition.column if asked.partition else ""
    names = AskedColumns(person=asked.person_column or "", kind=kind)
    if path is not None:
        return read_choices(path, log, asked=names, columns=asked.columns)
    hub_id, _, split = source.partition(":")
    rows = HubSource(hub_id, split=split or "train").rows(None, log)
    return choices_of_rows(rows, log, asked=names, columns=asked.columns)


def _local(source: str) -> Path | None:
    """The path that a test part is at; None where it is on the hub. DataError when it is nowhere."""
    if Path(source).exists():
        return Path(source)
    if is_hub_id(source):
        return None
    raise DataError(f"there is no file {source} to test on")


def people_of(
    rows: Sequence[Labelled], source: str, sizes: Sizes, seed: int
) -> tuple[list[Person], list[Shortfall], list[str]]:
    """People, those who fall short, and what must be said of the split.

    Rows that say which part they belong to are split so; otherwise as `people_from_pairs` does.

    Raises:
        DataError: rows don't say whose they are, or there are parts but none to test on.
    """
    owned = by_person(rows, source)
    against = _contradicted(owned)
    caveats = (
        [f"{against} comparisons are answered both ways by the same person: both count"] if against else []
    )
    again = _repeated(owned)
    if again:
        caveats.append(f"{again} there more than once: they count once")
    if not any(row.part for row in rows):
        pairs = {name: [row.preference for row in own] for name, own in owned.items()}
        people, shortfalls, across = people_from_pairs(pairs, sizes, seed)
        if across:
            caveats.append(f"{across} pairs compare items on different sides of the split and are not used")
        return people, shortfalls, caveats
    if not any(row.part == "test" for row in rows):
        have = " and ".join(part for part in PARTS if any(row.part == part for row in rows))
        raise DataError(
            f"{source} says of its rows that they are for {have}, and has none to test on; call one part "
            "test, or name it with data.test",
            on_command_line=f"{source} says of its rows that they are for {have}, and has none to test on; "
            "call one part test, or name it with --test",
        )
    if sizes.until < 1:
        raise DataError(
            "time_cutoff is for data that are split by time; these say themselves what is tested on"
        )
    parted = {
        name: {part: [row.preference for row in own if (row.part or "train") == part] for part in PARTS}
        for name, own in owned.items()
    }
    people, shortfalls, told = people_from_parts(parted, sizes, seed)
    return people, shortfalls, [*caveats, *_own_split(told)]


def _own_split(told: OwnParts) -> list[str]:
    """What must be said of a split that the data bring along."""
    said = [f"the split is the data's own: {told.tested} pairs are tested on"]
    if told.met:
        said.append(f"{told.met} of them have a prompt that is trained on as well")
    if told.spare:
        said.append(f"{told.spare} more test pairs are beyond the number asked for and not used")
    if told.copies:
        said.append(
            f"{told.copies} pairs compare what is tested or validated on and are left out of training"
        )
    if told.across:
        said.append(f"{told.across} pairs compare items of training and of validation and are not used")
    return said


def _contradicted(owned: dict[str, list[Labelled]]) -> int:
    """How many comparisons somebody answered both ways."""
    total = 0
    for own in owned.values():
        answers = {choice_of(pair) for pair in without_ties(row.preference for row in own)}
        turned = {(prompt, rejected, chosen) for prompt, chosen, rejected in answers}
        total += len(answers & turned) // 2
    return total


def _repeated(owned: dict[str, list[Labelled]]) -> int:
    """How many choices their person has already made, in the same part of the data."""
    parts: dict[tuple[str, str | None], list[Preference]] = {}
    for name, own in owned.items():
        for row in own:
            parts.setdefault((name, row.part), []).append(row.preference)
    return sum(len(pairs) - len(each_once(pairs)) for pairs in parts.values())


def by_person(rows: Sequence[Labelled], source: str) -> dict[str, list[Labelled]]:
    """Person -> their rows, in file order.

    Raises:
        DataError: rows don't say whose they are.
    """
    owned: dict[str, list[Labelled]] = {}
    for row in rows:
        if row.person is None:
            raise DataError(
                f"{source} doesn't say whose preferences they are; add a column {PERSON_FIELDS[0]!r}, or "
                "name the column that says it (data.person_column)",
                on_command_line=f"{source} doesn't say whose preferences they are; add a column "
                f"{PERSON_FIELDS[0]!r}, or name the column that says it with --person-column",
            )
        owned.setdefault(row.person, []).append(row)
    return owned


LOADER = DatasetLoader(
    name="",  # a file or a hub id is named instead
    about="Preferences from files or the hub, in TRL's format or as a program exports them.",
    prepare=prepare,
    takes_person_column=True,
)
