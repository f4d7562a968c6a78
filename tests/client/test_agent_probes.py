"""A server that announces again to find out whether a device is still training: it is told nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.fleet_scene import FleetScene, some_choices
from support.scene import RUN

from penchant.client.agent.agent import Agent
from penchant.client.agent.owner import Choices
from penchant.client.agent.round_work import WallClock
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.training_process import TrainingProcess
from penchant.common.membership.identity import Authority
from penchant.common.membership.manifest import SignedManifest, sign_run
from penchant.common.wire.codec import decode_record
from penchant.common.wire.messages import Abort, AbortCode, Announce, Entry, Shares

FACTS, TRAINING = "penchant model facts", "penchant training"


@pytest.fixture
def place() -> Iterator[TrainingProcess]:
    made = TrainingProcess(memory_mb=512)
    yield made
    made.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the processes for which an answer waits: those that the answering thread starts."""
    names: list[str] = []
    real = SpawnProcess.start

    def start(self: SpawnProcess) -> None:
        if threading.current_thread() is threading.main_thread():
            names.append(self.name)
        real(self)

    monkeypatch.setattr(SpawnProcess, "start", start)
    return names


def scene_of(base: Path, directory: Path, **settings: Any) -> FleetScene:
    changes = {"federation__training_seconds": 600.0, "training__local_epochs": 1000}
    return FleetScene(base, directory, training__batch_size=1, **changes, **settings)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def probe(scene: FleetScene, number: int, **changes: Any) -> Announce:
    """An announcement of another run that asks for another model."""
    return scene.announce(run=bytes([number] * 16), plan=scene.plan(adapter__rank=number), **changes)


def over(agent: Agent) -> bool:
    thread = vars(agent)["_work"]._thread
    return not thread.is_alive()


def test_whether_training_is_over_changes_nothing_that_the_reply_to_keys_waits_for(
    tiny_model: Callable[[str], Path], tmp_path: Path, place: TrainingProcess, started: list[str]
) -> None:
    """One owner has no choices and is done at once, one is training: a probe for a model that is not known
    yet costs both the same, a process for its facts. It ends neither by waiting nor by a start."""
    scene = scene_of(tiny_model("bert"), tmp_path)
    choices = [Choices([], [])]
    agent = scene.restart(0, workplace=place, ahead=True, pace=WallClock(), choices=lambda: choices[0])
    assert isinstance(scene.ask("keys", 0, scene.announce()), Entry)
    until(lambda: over(agent))
    seen = [started.copy()]
    started.clear()
    assert isinstance(scene.ask("keys", 0, probe(scene, 3)), Entry)
    seen.append(started.copy())
    choices[0] = some_choices(0)
    assert isinstance(scene.ask("keys", 0, scene.announce(attempt=2)), Entry)
    until(lambda: place._given)
    assert place._worker is not None
    psutil.Process(place._worker.pid).suspend()  # so that it never ends by itself, on however fast a machine
    started.clear()
    assert isinstance(scene.ask("keys", 0, probe(scene, 4)), Entry)
    seen.append(started.copy())
    # The very first model is loaded where its first job will be: no job can have been before.
    assert seen == [[TRAINING], [FACTS], [FACTS]]


def signed_by(announce: Announce, authority: Authority) -> bytes:
    manifest = decode_record(announce.manifest, SignedManifest).manifest
    return sign_run(authority, manifest).encode()


@pytest.mark.parametrize("manifest", ["none", "foreign", "another run's", "noise"])
def test_what_nobody_signed_loads_nothing_and_ends_nothing(
    tiny_model: Callable[[str], Path], tmp_path: Path, manifest: str
) -> None:
    scene = scene_of(tiny_model("bert"), tmp_path, model_cache=ModelCache()).play_to("shares")
    open_task = vars(scene.agents[0])["_task"]
    loads: list[Any] = []
    scene.agents[0]._workplace.load = loads.append  # type: ignore[method-assign]
    for rank in range(1, 6):
        honest = probe(scene, rank)
        shown = {
            "none": b"",
            "foreign": signed_by(honest, Authority.create()),
            "another run's": scene.announce().manifest,
            "noise": b"noise",
        }[manifest]
        reply = scene.ask("keys", 0, probe(scene, rank, manifest=shown))
        codes = {"none": AbortCode.POLICY, "foreign": AbortCode.POLICY}
        assert reply == Abort(codes.get(manifest, AbortCode.AGREEMENT))
    assert scene.ask("keys", 0, b"noise") == Abort(AbortCode.MALFORMED)
    assert loads == []
    assert vars(scene.agents[0])["_task"] is open_task
    assert {run.run for run in scene.agents[0]._vault.ledger.runs()} == {RUN}
    assert isinstance(scene.ask("shares", 0, scene.requests[0]), Shares)
