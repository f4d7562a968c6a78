"""A reward model of one person on its own: tokens in, scores out, for whoever runs it without penchant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from penchant.common.errors import BaseModelError

__all__ = ["StandaloneScorer", "tokenizer_json"]


class StandaloneScorer(nn.Module):
    """Maps tokens [n, L] int64, filled up at the right, and their mask [n, L] int64 to scores [n] float32.

    Args:
        module: the backbone with this person's factors in place.
        embed: what the module gives, under such a mask -> embeddings [n, d].
        head: [1, d].
        asked: what the module is called with beside tokens and mask.
    """

    head: Tensor

    def __init__(
        self,
        module: nn.Module,
        embed: Callable[[Any, Tensor], Tensor],
        head: Tensor,
        asked: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.module = module
        self._embed, self._asked = embed, dict(asked)
        self.register_buffer("head", head.detach().float())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The scores. Of a text without tokens the first one that fills it up is read, as in training."""
        mask = torch.cat([torch.ones_like(attention_mask[:, :1]), attention_mask[:, 1:]], 1)
        output = self.module(input_ids=input_ids, attention_mask=mask, **self._asked)
        found: Tensor = self._embed(output, mask) @ self.head[0]
        return found


def tokenizer_json(tokenizer: Any, *, max_tokens: int, truncation: str, pad_id: int) -> bytes:
    """A tokenizer of transformers as the one file that the library `tokenizers` reads, set to cut and to fill
    up texts as the model reads them.

    BaseModelError: it is of a kind that has no such file.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise BaseModelError(
            f"the tokenizer of the base model ({type(tokenizer).__name__}) can't be written as tokenizer.json"
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.enable_truncation(max_tokens, direction=truncation)
    copy.enable_padding(
        direction="right", pad_id=pad_id, pad_token=str(tokenizer.convert_ids_to_tokens(pad_id))
    )
    return copy.to_str(pretty=True).encode()
