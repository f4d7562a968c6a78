"""The peers of a whole simulation run the same algorithm: their shared factors are penchant's."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from bench import bench_peers
from bench.peers import flower_app
from bench.peers.task import Result, Task
from flwr.app import Context, RecordDict
from support.tastes import small_run, write_choices

from penchant.common.config import RunConfig
from penchant.deploy.flower.in_process_grid import InProcessGrid

PEOPLE = 4


@dataclass(frozen=True)
class Small:
    """A run of two rounds, the first of them a warm-up, over three of four people."""

    task: Path
    folder: Path

    def of(self, who: str) -> Result:
        """What one of them came to."""
        row = bench_peers.measured(who, self.task, self.folder, bench_peers.environment(None))
        assert row.cpu_seconds > 0
        assert row.peak_mb > 0
        module = bench_peers.PEERS[who][0]
        return Result(**json.loads((self.folder / f"{module}.json").read_text(encoding="utf-8")))


def configured(folder: Path, base: Path, **changes: object) -> RunConfig:
    choices = folder / "choices.jsonl"
    write_choices(choices, [12] * PEOPLE)
    own = {
        "federation.rounds": 2,
        "federation.warmup_rounds": 1,
        "federation.cohort": 3,
        "federation.server_optimizer": "fedadam",
        "federation.server_lr": 0.01,
        "adapter.head": "personal",
        "training.final_fit_epochs": 0,
        "model.truncation": "right",
    }
    settings = small_run(base, choices, people=PEOPLE, epochs=3) | own | changes
    return RunConfig().changed(settings)


@pytest.fixture
def small(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Small:
    task = tmp_path / "task.json"
    bench_peers.task_of(configured(tmp_path, tiny_model("bert"))).write(task)
    return Small(task, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["Flower app on Ray", "pfl-research"])
def test_a_peer_of_the_same_algorithm_ends_with_our_factors(small: Small, who: str) -> None:
    if who == "pfl-research" and importlib.util.find_spec("pfl") is None:
        pytest.skip("pfl is not installed")
    _check_alike(small, small.of(who))


@pytest.mark.slow
def test_the_flower_app_is_that_algorithm_on_any_grid(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    result = small.folder / "flower.json"
    monkeypatch.setenv(flower_app.TASK, str(small.task))
    monkeypatch.setenv(flower_app.RESULT, str(result))
    grid = InProcessGrid(flower_app.client_app, PEOPLE, workers=1)
    try:
        flower_app.server_app(grid, Context(1, 1, {}, RecordDict(), {}))
    finally:
        grid.close()
    _check_alike(small, Result(**json.loads(result.read_text(encoding="utf-8"))))


def _check_alike(small: Small, peer: Result) -> None:
    ours = small.of(bench_peers.OURS)
    start = np.array(Task.read(small.task).start["A"])
    factors = np.array(ours.shared["shared"]).reshape(start.shape)
    assert np.abs(factors - start).max() > 1e-3  # there was something to learn
    assert np.array(peer.shared["A"]) == pytest.approx(factors, abs=1e-4)
    assert peer.accuracy == pytest.approx(ours.accuracy, abs=1e-9)


@pytest.mark.slow
def test_trl_trains_everybody_alone(small: Small) -> None:
    found = small.of("TRL, one by one")
    assert 0 <= found.accuracy <= 1
    assert not found.shared


def test_other_settings_than_the_peers_have_are_refused(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    config = configured(tmp_path, tiny_model("bert"), **{"training.weight_decay": 0.1})
    with pytest.raises(ValueError, match=r"senate\.toml"):
        bench_peers.task_of(config)


def test_ratios_are_over_our_own_seconds() -> None:
    def row(who: str, seconds: float) -> dict[str, object]:
        return {"who": who, "cpu_seconds": seconds, "wall_seconds": 1.0, "peak_mb": 1.0, "accuracy": 0.5}

    lines = bench_peers.text([row(bench_peers.OURS, 2.0), row("TRL, one by one", 9.0)]).splitlines()
    assert lines[1].endswith("1.00")
    assert lines[2].endswith("4.50")


def test_rows_of_another_size_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"given": {"people": 2, "rounds": 1}, "rows": [{"who": "x"}]}))
    assert bench_peers.rows_of(path, {"people": 2, "rounds": 1}) == [{"who": "x"}]
    assert bench_peers.rows_of(path, {"people": 3, "rounds": 1}) == []
    assert bench_peers.rows_of(None, {}) == []
