"""What differential privacy costs in accuracy: `python tests/experiments/private_utility.py [--seeds 0,1]`.

Runs of `penchant simulate` as it is, at epsilon 1, 2, 4, 8 and without noise. Rounds and clip are chosen at
epsilon 8 on validation pairs, with a seed of their own (SEARCH_SEED), and stand for every epsilon; test pairs
are scored once. Beside them stands everybody alone, which costs no privacy. --json FILE keeps the runs, and
the same command goes on where it stopped; --page FILE writes the tables between the marks of a page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penchant.client.learning.model_cache import ModelCache
from penchant.deploy import run_directory
from penchant.deploy.configuration import configure
from penchant.deploy.simulation import runner
from penchant.deploy.simulation.world import prepare

EPSILONS = (1.0, 2.0, 4.0, 8.0, 0.0)  # 0 stands for no noise
DELTA = 1e-5
ROUNDS, CLIPS = (2, 5, 15), (0.1, 0.3, 1.0)
SEARCH_SEED = 1000
ALONE = "none"
SHARES = ("A", "lore")
START, END = "<!-- private utility: from here -->", "<!-- private utility: to here -->"


def accuracy(cache: ModelCache, changes: dict[str, Any]) -> float:
    """The mean over people of one run's accuracy."""
    config = configure(changes, None)
    world = prepare(config, cache)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        run_directory.create(directory, config)
        return runner.simulate(world, directory).accuracy


class Kept:
    """Runs that are done, by what they were."""

    def __init__(self, path: Path | None, cache: ModelCache) -> None:
        self._path, self._cache = path, cache
        self._done: dict[str, float] = json.loads(path.read_text()) if path and path.exists() else {}

    def of(self, changes: dict[str, Any]) -> float:
        """One run's accuracy, computed unless it is known."""
        key = json.dumps(changes, sort_keys=True)
        if key not in self._done:
            self._done[key] = accuracy(self._cache, changes)
            print(f"{self._done[key]:.4f}  {key}", flush=True)
            if self._path:
                self._path.write_text(json.dumps(self._done, indent=0, sort_keys=True) + "\n")
        return self._done[key]


def settings(dataset: str, share: str, epsilon: float, seed: int, **more: Any) -> dict[str, Any]:
    """The changes to the recipe of one run."""
    noised = {"privacy.dp_epsilon": epsilon, "privacy.dp_delta": DELTA} if epsilon else {}
    return {"data.dataset": dataset, "adapter.share": share, "seed": seed} | noised | more


def chosen(kept: Kept, dataset: str, share: str) -> dict[str, Any]:
    """Rounds and clip that are best on validation pairs at epsilon 8."""
    found = {}
    for rounds in ROUNDS:
        for clip in CLIPS:
            shape = {"federation.rounds": rounds, "federation.clip": clip, "federation.warmup_rounds": 0}
            asked = settings(dataset, share, 8.0, SEARCH_SEED, **{"data.evaluate": "validation"}, **shape)
            found[rounds, clip] = kept.of(asked), shape
    return max(found.values(), key=lambda pair: pair[0])[1]


def table(kept: Kept, dataset: str, seeds: Sequence[int]) -> list[str]:
    """The rows of one data set, in Markdown."""

    def cell(values: Sequence[float]) -> str:
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return f"{statistics.fmean(values):.3f} ± {error:.3f}"

    lines = [f"| {dataset}, share | rounds, clip | " + " | ".join(_name(e) for e in EPSILONS) + " |"]
    lines.append("|" + "---|" * (2 + len(EPSILONS)))
    for share in SHARES:
        shape = chosen(kept, dataset, share)
        cells = [
            cell([kept.of(settings(dataset, share, epsilon, seed, **shape)) for seed in seeds])
            for epsilon in EPSILONS
        ]
        tuned = f"{shape['federation.rounds']}, {shape['federation.clip']}"
        lines.append(f"| {share} | {tuned} | " + " | ".join(cells) + " |")
    alone = cell([kept.of(settings(dataset, ALONE, 0.0, seed)) for seed in seeds])
    usual = cell([kept.of(settings(dataset, "A", 0.0, seed)) for seed in seeds])
    lines.append(
        f"\nEverybody alone, which costs no privacy: {alone}. Share A by its recipe without noise: {usual}."
    )
    return lines


def _name(epsilon: float) -> str:
    return f"ε = {epsilon:g}" if epsilon else "no noise"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--datasets", default="senate", help="names of data sets, with commas between them")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    kept, seeds = Kept(given.json, ModelCache()), [int(seed) for seed in given.seeds.split(",")]
    lines: list[str] = []
    for dataset in given.datasets.split(","):
        lines += [*table(kept, dataset, seeds), ""]
    print("\n".join(lines))
    if given.page:
        text = given.page.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        _, _, after = rest.partition(END)
        given.page.write_text(f"{before}{START}\n\n" + "\n".join(lines) + f"{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
