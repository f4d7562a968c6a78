"""Does a policy rank real texts as its person does?

`python tests/experiments/policies_on_arguments.py --data FOLDER`: people who judged which of two arguments
convinces more (`arguments` in FOLDER) train policies of SmolLM2-135M by DPO under several share rules;
accuracy is that of the implicit reward on debates that nobody was trained on. Beside them are reward models
of the same people's same choices. Nothing is tuned on these data: policies have the sizes and settings of
tests/experiments/policies.py, reward models the settings of data without a recipe. A seed draws others of
the people who have choices enough.

A run that was done is kept in --json, and the same command goes on where it stopped. --page FILE writes the
table between its marks; --only-show runs nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support, which policies needs

import torch

import marked_page  # isort: skip
from anyones_data import measured, shown  # isort: skip
from policies import SHARES, Sizes, policy_settings  # isort: skip

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.deploy import datasets

KEPT = Path(__file__).parent / "results" / "policies-on-arguments.json"
TABLE = "policies on arguments"
TEST = 40  # choices of each person on debates that nobody was trained on
REWARDS = {"reward model, one for all (AB)": "AB", "reward model, the default (common)": "common"}
ROWS = (*SHARES, *REWARDS)
Run = dict[str, Any]


def people_of(seed: int, folder: Path, sizes: Sizes) -> Federation:
    """Some of the people who have as many choices in each part as are asked for. SystemExit where they are
    too few."""
    everybody = datasets.configured(_data(seed, folder, sizes).data, seed)
    enough = [
        one
        for one in everybody.people
        if (len(one.train), len(one.validation), len(one.test)) == (sizes.train, sizes.held_out, TEST)
    ]
    if len(enough) < sizes.people:
        raise SystemExit(f"{len(enough)} people have choices enough; {sizes.people} are asked for")
    return Federation(everybody.name, tuple(random.Random(seed).sample(enough, sizes.people)))


def _data(seed: int, folder: Path, sizes: Sizes) -> RunConfig:
    return RunConfig().changed(
        {
            "data.dataset": f"arguments:{folder / 'arguments'}",
            "data.pairs": sizes.train,
            "data.validation_pairs": sizes.held_out,
            "data.test_pairs": TEST,
            "privacy.secagg": False,
            "federation.cohort": sizes.people,
            "seed": seed,
        }
    )


def config_of(row: str, seed: int, folder: Path, sizes: Sizes) -> RunConfig:
    """What `penchant simulate` runs with for a row."""
    config = _data(seed, folder, sizes)
    if row in REWARDS:
        return config.changed({"adapter.share": REWARDS[row], "model.base_model": sizes.judge})
    rounds = {"federation.rounds": sizes.rounds, "federation.warmup_rounds": 0}
    return config.changed({"adapter.share": SHARES[row], **rounds, **policy_settings(sizes)})


def table(done: Mapping[str, Run], seeds: Sequence[int]) -> list[str]:
    """In Markdown: means over seeds ± standard error, and in brackets how many seeds."""
    lines = ["| row | accuracy | CPU s a run |", "|---|---|---|"]
    for row in ROWS:
        found = [run for seed in seeds if (run := done.get(key_of(row, seed)))]
        seconds = f"{sum(run['cpu_seconds'] for run in found) / len(found):.0f}" if found else "–"
        lines.append(f"| {row} | {shown([run['macro'] for run in found])} | {seconds} |")
    return lines


def key_of(row: str, seed: int) -> str:
    return f"{seed} {row}"


def run(kept: Path, folder: Path, sizes: Sizes, rows: Sequence[str], seeds: Sequence[int]) -> dict[str, Run]:
    """Do what `kept` does not hold yet, and keep it run by run; -> all that it holds."""
    done = kept_runs(kept)
    cache = ModelCache()
    for seed in seeds:
        for row in rows:
            key = key_of(row, seed)
            if key not in done:
                began = time.process_time()
                config = config_of(row, seed, folder, sizes)
                found = measured(config, cache, people_of(seed, folder, sizes))
                done[key] = {**found, "cpu_seconds": round(time.process_time() - began)}
                kept.write_text(json.dumps(done, indent=0, sort_keys=True) + "\n", encoding="utf-8")
                print(f"{key}: {done[key]}", flush=True)
    return done


def kept_runs(kept: Path) -> dict[str, Run]:
    """The runs of a file; none where there is no file."""
    found: dict[str, Run] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds arguments")
    parser.add_argument("--json", type=Path, default=KEPT, help="a file to add the runs to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=";".join(ROWS), help="names of rows, set apart by semicolons")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    given = parser.parse_args()
    if given.data is None and not given.only_show:
        parser.error("--data FOLDER is needed to run anything")
    torch.set_num_threads(1)
    rows, seeds = given.rows.split(";"), [int(seed) for seed in given.seeds.split(",")]
    if unknown := set(rows) - set(ROWS):
        raise SystemExit(f"there is no row {sorted(unknown)}; choose of {ROWS}")
    if given.only_show:
        done = kept_runs(given.json)
    else:
        done = run(given.json, given.data, Sizes(dtype=given.dtype), rows, seeds)
    lines = table(done, seeds)
    print("\n".join(lines))
    if given.page:
        marked_page.write(given.page, TABLE, lines)


if __name__ == "__main__":
    main()
