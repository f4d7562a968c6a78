"""The reward model: backbone with LoRA, pooling, score head, and the Bradley-Terry loss.

One `RewardModel` serves any number of people: it holds the frozen backbone and what was computed of it,
and takes everything trainable as an argument (`MergedWeights`). It is safe to use from several threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import ConfigError, DataError
from penchant.common.model.activation_cache import CACHE_BYTES, PrefixCache
from penchant.common.model.backbone import Backbone, load_backbone, published
from penchant.common.model.batches import Padded
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.modules import find_adapted, find_base, targets_of, weight_norms
from penchant.common.model.network import ADAPTER, AdaptedNetwork
from penchant.common.model.tails import Activations, FullTail, Tail, check_base, choose_tail

_BEGINNING = "A motion to table the amendment, offered "
_PROBES = (
    "Yea or nay?",
    f"{_BEGINNING}after the vote was reconsidered.",
    f"{_BEGINNING}on the budget",
    f"{_BEGINNING}for the judge, to vote on cloture",
)  # some begin alike, as the responses to one prompt do


class Pair(Protocol):
    """A preference: what `penchant.common.data.preferences.Preference` offers."""

    @property
    def prompt(self) -> str: ...
    @property
    def chosen(self) -> str: ...
    @property
    def rejected(self) -> str: ...


@dataclass(frozen=True)
class Texts:
    """n distinct texts, ready to be embedded at every step without work per text in Python."""

    packed: Any
    count: int


@dataclass(frozen=True)
class PreparedPairs:
    """Preference pairs over distinct texts: pair k prefers text chosen[k] to text rejected[k].

    It holds the texts' activations in one piece (for MiniLM some 10 kB a token): make it when it is
    needed and let it go, the model keeps the activations themselves.
    """

    texts: Texts
    chosen: Tensor  # [pairs] int64
    rejected: Tensor  # [pairs] int64
    parts: tuple[Activations, ...]  # by text, to build subsets from

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class Reading:
    """How many of so many distinct texts are cut because they are too long, and how many of so many pairs the
    model can't tell apart: it reads the same tokens of both."""

    texts: int
    cut: int
    pairs: int
    alike: int


class RewardModel:
    """r(prompt, response) = head · embedding, for any person's factors.

    Args:
        backbone: a loaded base model; LoRA is put into it, so one backbone serves one RewardModel.
        model: pooling and normalisation.
        adapter: which modules are adapted, rank and α.
        full: run the whole network at every step (the slow reference).

    Raises:
        BaseModelError: there are no such modules.
        ConfigError: a part of the base is to be trained that the embedding does not depend on, or a
            causal model is to be read at its first token.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: ModelConfig,
        adapter: AdapterConfig,
        *,
        full: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.digest = backbone.digest
        self.embedding = backbone.hidden
        self.device = backbone.device
        self.targets = targets_of(backbone.model, adapter) if adapter.rule.adapts_modules else ()
        self.adapted_modules = find_adapted(backbone.model, adapter) if adapter.rule.adapts_modules else ()
        self.base = find_base(backbone.model, adapter) if self.adapted_modules else ()
        self.weight_norms = weight_norms(backbone.model, self.adapted_modules, self.base)
        self._adapter = adapter
        self._backbone = backbone
        self._normalize = model.normalize
        self._truncation = model.truncation
        self.pooling = _pooling(model.pooling, backbone.causal)
        self.max_tokens = backbone.max_tokens
        self.published = published(backbone)
        self.part, self.classifier = backbone.part, backbone.classifier
        self.padding, self.dtype = backbone.padding, backbone.dtype
        self._tokenizing = threading.Lock()  # fast tokenizers change themselves while they work
        if self.adapted_modules:
            _place_lora(backbone, [module.name for module in self.adapted_modules], adapter)
        network = AdaptedNetwork(
            module=backbone.model,
            adapted_modules=self.adapted_modules,
            pooling=self.pooling,
            pad_id=backbone.pad_id,
            device=backbone.device,
            causal=backbone.causal,
            max_tokens=backbone.max_tokens,
            base=tuple(tensor.name for tensor in self.base),
        )
        probes = [self._tokens(text) for text in _PROBES]
        check_base(network, probes)
        self.tail: Tail = FullTail(network, Padded(network)) if full else choose_tail(network, probes)
        self.cache = PrefixCache(self._tokens, self.tail, cache_bytes)

    def split(self, *, warmup: bool = False, seed: int = 0) -> Split:
        """The split of this model's tensors that its configuration asks for."""
        return Split.of(
            self.adapted_modules, self.embedding, self._adapter, base=self.base, warmup=warmup, seed=seed
        )

    # --- preparing --------------------------------------------------------------------------------

    def warm(self, pairs: Iterable[Pair], threads: int = 1) -> None:
        """Compute the frozen part for all texts of some pairs ahead, about twice as fast as one by one.

        Call it at the start with all pairs that a run will use: see `PrefixCache.warm`.
        """
        self.cache.warm(
            (joined(p.prompt, response) for p in pairs for response in (p.chosen, p.rejected)), threads
        )

    def prepare(self, pairs: Sequence[Pair]) -> PreparedPairs:
        """Encode each distinct text of some pairs once; pairs become indices into the texts.

        Raises:
            DataError: there are no pairs.
        """
        if not pairs:
            raise DataError("there are no preference pairs; record some choices first")
        places: dict[str, int] = {}
        chosen = [places.setdefault(joined(p.prompt, p.chosen), len(places)) for p in pairs]
        rejected = [places.setdefault(joined(p.prompt, p.rejected), len(places)) for p in pairs]
        parts = tuple(self.cache.get(list(places)))
        return PreparedPairs(self._pack(parts), self._index(chosen), self._index(rejected), parts)

    def prepare_texts(self, texts: Sequence[tuple[str, str]]) -> Texts:
        """Encode (prompt, response) texts, in this order."""
        return self._pack(self.cache.get([joined(prompt, response) for prompt, response in texts]))

    def subset(self, prepared: PreparedPairs, rows: Sequence[int]) -> PreparedPairs:
        """Some of the pairs, with only their texts."""
        where = torch.tensor(rows, dtype=torch.long, device=self.device)
        chosen, rejected = prepared.chosen[where].tolist(), prepared.rejected[where].tolist()
        places: dict[int, int] = {}
        for text in (*chosen, *rejected):
            places.setdefault(text, len(places))
        parts = tuple(prepared.parts[text] for text in places)
        chosen, rejected = [places[t] for t in chosen], [places[t] for t in rejected]
        return PreparedPairs(self._pack(parts), self._index(chosen), self._index(rejected), parts)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has; of a longer one than `max_tokens` the model reads that many."""
        return [len(ids) for ids in self._whole(texts)] if texts else []

    def reading(self, pairs: Sequence[Pair], others: Iterable[str] = ()) -> Reading:
        """What of some pairs' texts, and of others, the model reads."""
        paired = (joined(p.prompt, r) for p in pairs for r in (p.chosen, p.rejected))
        texts = list(dict.fromkeys([*paired, *others]))
        whole = dict(zip(texts, self._whole(texts), strict=True)) if texts else {}
        cut = {text for text, ids in whole.items() if len(ids) > self.max_tokens}
        read = whole | {text: self._tokens(text).tolist() for text in cut}
        alike = sum(read[joined(p.prompt, p.chosen)] == read[joined(p.prompt, p.rejected)] for p in pairs)
        return Reading(len(texts), len(cut), len(pairs), alike)

    # --- scoring ----------------------------------------------------------------------------------

    def scores(self, texts: Texts, effective: MergedWeights) -> Tensor:
        """Rewards [n] of n texts; differentiable in the factors and the head."""
        embeddings = self.tail.forward(texts.packed, effective)
        if self._normalize:
            embeddings = F.normalize(embeddings, dim=1) * self._normalize
        return embeddings @ effective.head[0]

    def margins(self, prepared: PreparedPairs, effective: MergedWeights) -> Tensor:
        """Reward of the chosen minus that of the rejected response, [pairs]."""
        scores = self.scores(prepared.texts, effective)
        return scores[prepared.chosen] - scores[prepared.rejected]

    # --- inner parts ------------------------------------------------------------------------------

    def _pack(self, parts: Sequence[Activations]) -> Texts:
        return Texts(self.tail.collate(parts), len(parts))

    def _index(self, places: Sequence[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.long, device=self.device)

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts, however long."""
        with self._tokenizing:
            encoded = self._backbone.tokenizer(list(texts), truncation=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _tokens(self, text: str) -> Tensor:
        """Token ids [L] of a text, 1 ≤ L ≤ max_tokens; a longer text is cut at the configured side."""
        with self._tokenizing:
            tokenizer = self._backbone.tokenizer
            tokenizer.truncation_side = self._truncation
            encoded = tokenizer(text, truncation=True, max_length=self._backbone.max_tokens)
        ids: list[int] = encoded["input_ids"] or [self._backbone.pad_id]  # some have no token for ""
        return torch.tensor(ids, dtype=torch.long)


def load_reward_model(
    model: ModelConfig, adapter: AdapterConfig, *, device: str = "auto", cache_bytes: int = CACHE_BYTES
) -> RewardModel:
    """Load the base model and put the adapters in place. BaseModelError as `load_backbone`.

    cache_bytes: of the frozen part's output, how much is kept for texts that come again.
    """
    return RewardModel(load_backbone(model, device=device), model, adapter, cache_bytes=cache_bytes)


def joined(prompt: str, response: str) -> str:
    """The text that the model reads, as in TRL: the response right behind its prompt, nothing between."""
    return prompt + response


def bradley_terry(margins: Tensor) -> Tensor:
    """-log σ(margin) of each pair (Bradley and Terry 1952): the negative log-likelihood of its choice."""
    return F.softplus(-margins)


def _pooling(name: str, causal: bool) -> str:
    if name == "first" and causal:
        raise ConfigError(
            "model.pooling is first, but the first token of a causal model has read nothing; use last or mean"
        )
    if name == "auto":
        return "last" if causal else "mean"
    return name


def _place_lora(backbone: Backbone, names: Sequence[str], adapter: AdapterConfig) -> None:
    """Let peft wrap exactly these modules, in place; they compute W0 x + (α/r) B A x."""

    from peft import LoraConfig, inject_adapter_in_model

    pattern = "|".join(re.escape(name) for name in names)  # a regex must match the whole path
    settings = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, target_modules=pattern)  # type: ignore[arg-type]
    inject_adapter_in_model(settings, backbone.model, adapter_name=ADAPTER)
    backbone.model.requires_grad_(False).eval()
