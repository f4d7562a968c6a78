"""A run's figures in TensorBoard, Weights & Biases and MLflow: as their own calls want them, and no more."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tastes import small_run, write_choices

import penchant


class Program(types.ModuleType):
    """Stands for one of the three programs: notes what it is called with."""

    def __init__(self) -> None:
        super().__init__("program")
        self.calls: list[tuple[Any, ...]] = []

    def SummaryWriter(self, folder: str) -> Program:  # noqa: N802
        return self._noted("begin", folder)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._noted(name, value, step)

    def init(self, *, project: str) -> Program:
        return self._noted("begin", project)

    def set_experiment(self, name: str) -> None:
        self._noted("begin", name)

    def start_run(self) -> None: ...

    def log(self, figures: dict[str, float], *, step: int) -> None:
        for name, value in figures.items():
            self._noted(name, value, step)

    log_metrics = log

    def close(self) -> None:
        self._noted("end")

    finish = end_run = close

    def _noted(self, *call: Any) -> Program:
        self.calls.append(call)
        return self


@pytest.fixture
def settings(tiny_model: Callable[[str], Path], tmp_path: Path) -> dict[str, Any]:
    choices = tmp_path / "choices.jsonl"
    write_choices(choices, [8] * 5)
    base = small_run(tiny_model("bert"), choices, 5, epochs=1)
    return {key: value for key, value in base.items() if key != "data.dataset"} | {"data": choices}


@pytest.mark.parametrize(
    ("to", "module"),
    [("tensorboard:logs", "torch.utils.tensorboard"), ("wandb:tastes", "wandb"), ("mlflow:tastes", "mlflow")],
)
def test_each_round_is_a_step_and_the_result_is_at_the_last(
    to: str, module: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program()
    monkeypatch.setitem(sys.modules, module, program)
    tracker = penchant.Tracker(to)
    assert program.calls == []
    settings |= {"federation.rounds": 2, "privacy.secagg": False}
    result = penchant.simulate(**settings, callbacks=[tracker])
    begin, *figures, end = program.calls
    assert begin == ("begin", to.partition(":")[2])
    assert end == ("end",)
    assert figures[-1] == ("accuracy", result.accuracy, 3)
    expected = [
        (name, float(value), log.round)
        for log in result.rounds_log
        for name in ("train_loss", "val_accuracy", "survivors", "cohort", "seconds", "bytes_up", "bytes_down")
        if (value := getattr(log, name)) is not None
    ]
    assert [call for call in figures if call[2] < 3] == expected
    assert {call[0] for call in figures if call[2] == 3} == {name for name, *_ in expected} | {"accuracy"}
    assert len(expected) == 2 * 7


@pytest.mark.parametrize("to", ["", "tensorboard", "tensorboard:", "aim:here", "wandb", None])
def test_what_it_does_not_know(to: Any) -> None:
    with pytest.raises(penchant.UsageError, match="tensorboard:FOLDER"):
        penchant.Tracker(to)


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_program_that_is_not_here(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(penchant.UsageError, match=f"pip install {kind}"):
        penchant.Tracker(f"{kind}:here")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    made = Program()
    monkeypatch.setitem(sys.modules, "mlflow", made)
    return made


def steps(program: Program) -> list[int]:
    """The steps of one log, which is begun and ended once."""
    begin, *figures, end = program.calls
    assert (begin[0], end[0]) == ("begin", "end")
    return list(dict.fromkeys(step for _, _, step in figures))


def test_of_a_race_the_winner_alone_is_logged(settings: dict[str, Any], program: Program) -> None:
    settings = {key: value for key, value in settings.items() if key != "share"}
    settings |= {"federation.rounds": 8, "privacy.secagg": False}
    penchant.simulate(**settings, auto=True, callbacks=[penchant.Tracker("mlflow:x")])
    assert steps(program) == list(range(1, 10))


def test_a_finished_run_that_is_asked_for_again_has_no_log(
    settings: dict[str, Any], program: Program, tmp_path: Path
) -> None:
    settings |= {"federation.rounds": 1, "privacy.secagg": False, "out": tmp_path / "run"}
    penchant.simulate(**settings)
    penchant.simulate(**settings, callbacks=[penchant.Tracker("mlflow:x")])
    assert program.calls == []


def test_a_call_that_ends_with_an_exception_ends_its_log(settings: dict[str, Any], program: Program) -> None:
    class Enough(penchant.Callback):
        def on_round(self, summary: Any, last: int) -> None:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        penchant.simulate(**settings, callbacks=[penchant.Tracker("mlflow:x"), Enough()])
    assert steps(program) == [1]


def test_a_comparison_is_not_for_a_tracker(settings: dict[str, Any], program: Program) -> None:
    with pytest.raises(penchant.UsageError, match="one run"):
        penchant.compare(**settings, callbacks=[penchant.Tracker("mlflow:x")])
