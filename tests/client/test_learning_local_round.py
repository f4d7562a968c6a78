"""One round's work: what it returns can be sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import some_choices

from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import DataError, DeviceError

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


def test_ties_are_learned_from_and_count_nowhere(tiny_model: Callable[[str], Path]) -> None:
    """Neither in the weight, the loss and the counts, nor, held out, in anything."""
    config = RunConfig().changed({"model.base_model": str(tiny_model("bert")), "adapter.share": "mixed"})
    choices = some_choices(0)
    tie = replace(choices.train[0], prompt="on ties: ", tie="equal")
    for phase in ("main", "close"):
        planned = MODELS.of(config.plan(phase, 4))
        shared, start = planned.split.initial(0)
        shared = shared + np.float32(0.01)

        def outcome(train: Any, held_out: Any, planned: Any = planned, given: Any = (shared, start)) -> Any:
            return work(planned, given[0], given[1], given[1], train, held_out, 0)

        plain = outcome(choices.train, choices.validation)
        aside = outcome(choices.train, [tie, *choices.validation, tie])
        with_tie = outcome([*choices.train, tie], choices.validation)
        assert plain.shared_update.tobytes() == aside.shared_update.tobytes()
        assert plain.personal.tobytes() == aside.personal.tobytes()
        assert plain.judged == aside.judged
        assert with_tie.weight == plain.weight == len(choices.train)
        assert with_tie.loss_sum == pytest.approx(plain.loss_sum, rel=1e-5)
        assert (with_tie.before.total, with_tie.before.ties) == (len(choices.train), 1)
        assert with_tie.personal.tobytes() != plain.personal.tobytes()
        with pytest.raises(DataError, match="no choices to learn from"):
            outcome([tie], choices.validation)
