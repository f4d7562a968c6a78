"""`penchant compare`: methods on identical people, pairs and seeds, and which of them pay.

Every case is a run of `deploy.simulate` in a directory of its own, ``DIR/cases/CASE``, with its
``config.toml`` first. So a comparison goes on where it stopped: finished cases are read, an interrupted one
is resumed, new ones are added. ``DIR/compare.json`` and ``compare.html`` cover every finished case of DIR.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.errors import PenchantError, RunDirectoryError, UsageError
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.deploy.comparison.cases import CASES, PAGE, TABLE, Case
from penchant.deploy.comparison.table import case_details, table
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import Progress, Row, SimulationSetup, prepare

__all__ = ["PAGE", "TABLE", "Comparison", "ComparisonProgress", "compare"]


# What all cases of a comparison must have in common; numbers of pairs and of people may differ.
_COMMON = ("data", "model.base_model", "privacy")
_MAY_DIFFER = ("data.pairs", "data.clients")


class ComparisonProgress(Progress):
    """Hears what a comparison does. This one keeps quiet; `deploy.show_comparison` draws."""

    def begin(self, case: Case, number: int, cases: int) -> None:
        """Case `number` of `cases` (from 1) is next."""

    def end(self, case: Case, result: Row) -> None:
        """A case has its result, just made or read."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave: the rows of compare.json and what its page says beside them."""

    rows: list[Row]
    details: Row


def compare(
    configs: Sequence[RunConfig],
    directory: Path,
    watcher: ComparisonProgress | None = None,
    *,
    model_cache: ModelCache | None = None,
    command: str = "",
) -> Comparison:
    """Run, resume or read every case and write compare.json and compare.html.

    Raises UsageError, ConfigError, DataError, BaseModelError or RunDirectoryError before anything is
    written, and whatever `simulate` raises while it works; finished cases stand.
    """
    cases = _planned(configs)
    present = _refuse_strangers(directory, cases)
    model_cache = ModelCache() if model_cache is None else model_cache
    worlds = _prepare([case for case in cases if _result(directory, case) is None], model_cache)
    _refuse_other_data(directory, {*cases, *present}, worlds)
    with _opened(directory):
        _refuse_strangers(directory, cases)  # nobody was quicker
        _run(directory, cases, worlds, watcher or ComparisonProgress())
        return _conclude(directory, cases, command)


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
        raise RunDirectoryError(f"{directory} is in use for something else; choose another --out")
    present = _present(directory)
    for there in present:
        gap = _differences(_common(there), _common(cases[0]))
        asked = (case for case in cases if _kind(case) == _kind(there))
        gap = gap or next(filter(None, (_differences(*_settings(there, case)) for case in asked)), "")
        if gap:
            raise RunDirectoryError(
                f"{directory} holds {there.name} of another configuration ({gap}); ask for the same, or "
                "choose another --out"
            )
    return present


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
            digests = result["digests"]
            data, base = digests["data"], digests["base model"]
        elif case in worlds:
            world = worlds[case]
            data = world.federation.digest
            base = world.model_cache.model(world.config.model, world.config.adapter).digest
        else:
            continue
        for what, key, digest in (
            ("data set", (case.config.data, case.config.seed), data),
            ("base model", "base model", base),
        ):
            if seen.setdefault(key, digest) != digest:
                raise RunDirectoryError(
                    f"{directory}: the {what} of {case.name} is not what it was for another case; put it "
                    "back, or choose another --out"
                )


def _common(case: Case) -> dict[str, Any]:
    """What a case must have in common with all others."""
    return {
        key: value
        for key, value in _flat(case.config).items()
        if key not in _MAY_DIFFER and any(key == part or key.startswith(f"{part}.") for part in _COMMON)
    }


def _flat(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in tomllib.loads(config.to_toml()).items():
        inner = value.items() if isinstance(value, dict) else ()
        flat.update({f"{key}.{name}": v for name, v in inner} if inner else {key: value})
    return flat


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
    flat = [_flat(case.config) for case in (one, other)]
    return {k: v for k, v in flat[0].items() if k not in free}, flat[1]


# --- the work -------------------------------------------------------------------------------------


def _prepare(cases: Sequence[Case], model_cache: ModelCache) -> dict[Case, SimulationSetup]:
    """A world for each case; cases with equal people hold the same ones."""
    known: dict[str, Federation] = {}
    worlds = {}
    for case in cases:
        world = prepare(case.config, model_cache)
        people = known.setdefault(world.federation.digest, world.federation)
        worlds[case] = replace(world, federation=people)
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
) -> None:
    warmed: dict[int, str] = {}
    for number, case in enumerate(cases, start=1):
        watcher.begin(case, number, len(cases))
        result = _result(directory, case)
        if result is None:
            _forget_other_texts(worlds[case], warmed)
            result = _play(directory, case, worlds[case], watcher)
        watcher.end(case, result)


def _play(directory: Path, case: Case, world: SimulationSetup, watcher: ComparisonProgress) -> Row:
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
        return simulate(world, home, watcher, command=command)
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


def _result(directory: Path, case: Case) -> Row | None:
    return run_directory.read_result(_home(directory, case))


# --- the table ------------------------------------------------------------------------------------


def _conclude(directory: Path, asked: Sequence[Case], command: str) -> Comparison:
    """Write the table and the page of all finished cases, those asked for first."""
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
    from penchant.deploy.report.run_page import write_comparison

    write_comparison(rows, directory / PAGE, details)
    run_directory.write_json(directory / TABLE, rows)  # last: it says that the comparison is finished
    return Comparison(rows, details)
