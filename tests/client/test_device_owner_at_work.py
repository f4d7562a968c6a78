"""What an owner does while the agent runs, from another process: pause, leave, forget, train, import."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import STAGES, FleetScene, some_choices
from support.scene import RUN, identity

from penchant.client.agent import policy as policy_module
from penchant.client.agent.owner import Choices
from penchant.client.agent.policy import OwnerPolicy
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.workplace import Job
from penchant.client.vault.vault import Vault
from penchant.common.errors import DeviceError, UsageError
from penchant.common.membership.identity import Identity
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Abort, AbortCode, Hello, Masked, Status

Scenes = Callable[..., FleetScene]


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Scenes:
    """Makes fleets, each in its own directory."""
    made: list[FleetScene] = []

    def make(n: int = 4, **settings: Any) -> FleetScene:
        made.append(FleetScene(tiny_model("bert"), tmp_path / str(len(made)), n, **settings))
        return made[-1]

    return make


def code(reply: bytes) -> AbortCode:
    return decode(reply, Abort).code


# --- pause, hours ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_pause_holds_at_the_next_message_of_an_open_round(scenes: Scenes, stage: str) -> None:
    scene = scenes()
    owner = {"policy": scene.policy}
    scene.restart(0, policy=lambda: owner["policy"])
    scene.play_to(stage)
    owner["policy"] = OwnerPolicy(**(vars(scene.policy) | {"paused": True}))
    assert code(scene.tell(stage, 0, scene.requests[0])) is AbortCode.POLICY
    assert scene.reason(0) == (stage, "POLICY", "paused by the owner")
    assert not scene.is_open(0)
    owner["policy"] = scene.policy
    assert scene.greet(0, []).ready


@pytest.mark.parametrize(("stage", "goes_on"), [("shares", False), ("masked", False), ("confirm", True)])
def test_hours_end_a_round_until_its_vector_has_left(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch, stage: str, goes_on: bool
) -> None:
    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromisoformat(f"2026-03-01T{clock}")

    clock = "23:00"
    monkeypatch.setattr(policy_module, "datetime", Now)
    scene = scenes(policy={"hours": "22:00-06:30"})
    scene.play_to(stage)
    clock = "06:30"
    reply = scene.tell(stage, 0, scene.requests[0])
    if goes_on:
        assert scene.is_open(0)
    else:
        assert code(reply) is AbortCode.POLICY
        assert "outside the hours" in scene.reason(0)[2]
        assert Vault(scene.home(0)).privacy.entries() == []  # what does not leave is not charged


def test_a_pause_while_the_device_trains_keeps_the_vector_here(scenes: Scenes) -> None:
    """The owner pauses between the request for the vector and the reply."""
    scene = scenes()
    owner = {"policy": scene.policy}

    def choices_then_pause() -> Choices:
        owner["policy"] = OwnerPolicy(**(vars(scene.policy) | {"paused": True}))
        return some_choices(0)

    scene.restart(0, policy=lambda: owner["policy"], choices=choices_then_pause)
    scene.play_to("masked")
    assert code(scene.tell("masked", 0, scene.requests[0])) is AbortCode.POLICY


# --- leave, join anew -----------------------------------------------------------------------------


def counted(scene: FleetScene) -> Any:
    """Attempts, runs and vectors that the first device has on record."""
    vault = Vault(scene.home(0))
    return vault.rounds(), vault.ledger.runs(), vault.privacy.entries()


@pytest.mark.parametrize("stage", ["status", *STAGES])
def test_leaving_ends_what_the_running_agent_does(scenes: Scenes, stage: str) -> None:
    scene = scenes()
    owner: dict[str, Identity | None] = {"identity": identity(1)}
    scene.restart(0, identity=lambda: owner["identity"])
    if stage == "status":
        scene.requests[0] = encode(Hello(RUN, ()))
    else:
        scene.play_to(stage)
    before = counted(scene)
    owner["identity"] = None
    assert code(scene.tell(stage, 0, scene.requests[0])) is AbortCode.POLICY
    assert scene.reason(0) == (stage, "POLICY", "this device has left its fleet")
    assert counted(scene) == before  # nothing was burnt, counted or charged for a fleet that was left
    assert not scene.is_open(0)
    owner["identity"] = identity(2)
    assert code(scene.tell("status", 0, encode(Hello(RUN, ())))) is AbortCode.POLICY
    assert "joined anew since the agent was started" in scene.reason(0)[2]
    owner["identity"] = None
    with pytest.raises(UsageError, match="in no fleet"):
        scene.restart(0, identity=lambda: owner["identity"])


# --- forget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES[1:])
def test_forgetting_in_mid_round_leaves_no_trace_of_it(scenes: Scenes, stage: str) -> None:
    scene = scenes()
    scene.play_to(stage)
    Vault(scene.home(0)).forget()
    reply = scene.tell(stage, 0, scene.requests[0])
    if stage in ("masked", "unmask"):  # nothing that came of the choices leaves, and nothing opens it
        assert code(reply) is AbortCode.STAGE
    vault = Vault(scene.home(0))
    vault.settle(RUN, [(1, 1)])
    assert vault.latest() is None


@pytest.mark.parametrize("stage", STAGES[1:])
def test_forgetting_some_choices_in_mid_round_gives_it_up(scenes: Scenes, stage: str) -> None:
    scene = scenes()
    scene.play_to(stage)
    Vault(scene.home(0)).forget_learned()
    reply = scene.tell(stage, 0, scene.requests[0])
    if stage in ("masked", "unmask"):
        assert code(reply) is AbortCode.STAGE
        assert "had choices forgotten" in scene.reason(0)[2] or stage == "unmask"
    scene.greet(0, [(1, 1)])
    assert scene.personal(0) is None


# --- training goes on while messages come ---------------------------------------------------------


def test_training_runs_while_the_other_exchanges_go_by(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end, trained = threading.Event(), threading.Event(), threading.Event()
    real = InThisProcess.work

    def held(self: InThisProcess, job: Job, seconds: float | None = None) -> Outcome:
        began.set()
        if not may_end.wait(60):
            raise TimeoutError
        result = real(self, job, seconds)
        trained.set()
        return result

    monkeypatch.setattr(InThisProcess, "work", held)
    scene = scenes(ahead=True)
    scene.play_to("masked")  # keys and shares are answered by all
    assert began.wait(60)
    assert not trained.is_set()
    replies: list[bytes] = []
    asked = threading.Thread(target=lambda: replies.append(scene.tell("masked", 0, scene.requests[0])))
    asked.start()
    assert not replies
    may_end.set()
    asked.join(60)
    assert trained.is_set()
    decode(replies[0], Masked)


def test_a_server_that_announces_again_and_again_ends_each_training_before_the_next(scenes: Scenes) -> None:
    """One at a time, in a place that really ends it."""

    class Place(InThisProcess):
        def __init__(self, model_cache: ModelCache) -> None:
            super().__init__(model_cache)
            self.working, self.most, self.ended = 0, 0, 0
            self._over = threading.Event()

        def work(self, job: Job, seconds: float | None = None) -> Outcome:
            over = self._over = threading.Event()
            self.working += 1
            self.most = max(self.most, self.working)
            over.wait(60)
            self.working -= 1
            self.ended += 1
            raise DeviceError("cancelled")

        def cancel(self) -> None:
            self._over.set()
            while self.working:
                time.sleep(0.001)

    scene = scenes()
    place = Place(scene.model_cache)
    agent = scene.restart(0, workplace=place, ahead=True)
    for attempt in range(1, 12):
        agent.answer("keys", encode(scene.announce(1, attempt)))
        while place.working < 1:
            time.sleep(0.001)
    agent.answer("shares", b"junk")  # ends the last one as well
    assert (place.most, place.working, place.ended) == (1, 0, 11)


def test_a_paused_device_says_so_and_still_keeps_what_a_round_made(scenes: Scenes) -> None:
    scene = scenes()
    owner = {"policy": scene.policy}
    scene.restart(0, policy=lambda: owner["policy"])
    scene.play_to("confirm")
    owner["policy"] = OwnerPolicy(**(vars(scene.policy) | {"paused": True}))
    reply = decode(scene.tell("status", 0, encode(Hello(RUN, ()))), Status)
    assert not reply.ready
    Vault(scene.home(0)).stage(RUN, 1, 1, np.zeros(3, np.float32))
    assert not scene.greet(0, [(1, 1)]).ready
    assert scene.personal(0) is not None
