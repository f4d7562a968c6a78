"""Settings for any data: a search for each share, judged on validation pairs, and a recipe file of the best.

The test part is not read. Runs are those of `penchant simulate` without masks, which change no sum.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.errors import ConfigError, DataError, RunDirectoryError, UsageError
from penchant.common.objectives import REWARD
from penchant.common.shares import share_rule
from penchant.common.storage import write_durably
from penchant.deploy import datasets
from penchant.deploy.recipes import DEPTH, GENERAL, fitting, recipe, usual_share
from penchant.deploy.recipes.recipe_file import RecipeFile, Tuned
from penchant.deploy.tuning.search import BestFound, CaseRuns, Hears, best_of, searched
from penchant.deploy.tuning.space import SECTIONS, Space

__all__ = ["Tuning", "tune"]

LEAST_BUDGET: Final = 5
"""Runs a share: fewer are no search."""

JUDGED_ON: Final = "validation"
PAIRS: Final = "data.pairs"


@dataclass(frozen=True)
class Tuning:
    """What is to be tuned.

    Attributes:
        asked: settings that were given, which no trial changes, by dotted keys.
        shares: to search for, one after the other.
        seeds: of the runs that judge one setting.
        budget: most runs in all; finalists may take a few more where there are more than three seeds.
        out: the recipe file to write; trials are kept beside it.
    """

    asked: Mapping[str, Any]
    shares: Sequence[str]
    seeds: Sequence[int]
    budget: int
    out: Path

    def __post_init__(self) -> None:
        for name, listed in (("shares", self.shares), ("seeds", self.seeds)):
            if not listed or len(set(listed)) < len(listed):
                raise UsageError(f"{name} must be a list that names each once, and at least one")
        for share in self.shares:
            share_rule(share)
        if self.budget < LEAST_BUDGET * len(self.shares):
            raise UsageError(
                f"a budget of {self.budget} runs is too small for {len(self.shares)} share(s); give "
                f"{LEAST_BUDGET * len(self.shares)} or more"
            )
        for key in ("adapter.share", "seed", "data.evaluate"):
            if key in self.asked:
                raise UsageError(f"tuning settles {key} itself; drop it")
        if self.asked.get("model.objective", REWARD) != REWARD:
            raise ConfigError("tuning is for reward models; drop model.objective", about=("model.objective",))
        if self.asked.get("privacy.dp_epsilon"):
            raise ConfigError(
                "tuning is without noise, on data that are yours to look at; drop privacy.dp_epsilon",
                about=("privacy.dp_epsilon",),
            )

    @property
    def trials(self) -> Path:
        """Where trials are kept, so that the same command goes on."""
        return self.out.with_name(f"{self.out.name}.trials")

    @property
    def base(self) -> dict[str, Any]:
        """Settings of every run."""
        return {
            **recipe(GENERAL, ""),
            **self.asked,
            "privacy.secagg": False,
            "data.evaluate": JUDGED_ON,
        }

    @property
    def space(self) -> Space:
        """What is searched: of the base model that the general recipe has a depth for, the depth as well."""
        usual = fitting(recipe(GENERAL, usual_share(GENERAL) or ""), self.asked).get("model.beside")
        if not usual:
            return Space()
        whole, short, both = ((0, 0), (usual, 0), (0, usual))
        named = {"all blocks": whole, f"{usual} blocks": short, f"{usual} blocks beside all": both}
        return Space(depths={name: dict(zip(DEPTH, own, strict=True)) for name, own in named.items()})

    def settings(self, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What was found, as the tables of a recipe, without what was asked for."""
        return _tables({key: value for key, value in found.items() if key not in self.asked})

    @property
    def common(self) -> dict[str, dict[str, Any]]:
        """What the settings of every share were found with, as the tables of a recipe; of the data, how many
        pairs a person has."""
        found = {**recipe(GENERAL, ""), **self.asked}
        return _tables(
            {key: v for key, v in found.items() if key.partition(".")[0] in SECTIONS or key == PAIRS}
        )


class _People:
    """The people of each seed, loaded once; those without validation pairs can't judge, and are left out."""

    def __init__(self, tuning: Tuning) -> None:
        self._config = RunConfig().changed({"adapter.share": tuning.shares[0], **tuning.base})
        self._known: dict[int, Federation] = {}

    def of(self, config: RunConfig) -> Federation:
        if config.seed not in self._known:
            everybody = datasets.configured(self._config.data, config.seed)
            judging = tuple(person for person in everybody.people if person.validation)
            if not judging:
                raise DataError("nobody has validation pairs, by which settings are judged")
            self._known[config.seed] = replace(everybody, people=judging)
        return self._known[config.seed]

    @cached_property
    def pairs(self) -> int:
        return self._config.data.pairs


def tune(tuning: Tuning, command: str, hears: Hears = lambda text: None) -> RecipeFile:
    """Search, or go on searching, and write the recipe; -> what it holds.

    command: the command line, for the recipe. hears: told of every trial.

    Raises DataError, ConfigError, BaseModelError or UsageError before anything is written, RunDirectoryError
    where `out` is there already or can't be written.
    """
    if tuning.out.exists():
        raise RunDirectoryError(
            f"{tuning.out} is there already; move it, or name another file",
            on_command_line=f"{tuning.out} is there already; move it, or name another --out",
        )
    people = _People(tuning)
    first = people.of(RunConfig().changed({"seed": tuning.seeds[0]}))
    for share in tuning.shares:
        _runs(tuning, share, people, hears).check()
    _refuse_other_search(tuning, first.digest)
    found: dict[str, BestFound] = {}
    for share in tuning.shares:
        runs = _runs(tuning, share, people, hears)
        study = searched(runs, tuning.space, tuning.trials, budget=tuning.budget // len(tuning.shares))
        found[share] = best_of(study, runs)
    best = max(found, key=lambda share: found[share].accuracy)  # the first of equals
    made = RecipeFile(
        {"all": tuning.common, **{name: tuning.settings(one.changes) for name, one in found.items()}},
        Tuned(
            data=first.name,
            digest=first.digest,
            people=len(first.people),
            pairs=people.pairs,
            judged_on=JUDGED_ON,
            seeds=tuple(tuning.seeds),
            runs=sum(one.runs for one in found.values()),
            accuracies={name: round(one.accuracy, 4) for name, one in found.items()},
            share=best,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            command=command,
            version=version("penchant"),
        ),
    )
    _write(tuning.out, made.to_toml())
    return made


def _runs(tuning: Tuning, share: str, people: _People, hears: Hears) -> CaseRuns:
    """Those of one share, with models of its own: of all shares together they would fill the memory."""
    cases = [{"seed": seed} for seed in tuning.seeds]
    return CaseRuns(share, tuning.base, cases, fixed=tuning.asked, people=people.of, hears=hears)


def _refuse_other_search(tuning: Tuning, digest: str) -> None:
    """RunDirectoryError where trials of another search, or on other data, are kept there; else they are
    marked as this one's."""
    mark = tuning.trials.with_name(f"{tuning.trials.name}.of")
    asked = dict(sorted(tuning.base.items()))
    text = f"{digest}\n{list(tuning.seeds)}\n{asked}\n"
    if mark.exists() and mark.read_text(encoding="utf-8") != text:
        raise RunDirectoryError(
            f"{tuning.trials} holds the trials of another search, or on other data; move it, or name another "
            "file",
            on_command_line=f"{tuning.trials} holds the trials of another search, or on other data; move it, "
            "or name another --out",
        )
    _write(mark, text)


def _write(path: Path, text: str) -> None:
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise RunDirectoryError(f"can't write {path}: {error.strerror}") from None


def _tables(changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted keys as the tables of a recipe."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        tables.setdefault(section, {})[name] = value
    return tables
