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
_FEW_HEADS: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8}
_TEXT: dict[str, Any] = {**_SMALL, **_FEW_HEADS}
_VISION: dict[str, Any] = {**_SMALL, "image_size": 8, "patch_size": 4, "num_hidden_layers": 3}
_OWN: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "llama": {"num_key_value_heads": 1},
    "mistral": _FEW_HEADS,
    "mixtral": {**_FEW_HEADS, "num_local_experts": 2},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": _FEW_HEADS,
    "gemma": _FEW_HEADS,
    "gemma2": _FEW_HEADS,
    "gemma3_text": _FEW_HEADS,
    "gemma3": {"text_config": _TEXT, "vision_config": _VISION, "mm_tokens_per_image": 1},
    "phi3": {"num_key_value_heads": 1, "pad_token_id": 0},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "gpt_neo": {"attention_types": [[["global"], 3]]},
    "distilbert": {"hidden_dim": 32},
    "electra": {"embedding_size": 16},
    "modernbert": {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "albert": {"embedding_size": 8},
    "t5": {"d_ff": 32, "d_kv": 8},
    "bart": {
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
}


def write_tiny_model(kind: str, folder: Path, *, writes: bool = False, **changes: Any) -> None:
    """Save a tiny model of a type and a tokenizer of whole words (0 is padding, 1 unknown).

    writes: a whole language model, whose texts end with a token of their own.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    own = _OWN.get(kind, {})
    settings = AutoConfig.for_model(kind, **{**({} if "text_config" in own else _SMALL), **own, **changes})
    (AutoModelForCausalLM if writes else AutoModel).from_config(settings).save_pretrained(folder)
    words_known = ["[PAD]", "[UNK]", *WORDS, *(["[END]"] if writes else [])]
    vocabulary = {word: place for place, word in enumerate(words_known)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    more = {"eos_token": "[END]"} if writes else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", **more)
    tokenizer.save_pretrained(folder)


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}[END]\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template, as a model that follows instructions has one."""


def write_tiny_chat_model(
    folder: Path, template: str = TEMPLATE, kind: str = "llama", **changes: Any
) -> None:
    """As `write_tiny_model`, of a model that writes and has a chat template, with tokens for who speaks."""
    from transformers import AutoTokenizer

    write_tiny_model(kind, folder, writes=True, **{"eos_token_id": 2 + len(WORDS), **changes})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    roles = ["<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": roles})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
