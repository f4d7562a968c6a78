"""`penchant compare`: methods on identical people, pairs and seeds, and which of them pay.

Every case is a run of `deploy.simulate` in a directory of its own, ``DIR/cases/CASE``, with its
``config.toml`` first. So a comparison goes on where it stopped: finished cases are read, an interrupted one
is resumed, new ones are added. ``DIR/compare.json`` and ``compare.html`` cover every finished case of DIR.
"""

from __future__ import annotations

import math
import shlex
import statistics
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penchant.client.bench import Benches
from penchant.common.adapters import Share, head_of
from penchant.common.config import RunConfig
from penchant.common.errors import PenchantError, RunDirectoryError, UsageError
from penchant.common.preferences import Federation
from penchant.deploy import rundir
from penchant.deploy.simulate import Progress, Row, World, prepare, simulate
from penchant.server.journal import write_durably

__all__ = ["PAGE", "TABLE", "Case", "Comparison", "Watcher", "compare"]

CASES, TABLE, PAGE = "cases", "compare.json", "compare.html"

# What all cases of a comparison must have in common; numbers of pairs and of people may differ.
_COMMON = ("data", "model.base_model", "privacy")
_MAY_DIFFER = ("data.pairs", "data.clients")


@dataclass(frozen=True)
class Case:
    """One run of a comparison. Make it with `of`, which spells out whose the score head is."""

    config: RunConfig

    @classmethod
    def of(cls, config: RunConfig) -> Case:
        """The case of a configuration; ConfigError for a head that contradicts the share."""
        head = head_of(Share(config.adapter.share), config.adapter.head)
        return cls(config.changed({"adapter.head": head.value}))

    @property
    def name(self) -> str:
        """What its directory is called."""
        adapter, data = self.config.adapter, self.config.data
        people = data.clients or "all"
        return f"{adapter.share}-{adapter.head}-{data.pairs}pairs-{people}-seed{self.config.seed}"

    @property
    def method(self) -> RunConfig:
        """The case without its seed: cases of one row of the table have it in common."""
        return self.config.changed({"seed": 0})


class Watcher(Progress):
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
    watcher: Watcher | None = None,
    *,
    benches: Benches | None = None,
    command: str = "",
) -> Comparison:
    """Run, resume or read every case and write compare.json and compare.html.

    Raises UsageError, ConfigError, DataError, BaseModelError or RunDirectoryError before anything is
    written, and whatever `simulate` raises while it works; finished cases stand.
    """
    cases = _planned(configs)
    present = _refuse_strangers(directory, cases)
    benches = Benches() if benches is None else benches
    worlds = _prepare([case for case in cases if _result(directory, case) is None], benches)
    _refuse_other_data(directory, {*cases, *present}, worlds)
    with _opened(directory):
        _refuse_strangers(directory, cases)  # nobody was quicker
        _run(directory, cases, worlds, watcher or Watcher())
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
    for path in sorted((directory / CASES).glob(f"*/{rundir.CONFIG}")):
        case = Case(RunConfig.read(path))
        if case.name != path.parent.name:
            raise RunDirectoryError(f"{path} is not the configuration of a case of this name; put it back")
        found.append(case)
    return found


def _refuse_other_data(directory: Path, present: Iterable[Case], worlds: Mapping[Case, World]) -> None:
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
            base = world.benches.model(world.config.model, world.config.adapter).digest
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


def _prepare(cases: Sequence[Case], benches: Benches) -> dict[Case, World]:
    """A world for each case; cases with equal people hold the same ones."""
    known: dict[str, Federation] = {}
    worlds = {}
    for case in cases:
        world = prepare(case.config, benches)
        people = known.setdefault(world.federation.digest, world.federation)
        worlds[case] = replace(world, federation=people)
    return worlds


@contextmanager
def _opened(directory: Path) -> Iterator[None]:
    """Be the only process that works in `directory`, which is made if it is not there."""
    with ExitStack() as held:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(rundir.claim(directory))
        except OSError as error:
            raise RunDirectoryError(f"can't write into {directory}: {error.strerror}") from None
        yield


def _run(directory: Path, cases: Sequence[Case], worlds: Mapping[Case, World], watcher: Watcher) -> None:
    warmed: dict[int, str] = {}
    for number, case in enumerate(cases, start=1):
        watcher.begin(case, number, len(cases))
        result = _result(directory, case)
        if result is None:
            _forget_other_texts(worlds[case], warmed)
            result = _play(directory, case, worlds[case], watcher)
        watcher.end(case, result)


def _play(directory: Path, case: Case, world: World, watcher: Watcher) -> Row:
    home = _home(directory, case)
    settings = home / rundir.CONFIG
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


def _forget_other_texts(world: World, warmed: dict[int, str]) -> None:
    """Keep a model's activations only while the people stay the same.

    Last bits depend on the texts that were computed together: so a case has the bits that it would have
    alone, whichever cases came before it in this process.
    """
    model = world.benches.model(world.config.model, world.config.adapter)
    if warmed.get(id(model)) != world.federation.digest:
        model.cache.clear()
        warmed[id(model)] = world.federation.digest


def _home(directory: Path, case: Case) -> Path:
    return directory / CASES / case.name


def _result(directory: Path, case: Case) -> Row | None:
    return rundir.read_result(_home(directory, case))


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
    details = _details(rows, list(results.values()), unfinished, command if complete else "")
    from penchant.deploy.report import write_comparison

    write_comparison(rows, directory / PAGE, details)
    rundir.write_json(directory / TABLE, rows)  # last: it says that the comparison is finished
    return Comparison(rows, details)


def table(results: Mapping[Case, Row]) -> list[Row]:
    """The rows of compare.json: one for each method, number of pairs and number of people.

    accuracy_mean: over seeds, of the macro mean over people; accuracy_se: its standard error, None for one
    seed; wall_seconds: of all seeds together; cost: of one run, in the mean; runs: each seed's own.
    """
    methods: dict[RunConfig, dict[Case, Row]] = {}
    for case, result in results.items():
        methods.setdefault(case.method, {})[case] = result
    return [_table_row(own) for own in methods.values()]


def _table_row(results: Mapping[Case, Row]) -> Row:
    by_seed = sorted(results.items(), key=lambda item: item[0].config.seed)
    runs = [_table_run(case, result) for case, result in by_seed]
    first = by_seed[0][1]
    accuracies = [run["accuracy"] for run in runs]
    cold = [result["accuracy"]["cold_start"] for _, result in by_seed]
    costs = ("rounds", "client_calls", "local_epochs", "bytes_up", "bytes_down", "wall_seconds")
    return {
        **{key: first[key] for key in ("share", "head", "pairs", "clients")},
        "seeds": [run["seed"] for run in runs],
        "accuracies": accuracies,
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_se": statistics.stdev(accuracies) / math.sqrt(len(runs)) if len(runs) > 1 else None,
        "cold_start": None if None in cold else statistics.fmean(cold),
        "cold_start_curve": _cold_start_curve([result.get("cold_start") for _, result in by_seed]),
        "wall_seconds": math.fsum(run["wall_seconds"] for run in runs),
        **{key: first[key] for key in ("dataset", "base_model", "evaluated_on", "secagg", "rounds")},
        "cost": {key: statistics.fmean(run[key] for run in runs) for key in costs},
        "runs": runs,
    }


def _cold_start_curve(curves: Sequence[Sequence[Row] | None]) -> list[Row] | None:
    """[{choices, mean, se}] over seeds, each the mean over a seed's newcomers; None where a seed has none."""
    curve = []
    for rows in zip(*(curve or () for curve in curves), strict=False):
        means = [row["mean"] for row in rows]
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
        curve.append({"choices": rows[0]["choices"], "mean": statistics.fmean(means), "se": error})
    return curve or None


def _table_run(case: Case, result: Row) -> Row:
    """One seed's accuracy and cost.

    client_calls: how often a client trained, over all rounds; local_epochs: passes over its own pairs that
    all clients took together, the refit included; bytes: of all clients, over the training rounds.
    """
    training = case.config.training
    log = result["rounds_log"]
    calls = sum(row["cohort"] for row in log)
    return {
        "seed": case.config.seed,
        "accuracy": result["accuracy"]["personal"],
        "directory": f"{CASES}/{case.name}",
        "rounds": result["rounds"],
        "client_calls": calls,
        "local_epochs": calls * (training.alone_epochs + training.local_epochs)
        + result["clients"] * training.refit_epochs,
        "bytes_up": sum(row["bytes_up"] for row in log),
        "bytes_down": sum(row["bytes_down"] for row in log),
        "wall_seconds": result["wall_seconds"],
    }


def _details(rows: Sequence[Row], results: Sequence[Row], unfinished: int, command: str) -> Row:
    """What the page says beside the rows; a fact only where it holds for all of them."""
    facts = {}
    for key in ("dataset", "base_model", "clients", "pairs", "rounds", "evaluated_on", "secagg"):
        values = {row[key] for row in rows}
        facts[key] = values.pop() if len(values) == 1 else None
    return {
        **facts,
        "caveats": [*_caveats(rows, results, unfinished)],
        "command": command,
        "versions": results[0]["versions"],
    }


def _caveats(rows: Sequence[Row], results: Sequence[Row], unfinished: int) -> Iterable[str]:
    if unfinished:
        yield f"{unfinished} cases of an earlier call are not finished and not in here."
    if len({tuple(row["seeds"]) for row in rows}) > 1:
        yield "Not all methods ran with the same seeds: compare by the differences, which use common seeds."
    if _held_out_differs(results):
        yield (
            "Not all numbers of choices left the same people and as many held-out pairs of each: along the "
            "learning curves, accuracies are not of exactly the same task."
        )
    yield from dict.fromkeys(caveat for result in results for caveat in result["caveats"])


def _held_out_differs(results: Sequence[Row]) -> bool:
    """Whether, with one seed and number of people, people or their numbers of held-out pairs differ."""
    seen: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for result in results:
        people = [(row["client"], row["n_test"]) for row in result["per_client"]]
        key = result["config"]["seed"], result["config"]["data"]["clients"]
        if seen.setdefault(key, people) != people:
            return True
    return False
