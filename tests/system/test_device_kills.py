"""Many kills of one device, while it imports, trains and answers in rounds: PENCHANT_KILLS says how many."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.device_kills import kill_again_and_again

pytestmark = pytest.mark.system

KILLS = int(os.environ.get("PENCHANT_KILLS", "25"))


def test_a_device_killed_again_and_again_loses_nothing(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    fleet, newest, noted = kill_again_and_again(
        tmp_path, tiny_model("bert"), KILLS, wait=lambda draw: draw.expovariate(2.0)
    )
    print(
        f"{KILLS} kills: {len(fleet.finished)} rounds finished, {fleet.complete} with the device in them, "
        f"its factor is of round {newest}, {noted.count('trained')} trainings and "
        f"{sum(line.startswith('recorded') for line in noted)} imports noted as kept"
    )
    assert len(fleet.finished) >= KILLS // 10
    assert newest > KILLS // 20  # it took part in between, and what it learned was kept
    assert noted.count("trained") >= KILLS // 20
