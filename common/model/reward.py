"""The reward model: backbone with LoRA, what makes a score of a response, and the loss of pairs of scores.

Which those are is said by the objective (`common/objectives.py`): a score head over the text's embedding, or
what the backbone as a language model says of the response. One `RewardModel` serves any number of people: it
holds the frozen backbone and what was computed of it, and takes everything trainable as an argument
(`MergedWeights`). It is safe to use from several threads.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from penchant.common.config import AdapterConfig, ModelConfig, head_of
from penchant.common.errors import BaseModelError, ConfigError, DataError, UsageError
from penchant.common.model.activation_cache import CACHE_BYTES, Named, PrefixCache, Text
from penchant.common.model.backbone import Backbone, load_backbone, published
from penchant.common.model.base_models import tokenizer_files
from penchant.common.model.batches import within
from penchant.common.model.davidson import davidson, is_tie, nu_of
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.log_probability import ResponseTokens
from penchant.common.model.modules import find_adapted, find_base, targets_of, weight_norms
from penchant.common.model.network import ADAPTER, AdaptedNetwork
from penchant.common.model.prompt_form import FormedText, PromptForm, joined
from penchant.common.model.stacked import StackedTail, StackedWeights, stacked_tail
from penchant.common.model.standalone import StandaloneScorer, tokenizer_json
from penchant.common.model.state_store import StateStore
from penchant.common.model.step_memory import StepMemory
from penchant.common.model.strengths import weights_of
from penchant.common.model.tails import Activations, Tail, check_base, check_beside, choose_tail, full_tail
from penchant.common.objectives import LogProbabilities

PACK_BYTES = 1 << 30
"""Of frozen states that lie in one piece, ready for a pass through the rest of the network."""

_BEGINNING = "A motion to table the amendment, offered "
_FEW_TOKENS = 1024  # whose activations are few in any model
_AROUND = 8  # tokens that models set around a text; a template's words may be more
_BEGUN = 10  # characters of a probe that are the prompt's, where there is one
_PROBES = (
    "Yea or nay?",
    f"{_BEGINNING}after the vote was reconsidered.",
    f"{_BEGINNING}on the budget",
    f"{_BEGINNING}for the judge, to vote on cloture",
)  # some begin alike, as the responses to one prompt do


class Pair(Protocol):
    """A preference: what `penchant.common.data.preferences.Preference` offers. It may have a `tie` and a
    `strength` as that does (`is_tie`, `strength_of`)."""

    @property
    def prompt(self) -> str: ...
    @property
    def chosen(self) -> str: ...
    @property
    def rejected(self) -> str: ...


@dataclass(frozen=True)
class Texts:
    """n texts, ready to be embedded at every step without work per text in Python.

    first: the first text, [n], of which the same is read as of each, whose score it has; None where something
        else is read of every one.
    """

    count: int
    pack: Callable[[], Any] = field(repr=False)  # the same object each time, unless they are too many to keep
    first: Tensor | None = None

    @property
    def packed(self) -> Any:
        """Their activations in one piece. Where those of all are too large to be kept in memory, they are put
        together whenever they are asked for, and gone afterwards."""
        return self.pack()


@dataclass(frozen=True)
class PreparedPairs:
    """Preference pairs over distinct texts: pair k prefers text chosen[k] to text rejected[k], or neither
    where it is a tie.

    It holds the texts' activations in one piece (for MiniLM some 10 kB a token), up to a bound: make it when
    it is needed and let it go, the model keeps the activations themselves.
    """

    texts: Texts
    chosen: Tensor  # [pairs] int64
    rejected: Tensor  # [pairs] int64
    named: tuple[Named, ...]  # by text, to build subsets from
    sizes: tuple[int, ...]  # bytes of each text's activations
    ties: Tensor | None = None  # [pairs] bool; None: all are choices
    nu: float = 0.0  # of whoever said this of all their pairs, as of `nu_of`; a subset keeps it
    weights: Tensor | None = None  # [pairs], by strength among all their pairs; None: each counts 1

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def choices(self) -> int:
        """How many of the pairs are no ties."""
        return len(self) if self.ties is None else len(self) - int(self.ties.sum())

    @property
    def state_bytes(self) -> int:
        """Bytes of all texts' activations together."""
        return sum(self.sizes)


@dataclass(frozen=True)
class JoinedPairs:
    """The prepared pairs of N people, one person's behind the other's.

    Attributes:
        texts: all their texts, as the stacked tail takes them.
        owner: whose each text is, [texts].
        chosen, rejected: as of `PreparedPairs`, among all texts, [pairs].
        counts: pairs of each person.
        ties: which of them are ties, [pairs] bool; None where nobody has any.
        nu: everybody's own as of `PreparedPairs`, for each pair, [pairs].
        weights: the same of those, [pairs]; None where every pair of all counts 1.
    """

    texts: Any
    owner: Tensor
    chosen: Tensor
    rejected: Tensor
    counts: tuple[int, ...]
    ties: Tensor | None
    nu: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """How many of so many distinct texts are cut because they are too long, and how many of so many pairs the
    model can't tell apart: it reads the same tokens of both."""

    texts: int
    cut: int
    pairs: int
    alike: int

    def said(self, max_tokens: int, truncation: str) -> list[str]:
        """A sentence for each of the two that there is, without its full stop: for a model that reads so many
        tokens, and cuts texts at that side."""
        said = []
        if self.cut:
            said.append(
                f"{self.cut} of {self.texts} texts are longer than the {max_tokens} tokens that are read "
                f"(max_tokens) and were cut at the {truncation}"
            )
        if self.alike:
            why = "after the cut both texts are" if self.cut else "both texts are"
            said.append(
                f"{self.alike} of {self.pairs} pairs can't be told apart: {why} the same to the model, and "
                "such a pair counts as ranked wrong"
            )
        return said


class RewardModel:
    """r(prompt, response) for any person's factors: head · embedding, or what another objective makes of the
    response's log-probability.

    Args:
        backbone: a loaded base model; LoRA is put into it, so one backbone serves one RewardModel.
        model: the objective, pooling and normalisation.
        adapter: which modules are adapted, rank and α.
        full: run the whole network at every step (the slow reference).
        cache_bytes: of the frozen part's output, how much is kept in memory for texts that come again.
        pack_bytes: and how much of it lies in one piece, ready for a step, at most; what is more is taken
            piece by piece (`pieces`).
        disk: for what `cache_bytes` has no place for.

    Raises:
        BaseModelError: there are no such modules, or the tokenizer can't tell a response from its prompt.
        ConfigError: a part of the base is to be trained that no score depends on, or that makes the words, or
            a causal model is to be read at its first token; or the objective has no use for what is asked.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: ModelConfig,
        adapter: AdapterConfig,
        *,
        full: bool = False,
        cache_bytes: int = CACHE_BYTES,
        pack_bytes: int = PACK_BYTES,
        disk: StateStore | None = None,
    ) -> None:
        self.pack_bytes = pack_bytes
        self.head = head_of(model, adapter)
        self.objective, self.beta = model.rule, model.beta
        self.digest = backbone.digest
        self._parts = 2 if model.beside else 1
        self.embedding = backbone.hidden * self._parts
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
        self.part, self.classifier, self.writer = backbone.part, backbone.classifier, backbone.writer
        self.padding, self.dtype = backbone.padding, backbone.dtype
        self.prompts = PromptForm(backbone.tokenizer, "none" if self.objective.has_head else model.template)
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
            unembedding=None if self.objective.has_head else backbone.unembedding,
            beside=model.beside,
        )
        check_base(network, [self._tokens(text) for text in _PROBES])
        check_beside(network, self._tokens(_PROBES[0]))
        probes: list[Any] = [self._tokens(text) for text in _PROBES]
        if not self.objective.has_head:
            self._check_writing(network)
            probes = [self._response((text[:_BEGUN], text[_BEGUN:])) for text in _PROBES]
        self._network = network
        self.tail: Tail = full_tail(network) if full else choose_tail(network, probes)
        read = self._tokens if self.objective.has_head else self._response
        self.cache = PrefixCache(read, self.tail, cache_bytes, disk)
        self.step_memory = StepMemory(self.tail, network)

    @cached_property
    def stacked(self) -> StackedTail | None:
        """The tail of several people at a time; None where they are served one by one."""
        return stacked_tail(self.tail, self._network)

    @property
    def configuration(self) -> Any:
        """The base model's, as transformers has it: its family, its sizes."""
        return self._backbone.model.config

    def split(self, *, warmup: bool = False, seed: int = 0) -> Split:
        """The split of this model's tensors that its configuration asks for."""
        return Split.of(
            self.adapted_modules,
            self.embedding,
            self._adapter,
            head=self.head,
            base=self.base,
            warmup=warmup,
            seed=seed,
        )

    # --- preparing --------------------------------------------------------------------------------

    def warm(self, pairs: Iterable[Pair], threads: int = 1) -> None:
        """Compute the frozen part for all texts of some pairs ahead, about twice as fast as one by one.

        Call it at the start with all pairs that a run will use: see `PrefixCache.warm`.
        """
        self.cache.warm(
            (self._text(p.prompt, response) for p in pairs for response in (p.chosen, p.rejected)), threads
        )

    def prepare(self, pairs: Sequence[Pair]) -> PreparedPairs:
        """Encode each distinct text of some pairs once; pairs become indices into the texts. Texts of which
        the model reads the same are one, so that their scores are equal, to the bit.

        Raises:
            DataError: there are no pairs.
        """
        if not pairs:
            raise DataError("there are no preference pairs; record some choices first")
        texts = [self._text(p.prompt, p.chosen) for p in pairs]
        texts += [self._text(p.prompt, p.rejected) for p in pairs]
        named, places = self._distinct(texts)
        chosen, rejected = self._index(places[: len(pairs)]), self._index(places[len(pairs) :])
        packed, sizes = self._measured(named)
        ties = self._ties([is_tie(p) for p in pairs])
        weights = self._weights(weights_of(pairs))
        return PreparedPairs(packed, chosen, rejected, tuple(named), sizes, ties, nu_of(pairs), weights)

    def prepare_texts(self, texts: Sequence[tuple[str, str]], *, alone: bool = False) -> Texts:
        """Encode (prompt, response) texts, in this order, to score them: those that are new are read at once,
        so that the last bits of a score can depend on what else was asked for. Of those of which the model
        reads the same, all have one score.

        alone: each is read by itself, as `prepare` does, for whatever has to repeat to the bit.
        """
        asked = [self._text(prompt, response) for prompt, response in texts]
        packed = self._packed(self.cache.get(asked) if alone else self.cache.together(asked))
        distinct, places = self._distinct(asked)
        if len(distinct) == len(asked):
            return packed
        first: dict[int, int] = {}
        return replace(packed, first=self._index([first.setdefault(p, at) for at, p in enumerate(places)]))

    def portions(self, texts: Sequence[tuple[str, str]]) -> list[range]:
        """Which of some (prompt, response) texts, in order, are to be given to `prepare_texts` at a time, so
        that their activations weigh about `pack_bytes` at most. All of them where they are few."""
        most = sum(_most_tokens(*text) for text in texts)
        if most <= _FEW_TOKENS or most * self._a_token <= self.pack_bytes:
            return [range(len(texts))]
        lengths = [min(length, self.max_tokens) for length in self.lengths(texts)]
        if sum(lengths) * self._a_token <= self.pack_bytes:
            return [range(len(texts))]
        return list(within([length * self._a_token for length in lengths], self.pack_bytes))

    def subset(self, prepared: PreparedPairs, rows: Sequence[int]) -> PreparedPairs:
        """Some of the pairs, with only their texts."""
        where = torch.tensor(rows, dtype=torch.long, device=self.device)
        chosen, rejected = prepared.chosen[where].tolist(), prepared.rejected[where].tolist()
        places: dict[int, int] = {}
        for text in (*chosen, *rejected):
            places.setdefault(text, len(places))
        named = tuple(prepared.named[text] for text in places)
        sizes = tuple(prepared.sizes[text] for text in places)
        chosen, rejected = [places[t] for t in chosen], [places[t] for t in rejected]
        ties = None if prepared.ties is None else prepared.ties[where]
        weights = None if prepared.weights is None else prepared.weights[where]
        texts = self._packed(self.cache.of(named)) if self._small(sizes) else self._unpacked(named)
        return PreparedPairs(
            texts, self._index(chosen), self._index(rejected), named, sizes, ties, prepared.nu, weights
        )

    def pieces(self, prepared: PreparedPairs) -> list[range]:
        """Which of the pairs, in order, are to be taken at a time, so that the activations of their texts
        weigh `pack_bytes` at most, or those of one pair: for `subset`. All of them where they are few."""
        if self._small(prepared.sizes):
            return [range(len(prepared))]
        pieces: list[range] = []
        begin, held, seen = 0, 0, set[int]()
        for row, pair in enumerate(zip(prepared.chosen.tolist(), prepared.rejected.tolist(), strict=True)):
            new = set(pair) - seen
            size = sum(prepared.sizes[text] for text in new)
            if row > begin and held + size > self.pack_bytes:
                pieces.append(range(begin, row))
                begin, held, seen, new = row, 0, set(), set(pair)
                size = sum(prepared.sizes[text] for text in new)
            held, seen = held + size, seen | new
        return [*pieces, range(begin, len(prepared))]

    def piece(self, prepared: PreparedPairs, rows: range) -> PreparedPairs:
        """One of the `pieces`."""
        return prepared if len(rows) == len(prepared) else self.subset(prepared, rows)

    def lengths(self, texts: Sequence[tuple[str, str]]) -> list[int]:
        """How many tokens each (prompt, response) has; of a longer one than `max_tokens` the model reads that
        many."""
        return [len(ids) for ids in self._whole([self._text(*text) for text in texts])]

    def reading(self, pairs: Sequence[Pair], others: Iterable[tuple[str, str]] = ()) -> Reading:
        """What of some pairs' texts, and of other (prompt, response), the model reads."""
        paired = ((p.prompt, r) for p in pairs for r in (p.chosen, p.rejected))
        texts = list(dict.fromkeys(self._text(*text) for text in (*paired, *others)))
        whole = dict(zip(texts, self._whole(texts), strict=True))
        cut = {text for text, ids in whole.items() if len(ids) > self.max_tokens}
        read = whole | {text: self._read(text) for text in cut}
        alike = sum(
            read[self._text(p.prompt, p.chosen)] == read[self._text(p.prompt, p.rejected)] for p in pairs
        )
        return Reading(len(texts), len(cut), len(pairs), alike)

    # --- writing ----------------------------------------------------------------------------------

    def language_model(self, effective: MergedWeights) -> Any:
        """transformers' language model with these factors in place, on its own: it shares every weight of the
        base with this one, and holds nothing more than factors, and parts of the base that were trained.

        Raises:
            UsageError: the objective scores by a head, so nothing here was taught to write.
        """
        if self.objective.has_head:
            raise UsageError(
                f'objective "{self.objective.name}" makes a model that ranks what others wrote, and not one '
                "that writes"
            )
        return self._with_factors(self._backbone.language_model, self.writer, effective)

    def standalone(self, effective: MergedWeights) -> StandaloneScorer:
        """The model with these factors on its own, from tokens to scores: it shares every weight of the base
        with this one, as `language_model` does.

        Raises:
            UsageError: the objective has no score head.
        """
        if not self.objective.has_head:
            raise UsageError(
                f'objective "{self.objective.name}" makes a model that writes, and it has no score head'
            )
        module = self._with_factors(self._backbone.model, "", effective)
        network = self._network
        return StandaloneScorer(
            module,
            lambda output, mask: self._scaled(network.pool(network.states(output), mask)),
            effective.head,
            network.asked,
        )

    def _with_factors(self, whole: Any, inside: str, effective: MergedWeights) -> Any:
        """A copy of a module of transformers with factors in place, below `inside`, that shares all else."""
        memo = {id(one): one for one in itertools.chain(whole.parameters(), whole.buffers())}
        copied = copy.deepcopy(whole, memo)
        inner = copied.get_submodule(inside) if inside else copied
        for name, tensor in self._network.overrides(effective).items():
            module, _, parameter = name.rpartition(".")
            own = torch.nn.Parameter(tensor.detach().clone(), requires_grad=False)
            setattr(inner.get_submodule(module), parameter, own)
        return copied.eval()

    def tokenizer_json(self) -> bytes:
        """The tokenizer as one file, set to cut and fill up texts as this model reads them.

        BaseModelError: it is of a kind that has no such file.
        """
        return tokenizer_json(
            self._backbone.tokenizer,
            max_tokens=self.max_tokens,
            truncation=self._truncation,
            pad_id=self._network.pad_id,
        )

    def tokenizer_files(self) -> dict[str, bytes]:
        """The files of the tokenizer, as the base model's folder holds them, by name."""
        return tokenizer_files(Path(str(self._backbone.model.name_or_path)))

    # --- scoring ----------------------------------------------------------------------------------

    def scores(self, texts: Texts, effective: MergedWeights) -> Tensor:
        """Rewards [n] of n texts; differentiable in the factors and the head."""
        found = self.tail.forward(texts.packed, effective)
        if self.objective.implicit is not None:
            scores = self.objective.implicit(LogProbabilities(*found.unbind(1)), self.beta)
        else:
            scores = self._scaled(found) @ effective.head[0]
        # After the product: rows of a matrix that are alike can differ by a bit in it.
        return scores if texts.first is None else scores[texts.first]

    def margins(self, prepared: PreparedPairs, effective: MergedWeights) -> Tensor:
        """Reward of the chosen minus that of the rejected response, [pairs]."""
        scores = self.scores(prepared.texts, effective)
        return scores[prepared.chosen] - scores[prepared.rejected]

    def judged(self, prepared: PreparedPairs, effective: MergedWeights) -> Tensor:
        """`margins` without gradients, of as many pairs at a time as `pieces` says."""
        chosen, rejected = self.both_scores(prepared, effective)
        return chosen - rejected

    def both_scores(self, prepared: PreparedPairs, effective: MergedWeights) -> tuple[Tensor, Tensor]:
        """Rewards of the chosen and of the rejected responses, [pairs] each, without gradients; of as many
        pairs at a time as `pieces` says."""
        found = [self._both(self.piece(prepared, rows), effective) for rows in self.pieces(prepared)]
        chosen, rejected = zip(*found, strict=True)
        return (chosen[0], rejected[0]) if len(found) == 1 else (torch.cat(chosen), torch.cat(rejected))

    def rewards(self, texts: Sequence[tuple[str, str]], effective: MergedWeights) -> Tensor:
        """Rewards [n] of (prompt, response) texts, without gradients, as many at a time as `portions` says;
        where the model reads the same, they are the same to the bit."""
        found = [self._rewards(texts[rows.start : rows.stop], effective) for rows in self.portions(texts)]
        if len(found) == 1:
            return found[0]
        first: dict[bytes, int] = {}
        keys = [self.cache.key(self._text(*text)) for text in texts]
        return torch.cat(found)[self._index([first.setdefault(key, at) for at, key in enumerate(keys)])]

    def join(self, people: Sequence[PreparedPairs]) -> JoinedPairs:
        """Put several people's prepared pairs together, for `stacked_margins`.

        Raises:
            BaseModelError: this model serves people one by one.
        """
        counts = [one.texts.count for one in people]
        starts = [sum(counts[:number]) for number in range(len(counts))]
        return JoinedPairs(
            texts=self._several().join([one.texts.packed for one in people]),
            owner=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(self.device),
            chosen=torch.cat([one.chosen + start for one, start in zip(people, starts, strict=True)]),
            rejected=torch.cat([one.rejected + start for one, start in zip(people, starts, strict=True)]),
            counts=tuple(len(one) for one in people),
            ties=self._joined_ties(people),
            nu=torch.tensor([one.nu for one in people for _ in range(len(one))], device=self.device),
            weights=self._joined_weights(people),
        )

    def stacked_margins(self, joined: JoinedPairs, weights: StackedWeights) -> Tensor:
        """`margins` of each person's pairs with that person's factors, [all pairs]."""
        found = self._several().forward(joined.texts, weights)
        if self.objective.implicit is not None:
            scores = self.objective.implicit(LogProbabilities(*found.unbind(1)), self.beta)
        else:
            scores = (self._scaled(found) * weights.heads[joined.owner]).sum(1)
        return scores[joined.chosen] - scores[joined.rejected]

    def losses(self, margins: Tensor, prepared: PreparedPairs | JoinedPairs | None = None) -> Tensor:
        """What training makes small, of pairs with these margins, [pairs]; by default of choices.

        Where the objective has losses of its own, a tie is half a choice each way. A choice counts by its
        strength (`common/model/strengths.py`), whatever the objective.
        """
        if prepared is None:
            return self._losses(margins, None, 0.0)
        losses = self._losses(margins, prepared.ties, prepared.nu)
        return losses if prepared.weights is None else losses * prepared.weights

    # --- inner parts ------------------------------------------------------------------------------

    @torch.no_grad()
    def _both(self, prepared: PreparedPairs, effective: MergedWeights) -> tuple[Tensor, Tensor]:
        scores = self.scores(prepared.texts, effective)
        return scores[prepared.chosen], scores[prepared.rejected]

    @torch.no_grad()
    def _rewards(self, texts: Sequence[tuple[str, str]], effective: MergedWeights) -> Tensor:
        return self.scores(self.prepare_texts(texts), effective)

    @cached_property
    def _a_token(self) -> float:
        """Bytes of activations for each token, of a text like others."""
        return self.cache.bytes_a_token(self._text(_BEGINNING[:_BEGUN], _BEGINNING[_BEGUN:]))

    def _losses(self, margins: Tensor, ties: Tensor | None, nu: float | Tensor) -> Tensor:
        losses = self.objective.losses
        if losses is None:
            return davidson(margins, ties, nu)
        one_way = losses(margins, self.beta)
        if ties is None:
            return one_way
        return torch.where(ties, (one_way + losses(-margins, self.beta)) / 2, one_way)

    def _scaled(self, embeddings: Tensor) -> Tensor:
        """Embeddings [n, d] at the length that is asked for; where two stand side by side, both as long."""
        if not self._normalize:
            return embeddings
        width = embeddings.shape[1] // self._parts
        each = embeddings.reshape(-1, self._parts, width)  # [n, d] -> [n, 1 or 2, width]
        return (F.normalize(each, dim=2) * (self._normalize / math.sqrt(self._parts))).flatten(1)

    def _several(self) -> StackedTail:
        if self.stacked is None:
            raise BaseModelError("this base model serves people one by one: texts can't be read in one row")
        return self.stacked

    def _joined_ties(self, people: Sequence[PreparedPairs]) -> Tensor | None:
        if all(one.ties is None for one in people):
            return None
        own = [torch.zeros(len(p), dtype=torch.bool) if p.ties is None else p.ties.cpu() for p in people]
        return torch.cat(own).to(self.device)

    def _joined_weights(self, people: Sequence[PreparedPairs]) -> Tensor | None:
        if all(one.weights is None for one in people):
            return None
        own = [torch.ones(len(p)) if p.weights is None else p.weights.cpu() for p in people]
        return torch.cat(own).to(self.device)

    def _check_writing(self, network: AdaptedNetwork) -> None:
        words = network.unembedding
        if not getattr(self._backbone.tokenizer, "is_fast", False):
            raise BaseModelError(
                f'base model "{self._backbone.name}" has a tokenizer that does not say where a response '
                "begins; save its fast tokenizer (tokenizer.json) into the folder"
            )
        if words is None:
            raise BaseModelError(
                f'base model "{self._backbone.name}" was loaded without what makes its words'
            )
        for name in network.base:
            if network.frozen(name) is words.weight:
                raise ConfigError(
                    f"adapter.share_base names {name}, which makes the words too; objective "
                    f'"{self.objective.name}" leaves it as it is, so leave it out'
                )

    def _text(self, prompt: str, response: str) -> Text:
        """What is kept of a text apart from others: the text alone, or where its response begins as well."""
        return joined(prompt, response) if self.objective.has_head else (prompt, response)

    @property
    def _end(self) -> list[int]:
        """The token that ends a response where responses are scored by log-probabilities, if there is one."""
        end = None if self.objective.has_head else self._backbone.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    @property
    def _room(self) -> int:
        """How many tokens of a text that is too long are read, its end not counted."""
        return self.max_tokens - (len(self._end) if self._truncation == "left" else 0)

    def _response(self, text: tuple[str, str]) -> ResponseTokens:
        """A text's tokens and its end's, cut as in `_tokens`. Tokens that hold any of the response are the
        response's: the one that crosses the border, if there is one, too. A template ends texts itself."""
        formed = self.prompts.whole(*text)
        end = [] if formed.complete else self._end
        how = {
            "add_special_tokens": not formed.complete,
            "return_offsets_mapping": True,
        }
        room = self.max_tokens - (len(end) if self._truncation == "left" else 0)
        with self._tokenizing:
            tokenizer = self._backbone.tokenizer
            tokenizer.truncation_side = self._truncation
            encoded = tokenizer(formed.text, truncation=False, verbose=False, **how)
            ended = len(encoded["input_ids"]) + len(end) <= self.max_tokens
            if not ended:
                encoded = tokenizer(formed.text, truncation=True, max_length=room, **how)
        ids: list[int] = encoded["input_ids"]
        spans: list[tuple[int, int]] = encoded["offset_mapping"]
        start = next((place for place, (_, until) in enumerate(spans) if until > formed.begun), len(ids))
        if (ended or self._truncation == "left") and ids[-1:] != end:
            ids = ids + end
        ids = ids or [self._backbone.pad_id]
        return ResponseTokens(torch.tensor(ids, dtype=torch.long), min(max(start, 1), len(ids)))

    def _distinct(self, texts: Sequence[Text]) -> tuple[list[Named], list[int]]:
        """Texts of each of which the model reads something else, and which of them each text reads as."""
        places: dict[bytes, int] = {}
        distinct: list[Named] = []
        found = []
        for text in texts:
            key = self.cache.key(text)
            place = places.setdefault(key, len(distinct))
            if place == len(distinct):
                distinct.append((key, text))
            found.append(place)
        return distinct, found

    def _measured(self, named: Sequence[Named]) -> tuple[Texts, tuple[int, ...]]:
        """Texts, computed where they are new, and the bytes of each one's activations; which are held here
        only as far as they may lie in one piece."""
        found: list[Activations | None] = []
        sizes: list[int] = []
        held = 0
        for one in named:
            size, entry = self.cache.measured(*one)
            sizes.append(size)
            held += size
            found.append(entry)
            if held > self.pack_bytes:
                found.clear()
        if held > self.pack_bytes:
            return self._unpacked(tuple(named)), tuple(sizes)
        missing = iter(self.cache.of(one for one, entry in zip(named, found, strict=True) if entry is None))
        return self._packed([next(missing) if one is None else one for one in found]), tuple(sizes)

    def _small(self, sizes: Sequence[int]) -> bool:
        """Whether texts with activations of these bytes may lie in one piece."""
        return sum(sizes) <= self.pack_bytes

    def _packed(self, parts: Sequence[Activations]) -> Texts:
        packed = self.tail.collate(parts)
        return Texts(len(parts), lambda: packed)

    def _unpacked(self, named: Sequence[Named]) -> Texts:
        return Texts(len(named), lambda: self.tail.collate(self.cache.of(named)))

    def _ties(self, said: Sequence[bool]) -> Tensor | None:
        return torch.tensor(said, device=self.device) if any(said) else None

    def _weights(self, found: NDArray[np.float64] | None) -> Tensor | None:
        return None if found is None else torch.tensor(found, dtype=torch.float32, device=self.device)

    def _index(self, places: Sequence[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.long, device=self.device)

    def _whole(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of whole texts, however long, their ends included."""
        if not texts:
            return []
        formed = [FormedText(t, 0, False) if isinstance(t, str) else self.prompts.whole(*t) for t in texts]
        ids: list[list[int]] = [[] for _ in formed]
        for complete in (False, True):
            places = [place for place, one in enumerate(formed) if one.complete is complete]
            if not places:
                continue
            with self._tokenizing:
                encoded = self._backbone.tokenizer(
                    [formed[place].text for place in places],
                    truncation=False,
                    verbose=False,
                    add_special_tokens=not complete,
                )
            for place, own in zip(places, encoded["input_ids"], strict=True):
                ids[place] = own if complete else own + self._end
        return ids

    def _read(self, text: Text) -> list[int]:
        """Token ids of a text as the model reads it."""
        tokens = self._tokens(text) if isinstance(text, str) else self._response(text).ids
        read: list[int] = tokens.tolist()
        return read

    def _tokens(self, text: str) -> Tensor:
        """Token ids [L] of a text, 1 ≤ L ≤ max_tokens; a longer text is cut at the configured side."""
        with self._tokenizing:
            tokenizer = self._backbone.tokenizer
            tokenizer.truncation_side = self._truncation
            encoded = tokenizer(text, truncation=True, max_length=self._room)
        ids: list[int] = encoded["input_ids"] or [self._backbone.pad_id]  # some have no token for ""
        return torch.tensor(ids, dtype=torch.long)


def load_reward_model(
    model: ModelConfig,
    adapter: AdapterConfig,
    *,
    device: str = "auto",
    cache_bytes: int = CACHE_BYTES,
    pack_bytes: int = PACK_BYTES,
    disk: StateStore | None = None,
) -> RewardModel:
    """Load the base model and put the adapters in place. BaseModelError as `load_backbone`.

    Args:
        cache_bytes, pack_bytes: as of `RewardModel`.
        disk: for what of the frozen part's output memory has no place, of this and other models; by default
            nothing is written.
    """
    backbone = load_backbone(model, device=device)
    return RewardModel(backbone, model, adapter, cache_bytes=cache_bytes, pack_bytes=pack_bytes, disk=disk)


def _most_tokens(prompt: str, response: str) -> int:
    """A text's tokens, rather too many, without reading it: one a byte, and those that stand around it."""
    return len(prompt.encode()) + len(response.encode()) + _AROUND


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
