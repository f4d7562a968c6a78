"""The vector leaves at a moment that the plan fixes, whatever the training did meanwhile."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.fleet_scene import FleetScene

from penchant.client.agent import round_work
from penchant.client.agent.owner import Choices
from penchant.client.agent.round_work import RoundWork, WallClock
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.outcome import Counts, Outcome
from penchant.client.learning.workplace import Job
from penchant.client.vault.vault import Vault
from penchant.common.errors import DeviceError, PolicyRefusal
from penchant.common.wire.codec import decode_any
from penchant.common.wire.messages import Abort, AbortCode, Masked

SECONDS = 20.0
FOUND = Outcome(np.ones(2, np.float32), np.ones(1, np.float32), 3, Counts(1, 3, 2.0), 1)


@dataclass
class TestClock:
    """Time passes where somebody waits, and where a test says so."""

    __test__ = False
    time: float = 1000.0
    waited: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def wait(self, until: float) -> None:
        self.waited.append(until)
        self.time = max(self.time, until)


@dataclass
class Bench:
    """A workplace that does what a test says."""

    does: Callable[[float | None], Outcome]
    over: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def load(self, plan: Any) -> Any:
        raise NotImplementedError

    def expect(self, job: Any) -> None:
        raise NotImplementedError

    def work(self, job: Job, seconds: float | None) -> Outcome:
        self.begun.set()
        return self.does(seconds)

    def cancel(self) -> None:
        self.over.set()


def work_of(
    does: Callable[[float | None], Outcome] | Bench, clock: TestClock | None, ahead: bool = False
) -> RoundWork:
    bench = does if isinstance(does, Bench) else Bench(does)
    return RoundWork(bench, lambda: cast("Job", None), SECONDS, pace=clock, ahead=ahead)


# --- the moment -------------------------------------------------------------------------------------


def broken(seconds: float | None) -> Outcome:
    raise ZeroDivisionError("ann likes the first one")


def refused(seconds: float | None) -> Outcome:
    raise DeviceError("local training diverged")


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(
    ("work", "found"),
    [
        (lambda seconds: FOUND, FOUND),
        (broken, "the work failed: ZeroDivisionError"),
        (refused, "local training diverged"),
    ],
)
def test_what_ends_early_is_held_until_the_time_is_over(work: Any, found: Any, ahead: bool) -> None:
    clock = TestClock()
    made = work_of(work, clock, ahead)
    made._thread and made._thread.join()
    assert made.outcome() == found
    assert (clock.waited, clock.time) == ([1020.0], 1020.0)


def test_what_does_not_end_in_time_is_ended_and_has_no_outcome() -> None:
    clock, given = TestClock(), []

    def endless(seconds: float | None) -> Outcome:
        given.append(seconds)
        bench.over.wait(60)
        return FOUND

    bench = Bench(endless)
    made = work_of(bench, clock, ahead=True)
    assert bench.begun.wait(60)
    assert made.outcome() == "the training took longer than the 20 s that the plan gives it"
    assert bench.over.is_set()
    assert (given, clock.time) == ([SECONDS], 1020.0)


def test_who_is_asked_late_does_not_wait_again() -> None:
    clock = TestClock()
    made = work_of(lambda seconds: FOUND, clock, ahead=True)
    made._thread and made._thread.join()
    clock.time = 1100.0
    assert made.outcome() is FOUND
    assert clock.time == 1100.0


def test_without_an_onlooker_nothing_is_waited_for() -> None:
    assert work_of(lambda seconds: FOUND, None).outcome() is FOUND
    assert work_of(lambda seconds: FOUND, None, ahead=True).outcome() is FOUND


def test_what_is_dropped_is_ended() -> None:
    def endless(seconds: float | None) -> Outcome:
        bench.over.wait(60)
        return FOUND

    bench = Bench(endless)
    made = work_of(bench, TestClock(), ahead=True)
    assert bench.begun.wait(60)
    made.drop()
    assert bench.over.is_set()


def test_what_is_dropped_while_the_choices_are_read_is_never_begun() -> None:
    """Else it would stand in the way of the next attempt's work."""
    reading, may_end = threading.Event(), threading.Event()

    def slow() -> Job:
        reading.set()
        may_end.wait(60)
        return cast("Job", None)

    bench = Bench(lambda seconds: FOUND)
    made = RoundWork(bench, slow, SECONDS, pace=TestClock(), ahead=True)
    assert reading.wait(60)
    made.drop()
    may_end.set()
    assert made._thread is not None
    made._thread.join(60)
    assert not bench.begun.is_set()


def test_the_agents_own_part_begins_after_the_reply_had_time_to_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading the choices takes the longer the more there are."""
    monkeypatch.setattr(round_work, "HEAD_START", 600.0)
    read: list[str] = []
    made = RoundWork(
        Bench(refused), lambda: cast("Job", read.append("")), SECONDS, pace=TestClock(), ahead=True
    )
    assert made._thread is not None
    assert made._thread.is_alive()
    made.drop()
    made._thread.join(60)
    assert not made._thread.is_alive()
    assert read == []


def test_the_wall_clock_waits_and_never_goes_back() -> None:
    clock = WallClock()
    began = clock.now()
    clock.wait(began + 0.05)
    assert clock.now() >= began + 0.05
    clock.wait(began)
    time.sleep(0)


# --- a whole agent ----------------------------------------------------------------------------------


class Slow(InThisProcess):
    """A workplace in which training goes on until it is cancelled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cancelled = threading.Event()

    def work(self, job: Job, seconds: float | None = None) -> Outcome:
        self.cancelled.wait(60)
        raise DeviceError("cancelled")

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.fixture
def scene(tiny_model: Callable[[str], Path], tmp_path: Path) -> FleetScene:
    return FleetScene(tiny_model("bert"), tmp_path, federation__training_seconds=SECONDS)


@pytest.mark.parametrize("place", [InThisProcess, Slow])
def test_a_fast_and_a_slow_device_send_at_the_same_moment(scene: FleetScene, place: Any) -> None:
    clock = TestClock()
    scene.restart(0, workplace=place(scene.model_cache), ahead=True, pace=clock)
    scene.play_to("masked")
    begun = vars(scene.agents[0])["_work"]
    if place is InThisProcess:
        begun._thread.join()
    clock.time += 7.0
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert (clock.waited, clock.time) == ([1020.0], 1020.0)
    assert bool(scene.agents[0].reasons()) == (place is Slow)


def test_a_plan_that_takes_more_time_than_the_owner_gives_is_refused(scene: FleetScene) -> None:
    policy = {"policy": scene.policy.__class__(**(vars(scene.policy) | {"max_training_seconds": 19.0}))}
    scene.restart(0, **policy)
    assert scene.ask("keys", 0, scene.announce()) == Abort(AbortCode.POLICY)
    assert "the plan asks for 20 seconds for training; the owner allows 19" in scene.reason(0)[2]
    assert PolicyRefusal.__name__ not in scene.reason(0)[2]


# --- after the moment -----------------------------------------------------------------------------

MADE: dict[str, Any] = {
    "an outcome": None,
    "nothing: no choices": Choices([], []),
    "nothing: it fails": RuntimeError("Ünverkennbar-chosen was too much"),
    "nothing: choices that can't be read": OSError("gone"),
    "nothing: values that are no numbers": "nan",
}


@pytest.mark.parametrize("case", MADE, ids=MADE)
def test_after_the_moment_the_same_is_done_whatever_the_work_made(
    tiny_model: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    """Transactions and bytes on the disk are counted between the moment at which the work is over and the
    reply: neither says what came of it."""
    found = {
        name: _after_the_moment(tiny_model, tmp_path / str(i), MADE[name]) for i, name in enumerate(MADE)
    }
    assert found[case] == found["an outcome"]
    assert found[case][0] > 0


def _after_the_moment(tiny_model: Callable[[str], Path], place: Path, made: Any) -> tuple[int, int]:
    """(transactions, growth of the vault's file in bytes) from the outcome to the reply."""
    scene = FleetScene(tiny_model("bert"), place, 3)
    changes: dict[str, Any] = {}
    if isinstance(made, Choices):
        changes["choices"] = made
    elif isinstance(made, OSError):
        changes["choices"] = _raising(made)
    scene.restart(0, **changes)
    scene.play_to("masked")
    counted = {"on": False, "times": 0}
    outcome, transaction = RoundWork.outcome, Vault._transaction

    def over(self: RoundWork) -> Any:
        result = outcome(self)
        counted["on"] = True
        if isinstance(made, RuntimeError):
            return f"the work failed: {made}"
        if made == "nan" and not isinstance(result, str):
            return dataclasses.replace(result, shared_update=result.shared_update * np.float32("nan"))
        return result

    def watched(self: Vault) -> Any:
        counted["times"] += counted["on"]
        return transaction(self)

    before = (scene.home(0) / "vault.db").stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundWork, "outcome", over)
        patch.setattr(Vault, "_transaction", watched)
        reply = scene.tell("masked", 0, scene.requests[0])
    assert decode_any(reply, (Masked, Abort)).__class__ is Masked
    scene.close()
    return counted["times"], (scene.home(0) / "vault.db").stat().st_size - before


def _raising(error: Exception) -> Callable[[], Choices]:
    def choices() -> Choices:
        raise error

    return choices
