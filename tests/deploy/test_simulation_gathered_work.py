"""A cohort's jobs are gathered and done several at a time: the same groups each time, and what one by one
gives."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import some_choices
from support.tastes import write_choices

from penchant.client.learning.group_round import work_together
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.lockstep import people_bytes
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.workplace import Job
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import BaseModelError, DataError, DeviceError
from penchant.common.model.reward import RewardModel
from penchant.deploy import run_directory
from penchant.deploy.simulation import gathered_work
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.gathered_work import GatheredWork, people_at_once
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare
from penchant.server.journal_reader import JournalReader

MODELS = ModelCache()
PEOPLE = 5


@pytest.fixture
def config(tiny_model: Callable[[str], Path]) -> RunConfig:
    return RunConfig().changed({"model.base_model": str(tiny_model("bert")), "training.local_epochs": 2})


def jobs_of(config: RunConfig, people: int = PEOPLE, seed: int = 0) -> list[Job]:
    planned = MODELS.of(config.plan("main", 4))
    shared, start = planned.split.initial(seed)
    return [
        Job(
            plan=planned.plan,
            base=planned.model_signature.digest,
            shared=shared,
            start=start,
            personal=start.copy(),
            train=some_choices(number).train[: 1 + number % 3],
            held_out=some_choices(number).validation,
            seed=number,
        )
        for number in range(people)
    ]


def alike(one: Outcome, other: Outcome) -> bool:
    counted = one.judged.correct, one.judged.total, one.steps, one.weight
    return (
        np.allclose(one.shared_update, other.shared_update, atol=2e-5)
        and counted == (other.judged.correct, other.judged.total, other.steps, other.weight)
        and one.loss_sum == pytest.approx(other.loss_sum, rel=1e-4)
    )


def asked(work: GatheredWork, jobs: list[Job], threads: int = 2) -> list[Outcome]:
    """All jobs are expected, and then asked for side by side."""
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda n: work.place(n).work(jobs[n], None), range(len(jobs))))


def sizes_of(jobs: list[Job]) -> list[int]:
    """What each of them holds in a group."""
    planned = MODELS.of(jobs[0].plan)
    return [people_bytes(planned.split, planned.model.prepare(job.train)) for job in jobs]


@pytest.mark.parametrize("threads", [1, 2, PEOPLE, 64])
def test_groups_depend_on_the_cohort_alone(config: RunConfig, threads: int) -> None:
    jobs, work = jobs_of(config), GatheredWork(MODELS, asked=2)
    made = asked(work, jobs, threads)
    assert work.groups == [2, 2, 1]
    again = asked(GatheredWork(MODELS, asked=2), jobs, 3)
    alone = [InThisProcess(MODELS).work(job) for job in jobs]
    for one, same, other in zip(made, again, alone, strict=True):
        assert np.array_equal(one.shared_update, same.shared_update)
        assert alike(one, other)


@pytest.mark.parametrize("threads", [1, 64])
def test_groups_that_a_bound_in_bytes_cuts_depend_on_the_cohort_alone(
    config: RunConfig, threads: int
) -> None:
    jobs = jobs_of(config, 12)
    room = gathered_work.SIDE_BY_SIDE * 2 * 3 * max(sizes_of(jobs))
    work, one = GatheredWork(MODELS, asked=64, room=room), GatheredWork(MODELS, asked=64, room=room)
    made, expected = asked(work, jobs, threads), asked(one, jobs, 2)
    assert work.groups == one.groups
    assert 1 < len(work.groups) < 12, "the bound is what cuts"
    assert all(np.array_equal(a.shared_update, b.shared_update) for a, b in zip(made, expected, strict=True))


def test_so_many_groups_are_trained_at_a_time_and_no_more(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks, the whole stays in its room; and as many as there is room for do go at once."""
    many, running, most = gathered_work.SIDE_BY_SIDE, 0, 0
    lock, together = threading.Lock(), threading.Barrier(gathered_work.SIDE_BY_SIDE)
    trained = work_together

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(60)
        try:
            return trained(*args, **more)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(gathered_work, "work_together", counted)
    work = GatheredWork(MODELS, asked=1 + 1)
    asked(work, jobs_of(config, 4 * many), threads=4 * many)
    assert work.groups == [2] * (2 * many)
    assert most == many


def test_a_job_that_nobody_expected_is_done_alone(config: RunConfig) -> None:
    """Another seed, personal part, choice or announcement than the one that was expected."""
    jobs, work = jobs_of(config), GatheredWork(MODELS, asked=8)
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    others = [
        dataclasses.replace(jobs[0], seed=77),
        dataclasses.replace(jobs[0], personal=jobs[0].personal + np.float32(0.1)),
        dataclasses.replace(jobs[0], train=jobs[0].train * 2),
        jobs_of(config, seed=1)[0],
    ]
    for other in others:
        assert alike(work.work(0, other, None), InThisProcess(MODELS).work(other))
    assert not work.groups
    with pytest.raises(BaseModelError, match="changed on the disk"):
        work.work(0, dataclasses.replace(jobs[0], base=b"another"), None)


def test_another_attempt_replaces_what_was_expected(config: RunConfig) -> None:
    jobs, work = jobs_of(config), GatheredWork(MODELS, asked=8)
    assert len(asked(work, jobs)) == PEOPLE
    changed = [dataclasses.replace(job, personal=job.personal + np.float32(0.1)) for job in jobs]
    for one, job in zip(asked(work, changed), changed, strict=True):
        assert alike(one, InThisProcess(MODELS).work(job))
    assert work.groups == [PEOPLE, PEOPLE]


def test_who_is_silent_in_an_attempt_shapes_no_group_of_it(config: RunConfig) -> None:
    """All say what they will ask for, the attempt is given up, and some are silent in the next: what it makes
    is what it makes of a process that began with it."""
    first = [dataclasses.replace(job, attempt=b"round 3, attempt 1") for job in jobs_of(config, 8)]
    second = {n: dataclasses.replace(job, attempt=b"round 3, attempt 2") for n, job in enumerate(first)}
    later = [second[number] for number in range(3, 8)]

    def attempt(work: GatheredWork) -> list[Outcome]:
        for number, job in zip(range(3, 8), later, strict=True):
            work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
        return [work.work(number, job, None) for number, job in zip(range(3, 8), later, strict=True)]

    resumed, through = GatheredWork(MODELS, asked=3), GatheredWork(MODELS, asked=3)
    for number, job in enumerate(first):
        through.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    expected, made = attempt(resumed), attempt(through)
    assert through.groups == resumed.groups == [3, 2]
    assert all(np.array_equal(a.shared_update, b.shared_update) for a, b in zip(made, expected, strict=True))
    assert alike(through.work(0, first[0], None), InThisProcess(MODELS).work(first[0])), "late, and alone"
    assert through.groups == [3, 2]


def test_at_the_end_of_a_round_what_nobody_asked_for_is_let_go(config: RunConfig) -> None:
    jobs, work = jobs_of(config), GatheredWork(MODELS, asked=8)
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    kept = weakref.ref(jobs[4])
    work.end()
    assert alike(work.work(0, jobs[0], None), InThisProcess(MODELS).work(jobs[0]))
    assert not work.groups
    del jobs, job
    gc.collect()
    assert kept() is None


def test_who_never_asks_holds_nobody_up(config: RunConfig) -> None:
    jobs, work = jobs_of(config), GatheredWork(MODELS, asked=3)
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    assert alike(work.place(4).work(jobs[4], None), InThisProcess(MODELS).work(jobs[4]))


def test_an_error_is_its_own_persons(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(config)
    jobs[1] = dataclasses.replace(jobs[1], train=())
    jobs[2] = dataclasses.replace(jobs[2], personal=np.full_like(jobs[2].personal, np.nan))
    work = GatheredWork(MODELS, asked=8)
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    with pytest.raises(DataError, match="no choices"):
        work.work(1, jobs[1], None)
    with pytest.raises(DeviceError):
        work.place(2).work(dataclasses.replace(jobs[2]), None)
    for number in (0, 3, 4):
        assert alike(work.work(number, jobs[number], None), InThisProcess(MODELS).work(jobs[number]))

    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError("ann likes the first one")

    monkeypatch.setattr(gathered_work, "work_together", broken)
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    with pytest.raises(DeviceError, match="the work failed: MemoryError"):
        work.work(0, jobs[0], None)


@pytest.mark.parametrize("part", ["train", "held_out"])
@pytest.mark.parametrize("kind", [BaseModelError, MemoryError])
def test_choices_that_can_not_be_prepared_are_their_owners_error_alone(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, part: str, kind: type[Exception]
) -> None:
    """Whoever asks first. One person's conversation that a template can't hold, say."""
    jobs, prepare = jobs_of(config), RewardModel.prepare
    bad = getattr(jobs[2], part)
    alone = [InThisProcess(MODELS).work(job) for job in jobs]

    def prepared(model: RewardModel, pairs: Sequence[Preference]) -> Any:
        if pairs == bad:
            raise kind("this conversation can't be held")
        return prepare(model, pairs)

    monkeypatch.setattr(RewardModel, "prepare", prepared)
    work = GatheredWork(MODELS, asked=8)
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]
    said = "this conversation" if kind is BaseModelError else "the work failed: MemoryError"
    for number, job in enumerate(jobs):
        if number == 2:
            with pytest.raises(BaseModelError if kind is BaseModelError else DeviceError, match=said):
                work.work(number, job, None)
        else:
            assert alike(work.work(number, job, None), alone[number])


def test_where_nobodys_choices_can_be_prepared_each_is_told(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, work = jobs_of(config), GatheredWork(MODELS, asked=2)
    for number, job in enumerate(jobs):
        work.place(number).expect(lambda job=job: job)  # type: ignore[misc]

    def refused(*_: Any) -> Any:
        raise BaseModelError("this conversation can't be held")

    monkeypatch.setattr(RewardModel, "prepare", refused)
    for number, job in enumerate(jobs):
        with pytest.raises(BaseModelError, match="can't be held"):
            work.work(number, job, None)
    monkeypatch.undo()
    again = GatheredWork(MODELS, asked=2)
    assert len(asked(again, jobs)) == PEOPLE, "a turn that was not used is given back"


def test_groups_keep_within_their_bytes(config: RunConfig) -> None:
    """Half of a group's room is for what people hold, and a person too many is in the next group."""
    jobs = jobs_of(config)
    room = gathered_work.SIDE_BY_SIDE * 2 * 2 * max(sizes_of(jobs))
    work = GatheredWork(MODELS, asked=8, room=room)
    asked(work, jobs, 1)
    assert sum(work.groups) == PEOPLE
    assert max(work.groups) < PEOPLE
    narrow = GatheredWork(MODELS, asked=8, room=1)
    made = asked(narrow, jobs, 1)
    assert narrow.groups == [1] * PEOPLE
    assert all(alike(one, InThisProcess(MODELS).work(job)) for one, job in zip(made, jobs, strict=True))


def test_how_many_are_trained_at_once(tiny_model: Callable[[str], Path], config: RunConfig) -> None:
    def at_once(asked: int, **changes: Any) -> int:
        changed = config.changed({key.replace("__", "."): value for key, value in changes.items()})
        return people_at_once(MODELS.of(changed.plan("main", 4)), asked)

    assert at_once(1) == 1
    assert at_once(7) == 7
    assert at_once(7, training__micro_batch_size=2) == 1
    assert at_once(0, adapter__share="lore") == gathered_work.MOST_ON_CPU
    bloom = {"model__base_model": str(tiny_model("bloom")), "adapter__target_modules": ("query_key_value",)}
    assert at_once(7, **bloom) == 1


def test_a_setting_of_one_gathers_nothing(config: RunConfig) -> None:
    work = GatheredWork(MODELS, asked=1)
    work.place(0).expect(lambda: pytest.fail("the job is not looked at"))
    job = jobs_of(config)[0]
    assert alike(work.place(0).work(job, None), InThisProcess(MODELS).work(job))
    work.place(0).cancel()


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def settings(tiny_model: Callable[[str], Path], tmp_path: Path) -> dict[str, Any]:
    choices = tmp_path / "choices.jsonl"
    write_choices(choices, [12, 8, 12, 10])
    return {
        "data.dataset": str(choices),
        "data.person_column": "user",
        "data.pairs": 4,
        "data.validation_pairs": 1,
        "data.test_pairs": 3,
        "model.base_model": str(tiny_model("bert")),
        "federation.rounds": 2,
        "federation.cohort": 4,
        "training.local_epochs": 2,
        "training.final_fit_epochs": 2,
        "workers": 2,
    }


def run(
    directory: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[int], Any]:
    """-> (run's id and result, groups, the last shared factors)."""
    made: list[SimulatedDevices] = []

    def devices(*args: Any, **more: Any) -> SimulatedDevices:
        made.append(SimulatedDevices(*args, **more))
        return made[-1]

    monkeypatch.setattr("penchant.deploy.simulation.runner.SimulatedDevices", devices)
    world = prepare(RunConfig().changed(settings), MODELS)
    run_directory.create(directory, world.config)
    result = simulate(world, directory)
    found = JournalReader(directory).load()
    assert found is not None
    return (world.run, result), made[0].gathered.groups, found[1].factors


@pytest.mark.parametrize(("share", "secagg"), [("A", True), ("common", False)])
def test_a_simulation_is_the_same_batched_or_not(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, share: str, secagg: bool
) -> None:
    settings |= {"adapter.share": share, "privacy.secagg": secagg}
    alone, none, expected = run(tmp_path / "alone", settings | {"batch_people": 1}, monkeypatch)
    batched, groups, factors = run(tmp_path / "batched", settings | {"batch_people": 3}, monkeypatch)
    assert not none
    assert groups == [3, 1] * 3  # two rounds, and the closing one
    assert np.allclose(factors, expected, atol=1e-3)
    assert alone[0] == batched[0], "the same configuration and people, the same run"
    scores = [[score.accuracy for score in result.per_client] for _, result in (alone, batched)]
    assert scores[0] == scores[1]
    assert alone[1].models_in_use == batched[1].models_in_use


def test_a_simulation_has_the_same_bits_however_many_workers_serve_it(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the memory is what cuts the groups."""
    monkeypatch.setattr(gathered_work, "people_bytes", lambda *_: 10 << 20)
    monkeypatch.setattr(gathered_work, "BYTES", gathered_work.SIDE_BY_SIDE * 2 * (30 << 20))
    ends = [
        run(tmp_path / str(workers), settings | {"batch_people": 8, "workers": workers}, monkeypatch)
        for workers in (1, 16)
    ]
    (_, groups, one), (_, others, many) = ends
    assert groups == others == [3, 1] * 3
    assert np.array_equal(one, many)


def test_a_run_that_is_over_holds_no_jobs(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[GatheredWork] = []
    end = GatheredWork.end

    def ended(work: GatheredWork) -> None:
        end(work)
        ends.append(work)

    monkeypatch.setattr(GatheredWork, "end", ended)
    run(tmp_path / "run", settings | {"batch_people": 3}, monkeypatch)
    assert len(ends) == 3 + 1  # two rounds, the closing one, and the run
    assert ends[-1]._round is None
