"""Tune one share on validation: `python tests/bench/bench_recipes.py [SHARE] [--configs 60] [--json FILE]`.

Random search with successive halving (Jamieson and Talwalkar, AISTATS 2016), the same budget for every
share: each configuration is drawn from `SPACE` (those of its settings that bear on the share), the first rung
runs all of them on one seed, the next the best quarter on three, the last the best of those on six. Judged on
validation roll calls; the test part is never read. Prints the best as a section of a recipe
(deploy/recipes/*.toml), with its accuracy and that of the recipe that is there, on the same seeds.

Finished runs are kept in FILE, line by line: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import tomli_w
import torch

from penchant.client.bench import Benches
from penchant.common.config import RunConfig, ShareName
from penchant.common.errors import PenchantError
from penchant.deploy.recipes import recipe
from penchant.deploy.simulate import prepare, simulate

Changes = dict[str, Any]

RUNGS = ((1.0, (100,)), (0.25, (100, 101, 102)), (0.25, (100, 101, 102, 103, 104, 105)))
"""(part of the configurations that go on, seeds)"""

SPLIT = ("A", "B", "kernel", "svd")
SHARING = (*SPLIT, "AB", "ffa", "lore")
PERSONAL = (*SPLIT, "none", "lore")

SPACE: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "model.max_tokens": ((), (16, 24, 48)),
    "model.normalize": ((), (5.0, 10.0, 20.0)),
    "adapter.rank": ((), (1, 2, 4)),
    "adapter.head": (SPLIT, ("shared", "personal")),
    "training.local_epochs": ((), (2, 4, 6, 12)),
    "training.weight_decay": ((), (0.0, 1e-3, 5e-3, 0.1, 1.0)),
    "training.lr_head": ((*SPLIT, "AB", "none", "ffa"), (0.0, 1e-3, 3e-3, 1e-2)),
    "training.lr_personal": (PERSONAL, (1e-3, 3e-3, 1e-2, 3e-2)),
    "training.pull": (PERSONAL, (0.0, 1e-3, 1e-2, 0.1, 0.5)),
    "federation.rounds": ((), (6, 12, 20, 45)),
    "federation.cohort": (SHARING, (17, 34)),
    "federation.warmup_rounds": (SPLIT, (0, 0, 5)),
}
"""Setting -> (shares that it bears on, none named: all; values)."""

OPTIMIZERS: Sequence[dict[str, Sequence[Any]]] = (
    {"training.lr_shared": (1e-3, 3e-3, 1e-2)},
    {
        "training.lr_shared": (3e-3, 1e-2),
        "federation.server_optimizer": ("fedadam",),
        "federation.server_lr": (3e-3, 1e-2, 3e-2),
    },
    {
        "training.shared_optimizer": ("sgd",),
        "training.lr_shared": (0.1, 0.3, 1.0),
        "federation.server_lr": (1.0, 3.0, 10.0),
    },
)
"""Of the shared part: AdamW on the devices; with Adam on the server as well; plain gradients, long steps."""


def drawn(share: str, count: int) -> list[Changes]:
    """Configurations for a share: the recipe that is there, then others, the same at every call."""
    rng = random.Random(f"recipes {share}")
    found = [recipe("senate", share)]
    while len(found) < count:
        spaces = [{key: values for key, (shares, values) in SPACE.items() if not shares or share in shares}]
        if share in SHARING:
            spaces.append(dict(rng.choice(OPTIMIZERS)))
        changes = {key: rng.choice(values) for space in spaces for key, values in space.items()}
        changes |= {"model.truncation": "right", "training.refit_epochs": 0}
        changes["adapter.alpha"] = float(changes["adapter.rank"])
        if changes.get("federation.warmup_rounds", 0) < changes["federation.rounds"]:
            found.append(changes)
    return found


class Runs:
    """Accuracy on validation of configurations and seeds, each run once and kept."""

    def __init__(self, share: str, kept: Path | None) -> None:
        self._share, self._kept, self._benches = share, kept, Benches()
        lines = kept.read_text(encoding="utf-8").splitlines() if kept and kept.exists() else []
        self._known = {
            self._key(row["changes"], row["seed"]): row["accuracy"] for row in map(json.loads, lines)
        }

    @staticmethod
    def _key(changes: Changes, seed: int) -> str:
        return json.dumps([changes, seed], sort_keys=True)

    def accuracy(self, changes: Changes, seed: int) -> float:
        """-inf for training that diverges."""
        key = self._key(changes, seed)
        if key not in self._known:
            self._known[key] = self._run(changes, seed)
            if self._kept:
                row = {"share": self._share, "changes": changes, "seed": seed, "accuracy": self._known[key]}
                with self._kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        return self._known[key]

    def mean(self, changes: Changes, seeds: Sequence[int]) -> float:
        return statistics.fmean(self.accuracy(changes, seed) for seed in seeds)

    def _run(self, changes: Changes, seed: int) -> float:
        config = RunConfig().changed(
            {
                "adapter.share": self._share,
                "seed": seed,
                "data.evaluate": "validation",
                "privacy.secagg": False,
                **changes,
            }
        )
        folder = Path(tempfile.mkdtemp(prefix="recipes-"))
        try:
            result = simulate(prepare(config, self._benches), folder)
            return float(result["accuracy"]["personal"])
        except PenchantError as error:
            print(f"  {error}", flush=True)
            return float("-inf")
        finally:
            shutil.rmtree(folder)


def rungs(runs: Runs, configs: Sequence[Changes]) -> Iterator[list[tuple[float, Changes]]]:
    """Each rung's configurations with their accuracy, best first."""
    left = list(configs)
    for part, seeds in RUNGS:
        left = left[: max(2, round(part * len(left)))]
        ranked = sorted(((runs.mean(c, seeds), c) for c in left), key=lambda pair: pair[0], reverse=True)
        print(f"{len(seeds)} seeds: " + " ".join(f"{accuracy:.3f}" for accuracy, _ in ranked), flush=True)
        yield ranked
        left = [changes for _, changes in ranked]


def section(share: str, changes: Changes) -> str:
    """A recipe's section in TOML."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        table, name = key.split(".")
        tables.setdefault(table, {})[name] = value
    return tomli_w.dumps({share: tables})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("share", nargs="?", default="lore", choices=get_args(ShareName))
    parser.add_argument("--configs", type=int, default=60)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    runs, configs = Runs(chosen.share, chosen.json), drawn(chosen.share, chosen.configs)
    *_, last = rungs(runs, configs)
    accuracy, best = last[0]
    seeds = RUNGS[-1][1]
    print(f"the recipe that is there: {runs.mean(configs[0], seeds):.4f} on validation, {len(seeds)} seeds")
    print(f"the best: {accuracy:.4f}\n\n{section(chosen.share, best)}")


if __name__ == "__main__":
    main()
