"""Rounds under differential privacy: real agents, real masks, noise on top."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import FleetScene, opened_scenes, shared_of
from support.scene import RUN

from penchant.client.vault.privacy_ledger import ANCHOR, Cost, LedgerEntry
from penchant.client.vault.sealing import SealedStorage
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.errors import LedgerError
from penchant.common.privacy.accounting import epsilon_of
from penchant.common.secagg.transcript import threshold
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Abort, AbortCode, Announce, Hello, abort_code
from penchant.server.availability import Availability
from penchant.server.cohort import next_cohort
from penchant.server.journal_reader import JournalReader
from penchant.server.noise_terms import as_asked, settle_noise
from penchant.server.privacy_figures import BEYOND, FACT, MEASURED, PrivacyFigures
from penchant.server.round import play_round

N = 9
DP = {"privacy__dp_epsilon": 8.0, "privacy__max_colluders": 0, "federation__clip": 1.0}
Scenes = Callable[..., FleetScene]


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Scenes]:
    with opened_scenes(tiny_model("bert"), tmp_path, N, **DP) as make:
        yield make


def layout_of(scene: FleetScene, phase: Any = "main") -> UpdateLayout:
    plan = scene.config.plan(phase, scene.n)
    return UpdateLayout.of(plan, scene.model_cache.of(plan).split)


def watch_vectors(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """What each device has before its noise, and the noise that it adds."""
    plain, noise = [], []
    with_noise = UpdateLayout.with_noise

    def watched(self: UpdateLayout, vector: Any, drawn: Any) -> Any:
        width = f"<i{self.ring // 8}"
        plain.append(vector.view(width).astype(np.int64))
        noise.append(drawn.view(width).astype(np.int64))
        return with_noise(self, vector, drawn)

    monkeypatch.setattr(UpdateLayout, "with_noise", watched)
    return plain, noise


def test_the_masked_sum_is_the_plain_sum_and_the_noise_exactly(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes()
    plain, noise = watch_vectors(monkeypatch)
    scene.serve()
    for played, aggregate in enumerate(scene.watched):
        mine = slice(played * N, (played + 1) * N)
        assert np.array_equal(aggregate.total, sum(plain[mine]) + sum(noise[mine]))
        assert all(np.any(one) for one in noise[mine])
    assert len(scene.watched) == 3


def test_no_vector_is_longer_than_its_bound(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the update: training rates a hundred times the usual ones."""
    scene = scenes(training__lr_shared=0.5, federation__clip=0.01)
    plain, _ = watch_vectors(monkeypatch)
    scene.serve()
    layout = layout_of(scene)
    assert layout.noise is not None
    norms = [float(np.linalg.norm(vector)) for vector in plain[: 2 * N]]
    assert max(norms) <= layout.noise.norm
    assert max(norms) > 0.9 * layout.noise.clip  # so the bound was reached


def test_every_participation_is_charged_and_the_whole_run_costs_what_was_promised(scenes: Scenes) -> None:
    scene = scenes()
    run = scene.serve()
    privacy = scene.config.privacy
    assert privacy.dp_participations == 3  # two rounds for everybody, and the closing one
    for i in range(N):
        spent = Vault(scene.home(i)).privacy.spent()
        assert spent.noised == 3
        assert 7.5 < epsilon_of(spent.rho, privacy.dp_delta) <= 8.0
    figures = PrivacyFigures.read(JournalReader(run.journal.directory).fact(FACT))
    assert figures is not None
    assert figures.spent(3) == pytest.approx(epsilon_of(spent.rho, privacy.dp_delta), rel=1e-3)
    assert figures.spent(1) < figures.spent(2) < figures.spent(99) == figures.spent(3)


@pytest.mark.parametrize(("people", "group_size"), [(9, 256), (40, 16), (12, 9)])
def test_how_long_the_noise_on_a_mean_is_is_told_rightly(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch, people: int, group_size: int
) -> None:
    """Groups that are larger than the least one share the noise: each device adds less."""
    scene = scenes(n=people, privacy__group_size=group_size, federation__rounds=1)
    _, noise = watch_vectors(monkeypatch)
    run = scene.serve()
    figures, layout = JournalReader(run.journal.directory).privacy(), layout_of(scene)
    assert figures is not None
    assert layout.noise is not None
    mean = np.sum(noise[:people], axis=0) / people
    length = float(np.linalg.norm(mean)) / layout.noise.clip
    assert figures.noise_norm == pytest.approx(length, rel=4 / np.sqrt(2 * layout.words))
    unshared = layout.noise.sigma * np.sqrt(layout.words / people) / layout.noise.clip
    assert figures.noise_norm <= unshared * (1 + 1e-9)
    assert bool(figures.noise_norm < 0.95 * unshared) is (group_size < 256)


@pytest.mark.parametrize(
    ("length", "cost"),
    [(0.9, ""), (1.0, ""), (1.14, MEASURED), (4.63, MEASURED), (4.7, BEYOND), (294, BEYOND)],
)
def test_noise_that_is_long_is_told_in_one_line(length: float, cost: str) -> None:
    figures = PrivacyFigures(1.0, 1e-5, 1.0, 31, 5, 0.001, length)
    assert (cost in figures.told) is (cost in figures.caveat) is True
    assert bool(figures.caveat) is bool(cost)
    assert ("times as long as one person's update can be" in figures.told) is bool(cost)
    assert "\n" not in figures.told


def test_a_failed_attempt_is_paid_for_and_its_noise_is_drawn_anew(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes(privacy__dp_participations=4)
    plain, noise = watch_vectors(monkeypatch)
    lost = {"times": 0}

    def lie(stage: str, device: int, reply: bytes) -> bytes:
        if stage == "confirm" and lost["times"] < N:
            lost["times"] += 1
            return b"lost"
        return reply

    scene.serve(lie=lie)
    first, second = slice(0, N), slice(N, 2 * N)
    assert all(np.array_equal(a, b) for a, b in zip(plain[first], plain[second], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(noise[first], noise[second], strict=True))
    assert {Vault(scene.home(i)).privacy.spent().noised for i in range(N)} == {4}


@pytest.mark.parametrize("stage", ["shares", "masked", "confirm"])
def test_with_dropouts_the_noise_is_still_what_the_target_says(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """As many are lost as may be, and the colluders' noise is taken off: what is left carries the target."""
    scene = scenes(n=30, privacy__max_colluders=2, federation__rounds=1)
    _, noise = watch_vectors(monkeypatch)
    scene.serve(silent={(1, stage): range(9)})
    layout, aggregate = layout_of(scene), scene.watched[0]
    assert layout.noise is not None
    honest = len(aggregate.survivors) - 2
    target = layout.noise.sigma * np.sqrt(layout.honest)
    there = [drawn for drawn in noise if drawn.size == layout.words][-honest:]
    assert len(there) == honest
    sigma = float(np.std(np.concatenate(there)))
    assert sigma * np.sqrt(honest) >= 0.97 * target
    assert float(np.std(np.sum(there, axis=0))) > 0.5 * target


def test_the_zero_vector_carries_the_same_noise(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scenes()
    plain, noise = watch_vectors(monkeypatch)
    scene.restart(0, choices=lambda: (_ for _ in ()).throw(OSError("gone")))
    scene.serve()
    assert not plain[0].any()
    assert np.std(noise[0]) == pytest.approx(float(np.std(noise[1])), rel=0.3)


# --- what is refused ------------------------------------------------------------------------------


def refusal(scene: FleetScene, announce: Announce) -> tuple[AbortCode, str]:
    code = decode(scene.tell("keys", 0, encode(announce)), Abort).code
    return code, scene.reason(0)[2]


@pytest.mark.parametrize("budget", [2.0, 7.9])
def test_a_plan_above_the_owners_budget_is_refused_before_anything_is_sent(
    scenes: Scenes, budget: float
) -> None:
    """The whole run counts, not its first round alone."""
    scene = scenes(policy={"max_epsilon": budget})
    code, why = refusal(scene, scene.announce())
    assert code is AbortCode.POLICY
    assert "max_epsilon" in why
    assert Vault(scene.home(0)).privacy.spent().noised == 0


def test_without_noise_nothing_leaves_unless_the_owner_allows_it(scenes: Scenes) -> None:
    scene = scenes(policy={"allow_exact_sums": False}, privacy__dp_epsilon=0.0)
    code, why = refusal(scene, scene.announce())
    assert code is AbortCode.POLICY
    assert "allow_exact_sums" in why


def test_an_owner_who_expects_more_colluders_pays_more(scenes: Scenes) -> None:
    scene = scenes()
    trusting = scene.agents[0]
    careful = scene.restart(1, policy=type(scene.policy)(**(vars(scene.policy) | {"max_colluders": 2})))
    assert trusting is not careful
    scene.serve()
    spent = [Vault(scene.home(i)).privacy.spent() for i in (0, 1)]
    assert spent[1].rho / spent[1].noised > spent[0].rho / spent[0].noised


@pytest.mark.parametrize("stage", ["status", "keys", "masked"])
@pytest.mark.parametrize("how", ["changed", "copied"])
def test_a_ledger_that_was_changed_or_set_back_keeps_the_device_out(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch, stage: str, how: str
) -> None:
    """One code leaves, at whatever message it is noticed, and the owner has it in one line."""
    storage = SealedStorage(bytes(32))
    monkeypatch.setattr("support.fleet_scene.Vault", partial(Vault, storage=storage))
    scene = scenes()
    home, vault = scene.home(0), Vault(scene.home(0), storage)
    with vault._transaction() as db:
        vault.privacy.charge(db, LedgerEntry.of(bytes(range(16)), 1, 1, 0.001), Cost(0.001, 10.0, 1))
    request = encode(Hello(RUN, ()))
    if stage != "status":
        scene.play_to(stage)
        request = scene.requests[0]
    if how == "changed":
        with sqlite3.connect(home / "vault.db") as db:
            db.execute("UPDATE spent SET rho = '1e-06'")
    else:
        data = (home / ANCHOR).read_bytes()
        (home / "kept").write_bytes(data)  # in an inode of its own
        (home / "kept").replace(home / ANCHOR)
    assert decode(scene.tell(stage, 0, request), Abort).code is abort_code(LedgerError())
    where, _, why = scene.reason(0)
    assert (where, "\n" in why) == (stage, False)
    assert why.startswith("the ledger of this device's privacy was changed, copied or set back")
    with pytest.raises(LedgerError):
        vault.privacy.spent()


def test_a_sum_that_may_hold_nobody_elses_noise_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    scene.restart(0, policy=type(scene.policy)(**(vars(scene.policy) | {"max_colluders": threshold(N)})))
    code, why = refusal(scene, scene.announce())
    assert code is AbortCode.POLICY
    assert "may hold the noise of nobody else" in why
    assert "max_colluders" in why


def test_a_budget_that_is_spent_keeps_the_device_out_and_the_round_goes_on(scenes: Scenes) -> None:
    scene = scenes(policy={"max_epsilon": 8.0})
    run, ledger = scene.run(), Vault(scene.home(0)).privacy
    with scene.wire() as grid:
        availability = Availability(run, grid)
        play_round(run, grid, 1, availability.poll())
        with ledger._transaction() as db:  # another run takes what was left
            ledger.charge(db, LedgerEntry.of(bytes(16), 1, 1, 0.9), Cost(0.9, 10.0, 1))
        play_round(run, grid, 2, availability.poll())
    assert [log.survivors for log in run.journal.logs()] == [N, N - 1]
    assert ledger.spent().noised == 2
    assert "a further round" in scene.reason(0)[2]


def test_turns_go_on_behind_the_latest_attempt_whoever_was_ready_for_another(scenes: Scenes) -> None:
    scene = scenes(federation__cohort=6)
    run, tries = scene.run(), {"confirm": 0}

    def lie(stage: str, device: int, reply: bytes) -> bytes:
        tries["confirm"] += stage == "confirm"
        return b"lost" if stage == "confirm" and tries["confirm"] <= 6 else reply

    with scene.wire(lie=lie) as grid:
        everybody = Availability(run, grid).poll()
        first, last = next_cohort(list(everybody), 6, seed=run.config.seed, round=1, after=None)
        left = {member: node for member, node in everybody.items() if member not in first[:3]}
        second, other = next_cohort(list(left), 6, seed=run.config.seed, round=1, after=None)
        assert last != other
        assert play_round(run, grid, 1, everybody, lambda: left) is not None
    assert run.journal.fact("turn 1") == str(other)
    assert run.journal.attempts(1) == 2
    assert {member for member in everybody if Vault(scene.home(member - 1)).privacy.spent().noised} == {
        *first,
        *second,
    }


def test_noise_drowns_nothing_where_many_take_part(scenes: Scenes) -> None:
    """The mean over 30 moves the factors by less noise than over 9."""
    moved = {}
    for n in (9, 30):
        scene = scenes(n=n, training__lr_shared=0.0, training__lr_head=0.0, federation__rounds=1)
        initial = scene.model_cache.of(scene.config.plan("main", n)).split.initial(scene.config.seed)[0]
        moved[n] = float(np.linalg.norm(shared_of(scene.serve()).factors - initial))
    assert moved[30] < 0.6 * moved[9]


def test_another_run_like_it_has_its_own_number_of_turns() -> None:
    """What was filled in for three rounds would keep people out of thirty."""
    asked = RunConfig().changed({"federation.rounds": 3, "federation.cohort": 20, "privacy.dp_epsilon": 4.0})
    settled = settle_noise(asked, 20, None)
    assert settled.privacy.dp_participations == 5
    assert as_asked(settled) == asked
    longer = settle_noise(as_asked(settled).changed({"federation.rounds": 30}), 20, None)
    assert longer.privacy.dp_participations == 32
    chosen = settle_noise(asked.changed({"privacy.dp_participations": 2}), 20, None)
    assert as_asked(chosen).privacy.dp_participations == 2  # somebody's choice stays
    exact = RunConfig().changed({"federation.cohort": 20})
    assert as_asked(exact) == exact
