"""The same run on Flower's Ray simulation, through `flwr run`: the same bits as on the in-process grid."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.simulation.ray_transport.ray_actor import VirtualClientEngineActor
from ray import cloudpickle
from support.tastes import one_round, small_run, write_choices

from penchant.common.config import RunConfig
from penchant.common.errors import UsageError
from penchant.common.wire.flower import unpack
from penchant.deploy import run_directory
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.flower.superlink import DIRECTORY
from penchant.deploy.simulation import ray, world
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.server.journal import Journal
from penchant.server.round import federate

PROGRAM = [sys.executable, "-c", "from penchant.deploy.cli.main import main; main()", "simulate"]


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, timeout=400, env=os.environ | {"COLUMNS": "120"}
    )


@pytest.mark.slow
def test_ray_and_the_in_process_grid_give_the_same_bits(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    write_choices(tmp_path / "choices.jsonl", [30] * 4)
    settings = one_round(tiny_model("bert"), tmp_path / "choices.jsonl")
    for grid in ("ray", "local"):
        config = RunConfig().changed(settings | {"grid": grid})
        (tmp_path / f"{grid}.toml").write_text(config.to_toml())
        done = simulate("--config", str(tmp_path / f"{grid}.toml"), "--out", str(tmp_path / grid))
        assert done.returncode == 0, done.stderr
    left = {
        grid: {p.name: p.read_bytes() for p in (tmp_path / grid / "checkpoints").glob("*.safetensors")}
        for grid in ("ray", "local")
    }
    assert len(left["ray"]) == 2
    assert left["ray"] == left["local"]
    assert not list((tmp_path / "ray" / "agents").glob("*/attempt.sealed"))  # erased after the round


def test_without_ray_it_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"penchant\[ray\]"):
        world.require_ray()


# --- what Ray is handed -----------------------------------------------------------------------------------

FRAME = (
    4096  # bytes of a task beside the message's payload: the app by its name, a context, Flower's metadata
)


class OneActor:
    """Stands for Flower's pool of Ray's actors: serves each task here, by bytes there and back, counted."""

    def __init__(self) -> None:
        self.frames: list[int] = []

    def submit(self, actor_fn: object, job: tuple[object, Message, str, Context]) -> tuple[Message, Context]:
        there = cloudpickle.dumps(job)
        app_fn, message, person, context = cloudpickle.loads(there)
        back = cloudpickle.dumps(VirtualClientEngineActor().run(app_fn, message, person, context))
        _, reply, after = cloudpickle.loads(back)
        self.frames += [len(there) - len(unpack(message.content)), len(back) - len(unpack(reply.content))]
        return reply, after

    def fetch_result_and_return_actor_to_pool(
        self, served: tuple[Message, Context]
    ) -> tuple[Message, Context]:
        return served


def test_a_task_is_the_message_and_a_frame_and_never_the_base_model(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_choices(tmp_path / "choices.jsonl", [10] * 3)
    settings = small_run(tiny_model("bert"), tmp_path / "choices.jsonl", 3, 1)
    config = RunConfig().changed(settings | {"federation.rounds": 1, "grid": "ray"})
    directory = tmp_path / "run"
    run_directory.create(directory, config)
    monkeypatch.setattr(ray, "_warm_once", lambda directory: None)
    pool, backend = OneActor(), object.__new__(RayBackend)
    backend.pool, backend.app_fn = (
        pool,
        lambda: ray.client_app,
    )  # as Flower's engine has it, once it is loaded

    def served(message: Message, context: Context) -> Message:
        return backend.process_message(message, context)[0]

    prepared = world.prepare(config)
    fleet = SimulatedDevices(
        config, directory, prepared.federation, prepared.model_cache, prepared.cohort, sealed=True
    )
    journal = Journal(directory)
    grid = InProcessGrid(served, len(fleet), workers=1, run_config={DIRECTORY: str(directory)})
    try:
        run = world.open_run(prepared, journal, fleet)
        assert run.patience > 0, "workers that are still loading the model are waited for"
        federate(run, grid)
        assert journal.logs()[-1].phase == "close"
    finally:
        grid.close()
        journal.close()
        ray._world.cache_clear()
    weights = sum(path.stat().st_size for path in tiny_model("bert").glob("*.safetensors"))
    assert weights > 5 * FRAME, "a base model would be seen"
    assert len(pool.frames) >= 2 * 3 * 5  # stages of a round with secure aggregation, there and back
    assert max(pool.frames) < FRAME
