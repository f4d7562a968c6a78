"""Tune one share in the past: `python tests/experiments/recipes.py [SHARE] [--trials 40] [--keep FILE]`.

The search of `penchant tune` (deploy/tuning), the same for every share, on the Senate. Judged by rolling
origin: the time before the test part is cut at three moments, and each past is split as the whole is, its
first three quarters to learn from, its last quarter to be judged on. The test part is never read. A trial
begins with one past and goes on to three while it is among the best quarter; the best three, and the recipe
that is there, are then judged on six cases. Each search starts from the recipe that is there and from six
settings: each of the three optimisers of the shared part, with either pooling. Prints the best as a section
of a recipe (deploy/recipes/*.toml).

Trials are kept in FILE: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import tomli_w
import torch

from penchant.common.shares import share_names
from penchant.deploy.recipes import recipe
from penchant.deploy.tuning.search import CaseRuns, best_of, searched
from penchant.deploy.tuning.space import Changes, Space

from pasts import CASES  # isort: skip

SPACE = Space(
    poolings=("mean", "first"),
    max_tokens=(16, 24, 32),
    lengths=(5, 30),
    cohorts=(17, 34),
    final_fits=(0,),
)


class Runs(CaseRuns):
    """Accuracy on the last quarter of a past."""

    def __init__(self, share: str) -> None:
        base = {
            "workers": 1,
            "data.validation_pairs": 0,
            "privacy.secagg": False,
            **recipe("senate", "all"),
        }
        cases = [{"data.time_cutoff": until, "seed": seed} for until, seed in CASES]
        start = recipe("senate", share)
        super().__init__(share, base, cases, start=start, hears=lambda text: print(text, flush=True))


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
    runs = Runs(chosen.share)
    study = searched(runs, SPACE, chosen.keep, trials=chosen.trials)
    before = runs.mean(runs.start)
    print(f"the recipe that is there: {before:.4f}, {len(CASES)} cases", flush=True)
    found = best_of(study, runs)
    print(f"the best found: {found.accuracy:.4f} (trial {found.trial})\n")
    if found.accuracy > before:
        print(section(chosen.share, found.changes))
    else:
        print("the recipe that is there stays")


if __name__ == "__main__":
    main()
