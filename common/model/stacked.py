"""Several people's factors in one pass through the frozen weights.

Each person's texts are put together as they would be alone (`Tail.collate`); here those packings are joined,
so that a product with a frozen weight sees the tokens of all, and a product with factors each person's own.
Nothing of one person's texts or factors enters another's numbers, not even where they are infinite: what
is filled up is filled with a person's own.

Not every model bears that: `stacked_tail` says which. Prompts are shared among one person's responses as
ever, never among people, whose factors make other states of them.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from penchant.common.model.attention_reach import Reach
from penchant.common.model.batches import (
    AlikePieces,
    Batches,
    Owners,
    PackedRow,
    Piece,
    RowPacking,
    row_under_way,
)
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.log_probability import Predicted
from penchant.common.model.network import ADAPTER, AdaptedNetwork
from penchant.common.model.tails import (
    BlockTail,
    FullTail,
    PackedResponses,
    PackedTokens,
    PooledTail,
    ResponseTail,
    Tail,
    TokenwiseTail,
)

__all__ = ["StackedTail", "StackedWeights", "composes_stacked", "stacked_tail", "stacked_weights"]

_ALIKE = 1.25  # pieces of the attention in one call differ in length by this factor at most


@dataclass(frozen=True)
class StackedWeights:
    """What the model runs with for N people: (A [N, r, in], B [N, out, r]) by module name, the heads [N, d]
    or nothing (0), and what is added to parameters of the base, [N, …] by their path."""

    adapters: Mapping[str, tuple[Tensor, Tensor]]
    heads: Tensor
    base: Mapping[str, Tensor] = field(default_factory=dict)


def stacked_weights(
    split: Split, shared: Mapping[str, Tensor], personal: Mapping[str, Tensor]
) -> StackedWeights:
    """`Split.effective` of N people at once, whose tensors are stacked: [N, …] each."""

    def effective(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[Any, ...]:
        found = split.effective(theirs, own)
        return dict(found.adapters), found.head, dict(found.base)

    split.draw_frozen()  # within vmap it can not
    adapters, heads, base = torch.vmap(effective)(dict(personal), dict(shared))
    return StackedWeights(adapters, heads[:, 0] if heads.numel() else heads, base)


def composes_stacked(split: Split) -> bool:
    """Whether the rule composes factors of many people at once: another package's may do what can't be."""
    vectors = split.initial(0)
    shared, personal = (
        {name: tensor.unsqueeze(0) for name, tensor in layout.unflatten(vector).items()}
        for layout, vector in zip((split.shared, split.personal), vectors, strict=True)
    )
    try:
        stacked_weights(split, shared, personal)
    except RuntimeError:
        return False
    return True


class StackedTail(Protocol):
    """A tail for the texts of N people at a time."""

    def join(self, packed: Sequence[Any]) -> Any:
        """Put each person's packed texts together."""
        ...

    def forward(self, joined: Any, weights: StackedWeights) -> Tensor:
        """What `Tail.forward` gives of each person's texts, one person after the other, [all texts, …]."""
        ...

    def size(self, packed: Any) -> int:
        """How many bytes a step on one person's packed texts holds until its gradients are there: an estimate
        from above."""
        ...


def stacked_tail(tail: Tail, network: AdaptedNetwork, *, gathered: bool | None = None) -> StackedTail | None:
    """The tail of several people that goes with a tail; None where people are served one by one.

    gathered: whether the attention takes pieces of about the same length at once; None: on GPUs.
    """
    if isinstance(tail, PooledTail):
        return _StackedPooled()
    if isinstance(tail, TokenwiseTail):
        return _StackedTokenwise(tail)
    if network.base or not isinstance(tail, BlockTail | FullTail | ResponseTail):
        return None
    if not isinstance(tail.packing, RowPacking) or not tail.packing.by_pieces:
        return None
    on_gpu = network.device.type == "cuda"
    return _StackedRows(tail, network, gathered=on_gpu if gathered is None else gathered)


# --- heads alone ----------------------------------------------------------------------------------


class _StackedPooled:
    """Nothing is adapted: the pooled embeddings are there."""

    def join(self, packed: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(packed))

    def forward(self, joined: Tensor, weights: StackedWeights) -> Tensor:
        return joined

    def size(self, packed: Tensor) -> int:
        return 4 * packed.numel() * packed.element_size()


# --- one adapted module, and the last norm --------------------------------------------------------


@dataclass(frozen=True)
class _JoinedTokens:
    """N people's tokens and texts, each filled up to the most that one of them has, L and M.

    Attributes:
        inputs, centred, squares, share: as of `PackedTokens`, [N, L, …]; of what fills up all are 0.
        token: the places of all tokens among the N · L, text after text.
        first: the index in `token` of each text's first one.
        slot: of each place its text's place among the N · M, [N · L]; of what fills up the own first text's.
        text: the places of all texts among the N · M.
        most: M.
    """

    inputs: Tensor
    centred: Tensor
    squares: Tensor
    share: Tensor
    token: Tensor
    first: Tensor
    slot: Tensor
    text: Tensor
    most: int
    memo: dict[str, Any] = field(default_factory=dict)  # the last product with frozen A


class _StackedTokenwise:
    """As `TokenwiseTail`, with a person's tokens and factors in each matrix of a batched product."""

    def __init__(self, tail: TokenwiseTail) -> None:
        self._tail = tail

    def join(self, packed: Sequence[PackedTokens]) -> _JoinedTokens:
        longest = max(len(one.token) for one in packed)
        most = max(len(one.first) for one in packed)

        def filled(name: str) -> Tensor:
            return pad_sequence([getattr(one, name) for one in packed], batch_first=True)

        texts = [
            F.pad(one.text + number * most, (0, longest - len(one.token)), value=number * most)
            for number, one in enumerate(packed)
        ]
        firsts, before = [], 0
        for one in packed:
            firsts.append(one.first + before)
            before += len(one.token)
        return _JoinedTokens(
            inputs=filled("inputs"),
            centred=filled("centred"),
            squares=filled("squares"),
            share=filled("share"),
            token=torch.cat([one.token + number * longest for number, one in enumerate(packed)]),
            first=torch.cat(firsts),
            slot=torch.cat(texts),
            text=torch.cat([torch.arange(len(one.first)) + n * most for n, one in enumerate(packed)]).to(
                packed[0].token.device
            ),
            most=most,
        )

    def forward(self, joined: _JoinedTokens, weights: StackedWeights) -> Tensor:
        tail = self._tail
        a, b = weights.adapters[tail.module]
        people, width = b.shape[:2]
        b = (tail.scale * (b - b.mean(1, keepdim=True))).mT.contiguous()  # B̃ᵀ [N, r, d]
        u = self._down(joined, a)  # [N, r, L]
        cross = b @ joined.centred.mT + 0.5 * (b @ b.mT) @ u
        variance = (joined.squares + 2 * (u * cross).sum(1)) / width
        shares = joined.share * torch.rsqrt(variance + tail.norm.eps)  # [N, L]
        means = F.embedding_bag(
            joined.token,
            joined.centred.flatten(0, 1),
            joined.first,
            mode="sum",
            per_sample_weights=shares.flatten()[joined.token],
        )  # [all texts, d]
        weighed = (u * shares.unsqueeze(1)).mT.flatten(0, 1)  # [N · L, r]
        moved = weighed.new_zeros(people * joined.most, u.shape[1]).index_add(0, joined.slot, weighed)
        moved = (moved.reshape(people, joined.most, -1) @ b).flatten(0, 1)[joined.text]  # [all texts, d]
        owner = joined.text // joined.most
        gain = _changed(tail.norm.weight, weights.base.get(tail.gain), owner)
        found: Tensor = gain * (means + moved) + _changed(tail.norm.bias, weights.base.get(tail.bias), owner)
        return found

    def size(self, packed: PackedTokens) -> int:
        columns = packed.inputs.shape[1] + packed.centred.shape[1]
        return 4 * len(packed.token) * (2 * columns + 64)

    @staticmethod
    def _down(joined: _JoinedTokens, a: Tensor) -> Tensor:
        """A x of all tokens, [N, r, L]; kept while all A stay frozen."""
        if a.requires_grad:
            return a @ joined.inputs.mT
        kept = joined.memo.get("a")  # which is held, so that nothing else comes to lie where it does
        if kept is None or kept.data_ptr() != a.data_ptr() or joined.memo["version"] != a._version:
            joined.memo.update(a=a, version=a._version, product=a @ joined.inputs.mT)
        product: Tensor = joined.memo["product"]
        return product


def _changed(frozen: Tensor, change: Tensor | None, owner: Tensor) -> Tensor:
    """A parameter [d] of the last norm with each text's owner's change of it, if there is one."""
    return frozen.float() if change is None else (frozen.float() + change)[owner]


# --- factors in blocks ----------------------------------------------------------------------------


class _StackedRows:
    """The rows of several people in one: the network's own forward, with low-rank products of each person's
    tokens and factors in the adapted modules."""

    def __init__(
        self, tail: BlockTail | FullTail | ResponseTail, network: AdaptedNetwork, *, gathered: bool
    ) -> None:
        self._factors = _Factors()
        reaches = tail.packing.reaches if isinstance(tail.packing, RowPacking) else None
        self._packing = _StackedPacking(network, self._factors, reaches)
        self._tail = tail.repacked(self._packing)
        self._gathered = gathered
        self._causal = network.causal
        self._a_token = _bytes_a_token(network)

    def join(self, packed: Sequence[Batches | PackedResponses]) -> Batches | PackedResponses:
        texts = [one.texts if isinstance(one, PackedResponses) else one for one in packed]
        joined = Batches(tuple(self._rows(texts)), _joined_order(texts))
        if not isinstance(packed[0], PackedResponses):
            return joined
        responses = [one for one in packed if isinstance(one, PackedResponses)]
        return PackedResponses(
            joined,
            torch.cat([one.reference for one in responses]),
            torch.cat([one.tokens for one in responses]),
        )

    def forward(self, joined: Any, weights: StackedWeights) -> Tensor:
        self._factors.now = weights.adapters
        try:
            return self._tail.forward(joined, MergedWeights({}, torch.empty(0)))
        finally:
            self._factors.now = None

    def size(self, packed: Batches | PackedResponses) -> int:
        texts = packed.texts if isinstance(packed, PackedResponses) else packed
        return self._a_token * sum(row.ids.numel() for row in texts.batches if isinstance(row, PackedRow))

    def _rows(self, texts: Sequence[Batches]) -> Iterator[PackedRow]:
        """All people's rows in order, joined as far as a row may reach."""
        held: list[tuple[int, PackedRow]] = []
        size = 0
        for person, own in enumerate(texts):
            for row in own.batches:
                if not isinstance(row, PackedRow):
                    raise TypeError("only texts in rows are joined")
                if held and size + row.ids.numel() > self._packing.most_tokens:
                    yield self._joined(held)
                    held, size = [], 0
                held.append((person, row))
                size += row.ids.numel()
        yield self._joined(held)

    def _joined(self, rows: Sequence[tuple[int, PackedRow]]) -> PackedRow:
        one = _joined_row(rows)
        one = replace(one, pooled_owners=_pooled_owners(one))
        if not self._gathered:
            return one
        return replace(one, gathered=tuple(_gathered(one.pieces, self._causal, one.ids.device)))


class _Factors(threading.local):
    """The factors (A, B) by module name that this thread's network computes with."""

    now: Mapping[str, tuple[Tensor, Tensor]] | None = None


class _StackedPacking(RowPacking):
    """Rows of several people: the adapted modules of the copy read each person's factors."""

    def __init__(
        self, network: AdaptedNetwork, factors: _Factors, reaches: Mapping[str, Reach] | None
    ) -> None:
        super().__init__(network, pieces=True, reaches=reaches)
        self._names = tuple(module.name for module in network.adapted_modules)
        self._factors = factors

    def prepare(self, module: Any) -> Any:
        for name in self._names:
            adapted = module.get_submodule(name)
            adapted.forward = _with_each_ones_factors(adapted, name, self._factors)
        return super().prepare(module)


def _with_each_ones_factors(adapted: Any, name: str, factors: _Factors) -> Any:
    """What takes the place of an adapted module's forward: W0 x + (α/r) B_i A_i x, i whose token it is."""
    scale = float(adapted.scaling[ADAPTER])
    base: nn.Module = adapted.base_layer

    def forward(states: Tensor) -> Tensor:
        row = row_under_way()
        if row is None or factors.now is None:
            raise RuntimeError("several people's factors are applied, but not in a row of their texts")
        whole = states.shape[1] == row.ids.numel()  # in the last block's feed-forward part pooled ones alone
        owners = row.owners if whole else row.pooled_owners
        if owners is None:
            raise RuntimeError("whose the tokens of a row are is not known")
        result: Tensor = base(states)
        moved = _low_rank(states[0], *factors.now[name], owners)
        return (result + scale * moved.unsqueeze(0)).to(result.dtype)

    return forward


def _low_rank(x: Tensor, a: Tensor, b: Tensor, owners: Owners) -> Tensor:
    """B_i A_i x of each person's tokens: x [T, in], A [N, r, in], B [N, out, r] -> [T, out].

    On a GPU as two batched products over what is filled up, in the states' number format, elsewhere person by
    person, in the factors' (as peft does).
    """
    if x.is_cuda:
        return _batched_low_rank(x, a.to(x.dtype), b.to(x.dtype), owners)
    downs, ups = a.mT.unbind(0), b.mT.unbind(0)
    parts = torch.split(x.to(a.dtype), [count for _, count in owners.people])
    moved = [part @ downs[i] @ ups[i] for part, (i, _) in zip(parts, owners.people, strict=True)]
    return torch.cat(moved)


def _batched_low_rank(x: Tensor, a: Tensor, b: Tensor, owners: Owners) -> Tensor:
    """As `_low_rank`, in two products for all."""
    filled = x if owners.place is None else x[owners.place]
    filled = filled.reshape(len(owners.people), owners.longest, -1)  # [n, L, in]
    up = ((filled @ a[owners.order].mT) @ b[owners.order].mT).flatten(0, 1)  # [n · L, out]
    return up if owners.back is None else up[owners.back]


def _pooled_owners(row: PackedRow) -> Owners | None:
    """Whose the pooled tokens of a row are, in their order; None where all are pooled."""
    pooled = row.pooled()
    if pooled is None or row.owners is None:
        return None
    ends = torch.tensor([count for _, count in row.owners.people]).cumsum(0)
    places = torch.searchsorted(ends, pooled.cpu(), right=True).tolist()
    counts = Counter(row.owners.people[place][0] for place in places)  # in order of appearance
    return Owners.of(list(counts.items()), row.ids.device)


def _joined_order(texts: Sequence[Batches]) -> Tensor:
    found, before = [], 0
    for one in texts:
        found.append(one.inverse + before)
        before += len(one.inverse)
    return torch.cat(found)


def _joined_row(rows: Sequence[tuple[int, PackedRow]]) -> PackedRow:
    """Some people's rows one behind the other. Two neighbours of the same person's count as one."""
    first = rows[0][1]
    pieces: list[Piece] = []
    tokens: list[Tensor] = []
    predicted: list[Predicted] = []
    people: list[tuple[int, int]] = []
    length = texts = 0
    for person, row in rows:
        before = len(pieces)
        pieces += [replace(p, after=None if p.after is None else p.after + before) for p in row.pieces]
        tokens.append(row.token + length)
        if row.predicted is not None:
            own = row.predicted
            predicted.append(Predicted(own.place + length, own.word, own.response + texts, own.count))
        if people and people[-1][0] == person:
            people[-1] = (person, people[-1][1] + row.ids.numel())
        else:
            people.append((person, row.ids.numel()))
        length += row.ids.numel()
        texts += len(row.lengths)
    states = [row.states for _, row in rows if row.states is not None]
    return PackedRow(
        network=first.network,
        ids=torch.cat([row.ids for _, row in rows], dim=1),
        positions=torch.cat([row.positions for _, row in rows], dim=1),
        states=torch.cat(states, dim=1) if states else None,
        pieces=tuple(pieces),
        mask=None,
        token=torch.cat(tokens),
        lengths=torch.cat([row.lengths for _, row in rows]),
        predicted=_joined_words(predicted) if predicted else None,
        owners=Owners.of(people, first.ids.device),
    )


def _joined_words(some: Sequence[Predicted]) -> Predicted:
    return Predicted(
        torch.cat([one.place for one in some]),
        torch.cat([one.word for one in some]),
        torch.cat([one.response for one in some]),
        sum(one.count for one in some),
    )


def _gathered(pieces: Sequence[Piece], causal: bool, device: torch.device) -> Iterator[AlikePieces]:
    """The pieces of a row by their lengths and what is before them."""
    starts = torch.tensor([0, *(piece.length for piece in pieces)]).cumsum(0).tolist()
    kinds: dict[tuple[int, int], list[int]] = {}
    for number, piece in enumerate(pieces):
        before = 0 if piece.after is None else pieces[piece.after].length
        kind = (math.ceil(math.log(piece.length, _ALIKE)), math.ceil(math.log(before + 1, _ALIKE)))
        kinds.setdefault(kind, []).append(number)
    for members in kinds.values():
        yield _alike(members, pieces, starts, causal, device)


def _alike(
    members: Sequence[int], pieces: Sequence[Piece], starts: Sequence[int], causal: bool, device: torch.device
) -> AlikePieces:
    own, seen, befores = [], [], []
    for number in members:
        piece, start = pieces[number], starts[number]
        tokens = torch.arange(start, start + piece.length)
        before = torch.arange(0)
        if piece.after is not None:
            begin = starts[piece.after]
            before = torch.arange(begin, begin + pieces[piece.after].length)
        own.append(tokens)
        seen.append(torch.cat([before, tokens]))
        befores.append(len(before))
    length, reach = max(len(one) for one in own), max(len(one) for one in seen)
    asked, there = torch.arange(length), torch.arange(reach)
    masks = []
    for tokens, all_seen, count in zip(own, seen, befores, strict=True):
        last = (
            count + torch.where(asked < len(tokens), asked, 0) if causal else torch.tensor(len(all_seen) - 1)
        )
        last = last.expand(length)
        masks.append((there <= last[:, None]) & (there < len(all_seen)))
    valid = torch.stack([asked < len(one) for one in own])
    return AlikePieces(
        asking=torch.stack([_filled(one, length, int(one[0])) for one in own]).to(device),
        seen=torch.stack([_filled(s, reach, int(o[0])) for s, o in zip(seen, own, strict=True)]).to(device),
        mask=torch.stack(masks).unsqueeze(1).to(device),
        place=valid.flatten().nonzero()[:, 0].to(device),
        token=torch.cat(own).to(device),
    )


def _filled(places: Tensor, length: int, value: int) -> Tensor:
    return F.pad(places, (0, length - len(places)), value=value)


def _bytes_a_token(network: AdaptedNetwork) -> int:
    """What a token's states weigh that are held until the gradients are there: counted as what all linear
    modules read and write, twice, in the model's number format."""
    numbers = 0
    for module in network.module.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding):
            numbers += sum(weight.shape)
    return 2 * numbers * next(network.module.parameters()).element_size()
