"""What a data set declares of itself, and the registry of data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penchant.common.data.row_files import BadRows
from penchant.common.data.splits import Sizes
from penchant.common.errors import DataError
from penchant.common.registry import Registry
from penchant.deploy.datasets.partitions import Partition
from penchant.deploy.datasets.prepared import Prepared

__all__ = ["DataRequest", "DatasetLoader", "dataset", "dataset_names", "register_dataset"]


@dataclass(frozen=True)
class DataRequest:
    """What somebody asks of a data set.

    Args:
        source: the data set as it was named: a registered name, a file, or a hub id.
        path: the local file or folder to read; None where none was named.
        sizes: how many pairs of each part every person is asked for.
        seed: everything drawn is drawn from it.
        bad_rows: "refuse" bad rows, or "skip" them and say so in the caveats.
        clients: how many people are asked for; None for the data set's usual number.
        person_column: the column that names the person; None for the usual names.
        test: a file, folder or hub id that is the test part; empty where the data are split.
        columns: {the name that a reader looks for: the column that holds it}.
        partition: how choices are dealt out to made-up people; None where they are those of real ones.
    """

    source: str
    path: Path | None
    sizes: Sizes
    seed: int
    bad_rows: BadRows
    clients: int | None
    person_column: str | None
    test: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    partition: Partition | None = None


@dataclass(frozen=True)
class DatasetLoader:
    """One data set, and what it accepts.

    Args:
        name: what configurations and flags call it.
        about: what it is, in one line.
        prepare: reads it; gives everybody whom it has, split into parts. DataError for data that is not good.
        takes_folder: whether ``NAME:FOLDER`` reads a local copy of it.
        needs_folder: whether it can be read from a local copy only.
        chooses_people: whether it picks or makes the people itself, as many as are asked for; otherwise they
            are drawn from everybody it gives.
        takes_person_column: whether a column that names the person may be given, and names of other
            columns, a test part, and made-up people.
        masked: the name of the same data without hints at the person in its texts; empty where there is none.
    """

    name: str
    about: str
    prepare: Callable[[DataRequest], Prepared]
    takes_folder: bool = True
    needs_folder: bool = False
    chooses_people: bool = False
    takes_person_column: bool = False
    masked: str = ""

    def check(self, request: DataRequest) -> None:
        """DataError when something is asked for that this data set does not accept."""
        if request.person_column is not None and not self.takes_person_column:
            raise DataError(f"{request.source!r} knows its people; a person column is for files and hub ids")
        if request.person_column is not None and request.partition is not None:
            raise DataError("a partition makes its people up; drop the person column, or the partition")
        extras = {
            "a test part": request.test,
            "names of columns": request.columns,
            "a partition": request.partition,
        }
        for what in (name for name, given in extras.items() if given and not self.takes_person_column):
            raise DataError(f"{request.source!r} is split and read in its own way; drop {what}")
        if self.needs_folder and request.path is None:
            raise DataError(f"{self.name!r} is read from a local copy; write {self.name}:FOLDER")


DATASETS = Registry("data.dataset", "penchant.datasets")
_WANTED = "a DatasetLoader"


def register_dataset(loader: DatasetLoader) -> None:
    """Make a data set known by its name, for this process. ConfigError when the name is taken or not valid.

    A package that is installed does the same for every process by an entry point in the group
    "penchant.datasets".
    """
    DATASETS.register(loader, DatasetLoader, _WANTED)


def dataset(name: str) -> DatasetLoader:
    """The data set of a name. ConfigError when there is none."""
    return DATASETS.find(name, DatasetLoader, _WANTED)


def dataset_names() -> tuple[str, ...]:
    """All names of data sets, penchant's own first."""
    return DATASETS.names()
