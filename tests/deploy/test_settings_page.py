"""Flags and the page of settings: both are what was declared, and a new setting is one declaration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer
import typer.main
from click.testing import CliRunner

from penchant.common.config import RunConfig, TrainingConfig
from penchant.common.errors import ConfigError
from penchant.common.settings import RenamedSetting, Setting, setting, settings_of
from penchant.deploy.cli import options, settings_page
from penchant.deploy.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
LISTS_OF_COMPARE = {"adapter.share", "seed", "adapter.head", "data.clients", "data.pairs"}
DECLARED = settings_of(RunConfig)


def flags_of(command: str) -> dict[str, bool]:
    """Every flag of a command, and whether its help leaves it out."""
    found = getattr(typer.main.get_command(app), "commands", {})[command]
    return {flag: p.hidden for p in found.params for flag in [*p.opts, *p.secondary_opts]}


def given(*words: str) -> dict[str, Any]:
    """The table that a command with a flag for every setting receives for these words."""
    heard: list[dict[str, Any]] = []
    tool = typer.Typer()

    @tool.command()
    @options.with_settings()
    def tell(flags: options.Flags) -> None:
        heard.append(flags)

    done = CliRunner().invoke(typer.main.get_command(tool), list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return heard[0]


def example(one: Setting) -> tuple[list[str], Any]:
    """The words that give a setting another value than its default, and that value."""
    if one.declared.switch or one.kind is bool:
        yes, no = one.declared.switch or (True, False)
        flags = one.flag.split("/")
        return ([flags[0]], yes) if one.default == no else ([flags[1]], no)
    if one.choices:
        value = next(value for value in one.choices if value != one.default)
    elif get_origin(one.kind) is tuple:
        value = (4, -5) if get_args(one.kind)[0] is int else ("head", "norm")
        return [one.flag, ",".join(map(str, value))], value
    else:
        ends = ("other",) if one.kind is str else (one.declared.high, one.declared.low)
        value = next(value for value in map(one.kind, ends) if value != one.default)
    return [one.flag, str(value)], value


# --- flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", DECLARED, ids=lambda one: one.key)
def test_the_flag_of_every_setting_reaches_its_key(one: Setting) -> None:
    words, value = example(one)
    assert given(*words) == {one.key: value}
    assert value != one.default


def test_simulate_has_a_flag_for_every_setting_and_compare_lists_for_five() -> None:
    simulate, compare = flags_of("simulate"), flags_of("compare")
    for one in DECLARED:
        for flag in one.flag.split("/"):
            assert simulate[flag] is False
            if one.key not in LISTS_OF_COMPARE:
                assert compare[flag] is False
    for flag in ("--shares", "--seeds", "--heads", "--clients", "--pairs"):
        assert compare[flag] is False
    assert not {"--share", "--seed", "--head"} & set(compare)


BOTH_IN_0_1_0 = """
--dataset --holdout-clients --validation-pairs --skip-bad-rows --evaluate --base-model --max-tokens --rounds
--cohort --secagg --no-secagg --config --out --debug --clients --pairs
"""
SIMULATE_IN_0_1_0 = """
--pooling --normalize --dtype --quantize --share --head --rank --alpha --target-modules --layers --share-base
--lr-shared --lr-personal --lr-head --warmup-lr --optimizer --shared-optimizer --local-epochs --batch-size
--order --personal-epochs --pull --refit-epochs --refit-lr --warmup-rounds --server-optimizer --server-lr
--min-honest --grid --seed --resume
"""


def test_every_flag_of_0_1_0_is_still_there() -> None:
    of_both = set(BOTH_IN_0_1_0.split())
    assert of_both | set(SIMULATE_IN_0_1_0.split()) <= set(flags_of("simulate"))
    assert of_both | {"--shares", "--seeds", "--heads"} <= set(flags_of("compare"))


@pytest.mark.parametrize("one", [one for one in DECLARED if one.old_keys], ids=lambda one: one.key)
def test_an_old_flag_is_hidden_and_read_with_a_notice(one: Setting) -> None:
    for old in one.old_keys:
        flag = "--" + old.split(".")[1].replace("_", "-")
        assert flags_of("simulate")[flag] is True
        words, value = example(one)
        with pytest.warns(RenamedSetting, match=f"{old} is now {one.key}"):
            assert given(flag, *words[1:]) == {one.key: value}


def test_an_old_and_a_new_flag_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.pull is the old name of training\.l2_to_start"):
        given("--pull", "1", "--l2-to-start", "1")


def test_lists_are_one_word_with_commas() -> None:
    assert given("--layers", "all") == {"adapter.layers": ()}
    assert given("--target-modules", "a, b") == {"adapter.target_modules": ("a", "b")}
    assert given("--share-base", "") == {"adapter.share_base": ()}
    with pytest.raises(ConfigError, match="--layers is 'x'; it must be whole numbers, separated by commas"):
        given("--layers", "x")


def test_what_is_not_given_is_not_in_the_table() -> None:
    assert given() == {}
    assert given("--no-secagg", "--refuse-bad-rows") == {"privacy.secagg": False, "data.bad_rows": "refuse"}


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_what_is_generated() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == settings_page.page(), (
        "run python -m penchant.deploy.cli.settings_page > docs/settings.md"
    )


@pytest.mark.parametrize("one", DECLARED, ids=lambda one: one.key)
def test_every_setting_has_its_row(one: Setting) -> None:
    (row,) = [line for line in settings_page.page().splitlines() if line.startswith(f"| `{one.key}` |")]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert cells[1].split() == [f"`{flag}`" for flag in one.flag.split("/")]
    assert cells[2:] == [f"`{one.default_text}`", one.allowed, one.help]


# --- a new setting is one declaration -------------------------------------------------------------


@dataclass(frozen=True)
class NewTraining(TrainingConfig):
    cooling: float = setting(0.5, "How fast rates fall from step to step.", low=0, high=1)


@dataclass(frozen=True)
class NewRun(RunConfig):
    training: NewTraining = field(default_factory=NewTraining)


def test_a_new_setting_touches_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"cooling is 1\.5; it must lie in 0 … 1"):
        NewRun().changed({"training.cooling": 1.5})
    assert NewRun.from_toml("[training]\ncooling = 0.25\n").training.cooling == 0.25
    assert b'"cooling":0.5' in NewRun().plan("main", 3).encode()  # what devices are told
    monkeypatch.setattr(options, "RunConfig", NewRun)
    assert given("--cooling", "0.125") == {"training.cooling": 0.125}
    monkeypatch.setattr(settings_page, "RunConfig", NewRun)
    row = "| `training.cooling` | `--cooling` | `0.5` | 0 to 1 | How fast rates fall from step to step. |"
    assert row in settings_page.page().splitlines()
