"""`penchant tune` finds what is better, by validation pairs alone, within its budget; recipes in files."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from support.tastes import write_choices

import penchant
from penchant.common.config import RunConfig
from penchant.common.errors import (
    BaseModelError,
    ConfigError,
    DataError,
    DeviceError,
    RunDirectoryError,
    UsageError,
)
from penchant.common.shares import share_rule
from penchant.deploy.cli.main import main
from penchant.deploy.configuration import configure
from penchant.deploy.recipes import recipe
from penchant.deploy.recipes.recipe_file import RecipeFile
from penchant.deploy.tuning import search
from penchant.deploy.tuning.search import CaseRuns, best_of, searched
from penchant.deploy.tuning.space import Space, begun, drawn, there
from penchant.deploy.tuning.tune import Tuning, tune

SHARES = ["B", "A", "kernel", "svd", "AB", "none", "ffa", "lore", "mixed", "common"]


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    path = tmp_path / "choices.jsonl"
    write_choices(path, [20] * 4)
    return path


@pytest.fixture
def asked(choices: Path) -> dict[str, Any]:
    return {
        "data.dataset": str(choices),
        "data.person_column": "user",
        "data.pairs": 6,
        "data.validation_pairs": 3,
        "data.test_pairs": 4,
    }


class Runs:
    """Stands in for simulations: the nearer the shared rate is to .01, the better; some fail."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.most = 10_000
        self.fails: Callable[[RunConfig], bool] = lambda config: False

    def prepare(self, config: RunConfig, cache: object, people: object) -> RunConfig:
        return config

    def simulate(self, config: RunConfig, folder: Path, *, command: str) -> SimpleNamespace:
        if len(self.configs) == self.most:
            raise KeyboardInterrupt
        self.configs.append(config)
        if self.fails(config):
            raise DeviceError("its training diverged")
        share = 0.1 if config.adapter.share == "lore" else 0.0
        return SimpleNamespace(accuracy=0.6 + share - abs(config.training.lr_shared - 0.01))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(search, "simulate", found.simulate)
    monkeypatch.setattr(search, "prepare", found.prepare)
    return found


def test_it_finds_what_is_better_and_says_on_what(runs: Runs, asked: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    heard: list[str] = []
    made = tune(Tuning(asked, ("AB", "lore"), (0, 1), 60, out), "penchant tune …", heard.append)
    assert RecipeFile.read(out) == made
    assert made.tuned is not None
    assert (made.tuned.share, made.share) == ("lore", "lore")
    assert 0.69 < made.tuned.accuracies["lore"] <= 0.7
    assert made.changes("lore")["training.lr_shared"] == pytest.approx(0.01, abs=0.005)
    assert (made.tuned.data, made.tuned.people, made.tuned.pairs) == ("choices", 4, 6)
    assert made.tuned.judged_on == "validation"
    assert made.tuned.seeds == (0, 1)
    assert len(made.tuned.digest) == 64
    assert made.tuned.command == "penchant tune …"
    assert made.tuned.runs == len(runs.configs) <= 60 + 2  # a trial is not cut off between its seeds
    assert {config.data.evaluate for config in runs.configs} == {"validation"}
    assert not any(config.privacy.secagg for config in runs.configs)
    assert {config.seed for config in runs.configs} == {0, 1}
    assert heard


def test_the_depth_of_the_default_base_model_is_searched_and_no_other(asked: dict[str, Any]) -> None:
    def space(**more: Any) -> Space:
        changes = {key.replace("__", "."): value for key, value in more.items()}
        return Tuning(asked | changes, ("common",), (0,), 20, Path("mine.toml")).space

    assert space().depths == space(model__base_model="all-MiniLM-L6-v2").depths
    for other in ({"model__base_model": "all-mpnet-base-v2"}, {"model__blocks": 4}, {"model__beside": 2}):
        assert not space(**other).depths
    studied = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [drawn(studied.ask(), "common", space()) for _ in range(30)]
    assert {(one["model.blocks"], one["model.beside"]) for one in found} == {(0, 0), (3, 0), (0, 3)}
    assert {one["depth"] for one in begun("common", space())} == {"3 blocks beside all"}
    for blocks, beside, name in ((0, 0, "all blocks"), (3, 0, "3 blocks"), (0, 3, "3 blocks beside all")):
        config = RunConfig().changed(
            {"adapter.share": "common", "model.blocks": blocks, "model.beside": beside}
        )
        assert there(config, space())["depth"] == name
    assert "depth" not in there(RunConfig().changed({"model.blocks": 4}), space())


@pytest.mark.parametrize("share", [*SHARES, "finetune", "meta", "shrinkage"])
def test_every_place_of_every_share_is_a_configuration(asked: dict[str, Any], share: str) -> None:
    space = Tuning(asked, (share,), (0,), 20, Path("mine.toml")).space
    studied = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for place in (*begun(share, space), *[None] * 20):
        if place is not None:
            studied.enqueue_trial(place)
        changes = drawn(studied.ask(), share, space)
        RunConfig().changed({"adapter.share": share} | changes)
        assert not (share_rule(share).adapts_modules and changes["model.beside"])


@pytest.mark.parametrize("share", ["finetune", "meta", "A"])
def test_a_share_that_ends_in_a_fit_is_never_drawn_without(share: str) -> None:
    studied = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    fits = {drawn(studied.ask(), share, Space())["training.final_fit_epochs"] for _ in range(40)}
    assert fits == ({0, 30} if share == "A" else {30})
    assert {one["training.final_fit_epochs"] for one in begun(share, Space())} == {30}
    begun(share, Space(final_fits=(0,)))  # a share that needs a fit has its usual one there


def test_what_is_asked_for_is_not_searched_and_is_in_the_recipe(
    runs: Runs, asked: dict[str, Any], tmp_path: Path
) -> None:
    more = asked | {"federation.rounds": 7, "training.lr_shared": 0.02, "adapter.rank": 1}
    made = tune(Tuning(more, ("lore",), (3,), 8, tmp_path / "mine.toml"), "")
    assert {(c.federation.rounds, c.training.lr_shared, c.adapter.rank) for c in runs.configs} == {
        (7, 0.02, 1)
    }
    changes = made.changes("lore")
    assert (changes["federation.rounds"], changes["training.lr_shared"]) == (7, 0.02)
    assert {key: v for key, v in changes.items() if key.startswith("data.")} == {"data.pairs": 6}


def test_an_interrupted_search_goes_on_and_makes_no_run_twice(
    runs: Runs, asked: dict[str, Any], tmp_path: Path
) -> None:
    tuning = Tuning(asked, ("lore",), (0, 1), 20, tmp_path / "mine.toml")
    runs.most = 9
    with pytest.raises(KeyboardInterrupt):
        tune(tuning, "")
    assert not tuning.out.exists()
    runs.most = 10_000
    made = tune(tuning, "")
    assert made.tuned is not None
    assert made.tuned.runs <= 22
    assert len(runs.configs) <= made.tuned.runs + 2  # but for the runs of the trial that was cut off
    with pytest.raises(RunDirectoryError, match="is there already"):
        tune(tuning, "")
    tuning.out.unlink()
    with pytest.raises(RunDirectoryError, match="trials of another search"):
        tune(replace(tuning, seeds=(0, 2)), "")


def test_training_that_diverges_counts_as_nothing(runs: Runs, asked: dict[str, Any], tmp_path: Path) -> None:
    runs.fails = lambda config: config.training.lr_shared > 0.005
    made = tune(Tuning(asked, ("lore",), (0,), 30, tmp_path / "mine.toml"), "")
    assert made.changes("lore")["training.lr_shared"] <= 0.005


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budget": 4}, "a budget of 4 runs is too small for 1 share"),
        ({"shares": ()}, "shares must be a list"),
        ({"seeds": (1, 1)}, "seeds must be a list that names each once"),
        ({"shares": ("nothing",)}, "nothing"),
        ({"asked": {"seed": 3}}, "tuning settles seed itself"),
        ({"asked": {"model.objective": "dpo"}}, "tuning is for reward models"),
        ({"asked": {"privacy.dp_epsilon": 8.0}}, "tuning is without noise"),
    ],
)
def test_what_cannot_be_tuned(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {
        "asked": {},
        "shares": ("A",),
        "seeds": (0,),
        "budget": 20,
        "out": tmp_path / "x",
    }
    with pytest.raises(UsageError, match=line):
        Tuning(**usual | changes)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"federation.cohort": 9}, "federation.cohort is 9 but there are 4 people"),
        ({"data.holdout_clients": 3}, "3 people can't be held out of 4"),
        ({"model.base_model": "nothing-like-it"}, "nothing-like-it"),
        ({"data.validation_pairs": 0}, "data.validation_pairs is 0"),
    ],
)
def test_what_no_run_could_begin_with_is_refused_before_anything_is_written(
    asked: dict[str, Any],
    wrong: dict[str, Any],
    line: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the corrected command is not taken for another search."""

    def simulated(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(accuracy=0.5)

    monkeypatch.setattr(search, "simulate", simulated)
    usual = asked | {"model.base_model": str(tiny_model("bert"))}
    tuning = Tuning(usual | wrong, ("common", "A"), (0, 1), 10, tmp_path / "mine.toml")
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()  # of the model that was made
    with pytest.raises((ConfigError, DataError, BaseModelError), match=line):
        tune(tuning, "")
    assert sorted(tmp_path.iterdir()) == before
    assert not caplog.records
    assert capsys.readouterr() == ("", "")
    tune(replace(tuning, asked=usual), "")
    assert tuning.out.exists()


def test_a_trial_that_fails_is_one_line(
    runs: Runs, asked: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is: the search ends with the error, and Optuna prints no traceback of its own."""

    def fails(config: RunConfig) -> bool:
        raise ConfigError("this can't be run")

    runs.fails = fails
    with pytest.raises(ConfigError, match="this can't be run"):
        tune(Tuning(asked, ("A",), (0,), 5, tmp_path / "mine.toml"), "")
    assert capfd.readouterr() == ("", "")


def test_without_optuna_it_says_what_to_install(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("sys.argv", ["penchant", "tune", "choices.jsonl", "--out", str(tmp_path / "x.toml")])
    with pytest.raises(SystemExit) as leave:
        main()
    assert leave.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        'penchant: penchant tune needs Optuna, which is not installed: pip install "penchant[tune]"'
    ]


# --- the space, which the bench of the Senate's recipes draws from as well ---------------------------------


@pytest.mark.parametrize("share", SHARES)
def test_every_start_and_every_draw_is_a_configuration(share: str) -> None:
    optuna = pytest.importorskip("optuna")
    space = Space(("mean", "first"), (16, 24), (5, 30), (17, 34), (0,))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    starts = [there(RunConfig().changed({"adapter.share": share, **recipe("senate", share)}), space)]
    for start in (*starts, *begun(share, space)):
        study.enqueue_trial(start)
    for _ in range(10):
        trial = study.ask()
        RunConfig().changed({"adapter.share": share, **drawn(trial, share, space)})


def test_the_settings_that_are_there_are_tried_as_they_are(runs: Runs) -> None:
    base = recipe("senate", "lore")
    found = CaseRuns("lore", recipe("senate", "all"), [{"seed": 0}], start=base)
    space = Space((), (16, 24, 32), (5, 30), (17, 34), (0,))
    study = searched(found, space, None, trials=1)
    best = best_of(study, found)
    assert {key: value for key, value in best.changes.items() if key in base} == {
        key: value for key, value in base.items() if key in best.changes
    }


# --- recipe files ----------------------------------------------------------------------------------------

TEXT = """
[all.federation]
stop_after = 4
[common.training]
lr_head = 0.02
[common.adapter]
rank = 4
[A.training]
lr_shared = 0.004
"""


def test_a_recipe_in_a_file_comes_before_defaults_and_after_all_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    found = RecipeFile.read(path)
    assert found.share is None  # two, and it doesn't say which is better
    usual = configure({"data.dataset": "senate"}, None, found)
    assert (usual.adapter.share, usual.training.lr_shared, usual.federation.stop_after) == ("A", 0.004, 4)
    assert usual.federation.warmup_rounds == 0  # nothing of the data set's own recipe
    other = configure({"adapter.share": "common", "training.lr_head": 0.1}, None, found)
    assert (other.adapter.rank, other.training.lr_head) == (4, 0.1)
    path.write_text(TEXT.partition("[A.")[0])
    assert configure({}, None, RecipeFile.read(path)).adapter.share == "common"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "has no settings"),
        ("[all", "is not valid TOML"),
        ("[nothing.training]\nlr_head = 0.1", 'a table for share "nothing"'),
        ("[A.training]\nlr_haed = 0.1", "lr_haed"),
        ("[A.adapter]\nrank = 0", "rank is 0"),
        ("A = 3", "must hold tables"),
        ("[A]\ntraining = 3", "must hold tables"),
        ("[tuned]\ndata = 3\n[A.adapter]\nrank = 1", r"\[tuned\] of"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=line):
        RecipeFile.read(path)
    with pytest.raises(ConfigError, match="can't read recipe"):
        RecipeFile.read(tmp_path / "absent.toml")


def test_from_the_terminal_to_a_run(
    asked: dict[str, Any],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whole, with real runs: the least of budgets."""
    monkeypatch.setattr("penchant.deploy.cli.show_simulation.write_report", lambda result, path: None)
    settings = {
        "--person-column": "user",
        "--pairs": 6,
        "--validation-pairs": 3,
        "--test-pairs": 4,
        "--base-model": tiny_model("bert"),
        "--rounds": 1,
        "--local-epochs": 1,
        "--final-fit-epochs": 1,
        "--workers": 1,
    }
    flags = [str(word) for pair in settings.items() for word in pair]

    def says(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["penchant", *map(str, words)])
        with pytest.raises(SystemExit) as leave:
            main()
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    out = tmp_path / "mine.toml"
    data = asked["data.dataset"]
    code, said, err = says(
        "tune", data, "--out", out, "--shares", "lore", "--seeds", 0, "--budget", 5, *flags
    )
    assert code == 0, err
    assert "lore: 0." in said
    assert f"penchant simulate --recipe {out}" in said
    assert tomllib.loads(out.read_text())["tuned"]["runs"] == 5
    code, said, err = says(
        "simulate", "--dataset", data, "--recipe", out, "--no-secagg", "--out", tmp_path / "run", *flags
    )
    assert code == 0, err
    assert "settings tuned on choices (4 people, 6 pairs each)" in " ".join(err.split())
    assert "share lore" in said
    assert says("simulate", "--recipe", out, "--auto")[0] == 2
    assert says("tune", data, "--out", out, *flags)[0] == 2
    with pytest.raises(UsageError, match="config has all settings already"):
        penchant.simulate(data, RunConfig(), recipe=out)
