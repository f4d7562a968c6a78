"""Tune one share in the past: `python tests/experiments/recipes.py [SHARE] [--trials 40] [--keep FILE]`.

The same search for every share: a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; Optuna's)
over those of the settings below that bear on the share. Judged by rolling origin: the time before the test
part is cut at three moments, and each past is split as the whole is, its first three quarters to learn from,
its last quarter to be judged on. The test part is never read. A trial begins with one past and goes on to
three while it is among the best quarter; the best three, and the recipe that is there, are then judged on six
cases. Each search starts from the recipe that is there and from six settings: each of the three optimisers of
the shared part, with either pooling. Prints the best as a section of a recipe (deploy/recipes/*.toml).

Trials are kept in FILE: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import tomli_w
import torch
from optuna.storages.journal import JournalFileBackend

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import DeviceError, ProtocolError, RoundFailed
from penchant.common.shares import share_names
from penchant.deploy.recipes import recipe
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare

from pasts import CASES  # isort: skip

Changes = dict[str, Any]

RUNNING, COMPLETE, PRUNED, FAIL = (
    optuna.trial.TrialState.RUNNING,
    optuna.trial.TrialState.COMPLETE,
    optuna.trial.TrialState.PRUNED,
    optuna.trial.TrialState.FAIL,
)

WITHIN = 3  # cases of a trial that is not given up
FINALISTS = 3
WORK = 180  # most passes over the pairs of a client that is in every round: no share gets more than another

SPLIT = ("A", "B", "kernel", "svd")  # a shared and a personal factor
SHARING = (*SPLIT, "AB", "ffa", "lore")
PERSONAL = (*SPLIT, "none", "lore")
HEADED = (*SPLIT, "AB", "none", "ffa")

SECTIONS = ("model", "adapter", "training", "federation")
LEAST = {
    "training.weight_decay": 1e-5,
    "training.lr_head": 1e-4,
    "training.lr_personal": 1e-3,
    "training.l2_to_start": 1e-4,
}
AS_THEY_ARE = (
    "model.pooling",
    "model.max_tokens",
    "model.normalize",
    "adapter.rank",
    "adapter.head",
    "training.local_epochs",
    "federation.rounds",
    "federation.cohort",
    "federation.warmup_rounds",
)

OPTIMIZERS: dict[str, Changes] = {
    "adam": {"training.lr_shared": (1e-3, 3e-2)},
    "adam twice": {"training.lr_shared": (1e-3, 3e-2), "federation.server_lr": (1e-3, 0.1)},
    "plain": {"training.lr_shared": (0.03, 1.0), "federation.server_lr": (1.0, 10.0)},
}
"""Of the shared part, with the ranges of its rates: AdamW on the devices; with Adam on the server as well;
plain gradients on the devices, long steps of the server."""


def rate(trial: optuna.Trial, name: str, low: float, high: float) -> float:
    """Two digits, so that a recipe can be read."""
    return float(f"{trial.suggest_float(name, low, high, log=True):.1e}")


def drawn(trial: optuna.Trial, share: str) -> Changes:
    """A configuration, from those settings that bear on `share`."""
    epochs = trial.suggest_int("training.local_epochs", 1, 12, log=True)
    rounds = trial.suggest_int("federation.rounds", 6, 60, log=True)
    rank = trial.suggest_int("adapter.rank", 1, 4)
    most = WORK if share in SHARING else WORK // 3  # of "none" everybody is in every round
    changes: Changes = {
        "model.pooling": trial.suggest_categorical("model.pooling", ("mean", "first")),
        "model.max_tokens": trial.suggest_categorical("model.max_tokens", (16, 24, 32)),
        "model.normalize": rate(trial, "model.normalize", 5, 30),
        "adapter.rank": rank,
        "adapter.alpha": float(rank),
        "training.local_epochs": epochs,
        "training.final_fit_epochs": 0,
        "training.weight_decay": rate(trial, "training.weight_decay", 1e-5, 1),
        "federation.rounds": min(rounds, max(1, most // epochs)),
    }
    if share in HEADED:
        changes["training.lr_head"] = rate(trial, "training.lr_head", 1e-4, 1)
    if share in PERSONAL:
        changes["training.lr_personal"] = rate(trial, "training.lr_personal", 1e-3, 0.1)
        changes["training.l2_to_start"] = rate(trial, "training.l2_to_start", 1e-4, 1)
    if share in SPLIT:
        changes["adapter.head"] = trial.suggest_categorical("adapter.head", ("shared", "personal"))
        changes["federation.warmup_rounds"] = trial.suggest_categorical("federation.warmup_rounds", (0, 5))
    if share in SHARING:
        changes["federation.cohort"] = trial.suggest_categorical("federation.cohort", (17, 34))
        changes |= optimizer(trial)
    return changes


def optimizer(trial: optuna.Trial) -> Changes:
    chosen = trial.suggest_categorical("optimizer", tuple(OPTIMIZERS))
    rates = {
        name: rate(trial, f"{chosen}.{name}", low, high) for name, (low, high) in OPTIMIZERS[chosen].items()
    }
    kinds: dict[str, Changes] = {
        "adam": {},
        "adam twice": {"federation.server_optimizer": "fedadam"},
        "plain": {"training.shared_optimizer": "sgd"},
    }
    return kinds[chosen] | rates


def begun(share: str) -> list[Changes]:
    """Where every search starts: a setting of each optimiser with each pooling."""
    common: Changes = {
        "training.local_epochs": 4,
        "federation.rounds": 40,
        "adapter.rank": 2,
        "model.max_tokens": 24,
        "model.normalize": 10.0,
        "training.weight_decay": 1e-3,
        "training.lr_personal": 0.01,
        "training.l2_to_start": 0.01,
        "adapter.head": "shared",
        "federation.warmup_rounds": 0,
        "federation.cohort": 34,
    }
    adam = {"training.lr_head": 3e-3, "optimizer": "adam", "adam.training.lr_shared": 3e-3}
    if share not in SHARING:
        return pooled(common | adam)
    twice = {
        "training.lr_head": 3e-3,
        "optimizer": "adam twice",
        "adam twice.training.lr_shared": 3e-3,
        "adam twice.federation.server_lr": 0.01,
    }
    plain = {
        "training.lr_head": 0.1,
        "optimizer": "plain",
        "plain.training.lr_shared": 1.0,
        "plain.federation.server_lr": 3.0,
    }
    return pooled(common | adam, common | twice, common | plain)


def pooled(*settings: Changes) -> list[Changes]:
    """Each with either pooling."""
    return [setting | {"model.pooling": pooling} for setting in settings for pooling in ("mean", "first")]


def there(share: str) -> Changes:
    """The recipe that is there as a place of the space: zeros become the least that is drawn."""
    known = asdict(RunConfig().changed({"adapter.share": share, **recipe("senate", share)}))
    found = {f"{table}.{key}": value for table in SECTIONS for key, value in known[table].items()}
    sgd, adam = found["training.shared_optimizer"] == "sgd", found["federation.server_optimizer"] == "fedadam"
    chosen = "plain" if sgd else "adam twice" if adam else "adam"
    place = {name: max(found[name], low) for name, low in LEAST.items()}
    place |= {name: found[name] for name in AS_THEY_ARE}
    if place["model.pooling"] == "auto":
        place["model.pooling"] = "mean"  # MiniLM is an encoder
    rates = {f"{chosen}.{name}": found[name] for name in OPTIMIZERS[chosen]}
    return place | {"optimizer": chosen} | rates


class Runs:
    """Accuracy on the last quarter of a past."""

    def __init__(self, share: str) -> None:
        self._share, self._model_cache = share, ModelCache()

    def accuracy(self, changes: Changes, until: float, seed: int) -> float:
        """0 for training that diverges."""
        config = RunConfig().changed(
            {
                "adapter.share": self._share,
                "seed": seed,
                "workers": 1,
                "data.time_cutoff": until,
                "data.validation_pairs": 0,
                "privacy.secagg": False,
                **recipe("senate", "all"),
                **changes,
            }
        )
        folder = Path(tempfile.mkdtemp(prefix="recipes-"))
        try:
            result = simulate(prepare(config, self._model_cache), folder)
            return result.accuracy
        except (DeviceError, ProtocolError, RoundFailed) as error:
            print(f"  {error}", flush=True)
            return 0.0
        finally:
            shutil.rmtree(folder)

    def mean(self, changes: Changes) -> float:
        return statistics.fmean(self.accuracy(changes, *case) for case in CASES)

    def gone_on(self, trial: optuna.trial.FrozenTrial) -> float:
        """The mean over all cases of a trial that has been through the first ones."""
        more = [self.accuracy(trial.user_attrs["changes"], *case) for case in CASES[WITHIN:]]
        return (WITHIN * (trial.value or 0.0) + sum(more)) / len(CASES)

    def objective(self, trial: optuna.Trial) -> float:
        changes = drawn(trial, self._share)
        trial.set_user_attr("changes", changes)
        found: list[float] = []
        for case in CASES[:WITHIN]:
            found.append(self.accuracy(changes, *case))
            trial.report(statistics.fmean(found), step=len(found))
            if trial.should_prune():
                raise optuna.TrialPruned
        return statistics.fmean(found)


def searched(share: str, trials: int, kept: Path | None) -> optuna.Study:
    """A study of `share`, with so many trials ended."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(kept))) if kept else None
    study = optuna.create_study(
        study_name=share,
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.PercentilePruner(25.0, n_startup_trials=5),
    )
    ended = sum(trial.state in (COMPLETE, PRUNED) for trial in study.trials)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=10, seed=ended)  # not the same draws anew
    for start in (*begun(share), there(share)):
        study.enqueue_trial(start, skip_if_exists=True)
    for trial in study.get_trials(states=(RUNNING,)):  # interrupted: once more
        study.tell(trial.number, state=FAIL)
        study.enqueue_trial(trial.params)
    study.optimize(Runs(share).objective, n_trials=max(0, trials - ended), callbacks=[tell])
    return study


def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    means = " ".join(f"{mean:.3f}" for mean in trial.intermediate_values.values())
    print(f"{study.study_name} {trial.number:3d}  {means}", flush=True)


def section(share: str, changes: Changes) -> str:
    """A recipe's section in TOML."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        table, name = key.split(".")
        tables.setdefault(table, {})[name] = value
    return tomli_w.dumps({share: tables})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("share", nargs="?", default="lore", choices=share_names())
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = searched(chosen.share, chosen.trials, chosen.keep)
    runs = Runs(chosen.share)
    before = runs.mean(recipe("senate", chosen.share))
    print(f"the recipe that is there: {before:.4f}, {len(CASES)} cases", flush=True)
    completed = study.get_trials(states=(COMPLETE,))
    finalists = sorted(completed, key=lambda trial: trial.value or 0.0, reverse=True)[:FINALISTS]
    judged = [(runs.gone_on(trial), trial) for trial in finalists]
    accuracy, best = max(judged, key=lambda pair: pair[0])
    print(f"the best found: {accuracy:.4f} (trial {best.number})\n")
    if accuracy > before:
        print(section(chosen.share, best.user_attrs["changes"]))
    else:
        print("the recipe that is there stays")


if __name__ == "__main__":
    main()
