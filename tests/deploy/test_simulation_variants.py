"""Every variant of the method as a whole run of `penchant simulate`: what is shared, what starts where."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tastes import write_choices

from penchant.client.learning.model_cache import ModelCache
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.deploy import run_directory
from penchant.deploy.cli.main import main
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare

PEOPLE = 4
BENCHES = ModelCache()  # one model for all runs
SLOT = "encoder.layer.2.output.dense"
FACTORS = {"A": f"{SLOT}.lora_A", "B": f"{SLOT}.lora_B", "V": "lore.basis"} | {
    "t": "mixed.spread",
    "h": "common.head",
    "V of common": "common.basis",
    "t of common": "common.spread",
    "V of meta": "meta.basis",
    "u": "meta.start",
    "t of shrinkage": "shrinkage.spread",
    "head": "head.weight",
}


@pytest.fixture(scope="module", autouse=True)
def no_plots() -> Iterator[None]:
    """Reports are drawn elsewhere (tests/deploy/test_report.py); here they would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)
        yield


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings that all runs here have in common."""
    choices = tmp_path_factory.mktemp("data") / "choices.jsonl"
    write_choices(choices, [12] * PEOPLE)
    return {
        "data.dataset": str(choices),
        "data.person_column": "user",
        "data.pairs": 4,
        "data.validation_pairs": 1,
        "data.test_pairs": 3,
        "model.base_model": str(tiny_model("bert")),
        "federation.rounds": 3,
        "federation.cohort": PEOPLE,
        "training.local_epochs": 2,
        "training.final_fit_epochs": 2,
        "privacy.secagg": False,
    }


def run(directory: Path, base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole run in `directory`; dots in keys are written as double underscores."""
    config = RunConfig().changed(base | {key.replace("__", "."): value for key, value in changes.items()})
    world = prepare(config, BENCHES)
    run_directory.create(directory, config)
    return simulate(world, directory, command="test").to_dict()


def personal_part(directory: Path, person: int) -> Any:
    """What a person's device holds at the end, float32 [d_personal]."""
    world = prepare(run_directory.read_config(directory), BENCHES)
    kept = Vault(directory / "agents" / f"{person:06d}").personal(world.run)
    return kept.vector if kept is not None else np.zeros(0, np.float32)


SHARED = {
    "B": ["B", "head"],
    "A": ["A", "head"],
    "kernel": ["A", "B", "head"],
    "svd": ["A", "B", "head"],
    "AB": ["A", "B", "head"],
    "none": [],
    "ffa": ["B", "head"],
    "lore": ["V"],
    "mixed": ["A", "B", "t", "head"],
    "common": ["h", "V of common", "t of common"],
    "finetune": ["A", "B", "h"],
    "meta": ["V of meta", "u"],
    "shrinkage": ["h", "t of shrinkage"],
}


@pytest.mark.parametrize("share", list(SHARED))
def test_a_run_of_every_share(base: dict[str, Any], tmp_path: Path, share: str) -> None:
    result = run(tmp_path / "run", base, adapter__share=share)
    assert [row["name"] for row in result["shared_tensors"]] == [FACTORS[role] for role in SHARED[share]]
    assert result["head"] == ("personal" if share == "none" else "shared")
    losses = [row["train_loss"] for row in result["rounds_log"]]
    assert losses[-1] < losses[0]
    assert len(result["per_client"]) == PEOPLE


@pytest.mark.parametrize("share", ["A", "B", "kernel", "svd", "mixed"])
@pytest.mark.parametrize("head", ["shared", "personal"])
def test_the_personal_part_starts_from_the_warm_start(
    base: dict[str, Any], tmp_path: Path, share: str, head: str
) -> None:
    """All rounds are warm-up rounds and there is no refit: what a device has at the end is its start."""
    changes = {"adapter__share": share, "adapter__head": head, "training__final_fit_epochs": 0}
    result = run(tmp_path / "run", base, federation__warmup_rounds=3, **changes)
    assert {row["phase"] for row in result["rounds_log"]} == {"warmup"}
    config = run_directory.read_config(tmp_path / "run")
    model_signature = prepare(config, BENCHES).model_cache.of(config.plan("main", PEOPLE)).model_signature
    warm, main = (model_signature.split(config.plan(phase, PEOPLE)) for phase in ("warmup", "main"))
    checkpoint = load_file(tmp_path / "run" / "checkpoints" / "round-000003.safetensors")
    starts = warm.shared.named(checkpoint["factors"])
    starts |= {f"{SLOT}.lora_K": np.eye(2, dtype=np.float32), f"{SLOT}.lora_s": np.ones(2, np.float32)}
    starts[f"{SLOT}.lora_D"] = np.zeros_like(starts[f"{SLOT}.lora_B"])  # nobody deviates yet
    for person in range(PEOPLE):
        for name, value in main.personal.named(personal_part(tmp_path / "run", person)).items():
            assert np.array_equal(value, starts[name])


@pytest.mark.parametrize("share", ["AB", "none", "ffa", "lore"])
def test_where_nothing_splits_off_there_is_no_warm_up(base: dict[str, Any], share: str) -> None:
    with pytest.raises(ConfigError, match="no split to warm up for"):
        RunConfig().changed(base | {"adapter.share": share, "federation.warmup_rounds": 1})


def test_after_the_warm_up_rounds_the_personal_parts_part(base: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path / "run", base, adapter__share="B", federation__warmup_rounds=1)
    assert [row["phase"] for row in result["rounds_log"]] == ["warmup", "main", "main"]
    one, other = (personal_part(tmp_path / "run", person) for person in range(2))
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"training__update_order": "alternating"},
        {"training__update_order": "personal-first", "training__personal_epochs": 1},
        {"training__l2_to_start": 100.0},
        {"training__optimizer": "sgd"},
        {"training__warmup_lr": 0.1, "federation__warmup_rounds": 1},
        {"federation__server_optimizer": "fedadam", "federation__server_lr": 0.01},
    ],
    ids=lambda changes: next(iter(changes)).split("__")[1],
)
def test_each_setting_changes_what_is_learnt(
    base: dict[str, Any], tmp_path: Path, usual: Any, changes: dict[str, Any]
) -> None:
    run(tmp_path / "run", base, **changes)
    assert not np.array_equal(usual, final_factors(tmp_path / "run"))


@pytest.fixture(scope="module")
def usual(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The shared factors at the end of a run with the usual settings."""
    directory = tmp_path_factory.mktemp("usual") / "run"
    run(directory, base)
    return final_factors(directory)


def final_factors(directory: Path) -> Any:
    return load_file(directory / "checkpoints" / "round-000003.safetensors")["factors"]


# --- flags ----------------------------------------------------------------------------------------


def settled(monkeypatch: pytest.MonkeyPatch, *flags: str) -> RunConfig:
    """The configuration that `penchant simulate` would run with these flags."""
    found: list[RunConfig] = []

    def stop(config: RunConfig, **_: object) -> None:
        found.append(config)
        raise ConfigError("seen")

    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", stop)
    monkeypatch.setattr("sys.argv", ["penchant", "simulate", *flags])
    with pytest.raises(SystemExit):
        main()
    return found[0]


def test_every_flag_of_the_method_reaches_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {
        "--share": ("adapter.share", "svd"),
        "--head": ("adapter.head", "shared"),
        "--warmup-rounds": ("federation.warmup_rounds", 2),
        "--alpha": ("adapter.alpha", 7.0),
        "--lr-shared": ("training.lr_shared", 0.011),
        "--lr-personal": ("training.lr_personal", 0.012),
        "--lr-head": ("training.lr_head", 0.013),
        "--warmup-lr": ("training.warmup_lr", 0.014),
        "--optimizer": ("training.optimizer", "sgd"),
        "--shared-optimizer": ("training.shared_optimizer", "sgd"),
        "--update-order": ("training.update_order", "alternating"),
        "--personal-epochs": ("training.personal_epochs", 3),
        "--batch-size": ("training.batch_size", 5),
        "--l2-to-start": ("training.l2_to_start", 0.5),
        "--final-fit-epochs": ("training.final_fit_epochs", 4),
        "--final-fit-lr": ("training.final_fit_lr", 0.015),
        "--share-base": ("adapter.share_base", ["head", "norm"]),
        "--dtype": ("model.dtype", "float32"),
        "--quantize": ("model.quantize", "4bit"),
        "--server-optimizer": ("federation.server_optimizer", "fedadam"),
        "--server-lr": ("federation.server_lr", 0.016),
    }
    given = []
    for flag, (_, value) in flags.items():
        given += [flag, ",".join(value) if isinstance(value, list) else str(value)]
    config = settled(monkeypatch, *given, "--out", str(tmp_path / "run"))
    table = tomllib.loads(config.to_toml())
    for key, value in flags.values():
        section, name = key.split(".")
        assert table[section][name] == value


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--share", "C"],
            "--share is 'C'; choose one of B, A, kernel, svd, AB, none, ffa, lore, mixed, common",
        ),
        (["--update-order", "shared-first"], "choose one of joint, personal-first, alternating"),
        (["--optimizer", "adam"], "choose one of adamw, sgd"),
        (["--share", "none", "--head", "shared"], "drop one"),
        (["--share", "ffa", "--warmup-rounds", "1"], "no split to warm up for"),
    ],
)
def test_a_wrong_choice_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    monkeypatch.setattr("sys.argv", ["penchant", "simulate", *flags])
    with pytest.raises(SystemExit) as leave:
        main()
    error = capsys.readouterr().err
    assert leave.value.code == 2
    assert line in error
    assert error.count("\n") == 1
