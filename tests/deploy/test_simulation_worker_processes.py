"""The same run by processes: the same bits; one that is killed ends the run, and nothing is lost."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tastes import small_run, write_choices

from penchant.common.config import RunConfig
from penchant.common.errors import RunDirectoryError, WorkerLost
from penchant.common.model.activation_cache import PrefixCache
from penchant.deploy import run_directory
from penchant.deploy.audit.audit import audit
from penchant.deploy.simulation import worker_processes
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import Progress, prepare
from penchant.server.journal import RoundLog

PEOPLE = 7


@pytest.fixture(scope="module", autouse=True)
def no_plots() -> Iterator[None]:
    """Reports are drawn elsewhere (tests/deploy/test_report.py); here they would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)
        yield


class Killer(Progress):
    """Kills a process of the run after the first round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids: list[int] = []
        made = worker_processes.WorkerProcesses.__init__

        def noted(workers: worker_processes.WorkerProcesses, children: Any) -> None:
            made(workers, children)
            self.pids = workers.pids()

        monkeypatch.setattr(worker_processes.WorkerProcesses, "__init__", noted)

    def round(self, log: RoundLog, last: int) -> None:
        if log.round == 1:
            os.kill(self.pids[0], signal.SIGKILL)


def run(directory: Path, settings: dict[str, Any], progress: Progress | None = None) -> RunResult:
    config = RunConfig().changed(settings)
    if not directory.exists():
        run_directory.create(directory, config)
    return simulate(prepare(config), directory, progress)


def checkpoints(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "checkpoints").glob("*.safetensors")}


def test_processes_give_the_bits_of_threads_and_a_killed_one_loses_nothing(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_choices(tmp_path / "choices.jsonl", [16] * PEOPLE)
    base = small_run(tiny_model("bert"), tmp_path / "choices.jsonl", PEOPLE, epochs=2)
    here = run(tmp_path / "here", base | {"grid": "local", "workers": 2})

    there = base | {"grid": "processes", "workers": 2}
    killer = Killer(monkeypatch)
    with pytest.raises(WorkerLost, match=r"a worker process is gone.*finished rounds are kept") as lost:
        run(tmp_path / "there", there, killer)
    assert "\n" not in str(lost.value)
    assert "--resume" in lost.value.on_command_line
    assert set(checkpoints(tmp_path / "there")) == {"round-000001.safetensors"}

    result = run(tmp_path / "there", there)
    assert checkpoints(tmp_path / "there") == checkpoints(tmp_path / "here")
    assert result.per_client == here.per_client
    assert not (tmp_path / "there" / worker_processes.STATES).exists()
    assert audit(tmp_path / "there").violations == ()  # the wire is recorded as ever
    for pid in killer.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class Lengths:
    """A tail that keeps two tensors of a text, of two number formats."""

    name = "lengths"

    def precompute(self, texts: Any) -> Any:
        return [
            (torch.arange(float(n)).view(1, n), torch.tensor([n, n], dtype=torch.int16))
            for n in map(len, texts)
        ]


def test_what_is_kept_is_read_from_a_file_without_computing_anything(tmp_path: Path) -> None:
    texts = ["", "a", ("a", "b c"), "a much longer text"]
    kept = PrefixCache(lambda text: torch.arange(len("".join(text)) + 1), Lengths())
    found = kept.get(texts)
    kept.write(tmp_path / "states")
    other = PrefixCache(lambda text: pytest.fail("computed"), Lengths())
    other.read(tmp_path / "states")
    (tmp_path / "states").unlink()
    assert len(other) == len(texts)
    assert other.held == kept.held
    for before, after in zip(found, other.get(texts), strict=True):
        for one, same in zip(before, after, strict=True):
            assert one.dtype == same.dtype
            assert torch.equal(one, same)
            assert same.data_ptr() % 64 == 0


def test_a_run_whose_frozen_states_find_no_room_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = PrefixCache(lambda text: torch.arange(len(text) + 1), Lengths())
    kept.get(["a"])

    def full(self: PrefixCache, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PrefixCache, "write", full)
    with pytest.raises(RunDirectoryError, match="states: No space left on device; make room on its disk, or"):
        worker_processes._shared_by_all(kept, tmp_path / "states")
    assert len(kept.get(["a"])) == 1
