"""Tiny models of the families that matter, with factors in their blocks, and texts that begin alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.reward import RewardModel

PROMPTS = ("the motion to table the bill of tax", "judge the budget to vote on a table for the cloture")
RESPONSES = ("a vote on the bill", "cloture", "the judge", "to table a tax on the budget of the judge")
TEXTS = [(f"{prompt} ", response) for response in RESPONSES for prompt in PROMPTS]
TEXTS += [("", "tax"), ("", "the vote for a bill"), (PROMPTS[0], "")]
QUERIES = {
    "gpt2": ("c_attn",),
    "bert": ("query", "value"),
    "modernbert": ("Wqkv",),
    "bloom": ("query_key_value",),
    "phi3": ("qkv_proj",),
}
FAMILIES = [
    ("llama", "pieces"),
    ("qwen2", "pieces"),
    ("gpt2", "pieces"),
    ("gemma", "pieces"),
    ("mistral", "pieces"),
    ("opt", "pieces"),
    ("gptj", "mask"),  # an attention of its own
    ("gemma2", "mask"),  # caps its attention, which scaled_dot_product_attention can't
    ("bert", "pieces"),  # nothing shared, nothing padded
    ("modernbert", "pieces"),
    ("bloom", "padded"),  # positions come from the mask
]


def model_of(
    folder: Path, kind: str, *, full: bool = False, layers: Any = (), **settings: Any
) -> RewardModel:
    """Factors on the queries and values of some blocks; one token a word, whatever the family's tokenizer."""
    settings = {"dtype": "float32", "normalize": 0, **settings}
    model = ModelConfig(base_model=str(folder), max_tokens=32, **settings)
    adapter = AdapterConfig(
        share="AB", rank=2, alpha=4.0, target_modules=QUERIES.get(kind, ("q_proj", "v_proj")), layers=layers
    )
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    backbone = dataclasses.replace(load_backbone(model, device="cpu"), tokenizer=words)
    return RewardModel(backbone, model, adapter, full=full)
