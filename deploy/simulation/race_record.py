"""What a race was between, how far it is, and what it came to: the file race.json of a run directory.

It is written before the first candidate trains, and again after each heat. `result.json` has the end of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from penchant.common.config import RunConfig
from penchant.common.errors import RunDirectoryError
from penchant.common.foreign_files import read_json
from penchant.common.wording import counted, percent
from penchant.deploy import run_directory
from penchant.deploy.json_tables import from_table, plain_value

__all__ = ["RACE", "RECORD", "Entrant", "Heat", "Race", "RaceRecord"]

RECORD: Final = "race.json"
RACE: Final = "race"
"""The folder of the candidates' runs, beside the record."""


@dataclass(frozen=True)
class Heat:
    """A part of a race: those who are still in it train until `rounds` are finished, and `stay` go on."""

    rounds: int
    stay: int


@dataclass(frozen=True)
class Entrant:
    """One candidate, and how it stood when it was last judged.

    Attributes:
        name: of the candidate.
        share: its share rule.
        config: its configuration, in TOML; empty in a result.
        heats: how many heats it went on from.
        rounds: finished rounds when it was judged, or failed.
        tried: attempts at rounds by then, failed ones included.
        paid: those of them in which masked vectors left the devices: with noise these cost privacy.
        accuracy: the part of held-out choices that it ranked right; None where none was judged.
        error: the standard error of that.
        judged: how many choices were judged; None where noise hides it.
        why: what ended it, where its training failed.
    """

    name: str
    share: str
    config: str = ""
    heats: int = 0
    rounds: int = 0
    tried: int = 0
    paid: int = 0
    accuracy: float | None = None
    error: float | None = None
    judged: int | None = None
    why: str = ""

    @property
    def told(self) -> str:
        """How it stood, in words."""
        if self.why or self.accuracy is None:
            return self.why or "not judged"
        return f"{percent(self.accuracy, error=self.error)} after {counted(self.rounds, 'round')}"


@dataclass(frozen=True)
class Race:
    """A race that is over.

    Attributes:
        chosen: the name of the candidate that made the run.
        entrants: all of them, the cheapest first.
        rounds: what those that lost trained, together.
        participations: with noise: in how many sums of theirs a person is at most.
        epsilon: with noise: what these cost a person, at the run's delta.
        epsilon_left: with noise: what is left for the run itself, beyond which no device takes part in it;
            both together keep the run's epsilon.
    """

    chosen: str
    entrants: tuple[Entrant, ...]
    rounds: int
    participations: int | None = None
    epsilon: float | None = None
    epsilon_left: float | None = None

    @classmethod
    def from_table(cls, table: object) -> Self:
        """The race that a table of JSON holds. RunDirectoryError for anything else."""
        what = "the race of the result"
        return from_table(cls, _rows(table, "entrants", Entrant, what), what)

    @classmethod
    def read(cls, directory: Path) -> Race | None:
        """The race that chose the settings of a run directory; None where there was none."""
        record = RaceRecord.read(directory)
        return None if record is None else record.ended()

    @classmethod
    def sums_left(cls, directory: Path, config: RunConfig) -> int | None:
        """In how many sums a person may be in the run that came out of a race; None where there was none, or
        none with noise. Its noise is made for those of the race as well, which are paid for."""
        race = cls.read(directory)
        if race is None or race.participations is None:
            return None
        return config.privacy.dp_participations - race.participations

    def words(self) -> str:
        """What it came to, for people."""
        others = len(self.entrants) - 1
        text = (
            f"{self.chosen}, by a race against {counted(others, 'other')} that cost "
            f"{counted(self.rounds, 'round')} more"
        )
        if self.epsilon is None or self.epsilon_left is None:
            return text
        return f"{text} and epsilon {self.epsilon:.3g}; the run itself costs {self.epsilon_left:.3g} at most"


@dataclass(frozen=True)
class RaceRecord:
    """What race.json holds.

    Attributes:
        asked: the configuration of the run before anything was chosen, in TOML.
        people: how many take part.
        entrants: the candidates, the cheapest first.
        heats: of the race, in order.
        over: how many heats are over.
        rounds, participations, epsilon, epsilon_left: as in `Race`.
        chosen: who won; empty until then.
    """

    asked: str
    people: int
    entrants: tuple[Entrant, ...]
    heats: tuple[Heat, ...]
    over: int = 0
    rounds: int = 0
    participations: int | None = None
    epsilon: float | None = None
    epsilon_left: float | None = None
    chosen: str = ""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The record of a directory; None where there is none. RunDirectoryError when it is damaged."""
        path = directory / RECORD
        try:
            table = read_json(path, RunDirectoryError)
        except FileNotFoundError:
            return None
        given = _rows(_rows(table, "entrants", Entrant, str(path)), "heats", Heat, str(path))
        return from_table(cls, given, str(path))

    def write(self, directory: Path) -> None:
        """Keep it, durably."""
        run_directory.write_json(directory / RECORD, plain_value(self))

    @property
    def racing(self) -> list[Entrant]:
        """Who is in the heat that is next, the cheapest first."""
        return [one for one in self.entrants if one.heats == self.over and not one.why]

    def config(self, name: str) -> RunConfig:
        """The configuration of a candidate."""
        return RunConfig.from_toml(next(one.config for one in self.entrants if one.name == name))

    def ended(self) -> Race | None:
        """The race, once it is over."""
        if not self.chosen:
            return None
        return Race(
            chosen=self.chosen,
            entrants=tuple(replace(one, config="") for one in self.entrants),
            rounds=self.rounds,
            participations=self.participations,
            epsilon=self.epsilon,
            epsilon_left=self.epsilon_left,
        )


def _rows(table: object, name: str, record: type[Any], what: str) -> dict[str, Any]:
    """A table of JSON with the rows of `name` as records. RunDirectoryError where there are none."""
    rows = table.get(name) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(rows, list | tuple):
        raise RunDirectoryError(f"{what} has no list {name!r}; it is damaged")
    read = tuple(from_table(record, row, f"{name} of {what}") for row in rows)
    return {**table, name: read}
