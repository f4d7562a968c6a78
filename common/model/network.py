"""The backbone with its adapters and the score head: from tokens to one score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penchant.common.errors import BaseModelError
from penchant.common.model.factors import AdaptedModule, MergedWeights
from penchant.common.model.log_probability import Unembedding


@dataclass(frozen=True)
class AdaptedNetwork:
    """A backbone with LoRA in place, and how its states become one embedding.

    `module(input_ids, attention_mask)` [b, L] -> last_hidden_state [b, L, d]; pooling: "mean" over
    the tokens, "first" or "last". base: paths, in the backbone without LoRA, of parameters trained too.
    causal: later tokens don't change earlier states; max_tokens: of the longest text. unembedding: where
    responses are scored by their log-probabilities, and not texts by one embedding. beside: after how many
    blocks states are read as well, side by side with the last ones; 0 for none.
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
    beside: int = 0

    @property
    def asked(self) -> dict[str, Any]:
        """What the module is called with beside its inputs, so that it gives what `states` reads."""
        return {"output_hidden_states": True} if self.beside else {}

    def states(self, output: Any) -> Tensor:
        """The states of a call that an embedding is made of: [b, L, d], or [b, L, 2 d] with others beside
        the last ones, which come second."""
        last: Tensor = output.last_hidden_state
        if not self.beside:
            return last
        between = getattr(output, "hidden_states", None)
        if between is None:
            raise BaseModelError(
                f"{type(self.module).__name__} gives no states between its blocks; set model.beside to 0"
            )
        return torch.cat([between[self.beside], last], dim=-1)

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
