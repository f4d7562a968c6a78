"""Simulations and comparisons, from Python."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penchant._checks import path_given
from penchant._data import LoadedFederation, Preferences, as_loaded, load_preferences
from penchant._results import ComparisonResult, SimulationResult
from penchant.common.config import DataConfig, RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.errors import ConfigError, RunDirectoryError, UsageError
from penchant.common.settings import section_table, settings_of
from penchant.deploy import run_directory
from penchant.deploy.comparison import runner as comparison_runner
from penchant.deploy.comparison.runner import ComparisonPages, ComparisonProgress
from penchant.deploy.configuration import configure
from penchant.deploy.recipes.recipe_file import RecipeFile
from penchant.deploy.report import PAGES, write_report
from penchant.deploy.simulation import runner
from penchant.deploy.simulation.candidates import candidates
from penchant.deploy.simulation.race import RacePlan
from penchant.deploy.simulation.race_record import RaceRecord
from penchant.deploy.simulation.result import RoundSummary
from penchant.deploy.simulation.world import Progress, SimulationSetup, prepare
from penchant.server.journal import RoundLog
from penchant.server.journal_reader import open_journal

__all__ = ["Callback", "compare", "simulate"]

RUN_DATA = ("evaluate", "holdout_clients")  # data settings of the run, not of how its data were loaded


class Callback:
    """Hears what a simulation does; override what you want to know.

    An exception ends the call. Finished rounds are kept, and the same call with the same `out` goes on.

    Attributes:
        of_one_run: whether it can't tell the rounds of one run from those of another; `compare` refuses it.
    """

    of_one_run = False

    def on_stage(self, stage: str) -> None:
        """A new part of the work begins, such as "federating" or "evaluating"."""

    def on_round(self, summary: RoundSummary, last: int) -> None:
        """A round is finished; `last` is the number of the closing round.

        Of a race (`simulate(auto=True)`) the winner's rounds are told once it has won.
        """

    def on_result(self, result: SimulationResult) -> None:
        """A simulation has its result; of a comparison, no result of a single run is told."""

    def on_end(self) -> None:
        """The call ends, with a result or an exception."""


class _CallbackProgress(ComparisonProgress):
    """Passes on to callbacks what a run reports."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        if not isinstance(callbacks, Sequence) or not all(isinstance(c, Callback) for c in callbacks):
            raise UsageError("callbacks must be a list of penchant.Callback objects")
        self._callbacks = callbacks

    def stage(self, text: str) -> None:
        """As `Progress.stage`."""
        for callback in self._callbacks:
            callback.on_stage(text)

    def round(self, log: RoundLog, last: int) -> None:
        """As `Progress.round`."""
        for callback in self._callbacks:
            callback.on_round(RoundSummary.of(log), last)

    @contextmanager
    def call(self) -> Iterator[None]:
        """All of a call: its end is told, whatever it is."""
        try:
            yield
        finally:
            for callback in self._callbacks:
                callback.on_end()


class _RaceStages(Progress):
    """Passes on the stages of a race. Its rounds are those of several runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, text: str) -> None:
        """As `Progress.stage`."""
        self._progress.stage(text)


def simulate(
    data: Preferences | Federation,
    config: RunConfig | None = None,
    *,
    share: str | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    auto: bool = False,
    recipe: str | Path | None = None,
    **settings: Any,
) -> SimulationResult:
    """Simulate a federation on this machine; every person ends with a reward model of their own.

    Args:
        data: what `load_preferences` gave, or anything that it takes.
        config: all settings of the run; without it those tuned for the data set and share are used.
        share: what the people's models have in common, such as "A", "AB" or "none".
        rounds: how many rounds are federated.
        seed: draws everything that is drawn, the split of preferences from `load_preferences` included.
        out: the run directory, which is made; the same call goes on there where it stopped. Without it the
            run is in a temporary directory, which lives as long as the result.
        callbacks: hear what the simulation does.
        auto: whether share and rates are chosen by a race between a few, on held-out choices.
        recipe: a file of settings that `penchant tune` wrote, in place of those tuned for the data set.
        settings: any other setting by its name, such as ``cohort=10``, or by its full name, as in
            ``**{"training.lr_personal": 0.02}``.

    Raises:
        ConfigError: a setting is unknown, or out of its range.
        DataError: the data can't be used.
        RunDirectoryError: `out` holds something else.
        RoundFailed: too few clients answered; finished rounds are kept.
    """
    progress = _CallbackProgress(callbacks)
    asked = _asked(settings, {"adapter.share": share, "federation.rounds": rounds, "seed": seed})
    source = _Source.of(data, asked)
    with progress.call():
        if auto:
            _refuse_settled(config, recipe)
            wanted = source.changes(None) | asked
            plan = RacePlan.of(wanted, source.people(candidates(wanted)[0].config))
            directory, kept = _place(out)
            world = _raced(plan, directory, progress)
        else:
            settled = source.configured(config, asked, recipe)
            world = prepare(settled, federation=source.people(settled))
            directory, kept = _place(out)
            _begin(directory, settled)
        found = runner.simulate(
            world,
            directory,
            progress,
            command=_call("simulate", data, asked),
            write_report=None if out is None else write_report,
        )
        result = SimulationResult._of(found, directory, world, kept)
        for callback in callbacks:
            callback.on_result(result)
    return result


def compare(
    data: Preferences | Federation,
    config: RunConfig | None = None,
    *,
    shares: Iterable[str] = ("A", "B", "AB", "none"),
    seeds: Iterable[int] = range(3),
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> ComparisonResult:
    """Compare what people's models may share: the same people, preferences and seeds for every method.

    Args:
        data: what `load_preferences` gave, or anything that it takes.
        config: all settings but share and seed; without it those tuned for the data set and each share.
        shares: the methods to compare, by what they share.
        seeds: each method runs once with each seed; differences need at least two.
        out: the directory of the comparison, which is made; the same call goes on there where it stopped.
            Without it the runs are in a temporary directory, which lives as long as the result.
        callbacks: hear what each run does; a `Tracker` is for one run, and refused.
        settings: any other setting, as in `simulate`.

    Raises:
        As `simulate`.
    """
    progress = _CallbackProgress(callbacks)
    if any(callback.of_one_run for callback in callbacks):
        raise UsageError("a Tracker follows one run, and a comparison makes several; give it to simulate")
    asked = _asked(settings, {})
    source = _Source.of(data, asked)
    cases = _cases(shares, seeds, asked)
    configs = [source.configured(config, asked | case) for case in cases]
    directory, kept = _place(out)
    with progress.call():
        found = comparison_runner.compare(
            configs,
            directory,
            progress,
            command=_call("compare", data, asked),
            pages=ComparisonPages() if out is None else PAGES,
            people=source.people,
        )
    return ComparisonResult._of(found, directory, kept)


def _cases(shares: Iterable[str], seeds: Iterable[int], asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What differs between the runs of a comparison. UsageError for lists that can't be compared."""
    for key, name in (("adapter.share", "shares"), ("seed", "seeds")):
        if key in asked:
            raise UsageError(f"a comparison takes its {key} from `{name}`; name the one you want there")
    lists = {"shares": _listed("shares", shares), "seeds": _listed("seeds", seeds)}
    for name, items in lists.items():
        if not items:
            raise UsageError(f"{name} is empty; name at least one")
        if any(item in items[:place] for place, item in enumerate(items)):
            raise UsageError(f"{name} names something twice; name each once")
    return [{"seed": seed, "adapter.share": share} for seed in lists["seeds"] for share in lists["shares"]]


def _listed(name: str, items: Iterable[Any]) -> list[Any]:
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise UsageError(f"{name} is {items!r}; give a list, such as [{items!r}]")
    return list(items)


# --- data and settings ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    """The data of a call: a name that a run loads by itself, or people who are in memory already."""

    name: str = ""
    loaded: LoadedFederation | None = None

    @classmethod
    def of(cls, data: Preferences | Federation, asked: dict[str, Any]) -> _Source:
        """What `data` is. Data settings are taken out of `asked` where preferences are loaded here."""
        if isinstance(data, str | Path):
            return cls(str(data))
        if isinstance(data, Federation):
            _refuse_loaded_settings(asked)
            return cls(loaded=as_loaded(data))
        own = {key: asked.pop(key) for key in _loading_keys() if key in asked}
        names = {"clients": "people"}
        told = {key.removeprefix("data."): value for key, value in own.items()}
        return cls(loaded=load_preferences(data, **{names.get(k, k): v for k, v in told.items()}))

    def configured(
        self, config: RunConfig | None, asked: dict[str, Any], recipe: str | Path | None = None
    ) -> RunConfig:
        """The settings of a run on this data."""
        if config is not None and not isinstance(config, RunConfig):
            raise UsageError("config must be a RunConfig; give single settings by their names")
        if config is not None and recipe is not None:
            raise UsageError("config has all settings already; drop it or recipe")
        changes = self.changes(config) | asked
        tuned = None if recipe is None else RecipeFile.read(path_given("recipe", recipe))
        return configure(changes, None, tuned) if config is None else config.changed(changes)

    def changes(self, config: RunConfig | None) -> dict[str, Any]:
        """What the data settle; with `config`, all but the seed."""
        if self.loaded is None:
            return {"data.dataset": self.name}
        table = section_table(self.loaded.settings)
        changes = {f"data.{name}": value for name, value in table.items() if name not in RUN_DATA}
        return changes if config is not None else {"seed": self.loaded.seed, **changes}

    def people(self, config: RunConfig) -> Federation | None:
        """The people of a run with these settings; None where the run loads them by name."""
        if self.loaded is None or (config.grid == "ray" and self.loaded.by_name):
            return None
        return self.loaded.split_by(config.seed)


def _loading_keys() -> list[str]:
    return [f"data.{name}" for name in section_table(DataConfig()) if name not in ("dataset", *RUN_DATA)]


def _refuse_loaded_settings(asked: Mapping[str, Any]) -> None:
    for key in ("data.dataset", *_loading_keys()):
        if key in asked:
            raise ConfigError(f"{key} is settled when the data are loaded; give it to load_preferences")


def _asked(settings: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of all settings that a call names."""
    known = _keys()
    asked = {_full_name(name, known): value for name, value in settings.items()}
    return asked | {key: value for key, value in named.items() if value is not None}


def _keys() -> list[str]:
    """The full names of all settings, and after them the old ones, which are read with a notice."""
    settings = settings_of(RunConfig)
    return [*(one.key for one in settings), *(old for one in settings for old in one.old_keys)]


def _full_name(name: str, known: Sequence[str]) -> str:
    """The full name of a setting; ConfigError for one that is unknown or that several sections have."""
    if name in known or "." in name:
        return name  # a full name that is unknown is refused, or read as an old one, by RunConfig
    found = [key for key in known if key.rpartition(".")[2] == name]
    if len(found) > 1:
        raise ConfigError(f"{name} may be {' or '.join(found)}; give the full name: **{{{found[0]!r}: …}}")
    if not found:
        short = [key.rpartition(".")[2] for key in known]
        near = difflib.get_close_matches(name, short, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/settings.md lists the settings there are"
        raise ConfigError(f"there is no setting {name}; {hint}")
    return found[0]


# --- directories ----------------------------------------------------------------------------------


def _place(out: str | Path | None) -> tuple[Path, TemporaryDirectory[str] | None]:
    """The directory to work in; a temporary one goes when the result that keeps it does."""
    if out is not None:
        return path_given("out", out), None
    kept = TemporaryDirectory(prefix="penchant-")
    return Path(kept.name), kept


def _begin(directory: Path, config: RunConfig) -> None:
    """Make the run directory, or find the same run there."""
    if not (directory / run_directory.CONFIG).is_file():
        run_directory.create(directory, config)
    elif run_directory.read_config(directory) != config:
        raise RunDirectoryError(
            f"{directory} is a run of another configuration; ask for the same, or choose another out"
        )


def _refuse_settled(config: RunConfig | None, recipe: str | Path | None) -> None:
    if config is not None or recipe is not None:
        raise UsageError(
            "auto chooses settings that config or recipe have already; drop one of them, and give single "
            "settings by their names"
        )


def _raced(plan: RacePlan, directory: Path, progress: _CallbackProgress) -> SimulationSetup:
    """The run that has won a race in `directory`, which is begun, or found there and gone on with."""
    found = RaceRecord.read(directory)
    if found is None:
        plan.begin(directory)
    elif found.asked != plan.record.asked:
        raise RunDirectoryError(
            f"{directory} is a race of another configuration; ask for the same, or choose another out"
        )
    world = plan.run(directory, _RaceStages(progress))
    journal = open_journal(directory)
    try:
        for log in journal.logs():
            progress.round(log, world.config.federation.rounds + 1)
    finally:
        journal.close()
    return world


def _call(function: str, data: object, asked: Mapping[str, Any]) -> str:
    """The call as the report shows it."""
    named = {key: value for key, value in asked.items() if "." not in key}
    named |= {key.rpartition(".")[2]: value for key, value in asked.items() if "." in key}
    words = [repr(str(data)) if isinstance(data, str | Path) else "data"]
    return f"penchant.{function}({', '.join([*words, *(f'{k}={v!r}' for k, v in named.items())])})"
