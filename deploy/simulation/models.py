"""The models that a finished simulation left: everybody's own, the shared one, and those of newcomers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from penchant.client.device.conversation_form import learned_from_conversations
from penchant.client.device.export import Export, export_peft
from penchant.client.learning.merged_model import MergedModel
from penchant.client.learning.model_cache import PlannedModel
from penchant.client.learning.newcomer import fit_newcomer
from penchant.common.data.preferences import Person, Preference, comparison_of
from penchant.common.errors import DataError, RunDirectoryError, UsageError
from penchant.common.model.factors import Vector
from penchant.common.storage import write_private
from penchant.deploy import run_directory
from penchant.deploy.earlier_round import begun_with
from penchant.deploy.evaluation import Models
from penchant.deploy.run_inputs import refuse_edited
from penchant.deploy.simulation.devices import personal_part
from penchant.deploy.simulation.person_scores import PEOPLE_FILE, ClientScore, table_of
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import final_factors
from penchant.deploy.simulation.world import SimulationSetup, prepare, refuse_changed
from penchant.server.journal_reader import JournalReader

__all__ = ["SHARED", "ExportedModels", "RunModels", "export_models", "finished", "folder_of"]

SHARED = "shared"


class RunModels:
    """The models of a finished run, loaded when they are first asked for."""

    def __init__(self, directory: Path, world: SimulationSetup | None = None) -> None:
        self.directory = directory
        self._world = world

    @cached_property
    def world(self) -> SimulationSetup:
        """People and base model of the run. RunDirectoryError where they, or its settings, are others now."""
        if self._world is not None:
            return self._world
        config = run_directory.read_config(self.directory)
        result = finished(self.directory)
        refuse_edited(self.directory, config, result.clients)
        try:
            world = prepare(config, start=begun_with(self.directory))
        except DataError as error:
            raise DataError(
                f"{error}; where preferences were in memory, models come from the result of the call itself"
            ) from None
        refuse_changed(world, self.directory, result.digests)
        return world

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        """Where the run is; people's preferences and the base model stay out of a pickle."""
        return type(self), (self.directory,)

    @cached_property
    def planned(self) -> PlannedModel:
        """The reward model as the closing round asked for it."""
        return self.world.model_cache.of(self.world.config.plan("close", len(self.world.federation.people)))

    @cached_property
    def factors(self) -> Vector:
        """The shared factors that the run ended with."""
        return final_factors(self.world, JournalReader(self.directory))

    @cached_property
    def conversations(self) -> bool:
        """Whether most of all people's choices that were trained on are between answers in conversations."""
        people = self.world.federation.people
        return learned_from_conversations(itertools.chain.from_iterable(person.train for person in people))

    @cached_property
    def people(self) -> dict[str, int]:
        """Everybody who took part -> their place in the run."""
        return {person.name: place for place, person in enumerate(self.world.federation.people)}

    def place(self, name: str) -> int:
        """A person's place in the run. UsageError for somebody who took no part."""
        if name not in self.people:
            raise UsageError(f"{name!r} took no part in this run; choose one of {_some(self.people)}")
        return self.people[name]

    def part(self, name: str) -> Vector | None:
        """The personal part of one person of the run; None where no round reached them that trains one.

        Their pairs the shared model ranks, in the run's result as well. RunDirectoryError where it is gone.
        """
        place = self.place(name)
        own = personal_part(self.directory, place, self.world.run, joined=place + 1 in self._joined)
        size = self.planned.split.personal.size
        return None if own is None or own.size != size else own  # after a warm-up alone it is of another size

    def of_person(self, name: str) -> MergedModel:
        """The model of one person of the run. UsageError for somebody whom no round reached."""
        model = self._own_model(name)
        if model is None:
            raise UsageError(
                f"no round of this run reached {name!r}, who has no model of their own; take the shared one"
            )
        return model

    def _own_model(self, name: str) -> MergedModel | None:
        """The model of one person of the run; None for somebody whom no round reached."""
        own = self.part(name)
        if own is None:
            return None
        form = learned_from_conversations(self._person(name).train)
        return MergedModel.of(self.planned, self.factors, own, conversations=form)

    def of_newcomer(self, choices: Sequence[Preference]) -> MergedModel:
        """The model of somebody new, fitted to their choices alone; without any, the shared one."""
        fitted = fit_newcomer(self.planned, self.factors, choices)
        form = learned_from_conversations(choices) if choices else self.conversations
        return MergedModel.of(self.planned, self.factors, fitted, conversations=form)

    def for_evaluation(self) -> Models:
        """Everybody's own model for their own pairs, and the shared one for all others'."""

        def own(name: str) -> MergedModel | None:
            return self._own_model(name) if name in self.people else None

        def trained_on(name: str) -> set[tuple[str, frozenset[str]]]:
            return {comparison_of(pair) for pair in self._person(name).train}

        def all_trained_on() -> set[tuple[str, frozenset[str]]]:
            return set().union(*map(trained_on, self.people))

        column = self.world.config.data.person_column
        return Models(self.of_newcomer([]), own, trained_on, all_trained_on, column)

    @cached_property
    def _joined(self) -> set[int]:
        """The member numbers of those who are in the sum of a round."""
        return {device.member for device in JournalReader(self.directory).devices() if device.joined}

    def _person(self, name: str) -> Person:
        return self.world.federation.people[self.people[name]]


@dataclass(frozen=True)
class ExportedModels:
    """How many people's own models were written, and how many people have none and rank by the shared one."""

    own: int
    shared: int


def export_models(
    models: RunModels, out: Path, people: Sequence[str] | None = None, *, gguf: bool = False
) -> ExportedModels:
    """Write the models of a finished run as plain peft files; -> how many people's.

    ``out/shared`` holds what a newcomer begins with, one folder for each person their own model;
    ``people.csv`` says which folder is whose, and how well that model did on the run's test pairs. Somebody
    whom no round reached has no model of their own: there it says ``shared``.

    Args:
        models: the run's.
        out: where the folders are made: an empty directory, or one that is not there yet.
        people: the names of those whose models are wanted; everybody's if None.
        gguf: with an adapter for llama.cpp in each folder.

    Raises:
        UsageError: `out` is in use, somebody took no part in the run, or a peft adapter can't hold the model.
        UsageError, BaseModelError: as of `GgufAdapter.of`, before anything is written.
        RunDirectoryError: the run is not finished, or settings, data or base model are no longer its own.
    """
    result = finished(models.directory)
    wanted = list(models.people if people is None else dict.fromkeys(people))
    own = {name: folder_of(models.place(name), name) for name in wanted if models.part(name) is not None}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is in use; choose an empty directory for the models")
    start = models.of_newcomer([])
    why = export_peft(Export.of(start, personal=False, gguf=gguf), out / SHARED, tried=start)
    for name, folder in own.items():
        model = Export.of(models.of_person(name), gguf=gguf)
        export_peft(replace(model, classifier="") if why else model, out / folder)
    scores = {score.client: score for score in result.per_client}
    known = [scores.get(name, ClientScore(name)) for name in wanted]
    write_private(out / PEOPLE_FILE, table_of(known, [own.get(name, SHARED) for name in wanted]))
    return ExportedModels(len(own), len(wanted) - len(own))


def finished(directory: Path) -> RunResult:
    """The result of a run. RunDirectoryError where the directory holds none, or one that is not finished."""
    result = RunResult.read(directory)
    if result is None and not (directory / run_directory.CONFIG).is_file():
        raise RunDirectoryError(
            f"{directory} is not a run directory: it has no {run_directory.CONFIG}; give that of a run that "
            "is finished"
        )
    if result is None:
        raise RunDirectoryError(f"{directory} holds no finished run; --resume {directory} finishes one")
    return result


def folder_of(place: int, name: str) -> str:
    """The folder of a person's model: their place, which no two share, and what of the name is harmless."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:40].strip("_.")
    return f"{place + 1:06d}-{readable}" if readable else f"{place + 1:06d}"


def _some(names: dict[str, int]) -> str:
    shown = list(names)[:10]
    return ", ".join(shown) + (" …" if len(names) > len(shown) else "")
