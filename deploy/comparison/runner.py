"""`penchant compare`: methods on identical people, pairs and seeds, and which of them pay.

Every case is a simulated run in its own directory, ``DIR/cases/CASE``, with its
``config.toml`` first. So a comparison goes on where it stopped: finished cases are read, an interrupted one
is resumed, new ones are added. ``DIR/compare.json`` covers every finished case of DIR.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penchant.client.learning.model_cache import ModelCache, simulated_models
from penchant.common.config import ModelConfig, RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.errors import PenchantError, RunDirectoryError, UsageError
from penchant.common.settings import dotted_table
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.deploy.comparison.cases import CASES, PAGE, TABLE, Case
from penchant.deploy.comparison.table import Comparison, case_details, table
from penchant.deploy.run_inputs import refuse_edited
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import ReportWriter, simulate
from penchant.deploy.simulation.world import Progress, SimulationSetup, prepare

__all__ = ["PAGE", "TABLE", "Comparison", "ComparisonPages", "ComparisonProgress", "compare"]


# What all cases of a comparison must have in common; numbers of pairs and of people may differ.
_COMMON = ("data", "model.base_model", "privacy")
_MAY_DIFFER = ("data.pairs", "data.clients")


class ComparisonProgress(Progress):
    """Hears what a comparison does. This one keeps quiet; the command line's draws."""

    def begin(self, case: Case, number: int, cases: int) -> None:
        """Case `number` of `cases` (from 1) is next."""

    def end(self, case: Case, result: RunResult) -> None:
        """A case has its result, just made or read."""


@dataclass(frozen=True)
class ComparisonPages:
    """Who writes the pages: that of each case's run, and that of the comparison; None for no page."""

    run: ReportWriter | None = None
    comparison: Callable[[Comparison, Path], None] | None = None


People = Callable[[RunConfig], Federation | None]
"""The people of a case, where they are in memory already; None where its data set is to be loaded."""


def compare(
    configs: Sequence[RunConfig],
    directory: Path,
    watcher: ComparisonProgress | None = None,
    *,
    model_cache: ModelCache | None = None,
    command: str = "",
    pages: ComparisonPages | None = None,
    people: People = lambda config: None,
) -> Comparison:
    """Run, resume or read every case and write compare.json, and before it the pages.

    Raises UsageError, ConfigError, DataError, BaseModelError or RunDirectoryError before anything is
    written, and whatever `simulate` raises while it works; finished cases are kept.
    """
    cases = _planned(configs)
    present = _refuse_strangers(directory, cases)
    pages = ComparisonPages() if pages is None else pages
    model_cache = simulated_models() if model_cache is None else model_cache
    worlds = _prepare([case for case in cases if _result(directory, case) is None], model_cache, people)
    _refuse_other_data(directory, {*cases, *present}, worlds)
    with _opened(directory):
        _refuse_strangers(directory, cases)  # nobody was quicker
        _run(directory, cases, worlds, watcher or ComparisonProgress(), pages.run)
        found = _concluded(directory, cases, command)
        if pages.comparison is not None:
            pages.comparison(found, directory / PAGE)
        # Last: it says that the comparison is finished.
        run_directory.write_json(directory / TABLE, [row.to_dict() for row in found.rows])
        return found


# --- what is refused ------------------------------------------------------------------------------


def _planned(configs: Sequence[RunConfig]) -> list[Case]:
    """The cases, each once, in order. UsageError when there is none, or when they can't be compared."""
    cases = list(dict.fromkeys(Case.of(config) for config in configs))
    if not cases:
        raise UsageError("there is nothing to compare; name at least one share and one seed")
    for case in cases[1:]:
        gap = _differences(_common(cases[0]), _common(case))
        if gap:
            raise UsageError(f"{cases[0].name} and {case.name} can't be compared: {gap}")
    return cases


def _refuse_strangers(directory: Path, cases: Sequence[Case]) -> list[Case]:
    """The cases that `directory` holds. RunDirectoryError when it holds anything that doesn't fit `cases`."""
    if not directory.exists():
        return []
    own = {CASES, TABLE, PAGE}
    if not directory.is_dir() or any(
        path.name not in own and not path.name.startswith(".") for path in directory.iterdir()
    ):
        raise _choose_another(f"{directory} is in use for something else;")
    present = _present(directory)
    for there in present:
        gap = _differences(_common(there), _common(cases[0]))
        asked = (case for case in cases if _kind(case) == _kind(there))
        gap = gap or next(filter(None, (_differences(*_settings(there, case)) for case in asked)), "")
        if gap:
            raise _choose_another(
                f"{directory} holds {there.name} of another configuration ({gap}); ask for the same, or"
            )
    return present


def _choose_another(before: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{before} choose another directory", on_command_line=f"{before} choose another --out"
    )


def _present(directory: Path) -> list[Case]:
    """The cases below `directory`, finished or not, in order of their names."""
    found = []
    for path in sorted((directory / CASES).glob(f"*/{run_directory.CONFIG}")):
        case = Case(RunConfig.read(path))
        if case.name != path.parent.name:
            raise RunDirectoryError(f"{path} is not the configuration of a case of this name; put it back")
        found.append(case)
    return found


def _refuse_other_data(
    directory: Path, present: Iterable[Case], worlds: Mapping[Case, SimulationSetup]
) -> None:
    """RunDirectoryError when the data set or the base model changed between cases that must share it."""
    seen: dict[Any, str] = {}
    for case in present:
        result = _result(directory, case)
        if result is not None:
            data, base = result.digests.get("data"), result.digests.get("base model")
        elif case in worlds:
            world = worlds[case]
            data = world.federation.digest
            base = world.model_cache.model(world.config.model, world.config.adapter).digest
        else:
            continue
        for what, key, digest in (
            ("data set", (case.config.data, case.config.seed), data),
            ("base model", _read_as(case.config.model), base),
        ):
            if digest is not None and seen.setdefault(key, digest) != digest:
                raise _choose_another(
                    f"{directory}: the {what} of {case.name} is not what it was for another case; put it "
                    "back, or"
                )


def _read_as(model: ModelConfig) -> tuple[str, int, int]:
    """What names one digest of a base model: which it is, and how deep it is read."""
    return (model.base_model, model.blocks, model.beside)


def _common(case: Case) -> dict[str, Any]:
    """What a case must have in common with all others."""
    return {
        key: value
        for key, value in dotted_table(case.config).items()
        if key not in _MAY_DIFFER and any(key == part or key.startswith(f"{part}.") for part in _COMMON)
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """``key is 1 and 2`` for each key of `one` with two values; empty when all are equal."""
    return ", ".join(f"{key} is {one[key]} and {other[key]}" for key in one if one[key] != other[key])


def _kind(case: Case) -> tuple[str, str]:
    return case.config.adapter.share, case.config.adapter.head


def _settings(one: Case, other: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two cases of one kind must agree on: all but the seed and the numbers of pairs and people; with
    another number of people, the cohort too."""
    free = {"seed", *_MAY_DIFFER}
    if one.config.data.clients != other.config.data.clients:
        free.add("federation.cohort")
    flat = [dotted_table(case.config) for case in (one, other)]
    return {k: v for k, v in flat[0].items() if k not in free}, flat[1]


# --- the work -------------------------------------------------------------------------------------


def _prepare(cases: Sequence[Case], model_cache: ModelCache, people: People) -> dict[Case, SimulationSetup]:
    """A world for each case; cases with equal people hold the same ones."""
    known: dict[str, Federation] = {}
    worlds = {}
    for case in cases:
        world = prepare(case.config, model_cache, people(case.config))
        same = known.setdefault(world.federation.digest, world.federation)
        worlds[case] = replace(world, federation=same)
    return worlds


@contextmanager
def _opened(directory: Path) -> Iterator[None]:
    """Be the only process that works in `directory`, which is made if it is not there."""
    with ExitStack() as held:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(run_directory.claim(directory))
        except OSError as error:
            raise RunDirectoryError(f"can't write into {directory}: {error.strerror}") from None
        yield


def _run(
    directory: Path,
    cases: Sequence[Case],
    worlds: Mapping[Case, SimulationSetup],
    watcher: ComparisonProgress,
    write_report: ReportWriter | None,
) -> None:
    warmed: dict[int, str] = {}
    for number, case in enumerate(cases, start=1):
        watcher.begin(case, number, len(cases))
        result = _result(directory, case)
        if result is None:
            _forget_other_texts(worlds[case], warmed)
            result = _play(directory, case, worlds[case], watcher, write_report)
        watcher.end(case, result)


def _play(
    directory: Path,
    case: Case,
    world: SimulationSetup,
    watcher: ComparisonProgress,
    write_report: ReportWriter | None,
) -> RunResult:
    home = _home(directory, case)
    settings = home / run_directory.CONFIG
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not settings.exists():
            write_durably(settings, case.config.to_toml().encode())
    except OSError as error:
        raise RunDirectoryError(f"can't write into {home}: {error.strerror}") from None
    command = shlex.join(["penchant", "simulate", "--config", str(settings)])
    try:
        return simulate(world, home, watcher, command=command, write_report=write_report)
    except PenchantError as error:
        raise type(error)(f"{case.name}: {error}") from error


def _forget_other_texts(world: SimulationSetup, warmed: dict[int, str]) -> None:
    """Keep a model's activations only while the people stay the same.

    Last bits depend on the texts that were computed together: so a case has the bits that it would have
    alone, whichever cases came before it in this process.
    """
    model = world.model_cache.model(world.config.model, world.config.adapter)
    if warmed.get(id(model)) != world.federation.digest:
        model.cache.clear()
        warmed[id(model)] = world.federation.digest


def _home(directory: Path, case: Case) -> Path:
    return directory / CASES / case.name


def _result(directory: Path, case: Case) -> RunResult | None:
    """The result of a case; None while it is not finished. RunDirectoryError where it is that of other
    settings."""
    home = _home(directory, case)
    result = RunResult.read(home)
    if result is not None:
        refuse_edited(home, case.config, result.clients)
    return result


# --- the table ------------------------------------------------------------------------------------


def _concluded(directory: Path, asked: Sequence[Case], command: str) -> Comparison:
    """The table of all finished cases, those asked for first, and what is to be said of it."""
    present = _present(directory)
    results = {
        case: result
        for case in dict.fromkeys((*asked, *present))
        if (result := _result(directory, case)) is not None
    }
    rows = table(results)
    unfinished = len(set(present) - set(results))
    complete = not set(results) - set(asked)
    details = case_details(rows, list(results.values()), unfinished, command if complete else "")
    return Comparison(tuple(rows), details)
