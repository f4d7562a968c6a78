"""What a simulation and a comparison give, with all that can be done with it."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from penchant._checks import path_given
from penchant._data import Given, preferences_of
from penchant._personal_model import PersonalModel
from penchant.client.learning.model_cache import PlannedModel
from penchant.client.learning.newcomer import fit_newcomer
from penchant.common.errors import DataError, RunDirectoryError, UsageError
from penchant.common.model.factors import Vector
from penchant.common.wording import decimals
from penchant.deploy import run_directory
from penchant.deploy.audit.audit import Audit, audit
from penchant.deploy.comparison import conclusions
from penchant.deploy.comparison.conclusions import MethodDifference
from penchant.deploy.comparison.table import Comparison
from penchant.deploy.earlier_round import begun_with
from penchant.deploy.report import write_comparison, write_report
from penchant.deploy.simulation.devices import personal_part
from penchant.deploy.simulation.result import RunResult, html_table
from penchant.deploy.simulation.runner import final_factors
from penchant.deploy.simulation.world import SimulationSetup, prepare
from penchant.server.journal_reader import JournalReader

__all__ = ["ComparisonResult", "SimulationResult"]


class RunModels:
    """The models of a finished run, loaded when they are first asked for."""

    def __init__(self, directory: Path, world: SimulationSetup | None = None) -> None:
        self._directory = directory
        self._world = world

    @cached_property
    def world(self) -> SimulationSetup:
        """People and base model of the run."""
        if self._world is not None:
            return self._world
        config = run_directory.read_config(self._directory)
        try:
            return prepare(config, start=begun_with(self._directory))
        except DataError as error:
            raise DataError(
                f"{error}; where preferences were in memory, models come from the result of the call itself"
            ) from None

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        """Where the run is; people's preferences and the base model stay out of a pickle."""
        return type(self), (self._directory,)

    @cached_property
    def planned(self) -> PlannedModel:
        """The reward model as the closing round asked for it."""
        return self.world.model_cache.of(self.world.config.plan("close", len(self.world.federation.people)))

    @cached_property
    def factors(self) -> Vector:
        """The shared factors that the run ended with."""
        return final_factors(self.world, JournalReader(self._directory))

    def of_person(self, name: str) -> PersonalModel:
        """The model of one person of the run."""
        names = [person.name for person in self.world.federation.people]
        if name not in names:
            raise UsageError(f"{name!r} took no part in this run; choose one of {', '.join(names[:10])} …")
        own = personal_part(self._directory, names.index(name), self.world.run)
        return PersonalModel._of(self.planned, self.factors, own)

    def of_newcomer(self, choices: Iterable[Given]) -> PersonalModel:
        """The model of somebody new, fitted to their choices alone."""
        fitted = fit_newcomer(self.planned, self.factors, preferences_of(choices))
        return PersonalModel._of(self.planned, self.factors, fitted)


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
        place = path_given("directory", directory)
        found = RunResult.read(place)
        if found is None:
            raise RunDirectoryError(
                f"{place} holds no finished run; the call that began a run finishes it, with the same `out`"
            )
        return cls._of(found, place)

    def __getstate__(self) -> dict[str, Any]:
        """Without the claim on a temporary directory, which stays with the result that made it."""
        return self.__dict__ | {"_kept": None}

    def personal_model(self, person: str) -> PersonalModel:
        """The model of one person of the run, as it was after the last round."""
        return self._models.of_person(person)

    def fit_newcomer(self, choices: Iterable[Given]) -> PersonalModel:
        """The model of somebody who took no part: their personal part alone is fitted to their choices."""
        return self._models.of_newcomer(choices)

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
