"""How far the attention of each block reaches, as the network itself masks it.

Some models let a part of their blocks see a window of tokens around each one alone (Beltagy et al.,
"Longformer", 2020; so do Mistral, Gemma and ModernBERT). Where texts are read one behind the other in a row,
whoever computes the attention has to cut that window out of each text. Families count it in different ways,
so it is read off the masks that a network hands to its attention, over a text that is longer than the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penchant.common.model.modules import structural_copy
from penchant.common.model.network import AdaptedNetwork

__all__ = ["Reach", "reaches_of", "window_of", "windows_of"]

WINDOW_MOST = 1024
"""Tokens: whether a network's windows are what they seem is found out over twice as many."""

_LOOKING = "penchant_looking"  # an attention's name among those of transformers
_WINDOWS = ("sliding_window", "local_attention", "window_size", "attention_window", "attention_chunk_size")


@dataclass(frozen=True)
class Reach:
    """How many tokens before its own, and how many after it, a token sees; None: all of its text."""

    back: int | None
    ahead: int | None

    def holds(self, tokens: int) -> bool:
        """Whether a text of so many tokens lies within it, but for what comes later."""
        return (self.back is None or tokens <= self.back + 1) and (
            self.ahead in (None, 0) or tokens <= self.ahead + 1
        )

    def sees(self, away: Tensor) -> Tensor:
        """Of tokens that lie so far before each one, negative where after it: whether it sees them."""
        seen = torch.ones_like(away, dtype=torch.bool)
        if self.back is not None:
            seen &= away <= self.back
        if self.ahead is not None:
            seen &= away >= -self.ahead
        return seen


def windows_of(module: Any) -> list[int]:
    """The sizes of windows that a base model says it has."""
    found = (getattr(module.config, name, None) for name in _WINDOWS)
    return [one for one in found if isinstance(one, int)]


def window_of(module: Any) -> int | None:
    """How many tokens away the attention of some block reaches, where a base model says that it does not
    reach all."""
    return min(windows_of(module), default=None)


def long_enough(network: AdaptedNetwork) -> int:
    """How many tokens a text has that is longer than each window, or as long as texts may be."""
    return min(network.max_tokens, 2 * max(windows_of(network.module)) + 2)


def reaches_of(network: AdaptedNetwork) -> Mapping[str, Reach]:
    """The reach of each attention, by its module's name.

    Raises:
        TypeError: the network's attention can't be looked at, or some block sees something else than a window
            around each token.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_LOOKING, _look)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_LOOKING, sdpa_mask)
    module: Any = structural_copy(network.module)
    module.config._attn_implementation = _LOOKING
    ids = torch.full((1, long_enough(network)), network.pad_id, device=network.device)
    given = {"use_cache": False} if network.causal else {}
    with torch.no_grad():
        module(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
    seen = {name: vars(part).pop(_LOOKING) for name, part in module.named_modules() if _LOOKING in vars(part)}
    if not seen:
        raise TypeError("the attention is the model's own: what it masks can't be looked at")
    return {name: _reach(mask, ids.shape[1], network.causal) for name, mask in seen.items()}


def _look(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """In place of an attention: keep the mask, [b, heads or 1, T, T] bool or to be added, with the module."""
    vars(module)[_LOOKING] = attention_mask
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def _reach(mask: Tensor | None, tokens: int, causal: bool) -> Reach:
    if mask is None:
        return Reach(None, 0 if causal else None)
    seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).flatten(0, -3)
    place = torch.arange(tokens, device=seen.device)
    away = place[:, None] - place
    back, ahead = int(away[seen[0]].max()), -int(away[seen[0]].min())
    reach = Reach(None if back == tokens - 1 else back, None if ahead == tokens - 1 else ahead)
    if not torch.equal(seen, reach.sees(away).expand_as(seen)):
        raise TypeError("a block sees something else than a window around each token")
    return reach
