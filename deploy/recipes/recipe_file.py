"""A recipe in a file: settings for a share or several, and what they were tuned on.

TOML with the tables of a recipe (``[all.*]``, ``[SHARE.*]``) and one more, ``[tuned]``, which says on what
data, when and how the settings were found.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import tomli_w

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, RunDirectoryError
from penchant.common.foreign_files import CONFIG_MOST, read_bytes
from penchant.common.shares import share_names
from penchant.deploy.json_tables import from_table

__all__ = ["RecipeFile", "Tuned"]

_ALL: Final = "all"
_TUNED: Final = "tuned"


@dataclass(frozen=True)
class Tuned:
    """What a recipe was tuned on.

    Attributes:
        data: the data set's name.
        digest: SHA-256 (hex) of its people and their pairs, as the first seed splits them.
        people: how many took part.
        pairs: training pairs a person.
        judged_on: the part that settings were judged by.
        seeds: of the runs that judged them.
        runs: how many simulated runs the search took.
        accuracies: by share, the mean over seeds that its settings came to on that part.
        share: the best of them.
        date: when, as YYYY-MM-DD.
        command: the command line.
        version: of penchant.
    """

    data: str
    digest: str
    people: int
    pairs: int
    judged_on: str
    seeds: tuple[int, ...]
    runs: int
    accuracies: Mapping[str, float]
    share: str
    date: str
    command: str
    version: str

    def words(self) -> str:
        """For whoever uses the recipe."""
        return (
            f"settings tuned on {self.data} ({self.people} people, {self.pairs} pairs each) on {self.date} "
            f"with penchant {self.version}"
        )


@dataclass(frozen=True)
class RecipeFile:
    """Settings by share, and what they were tuned on; None where the file does not say."""

    tables: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    tuned: Tuned | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The recipe in a file. ConfigError for what is none, or has a setting that there is not."""
        try:
            found = tomllib.loads(read_bytes(path, ConfigError, CONFIG_MOST).decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't read recipe {path}: {error}") from None
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"recipe {path} is not valid TOML: {error}") from None
        tuned = found.pop(_TUNED, None)
        recipe = cls(found, None if tuned is None else _tuned(tuned, path))
        recipe._check(path)
        return recipe

    @property
    def share(self) -> str | None:
        """The share that the recipe is for where none is asked for: the best, or the only one."""
        if self.tuned is not None and self.tuned.share in self.tables:
            return self.tuned.share
        shares = [name for name in self.tables if name != _ALL]
        return shares[0] if len(shares) == 1 else None

    def changes(self, share: str) -> dict[str, Any]:
        """Dotted configuration keys to change for `share`."""
        return {
            f"{section}.{key}": value
            for name in (_ALL, share)
            for section, values in self.tables.get(name, {}).items()
            for key, value in values.items()
        }

    def to_toml(self) -> str:
        """The file's text."""
        said = {} if self.tuned is None else {_TUNED: asdict(self.tuned)}
        return tomli_w.dumps({**said, **self.tables})

    def _check(self, path: Path) -> None:
        if not self.tables:
            raise ConfigError(f"recipe {path} has no settings; it needs a table such as [A.training]")
        for name, sections in self.tables.items():
            if name != _ALL and name not in share_names():
                raise ConfigError(f'recipe {path} has a table for share "{name}", which is not known here')
            if not isinstance(sections, dict) or not all(isinstance(one, dict) for one in sections.values()):
                raise ConfigError(f"recipe {path}: [{name}] must hold tables such as [{name}.training]")
        for name in [name for name in self.tables if name != _ALL] or [RunConfig().adapter.share]:
            RunConfig().changed({"adapter.share": name, **self.changes(name)})


def _tuned(table: object, path: Path) -> Tuned:
    try:
        return from_table(Tuned, table, f"[tuned] of {path}")
    except RunDirectoryError as error:
        raise ConfigError(str(error)) from None
