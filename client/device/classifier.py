"""An export as a classifier of transformers: when there is one, and whether it scores as the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from penchant.client.learning.merged_model import MergedModel
from penchant.common.errors import PenchantError
from penchant.common.model.backbone import load_classifier
from penchant.common.printable import one_line

__all__ = ["disagreement", "unfit"]

_TRIED = ("a", "the motion, on 12 bills", "the table", "He said that it would be paid for by 2031.")
_NEAR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of scores, and of their size


def unfit(*, family: str, padding: str, pooling: str, normalize: float, adapted: bool) -> str:
    """Why a model can be no classifier of transformers, and what would let it be one; empty when it can.

    Args:
        family: where a classifier of its family keeps the model, as in `Backbone`.
        padding: the token for texts that are shorter than others, as in `Backbone`.
        pooling: "mean", "first" or "last".
        normalize: the length that embeddings are brought to; 0 for as they are.
        adapted: whether it is an adapter at all.
    """
    if not adapted:
        return "a share without an adapter has none"
    if not family:
        return "transformers has none for this base model; a causal language model of a common family has one"
    if pooling != "last" or normalize:
        return 'it needs model.pooling = "last" (or "auto") and model.normalize = 0, before training'
    if not padding:
        return (
            "texts of the base model may end with each of its special tokens, so that none can fill them up; "
            "give its tokenizer a padding token of its own"
        )
    return ""


def disagreement(merged: MergedModel, folder: Path, padding: str) -> str:
    """How the classifier in a folder, really loaded, scores texts in a batch otherwise than the model does;
    empty when it scores the same."""
    own = merged.scores([("", text) for text in _TRIED])
    try:
        found = _scores(merged, folder, padding)
    except PenchantError as error:
        return one_line(str(error))
    except Exception as error:  # each family of transformers and peft refuses in its own way
        return f"loading it failed ({type(error).__name__}: {one_line(str(error))})"
    near = _NEAR[merged.model.dtype]
    if torch.allclose(torch.tensor(found), torch.tensor(own), rtol=near, atol=near):
        return ""
    worst = max(abs(a - b) for a, b in zip(found, own, strict=True))
    return f"loaded by this version of transformers its scores are up to {worst:.3g} off"


def _scores(merged: MergedModel, folder: Path, padding: str) -> list[float]:
    """What the card's lines give for the texts that are tried."""
    from peft import PeftModel

    settings = merged.settings
    base, tokenizer = load_classifier(settings.base_model, merged.model.dtype, settings.blocks)
    tokenizer.pad_token, tokenizer.padding_side = padding, "right"
    tokenizer.truncation_side = merged.settings.truncation
    base.config.pad_token_id = tokenizer.pad_token_id
    model: Any = PeftModel.from_pretrained(base, str(folder)).eval()
    tokens = tokenizer(
        list(_TRIED),
        padding=True,
        truncation=True,
        max_length=merged.model.max_tokens,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    return [float(score) for score in logits[:, 0]]
