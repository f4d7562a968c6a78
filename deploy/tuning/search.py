"""The search: a tree-structured Parzen estimator over a space (Bergstra et al., NeurIPS 2011; Optuna's).

A trial is one setting. It is run on one case after the other, each a simulated run, and given up once it is
not among the best quarter; the best few are then judged on all cases. A search starts from the settings that
are there and from one of each optimiser. Trials are kept in a file, and the same search goes on where it was
interrupted.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages.journal import JournalFileBackend

from penchant.client.learning.model_cache import simulated_models
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.errors import DeviceError, ProtocolError, RoundFailed
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare
from penchant.deploy.tuning.space import Changes, Space, begun, drawn, there

__all__ = ["BestFound", "CaseRuns", "best_of", "searched"]

RUNNING, COMPLETE, PRUNED, FAIL = (
    optuna.trial.TrialState.RUNNING,
    optuna.trial.TrialState.COMPLETE,
    optuna.trial.TrialState.PRUNED,
    optuna.trial.TrialState.FAIL,
)
WITHIN: Final = 3  # cases of a trial that is not given up
FINALISTS: Final = 3
_FINAL: Final = "final "  # before a trial's number: what a study keeps of a finalist
optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails ends the search, with penchant's line

People = Callable[[RunConfig], Federation | None]
Hears = Callable[[str], None]


class CaseRuns:
    """Accuracies of one share's settings on cases.

    base: settings of every run, before those that are tried; fixed: settings that no trial changes. start:
    changes of base that are there already, from which a search starts. cases: those by which runs with the
    same settings differ, as in seeds. people: those of a run, where they are in memory already.
    """

    def __init__(
        self,
        share: str,
        base: Mapping[str, Any],
        cases: Sequence[Mapping[str, Any]],
        *,
        start: Mapping[str, Any] | None = None,
        fixed: Mapping[str, Any] | None = None,
        people: People = lambda config: None,
        hears: Hears = lambda text: None,
    ) -> None:
        self.share, self.cases, self.hears = share, cases, hears
        self.start, self._fixed = start or {}, fixed or {}
        self._base, self._people, self._cache = base, people, simulated_models()

    def config(self, changes: Mapping[str, Any], case: Mapping[str, Any]) -> RunConfig:
        """The configuration of one run."""
        return RunConfig().changed(
            {"adapter.share": self.share, **self._base, **changes, **self._fixed, **case}
        )

    def check(self) -> None:
        """Refuse what no run could begin with, on any case; raises as `prepare` does. Nothing is written."""
        for case in self.cases:
            config = self.config(self.start, case)
            prepare(config, self._cache, self._people(config))

    def accuracy(self, changes: Mapping[str, Any], case: Mapping[str, Any]) -> float:
        """That of one run, mean over people; 0 for training that diverges."""
        config = self.config(changes, case)
        folder = Path(tempfile.mkdtemp(prefix="penchant-tune-"))
        try:
            return simulate(
                prepare(config, self._cache, self._people(config)), folder, command="tune"
            ).accuracy
        except (DeviceError, ProtocolError, RoundFailed) as error:
            self.hears(f"  {error}")
            return 0.0
        finally:
            shutil.rmtree(folder)

    def mean(self, changes: Mapping[str, Any]) -> float:
        """Over all cases."""
        return statistics.fmean(self.accuracy(changes, case) for case in self.cases)


@dataclass(frozen=True)
class BestFound:
    """What a search came to: the best settings, their mean accuracy over all cases, and the runs it took."""

    changes: Changes
    accuracy: float
    trial: int
    runs: int


def searched(
    runs: CaseRuns, space: Space, kept: Path | None, *, trials: int | None = None, budget: int | None = None
) -> optuna.Study:
    """A study with so many trials ended, or so many runs made; an interrupted one goes on in `kept`."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(kept))) if kept else None
    study = optuna.create_study(
        study_name=runs.share,
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.PercentilePruner(25.0, n_startup_trials=5),
    )
    ended = sum(trial.state in (COMPLETE, PRUNED) for trial in study.trials)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=10, seed=ended)  # not the same draws anew
    for start in (there(runs.config(runs.start, runs.cases[0]), space), *begun(runs.share, space)):
        study.enqueue_trial(start, skip_if_exists=True)
    for trial in study.get_trials(states=(RUNNING,)):  # interrupted: once more
        study.tell(trial.number, state=FAIL)
        study.enqueue_trial(trial.params)

    def objective(trial: optuna.Trial) -> float:
        return _mean_of(trial, runs, space)

    def told(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        means = " ".join(f"{mean:.3f}" for mean in trial.intermediate_values.values())
        runs.hears(f"{study.study_name} {trial.number:3d}  {means}")
        if budget is not None and _spent(study) >= budget:
            study.stop()

    left = None if trials is None else max(0, trials - ended)
    if budget is None or _spent(study) < budget:
        study.optimize(objective, n_trials=left, callbacks=[told])
    return study


def best_of(study: optuna.Study, runs: CaseRuns) -> BestFound:
    """The best of the finalists, each on all cases; ties go to the earlier trial."""
    completed = study.get_trials(states=(COMPLETE,))
    finalists = sorted(completed, key=lambda trial: trial.value or 0.0, reverse=True)[:FINALISTS]
    judged = [(_gone_on(study, runs, trial), -trial.number, trial) for trial in finalists]
    accuracy, _, best = max(judged, key=lambda one: one[:2])
    more = max(0, len(runs.cases) - WITHIN) * len(finalists)
    return BestFound(best.user_attrs["changes"], accuracy, best.number, _spent(study) + more)


def _mean_of(trial: optuna.Trial, runs: CaseRuns, space: Space) -> float:
    changes = drawn(trial, runs.share, space)
    trial.set_user_attr("changes", changes)
    found: list[float] = []
    for case in runs.cases[:WITHIN]:
        found.append(runs.accuracy(changes, case))
        trial.report(statistics.fmean(found), step=len(found))
        if trial.should_prune():
            raise optuna.TrialPruned
    return statistics.fmean(found)


def _gone_on(study: optuna.Study, runs: CaseRuns, trial: optuna.trial.FrozenTrial) -> float:
    """The mean over all cases of a trial that has been through the first ones."""
    key = f"{_FINAL}{trial.number}"
    if key not in study.user_attrs:
        more = [runs.accuracy(trial.user_attrs["changes"], case) for case in runs.cases[WITHIN:]]
        first = min(WITHIN, len(runs.cases)) * (trial.value or 0.0)
        study.set_user_attr(key, (first + sum(more)) / len(runs.cases))
    return float(study.user_attrs[key])


def _spent(study: optuna.Study) -> int:
    """Runs of ended trials."""
    return sum(len(trial.intermediate_values) for trial in study.get_trials(states=(COMPLETE, PRUNED)))
