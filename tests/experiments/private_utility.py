"""What differential privacy costs in accuracy: `python tests/experiments/private_utility.py --json FILE`.

--people: `senate`; `arguments`, people who judged 50 arguments or more; `taught` and `taught10000`, made-up
ones; `jester`, a thousand readers of jokes, tested on jokes that are new to all; `jester-known` and
`jester-known5000`, readers tested on jokes that are new to them alone (many_people.py). --data FOLDER holds
`arguments/` and `jester/`. --shares: shares with Senate's recipe, or without one: `A, no recipe`, and
`common, no recipe`, what people had who brought data of their own before two depths stood side by side.
Runs are those of noised_fleet.py: everything but masks, which change no sum. Everybody is asked in every
round; the rest is the recipe, but for rounds, clip and the server's rate, and the length of texts, which is
what jokes and arguments need.

Rounds, clip and rate of shares lore and common are chosen at epsilon 8 on Senate's validation pairs, with a
seed of their own (SEARCH_SEED), and stand for every epsilon and all people; other shares are trained for four
rounds, without a search, and lore beside them (`lore, 4 rounds`). What is lost is counted from the better of
two without noise: the same settings, and in the two searched shares those chosen in the same way among more.
Test pairs are scored once for each seed.

--json keeps the runs, and the same command goes on where it stopped; --page FILE writes the table between its
marks, with a dash where runs are missing; --figure FILE draws the rows that were run at three ε or more;
--only-show runs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.data.splits import Sizes
from penchant.deploy import datasets
from penchant.deploy.recipes import recipe

from many_people import arguments, jester, taught  # isort: skip
from marked_page import write  # isort: skip
from noised_fleet import fleet_of  # isort: skip

EPSILONS = (8.0, 0.0, 2.0, 4.0, 1.0)  # in the order in which they are run; 0 stands for no noise
DELTA = 1e-5
FIT = 10  # epochs of the final fit, which costs no privacy
SEEDS = (0, 1, 2, 3, 4)


def _shape(rounds: int, clip: float, rate: float) -> dict[str, float]:
    return {"federation.rounds": rounds, "federation.clip": clip, "federation.server_lr": rate}


SHAPES = [_shape(2, 1.0, 5.0), _shape(4, 1.0, 3.0), _shape(10, 1.0, 1.0), _shape(10, 0.3, 3.0)]
SHAPES += [_shape(10, 1.0, 3.0), _shape(20, 1.0, 1.0)]
ALONE = _shape(0, 1.0, 1.0)  # personal parts are fitted on factors as they were drawn: nothing is shared
MORE = [_shape(10, 10.0, 1.0), _shape(20, 10.0, 1.0)]  # without noise
FIXED = _shape(4, 1.0, 1.0)
"""Of shares other than lore, which take twenty times as long: not searched, and of lore beside them."""
SEARCH_SEED = 1000
SIZES = Sizes(pairs=20, validation_pairs=20, test_pairs=60)
LEAST = 50  # strict choices of a judge of arguments
UNTUNED = "A, no recipe"
HEADS = "common, no recipe"
SEARCHED = ("lore", HEADS)
LONG = {"model.max_tokens": 128}
PEOPLE: dict[str, tuple[int, dict[str, Any]]] = {
    "senate": (101, {}),
    "arguments": (0, LONG),
    "taught": (1000, {}),
    "taught10000": (10_000, {}),
    "jester": (1000, {}),
    "jester-known": (1000, LONG),
    "jester-known5000": (5000, LONG),
}
"""Name -> how many, and what their texts need of a recipe that was made for others."""
SHARES = ("lore", "lore, 4 rounds", "A", "B", "AB", "ffa", UNTUNED, HEADS)
Shape = dict[str, Any]


class Runs:
    """Runs that are done, by what they were; a missing one is computed, or shown as missing."""

    def __init__(self, path: Path, data: Path | None, only_show: bool) -> None:
        self._path, self._folder, self.only_show = path, data, only_show
        self._cache = ModelCache()
        self._people: dict[tuple[str, int], Federation] = {}
        self._done: dict[str, float] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def of(self, name: str, changes: Shape) -> float | None:
        """The accuracy of one run over the people of a name; `changes` as of `settings`."""
        key = json.dumps({"people": name} | changes, sort_keys=True)
        if key not in self._done and not self.only_show:
            began = time.process_time()
            own = {setting: value for setting, value in changes.items() if setting != "recipe"}
            tuned = {} if "recipe" in changes else recipe("senate", changes["adapter.share"])
            config = RunConfig().changed(tuned | own)
            people = self._federation(name, config).people
            fleet = fleet_of(config.changed({"federation.cohort": len(people)}), people, self._cache)
            self._done[key] = fleet.accuracy(fleet.learn())
            seconds = time.process_time() - began
            print(f"{self._done[key]:.4f}  {seconds:.0f} s  {len(people)}  {key}", flush=True)
            self._path.write_text(json.dumps(self._done, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        return self._done.get(key)

    def _federation(self, name: str, config: RunConfig) -> Federation:
        if (name, config.seed) not in self._people:
            self._people[name, config.seed] = self._read(name, config)
        return self._people[name, config.seed]

    def _read(self, name: str, config: RunConfig) -> Federation:
        count, seed = PEOPLE[name][0], config.seed
        if name.startswith("taught"):
            return taught(count, SIZES, seed)
        if name == "senate":
            return datasets.configured(config.data, seed)
        if self._folder is None:
            raise SystemExit("arguments and jester need --data FOLDER, which holds them")
        if name == "arguments":
            return arguments(self._folder / "arguments", LEAST, SIZES, seed)
        return jester(self._folder / "jester", count, SIZES, seed, known="known" in name)


def settings(share: str, epsilon: float, seed: int, **more: Any) -> Shape:
    """The changes to the recipe of one run; "recipe" says that there is none."""
    everybody = {
        "data.dataset": "senate",
        "federation.warmup_rounds": 0,
        "federation.server_optimizer": "fedavg",
        "training.final_fit_epochs": FIT,
        "privacy.group_size": 1000,
    }
    noised = {"privacy.dp_epsilon": epsilon, "privacy.dp_delta": DELTA} if epsilon else {}
    base: Shape = {"adapter.share": share.partition(",")[0]}
    if share == UNTUNED:
        base = {"adapter.share": "A", "recipe": ""}
    if share == HEADS:
        base = {"adapter.share": "common", "adapter.rank": 4, "adapter.alpha": 4.0, "recipe": ""}
    return base | {"seed": seed} | everybody | noised | more


def searched(runs: Runs, share: str, epsilon: float, shapes: Sequence[Shape]) -> Shape | None:
    """The best of `shapes` on Senate's validation pairs; None where a run is missing."""
    found = []
    for shape in shapes:
        asked = settings(share, epsilon, SEARCH_SEED, **{"data.evaluate": "validation"}, **shape)
        found.append(runs.of("senate", asked))
    known = [(value, at) for at, value in enumerate(found) if value is not None]
    return shapes[max(known)[1]] if len(known) == len(shapes) else None


def shapes_of(runs: Runs, share: str) -> tuple[Shape, Shape] | None:
    """The best settings at epsilon 8 and without noise; None where a run is missing."""
    if share not in SEARCHED:
        return FIXED, FIXED
    shape = searched(runs, share, 8.0, SHAPES)
    free = shape and searched(runs, share, 0.0, [shape, *MORE])
    return (shape, free) if shape and free else None


def compute(
    runs: Runs, name: str, share: str, epsilons: Sequence[float], seeds: Sequence[int], best: bool = True
) -> dict[str, dict[int, float]]:
    """By column: seed -> accuracy; without what is missing, and shown only."""
    shapes = shapes_of(runs, share)
    if shapes is None:
        return {}
    shape, free = shapes
    found = {f"{epsilon:g}": _over(runs, name, share, epsilon, shape, seeds) for epsilon in epsilons}
    if 0.0 in epsilons:
        found["alone"] = _over(runs, name, share, 0.0, ALONE, seeds)
    if best:
        found["best"] = _over(runs, name, share, 0.0, free, seeds)
    return found


def row(runs: Runs, name: str, share: str) -> str:
    """What one share comes to over the people of a name, in Markdown; "" where nothing was run."""
    found, shapes = compute(runs, name, share, EPSILONS, SEEDS), shapes_of(runs, share)
    if shapes is None or not found["8"]:
        return ""
    free = max((found[column] for column in ("0", "best")), key=_mean)
    found["lost"] = {seed: free[seed] - noised for seed, noised in found["8"].items() if seed in free}
    if shapes[0] == shapes[1]:
        found["best"] = {}
    tuned = ", ".join(f"{value:g}" for value in shapes[0].values())
    cells = [shown(found[column]) for column in ("alone", "1", "2", "4", "8", "0", "best", "lost")]
    return f"| {name}, {share} | {tuned} | {' | '.join(cells)} |"


def table(runs: Runs) -> list[str]:
    """All rows that anything was run for, in Markdown; `runs` show only."""
    found = "nothing shared | ε = 1 | ε = 2 | ε = 4 | ε = 8 | same, no noise | best, no noise | lost at ε = 8"
    lines = [f"| people, share | rounds, clip, server's rate | {found} |", "|" + "---|" * 10]
    rows = (row(runs, name, share) for name in PEOPLE for share in SHARES)
    return lines + [line for line in rows if line]


def drawn(runs: Runs, path: Path) -> None:
    """Accuracy against epsilon, with standard errors, of the rows that were run at three or more; `runs` show
    only. The last place of the axis is the same run without noise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places = [*sorted(e for e in EPSILONS if e), 0.0]
    figure, axes = plt.subplots(figsize=(7.4, 4.4))
    for name in PEOPLE:
        for share in SHARES:
            found = compute(runs, name, share, places, SEEDS, best=False)
            known = [at for at, e in enumerate(places) if found.get(f"{e:g}")]
            if sum(places[at] > 0 for at in known) < 3:
                continue
            values = [list(found[f"{places[at]:g}"].values()) for at in known]
            errors = [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values]
            means = [statistics.fmean(v) for v in values]
            axes.errorbar(known, means, errors, marker="o", ms=4, capsize=3, lw=1.3, label=f"{name}, {share}")
    axes.set_xticks(range(len(places)), [f"{e:g}" if e else "no noise" for e in places])
    axes.set_xlabel("ε, at δ = 1e-5")
    axes.set_ylabel("accuracy on test pairs")
    axes.grid(True, color="#dddddd", lw=0.6)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _over(
    runs: Runs, name: str, share: str, epsilon: float, shape: Shape, seeds: Sequence[int]
) -> dict[int, float]:
    needed = PEOPLE[name][1] if share not in (UNTUNED, HEADS) else {}
    found = {seed: runs.of(name, settings(share, epsilon, seed, **needed, **shape)) for seed in seeds}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean(values: Mapping[int, float]) -> float:
    return statistics.fmean(values.values()) if values else 0.0


def shown(values: Mapping[int, float]) -> str:
    """Mean and standard error over seeds, with their number where it isn't all; a dash for nothing."""
    if not values:
        return "–"
    found = list(values.values())
    spread = f" ± {statistics.stdev(found) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    number = "" if len(found) == len(SEEDS) else f" ({len(found)})"
    return f"{statistics.fmean(found):.3f}{spread}{number}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", default=",".join(PEOPLE), help="names, with commas between them")
    parser.add_argument("--shares", default=";".join(SHARES), help="shares, with semicolons between them")
    parser.add_argument("--epsilons", default="8,0,2,4,1", help="with commas between them; 0 for no noise")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--best", action=argparse.BooleanOptionalAction, default=True, help="run that column")
    parser.add_argument("--data", type=Path, help="the folder that holds arguments/ and jester/")
    parser.add_argument("--json", type=Path, required=True, help="a file to add the runs to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--figure", type=Path, help="an image file")
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.only_show:
        runs = Runs(given.json, given.data, only_show=False)
        seeds, epsilons = (
            [int(s) for s in given.seeds.split(",")],
            [float(e) for e in given.epsilons.split(",")],
        )
        for name in given.people.split(","):
            for share in given.shares.split(";"):
                compute(runs, name, share, epsilons, seeds, given.best)
    lines = table(Runs(given.json, None, only_show=True))
    print("\n".join(lines))
    if given.page:
        write(given.page, "private utility", lines)
    if given.figure:
        drawn(Runs(given.json, None, only_show=True), given.figure)


if __name__ == "__main__":
    main()
