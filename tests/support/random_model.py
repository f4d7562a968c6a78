"""A person's model or policy with random factors over a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig, ShareName
from penchant.common.model.factors import Split
from penchant.common.model.reward import load_reward_model

EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def a_model(folder: Path, normalize: float = 0.0, share: ShareName = "A", **settings: Any) -> MergedModel:
    """One that reads 12 tokens, pooled as its family asks for; settings: of the model, beside these."""
    model = ModelConfig(str(folder), "auto", normalize, max_tokens=12, **settings)
    adapter = AdapterConfig(share=share, rank=2, alpha=3.0, target_modules=("auto",), layers=(-2, -1))
    loaded = load_reward_model(model, adapter)
    split = Split.of(loaded.adapted_modules, loaded.embedding, adapter, seed=3)
    rng = np.random.default_rng(5)
    parts = (rng.normal(size=part.size).astype(np.float32) for part in (split.shared, split.personal))
    return MergedModel(loaded, split.merged(*parts), model, adapter)


def a_policy(base: Path | str, scale: float = 0.3, rank: int = 3, **adapted: Any) -> MergedModel:
    """One that writes, with factors everywhere; adapted: where else, and otherwise."""
    model = ModelConfig(str(base), objective="dpo", max_tokens=32, dtype="float32", template="none")
    where = {"share": "A", "target_modules": EVERYWHERE, "layers": (), **adapted}
    adapter = AdapterConfig(rank=rank, alpha=4.5, **where)
    loaded = load_reward_model(model, adapter, device="cpu")
    split = loaded.split(seed=3)
    rng = np.random.default_rng(5)
    parts = (scale * rng.normal(size=part.size).astype(np.float32) for part in (split.shared, split.personal))
    return MergedModel(loaded, split.merged(*parts), model, adapter)
