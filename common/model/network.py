"""The backbone with its adapters and the score head: from tokens to one score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penchant.common.model.factors import AdaptedModule, MergedWeights
from penchant.common.model.log_probability import Unembedding


@dataclass(frozen=True)
class AdaptedNetwork:
    """A backbone with LoRA in place, and how its states become one embedding.

    `module(input_ids, attention_mask)` [b, L] -> last_hidden_state [b, L, d]; pooling: "mean" over
    the tokens, "first" or "last". base: paths, in the backbone without LoRA, of parameters trained too.
    causal: later tokens don't change earlier states; max_tokens: of the longest text. unembedding: where
    responses are scored by their log-probabilities, and not texts by one embedding.
    """

    module: nn.Module
    adapted_modules: tuple[AdaptedModule, ...]
    pooling: str
    pad_id: int
    device: torch.device
    causal: bool
    max_tokens: int
    base: tuple[str, ...] = ()
    unembedding: Unembedding | None = None

    def overrides(self, effective: MergedWeights) -> dict[str, Tensor]:
        """The parameters to swap in for a functional call of the module."""
        swapped = {}
        for name, (a, b) in effective.adapters.items():
            swapped[f"{name}.lora_A.{ADAPTER}.weight"] = a
            swapped[f"{name}.lora_B.{ADAPTER}.weight"] = b
        for name, change in effective.base.items():
            frozen = self.frozen(name)
            swapped[self._placed(name)] = (frozen + change).to(frozen.dtype)
        return swapped

    def frozen(self, name: str) -> Tensor:
        """A parameter as the base model has it; `name`: its path in the plain backbone."""
        return self.module.get_parameter(self._placed(name))

    def _placed(self, name: str) -> str:
        """Where a parameter of the plain backbone is now that LoRA is in place."""
        module, _, parameter = name.rpartition(".")
        wrapped = any(adapted.name == module for adapted in self.adapted_modules)
        return f"{module}.base_layer.{parameter}" if wrapped else name

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """[b, L, d] states under a right-padded mask [b, L] -> [b, d] float32."""
        states = states.float()
        lengths = mask.sum(1)
        if self.pooling == "first":
            return states[:, 0]
        if self.pooling == "last":
            return states[torch.arange(len(states), device=states.device), lengths - 1]
        return (states * mask.unsqueeze(-1)).sum(1) / lengths.unsqueeze(-1)


ADAPTER = "default"  # peft's name of the one adapter
