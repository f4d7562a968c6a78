"""Every share on data that nothing was tuned on: `python tests/experiments/anyones_data.py --json FILE`.

--sets: `senate`, `senate-masked`, `movielens`, `arguments` and `jester`; the last two need --data FOLDER, in
which each has a folder of its name; and `alike-10`, `alike-50` and `alike-90`, made-up people of whose
margins' variance 10, 50 and 90 % come of a taste that all have. Senate, senate-masked and movielens have
recipes of their own; the others run with what anybody has who brings a file. --shares: the rows. Runs are
those of `penchant simulate` without masks, which change no sum. The row of the default has, for each set, the
share that somebody gets who asks for none; the row of the oracle, what made-up people's own tastes rank
right; that of the longer text, what somebody ranks right who learns nothing and takes the longer of two.

--part validation scores on the validation part, on which settings may be chosen; test, the default, is for
one run at the end. --json keeps the runs, and the same command goes on where it stopped; --page FILE writes
the table between its marks, with a dash where runs are missing; --only-show runs nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.data.splits import Sizes
from penchant.common.errors import ConfigError
from penchant.common.shares import share_rule
from penchant.deploy import datasets, run_directory
from penchant.deploy.comparison.methods import method
from penchant.deploy.recipes import recipe, usual_share
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare

from many_people import oracle, taught  # isort: skip

FOLDERS = ("arguments", "jester")  # read from --data
SETS: Mapping[str, Mapping[str, Any]] = {
    "senate": {},
    "senate-masked": {},
    "arguments": {},
    "jester": {"data.clients": 1000},
    "movielens": {"data.clients": 100},
    "alike-10": {},
    "alike-50": {},
    "alike-90": {},
}
MADE_UP = 200  # people of each such set
LONGER = "the longer text"  # a row that learns nothing
SIZES = Sizes(pairs=20, validation_pairs=20, test_pairs=60)
SHARES = ("AB", "none", "A", "B", "kernel", "lore", "mixed", "common")
MANY = 50  # training pairs: of people with more, the mean is said apart
MARKS = re.compile(r"(<!-- anyones data -->\n).*?(<!-- end -->)", re.S)
Run = dict[str, Any]


def settings(name: str, folder: Path | None, share: str, seed: int, part: str) -> RunConfig:
    """What `penchant simulate --dataset … --share … --no-secagg` runs with."""
    if name in FOLDERS and folder is None:
        raise SystemExit(f"{name} needs --data FOLDER, which holds a folder {name}")
    source = f"{name}:{folder / name}" if name in FOLDERS and folder is not None else name
    asked = {"data.dataset": source, "data.evaluate": part, "adapter.share": share, "seed": seed}
    return RunConfig().changed({**asked, **recipe(name, share), **SETS[name], "privacy.secagg": False})


def default_share(name: str) -> str:
    """What `penchant simulate` takes where no share is asked for."""
    return usual_share(name) or RunConfig().adapter.share


def agreement_of(name: str) -> float | None:
    """Of made-up people, the part of a margin's variance that all have alike; None of real ones."""
    kind, _, part = name.partition("-")
    return int(part) / 100 if kind == "alike" else None


def measured(config: RunConfig, cache: ModelCache, people: Federation | None = None) -> Run:
    """The figures of one run: macro and micro mean, the mean over people with many training pairs, and who is
    served worse than by the run's own model for all, where the rule has one. people: others than all of the
    set's."""
    with tempfile.TemporaryDirectory() as home:
        directory = Path(home) / "run"
        world = prepare(config, cache, people or _judged(config))
        run_directory.create(directory, world.config)
        result = simulate(world, directory, command="a benchmark")
    rows = [(row.accuracy or 0.0, row.n_test or 0) for row in result.per_client]
    right = sum(accuracy * pairs for accuracy, pairs in rows)
    found = {"macro": result.accuracy, "micro": right / sum(pairs for _, pairs in rows), "people": len(rows)}
    many = [row.accuracy or 0.0 for row in result.per_client if (row.n_train or 0) > MANY]
    if many:
        found |= {"many": len(many), "of_many": statistics.fmean(many)}
    if result.served is not None:
        found |= {"population": result.served.accuracy, "worse": result.served.worse}
    return found


def longer(people: Sequence[Person], part: str = "test") -> float:
    """Mean over people of the share of their pairs whose chosen text has more words; half where it has as
    many. part: of the pairs."""
    return statistics.fmean(statistics.fmean(map(_longer, getattr(one, part))) for one in people)


def _longer(pair: Preference) -> float:
    ahead = len(pair.chosen.split()) - len(pair.rejected.split())
    return 0.5 + 0.5 * ((ahead > 0) - (ahead < 0))


def _judged(config: RunConfig) -> Federation:
    """The set's people; on validation, those who have held-out choices."""
    agreement = agreement_of(config.data.dataset)
    if agreement is None:
        everybody = datasets.configured(config.data, config.seed)
    else:
        everybody = taught(MADE_UP, SIZES, config.seed, agreement)
    if config.data.evaluate == "test":
        return everybody
    return Federation(everybody.name, tuple(one for one in everybody.people if one.validation))


class Runs:
    """Runs that are done, by what they were."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, Run] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self._cache = ModelCache()

    def of(self, name: str, share: str, seed: int, part: str) -> Run | None:
        """One run's figures; None if it was not done."""
        return self._done.get(f"{name} {share} {seed} {part}")

    def do(self, name: str, share: str, seed: int, part: str, folder: Path | None) -> None:
        """One run, unless it is done, and a line about it."""
        if self.of(name, share, seed, part) is None:
            began = time.process_time()
            try:
                found = measured(settings(name, folder, share, seed, part), self._cache)
            except ConfigError as error:
                raise SystemExit(f"{name}, {share}: {error}") from None
            found["cpu_seconds"] = round(time.process_time() - began)
            self._keep(name, share, seed, part, found)
            print(f"{name} {share} {seed}: {found}", flush=True)

    def count_longer(self, name: str, seed: int, part: str, folder: Path | None) -> None:
        """How often the longer text is the chosen one, unless it is known."""
        if self.of(name, LONGER, seed, part) is None:
            people = _judged(settings(name, folder, default_share(name), seed, part)).people
            self._keep(name, LONGER, seed, part, {"macro": longer(people, part), "people": len(people)})

    def _keep(self, name: str, share: str, seed: int, part: str, found: Run) -> None:
        self._done[f"{name} {share} {seed} {part}"] = found
        kept = json.dumps(self._done, indent=0, sort_keys=True) + "\n"
        self._path.write_text(kept, encoding="utf-8")

    def default_row(self, names: Sequence[str], seeds: Sequence[int], part: str) -> str:
        """The default of each set in Markdown, as `row`, and which share that is."""
        cells = []
        for name in names:
            share = default_share(name)
            found = [run for seed in seeds if (run := self.of(name, share, seed, part)) is not None]
            cells.append(f"{share}: {shown([run['macro'] for run in found])}")
        return f"| **the default** | {' | '.join(cells)} |"

    def row(self, share: str, names: Sequence[str], seeds: Sequence[int], part: str) -> str:
        """One share in Markdown: the macro mean on each set, with its standard error over seeds."""
        cells = []
        for name in names:
            found = [run for seed in seeds if (run := self.of(name, share, seed, part)) is not None]
            cells.append(shown([run["macro"] for run in found]))
        label = share if share == LONGER else method(share)
        return f"| {label} | {' | '.join(cells)} |"

    def worse(self, share: str, names: Sequence[str], seeds: Sequence[int], part: str) -> str:
        """People served worse than by the run's own model for all, beyond noise, of all seeds' people."""
        cells = []
        for name in names:
            found = [run for seed in seeds if (run := self.of(name, share, seed, part)) is not None]
            people = sum(run["people"] for run in found)
            cells.append(f"{sum(run['worse'] for run in found)} of {people}" if found else "–")
        return f"| *{method(share)}: people served worse than by its model for all* | {' | '.join(cells)} |"


def oracle_row(names: Sequence[str], seeds: Sequence[int], part: str) -> str:
    """What made-up people's own tastes rank right of their test pairs."""
    cells = []
    for name in names:
        agreement = agreement_of(name)
        told = agreement is not None and part == "test"
        cells.append(
            shown([oracle(MADE_UP, SIZES, seed, agreement or 0.0) for seed in seeds] if told else [])
        )
    return f"| the oracle | {' | '.join(cells)} |"


def shown(values: Sequence[float]) -> str:
    """Mean and standard error over seeds; a dash for nothing."""
    if not values:
        return "–"
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{error} ({len(values)})"


def table(runs: Runs, names: Sequence[str], shares: Sequence[str], seeds: Sequence[int], part: str) -> str:
    """The whole table, in Markdown; in brackets how many seeds."""
    lines = [f"| {part} part | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [runs.row(share, names, seeds, part) for share in shares]
    lines += [runs.default_row(names, seeds, part), runs.row(LONGER, names, seeds, part)]
    lines.append(oracle_row(names, seeds, part))
    lines += [runs.worse(share, names, seeds, part) for share in shares if share_rule(share).spread]
    return "\n".join(lines) + "\n"


def write(page: Path, text: str) -> None:
    """Put the table between the page's marks."""
    before = page.read_text(encoding="utf-8")
    if not MARKS.search(before):
        raise SystemExit(f"{page} has no <!-- anyones data --> … <!-- end -->")
    page.write_text(MARKS.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--shares", default=",".join(SHARES))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--part", default="test", choices=("test", "validation"))
    parser.add_argument("--data", type=Path, help="the folder that holds arguments and jester")
    parser.add_argument("--json", type=Path, required=True, help="a file to add the runs to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names, shares = given.sets.split(","), given.shares.split(",")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    runs = Runs(given.json)
    if not given.only_show:
        for seed in seeds:  # a first seed of everything comes before a second
            for name in names:
                runs.count_longer(name, seed, given.part, given.data)
                for share in shares:
                    runs.do(name, share, seed, given.part, given.data)
    text = table(runs, names, shares, seeds, given.part)
    print(text)
    if given.page:
        write(given.page, text)


if __name__ == "__main__":
    main()
