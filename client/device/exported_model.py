"""Reading back what `client/device/export.py` wrote: the same model, over the same base.

The directory may come from somebody else: what does not fit the base model is refused, and no file is waited
for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from penchant.client.device.export import ADAPTER_FILE, HEAD_FILE, SETTINGS_FILE, writer_prefix
from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import BaseModelError, ConfigError, DataError
from penchant.common.foreign_files import read_bytes, read_json
from penchant.common.model.factors import MergedWeights
from penchant.common.model.reward import RewardModel, load_reward_model
from penchant.common.settings import build_section

__all__ = ["load_exported"]

_ADAPTER = "base_model.model."
_BYTES_MOST = 1 << 31  # of a file of tensors

Tensors = Mapping[str, torch.Tensor]


def load_exported(directory: Path) -> MergedModel:
    """The model that an export holds.

    Raises:
        DataError: the directory does not hold one. BaseModelError: its base model is another one now.
    """
    try:
        table: dict[str, Any] = read_json(directory / SETTINGS_FILE, DataError)
        settings = build_section(ModelConfig, table["model"], "model")
        adapter = build_section(AdapterConfig, table["adapter"], "adapter")
        conversations = table.get("conversations", True)  # before 0.3 it was not said
        if not isinstance(conversations, bool):
            raise TypeError(f"conversations is {conversations!r}, and neither true nor false")
        head = {"weight": _tensors(directory / HEAD_FILE)["weight"]} if settings.rule.has_head else {}
        adapted = _tensors(directory / ADAPTER_FILE) if adapter.rule.adapts_modules else {}
    except (OSError, ValueError, KeyError, TypeError, ConfigError, SafetensorError) as error:
        raise DataError(f"{directory} does not hold a model that penchant exported: {error}") from None
    model = load_reward_model(settings, adapter)
    if model.digest != table.get("digest"):
        raise BaseModelError(
            f"{settings.base_model} is not the base model that {directory} was exported with; "
            "load the same weights, or train again"
        )
    _check(directory, adapted | head, _shapes(model, adapter.rank))
    weights = _weights(adapted, head.get("weight", torch.empty(0)), model)
    return MergedModel(model, weights, settings, adapter, conversations)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return load(read_bytes(path, DataError, _BYTES_MOST))


def _names(model: RewardModel, module: str) -> tuple[str, str]:
    """What peft calls the two factors of a module."""
    path = f"{_ADAPTER}{writer_prefix(model.writer)}{module}"
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight"


def _shapes(model: RewardModel, rank: int) -> dict[str, tuple[int, ...]]:
    """The tensors that an export of this model has, and their shapes."""
    found: dict[str, tuple[int, ...]] = {"weight": (1, model.embedding)} if model.objective.has_head else {}
    for module in model.adapted_modules:
        a, b = _names(model, module.name)
        found |= {a: (rank, module.in_features), b: (module.out_features, rank)}
    return found


def _check(directory: Path, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """DataError unless these are the tensors, of these shapes, and finite numbers."""
    for name in sorted(shapes.keys() ^ tensors.keys()):
        said = "lacks" if name in shapes else "has"
        raise DataError(f"{directory} {said} {name!r}, which is not what its settings say; export it again")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise DataError(
                f"{directory}: {name!r} has the shape {tuple(tensors[name].shape)}, and its settings say "
                f"{shape}; export it again"
            )
        if not tensors[name].is_floating_point() or not tensors[name].isfinite().all():
            raise DataError(f"{directory}: not all of {name!r} are finite numbers; export it again")


def _weights(tensors: Tensors, head: torch.Tensor, model: RewardModel) -> MergedWeights:
    """The factors of peft's file, by module."""
    adapters = {}
    for module in model.adapted_modules:
        a, b = (tensors[name].float().to(model.device) for name in _names(model, module.name))
        adapters[module.name] = (a, b)
    return MergedWeights(adapters, head.float().to(model.device))
