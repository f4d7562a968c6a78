"""The loop that anyone would write with peft: TRL's RewardTrainer without its logging.

Both texts of each pair are padded to the longest of the batch and read whole, the reward is a linear head on
the last token's state, the loss -log σ(chosen - rejected), the optimiser AdamW. What makes it fair beside
penchant: the same model, tokens, factors, head, α/r and learning rate; no dropout; no cache of keys and
values; padding only to the longest text of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class PeftLoop:
    """A backbone (transformers' AutoModel) with LoRA on `targets` of all blocks and a score head.

    autocast: the number format of products, as TRL has it with `bf16=True`; None for the model's.
    """

    def __init__(
        self,
        backbone: Any,
        targets: Sequence[str],
        rank: int,
        alpha: float,
        rate: float,
        pad_id: int,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(targets))
        self.model: Any = get_peft_model(backbone, settings)
        device = next(backbone.parameters()).device
        self.head = torch.nn.Linear(backbone.config.hidden_size, 1, bias=False, device=device)
        self._pad_id = pad_id
        self._device = device
        self._autocast = autocast
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW([*trained, *self.head.parameters()], lr=rate, weight_decay=0.0)

    def begin_with(self, factors: Mapping[str, tuple[Tensor, Tensor]], head: Tensor) -> None:
        """Take (A, B) by module name, and the head (1, d)."""
        with torch.no_grad():
            self.head.weight.copy_(head)
            for name, (a, b) in factors.items():
                module = self.model.base_model.model.get_submodule(name)
                module.lora_A["default"].weight.copy_(a)
                module.lora_B["default"].weight.copy_(b)

    def loss(self, chosen: Sequence[Tensor], rejected: Sequence[Tensor]) -> Tensor:
        """Mean loss over pairs of texts (token ids)."""
        texts = [*chosen, *rejected]
        ids = pad_sequence(list(texts), batch_first=True, padding_value=self._pad_id)
        lengths = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        ids, mask, lengths = ids.to(self._device), mask.to(self._device), lengths.to(self._device)
        with self._casting():
            states = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        rewards = self.head(
            states[torch.arange(len(texts), device=self._device), lengths - 1].float()
        ).squeeze(1)
        return -F.logsigmoid(rewards[: len(chosen)] - rewards[len(chosen) :]).mean()

    def step(self, chosen: Sequence[Tensor], rejected: Sequence[Tensor]) -> float:
        """One step on some pairs; -> the loss before it."""
        loss = self.loss(chosen, rejected)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._autocast)
