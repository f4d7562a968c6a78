"""What a training step holds until its gradients are there, and how it is cut so that this is bounded.

What autograd keeps grows with the tokens that are read and with what attention computes of them, and how much
a token takes depends on the base model and on what is trained: so it is measured, on a few short texts, once
for each set of trained factors. A batch that would hold more than a bound is computed portion by portion;
where that reads the same prompts too often, or one pair alone is too much, blocks are computed again on the
way back (`recomputed`). Below the bound nothing is different.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from penchant.common.model.batches import Batches, PackedRow, PaddedBatch, RowPacking
from penchant.common.model.factors import MergedWeights
from penchant.common.model.log_probability import ResponseTokens
from penchant.common.model.network import AdaptedNetwork
from penchant.common.model.recomputed import blocks_recomputed
from penchant.common.model.tails import PackedResponses, PackedTokens, Tail

__all__ = ["STEP_BYTES", "STEP_BYTES_GPU", "Paired", "Portion", "StepMemory"]

STEP_BYTES, STEP_BYTES_GPU = 1 << 30, 8 << 30
"""What a step may hold where nobody says otherwise: fixed, for results must not depend on the memory that a
machine happens to have. A device's training has a quarter of `max_training_mb`: by default the first."""

_PROBE_TOKENS = 32  # of a text on which it is measured, at most
_AGAIN = 1.35  # times the work of a step, where blocks are computed again on the way back: measured
_MISFITS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Portion:
    """Pairs of a batch, one behind the other, that are computed at once; recomputed: blocks run again on the
    way back."""

    rows: range
    recomputed: bool = False


class Paired(Protocol):
    """Pairs over packed texts: `reward.PreparedPairs`."""

    @property
    def texts(self) -> Any: ...
    @property
    def chosen(self) -> Tensor: ...
    @property
    def rejected(self) -> Tensor: ...


class _Work(NamedTuple):
    """What reading some texts takes: tokens in the network, pairs of tokens in the attention, and tokens of
    beginnings that are laid beside those that follow them."""

    tokens: float = 0.0
    products: float = 0.0
    before: float = 0.0

    def times(self, bytes_each: _Work) -> float:
        return sum(a * b for a, b in zip(self, bytes_each, strict=True))

    def less(self, other: _Work) -> _Work:
        return _Work(*(a - b for a, b in zip(self, other, strict=True)))

    def plus(self, other: _Work) -> _Work:
        return _Work(*(a + b for a, b in zip(self, other, strict=True)))


class StepMemory:
    """What steps of one model hold. Thread-safe.

    Args:
        tail: what runs at every step.
        network: what it runs.
    """

    def __init__(self, tail: Tail, network: AdaptedNetwork) -> None:
        self._tail = tail
        self._network = network
        self._plain: dict[Any, _Work] = {}
        self._recomputed: dict[Any, _Work | None] = {}

    def portions(
        self, batch: Paired, effective: MergedWeights, most_bytes: int | None = None, most_pairs: int = 0
    ) -> list[Portion]:
        """How to cut a batch so that a step on each portion holds at most so many bytes, or is on one pair.

        effective: the factors, of which those that are trained require gradients; most_pairs: in a portion,
        0 for as many as there are.
        """
        most_bytes = self.bound(most_bytes)
        texts, shape = _texts(batch.texts.packed), self._shape(batch.texts.packed)
        pairs = list(zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True))
        plain = self._plain_rates(effective)
        held = list(_cut(texts, shape, pairs, plain, most_bytes, most_pairs))
        if all(one.bytes <= most_bytes for one in held) and len(held) <= _fewest(len(pairs), most_pairs):
            return [Portion(one.rows) for one in held]
        again = self._recomputed_rates(effective)
        if again is None:
            return [Portion(one.rows) for one in held]
        fewer = list(_cut(texts, shape, pairs, again, most_bytes, most_pairs))
        mixed = sum(one.tokens * (_AGAIN if one.bytes > most_bytes else 1.0) for one in held)
        if sum(one.tokens for one in fewer) * _AGAIN < mixed:
            return [Portion(one.rows, recomputed=True) for one in fewer]
        return [Portion(one.rows, one.bytes > most_bytes) for one in held]

    def bound(self, asked: int | None) -> int:
        """What a step may hold: what is asked for, or the fixed bound."""
        if asked is not None:
            return asked
        return STEP_BYTES_GPU if self._network.device.type == "cuda" else STEP_BYTES

    def of(self, packed: Any, effective: MergedWeights) -> int:
        """How many bytes a step on all of the texts holds, if it is not cut."""
        return int(self._work(packed).times(self._plain_rates(effective)))

    def of_batches(self, batch: Paired, effective: MergedWeights, count: int) -> int:
        """How many bytes a step holds on any so many of the pairs, from above: on the heaviest of them, as if
        no two pairs began alike. For texts in rows."""
        texts, shape = _texts(batch.texts.packed), self._shape(batch.texts.packed)
        rates, each = self._plain_rates(effective), []
        for pair in zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
            reading = shape()
            for place in pair:
                reading.add(place, texts[place])
            each.append(reading.work().times(rates))
        return int(sum(sorted(each)[-count:]))

    def slopes_fit(self, packed: Any, effective: MergedWeights, most_bytes: int | None) -> bool:
        """Whether the gradients of each text's own score can be taken at once: on the way back each state
        then has a slope for each text."""
        texts, blocks = len(_texts(packed)), max(self._blocks, 1)
        return self.of(packed, effective) * (1 + texts / blocks) <= self.bound(most_bytes)

    def can_recompute(self, effective: MergedWeights) -> bool:
        """Whether a step holds less where blocks are computed again on the way back."""
        return self._recomputed_rates(effective) is not None

    # --- measuring --------------------------------------------------------------------------------

    def _plain_rates(self, effective: MergedWeights) -> _Work:
        """Bytes of each kind of work, of a usual step."""
        key = _trained(effective)
        if key not in self._plain:
            self._plain[key] = self._measured(_alone(effective))
        return self._plain[key]

    def _recomputed_rates(self, effective: MergedWeights) -> _Work | None:
        """Bytes of each kind of work where blocks are computed again, the one that is under way with all that
        it keeps; None where that spares nothing, or is not what a step without it computes."""
        key = _trained(effective)
        if key not in self._recomputed:
            self._recomputed[key] = self._tried(effective)
        return self._recomputed[key]

    def _tried(self, effective: MergedWeights) -> _Work | None:
        if self._blocks < 2 or not any(_trained(effective)):
            return None
        plain, alone = self._plain_rates(effective), _alone(effective)
        try:
            if not self._agree(alone):
                raise ValueError("other gradients")
            with blocks_recomputed():
                outside = self._measured(alone)
        except _MISFITS as error:
            log.info("blocks of this base model can't be computed again on the way back: %s", error)
            return None
        inside = _Work(*(rate / self._blocks for rate in plain))
        both = outside.plus(inside)
        return both if both.tokens < plain.tokens else None

    def _agree(self, alone: MergedWeights) -> bool:
        """Whether gradients are the same where blocks are computed again."""
        half = max(self._longest // 2, 1)
        packed = self._packed([self._ids(0, half), self._ids(1, half)])
        found = []
        for again in (False, True):
            with torch.enable_grad(), blocks_recomputed(again):
                total = self._tail.forward(packed, alone).square().sum()
            found.append(torch.autograd.grad(total, _leaves(alone), allow_unused=True))
        return all(
            one is other if one is None or other is None else _near(one, other)
            for one, other in zip(*found, strict=True)
        )

    def _measured(self, alone: MergedWeights) -> _Work:
        """From what is held of two texts, two longer ones, three, and three of which two begin alike: what
        does not grow with texts is in none of the differences. Two, for of one alone some models copy less.
        """
        long = self._longest
        half = max(long // 2, 1)
        one, other, third = (self._ids(first, long) for first in range(3))
        alike = torch.cat([one[:half], third[: long - half]])
        sets = [[one[:half], other[:half]], [one, other], [one, other, third], [one, other, alike]]
        (w0, y0), (w1, y1), (w2, y2), (w3, y3) = (self._held(texts, alone) for texts in sets)
        length, count, begun = w1.less(w0), w2.less(w1), w3.less(w1)
        det = length.tokens * count.products - count.tokens * length.products
        product = 0.0
        if det:
            product = max((length.tokens * (y2 - y1) - count.tokens * (y1 - y0)) / det, 0.0)
        token = max(y2 - y1 - product * count.products, 0.0) / count.tokens
        before = 0.0
        if begun.before > 0:
            rest = y3 - y1 - token * begun.tokens - product * begun.products
            before = max(rest, 0.0) / begun.before
        return _Work(token, product, before)

    def _held(self, ids: Sequence[Tensor], alone: MergedWeights) -> tuple[_Work, int]:
        """The work of reading some texts, and the bytes that it leaves behind until the gradients are there,
        the base model's weights apart."""
        packed = self._packed(ids)
        held = {tensor.untyped_storage().data_ptr(): tensor for tensor in _tensors(packed)}

        def keep(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self._tail.forward(packed, alone)
        for weight in self._network.module.parameters():
            held.pop(weight.untyped_storage().data_ptr(), None)
        return self._work(packed), sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    def _packed(self, ids: Sequence[Tensor]) -> Any:
        texts: Sequence[Any] = ids
        if self._network.unembedding is not None:
            texts = [ResponseTokens(one, 1) for one in ids]
        return self._tail.collate(self._tail.precompute(texts))

    def _ids(self, first: int, count: int) -> Tensor:
        embeddings: Any = self._network.module.get_input_embeddings()  # type: ignore[operator]
        return (torch.arange(count) + first) % int(embeddings.num_embeddings)

    @property
    def _longest(self) -> int:
        return min(self._network.max_tokens, _PROBE_TOKENS)

    @property
    def _blocks(self) -> int:
        """How many blocks run at a step."""
        return int(getattr(self._tail, "blocks", 0))

    # --- counting ---------------------------------------------------------------------------------

    def _work(self, packed: Any) -> _Work:
        reading = self._shape(packed)()
        for place, text in enumerate(_texts(packed)):
            reading.add(place, text)
        return reading.work()

    def _shape(self, packed: Any) -> Callable[[], _Reading]:
        if not isinstance(packed, Batches | PackedResponses):
            return _ByPieces
        packing = getattr(self._tail, "packing", None)
        if not isinstance(packing, RowPacking):
            return _Padded
        return _ByPieces if packing.by_pieces else _UnderMask


# --- texts, and what reading them takes -----------------------------------------------------------


@dataclass(frozen=True)
class _BatchText:
    """One of a batch's texts: the number of its beginning, the tokens of that which it shares with other
    texts, and its own."""

    beginning: int
    shared: int
    own: int


def _texts(packed: Any) -> list[_BatchText]:
    """Those of a batch, in the given order."""
    if isinstance(packed, PackedResponses):
        return _texts(packed.texts)
    if isinstance(packed, PackedTokens):
        ends = [*packed.first.tolist()[1:], len(packed.token)]
        starts = packed.first.tolist()
        return [
            _BatchText(n, 0, end - start) for n, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
    if not isinstance(packed, Batches):
        return [_BatchText(number, 0, 1) for number in range(len(packed))]
    found: list[_BatchText] = []
    for batch in packed.batches:
        if isinstance(batch, PaddedBatch):
            found += [_BatchText(len(found) + n, 0, own) for n, own in enumerate(batch.mask.sum(1).tolist())]
        elif isinstance(batch, PackedRow):
            found += _texts_of_row(batch, len(found))
    return [found[place] for place in packed.inverse.tolist()]


def _texts_of_row(row: PackedRow, number: int) -> Iterator[_BatchText]:
    """The texts of a row, whose beginnings have numbers from `number` on."""
    lengths = row.lengths.tolist()
    places = torch.split(row.token, lengths)
    firsts = row.token[row.lengths.cumsum(0) - row.lengths].tolist()
    begin = 0
    for _, members in itertools.groupby(firsts):  # texts that begin alike stand beside each other
        end = begin + len(list(members))
        shared = 0
        if end - begin > 1:  # what follows the beginning is somewhere else, but for the first of them
            last = places[end - 1]
            shared = int((last.diff() != 1).nonzero()[0]) + 1
        yield from (_BatchText(number + begin, shared, length - shared) for length in lengths[begin:end])
        begin = end


class _Reading:
    """Texts that are read at once, as attention goes by pieces."""

    def __init__(self) -> None:
        self._places: set[int] = set()
        self._tokens: dict[int, int] = {}  # by beginning

    def add(self, place: int, text: _BatchText) -> None:
        """One more text, unless it is there."""
        if place in self._places:
            return
        self._places.add(place)
        known = self._tokens.get(text.beginning)
        self._tokens[text.beginning] = (text.shared if known is None else known) + text.own
        self._count(text, known)

    def work(self) -> _Work:
        raise NotImplementedError

    def _count(self, text: _BatchText, known: int | None) -> None:
        raise NotImplementedError


class _InRows(_Reading):
    """Texts whose work adds up."""

    def __init__(self) -> None:
        super().__init__()
        self._done = _Work()

    def work(self) -> _Work:
        return self._done


class _ByPieces(_InRows):
    """Each text sees its beginning and itself."""

    def _count(self, text: _BatchText, known: int | None) -> None:
        whole = text.shared + text.own
        new = text.own if known is not None else whole
        self._done = self._done.plus(_Work(new, new * whole, text.shared))


class _UnderMask(_InRows):
    """All that begins alike is one row, of which every token meets every other."""

    def _count(self, text: _BatchText, known: int | None) -> None:
        before, now = known or 0, self._tokens[text.beginning]
        self._done = self._done.plus(_Work(now - before, now**2 - before**2))


class _Padded(_Reading):
    """All texts are filled up to the longest; from above, for texts of about the same length are together."""

    def __init__(self) -> None:
        super().__init__()
        self._longest = 0

    def work(self) -> _Work:
        count = len(self._places)
        return _Work(count * self._longest, count * self._longest**2)

    def _count(self, text: _BatchText, known: int | None) -> None:
        self._longest = max(self._longest, text.own)


# --- cutting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """Pairs, what a step on them holds, and the tokens that it reads."""

    rows: range
    bytes: float
    tokens: float


def _cut(
    texts: Sequence[_BatchText],
    shape: Callable[[], _Reading],
    pairs: Sequence[tuple[int, int]],
    rates: _Work,
    most_bytes: int,
    most_pairs: int,
) -> Iterator[_Held]:
    """As many pairs at a time as the bounds allow, at least one."""
    begin = 0
    while begin < len(pairs):
        limit = min(begin + most_pairs, len(pairs)) if most_pairs else len(pairs)
        yield (held := _next(texts, shape, pairs, rates, most_bytes, range(begin, limit)))
        begin = held.rows.stop


def _next(
    texts: Sequence[_BatchText],
    shape: Callable[[], _Reading],
    pairs: Sequence[tuple[int, int]],
    rates: _Work,
    most_bytes: int,
    rows: range,
) -> _Held:
    """The first of the rows that fit. Not in the midst of pairs that begin alike, unless less than half of
    the bound would be used."""
    reading, held = shape(), _Held(range(rows.start, rows.start), 0.0, 0.0)
    whole = held  # up to where pairs begin otherwise
    for row in rows:
        if row > rows.start and _beginnings(texts, pairs[row]).isdisjoint(_beginnings(texts, pairs[row - 1])):
            whole = held
        for place in pairs[row]:
            reading.add(place, texts[place])
        work = reading.work()
        size = work.times(rates)
        if size > most_bytes and row > rows.start:
            return whole if len(whole.rows) and whole.bytes * 2 >= most_bytes else held
        held = _Held(range(rows.start, row + 1), size, work.tokens)
    return held


def _beginnings(texts: Sequence[_BatchText], pair: tuple[int, int]) -> set[int]:
    return {texts[place].beginning for place in pair}


def _fewest(pairs: int, most_pairs: int) -> int:
    return -(-pairs // most_pairs) if most_pairs else 1


# --- factors, and what holds memory ---------------------------------------------------------------


def _trained(effective: MergedWeights) -> tuple[Any, ...]:
    """Which factors require gradients, and of which rank they are."""
    factors = [
        (name, len(a), a.requires_grad, b.requires_grad)
        for name, (a, b) in effective.adapters.items()
        if a.requires_grad or b.requires_grad
    ]
    return *factors, *(name for name, change in effective.base.items() if change.requires_grad)


def _alone(effective: MergedWeights) -> MergedWeights:
    """The same factors without what they were made of."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.requires_grad)

    return replace(
        effective,
        adapters={name: (leaf(a), leaf(b)) for name, (a, b) in effective.adapters.items()},
        base={name: leaf(change) for name, change in effective.base.items()},
    )


def _leaves(alone: MergedWeights) -> list[Tensor]:
    every = [*itertools.chain.from_iterable(alone.adapters.values()), *alone.base.values()]
    return [tensor for tensor in every if tensor.requires_grad]


def _near(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max())
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


def _tensors(packed: Any) -> Iterator[Tensor]:
    """All tensors of packed texts."""
    if isinstance(packed, Tensor):
        yield packed
    elif isinstance(packed, tuple | list):
        for one in packed:
            yield from _tensors(one)
    elif is_dataclass(packed) and not isinstance(packed, AdaptedNetwork):
        for field in fields(packed):
            yield from _tensors(getattr(packed, field.name))
