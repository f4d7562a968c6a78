"""200 kills of one device, while it imports, trains and answers in rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from device_kills import kill_again_and_again

pytestmark = pytest.mark.system


def test_a_device_killed_200_times_loses_nothing(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    fleet, newest, noted = kill_again_and_again(
        tmp_path, tiny_model("bert"), 200, wait=lambda draw: draw.expovariate(2.0)
    )
    assert len(fleet.finished) > 20
    assert newest > 5  # it took part in between, and what it learned was kept
    assert noted.count("trained") > 10
