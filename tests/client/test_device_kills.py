"""A device killed at any instant keeps all that it said was kept; tests/system kills it more often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.device_kills import kill_again_and_again


@pytest.mark.slow
def test_a_device_killed_at_any_instant_loses_nothing(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    fleet, newest, noted = kill_again_and_again(
        tmp_path, tiny_model("bert"), 12, wait=lambda draw: draw.uniform(0, 0.8)
    )
    assert len(fleet.finished) > 0
    assert newest > 0  # it took part in between, and what it learned was kept
    assert any(line.startswith("recorded") for line in noted)
