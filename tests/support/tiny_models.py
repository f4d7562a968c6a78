"""Tiny base models, made on the spot, in folders as a hub would give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "of",
    "to",
    "on",
    "for",
    "motion",
    "bill",
    "vote",
    "table",
    "cloture",
    "judge",
    "budget",
    "tax",
]

_SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
_OWN: dict[str, dict[str, Any]] = {"gptj": {"rotary_dim": 4}, "llama": {"num_key_value_heads": 1}}


def write_tiny_model(kind: str, folder: Path, **changes: Any) -> None:
    """Save a tiny model of a type and a tokenizer of whole words (0 is padding, 1 unknown)."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    settings = AutoConfig.for_model(kind, **{**_SMALL, **_OWN.get(kind, {}), **changes})
    AutoModel.from_config(settings).save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
