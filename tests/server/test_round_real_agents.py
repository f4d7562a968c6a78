"""Whole rounds of real agents, some silent, mute or lying: the sum is that of the survivors, exactly.

A masked run is held against its plain twin: the same people and seeds, and owners who allow unmasked vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import BENCHES, FIRST_NODE, STAGES, FleetScene, opened_scenes, shared_of, states
from support.scene import plain_sum
from support.tastes import write_choices

from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.errors import TooManyDropouts
from penchant.common.secagg.transcript import threshold
from penchant.common.secagg.update_vector import HONEST_FOR_HISTOGRAM
from penchant.common.wire.codec import decode, decode_any, encode
from penchant.common.wire.messages import Abort, Masked, Plain, Shares, Unmasking
from penchant.deploy import run_directory
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import SimulationSetup, prepare
from penchant.server.journal import Journal

Scenes = Callable[..., FleetScene]
Losses = Mapping[tuple[int, str], Iterable[int]]
N = 7  # t = 5: two may be lost
DONE = [(1, 1, "finished"), (2, 1, "finished")]  # a round and the closing one
BEFORE_THE_SUM = ("keys", "shares", "masked")


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Any:
    with opened_scenes(tiny_model("bert"), tmp_path, N, federation__rounds=1) as make:
        yield make


def plain(scenes: Scenes, n: int = N, **settings: Any) -> FleetScene:
    return scenes(n, privacy__secagg=False, policy={"allow_unmasked": True}, **settings)


def nodes(devices: Iterable[int]) -> tuple[int, ...]:
    return tuple(FIRST_NODE + i for i in devices)


@pytest.fixture(scope="module")
def vectors(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of seven devices sends in round 1 where nothing is masked, as centred integers."""
    allowed = {"policy": {"allow_unmasked": True}, "privacy__secagg": False, "federation__rounds": 1}
    scene = FleetScene(tiny_model("bert"), tmp_path_factory.mktemp("plain"), N, **allowed)
    scene.serve()
    scene.close()
    sent = [decode(reply, Plain).vector for stage, _, reply in scene.log if stage == "masked"]
    return [np.frombuffer(vector, "<i4") for vector in sent[:N]]


def check_like_the_plain_twin(masked: FleetScene, twin: FleetScene) -> None:
    """Both runs gave the same sums of the same devices, and left the same factors on server and devices."""
    for ours, theirs in zip(masked.watched, twin.watched, strict=True):
        assert ours.survivors == theirs.survivors
        assert (ours.total == theirs.total).all()
    assert (shared_of(masked.run()).factors == shared_of(twin.run()).factors).all()
    for i in range(masked.n):
        own, other = masked.personal(i), twin.personal(i)
        assert own is not None
        assert other is not None
        assert own[0] == other[0]
        assert (own[1] == other[1]).all()


# --- silence --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Who is lost in round 1. silent: reached by nothing any more; mute: answers, but the reply is lost."""

    silent: Losses
    mute: Losses

    def among(self, stages: Iterable[str]) -> list[int]:
        both = [*self.silent.items(), *self.mute.items()]
        return sorted(i for (_, stage), who in both if stage in stages for i in who)

    def in_plain(self) -> dict[str, Losses]:
        """The same losses where there are only two stages: up to masked they count, later nothing is left to
        lose. Who fell silent before it was asked for its vector never trained."""
        early = [i for (_, stage), who in self.silent.items() if stage in BEFORE_THE_SUM for i in who]
        early += [i for (_, stage), who in self.mute.items() if stage in ("keys", "shares") for i in who]
        late = [i for (_, stage), who in self.mute.items() if stage == "masked" for i in who]
        return {"silent": {(1, "masked"): early}, "mute": {(1, "masked"): late}}


CASES = [
    *(Case({(1, stage): [4]}, {}) for stage in STAGES),
    *(Case({}, {(1, stage): [4]}) for stage in STAGES),
    Case({(1, "keys"): [0], (1, "masked"): [3]}, {}),
    Case({(1, "shares"): [6]}, {(1, "masked"): [0]}),
    Case({(1, "masked"): [2, 5]}, {}),
    Case({}, {(1, "masked"): [2], (1, "confirm"): [3]}),
    Case({(1, "confirm"): [0]}, {(1, "unmask"): [1]}),
    Case({(1, "unmask"): [5, 6]}, {}),
]


def told(case: Case) -> str:
    return " ".join(
        f"{name}-{stage}{list(who)}"
        for name, losses in (("silent", case.silent), ("mute", case.mute))
        for (_, stage), who in losses.items()
    )


@pytest.mark.parametrize("case", CASES, ids=told)
def test_the_sum_is_the_plain_sum_of_those_whose_vectors_arrived(scenes: Scenes, case: Case) -> None:
    scene, twin = scenes(), plain(scenes)
    run = scene.serve(silent=case.silent, mute=case.mute)
    twin.serve(**case.in_plain())
    assert states(run) == DONE
    first = scene.watched[0]
    lost = case.among(BEFORE_THE_SUM)
    assert first.survivors == nodes(i for i in range(N) if i not in lost)
    dropped = [node for lost_there in first.dropped.values() for node in lost_there]
    assert tuple(sorted(dropped)) == nodes(case.among(STAGES))
    assert run.journal.logs()[0].dropped == {stage: len(who) for stage, who in first.dropped.items()}
    check_like_the_plain_twin(scene, twin)


def test_the_sum_is_that_of_the_devices_own_vectors(scenes: Scenes, vectors: list[Any]) -> None:
    """Not only like another run: number by number what the survivors would have sent in clear."""
    scene = scenes()
    scene.serve(silent={(1, "masked"): [1]}, mute={(1, "confirm"): [2]})
    assert (scene.watched[0].total == plain_sum(v for i, v in enumerate(vectors) if i != 1)).all()


@pytest.mark.parametrize("kind", ["silent", "mute"])
def test_a_device_keeps_the_factor_of_a_round_that_stands_if_it_has_one(scenes: Scenes, kind: str) -> None:
    """Device 4 is lost in stage masked. If it answered, its factor belongs to the round that then stands;
    if nothing reached it, it has none of that round. In the closing round it is back."""
    scene = scenes()
    held: dict[int, Any] = {}

    def look(stage: str, i: int, reply: bytes) -> bytes:
        if stage == "keys":
            held[i] = scene.personal(i)  # the last time: as the closing round began
        return reply

    scene.serve(lie=look, **{kind: {(1, "masked"): [4]}})
    rounds = {i: None if own is None else own[0] for i, own in held.items()}
    assert rounds == dict.fromkeys(range(N), 1) | ({4: None} if kind == "silent" else {})
    assert [own[0] for i in range(N) if (own := scene.personal(i))] == [2] * N


def test_a_factor_of_an_attempt_that_failed_is_not_kept(scenes: Scenes) -> None:
    """Three vectors are lost, so attempt 1 fails; attempt 2 stands, without device 6, which staged in the
    first: its factor is dropped when it hears which attempt stands."""
    scene = scenes()
    attempt = [0]

    def twist(stage: str, i: int, payload: bytes) -> bytes:
        attempt[0] += (stage, i) == ("keys", 0)
        return b"" if (stage, i, attempt[0]) == ("keys", 6, 2) else payload

    def lie(stage: str, i: int, reply: bytes) -> bytes:
        if stage == "keys" and attempt[0] == 3:
            own = scene.personal(i)
            assert (None if own is None else own[0]) == (None if i == 6 else 1)
        return b"" if stage == "masked" and attempt[0] == 1 and i in (1, 2, 3) else reply

    run = scene.serve(twist=twist, lie=lie)
    assert states(run) == [(1, 1, "failed"), (1, 2, "finished"), (2, 1, "finished")]
    assert scene.watched[0].survivors == nodes(range(6))


# --- one too many ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["silent", "mute"])
@pytest.mark.parametrize("stage", ["shares", "masked", "confirm"])
def test_one_loss_too_many_reveals_nothing_and_ends_by_type(scenes: Scenes, stage: str, kind: str) -> None:
    scene = scenes()
    with pytest.raises(TooManyDropouts, match="nothing was revealed"):
        scene.serve(**{kind: {(1, stage): [0, 3, 6]}})
    assert "unmask" not in {stage for stage, _, _ in scene.log}
    run = scene.run()
    assert states(run) == [(1, 1, "failed"), (1, 2, "failed")]
    assert run.journal.load() is None
    assert all(scene.personal(i) is None for i in range(N))
    assert scene.watched == []


def test_three_lost_across_stages_are_too_many_as_well(scenes: Scenes) -> None:
    scene = scenes()
    with pytest.raises(TooManyDropouts):
        scene.serve(silent={(1, "shares"): [0], (1, "masked"): [3]}, mute={(1, "confirm"): [6]})
    assert "unmask" not in {stage for stage, _, _ in scene.log}


def test_devices_that_are_back_finish_the_round_in_its_second_attempt(scenes: Scenes) -> None:
    """The repeated round repeats its result: as if nothing had happened."""
    scene, twin = scenes(), plain(scenes)
    attempt = [0]

    def twist(stage: str, i: int, payload: bytes) -> bytes:
        attempt[0] += (stage, i) == ("keys", 0)
        return payload

    run = scene.serve(
        twist=twist,
        lie=lambda stage, i, reply: b"" if attempt[0] == 1 and stage == "masked" and i < 3 else reply,
    )
    assert states(run) == [(1, 1, "failed"), (1, 2, "finished"), (2, 1, "finished")]
    twin.serve()
    check_like_the_plain_twin(scene, twin)


@pytest.mark.parametrize("kind", ["silent", "mute"])
def test_too_few_answers_at_unmasking_reveal_nothing_and_skip_the_round(scenes: Scenes, kind: str) -> None:
    """Four of seven shares of each secret came, five are needed. Past unmasking there is no second try."""
    scene = scenes()
    run = scene.serve(**{kind: {(1, "unmask"): [0, 3, 6]}})
    assert states(run) == [(1, 1, "skipped"), (2, 1, "finished")]
    assert len(scene.watched) == 1  # the closing round's sum alone
    assert shared_of(run).steps == 0
    given = [decode_any(reply, (Unmasking, Abort)) for stage, _, reply in scene.log if stage == "unmask"]
    if kind == "silent":
        assert len(given) - N == 4 < threshold(N)
    assert [own[0] for i in range(N) if (own := scene.personal(i))] == [2] * N


def test_three_devices_can_lose_nobody(scenes: Scenes) -> None:
    scene = scenes(3)
    with pytest.raises(TooManyDropouts):
        scene.serve(mute={(1, "masked"): [2]})
    assert states(scenes(3).serve()) == DONE


# --- lies -----------------------------------------------------------------------------------------


def junk(reply: bytes) -> bytes:
    return bytes(len(reply))


def cut(reply: bytes) -> bytes:
    return reply[:-1]


def flipped(reply: bytes) -> bytes:
    return reply[:-1] + bytes([reply[-1] ^ 1])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lie", [junk, cut, flipped])
def test_a_liar_at_any_stage_costs_itself_and_the_sum_stays_exact(
    scenes: Scenes, vectors: list[Any], stage: str, lie: Callable[[bytes], bytes]
) -> None:
    scene, liar = scenes(), 3
    run = scene.serve(lie=lambda now, i, reply: lie(reply) if (now, i) == (stage, liar) else reply)
    assert states(run) == DONE
    first = scene.watched[0]
    alive = [i for i in range(N) if FIRST_NODE + i in first.survivors]
    assert (first.total == plain_sum(vectors[i] for i in alive)).all()
    if (stage, lie) == ("shares", flipped):  # the tag of the last receiver's share: that one aborts
        assert sorted({*range(N)} - {*alive}) == [6]
    else:
        assert (liar in alive) == (stage in ("confirm", "unmask"))


def test_a_vector_with_another_ones_signature_is_left_out(scenes: Scenes) -> None:
    scene = scenes()
    seen: dict[int, bytes] = {}

    def lie(stage: str, i: int, reply: bytes) -> bytes:
        if stage != "masked":
            return reply
        seen[i] = reply
        if i != 5:
            return reply
        return encode(replace(decode(reply, Masked), vector=decode(seen[4], Masked).vector))

    scene.serve(lie=lie)
    assert scene.watched[0].set_aside == {FIRST_NODE + 5: "masked: a vector without its signature"}
    assert scene.watched[0].survivors == nodes(i for i in range(N) if i != 5)


def test_a_stranger_who_answers_for_two_devices_counts_once(scenes: Scenes) -> None:
    """A relay gives its own device's entry at two nodes: one identity, one place."""
    scene = scenes()
    first: dict[str, bytes] = {}

    def lie(stage: str, i: int, reply: bytes) -> bytes:
        if stage == "keys" and i == 2:
            first["entry"] = reply
        return first["entry"] if (stage, i) == ("keys", 5) else reply

    run = scene.serve(lie=lie)
    assert states(run) == DONE
    assert "someone has already" in scene.watched[0].set_aside[FIRST_NODE + 5]


def test_sealed_garbage_costs_as_many_receivers_as_it_was_sealed_for(scenes: Scenes) -> None:
    """Device 3 seals garbage for two others; they abort and are back in the next round."""
    scene = scenes()
    spoilt: list[bool] = []

    def lie(stage: str, i: int, reply: bytes) -> bytes:
        if (stage, i) != ("shares", 3) or spoilt:
            return reply
        spoilt.append(True)
        sealed = decode(reply, Shares).sealed
        return encode(Shares((bytes(len(sealed[0])), bytes(len(sealed[0])), *sealed[2:])))

    run = scene.serve(lie=lie)
    assert states(run) == DONE
    assert scene.watched[0].survivors == nodes(range(2, N))
    assert scene.watched[1].survivors == nodes(range(N))
    assert [scene.reason(i)[1] for i in (0, 1)] == ["SHARES", "SHARES"]


# --- masked or plain: the same factors -------------------------------------------------------------


class SameRun(SimulationSetup):
    """A world whose run id does not depend on its configuration: rounding is then drawn alike."""

    @property
    def run(self) -> bytes:
        return bytes(16)


@pytest.fixture
def settings(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    write_choices(tmp_path / "choices.jsonl", [12] * 6)
    monkeypatch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)
    return {
        "data.dataset": str(tmp_path / "choices.jsonl"),
        "data.person_column": "user",
        "data.pairs": 4,
        "data.validation_pairs": 2,
        "data.test_pairs": 3,
        "model.base_model": str(tiny_model("bert")),
        "federation.rounds": 3,
        "federation.cohort": 4,
        "training.local_epochs": 2,
        "training.final_fit_epochs": 2,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter.share": "A"},
        {"adapter.share": "B", "training.batch_size": 3},
        {"adapter.share": "B", "federation.warmup_rounds": 1, "federation.server_optimizer": "fedadam"},
        {"privacy.group_size": 3, "federation.cohort": 6},
    ],
    ids=str,
)
def test_a_simulation_learns_bit_for_bit_the_same_with_and_without_secure_aggregation(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The same people, seeds and run id: the quantised sums are equal, so factors and accuracies are."""
    results, shared, own = [], [], []
    for secagg in (True, False):
        config = RunConfig().changed(settings | changes | {"privacy.secagg": secagg})
        world = prepare(config, BENCHES)
        world = SameRun(world.config, world.federation, world.model_cache, world.cohort, world.policy)
        directory = tmp_path / f"secagg {secagg}"
        run_directory.create(directory, config)
        results.append(simulate(world, directory, command="test").to_dict())
        journal = Journal(directory)
        found = journal.load()
        journal.close()
        assert found is not None
        shared.append(found[1])
        own.append([Vault(directory / "agents" / f"{i:06d}").personal(bytes(16)) for i in range(6)])
    masked, plain = shared
    assert masked.steps == plain.steps > 0
    for name in ("factors", "first", "second", "start"):
        assert (getattr(masked, name) == getattr(plain, name)).all()
    assert all((a.vector == b.vector).all() for a, b in zip(*own, strict=True))
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["per_client"] == results[1]["per_client"]
    kept = [
        [(row["train_loss"], row["val_accuracy"], row["survivors"]) for row in r["rounds_log"]]
        for r in results
    ]
    assert kept[0] == kept[1]


# --- the histogram --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "colluders", "shown"), [(28, 0, False), (29, 0, True), (31, 2, False)])
def test_accuracies_are_counted_only_in_a_crowd(scenes: Scenes, n: int, colluders: int, shown: bool) -> None:
    """Below 20 people who are honest for sure, each device leaves its bin of the histogram empty."""
    assert (threshold(n) - colluders >= HONEST_FOR_HISTOGRAM) == shown
    scene = scenes(n, policy={"max_colluders": colluders}, federation__rounds=0, training__final_fit_epochs=1)
    run = scene.serve()
    (log,) = run.journal.logs()
    assert (log.survivors, log.val_accuracy is not None) == (n, True)
    if not shown:
        assert log.histogram is None
        return
    assert log.histogram is not None
    assert sum(log.histogram) == n
    right = sum(bin_ * count for bin_, count in enumerate(log.histogram)) / 10 / n
    assert log.val_accuracy is not None
    assert abs(right - log.val_accuracy) <= 0.1


def test_no_accuracies_are_counted_where_nothing_is_masked(scenes: Scenes) -> None:
    scene = plain(scenes, 29, federation__rounds=0, training__final_fit_epochs=1)
    assert scene.serve().journal.logs()[0].histogram is None
