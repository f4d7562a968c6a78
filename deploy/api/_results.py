"""What a simulation and a comparison give, with all that can be done with it."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from penchant._checks import path_given
from penchant._data import Given, preferences_of
from penchant._personal_model import PersonalModel
from penchant.common.errors import RunDirectoryError, UsageError
from penchant.common.wording import decimals
from penchant.deploy.audit.audit import Audit, audit
from penchant.deploy.comparison import conclusions
from penchant.deploy.comparison.conclusions import MethodDifference
from penchant.deploy.comparison.table import Comparison
from penchant.deploy.evaluation import Evaluation, evaluate
from penchant.deploy.report import write_comparison, write_report
from penchant.deploy.simulation.models import RunModels, export_models
from penchant.deploy.simulation.result import RunResult, html_table
from penchant.deploy.simulation.world import SimulationSetup

__all__ = ["ComparisonResult", "SimulationResult"]


@dataclass(frozen=True, kw_only=True)
class SimulationResult(RunResult):
    """A finished simulation: its figures, its people's models, and its record.

    It holds all fields of result.json. `directory` is where the run is; a temporary directory lives as long
    as this result.
    """

    directory: Path
    _models: RunModels = field(repr=False, compare=False)
    _kept: TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def _of(
        cls,
        result: RunResult,
        directory: Path,
        world: SimulationSetup | None = None,
        kept: TemporaryDirectory[str] | None = None,
    ) -> Self:
        """The result of the run in a directory."""
        figures = {f.name: getattr(result, f.name) for f in fields(RunResult)}
        return cls(**figures, directory=directory, _models=RunModels(directory, world), _kept=kept)

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """The result of a run that `penchant simulate` or `penchant.simulate` left in a directory.

        Raises:
            RunDirectoryError: the directory holds no finished run.
        """
        found = cls.read(directory)
        if found is None:
            raise RunDirectoryError(
                f"{directory} holds no finished run; the call that began a run finishes it, with the same "
                "`out`"
            )
        return found

    @classmethod
    def read(cls, directory: str | Path) -> Self | None:
        """As `open`, but None while the directory holds no finished run."""
        place = path_given("directory", directory)
        found = RunResult.read(place)
        return None if found is None else cls._of(found, place)

    def __getstate__(self) -> dict[str, Any]:
        """Without the claim on a temporary directory, which stays with the result that made it."""
        return self.__dict__ | {"_kept": None}

    def personal_model(self, person: str) -> PersonalModel:
        """The model of one person of the run, as it was after the last round.

        Raises:
            UsageError: the person took no part, or no round reached them.
            RunDirectoryError: settings, data or base model are no longer those of the run.
        """
        return PersonalModel(self._models.of_person(person))

    def shared_model(self) -> PersonalModel:
        """What everybody has in common: the model that somebody without any choices begins with."""
        return PersonalModel(self._models.of_newcomer([]))

    def fit_newcomer(self, choices: Iterable[Given]) -> PersonalModel:
        """The model of somebody who took no part: their personal part alone is fitted to their choices."""
        return PersonalModel(self._models.of_newcomer(preferences_of(choices)))

    def evaluate(self, source: str | Path, *, by: str | None = None) -> Evaluation:
        """How well the run's models rank the pairs of a file: everybody's own model the pairs of their own,
        the shared model those of anybody else.

        Args:
            source: a file or folder of choices in any format that `load_preferences` reads.
            by: the column that pairs are grouped by, such as RewardBench's "subset"; the person if None.
                Where nothing else names people (the run's person column, or person, worker or user_id), this
                column does.

        Raises:
            DataError: there is no pair that can be used.
            RunDirectoryError: as `personal_model`.
        """
        return evaluate(path_given("source", source), self._models.for_evaluation(), by=by)

    def export(
        self, directory: str | Path, people: Iterable[str] | None = None, *, gguf: bool = False
    ) -> None:
        """Write the shared model and people's own as plain peft files, one folder for each, and a table of
        whose they are (`people.csv`).

        Args:
            directory: an empty directory, or one that is not there yet.
            people: the names of those whose models are wanted; everybody's if None.
            gguf: as of `PersonalModel.export`, in each folder.

        Raises:
            UsageError: the directory is in use, somebody took no part, or peft can't hold the model; or, with
                `gguf`, as of `PersonalModel.export`.
            BaseModelError: with `gguf`, likewise.
            RunDirectoryError: as `personal_model`.
        """
        if isinstance(people, str):
            raise UsageError(f"people is {people!r}; give a list, such as [{people!r}]")
        wanted = None if people is None else list(people)
        export_models(self._models, path_given("directory", directory), wanted, gguf=gguf)

    def audit(self) -> Audit:
        """What left the clients in this run, by name, shape, type and bytes."""
        return audit(self.directory)

    def write_report(self, path: str | Path) -> None:
        """Write the page of the run: one HTML file that needs nothing else."""
        write_report(self, path_given("path", path))


@dataclass(frozen=True)
class ComparisonResult(Comparison):
    """A finished comparison: one row for each method, and which of them differ.

    `directory` is where the runs are; a temporary directory lives as long as this result.
    """

    directory: Path = Path()
    _kept: TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def _of(cls, found: Comparison, directory: Path, kept: TemporaryDirectory[str] | None = None) -> Self:
        """The result of the comparison in a directory."""
        return cls(found.rows, found.details, directory, kept)

    def __getstate__(self) -> dict[str, Any]:
        """Without the claim on a temporary directory, which stays with the result that made it."""
        return self.__dict__ | {"_kept": None}

    @property
    def differences(self) -> tuple[MethodDifference, ...]:
        """How methods differ, seed by seed; empty with fewer than two seeds."""
        rankings = conclusions.rankings_of(self.rows)
        return tuple(line for ranking in rankings for line in conclusions.differences(ranking))

    @property
    def conclusions(self) -> tuple[str, ...]:
        """What the comparison says, in sentences; the first one answers whether sharing pays."""
        rankings = conclusions.rankings_of(self.rows)
        sentences = [sentence for ranking in rankings for sentence in conclusions.conclusion(ranking)]
        return (conclusions.headline(rankings), *sentences)

    def write_report(self, path: str | Path) -> None:
        """Write the page of the comparison: one HTML file that needs nothing else."""
        write_comparison(self, path_given("path", path))

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows of compare.json."""
        return [row.to_dict() for row in self.rows]

    def _repr_html_(self) -> str:
        """What a notebook shows: the methods, their differences, and what these mean."""
        parts = []
        for ranking in conclusions.rankings_of(self.rows):
            methods = [
                (name, decimals(row.accuracy_mean), decimals(row.accuracy_se), f"{len(row.seeds)}")
                for name, row in zip(ranking.names, ranking.rows, strict=True)
            ]
            lines = [(d.label, d.difference, d.interval, d.words) for d in conclusions.differences(ranking)]
            parts.append(f"<p><b>{html.escape(ranking.title)}</b></p>" if ranking.title else "")
            parts.append(html_table(("method", "accuracy", "s.e.", "seeds"), methods))
            if lines:
                parts.append(html_table(("difference", "points", "95% interval", "in words"), lines))
        sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.conclusions)
        return "".join(parts) + sentences
