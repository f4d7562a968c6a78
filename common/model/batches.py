"""How texts are put together for a forward pass, and their states taken apart again.

- `Padded`: texts of about the same length, filled up at the right: what every model reads.
- `RowPacking`: texts one behind the other in one row, nothing filled up. Each token's position is that in its
  text, and a causal model reads the tokens that some texts begin with once for all of them
  (`beginnings.group`): each text's own tokens see the beginning and themselves. Gradients go the same way.
  What a token may see is said in one of two ways: the attention is computed piece by piece
  (`_attend_by_pieces`: nothing masked is computed, many texts a row), or under a mask [T, T], for models that
  have an attention of their own (one group a row).

Where one token of a text is pooled, the last block's feed-forward part runs on those tokens alone.
Which of them a model bears is found out by trying: `tails.choose_tail`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from penchant.common.model.attention_reach import Reach, window_of
from penchant.common.model.beginnings import AlikeTexts, group
from penchant.common.model.log_probability import Predicted
from penchant.common.model.modules import find_blocks, is_linear
from penchant.common.model.network import AdaptedNetwork

__all__ = [
    "AlikePieces",
    "Batch",
    "Batches",
    "Owners",
    "PackedRow",
    "Packing",
    "Padded",
    "Piece",
    "RowPacking",
    "reading_again",
    "row_under_way",
    "within",
]

_BATCH_TEXTS = 32
_BATCH_TOKENS = 8192
_PRODUCTS_MOST = 512 * 512  # tokens that ask times tokens that are seen
_BY_PIECES = "penchant_pieces"  # the attention's name among those of transformers
_REACH = "penchant_reach"  # of an attention module: how far it reaches, where that is not all of a text


class Batch(Protocol):
    """Some texts in one forward pass. states: [b, L, d], what the first block that runs is given, or None."""

    @property
    def states(self) -> Tensor | None: ...

    def inputs(self) -> dict[str, Any]:
        """What the network is called with."""
        ...

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Entered around the call."""
        ...

    def pool(self, states: Tensor) -> Tensor:
        """The network's last states [b, L, d] -> pooled embeddings [texts, d] float32; where the responses'
        starts are known, their log-probabilities [texts] float32."""
        ...

    def apart(self, states: Tensor) -> list[Tensor]:
        """What there is of each token of the batch, [b, L, …] -> [tokens, …] of each text, in memory of its
        own."""
        ...


@dataclass(frozen=True)
class Batches:
    """Batches, and where each text went: embeddings[inverse] is the given order."""

    batches: tuple[Batch, ...]
    inverse: Tensor


def within(sizes: Sequence[float], most: float) -> Iterator[range]:
    """Neighbouring places whose sizes add up to `most` at most, as many at a time as fit, at least one."""
    start, held = 0, 0.0
    for place, size in enumerate(sizes):
        if place > start and held + size > most:
            yield range(start, place)
            start, held = place, 0.0
        held += size
    if sizes:
        yield range(start, len(sizes))


class Packing(Protocol):
    """A way to put texts together."""

    name: str

    def prepare(self, module: Any) -> Any:
        """What must be changed in a copy of the network, in place; -> the copy."""
        ...

    def collate(
        self, ids: Sequence[Tensor], states: Sequence[Tensor] | None, starts: Sequence[int] | None = None
    ) -> Batches:
        """Put texts together: ids [L] each, states [L, d] each or None, and where their responses start, in
        tokens, or None."""
        ...


# --- padded ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaddedBatch:
    """Some texts of about the same length: ids [b, L], mask [b, L], states [b, L, d] or None."""

    network: AdaptedNetwork
    ids: Tensor
    mask: Tensor
    states: Tensor | None
    predicted: Predicted | None = None

    def inputs(self) -> dict[str, Any]:
        return {"input_ids": self.ids, "attention_mask": self.mask}

    def running(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def pool(self, states: Tensor) -> Tensor:
        if self.predicted is not None and self.network.unembedding is not None:
            return self.predicted.sums(states.flatten(0, 1), self.network.unembedding)
        return self.network.pool(states, self.mask)

    def apart(self, states: Tensor) -> list[Tensor]:
        return [own[:length].clone() for own, length in zip(states, self.mask.sum(1).tolist(), strict=True)]


class Padded:
    """Batches sorted by length, each filled up to its own longest."""

    name = "padded"

    def __init__(self, network: AdaptedNetwork) -> None:
        self._network = network
        self._turns = _turning_length(network)

    def prepare(self, module: Any) -> Any:
        return module

    def collate(
        self, ids: Sequence[Tensor], states: Sequence[Tensor] | None, starts: Sequence[int] | None = None
    ) -> Batches:
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        batches = []
        start = 0
        while start < len(order):
            end = start + 1
            while (
                end < len(order)
                and end - start < _BATCH_TEXTS
                and len(ids[order[end]]) * (end - start + 1) <= _BATCH_TOKENS
                and not len(ids[order[start]]) <= self._turns < len(ids[order[end]])
            ):
                end += 1
            batches.append(self._batch(order[start:end], ids, states, starts))
            start = end
        return Batches(tuple(batches), _inverse(order, self._network.device))

    def _batch(
        self,
        chosen: Sequence[int],
        ids: Sequence[Tensor],
        states: Sequence[Tensor] | None,
        starts: Sequence[int] | None,
    ) -> PaddedBatch:
        some = [ids[i] for i in chosen]
        padded = pad_sequence(some, batch_first=True, padding_value=self._network.pad_id)
        mask = pad_sequence([torch.ones_like(one) for one in some], batch_first=True)
        predicted = None
        if starts is not None:
            (token,) = mask.flatten().nonzero(as_tuple=True)
            predicted = Predicted.of(
                token, [len(o) for o in some], [starts[i] for i in chosen], padded.flatten()
            )
        return PaddedBatch(
            self._network,
            padded,
            mask,
            None if states is None else pad_sequence([states[i] for i in chosen], batch_first=True),
            predicted,
        )


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """`length` tokens of a row that see each other (the earlier ones, in a causal model) and all of the piece
    at place `after`, if any.

    seen: where there is such a piece, what is added to the attention's numbers, [1, 1, length, length of
    both]; on CPUs that is a third faster than a mask of booleans.
    """

    length: int
    after: int | None = None
    seen: Tensor | None = None


@dataclass(frozen=True)
class AlikePieces:
    """P pieces of about the same length in one call of the attention.

    Attributes:
        asking: the places in the row of their tokens, filled up with a piece's own first one, [P, L].
        seen: of those that they see, filled up likewise, [P, S].
        mask: which of those each token sees, [P, 1, L, S].
        place: of all their tokens among the P · L, and `token` their places in the row.
    """

    asking: Tensor
    seen: Tensor
    mask: Tensor
    place: Tensor
    token: Tensor


@dataclass(frozen=True)
class Owners:
    """Whose the tokens of a row are.

    Attributes:
        people: (number, tokens) from left to right.
        order: their numbers, [n].
        longest: the most tokens of one of them, L.
        place: the places of each one's tokens, filled up to L with the own first one, [n · L]; None where all
            have as many.
        back: the places of all tokens among the n · L, where they are filled up.
    """

    people: tuple[tuple[int, int], ...]
    order: Tensor
    longest: int
    place: Tensor | None
    back: Tensor | None

    @classmethod
    def of(cls, people: Sequence[tuple[int, int]], device: torch.device) -> Owners:
        """From (number, tokens) from left to right."""
        order = torch.tensor([person for person, _ in people], device=device)
        counts = [count for _, count in people]
        longest, place, back = max(counts), None, None
        if len(set(counts)) > 1:
            starts = torch.tensor([0, *counts[:-1]]).cumsum(0)[:, None]
            offset = torch.arange(longest)
            own = offset < torch.tensor(counts)[:, None]  # [n, L]
            place = torch.where(own, starts + offset, starts).flatten().to(device)
            back = own.flatten().nonzero()[:, 0].to(device)
        return cls(tuple(people), order, longest, place, back)


@dataclass(frozen=True)
class PackedRow:
    """Texts in one row of T tokens: ids, positions [1, T], states [1, T, d] or None.

    Attributes:
        owners: whose tokens these are, where several people's texts are in the row.
        pooled_owners: and whose the pooled ones.
        gathered: the pieces by their lengths, where those of about the same length are attended to at once.
        pieces: of the row, from left to right.
        mask: what each token sees, [1, 1, T, T] to be added; None where attention goes by pieces.
        token: the places in the row of all texts' tokens, text after text, [all tokens].
        lengths: tokens of each text, [texts].
        predicted: the words of the texts' responses, where those are what is read.
    """

    network: AdaptedNetwork
    ids: Tensor
    positions: Tensor
    states: Tensor | None
    pieces: tuple[Piece, ...]
    mask: Tensor | None
    token: Tensor
    lengths: Tensor
    predicted: Predicted | None = None
    owners: Owners | None = None
    pooled_owners: Owners | None = None
    gathered: tuple[AlikePieces, ...] = ()
    narrowed: dict[Any, Tensor] = field(default_factory=dict, repr=False)  # masks by what is asked for

    def inputs(self) -> dict[str, Any]:
        given: dict[str, Any] = {"input_ids": self.ids, "position_ids": self.positions}
        if self.mask is not None:
            given["attention_mask"] = self.mask
        if self.network.causal:
            given["use_cache"] = False
        return given

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        before, _under_way.row = _under_way.row, self
        try:
            yield
        finally:
            _under_way.row = before

    def pool(self, states: Tensor) -> Tensor:
        if self.predicted is not None and self.network.unembedding is not None:
            return self.predicted.sums(states[0], self.network.unembedding)
        rows = states[0].float()
        if (pooled := self.pooled()) is not None:
            return rows[pooled]
        totals = F.embedding_bag(self.token, rows, self.lengths.cumsum(0) - self.lengths, mode="sum")
        return totals / self.lengths.unsqueeze(-1)

    def apart(self, states: Tensor) -> list[Tensor]:
        return [states[0, own] for own in torch.split(self.token, self.lengths.tolist())]

    def seen_within(self, reach: Reach, number: int) -> Tensor | None:
        """What is added to the attention's numbers of a piece in a block of that reach, as `Piece.seen`."""
        piece = self.pieces[number]
        before = 0 if piece.after is None else self.pieces[piece.after].length
        if reach.holds(before + piece.length):
            return piece.seen
        key = (reach, before, piece.length)
        if key not in self.narrowed:
            place = torch.arange(before + piece.length, device=self.ids.device)
            seen = reach.sees(place[before:, None] - place)  # [length, length of both]
            mask = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
            self.narrowed[key] = mask[None, None]
        return self.narrowed[key]

    def gathered_within(self, reach: Reach) -> tuple[AlikePieces, ...]:
        """The gathered pieces with the masks of a block of that reach."""
        for number, some in enumerate(self.gathered):
            key = (reach, number)
            if key not in self.narrowed:
                asking, seen = (self.positions[0][places] for places in (some.asking, some.seen))
                away = asking[:, :, None] - seen[:, None]  # [P, L, S]
                self.narrowed[key] = some.mask & reach.sees(away).unsqueeze(1)
        return tuple(
            replace(some, mask=self.narrowed[reach, number]) for number, some in enumerate(self.gathered)
        )

    def pooled(self) -> Tensor | None:
        """The places in the row of the tokens that are pooled, one a text, or from which a word is predicted;
        None where all are."""
        if self.predicted is not None:
            read: Tensor = self.predicted.place.unique()  # type: ignore[no-untyped-call]
            return read
        ends = self.lengths.cumsum(0)
        places = {"last": ends - 1, "first": ends - self.lengths}.get(self.network.pooling)
        return None if places is None else self.token[places]


class RowPacking:
    """Texts in rows. pieces: attention by pieces, else under a mask. reaches: how far each attention reaches,
    by its module's name (`attention_reach.reaches_of`), where some have windows shorter than the texts.

    Raises:
        TypeError: the model reads longer texts than its attention reaches, and not by pieces of which that
            can be cut out; or long ones in another way than short ones; or its attention is not the one that
            can go by pieces.
    """

    def __init__(
        self, network: AdaptedNetwork, *, pieces: bool, reaches: Mapping[str, Reach] | None = None
    ) -> None:
        settings: Any = network.module.config
        window = window_of(network.module)
        narrow = window is not None and window < network.max_tokens
        if narrow and (not pieces or reaches is None):
            raise TypeError(f"texts of {network.max_tokens} tokens reach beyond a window of {window}")
        if (turns := _turning_length(network)) < network.max_tokens:
            raise TypeError(f"texts of more than {turns} tokens are read in another way")
        if pieces and getattr(settings, "_attn_implementation", None) != "sdpa":
            raise TypeError("the attention is not scaled_dot_product_attention")
        if not pieces and not network.causal:
            raise TypeError("without a causal order nothing is shared, and a mask spares nothing")
        table = int(getattr(settings, "max_position_embeddings", 0) or _BATCH_TOKENS)
        self.reaches = reaches if narrow else None
        # Tables and windows may go by places in a row, unless the windows are cut out of each text.
        self.most_tokens = min(_BATCH_TOKENS, table, _BATCH_TOKENS if window is None or narrow else window)
        self._network = network
        self.by_pieces = pieces
        self.name = "pieces" if pieces else "mask"
        if pieces:
            _make_known()

    def prepare(self, module: Any) -> Any:
        if self.by_pieces:
            module.config._attn_implementation = _BY_PIECES
            for name, reach in (self.reaches or {}).items():
                vars(module.get_submodule(name))[_REACH] = reach
        _spare_feed_forward(find_blocks(module)[1][-1])
        return module

    def collate(
        self, ids: Sequence[Tensor], states: Sequence[Tensor] | None, starts: Sequence[int] | None = None
    ) -> Batches:
        read = [one.tolist() for one in ids]
        if self._network.causal:
            groups = group(read, self.most_tokens)
        else:
            groups = [AlikeTexts((place,), 0) for place in range(len(ids))]
        rows: list[list[AlikeTexts]] = []
        held = 0
        for one in groups:
            size = sum(len(read[m]) for m in one.members) - one.shared * (len(one.members) - 1)
            if rows and self.by_pieces and held + size <= self.most_tokens:
                rows[-1].append(one)
                held += size
            else:
                rows.append([one])
                held = size
        order = [member for one in groups for member in one.members]
        built = tuple(self._row(row, ids, states, starts) for row in rows)
        return Batches(built, _inverse(order, self._network.device))

    def _row(
        self,
        groups: Sequence[AlikeTexts],
        ids: Sequence[Tensor],
        states: Sequence[Tensor] | None,
        starts: Sequence[int] | None,
    ) -> PackedRow:
        """Each group's beginning, if it has one, and what its texts have of their own."""
        place = _Places()
        slices: list[tuple[int, slice]] = []
        for one in groups:
            slices += place.add(one, [len(ids[m]) for m in one.members])
        device = self._network.device
        masked = None if self.by_pieces else _mask(place.pieces, self._network)
        row = torch.cat([ids[text][part] for text, part in slices])
        token, lengths = torch.cat(place.tokens).to(device), [len(tokens) for tokens in place.tokens]
        predicted = None
        if starts is not None:
            own = [starts[member] for one in groups for member in one.members]
            predicted = Predicted.of(token, lengths, own, row)
        return PackedRow(
            network=self._network,
            ids=row.unsqueeze(0),
            positions=torch.cat([torch.arange(s.start, s.stop) for _, s in slices]).unsqueeze(0).to(device),
            states=None if states is None else torch.cat([states[t][s] for t, s in slices]).unsqueeze(0),
            pieces=tuple(self._seeing(place.pieces)) if self.by_pieces else (),
            mask=masked,
            token=token,
            lengths=torch.tensor(lengths, device=device),
            predicted=predicted,
        )

    def _seeing(self, pieces: Sequence[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.after is None:
                yield piece
                continue
            before = pieces[piece.after].length
            seen = torch.zeros(piece.length, before + piece.length)
            seen.masked_fill_(torch.ones_like(seen, dtype=torch.bool).triu(before + 1), -torch.inf)
            yield Piece(piece.length, piece.after, seen.to(self._network.device)[None, None])


class _Places:
    """Where the texts of a row go."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.tokens: list[Tensor] = []  # by text
        self._length = 0

    def add(self, group: AlikeTexts, lengths: Sequence[int]) -> Iterator[tuple[int, slice]]:
        """-> (text, which of its tokens) of each piece that a group adds to the row."""
        shared, beginning = group.shared, None
        before = torch.arange(self._length, self._length + shared)
        if shared:
            beginning = len(self.pieces)
            self._append(Piece(shared))
            yield group.members[0], slice(0, shared)
        for member, length in zip(group.members, lengths, strict=True):
            own = torch.arange(self._length, self._length + length - shared)
            self.tokens.append(torch.cat([before, own]))
            self._append(Piece(length - shared, beginning))
            yield member, slice(shared, length)

    def _append(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self._length += piece.length


def _mask(pieces: Sequence[Piece], network: AdaptedNetwork) -> Tensor:
    """What each token of a row sees, as numbers to add to the attention's: [1, 1, T, T]."""
    number = torch.repeat_interleave(
        torch.arange(len(pieces)), torch.tensor([piece.length for piece in pieces])
    )
    after = torch.tensor([-1 if piece.after is None else piece.after for piece in pieces])[number]
    seen = (number[:, None] == number) | (after[:, None] == number)
    dtype = next(p.dtype for p in network.module.parameters() if p.is_floating_point())
    mask = torch.zeros(seen.shape, dtype=dtype)
    return mask.masked_fill(~seen.tril(), torch.finfo(dtype).min).to(network.device)[None, None]


def _turning_length(network: AdaptedNetwork) -> int:
    """How many tokens the longest text of a batch may have before all of the batch is read in another way:
    LongRoPE has other frequencies for long texts. The longest text's length where there is no such thing.

    Probe texts don't tell: they are short.
    """
    settings: Any = network.module.config
    rope = getattr(settings, "rope_parameters", None) or {}
    kinds = [rope, *(own for own in rope.values() if isinstance(own, dict))]  # some have one a kind of layer
    turns = [
        int(one["original_max_position_embeddings"]) for one in kinds if one.get("rope_type") == "longrope"
    ]
    return min(turns, default=network.max_tokens)


def _inverse(order: Sequence[int], device: torch.device) -> Tensor:
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    return inverse.to(device)


# --- while a row is read --------------------------------------------------------------------------


class _UnderWay(threading.local):
    row: PackedRow | None = None


_under_way = _UnderWay()


def row_under_way() -> PackedRow | None:
    """The row that this thread's network is reading."""
    return _under_way.row


def reading_again() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What to enter where a part of what this thread's network is reading is read once more."""
    row = _under_way.row
    return contextlib.nullcontext if row is None else row.running


def _make_known() -> None:
    """Tell transformers of the attention by pieces: models look it up by its name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_BY_PIECES, _attend_by_pieces)


def _attend_by_pieces(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Each piece of a row alone: query [1, heads, T, d], key and value with as many heads or fewer
    -> [1, T, heads, d]. What else a model hands over is ignored: the check on probe texts would tell."""
    row = _under_way.row
    if row is None or attention_mask is not None:
        raise RuntimeError("attention goes by pieces, but not in a row of them")
    reach: Reach | None = vars(module).get(_REACH)
    if row.gathered:
        gathered = row.gathered if reach is None else row.gathered_within(reach)
        return _attend_gathered(query, key, value, gathered, scaling), None
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    lengths = [piece.length for piece in row.pieces]
    queries, keys, values = (torch.split(whole, lengths, dim=2) for whole in (query, key, value))
    found = []
    for number, piece in enumerate(row.pieces):
        k, v = keys[number], values[number]
        if piece.after is not None:
            k, v = torch.cat([keys[piece.after], k], dim=2), torch.cat([values[piece.after], v], dim=2)
        seen = piece.seen if reach is None else row.seen_within(reach, number)
        found.append(_attend(queries[number], k, v, seen, causal, scaling))
    return torch.cat(found, dim=2).transpose(1, 2), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, causal: bool, scaling: float | None
) -> Tensor:
    fewer = query.shape[1] != key.shape[1]
    if fewer and seen is not None and query.is_cuda:  # there, fewer heads and a mask together are slow
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        fewer = False
    mask = None if seen is None else seen.to(query.dtype)
    if _slow_backwards(query, key, value):
        return _attend_by_products(query, key, value, mask, causal, scaling)
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=fewer
    )


def _slow_backwards(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether plain products are the faster way to gradients: torch's attention on CPUs goes back through
    numbers of 16 bits two to four times as slowly, but for long pieces, whose products are too large."""
    wanted = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    half = query.dtype in (torch.bfloat16, torch.float16) and query.device.type == "cpu"
    return wanted and half and query.shape[2] * key.shape[2] <= _PRODUCTS_MOST


def _attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scaling: float | None
) -> Tensor:
    """As scaled_dot_product_attention: query [1, h, L, d], key and value [1, k, S, d], h a multiple of k.

    What goes into the softmax is in float32, as there: in 16 bits large values are rounded to whole units.
    """
    one, heads, length, width = query.shape
    fewer, reach = key.shape[1:3]
    if mask is None and causal:
        mask = torch.full((length, reach), -torch.inf, device=query.device).triu(1)
    scale = width**-0.5 if scaling is None else scaling
    # Heads that share a key ask together: [1, h, L, d] -> [1, k, h / k · L, d].
    together = (query.float() * scale).reshape(one, fewer, heads // fewer * length, width)
    weights = (together @ key.float().transpose(2, 3)).view(one, heads, length, reach)
    weights = torch.softmax(weights if mask is None else weights + mask.float(), -1).to(value.dtype)
    found = weights.view(one, fewer, heads // fewer * length, reach) @ value
    return found.view(one, heads, length, width)


def _attend_gathered(
    query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[AlikePieces], scaling: float | None
) -> Tensor:
    """As `_attend_by_pieces`, in a few calls for all pieces: on a GPU a call costs more than what is filled
    up. query [1, heads, T, d] -> [1, T, heads, d]."""
    times = query.shape[1] // key.shape[1]
    found = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    for some in pieces:
        q = query[0][:, some.asking].transpose(0, 1)  # [heads, P, L, d] -> [P, heads, L, d]
        k, v = (
            whole[0][:, some.seen].transpose(0, 1).repeat_interleave(times, dim=1) for whole in (key, value)
        )
        each = F.scaled_dot_product_attention(q, k, v, some.mask, scale=scaling)
        rows = each.transpose(1, 2).flatten(0, 1)  # [P · L, heads, d]
        found = found.index_copy(0, some.token, rows[some.place])
    return found.unsqueeze(0)


def _spare_feed_forward(block: nn.Module) -> None:
    """Let the feed-forward part of a network's last block, if it has one of linear modules alone, run on the
    pooled tokens of a row; to the others it adds nothing, and nobody reads them."""
    for name, part in block.named_children():
        if "att" in name or hasattr(part, "base_layer"):  # itself one linear module, with LoRA in place
            continue
        holders = [m for m in part.modules() if any(True for _ in m.parameters(recurse=False))]
        if len(holders) > 1 and all(is_linear(holder) for holder in holders):
            part.forward = _of_pooled(part.forward)


def _of_pooled(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def of_pooled(states: Tensor) -> Tensor:
        pooled = None if _under_way.row is None else _under_way.row.pooled()
        if pooled is None:
            return forward(states)
        found = forward(states[:, pooled])
        return found.new_zeros(*states.shape[:2], found.shape[2]).index_copy(1, pooled, found)

    return of_pooled
