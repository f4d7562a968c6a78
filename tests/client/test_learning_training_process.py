"""Work in a process of its own: the same outcome, and an end that nothing in it can put off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.fleet_scene import some_choices

from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.training_process import TrainingProcess
from penchant.client.learning.workplace import InThisProcess, Job
from penchant.common.config import Plan, RunConfig
from penchant.common.errors import BaseModelError, DataError, DeviceError

LONG = 300.0


@pytest.fixture(scope="module")
def plan(tiny_model: Callable[[str], Path]) -> Plan:
    changes = {"model.base_model": str(tiny_model("bert")), "training.local_epochs": 2}
    return RunConfig().changed(changes).plan("main", 4)


@pytest.fixture(scope="module")
def process() -> Iterator[TrainingProcess]:
    made = TrainingProcess(memory_mb=512)
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
    running = process._process
    assert running is not None
    assert running.pid is not None
    return running.pid


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


def test_the_next_phase_of_a_run_waits_for_no_process_that_had_to_be_ended(
    process: TrainingProcess, plan: Plan
) -> None:
    """Whether it had to be can depend on choices, and the answer to `keys` must not."""
    process.load(plan)
    process.close()
    phase = replace(plan, phase="close")
    assert process.load(phase).split.personal == InThisProcess(ModelCache()).load(phase).split.personal
    assert process._process is None


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
    with pytest.raises(DeviceError, match=r"took longer than the 0\.1 s that it had, and was ended"):
        process.work(endless(job), 0.1)
    assert not psutil.pid_exists(before)
    assert process.work(job, LONG).weight == 4


def test_it_is_cancelled_from_another_thread(process: TrainingProcess, job: Job) -> None:
    process.work(job, LONG)
    before = pid(process)
    timer = threading.Timer(0.2, process.cancel)
    timer.start()
    with pytest.raises(DeviceError, match="cancelled, or memory ran out"):
        process.work(endless(job), LONG)
    timer.join()
    assert not psutil.pid_exists(before)
    process.cancel()  # nothing is under way: nothing happens
    assert process.work(job, LONG).weight == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of one process")
def test_what_takes_too_much_memory_fails_alone(job: Job) -> None:
    small = TrainingProcess(memory_mb=1)
    try:
        long = [replace(pair, prompt=f"{i} " * 400) for i in range(40) for pair in job.train]
        with pytest.raises(DeviceError):
            small.work(replace(job, train=long), LONG)
    finally:
        small.close()


def test_it_does_not_outlive_the_agent(plan: Plan) -> None:
    program = (
        "import sys, time\n"
        "from penchant.client.learning.training_process import TrainingProcess\n"
        "from penchant.common.config import Plan\n"
        "if __name__ == '__main__':\n"
        "    process = TrainingProcess(64)\n"
        "    process.load(Plan.decode(bytes.fromhex(sys.argv[1])))\n"
        "    print(process._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, plan.encode().hex()], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.02)
