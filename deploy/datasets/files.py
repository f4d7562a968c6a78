"""Anybody's preferences in TRL's format, from files or the hub, with a column that names the person."""

from __future__ import annotations

from pathlib import Path

from penchant.common.data.preferences import Preference
from penchant.common.data.splits import Sizes, people_from_pairs
from penchant.common.data.trl_format import PERSON_FIELDS, BadRows, Labelled, RowLog, collect_preferences
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared
from penchant.deploy.datasets.sources import HubSource

__all__ = ["LOADER", "prepare"]


def prepare(
    source: str,
    path: Path | None,
    sizes: Sizes,
    seed: int,
    bad_rows: BadRows,
    person_column: str | None,
) -> Prepared:
    """Rows of a file or folder (``path``) or, without one, of the hub's data set ``source``.

    With ``bad_rows="refuse"`` somebody without pairs or with one class is refused as well.
    """
    log = RowLog(bad_rows)
    origin = HubSource(source, patterns=("**/*.jsonl", "**/*.jsonl.gz", "**/*.json", "**/*.parquet"))
    labelled = collect_preferences(origin.rows(path, log), log, person_column)
    report = log.finish(source)
    people, shortfalls, across = people_from_pairs(by_person(labelled, source), sizes, seed)
    caveats = []
    if across:
        caveats.append(f"{across} pairs compare items on different sides of the split and are not used")
    return Prepared(Path(source).stem, people, shortfalls, caveats, report, strict=bad_rows == "refuse")


def by_person(rows: list[Labelled], source: str) -> dict[str, list[Preference]]:
    """Person -> pairs, in file order.

    Raises:
        DataError: rows don't say whose they are.
    """
    pairs: dict[str, list[Preference]] = {}
    for row in rows:
        if row.person is None:
            raise DataError(
                f"{source} doesn't say whose preferences they are; add a column {PERSON_FIELDS[0]!r}, or "
                "name the column that says it"
            )
        pairs.setdefault(row.person, []).append(row.preference)
    return pairs


LOADER = DatasetLoader(
    name="",  # a file or a hub id is named instead
    about="Preferences in TRL's format, from files or the hub.",
    prepare=lambda asked: prepare(
        asked.source, asked.path, asked.sizes, asked.seed, asked.bad_rows, asked.person_column
    ),
    takes_person_column=True,
)
