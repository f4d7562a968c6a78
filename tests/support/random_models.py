"""Base models of real shapes with random weights, made where they are used, and people with pairs for them.

What a step costs depends on shapes alone; nothing is downloaded or written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from penchant.client.learning.lockstep import Learner
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model.backbone import Backbone
from penchant.common.model.reward import RewardModel

WORDS = 1000  # that texts are made of, each one token


@dataclass(frozen=True)
class Shape:
    """A model's shape by transformers' names, and what is adapted in it.

    Attributes:
        kind: the type of model.
        sizes: its configuration.
        adapter: settings of the factors.
        causal: later tokens don't change earlier states.
    """

    kind: str
    sizes: dict[str, Any]
    adapter: dict[str, Any]
    causal: bool = True


EVERY_BLOCK: dict[str, Any] = {
    "target_modules": ("q_proj", "v_proj"),
    "layers": (),
    "rank": 32,
    "alpha": 64.0,
}
MINILM_SIZES: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
SHAPES = {
    "heads": Shape("bert", MINILM_SIZES, {"share": "common", "rank": 8}, causal=False),
    "MiniLM": Shape("bert", MINILM_SIZES, {"share": "A", "rank": 2}, causal=False),
    "SmolLM2-135M": Shape(
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
        },
        {"share": "A", **EVERY_BLOCK},
    ),
    "Llama-3-8B": Shape(
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
        },
        {"share": "A", **EVERY_BLOCK},
    ),
    "tiny": Shape(
        "llama",
        {
            "vocab_size": WORDS + 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 8192,
        },
        {"share": "A", **EVERY_BLOCK, "rank": 2},
    ),
}


def backbone_of(shape: Shape, device: torch.device, dtype: torch.dtype, **sizes: Any) -> Backbone:
    """A model with random weights, made on the device in its number format. sizes: changes of the shape."""
    settings = AutoConfig.for_model(shape.kind, **{**shape.sizes, **sizes}, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModel.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    model.requires_grad_(False).eval()
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{place}": place + 2 for place in range(WORDS)}
    known = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    return Backbone(
        name="made-up/random",
        model=model,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=known, pad_token="[PAD]", unk_token="[UNK]"),
        digest="0" * 64,
        causal=shape.causal,
        hidden=shape.sizes["hidden_size"],
        pad_id=0,
        max_tokens=512,
        device=device,
        dtype=dtype,
    )


def model_of(shape: Shape, device: torch.device, dtype: torch.dtype, **sizes: Any) -> RewardModel:
    """A reward model of that shape."""
    return RewardModel(
        backbone_of(shape, device, dtype, **sizes), ModelConfig(normalize=0), AdapterConfig(**shape.adapter)
    )


def pairs_of(person: int, prompts: int, pairs_a_prompt: int, prompt: int, response: int) -> list[Any]:
    """One person's pairs: prompts of so many tokens, two responses a pair, none of them in two pairs, up to a
    sixth longer or shorter than asked for."""
    draw = random.Random(person)

    def text(tokens: int) -> str:
        return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(tokens))

    def answer() -> str:
        return text(max(response + draw.randint(-response // 6, response // 6), 1))

    begun = [f"{text(prompt)} " if prompt else "" for _ in range(prompts)]
    return [
        SimpleNamespace(prompt=one, chosen=answer(), rejected=answer())
        for one in begun
        for _ in range(pairs_a_prompt)
    ]


def learners_of(model: RewardModel, people: Sequence[Sequence[Any]]) -> list[Learner]:
    """People with their pairs, each with a personal part of their own."""
    split = model.split()
    shared, personal = split.initial(0)
    draw = np.random.default_rng(0)
    return [
        Learner(
            shared,
            personal + 0.02 * draw.normal(size=personal.shape).astype(np.float32),
            model.prepare(pairs),
            seed=number,
        )
        for number, pairs in enumerate(people)
    ]
