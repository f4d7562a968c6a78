"""People's preferences, from wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from penchant._checks import whole_number_given
from penchant.common.config import DataConfig, RunConfig
from penchant.common.data.preferences import Federation, Preference, without_ties
from penchant.common.data.splits import Sizes
from penchant.common.errors import DataError, UsageError
from penchant.common.settings import settings_of
from penchant.deploy import datasets
from penchant.deploy.datasets.memory import federation_of, preference_of

__all__ = ["Given", "LoadedFederation", "Preferences", "as_loaded", "load_preferences", "preferences_of"]

Given = Preference | Mapping[str, Any] | tuple[str, str, str]
Preferences = str | Path | Mapping[str, Iterable[Given]] | Iterable[Mapping[str, Any]] | Any


@dataclass(frozen=True, repr=False)
class LoadedFederation(Federation):
    """People's preferences, split into training, validation and test pairs, and how they were loaded."""

    settings: DataConfig = field(default_factory=DataConfig, compare=False)
    seed: int = field(default=0, compare=False)
    by_name: bool = field(default=False, compare=False)  # another process finds the same by settings.dataset
    again: Callable[[int], LoadedFederation] | None = field(default=None, compare=False)

    def split_by(self, seed: int) -> LoadedFederation:
        """The same preferences, drawn and split by another seed."""
        return self if seed == self.seed or self.again is None else self.again(seed)

    def __repr__(self) -> str:
        return f"LoadedFederation({self.name!r}, {len(self.people)} people)"


def load_preferences(
    source: Preferences,
    *,
    people: int | None = None,
    pairs: int = 20,
    validation_pairs: int = 20,
    test_pairs: int = 60,
    time_cutoff: float = 1.0,
    seed: int = 0,
    bad_rows: Literal["refuse", "skip"] = "refuse",
    person_column: str | None = None,
    test: str | Path = "",
    columns: Mapping[str, str] | None = None,
    partition: str = "",
    name: str = "in memory",
) -> LoadedFederation:
    """Load people's preferences and split those of each person into training, validation and test pairs.

    Args:
        source: the name of a data set that penchant knows ("senate"), a file or folder of rows in TRL's
            format or as a program exports them (docs/data.md), or a data set on the Hugging Face hub
            ("owner/name"). Or preferences in memory: a mapping of each person's name to their preferences,
            oldest first, each a `Preference`, a row in TRL's format or ``(prompt, chosen, rejected)`` (the
            first two may be ties, by their `tie`); or a pandas DataFrame or `datasets.Dataset` with a column
            that names the person.
        people: how many people take part, drawn by `seed`; everybody if None.
        pairs: how many training pairs each person is asked for.
        validation_pairs: how many pairs each person holds out to tune on.
        test_pairs: how many pairs each person holds out to judge their model on.
        time_cutoff: the part of all items, in order of time, that is used; less than 1 leaves the latest out.
        seed: draws people and pairs; the same seed gives the same split.
        bad_rows: whether rows that can't be used are refused, or skipped and named in the caveats.
        person_column: the column that names the person, where it is not person, worker or user_id.
        test: for files and the hub: the pairs to test on, as a file, a folder or "owner/name"; `source` is
            then for training and validation.
        columns: for files and the hub: other names of columns, such as {"prompt": "question"}.
        partition: for files and the hub: deal the choices out to made-up people, as "iid:20", or as
            "dirichlet:20:0.5:subset" by the values of a column.
        name: what results call preferences that come from memory.

    Raises:
        DataError: there is no such data set, rows are bad, or somebody has too few preferences.
        UsageError: an argument is of the wrong type or out of its range.
    """
    whole_number_given("seed", seed, *_limits("seed"))
    if not isinstance(name, str) or not name:
        raise UsageError(f'name is {name!r}; give a text, such as "diary"')
    if isinstance(source, str) and not source:
        raise DataError("source is an empty text; name a data set, a file or a folder")
    by_name = isinstance(source, str | Path)
    settings = DataConfig(
        dataset=str(source) if by_name else name,
        clients=0 if people is None else whole_number_given("people", people, *_limits("data.clients")),
        pairs=pairs,
        validation_pairs=validation_pairs,
        test_pairs=test_pairs,
        time_cutoff=time_cutoff,
        person_column="" if person_column is None else person_column,
        test=str(test),
        columns=tuple(f"{wanted}={column}" for wanted, column in (columns or {}).items()),
        partition=partition,
        bad_rows=bad_rows,
    )
    if isinstance(source, Iterator):
        source = list(source)  # it gives its rows once
    return _load(source, settings, seed)


def _limits(key: str) -> tuple[int, int]:
    """The range of a setting that is a whole number."""
    declared = next(one.declared for one in settings_of(RunConfig) if one.key == key)
    return int(declared.low or 0), int(declared.high or 0)


def _load(source: object, settings: DataConfig, seed: int) -> LoadedFederation:
    by_name = isinstance(source, str | Path)
    if by_name:
        found = datasets.configured(settings, seed)
    else:
        if settings.test or settings.columns or settings.partition:
            raise DataError(
                "test, columns and partition are for files and the hub; name the columns of preferences in "
                "memory as usual, and say in a column split which part a row is for"
            )
        sizes = Sizes(settings.pairs, settings.validation_pairs, settings.test_pairs, settings.time_cutoff)
        found = federation_of(
            source,
            settings.dataset,
            sizes,
            seed,
            clients=settings.clients or None,
            bad_rows=settings.bad_rows,
            person_column=settings.person_column or None,
        )
    again = _Again(source, settings)
    return LoadedFederation(found.name, found.people, found.caveats, settings, seed, by_name, again)


@dataclass(frozen=True, repr=False)
class _Again:
    """Loads the same preferences by another seed."""

    source: object
    settings: DataConfig

    def __call__(self, seed: int) -> LoadedFederation:
        return _load(self.source, self.settings, seed)


def as_loaded(federation: Federation) -> LoadedFederation:
    """A federation that was made by hand, with the numbers of pairs that its people have."""
    if isinstance(federation, LoadedFederation):
        return federation
    people = federation.people
    settings = DataConfig(
        dataset=federation.name,
        pairs=max(len(without_ties(person.train)) for person in people),
        validation_pairs=max(len(without_ties(person.validation)) for person in people),
        test_pairs=max(len(without_ties(person.test)) for person in people),
    )
    return LoadedFederation(federation.name, federation.people, federation.caveats, settings)


def preferences_of(given: Iterable[Given]) -> list[Preference]:
    """Preferences in whatever form they are handed over; DataError for one that can't be used."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError("choices must be a list of preferences")
    return [preference_of(one) for one in given]
