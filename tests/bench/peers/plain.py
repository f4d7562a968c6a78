"""The reward model and the federated algorithm as one writes them with torch and peft: what peers share.

The base model is read whole for every step, as peft does; nothing is kept of its frozen blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from bench.peers.task import HEAD, A, B, Server, Task, Texts
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

Parts = dict[str, Tensor]  # A, B and head, or some of them
Batch = dict[str, Tensor]  # input_ids, attention_mask: first all chosen texts, then all rejected ones


class PlainModel:
    """A base model with LoRA in one module, the mean over tokens, and a linear head."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._tokenizer: Any = AutoTokenizer.from_pretrained(task.base)
        self._tokenizer.truncation_side = "right"
        base = AutoModel.from_pretrained(task.base, dtype=torch.float32, add_pooling_layer=False)
        settings = LoraConfig(
            r=task.rank, lora_alpha=task.alpha, lora_dropout=0.0, target_modules=[task.module]
        )
        self._model: Any = get_peft_model(base, settings).eval()  # no dropout
        adapted = self._model.base_model.model.get_submodule(task.module)
        self._head = torch.nn.Linear(base.config.hidden_size, 1, bias=False)
        weight: Any = self._head.weight  # a Parameter, which torch's stubs call a Tensor
        self.parameters: dict[str, torch.nn.Parameter] = {
            A: adapted.lora_A["default"].weight,
            B: adapted.lora_B["default"].weight,
            HEAD: weight,
        }

    @property
    def module(self) -> torch.nn.Module:
        """Base model, factors and head as one torch module."""
        return torch.nn.ModuleList([self._model, self._head])

    def tokenised(self, pairs: Texts) -> Batch:
        """Pairs as one batch, padded to its longest text."""
        texts = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
        found = self._tokenizer(
            texts, truncation=True, max_length=self._task.max_tokens, padding=True, return_tensors="pt"
        )
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def token_ids(self, pairs: Texts) -> list[tuple[list[int], list[int]]]:
        """Token ids of the chosen and the rejected text of each pair."""

        def ids(texts: list[str]) -> list[list[int]]:
            found = self._tokenizer(texts, truncation=True, max_length=self._task.max_tokens)
            return list(found["input_ids"])

        return list(zip(ids([chosen for chosen, _ in pairs]), ids([r for _, r in pairs]), strict=True))

    def rewards(self, batch: Batch) -> Tensor:
        """A reward for each text, [texts]."""
        states = self._model(**batch).last_hidden_state  # [texts, tokens, d]
        mask = batch["attention_mask"].unsqueeze(2)
        embeddings = (states * mask).sum(1) / mask.sum(1)
        return self._head(F.normalize(embeddings, dim=1) * self._task.normalize).squeeze(1)

    def margins(self, batch: Batch) -> Tensor:
        """Rewards of the chosen less those of the rejected texts, [pairs]."""
        chosen, rejected = self.rewards(batch).chunk(2)
        return chosen - rejected

    def loss(self, batch: Batch) -> Tensor:
        """Bradley and Terry's, the mean over pairs."""
        return -F.logsigmoid(self.margins(batch)).mean()

    def load(self, parts: Mapping[str, Tensor]) -> None:
        """Put some of the parts in place."""
        with torch.no_grad():
            for name, tensor in parts.items():
                self.parameters[name].copy_(tensor)

    def parts(self) -> Parts:
        """A, B and head, copied."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def optimizer(self, warm: bool = False) -> torch.optim.Optimizer:
        """A fresh AdamW with a rate for each part."""
        rates = self._task.warm_rates if warm else self._task.rates
        groups = [{"params": [parameter], "lr": rates[name]} for name, parameter in self.parameters.items()]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    def train(self, batch: Batch, warm: bool) -> None:
        """One round's training of one person."""
        optimizer = self.optimizer(warm)
        for _ in range(self._task.epochs):
            optimizer.zero_grad()
            self.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def accuracy(self, batch: Batch) -> float:
        """The part of the pairs that are ranked right."""
        with torch.no_grad():
            return float((self.margins(batch) > 0).double().mean())


class FedAdam:
    """The server's step; its state begins anew where the shared parts become others."""

    def __init__(self, settings: Server) -> None:
        self._settings = settings
        self._first: Parts = {}
        self._second: Parts = {}

    def step(self, shared: Parts, mean: Parts) -> Parts:
        """The shared parts after a round whose mean update, weighted by pairs, is `mean`."""
        of = self._settings
        if set(self._first) != set(mean):
            self._first = {name: torch.zeros_like(update) for name, update in mean.items()}
            self._second = {name: torch.full_like(update, of.epsilon**2) for name, update in mean.items()}
        moved = {}
        for name, update in mean.items():
            first = self._first[name].lerp(update, 1 - of.beta1)
            second = self._second[name].lerp(update.square(), 1 - of.beta2)
            self._first[name], self._second[name] = first, second
            moved[name] = shared[name] + of.rate * first / (second.sqrt() + of.epsilon)
        return moved


def shared_names(warm: bool) -> tuple[str, ...]:
    """Which parts are shared in a round."""
    return (A, B, HEAD) if warm else (A,)


def some(parts: Mapping[str, Tensor], names: Sequence[str]) -> Parts:
    """Those of the parts that are named."""
    return {name: parts[name] for name in names}


def start_of(task: Task) -> Parts:
    """The common start."""
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in task.start.items()}


def mean_of(updates: Sequence[Mapping[str, Tensor]], weights: Sequence[int]) -> Parts:
    """The mean of updates, weighted."""
    total = sum(weights)
    return {
        name: sum((w / total * u[name] for u, w in zip(updates, weights, strict=True)), torch.zeros(()))
        for name in updates[0]
    }
