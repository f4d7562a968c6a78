"""The frozen part of the backbone, computed once per distinct text, and the tails that run the rest.

Whatever lies below the first trained module (adapted, or itself trained and shared) never changes, so its
output is kept per text. What is left to run at every step is the *tail*. Four tails give the same embeddings:

- `PooledTail`: nothing is adapted; the pooled embedding itself is kept.
- `TokenwiseTail`: the one adapted module is followed by a residual and the backbone's last LayerNorm (the
  output of BERT's last block), each token alone. Its input and the frozen sum W0 x + b + residual are kept;
  a step costs a few low-rank products on packed tokens, no padding at all. That LayerNorm may be trained.
- `BlockTail`: the hidden states before the first trained block are kept; the remaining blocks and the
  final norm run at every step.
- `FullTail`: nothing is kept; over padded texts the slow reference, and the fallback.

Where responses are scored by their log-probabilities there is no embedding: `ResponseTail` has one of the
last two give those, and keeps the base model's own beside what is kept of a text.

The last two run on texts in rows, where a causal model reads what texts begin with once for all of them, or
on padded texts (`batches`). `choose_tail` takes the first that applies by structure *and* reproduces the full
path over padded texts on probe texts, some of which begin alike; the log says so where it is that one.

The frozen part reads texts as the tail does: in rows, nothing filled up, where the base model bears that.
The last bits of a text's activations can depend on what it was computed with. So `PrefixCache.get`, which
training asks, computes each missing text alone, and `PrefixCache.warm`, which is faster, forms its batches
from the whole set of texts it is given: either way a resumed run sees the bits of an uninterrupted one.
`PrefixCache.together`, which ranking asks, computes what is missing at once.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call

from penchant.common.errors import BaseModelError, ConfigError
from penchant.common.model.attention_reach import (
    WINDOW_MOST,
    Reach,
    long_enough,
    reaches_of,
    window_of,
    windows_of,
)
from penchant.common.model.batches import Batch, Batches, Packing, Padded, RowPacking, reading_again
from penchant.common.model.factors import MergedWeights
from penchant.common.model.log_probability import ResponseTokens
from penchant.common.model.modules import find_blocks, structural_copy
from penchant.common.model.network import ADAPTER, AdaptedNetwork
from penchant.common.model.recomputed import make_recomputable, recomputing

Activations = tuple[Tensor, ...]  # what is kept of one text; the tail knows the meaning

_MISFITS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)

log = logging.getLogger(__name__)


class Tail(Protocol):
    """The part of the network that runs at every step."""

    name: str

    def precompute(self, texts: Sequence[Any]) -> list[Activations]:
        """What to keep of each text, from token ids [L] (or `ResponseTokens`), computed together."""
        ...

    def collate(self, texts: Sequence[Activations]) -> Any:
        """Put texts together so that `forward` needs no Python work per text."""
        ...

    def forward(self, packed: Any, effective: MergedWeights) -> Tensor:
        """Pooled embeddings [n, d] float32 of packed texts, or of responses [n, 3] what `ResponseTail` says;
        differentiable in `effective`."""
        ...


# --- thread-local copies that share the weights ---------------------------------------------------


class _Skeletons:
    """One structural copy of a module per thread, sharing every parameter and buffer.

    `functional_call` swaps parameters inside the module for the time of the call, so two threads must
    not do that in one module; a copy of the structure costs milliseconds and no memory to speak of.
    """

    def __init__(self, source: nn.Module, prepare: Callable[[Any], Any]) -> None:
        self._source = source
        self._prepare = prepare
        self._local = threading.local()

    def get(self) -> Any:
        """This thread's copy, after `prepare`."""
        copied = getattr(self._local, "copied", None)
        if copied is None:
            copied = self._prepare(structural_copy(self._source))
            self._local.copied = copied
        return copied


class _Reached(Exception):  # a signal, not an error
    """Ends a forward pass at the module whose inputs were wanted."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs = args
        self.kwargs = kwargs


class _FrozenPart:
    """The network up to one of its modules, over texts that are put together in one way."""

    def __init__(self, network: AdaptedNetwork, packing: Packing, until: str) -> None:
        self._network = network
        self._packing = packing
        self._until = until
        self._skeletons = _Skeletons(network.module, self._stopping)

    def read(
        self, texts: Sequence[Tensor], taken: Callable[[_Reached], tuple[Tensor, ...]]
    ) -> list[Activations]:
        """What is `taken` ([b, L, …] each) of the inputs of the module at which the network stops, by text
        [L, …], from token ids [L]."""
        packed = self._packing.collate([ids.to(self._network.device) for ids in texts], None)
        found: list[Activations] = []
        for batch in packed.batches:
            with torch.no_grad():
                columns = taken(self._reach(batch))
            found += zip(*(batch.apart(column) for column in columns), strict=True)
        return [found[place] for place in packed.inverse.tolist()]

    def _reach(self, batch: Batch) -> _Reached:
        try:
            with batch.running():
                self._skeletons.get()(**batch.inputs())
        except _Reached as reached:
            return reached
        raise RuntimeError("the forward pass never came to the module it should stop at")

    def _stopping(self, module: nn.Module) -> nn.Module:
        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args, kwargs)

        self._packing.prepare(module).get_submodule(self._until).register_forward_pre_hook(
            stop, with_kwargs=True
        )
        return module


# --- the tails ------------------------------------------------------------------------------------


class FullTail:
    """The whole network at every step: the slow reference when texts are padded.

    blocks: how many run at a step for the sake of gradients.
    """

    name = "full"

    def __init__(self, network: AdaptedNetwork, packing: Packing) -> None:
        self._network = network
        self.packing = packing
        self.blocks = len(find_blocks(network.module)[1]) if network.adapted_modules else 0
        self._skeletons = _Skeletons(network.module, self._prepared)

    def precompute(self, texts: Sequence[Tensor]) -> list[Activations]:
        return [(ids.to(self._network.device),) for ids in texts]

    def collate(self, texts: Sequence[Activations], starts: Sequence[int] | None = None) -> Batches:
        return self.packing.collate([ids for (ids,) in texts], None, starts)

    def forward(self, packed: Batches, effective: MergedWeights) -> Tensor:
        return _embed(self._skeletons.get(), packed, self._network, effective, {})

    def repacked(self, packing: Packing) -> FullTail:
        """This tail over texts that are put together, and read, in another way."""
        return FullTail(self._network, packing)

    def _prepared(self, module: nn.Module) -> nn.Module:
        if self.blocks:
            _blocks_recomputable(module, 0)
        prepared: nn.Module = self.packing.prepare(module)
        return prepared


def _blocks_recomputable(module: nn.Module, first: int) -> None:
    """Let the blocks of a network from the first that runs on obey `blocks_recomputed`."""
    for block in find_blocks(module)[1][first:]:
        make_recomputable(block, reading_again)


def _embed(
    module: nn.Module,
    packed: Batches,
    network: AdaptedNetwork,
    effective: MergedWeights,
    given: dict[str, Tensor | None],
) -> Tensor:
    """Pooled embeddings [n, d] of packed texts, by a copy of the network's module. given: where the copy
    looks for the states of a batch."""
    swapped = network.overrides(effective)
    embeddings = []
    for batch in packed.batches:
        given["states"] = batch.states
        with batch.running():
            inputs = batch.inputs() | network.asked
            if recomputing() and network.causal:
                inputs["use_cache"] = False  # a block that runs again would add to it again
            output = functional_call(module, swapped, (), inputs, tie_weights=False)
        embeddings.append(batch.pool(network.states(output)))
    given.clear()
    return torch.cat(embeddings)[packed.inverse]


class PooledTail:
    """Nothing is adapted: the pooled embedding [d] is all that is needed of a text."""

    name = "pooled"

    def __init__(self, network: AdaptedNetwork, packing: Packing) -> None:
        self.packing = packing
        self._full = FullTail(network, packing)

    def precompute(self, texts: Sequence[Tensor]) -> list[Activations]:
        packed = self._full.collate(self._full.precompute(texts))
        with torch.no_grad():
            return [(one.clone(),) for one in self._full.forward(packed, MergedWeights({}, torch.empty(0)))]

    def collate(self, texts: Sequence[Activations]) -> Tensor:
        return torch.stack([embedding for (embedding,) in texts])

    def forward(self, packed: Tensor, effective: MergedWeights) -> Tensor:
        return packed


class _Skip(nn.Module):
    """Takes a frozen block's place: hands the states on in the form in which blocks return them."""

    def __init__(self, block: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        self._returns_tuple = returns_tuple
        for name, value in vars(block).items():  # flags that the network reads off its blocks
            if not name.startswith("_") and isinstance(value, bool | int | float | str):
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if self._returns_tuple else hidden_states


class BlockTail:
    """The blocks from the first adapted one on, and what follows them.

    The network's own forward runs, so masks, positions and the final norm are its own; the frozen blocks
    are skipped and the kept states are put in at the first adapted one.
    """

    name = "blocks"

    def __init__(self, network: AdaptedNetwork, packing: Packing) -> None:
        self._network = network
        self.packing = packing
        path, blocks = find_blocks(network.module)
        trained = (*(module.name for module in network.adapted_modules), *network.base)
        inside = [name[len(path) + 1 :] for name in trained if name.startswith(f"{path}.")]
        self._first = min(int(name.split(".", 1)[0]) for name in inside)
        if self._first == 0:
            raise TypeError("the first block is adapted: nothing but embeddings could be kept")
        self.blocks = len(blocks) - self._first
        self._returns_tuple = _blocks_return_tuples(network, path)
        self._frozen = _FrozenPart(network, packing, f"{path}.{self._first}")
        self._rest = _Skeletons(network.module, self._skip_frozen)

    def precompute(self, texts: Sequence[Tensor]) -> list[Activations]:
        """(ids [L], states [L, d] before the first adapted block) of each text."""

        def states(reached: _Reached) -> tuple[Tensor]:
            return (reached.inputs[0] if reached.inputs else reached.kwargs["hidden_states"],)

        kept = self._frozen.read(texts, states)
        return [(ids.to(self._network.device), *own) for ids, own in zip(texts, kept, strict=True)]

    def collate(self, texts: Sequence[Activations], starts: Sequence[int] | None = None) -> Batches:
        return self.packing.collate([ids for ids, _ in texts], [states for _, states in texts], starts)

    def forward(self, packed: Batches, effective: MergedWeights) -> Tensor:
        module, given = self._rest.get()
        return _embed(module, packed, self._network, effective, given)

    def repacked(self, packing: Packing) -> BlockTail:
        """As `FullTail.repacked`."""
        return BlockTail(self._network, packing)

    def _skip_frozen(self, module: nn.Module) -> tuple[nn.Module, dict[str, Tensor | None]]:
        given: dict[str, Tensor | None] = {}

        def put_in(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if args:
                return (given["states"], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": given["states"]}

        _, blocks = find_blocks(self.packing.prepare(module))
        for index in range(self._first):
            blocks[index] = _Skip(blocks[index], self._returns_tuple)
        _blocks_recomputable(module, self._first)
        blocks[self._first].register_forward_pre_hook(put_in, with_kwargs=True)
        return module, given


def _blocks_return_tuples(network: AdaptedNetwork, path: str) -> bool:
    seen: list[bool] = []

    def look(module: nn.Module) -> nn.Module:
        block = module.get_submodule(f"{path}.0")
        block.register_forward_hook(lambda _, __, output: seen.append(isinstance(output, tuple)))
        return module

    ids = torch.full((1, 2), network.pad_id, device=network.device)
    with torch.no_grad():
        _Skeletons(network.module, look).get()(input_ids=ids, attention_mask=torch.ones_like(ids))
    return seen[0]


@dataclass(frozen=True)
class PackedTokens:
    """All T tokens of n texts one after the other.

    Attributes:
        inputs: the adapted module's input x, [T, in].
        centred: c = W0 x + b + residual without its mean, [T, d].
        squares: |c|², [T].
        token: the tokens' own indices, 0 … T-1.
        text: the index of each token's text, [T].
        first: the index of each text's first token, [n].
        share: 1 / the number of tokens of each token's text, [T].
    """

    inputs: Tensor
    centred: Tensor
    squares: Tensor
    token: Tensor
    text: Tensor
    first: Tensor
    share: Tensor
    memo: dict[str, Any] = field(default_factory=dict)  # the last product with a frozen A


class TokenwiseTail:
    """One adapted module, followed by a residual and the backbone's last LayerNorm, in closed form.

    That is the output of BERT's last block and its like: h = LN(W0 x + b + residual + (α/r) B A x), each
    token alone. With c the frozen sum and B̃ = (α/r) B, both without their mean over the d features, and
    u = A x, each token's normaliser is σ² = (|c|² + 2 u·B̃ᵀc + u·B̃ᵀB̃ u)/d + ε, and a text's embedding
    γ ∘ (Σ c/σ + B̃ Σ u/σ)/L + β. So a step needs a few products with r columns and one weighted sum, and
    never the [T, d] states. Where one token is the embedding, the first or the last, only that is kept.
    """

    name = "tokenwise"

    def __init__(self, network: AdaptedNetwork, packing: Packing) -> None:
        if len(network.adapted_modules) != 1:
            raise TypeError("more than one module is adapted")
        self._network = network
        self.packing = packing
        self.module = network.adapted_modules[0].name
        path = self.module.rpartition(".")[0]
        linear: Any = network.module.get_submodule(self.module)
        self._base = linear.base_layer
        self.scale = float(linear.scaling[ADAPTER])
        inner = network.module.get_submodule(path)
        self.norm = _only_norm(inner, linear)
        (place,) = (name for name, module in inner.named_modules() if module is self.norm)
        self.gain, self.bias = f"{path}.{place}.weight", f"{path}.{place}.bias"
        if not set(network.base) <= {self.gain, self.bias}:
            raise TypeError("parts of the base below the last norm are trained")
        self._frozen = _FrozenPart(network, packing, path)

    def precompute(self, texts: Sequence[Tensor]) -> list[Activations]:
        """(x [L, in], centred c [L, d]) of each text."""

        def both(reached: _Reached) -> tuple[Tensor, Tensor]:
            x, residual = reached.inputs
            total = (self._base(x) + residual).float()
            return x.float(), total - total.mean(-1, keepdim=True)

        kept = self._frozen.read(texts, both)
        if self._network.pooling == "mean":
            return kept
        token = slice(1) if self._network.pooling == "first" else slice(-1, None)
        return [(x[token].clone(), centred[token].clone()) for x, centred in kept]

    def collate(self, texts: Sequence[Activations]) -> PackedTokens:
        inputs, centred = (torch.cat(column) for column in zip(*texts, strict=True))
        lengths = torch.tensor([len(x) for x, _ in texts], device=self._network.device)
        return PackedTokens(
            inputs=inputs,
            centred=centred,
            squares=centred.square().sum(1),
            token=torch.arange(len(inputs), device=lengths.device),
            text=torch.repeat_interleave(torch.arange(len(texts), device=lengths.device), lengths),
            first=lengths.cumsum(0) - lengths,
            share=torch.repeat_interleave(1 / lengths.float(), lengths),
        )

    def forward(self, packed: PackedTokens, effective: MergedWeights) -> Tensor:
        a, b = effective.adapters[self.module]
        b = (self.scale * (b - b.mean(0))).T.contiguous()  # B̃ᵀ [r, d]; long rows are what matmul is fast at
        u = self._down(packed, a)  # [r, T]
        cross = b @ packed.centred.T + 0.5 * (b @ b.T) @ u  # B̃ᵀc + B̃ᵀB̃ u / 2, [r, T]
        variance = (packed.squares + 2 * (u * cross).sum(0)) / b.shape[1]
        shares = packed.share * torch.rsqrt(variance + self.norm.eps)  # 1 / (σ L) of each token, [T]
        means = F.embedding_bag(
            packed.token, packed.centred, packed.first, mode="sum", per_sample_weights=shares
        )  # [n, d]
        moved = u.new_zeros(len(u), len(packed.first)).index_add(1, packed.text, u * shares)  # [r, n]
        gain = self.norm.weight.float() + effective.base.get(self.gain, 0.0)
        return gain * (means + moved.T @ b) + self.norm.bias.float() + effective.base.get(self.bias, 0.0)

    @staticmethod
    def _down(packed: PackedTokens, a: Tensor) -> Tensor:
        """A x of all tokens, [r, T]; kept while A stays frozen, for it reads the largest array there is."""
        if a.requires_grad:
            return a @ packed.inputs.T
        if packed.memo.get("a") is not a or packed.memo["version"] != a._version:
            packed.memo.update(a=a, version=a._version, product=a @ packed.inputs.T)
        product: Tensor = packed.memo["product"]
        return product


def _only_norm(inner: nn.Module, linear: nn.Module) -> nn.LayerNorm:
    """The LayerNorm of a module that has, beside the adapted one, nothing else to it."""
    norms = [module for module in inner.modules() if isinstance(module, nn.LayerNorm)]
    if len(norms) != 1 or norms[0].weight is None or norms[0].bias is None:
        raise TypeError("there is no single LayerNorm beside the adapted module")
    rest = {id(p) for p in inner.parameters()} - {id(p) for p in linear.parameters()}
    if rest != {id(p) for p in norms[0].parameters()}:
        raise TypeError("there are other parameters beside the adapted module and a LayerNorm")
    return norms[0]


@dataclass(frozen=True)
class PackedResponses:
    """n responses in their contexts: the texts, and each one's log-probability by the base model and length,
    float32 [n]."""

    texts: Batches
    reference: Tensor
    tokens: Tensor


class ResponseTail:
    """Log-probabilities of responses under the model with its factors, and of the base model alone.

    The latter never change: they are computed once, by the same path with factors of zeros, and kept.
    """

    name = "responses"

    def __init__(self, network: AdaptedNetwork, inner: FullTail | BlockTail) -> None:
        self._inner = inner
        self._network = network
        self._device = network.device
        self._none = MergedWeights(
            {
                module.name: (
                    torch.zeros(1, module.in_features, device=network.device),
                    torch.zeros(module.out_features, 1, device=network.device),
                )
                for module in network.adapted_modules
            },
            torch.empty(0),
        )

    @property
    def packing(self) -> Packing:
        """How texts are put together."""
        return self._inner.packing

    @property
    def blocks(self) -> int:
        """How many blocks run at a step."""
        return self._inner.blocks

    def repacked(self, packing: Packing) -> ResponseTail:
        """As `FullTail.repacked`."""
        return ResponseTail(self._network, self._inner.repacked(packing))

    def precompute(self, texts: Sequence[ResponseTokens]) -> list[Activations]:
        """(what the inner tail keeps, [start, tokens] int64, log π_ref [] float32) of each text."""
        kept = self._inner.precompute([text.ids for text in texts])
        starts = [text.start for text in texts]
        with torch.no_grad():
            reference = self._inner.forward(self._inner.collate(kept, starts), self._none)
        counts = torch.tensor([[text.start, len(text) - text.start] for text in texts])
        return [(*own, counts[place], reference[place].clone()) for place, own in enumerate(kept)]

    def collate(self, texts: Sequence[Activations]) -> PackedResponses:
        counts = torch.stack([text[-2] for text in texts])
        packed = self._inner.collate([text[:-2] for text in texts], counts[:, 0].tolist())
        tokens = counts[:, 1].to(self._device, torch.float32)
        return PackedResponses(packed, torch.stack([text[-1] for text in texts]), tokens)

    def forward(self, packed: PackedResponses, effective: MergedWeights) -> Tensor:
        """[n, 3] float32: log π, log π_ref, and the number of tokens, of each response."""
        policy = self._inner.forward(packed.texts, effective)
        return torch.stack([policy, packed.reference, packed.tokens], dim=1)


AnyTail = PooledTail | TokenwiseTail | BlockTail | FullTail | ResponseTail


# --- choice ---------------------------------------------------------------------------------------


def full_tail(network: AdaptedNetwork) -> FullTail | ResponseTail:
    """The slow reference: nothing is kept but what the base model says of responses, and texts are padded."""
    full = FullTail(network, Padded(network))
    return full if network.unembedding is None else ResponseTail(network, full)


def choose_tail(network: AdaptedNetwork, probes: Sequence[Any]) -> Tail:
    """The cheapest tail that gives, on the probe texts (as `Tail.precompute` takes them), what the full path
    gives."""
    full = full_tail(network)
    effective = _probe_factors(network)
    probes = [*probes, *_beyond_windows(network, probes)]
    expected = _embed_all(full, probes, effective)
    found = _first_that_agrees(_cheapest_first(network), expected, probes, effective, network)
    inner = found._inner if isinstance(found, ResponseTail) else found
    if inner is None or isinstance(inner, FullTail):
        log.info("nothing of this base model can be computed ahead: every step runs all of it")
    if found is None or isinstance(found.packing, Padded):
        _tell_padded(network)
    return full if found is None else found


def _beyond_windows(network: AdaptedNetwork, probes: Sequence[Any]) -> list[Any]:
    """A probe text that is longer than the network's windows, where texts may be."""
    if not _has_short_windows(network):
        return []
    own = [probe.ids if isinstance(probe, ResponseTokens) else probe for probe in probes]
    ids = torch.cat(own).repeat(long_enough(network))[: long_enough(network)]
    return [ids if network.unembedding is None else ResponseTokens(ids, len(ids) // 2)]


def _reaches(network: AdaptedNetwork) -> Mapping[str, Reach] | None:
    """How far each attention reaches, where a window is shorter than texts may be; None where none is, or
    that can't be found out."""
    if not _has_short_windows(network):
        return None
    try:
        return reaches_of(network)
    except _MISFITS as error:
        log.debug("the windows of this base model can't be told: %s", error)
        return None


def _has_short_windows(network: AdaptedNetwork) -> bool:
    windows = windows_of(network.module)
    return bool(windows) and min(windows) < network.max_tokens and max(windows) <= WINDOW_MOST


def _tell_padded(network: AdaptedNetwork) -> None:
    window = window_of(network.module)
    if window is not None and window < network.max_tokens:
        log.info(
            "texts of up to %d tokens reach beyond this base model's window of %d: they are read padded, "
            "and people are trained one by one; --max-tokens %d spares that",
            network.max_tokens,
            window,
            window,
        )
    elif network.causal:
        log.info("this base model does not bear texts in one row: a prompt is read again with each response")


def _cheapest_first(network: AdaptedNetwork) -> Iterator[tuple[str, Callable[[], AnyTail]]]:
    """(what it is, how it is made) of all tails but the full one over padded texts, the cheapest first."""
    reaches = _reaches(network)
    packings: dict[str, Callable[[], Packing]] = {
        "texts in rows, attention by pieces": lambda: RowPacking(network, pieces=True, reaches=reaches),
        "texts in rows, under a mask": lambda: RowPacking(network, pieces=False),
        "padded texts": lambda: Padded(network),
    }
    kinds: tuple[type[PooledTail | TokenwiseTail | BlockTail], ...] = (BlockTail,)
    if not network.adapted_modules:
        kinds = (PooledTail,)
    elif network.unembedding is None:
        kinds = (TokenwiseTail, BlockTail)
    for kind, (name, packing) in itertools.product(kinds, packings.items()):
        yield f"{kind.name}, {name}", _made_with(kind, network, packing)
    for name, packing in list(packings.items())[:-1]:
        yield f"{FullTail.name}, {name}", _made_with(FullTail, network, packing)


def _made_with(
    kind: type[PooledTail | TokenwiseTail | BlockTail | FullTail],
    network: AdaptedNetwork,
    packing: Callable[[], Packing],
) -> Callable[[], AnyTail]:
    def made() -> AnyTail:
        tail = kind(network, packing())
        if network.unembedding is not None and isinstance(tail, BlockTail | FullTail):
            return ResponseTail(network, tail)
        return tail

    return made


def _first_that_agrees(
    tails: Iterator[tuple[str, Callable[[], AnyTail]]],
    expected: Tensor,
    probes: Sequence[Any],
    effective: MergedWeights,
    network: AdaptedNetwork,
) -> AnyTail | None:
    """The first tail that gives the `expected` embeddings of the probe texts."""
    for name, make in tails:
        try:
            tail = make()
            found = _embed_all(tail, probes, effective)
        except _MISFITS as error:
            log.debug("the path %s does not apply to this base model and these modules: %s", name, error)
            continue
        if _agree(found, expected, network):
            return tail
        log.debug("the path %s does not reproduce the full one here; trying the next", name)
    return None


def check_base(network: AdaptedNetwork, probes: Sequence[Tensor]) -> None:
    """ConfigError when the embedding does not depend on a part of the base that is to be trained."""
    if not network.base:
        return
    full, effective = FullTail(network, Padded(network)), _probe_factors(network)
    changes = {name: change.requires_grad_() for name, change in effective.base.items()}
    embeddings = full.forward(full.collate(full.precompute(probes)), replace(effective, base=changes))
    gradients: Sequence[Tensor | None] = [None] * len(changes)
    if embeddings.requires_grad:
        gradients = torch.autograd.grad(embeddings.sum(), list(changes.values()), allow_unused=True)
    for name, gradient in zip(changes, gradients, strict=True):
        if gradient is None:
            raise ConfigError(f"adapter.share_base names {name}, on which no reward depends; leave it out")


def check_beside(network: AdaptedNetwork, probe: Tensor) -> None:
    """BaseModelError when the states that the model says it has after some blocks are not what the block
    gives: a few families count them otherwise."""
    if not network.beside:
        return
    given: list[Tensor] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        given.append(output[0] if isinstance(output, tuple) else output)

    block = find_blocks(network.module)[1][network.beside - 1]
    ids = probe.to(network.device).unsqueeze(0)
    handle = block.register_forward_hook(see)
    try:
        with torch.no_grad():
            said = network.states(
                network.module(input_ids=ids, attention_mask=torch.ones_like(ids), **network.asked)
            )
    finally:
        handle.remove()
    width = said.shape[-1] // 2
    if not given or not torch.allclose(given[0].reshape(-1, width), said[0, :, :width], atol=1e-5, rtol=1e-3):
        raise BaseModelError(
            f"{type(network.module).__name__} counts the states between its blocks otherwise than others do; "
            "set model.beside to 0"
        )


def _agree(found: Tensor, expected: Tensor, network: AdaptedNetwork) -> bool:
    exact = next(network.module.parameters()).dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    return bool(error < (1e-4 if exact else 5e-2))


def _embed_all(tail: Tail, probes: Sequence[Any], effective: MergedWeights) -> Tensor:
    with torch.no_grad():
        found = tail.forward(tail.collate(tail.precompute(probes)), effective)
    return found[:, :2] if isinstance(tail, ResponseTail) else found  # the number of tokens is no result


def _probe_factors(network: AdaptedNetwork) -> MergedWeights:
    """Factors whose update is felt in every adapted module: as large as a LoRA update ever gets."""
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for module in network.adapted_modules:
        a = torch.randn(4, module.in_features, generator=generator) / module.in_features**0.5
        b = torch.randn(module.out_features, 4, generator=generator) * 0.05
        adapters[module.name] = (a.to(network.device), b.to(network.device))
    changes = {}
    for name in network.base:
        change = torch.randn(network.frozen(name).shape, generator=generator) * 0.05
        changes[name] = change.to(network.device)
    return MergedWeights(adapters, torch.empty(0), changes)
