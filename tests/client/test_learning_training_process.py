"""Work in a separate process: the same outcome, and an end that nothing in it can put off."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.fleet_scene import some_choices
from support.tiny_models import WORDS, write_tiny_model

from penchant.client.learning import model_facts
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.training_process import TrainingProcess
from penchant.client.learning.workplace import Job
from penchant.common.config import Plan, RunConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import BaseModelError, DataError, DeviceError

LONG = 300.0


@pytest.fixture(scope="module")
def plan(tiny_model: Callable[[str], Path]) -> Plan:
    changes = {"model.base_model": str(tiny_model("bert")), "training.local_epochs": 2}
    return RunConfig().changed(changes).plan("main", 4)


@pytest.fixture(scope="module")
def process(plan: Plan) -> Iterator[TrainingProcess]:
    """Its first model is loaded, whichever test comes first."""
    made = TrainingProcess(memory_mb=512)
    made.load(plan)
    yield made
    made.close()


@pytest.fixture(scope="module")
def job(plan: Plan) -> Job:
    loaded = InThisProcess(ModelCache()).load(plan)
    shared, start = loaded.split.initial(plan.seed)
    choices = some_choices(0)
    return Job(plan, loaded.digest, shared, start, start, choices.train, choices.validation, seed=7)


def endless(job: Job) -> Job:
    return replace(job, plan=replace(job.plan, training=replace(job.plan.training, local_epochs=1000)))


def pid(process: TrainingProcess) -> int:
    running = process._worker
    assert running is not None
    assert running.pid is not None
    return running.pid


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def busy(process: TrainingProcess, job: Job, budget: float = LONG) -> Iterator[list[str]]:
    """While it works on a job without end; what is raised there at the end."""
    raised: list[str] = []

    def work() -> None:
        try:
            process.work(endless(job), budget)
        except DeviceError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: process._given)
    psutil.Process(pid(process)).suspend()  # so that it never ends by itself, on however fast a machine
    yield raised
    process.cancel()
    thread.join(60)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(name, whether the test's own thread started it) of each process."""
    names: list[tuple[str, bool]] = []
    real = SpawnProcess.start

    def start(self: SpawnProcess) -> None:
        names.append((self.name, threading.current_thread() is threading.main_thread()))
        real(self)

    monkeypatch.setattr(SpawnProcess, "start", start)
    return names


FACTS, TRAINING = "penchant model facts", "penchant training"


def test_the_outcome_is_that_of_work_in_this_process_to_the_bit(process: TrainingProcess, job: Job) -> None:
    theirs, ours = process.work(job, LONG), InThisProcess(ModelCache()).work(job)
    assert theirs.shared_update.tobytes() == ours.shared_update.tobytes()
    assert theirs.personal.tobytes() == ours.personal.tobytes()
    assert (theirs.weight, theirs.before, theirs.judged) == (ours.weight, ours.before, ours.judged)


def test_it_knows_the_model_as_this_process_does(process: TrainingProcess, plan: Plan) -> None:
    theirs, ours = process.load(plan), InThisProcess(ModelCache()).load(plan)
    assert (theirs.digest, theirs.norms) == (ours.digest, ours.norms)
    assert theirs.split.shared == ours.split.shared
    assert np.array_equal(theirs.split.initial(3)[0], ours.split.initial(3)[0])


def test_the_facts_of_a_model_never_wait_for_training_nor_end_it(
    process: TrainingProcess, job: Job, plan: Plan, started: list[tuple[str, bool]]
) -> None:
    """The answer to `keys` waits for facts, and must not say whether training is still going on."""
    process.work(job, LONG)
    process.load(plan)
    worker = pid(process)
    other = replace(plan, adapter=replace(plan.adapter, rank=3))
    started.clear()
    with busy(process, job) as raised:
        assert process.load(other).split.shared != process.load(plan).split.shared
        assert (raised, pid(process)) == ([], worker)
    assert raised == ["the work was ended: it was cancelled, or memory ran out"]
    assert started == [(FACTS, True)]  # nor did the end of the job start anything: the next one does
    process.close()
    started.clear()
    phase = replace(other, phase="close")
    assert process.load(phase).split.personal == InThisProcess(ModelCache()).load(phase).split.personal
    assert started == []
    assert process.work(job, LONG).weight == 4
    assert started == [(TRAINING, True)]
    assert process.work(job, LONG).weight == 4  # it stays warm
    assert started == [(TRAINING, True)]


def test_facts_of_the_last_models_are_kept_and_no_process_of_theirs(
    process: TrainingProcess, plan: Plan, started: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_facts, "KEPT", 2)
    children = psutil.Process().children(recursive=True)
    plans = [replace(plan, adapter=replace(plan.adapter, rank=rank)) for rank in (4, 5)]
    for asked in (*plans, *plans):
        process.load(asked)
    assert started == [(FACTS, True)] * 2
    process.load(replace(plan, adapter=replace(plan.adapter, rank=6)))
    process.load(plans[1])
    assert started == [(FACTS, True)] * 3
    process.load(plans[0])
    assert started == [(FACTS, True)] * 4
    assert psutil.Process().children(recursive=True) == children


def test_the_start_that_a_plan_draws_is_the_one_of_this_process(
    process: TrainingProcess, plan: Plan, started: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(asked: Plan) -> bool:
        """Whether it is that one; what was started for it."""
        ours = InThisProcess(ModelCache()).load(asked).start()
        return process.load(asked).start().tobytes() == ours.tobytes()

    process.load(plan)
    started.clear()
    assert drawn(plan)
    assert started == []  # it came with the facts
    other = replace(plan, seed=plan.seed + 1)
    assert process.load(other).split.personal == process.load(plan).split.personal
    assert started == []  # nothing is drawn before it is asked for
    assert drawn(other)
    assert started == [(FACTS, True)]
    assert drawn(other)
    assert drawn(plan)
    assert started == [(FACTS, True)]
    assert process.load(replace(plan, start_sent=True)).start().size == 0
    monkeypatch.setattr(model_facts, "STARTS_MOST", 2 * process.load(plan).start().size)
    third = replace(plan, seed=plan.seed + 2)
    assert drawn(third)  # which takes the place of the one that came first
    assert drawn(other)
    assert started == [(FACTS, True)] * 2
    assert drawn(plan)
    assert started == [(FACTS, True)] * 3


def test_an_owner_who_leaves_ends_the_process_and_its_job(process: TrainingProcess, job: Job) -> None:
    process.work(job, LONG)
    before = pid(process)
    with busy(process, job) as raised:
        process.let_go()
        assert not psutil.pid_exists(before)
    assert raised == ["the work was ended: it was cancelled, or memory ran out"]
    assert process.work(job, LONG).weight == 4  # who joins anew has a new one
    assert pid(process) != before


def test_a_model_that_loads_longer_than_a_job_may_take_is_there_for_the_next(job: Job) -> None:
    fresh = TrainingProcess(memory_mb=512)
    try:
        with pytest.raises(DeviceError, match=r"took longer than the 0\.0 s"):
            fresh.work(job, 0.01)
        loading = pid(fresh)
        fresh.cancel()
        assert fresh.work(job, LONG).weight == 4
        assert pid(fresh) == loading
    finally:
        fresh.close()


def test_errors_keep_their_kind_and_what_is_not_foreseen_keeps_its_text(
    process: TrainingProcess, job: Job, plan: Plan
) -> None:
    with pytest.raises(DataError, match="no choices to learn from"):
        process.work(replace(job, train=()), LONG)
    with pytest.raises(BaseModelError, match="not the one that was announced"):
        process.work(replace(job, base=bytes(32)), LONG)
    missing = replace(plan, model=replace(plan.model, base_model="/nowhere"))
    with pytest.raises(BaseModelError):
        process.load(missing)
    with pytest.raises(DeviceError, match=r"^the work failed: [A-Za-z]+$") as caught:
        process.work(replace(job, train=("ann likes the first one",)), LONG)  # type: ignore[arg-type]
    assert "ann" not in str(caught.value)


def test_at_the_end_of_its_time_it_is_gone_and_the_next_job_is_done(
    process: TrainingProcess, job: Job
) -> None:
    process.work(job, LONG)
    before = pid(process)
    with busy(process, job, budget=2.0) as raised:
        until(lambda: bool(raised))
    assert len(raised) == 1
    assert "took longer than the 2.0 s that it had, and was ended" in raised[0]
    assert not psutil.pid_exists(before)
    assert process.work(job, LONG).weight == 4


def test_it_is_cancelled_from_another_thread(process: TrainingProcess, job: Job) -> None:
    process.work(job, LONG)
    before = pid(process)
    with busy(process, job) as raised:
        assert not raised
    assert raised == ["the work was ended: it was cancelled, or memory ran out"]
    assert not psutil.pid_exists(before)
    process.cancel()  # nothing is under way: nothing happens
    assert process.work(job, LONG).weight == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of one process")
def test_what_takes_too_much_memory_fails_alone(job: Job) -> None:
    small = TrainingProcess(memory_mb=1)
    try:
        draw = random.Random(
            0
        )  # words that the tiny model knows: others it reads as one text, which takes little
        prompts = [" ".join(draw.choices(WORDS, k=400)) + " " for _ in range(40)]
        long = [replace(pair, prompt=prompt) for prompt in prompts for pair in job.train]
        with pytest.raises(DeviceError):
            small.work(replace(job, train=long), LONG)
    finally:
        small.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of one process")
def test_choices_that_need_several_times_the_memory_are_learned_from(tmp_path: Path) -> None:
    """160 texts whose frozen states take 295 MB, where a job may take 96 MB in all. All pairs are one batch,
    as they are where no plan says otherwise."""
    base, home = tmp_path / "base", tmp_path / "home"
    home.mkdir()
    wide = {"hidden_size": 128, "intermediate_size": 1024, "max_position_embeddings": 400}
    write_tiny_model("bert", base, **wide)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=400)) for _ in range(160)]
    pairs = [
        Preference("", chosen, rejected) for chosen, rejected in zip(texts[::2], texts[1::2], strict=True)
    ]
    changes = {"model.base_model": str(base), "model.max_tokens": 400, "training.optimizer": "sgd"}
    plan = RunConfig().changed({**changes, "training.local_epochs": 2}).plan("main", 4)
    at_once = InThisProcess(ModelCache())
    loaded = at_once.load(plan)
    shared, start = loaded.split.initial(plan.seed)
    job = Job(plan, loaded.digest, shared, start, start, pairs, pairs[:30], seed=7)
    small = TrainingProcess(96, home)
    try:
        theirs = small.work(job, LONG)
    finally:
        small.close()
    ours = at_once.work(job)
    assert theirs.weight == 80
    for one, other in ((theirs.shared_update, ours.shared_update), (theirs.personal, ours.personal)):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())
    assert np.abs(ours.shared_update).max() > 0
    assert theirs.before.loss_sum == pytest.approx(ours.before.loss_sum, rel=1e-6)
    assert list(home.iterdir()) == []


def test_it_does_not_outlive_the_agent() -> None:
    program = (
        "import time\n"
        "from penchant.client.learning.training_process import TrainingProcess\n"
        "if __name__ == '__main__':\n"
        "    process = TrainingProcess(64)\n"
        "    print(process._running().pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 120
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of one process")
def test_who_has_many_choices_is_trained_within_the_memory_there_is(tmp_path: Path) -> None:
    """All at once the step would hold several times what a job may take: it goes in portions."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    write_tiny_model("llama", tmp_path, **sizes)
    changes = {
        "model.base_model": str(tmp_path),
        "model.max_tokens": 32,
        "adapter.target_modules": ("q_proj", "v_proj"),
        "adapter.layers": (),
        "training.local_epochs": 2,
    }
    plan = RunConfig().changed(changes).plan("main", 4)
    models = ModelCache()
    loaded = InThisProcess(models).load(plan)
    shared, start = loaded.split.initial(plan.seed)
    choices, draw = some_choices(0), random.Random(0)
    train = [
        replace(pair, prompt=" ".join(draw.choices(WORDS, k=24)) + " ")
        for _ in range(200)
        for pair in choices.train
    ]
    job = Job(plan, loaded.digest, shared, start, start, train, choices.validation, seed=7)
    model, split = models.of(plan).model, loaded.split
    parts = [{n: t.requires_grad_() for n, t in split.shared.unflatten(shared).items()}]
    parts += [{n: t.requires_grad_() for n, t in split.personal.unflatten(start).items()}]
    whole = model.step_memory.of(model.prepare(train).texts.packed, split.effective(*parts))
    memory_mb = 160
    assert whole > 3 * memory_mb * 2**20
    small = TrainingProcess(memory_mb=memory_mb)
    try:
        small.load(plan)
        outcome = small.work(job, LONG)
    finally:
        small.close()
    assert outcome.weight == len(train)
    assert np.abs(outcome.shared_update).max() > 0
