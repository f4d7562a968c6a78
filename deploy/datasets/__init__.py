"""Data sets: :func:`load` turns a name, a file or a hub id into a checked :class:`Federation`.

Each data set says in a :class:`DatasetLoader` what it accepts; other packages add theirs (docs/plugins.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from penchant.common.config import DataConfig
from penchant.common.data.preferences import Federation
from penchant.common.data.row_files import BadRows
from penchant.common.data.splits import Sizes
from penchant.common.data.trl_format import column_names
from penchant.common.errors import DataError
from penchant.deploy.datasets import (
    arguments,
    files,
    helpsteer2,
    jester,
    movielens,
    personalllm,
    prism,
    senate,
    tldr,
)
from penchant.deploy.datasets.loader import (
    DATASETS,
    DataRequest,
    DatasetLoader,
    dataset,
    dataset_names,
    register_dataset,
)
from penchant.deploy.datasets.partitions import Partition
from penchant.deploy.datasets.prepared import Prepared, to_federation

__all__ = [
    "DataRequest",
    "DatasetLoader",
    "Prepared",
    "configured",
    "dataset_names",
    "load",
    "register_dataset",
]

_OWN = (
    senate.LOADER,
    senate.MASKED_LOADER,
    movielens.LOADER,
    tldr.LOADER,
    helpsteer2.LOADER,
    prism.LOADER,
    personalllm.LOADER,
    arguments.LOADER,
    jester.LOADER,
)
for _loader in _OWN:
    DATASETS.add(_loader.name, _loader, own=True)


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
    test: str | Path = "",
    columns: Mapping[str, str] | None = None,
    partition: str = "",
) -> Federation:
    """Everybody's training, validation and test pairs.

    Args:
        source: one of :func:`dataset_names`; ``NAME:FOLDER`` for a local copy of it; a file or folder of
            choices; or the id of a data set on the Hugging Face hub (``OWNER/NAME`` or ``OWNER/NAME:SPLIT``).
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
        test: files and hub only: what is the test part, and ``source`` is for training and validation only.
        columns: files and hub only: {a column's usual name: its name here}.
        partition: files and hub only: how choices are dealt out to made-up people, as `Partition.parse` reads
            it; empty where they are those of real ones.

    Raises:
        DataError: unknown data set, bad rows, people without pairs or with one class, or numbers out of
            range; one line that says what to do.
    """
    sizes = Sizes(pairs, validation_pairs, test_pairs, until)
    loader, path = _resolve(str(source))
    name = loader.name or str(source)
    if masked:
        loader = _masked(loader, name)
    dealt = Partition.parse(partition) if partition else None
    request = DataRequest(
        name, path, sizes, seed, bad_rows, clients, person_column, str(test), dict(columns or {}), dealt
    )
    loader.check(request)
    drawn = None if loader.chooses_people else clients
    return to_federation(loader.prepare(request), sizes, drawn, seed)


def configured(data: DataConfig, seed: int) -> Federation:
    """The people that a configuration asks for; DataError as of :func:`load`."""
    return load(
        data.dataset,
        clients=data.clients or None,
        pairs=data.pairs,
        validation_pairs=data.validation_pairs,
        test_pairs=data.test_pairs,
        until=data.time_cutoff,
        seed=seed,
        bad_rows=data.bad_rows,
        person_column=data.person_column or None,
        test=data.test,
        columns=column_names(data.columns),
        partition=data.partition,
    )


def _masked(loader: DatasetLoader, name: str) -> DatasetLoader:
    if loader.masked:
        return dataset(loader.masked)
    able = [own.name for own in _OWN if own.masked and own.masked != own.name]
    raise DataError(f"only {', '.join(able).capitalize()} has a masked variant, not {name!r}")


def _resolve(source: str) -> tuple[DatasetLoader, Path | None]:
    """(loader, local path): of a known name, with or without a folder; a file; or a hub id without a path."""
    name, colon, folder = source.partition(":")
    if name in DATASETS:
        loader = dataset(name)
        if not colon or (folder and loader.takes_folder):
            return loader, Path(folder) if colon else None
    if Path(source).exists():
        return files.LOADER, Path(source)
    if files.is_path(source):
        raise DataError(f"there is no file {source}")
    if files.is_hub_id(source):
        return files.LOADER, None
    known = dataset_names()
    near = difflib.get_close_matches(source, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"unknown data set {source!r}; {hint}known are {', '.join(known)}, a file or folder of one's own, "
        "and hub ids OWNER/NAME"
    )
