"""What differential privacy costs in accuracy: `python tests/experiments/private_utility.py --json FILE`.

--people: `senate`; `taught`, a thousand made-up ones (many_people.py); `jester`, a thousand readers of jokes,
with --jester FOLDER (which holds Jester5k.rda). Runs are those of noised_fleet.py: everything but masks,
which change no sum. Everybody is asked in every round; the rest is Senate's recipe, but for rounds, clip and
the server's rate. These are chosen at epsilon 8 on Senate's validation pairs, with a seed of their own
(SEARCH_SEED), and stand for every epsilon and all people. What is lost is counted from the best without
noise, which is chosen in the same way and among more. Test pairs are scored once for each seed.

--json keeps the runs, and the same command goes on where it stopped; --page FILE writes the table between its
marks, with a dash where runs are missing; --only-show runs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.data.splits import Sizes
from penchant.deploy import datasets
from penchant.deploy.recipes import recipe

from many_people import jester, taught  # isort: skip
from marked_page import write  # isort: skip
from noised_fleet import Fleet  # isort: skip

EPSILONS = (8.0, 0.0, 2.0)  # in the order in which they are run; 0 stands for no noise
DELTA = 1e-5
FIT = 10  # epochs of the final fit, which costs no privacy


def _shape(rounds: int, clip: float, rate: float) -> dict[str, float]:
    return {"federation.rounds": rounds, "federation.clip": clip, "federation.server_lr": rate}


SHAPES = [_shape(2, 1.0, 5.0), _shape(4, 1.0, 3.0), _shape(10, 1.0, 1.0), _shape(10, 0.3, 3.0)]
SHAPES += [_shape(10, 1.0, 3.0), _shape(20, 1.0, 1.0)]
ALONE = _shape(0, 1.0, 1.0)  # weights are fitted on factors as they were drawn: nothing is shared
MORE = [_shape(10, 10.0, 1.0), _shape(20, 10.0, 1.0)]  # without noise
SEARCH_SEED = 1000
PEOPLE = 1000
SIZES = Sizes(pairs=20, validation_pairs=20, test_pairs=60)
Shape = dict[str, Any]


class Runs:
    """Runs that are done, by what they were; a missing one is computed, or shown as missing."""

    def __init__(self, path: Path, jester_folder: Path | None, only_show: bool) -> None:
        self._path, self._folder, self._only_show = path, jester_folder, only_show
        self._cache = ModelCache()
        self._people: dict[tuple[str, int], Federation] = {}
        self._done: dict[str, float] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def of(self, name: str, changes: Shape) -> float | None:
        """The accuracy of one run over the people of a name."""
        key = json.dumps({"people": name} | changes, sort_keys=True)
        if key not in self._done and not self._only_show:
            began = time.process_time()
            config = RunConfig().changed(recipe("senate", changes["adapter.share"]) | changes)
            people = self._federation(name, config).people
            fleet = Fleet.of(config.changed({"federation.cohort": len(people)}), people, self._cache)
            self._done[key] = fleet.accuracy(fleet.learn())
            print(f"{self._done[key]:.4f}  {time.process_time() - began:.0f} s  {key}", flush=True)
            self._path.write_text(json.dumps(self._done, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        return self._done.get(key)

    def _federation(self, name: str, config: RunConfig) -> Federation:
        if (name, config.seed) not in self._people:
            self._people = {(name, config.seed): self._read(name, config)}
        return self._people[name, config.seed]

    def _read(self, name: str, config: RunConfig) -> Federation:
        if name == "taught":
            return taught(PEOPLE, SIZES, config.seed)
        if name == "jester":
            if self._folder is None:
                raise SystemExit("jester needs --jester FOLDER, which holds Jester5k.rda")
            return jester(self._folder, PEOPLE, SIZES, config.seed)
        return datasets.configured(config.data, config.seed)


def settings(share: str, epsilon: float, seed: int, **more: Any) -> Shape:
    """The changes to the recipe of one run."""
    everybody = {
        "data.dataset": "senate",
        "federation.warmup_rounds": 0,
        "federation.server_optimizer": "fedavg",
        "training.final_fit_epochs": FIT,
        "privacy.group_size": 1000,
    }
    noised = {"privacy.dp_epsilon": epsilon, "privacy.dp_delta": DELTA} if epsilon else {}
    return {"adapter.share": share, "seed": seed} | everybody | noised | more


def searched(runs: Runs, share: str, epsilon: float, shapes: Sequence[Shape]) -> Shape | None:
    """The best of `shapes` on Senate's validation pairs; None where a run is missing."""
    found = []
    for shape in shapes:
        asked = settings(share, epsilon, SEARCH_SEED, **{"data.evaluate": "validation"}, **shape)
        found.append(runs.of("senate", asked))
    known = [(value, at) for at, value in enumerate(found) if value is not None]
    return shapes[max(known)[1]] if len(known) == len(shapes) else None


def row(runs: Runs, name: str, share: str, seeds: Sequence[int]) -> str:
    """What one share comes to over the people of a name, in Markdown."""
    shape = searched(runs, share, 8.0, SHAPES)
    free = shape and searched(runs, share, 0.0, [shape, *MORE])
    if shape is None or free is None:
        return f"| {name}, {share} |" + " – |" * 7
    best = _over(runs, name, share, 0.0, free, seeds)
    columns = {epsilon: _over(runs, name, share, epsilon, shape, seeds) for epsilon in EPSILONS}
    lost = [without - noised for without, noised in zip(best, columns[8.0], strict=False)]
    tuned = ", ".join(f"{value:g}" for value in shape.values())
    alone = _over(runs, name, share, 0.0, ALONE, seeds)
    cells = [shown(values) for values in (alone, columns[2.0], columns[8.0], columns[0.0], best, lost)]
    return f"| {name}, {share} | {tuned} | {' | '.join(cells)} |"


def table(rows: Sequence[str]) -> list[str]:
    """The whole table, in Markdown."""
    found = "nothing shared | ε = 2 | ε = 8 | same, no noise | best, no noise | lost at ε = 8"
    return [f"| people, share | rounds, clip, server's rate | {found} |", "|" + "---|" * 8, *rows]


def _over(
    runs: Runs, name: str, share: str, epsilon: float, shape: Shape, seeds: Sequence[int]
) -> list[float]:
    found = [runs.of(name, settings(share, epsilon, seed, **shape)) for seed in seeds]
    return [value for value in found if value is not None]


def shown(values: Sequence[float]) -> str:
    """Mean and standard error over seeds; a dash for nothing."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--people", default="senate", help="senate, taught or jester, with commas between them"
    )
    parser.add_argument("--shares", default="lore", help="shares, with commas between them")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--jester", type=Path, help="the folder that holds Jester5k.rda")
    parser.add_argument("--json", type=Path, required=True, help="a file to add the runs to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    given = parser.parse_args()
    runs = Runs(given.json, given.jester, given.only_show)
    seeds, shares = [int(seed) for seed in given.seeds.split(",")], given.shares.split(",")
    lines = table([row(runs, name, share, seeds) for name in given.people.split(",") for share in shares])
    print("\n".join(lines))
    if given.page:
        write(given.page, "private utility", lines)


if __name__ == "__main__":
    main()
