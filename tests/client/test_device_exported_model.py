"""What was exported is read back; a directory that somebody else made is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from penchant.client.device.export import ADAPTER_FILE, HEAD_FILE, SETTINGS_FILE, Export, export_peft
from penchant.client.device.exported_model import load_exported
from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import DataError
from penchant.common.model.factors import Split
from penchant.common.model.reward import load_reward_model

TEXTS = [("the motion ", "on the bill"), ("", "a vote to table the tax")]


@pytest.fixture
def made(tiny_model: Callable[[str], Path], tmp_path: Path) -> tuple[Path, MergedModel]:
    """A directory with an export, and what was exported."""
    settings = ModelConfig(str(tiny_model("bert")), max_tokens=12)
    adapter = AdapterConfig(share="B", rank=2, alpha=3.0, target_modules=("output.dense",), layers=(-1,))
    model = load_reward_model(settings, adapter)
    split = Split.of(model.adapted_modules, model.embedding, adapter, seed=3)
    rng = np.random.default_rng(5)
    shared, personal = (
        rng.normal(size=layout.size).astype(np.float32) for layout in (split.shared, split.personal)
    )
    merged = MergedModel(model, split.merged(shared, personal), settings, adapter)
    export_peft(Export.of(merged), tmp_path / "out")
    return tmp_path / "out", merged


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Put other tensors in the place of those whose names end so; None: leave them out."""
    found = load_file(path)
    for ending, tensor in tensors.items():
        name = next(name for name in found if name.removesuffix(".weight").endswith(ending))
        found.pop(name)
        if tensor is not None:
            found[name] = tensor
    path.unlink()
    save_file(found, path)


def test_an_export_read_back_scores_the_same(made: tuple[Path, MergedModel]) -> None:
    directory, merged = made
    assert load_exported(directory).scores(TEXTS) == pytest.approx(merged.scores(TEXTS), rel=1e-5)


@pytest.mark.parametrize(
    ("file", "ending", "tensor", "said"),
    [
        (ADAPTER_FILE, "lora_B", None, "lacks 'base_model"),
        (ADAPTER_FILE, "lora_A", torch.zeros(3, 5), "has the shape \\(3, 5\\)"),
        (ADAPTER_FILE, "lora_A", torch.zeros(2), "has the shape \\(2,\\)"),
        (HEAD_FILE, "weight", torch.zeros(1, 7), "has the shape \\(1, 7\\)"),
        (HEAD_FILE, "weight", None, "does not hold a model"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused(
    made: tuple[Path, MergedModel], file: str, ending: str, tensor: torch.Tensor | None, said: str
) -> None:
    change(made[0] / file, **{ending: tensor})
    with pytest.raises(DataError, match=said):
        load_exported(made[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(made: tuple[Path, MergedModel], value: float) -> None:
    head = load_file(made[0] / HEAD_FILE)["weight"]
    head[0, 1] = value
    change(made[0] / HEAD_FILE, weight=head)
    with pytest.raises(DataError, match="not all of 'weight' are finite"):
        load_exported(made[0])


def test_a_module_that_the_settings_do_not_name_is_refused(made: tuple[Path, MergedModel]) -> None:
    """The settings name another block, whose factors would be those of a model that knows nobody."""
    path = made[0] / SETTINGS_FILE
    table = json.loads(path.read_text())
    table["adapter"]["layers"] = [-2]
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match="not what its settings say"):
        load_exported(made[0])


def test_the_form_that_conversations_are_asked_in_is_kept(
    made: tuple[Path, MergedModel], tmp_path: Path
) -> None:
    directory, merged = made
    assert load_exported(directory).conversations
    export_peft(Export.of(replace(merged, conversations=False)), tmp_path / "plain")
    assert not load_exported(tmp_path / "plain").conversations
    path = directory / SETTINGS_FILE
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"conversations": "no"}))
    with pytest.raises(DataError, match="conversations is 'no', and neither true nor false"):
        load_exported(directory)
    del table["conversations"]  # as before 0.3
    path.write_text(json.dumps(table))
    assert load_exported(directory).conversations


@pytest.mark.parametrize("file", [HEAD_FILE, ADAPTER_FILE])
def test_nothing_but_a_regular_file_is_waited_for(made: tuple[Path, MergedModel], file: str) -> None:
    (made[0] / file).unlink()
    os.mkfifo(made[0] / file)
    with pytest.raises(DataError, match="not a regular file"):
        load_exported(made[0])
