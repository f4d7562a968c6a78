"""Data sets: :func:`load` turns a name, a file or a hub id into a checked :class:`Federation`."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from penchant.common.config import DataConfig
from penchant.common.data.preferences import Federation
from penchant.common.data.splits import Sizes
from penchant.common.data.trl_format import JSONL_SUFFIXES, PARQUET_SUFFIX, BadRows
from penchant.common.errors import DataError
from penchant.deploy.datasets import files, helpsteer2, movielens, personalllm, prism, senate, tldr
from penchant.deploy.datasets.prepared import Prepared, to_federation

__all__ = ["KNOWN", "configured", "load"]

KNOWN = ("senate", "senate-masked", "movielens", "tldr", "helpsteer2", "prism", "personalllm")
"""Data sets by name; ``NAME:FOLDER`` reads a local copy of one, except for Senate, which is included."""


def load(
    source: str | Path,
    *,
    clients: int | None = None,
    pairs: int = 20,
    validation_pairs: int = 20,
    test_pairs: int = 60,
    until: float = 1.0,
    seed: int = 0,
    bad_rows: BadRows = "refuse",
    masked: bool = False,
    person_column: str | None = None,
) -> Federation:
    """Everybody's training, validation and test pairs.

    Args:
        source: one of :data:`KNOWN`; ``NAME:FOLDER``; a file or folder of TRL rows; or the id of a data
            set of TRL rows on the Hugging Face hub (``OWNER/NAME``).
        clients: how many people, drawn by ``seed`` so that more only adds to them; all if None. TL;DR
            takes the busiest (5 if None), PersonalLLM makes as many (100 if None).
        pairs: training pairs a person.
        validation_pairs: from the end of the training part, which is held out for them; with 0 it is
            not, and gives training pairs like the rest.
        test_pairs: from the last 25 % of the items.
        until: of all items, in order of time, those that are there yet: less than 1 to choose settings in
            the past of a test part that is not touched.
        seed: of everything drawn.
        bad_rows: "refuse" data with bad rows, or "skip" them and say so in the caveats.
        masked: Senate only: without sponsors' names, as "senate-masked".
        person_column: files and hub only: the column that names the person, if it is not a usual one.

    Raises:
        DataError: unknown data set, bad rows, people without pairs or with one class, or numbers out of
            range; one line that says what to do.
    """
    sizes = Sizes(pairs, validation_pairs, test_pairs, until)
    name, path = _resolve(str(source))
    if masked and name not in ("senate", "senate-masked"):
        raise DataError(f"only Senate has a masked variant, not {name!r}")
    if person_column is not None and name in KNOWN:
        raise DataError(f"{name!r} knows its people; a person column is for files and hub ids")
    if name == "tldr":
        return to_federation(tldr.prepare(path, sizes, seed, bad_rows, clients), sizes, None, seed)
    if name == "personalllm":
        return to_federation(personalllm.prepare(path, sizes, seed, bad_rows, clients), sizes, None, seed)
    prepared = _prepare(name, path, sizes, seed, bad_rows, masked, person_column)
    return to_federation(prepared, sizes, clients, seed)


def configured(data: DataConfig, seed: int) -> Federation:
    """The people that a configuration asks for; DataError as of :func:`load`."""
    return load(
        data.dataset,
        clients=data.clients or None,
        pairs=data.pairs,
        validation_pairs=data.validation_pairs,
        test_pairs=data.test_pairs,
        until=data.until,
        seed=seed,
        bad_rows=data.bad_rows,
        person_column=data.person_column or None,
    )


def _prepare(
    name: str,
    path: Path | None,
    sizes: Sizes,
    seed: int,
    bad_rows: BadRows,
    masked: bool,
    person_column: str | None,
) -> Prepared:
    match name:
        case "senate" | "senate-masked":
            return senate.prepare(sizes, seed, masked=masked or name == "senate-masked")
        case "movielens":
            return movielens.prepare(path, sizes, seed, bad_rows)
        case "helpsteer2":
            return helpsteer2.prepare(path, sizes, seed, bad_rows)
        case "prism":
            return prism.prepare(path, sizes, seed, bad_rows)
        case _:
            return files.prepare(name, path, sizes, seed, bad_rows, person_column)


def _resolve(source: str) -> tuple[str, Path | None]:
    """(name, local path): a known name, with or without a folder; a file; or a hub id without a path."""
    name, colon, folder = source.partition(":")
    if name in KNOWN and (not colon or (folder and not name.startswith("senate"))):
        return name, Path(folder) if colon else None
    if Path(source).exists():
        return source, Path(source)
    if source.endswith((*JSONL_SUFFIXES, PARQUET_SUFFIX)):
        raise DataError(f"there is no file {source}")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        return source, None
    near = difflib.get_close_matches(source, KNOWN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"unknown data set {source!r}; {hint}known are {', '.join(KNOWN)}, a file or folder in TRL's format, "
        "and hub ids OWNER/NAME"
    )
