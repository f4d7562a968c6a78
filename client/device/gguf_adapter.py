"""A policy's factors as one GGUF file, which llama.cpp puts over the base model's own GGUF file.

Tensors are named, and their rows ordered, as llama.cpp's converters do it for a whole model: what is added to
a weight must stand where that weight stands. So only families are written whose order is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from penchant.client.learning.merged_model import MergedModel
from penchant.common.errors import BaseModelError, UsageError

__all__ = ["GGUF_FAMILIES", "GGUF_FILE", "GgufAdapter"]

GGUF_FILE = "adapter.gguf"
GGUF_FAMILIES: Mapping[str, str] = {
    "gemma": "gemma",
    "gemma3_text": "gemma3",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""What transformers calls a family -> what llama.cpp calls it."""

_PAIRED = "llama"  # its rotary embedding turns neighbours, and not the halves of a head


@dataclass(frozen=True)
class GgufAdapter:
    """What an adapter's file holds.

    architecture: llama.cpp's name of the base model's family.
    alpha: as of LoRA; llama.cpp divides it by the rank.
    tensors: float32, by their names in the file.
    """

    architecture: str
    alpha: float
    tensors: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)

    @classmethod
    def of(cls, merged: MergedModel) -> Self:
        """The adapter of a policy.

        Raises:
            UsageError: the model ranks and doesn't write, or the package gguf is missing.
            BaseModelError: of this family, or of these modules, it is not known where llama.cpp keeps them.
        """
        if merged.settings.rule.has_head:
            raise UsageError(
                "a GGUF adapter is for policies, which write; this model ranks, and llama.cpp has no place "
                "for its score head: leave --gguf out"
            )
        place = _GgufPlace.of(merged)
        tensors: dict[str, npt.NDArray[np.float32]] = {}
        for module, (a, b) in merged.weights.adapters.items():
            name = place.name(module)
            tensors[f"{name}.lora_a"] = _plain(a)
            tensors[f"{name}.lora_b"] = place.rows(module, _plain(b))
        return cls(place.architecture, merged.adapter.alpha, tensors)

    def write(self, path: Path) -> None:
        """Write the file, over what is there."""
        gguf = _package()
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, self.alpha)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


# --- inner parts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GgufPlace:
    """Where llama.cpp keeps the weights of one base model.

    base: as its owner calls it, for what is refused.
    writer: as of `Backbone`.
    settings: transformers' configuration of it.
    names: what gguf calls its tensors.
    """

    base: str
    writer: str
    settings: Any
    architecture: str
    names: Any

    @classmethod
    def of(cls, merged: MergedModel) -> Self:
        gguf = _package()
        base, settings = merged.settings.base_model, merged.model.configuration
        architecture = GGUF_FAMILIES.get(settings.model_type, "")
        if not architecture:
            raise BaseModelError(
                f'base model "{base}" is of the family {settings.model_type}, and a GGUF adapter is written '
                f"for {', '.join(GGUF_FAMILIES)} alone: leave --gguf out"
            )
        kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
        names = gguf.get_tensor_name_map(kind, settings.num_hidden_layers)
        return cls(base, merged.model.writer, settings, architecture, names)

    def name(self, module: str) -> str:
        """Of a module's weight in the file. BaseModelError where llama.cpp has none of it."""
        found = self.names.get_name(f"{self.writer}.{module}.weight", try_suffixes=(".weight",))
        if found is None:
            raise BaseModelError(
                f'base model "{self.base}": llama.cpp knows no {module} in a model of the family '
                f"{self.settings.model_type}: leave --gguf out"
            )
        return str(found)

    def rows(self, module: str, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A module's rows in the order of the file: for Llama, within each head of queries and keys, a row of
        the first half, then the one of the second half that is turned with it."""
        heads = {"q_proj": self.settings.num_attention_heads, "k_proj": self.settings.num_key_value_heads}
        kind = module.rpartition(".")[2]
        if self.architecture != _PAIRED or kind not in heads:
            return rows
        halves = rows.reshape(heads[kind], 2, -1, rows.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _package() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as missing:
        raise UsageError(f"a GGUF adapter needs {missing.name}; install penchant[gguf]") from None
    return gguf


def _plain(tensor: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = tensor.detach().float().cpu().contiguous().numpy()
    return found
