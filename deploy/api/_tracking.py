"""A run's figures, written where a researcher looks at other runs: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from penchant._results import SimulationResult
from penchant._runs import Callback
from penchant.common.errors import UsageError
from penchant.deploy.simulation.result import RoundSummary

__all__ = ["Tracker"]

FIGURES = ("train_loss", "val_accuracy", "survivors", "cohort", "seconds", "bytes_up", "bytes_down")
_FORMS = '"tensorboard:FOLDER", "wandb:PROJECT" or "mlflow:EXPERIMENT"'


class _Log(Protocol):
    """What takes figures; one for each program."""

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Keep them under that step."""

    def close(self) -> None:
        """All is written."""


class Tracker(Callback):
    """A callback that writes each round's figures, and the result's, to another program's log.

    Rounds are steps. `train_loss` and `val_accuracy` are of the factors that a round began with, as
    everywhere; the closing round's step also has the result's `accuracy`. Nothing of a single person is
    written. A run that goes on in another call has another log, with the rounds that were left.

    Args:
        to: "tensorboard:FOLDER", "wandb:PROJECT" or "mlflow:EXPERIMENT". The program has to be installed; it
            is looked for at once, and begins its log with the first round.

    Raises:
        UsageError: `to` names something else, or the program isn't installed.
    """

    of_one_run = True

    def __init__(self, to: str) -> None:
        kind, _, place = to.partition(":") if isinstance(to, str) else ("", "", "")
        if kind not in _LOGS or not place:
            raise UsageError(f"to is {to!r}; give {_FORMS}")
        module, self._begin = _LOGS[kind]
        try:
            self._program = importlib.import_module(module)
        except ImportError:
            raise UsageError(f"{kind} is not installed here; pip install {kind}") from None
        self._place = place
        self._log: _Log | None = None
        self._last = 0

    def on_round(self, summary: RoundSummary, last: int) -> None:
        """Write the round's figures."""
        known = {name: getattr(summary, name) for name in FIGURES}
        self._last = last
        self._write({name: float(value) for name, value in known.items() if value is not None}, summary.round)

    def on_result(self, result: SimulationResult) -> None:
        """Write the accuracy beside the closing round; of a run that was finished before, nothing."""
        if self._log is not None:
            self._write({"accuracy": result.accuracy}, self._last)

    def on_end(self) -> None:
        """End the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _write(self, figures: Mapping[str, float], step: int) -> None:
        if self._log is None:
            self._log = self._begin(self._program, self._place)
        self._log.write(figures, step)


class _TensorBoard:
    def __init__(self, program: Any, folder: str) -> None:
        self._writer = program.SummaryWriter(folder)

    def write(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, program: Any, project: str) -> None:
        self._run = program.init(project=project)

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, program: Any, experiment: str) -> None:
        self._program = program
        program.set_experiment(experiment)
        program.start_run()

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._program.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        self._program.end_run()


_LOGS: Mapping[str, tuple[str, Callable[[Any, str], _Log]]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "wandb": ("wandb", _Wandb),
    "mlflow": ("mlflow", _Mlflow),
}
