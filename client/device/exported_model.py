"""Reading back what `client/device/export.py` wrote: the same model, over the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from penchant.client.device.export import ADAPTER_FILE, HEAD_FILE, SETTINGS_FILE
from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import BaseModelError, ConfigError, DataError
from penchant.common.foreign_files import read_json
from penchant.common.model.factors import MergedWeights
from penchant.common.model.reward import load_reward_model
from penchant.common.settings import build_section

__all__ = ["load_exported"]

_ADAPTER = "base_model.model."


def load_exported(directory: Path) -> MergedModel:
    """The model that an export holds.

    Raises:
        DataError: the directory does not hold one. BaseModelError: its base model is another one now.
    """
    try:
        table: dict[str, Any] = read_json(directory / SETTINGS_FILE, DataError)
        settings = build_section(ModelConfig, table["model"], "model")
        adapter = build_section(AdapterConfig, table["adapter"], "adapter")
        head = load_file(directory / HEAD_FILE)["weight"]
        path = directory / ADAPTER_FILE
        tensors = load_file(path) if path.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError, ConfigError, SafetensorError) as error:
        raise DataError(f"{directory} does not hold a model that penchant exported: {error}") from None
    model = load_reward_model(settings, adapter)
    if model.digest != table.get("digest"):
        raise BaseModelError(
            f"{settings.base_model} is not the base model that {directory} was exported with; "
            "load the same weights, or train again"
        )
    return MergedModel(model, _weights(tensors, head, model.device), settings, adapter)


def _weights(tensors: dict[str, torch.Tensor], head: torch.Tensor, device: torch.device) -> MergedWeights:
    """The factors of peft's file, by module."""
    ending = ".lora_A.weight"
    adapted = [name.removeprefix(_ADAPTER).removesuffix(ending) for name in tensors if name.endswith(ending)]
    adapters = {
        module: (
            tensors[f"{_ADAPTER}{module}.lora_A.weight"].to(device),
            tensors[f"{_ADAPTER}{module}.lora_B.weight"].to(device),
        )
        for module in adapted
    }
    return MergedWeights(adapters, head.to(device))
