"""Which model a device has chosen for its owner, the own one, everybody's or halfway; and that it says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from penchant.client.agent.kept_model import Model, kept_with, model_of
from penchant.client.device.device import Device
from penchant.client.device.home import OfflineConfig
from penchant.client.learning.chosen import Blend
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Preference
from penchant.common.settings import section_table
from penchant.deploy.cli.device.reports import ModelReport

RUN = bytes(range(16))


@pytest.fixture
def device(tiny_model: Callable[[str], Path], tmp_path: Path) -> Device:
    """One that was in a run of share `common`, with choices since."""
    base = str(tiny_model("bert"))
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": base, "max_tokens": 16}
    (tmp_path / "model.toml").write_text(tomli_w.dumps(settings))
    made = Device(tmp_path)
    made.record([Preference(f"on vote {n}: ", f"the motion {n}", "the table") for n in range(30)])
    asked = {"model.base_model": base, "model.max_tokens": 16, "model.beside": 1, "adapter.share": "common"}
    planned = made._model_cache.of(RunConfig().changed(asked).plan("main", 4))
    factors = planned.split.initial(0)[0].astype("<f4")
    model = Model(planned.model_signature.digest, planned.plan.encode(), factors.tobytes())
    made.vault.begin(RUN, 1, 1, [])
    made.vault.stage(RUN, 1, 1, planned.split.initial(0)[1], kept_with(model, None))
    made.vault.mark_unmasked(RUN, 1, 1)
    made.vault.settle(RUN, [(1, 1)])
    return made


def test_training_on_the_device_chooses_by_the_held_out_choices(device: Device) -> None:
    assert device.report().blend is None, "nothing was chosen yet"
    before = device.vault.latest()
    device.train()
    report, latest = device.report(), device.vault.latest()
    assert before is not None
    assert latest is not None
    assert report.blend is not None
    assert (report.blend.judged, report.blend.percent) == (report.held_out, 100)
    assert model_of(latest[1].context) == model_of(before[1].context)
    assert not np.array_equal(latest[1].vector, before[1].vector)
    assert report.blend.words() not in device.standing().notes(), "the own model is what owners expect"


def test_an_owner_whose_own_model_gave_way_is_told_which_one_ranks_and_why(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    gave_way = Blend(0, 0, 9, 1, 30)

    def blended(trainer: Any, shared: Any, start: Any, personal: Any, held_out: Any) -> tuple[Any, Blend]:
        return start, gave_way

    monkeypatch.setattr("penchant.client.learning.local_round.blended", blended)
    device.train()
    assert gave_way.words() in device.standing().notes()
    quality = device.report().quality
    assert quality is not None
    assert quality.personal == quality.common
    told = ModelReport.of_blend(gave_way)
    assert (told.own_percent, told.best_percent, told.ahead, told.behind, told.of) == (0, 0, 9, 1, 30)
    assert told.says.startswith("everybody's model is in use")
