"""Devices that lie inside the masks, in whole rounds of real agents: nothing false is kept or announced.

A liar signs and masks as everybody does; only the numbers under the mask are false.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import FleetScene, Kill, opened_scenes, shared_of, states

from penchant.client.secagg import Participant
from penchant.common.errors import JournalError
from penchant.common.secagg.update_vector import (
    BINS,
    COUNTERS,
    JUDGED_MOST,
    LOSS_MOST,
    Contribution,
    UpdateLayout,
)
from penchant.server.combination import GroupMeans, combination
from penchant.server.round import federate
from penchant.server.run import ServerRun

Ints = np.ndarray
Scenes = Callable[..., FleetScene]
Lie = Callable[[Ints], None]
N = 7
LIAR = 5  # its member number
WEIGHT, LOSS, CORRECT, TOTAL, BIN = (i - len(COUNTERS) for i in (0, 1, 2, 3, 4))


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Any:
    with opened_scenes(tiny_model("bert"), tmp_path, N, federation__rounds=1) as make:
        yield make


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lie], None]:
    """lying(change): the liar changes its vector, as signed integers, before it is masked in a main round."""
    honest = Participant.mask

    def begin(change: Lie) -> None:
        def mask(self: Participant, state: Any, payload: bytes, vector: Any) -> Any:
            if self.identity.member == LIAR and len(vector) > len(COUNTERS):
                vector = vector.copy()
                with np.errstate(over="ignore"):
                    change(vector.view(f"<i{vector.itemsize}"))
            return honest(self, state, payload, vector)

        monkeypatch.setattr(Participant, "mask", mask)

    return begin


def told_by(run: ServerRun) -> tuple[ServerRun, list[str]]:
    lines: list[str] = []
    return replace(run, tell=lines.append), lines


def serve(scene: FleetScene) -> tuple[ServerRun, list[str]]:
    run, lines = told_by(scene.run())
    with scene.wire() as grid:
        federate(run, grid)
    return run, lines


def adds(at: int | slice, what: int) -> Lie:
    def change(vector: Ints) -> None:
        vector[at] += what

    return change


UPDATE = slice(0, -len(COUNTERS))
LIES = {
    "a negative weight": (adds(WEIGHT, -10_000), "weight"),
    "more weight than all can have": (adds(WEIGHT, N * 1024), "weight"),
    "a negative loss": (adds(LOSS, -1_000_000), "loss"),
    "a loss beyond the greatest": (adds(LOSS, 1_000_000), "loss"),
    "fewer pairs than none": (adds(TOTAL, -1000), "pairs judged"),
    "more pairs than are counted": (adds(TOTAL, N * JUDGED_MOST), "pairs judged"),
    "an accuracy of -153391688": (adds(CORRECT, -2_147_483_640), "pairs ranked right"),
    "more right than judged": (adds(CORRECT, 100), "pairs ranked right"),
    "fewer people than none": (adds(BIN, -1), "people of a tenth"),
    "more people than there are": (adds(BIN + BINS - 1, N + 1), "people of a tenth"),
    "an update beyond the clip": (adds(UPDATE, 2**27), "an update of norm"),
    "an update that fills the ring": (adds(slice(0, 1), 2**31 - 1), "an update of norm"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_false_sum_is_skipped_said_and_its_group_named(
    scenes: Scenes, lying: Callable[[Lie], None], name: str
) -> None:
    change, what = LIES[name]
    lying(change)
    scene = scenes()
    run, lines = serve(scene)
    assert states(run) == [(1, 1, "skipped"), (2, 1, "finished")]
    why = run.journal.rows()[0].why
    assert why is not None
    assert what in why
    assert "group 0" in why
    assert "one of members 1–7 lied" in why
    assert lines == [f"round 1, attempt 1, is skipped: {why}"]
    start = run.model_signature.split(scene.config.plan("main", N)).initial(scene.config.seed)[0]
    assert (shared_of(run).factors == start).all()  # nothing of it moved anything
    assert all(scene.personal(i) is None or scene.personal(i)[0] == 2 for i in range(N))  # type: ignore[index]


def test_without_masks_a_false_sum_is_skipped_as_well(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes(privacy__secagg=False, policy={"allow_unmasked": True})
    honest = UpdateLayout.quantise

    def quantise(self: UpdateLayout, contribution: Contribution, key: bytes) -> Any:
        vector = honest(self, contribution, key)
        if self.quantiser.size and not scene.watched:
            vector[CORRECT] += 1000
        return vector

    monkeypatch.setattr(UpdateLayout, "quantise", quantise)
    run, _ = serve(scene)
    assert states(run) == [(1, 1, "skipped"), (2, 1, "finished")]


def test_the_other_groups_stand(scenes: Scenes, lying: Callable[[Lie], None]) -> None:
    """Nine devices in three groups: the liar's is left out, named, and counts as lost."""
    honest = scenes(9, privacy__group_size=3)
    serve(honest)
    lying(adds(TOTAL, -1000))
    scene = scenes(9, privacy__group_size=3)
    run, lines = serve(scene)
    log = run.journal.logs()[0]
    assert (log.survivors, log.dropped) == (6, {"sum": 3})
    assert list(log.failed) == ["1"]
    assert "one of members 4–6 lied" in log.failed["1"]
    assert lines == [f"round 1, attempt 1, is without group 1: {log.failed['1']}"]
    plan = scene.config.plan("main", 9)
    split = run.model_signature.split(plan)
    layout = UpdateLayout.of(plan, split)
    left = honest.watched[0].sums[0].total + honest.watched[0].sums[2].total
    moved = shared_of(run).factors - split.initial(scene.config.seed)[0]
    assert moved == pytest.approx(layout.read(left, 6).mean, abs=1e-6)
    joined = dict(run.journal._read("SELECT member, joined FROM devices"))
    assert [joined[member] for member in (1, 4, 5, 9)] == [2, 1, 1, 2]


def test_too_few_people_left_skip_the_round(scenes: Scenes, lying: Callable[[Lie], None]) -> None:
    lying(adds(TOTAL, -1000))
    run, _ = serve(scenes(9, privacy__group_size=3, federation__min_survivors=7))
    assert states(run)[0] == (1, 1, "skipped")
    assert "6 people are left, at least 7 are needed" in (run.journal.rows()[0].why or "")


def test_factors_that_devices_would_refuse_are_never_kept(
    scenes: Scenes, lying: Callable[[Lie], None]
) -> None:
    """Within the clip, which is huge here, but far beyond what any device takes."""
    scene = scenes(federation__clip=1e6)
    layout = UpdateLayout.of(scene.config.plan("main", N), _split(scene))
    most = 4 * layout.clip / layout.quantiser.step / layout.quantiser.size**0.5
    lying(adds(UPDATE, int(most * 0.9)))
    run, lines = serve(scene)
    assert states(run) == [(1, 1, "skipped"), (2, 1, "finished")]
    assert "devices would refuse" in lines[0]
    assert float(np.abs(shared_of(run).factors).max()) < 1000


def test_a_run_that_was_ruined_by_an_earlier_version_says_how_to_go_back(scenes: Scenes) -> None:
    scene = scenes()
    run = scene.run()
    state = run.model_signature.split(scene.config.plan("main", N)).initial(0)
    number = run.journal.begin(1, "main")
    ruined = run_state(run, state[0] + 1e6)
    run.journal.finish(some_log(number), ruined)
    with scene.wire() as grid, pytest.raises(JournalError, match=r"after round 1 .* --from RUN:ROUND"):
        federate(run, grid)
    assert not [stage for stage, _, _ in scene.log if stage == "keys"]
    assert states(run) == [(1, 1, "finished")]


def test_a_server_that_dies_past_unmasking_checks_what_it_completes(
    scenes: Scenes, lying: Callable[[Lie], None]
) -> None:
    lying(adds(CORRECT, 1000))
    scene = scenes()
    scene.serve(kill=Kill(1, "unmask", N - 1))
    run, lines = serve(scene)
    assert states(run) == [(1, 1, "skipped"), (2, 1, "finished")]
    assert "pairs ranked right" in lines[0]
    assert "members 1–7" in lines[0]


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_groups_are_combined_as_configured(scenes: Scenes, lying: Callable[[Lie], None], rule: str) -> None:
    """A liar within the bounds, in one of three groups: the mean follows it, the others do not."""
    settings = {"privacy__group_size": 3, "federation__combine": rule}
    scene = scenes(9, **settings)
    layout = UpdateLayout.of(scene.config.plan("main", 9), _split(scene))
    size = layout.quantiser.size

    def scaled(vector: Ints) -> None:
        vector[UPDATE] = int(0.9 * 1024 * layout.clip / layout.quantiser.step / size**0.5)
        vector[WEIGHT] = 1024
        vector[LOSS] = 0

    lying(scaled)
    run, lines = serve(scene)
    assert lines == []
    sums = scene.watched[0].sums
    read = [layout.read(sums[number].total, 3) for number in sorted(sums)]
    means = np.stack([one.mean for one in read])
    pooled = layout.read(scene.watched[0].total, scene.n).mean
    told = GroupMeans(means, np.array([one.weight for one in read]), pooled)
    moved = shared_of(run).factors - _split(scene).initial(scene.config.seed)[0]
    assert moved == pytest.approx(combination(rule).combine(told, 0.25), abs=1e-6)
    assert run.journal.logs()[0].update_norm == pytest.approx(float(np.linalg.norm(moved)), rel=1e-4)
    assert float(np.linalg.norm(pooled)) > 5 * float(np.linalg.norm(moved))


def test_a_rule_with_too_few_groups_left_skips_the_round(
    scenes: Scenes, lying: Callable[[Lie], None]
) -> None:
    lying(adds(TOTAL, -1000))
    run, _ = serve(scenes(9, privacy__group_size=3, federation__combine="median"))
    assert states(run)[0] == (1, 1, "skipped")
    assert "median needs the sums of 3 groups, 2 are left; group 1: " in (run.journal.rows()[0].why or "")


# --- the honest are never refused -----------------------------------------------------------------


@pytest.mark.parametrize("ring", [32, 64])
@pytest.mark.parametrize("people", [3, 34])
def test_no_sum_of_honest_devices_is_refused(scenes: Scenes, ring: int, people: int) -> None:
    """Everybody at a bound: the longest update in one direction, the greatest weight, loss and counts."""
    scene = scenes(privacy__ring_bits=ring)
    layout = UpdateLayout.of(scene.config.plan("main", people), _split(scene))
    size = layout.quantiser.size
    draw = np.random.default_rng(people)
    for case in range(20):
        total = np.zeros(layout.words, np.int64)
        for device in range(people):
            update = np.zeros(size, np.float32) if case % 3 else draw.normal(size=size).astype(np.float32)
            if case % 3 == 1:
                update[0] = 1e9
            elif case % 3 == 2:
                update[:] = 1e9
            weight = (0, 1, 1024, 10**6)[(case + device * (case // 5)) % 4]
            judged = (0, 1, JUDGED_MOST)[(case + device) % 3]
            mine = Contribution(
                update * np.float32(1e3), weight, LOSS_MOST * weight * 2, judged, judged, True
            )
            vector = layout.quantise(mine, bytes([case, device]) * 16)
            total += vector.view(f"<i{ring // 8}").astype(np.int64)
        assert layout.fault(total, people) == ""


def test_an_empty_sum_is_that_of_nobody(scenes: Scenes) -> None:
    scene = scenes()
    layout = UpdateLayout.of(scene.config.plan("main", N), _split(scene))
    assert layout.fault(np.zeros(layout.words, np.int64), 0) == ""
    one = np.zeros(layout.words, np.int64)
    one[0] = 1
    assert "norm" in layout.fault(one, 0)
    assert "norm" in layout.fault(one, N)  # without weight there is no update


# --- small helpers --------------------------------------------------------------------------------


def _split(scene: FleetScene) -> Any:
    return scene.model_cache.of(scene.config.plan("main", scene.n)).split


def run_state(run: ServerRun, factors: Any) -> Any:
    from penchant.server.optimizers import ServerState

    return ServerState.begin(factors.astype(np.float32), np.zeros(0, np.float32))


def some_log(attempt: int) -> Any:
    from penchant.server.journal import RoundLog

    return RoundLog(1, attempt, "main", N, N, {}, 0.0, 0, 0, 1, None, None, None, 1.0)
