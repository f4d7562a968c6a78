"""A person's model with random factors over a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig, ShareName
from penchant.common.model.factors import Split
from penchant.common.model.reward import load_reward_model


def a_model(folder: Path, normalize: float = 0.0, share: ShareName = "A", **settings: Any) -> MergedModel:
    """One that reads 12 tokens, pooled as its family asks for; settings: of the model, beside these."""
    model = ModelConfig(str(folder), "auto", normalize, max_tokens=12, **settings)
    adapter = AdapterConfig(share=share, rank=2, alpha=3.0, target_modules=("auto",), layers=(-2, -1))
    loaded = load_reward_model(model, adapter)
    split = Split.of(loaded.adapted_modules, loaded.embedding, adapter, seed=3)
    rng = np.random.default_rng(5)
    parts = (rng.normal(size=part.size).astype(np.float32) for part in (split.shared, split.personal))
    return MergedModel(loaded, split.merged(*parts), model, adapter)
