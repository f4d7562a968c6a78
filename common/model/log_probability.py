"""From a causal model's states to the log-probability of a response, without all words' logits in memory.

A response's log-probability is Σ log p(token | tokens before it), where p = softmax(W h + b) over V words.
With V = 49,152 one token's logits take 200 kB, a small batch's gigabytes: so they are made for some tokens at
a time, and what is kept of them for the way back is the slope ∂ log p / ∂ h = W[token] - p W, as wide as a
state. W is frozen, so nothing else is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Predicted", "ResponseTokens", "Unembedding"]

_AT_A_TIME = 256  # tokens whose logits are in memory


@dataclass(frozen=True)
class ResponseTokens:
    """A text as the model reads it: token ids [L], of which those from `start` on are the response.

    1 ≤ start ≤ L: nothing comes before the first token that could make it likely.
    """

    ids: Tensor
    start: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Unembedding:
    """What makes the next word's logits of a state [d]: weight [V, d] and bias [V] or None, frozen."""

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, states: Tensor) -> Tensor:
        """[P, d] states -> [P, V], in the model's number format."""
        found = states.to(self.weight.dtype) @ self.weight.T
        return found if self.bias is None else found + self.bias

    def log_probabilities(self, states: Tensor, targets: Tensor) -> Tensor:
        """log p of target words [P] after states [P, d] -> [P] float32; differentiable in the states."""
        found: Tensor = _LogProbability.apply(states, targets, self)  # type: ignore[no-untyped-call]
        return found


class _LogProbability(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, words: Unembedding) -> Tensor:
        needed = ctx.needs_input_grad[0]
        values = torch.empty(len(targets), dtype=torch.float32, device=states.device)
        slopes = torch.empty_like(states) if needed else None
        for start in range(0, len(targets), _AT_A_TIME):
            some = slice(start, start + _AT_A_TIME)
            wanted = targets[some]
            logits = words.logits(states[some]).float()
            values[some] = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1)
            if slopes is not None:
                likely = logits.softmax(1).to(words.weight.dtype)
                slopes[some] = (words.weight[wanted] - likely @ words.weight).to(states.dtype)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradients[0].to(slopes.dtype).unsqueeze(-1) * slopes, None, None


@dataclass(frozen=True)
class Predicted:
    """The words of some responses, and from which states they are predicted.

    Attributes:
        place: of the state before each word, among the states of a batch in one row, [P].
        word: [P].
        response: whose word it is, [P].
        count: responses.
    """

    place: Tensor
    word: Tensor
    response: Tensor
    count: int

    @classmethod
    def of(cls, token: Tensor, lengths: Sequence[int], starts: Sequence[int], ids: Tensor) -> Predicted:
        """token: the places of all texts' tokens, text after text; ids: the words at all places."""
        places, words, responses = [], [], []
        begin = 0
        for number, (length, start) in enumerate(zip(lengths, starts, strict=True)):
            own = token[begin : begin + length]
            places.append(own[start - 1 : -1])
            words.append(ids[own[start:]])
            responses.append(torch.full((length - start,), number, dtype=torch.long, device=token.device))
            begin += length
        return cls(torch.cat(places), torch.cat(words), torch.cat(responses), len(lengths))

    def sums(self, states: Tensor, unembedding: Unembedding) -> Tensor:
        """The responses' log-probabilities [count], from the states [T, d] of the batch."""
        each = unembedding.log_probabilities(states[self.place], self.word)
        return each.new_zeros(self.count).index_add(0, self.response, each)
