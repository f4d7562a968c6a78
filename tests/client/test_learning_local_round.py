"""One round's work: what it returns can be sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import some_choices

from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import DeviceError

MODELS = ModelCache()
STILL = {"training.lr_shared": 0.0, "training.lr_personal": 0.0, "training.lr_head": 0.0}


@pytest.mark.parametrize("phase", ["main", "close"])
def test_losses_that_are_no_numbers_end_the_work(tiny_model: Callable[[str], Path], phase: Any) -> None:
    """Rates of 0 leave the factors as they came, finite and huge, so that nothing else notices."""
    still = STILL | {"training.final_fit_epochs": 0}
    config = RunConfig().changed({"model.base_model": str(tiny_model("bert")), **still})
    planned, choices = MODELS.of(config.plan(phase, 4)), some_choices(0)
    shared, start = planned.split.initial(0)

    def outcome(factors: Any) -> Any:
        return work(planned, factors, start, start, choices.train, choices.validation, 0)

    assert np.isfinite(outcome(shared).loss_sum)
    with pytest.raises(DeviceError, match="no numbers"):
        outcome(np.full_like(shared, 3e38))
