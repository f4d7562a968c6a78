"""What a run waits for lies in its directory, for whoever looks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from penchant.server.waiting import WAITING, Waiting, read_waiting, write_waiting

ONE = Waiting(3, 4, (1, 2), (5,), (2**63,), 1_700_000_000.0, 1_700_003_600.0)


def test_what_was_left_is_read_and_goes_with_the_wait(tmp_path: Path) -> None:
    assert read_waiting(tmp_path) is None
    write_waiting(tmp_path, ONE)
    assert read_waiting(tmp_path) == ONE
    write_waiting(tmp_path, None)
    write_waiting(tmp_path, None)
    assert read_waiting(tmp_path) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"ready": ["1"]},
        {"ready": 1},
        {"needed": -1},
        {"round": True},
        {"since": "now"},
        {"until": 1e300},
        {"more": 1},
    ],
)
def test_what_was_not_written_here_is_no_wait(tmp_path: Path, wrong: dict[str, object]) -> None:
    (tmp_path / WAITING).write_text(json.dumps(asdict(ONE) | wrong), encoding="utf-8")
    assert read_waiting(tmp_path) is None
    (tmp_path / WAITING).write_text("[", encoding="utf-8")
    assert read_waiting(tmp_path) is None
