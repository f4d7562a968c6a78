"""The same run on Flower's Ray simulation, through `flwr run`: the same bits as on the in-process grid."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tastes import write_choices

from penchant.common.config import RunConfig
from penchant.common.errors import UsageError
from penchant.deploy.simulation import world

PROGRAM = [sys.executable, "-c", "from penchant.deploy.cli.main import main; main()", "simulate"]


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, timeout=400, env=os.environ | {"COLUMNS": "120"}
    )


@pytest.mark.slow
def test_ray_and_the_in_process_grid_give_the_same_bits(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    write_choices(tmp_path / "choices.jsonl", [30] * 4)
    settings = {
        "data.dataset": str(tmp_path / "choices.jsonl"),
        "data.person_column": "user",
        "data.pairs": 6,
        "data.test_pairs": 4,
        "model.base_model": str(tiny_model("bert")),
        "model.max_tokens": 16,
        "federation.rounds": 1,
        "federation.cohort": 3,
        "privacy.min_honest": 1,
        "privacy.max_colluders": 0,
    }
    for grid in ("ray", "local"):
        config = RunConfig().changed(settings | {"grid": grid})
        (tmp_path / f"{grid}.toml").write_text(config.to_toml())
        done = simulate("--config", str(tmp_path / f"{grid}.toml"), "--out", str(tmp_path / grid))
        assert done.returncode == 0, done.stderr
    left = {
        grid: {p.name: p.read_bytes() for p in (tmp_path / grid / "checkpoints").glob("*.safetensors")}
        for grid in ("ray", "local")
    }
    assert len(left["ray"]) == 2
    assert left["ray"] == left["local"]
    assert not list((tmp_path / "ray" / "agents").glob("*/attempt.sealed"))  # erased after the round


def test_without_ray_it_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"penchant\[ray\]"):
        world.require_ray()
