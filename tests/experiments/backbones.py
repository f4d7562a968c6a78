"""Stronger base models, measured: `python tests/experiments/backbones.py --json FILE [--data FOLDER]`.

--models: all-MiniLM-L6-v2 (22 million parameters), all-mpnet-base-v2 (109 million) and smollm2-135m, which
come as packages. --sets: `senate`, and `arguments` (250 judges, in --data FOLDER, which has a folder of that
name). --shares: `lore` and `common` learn on the frozen embedding; `A` has factors in the last block.

Settings are those that were chosen for all-MiniLM-L6-v2 and nothing is chosen again, but for the names of the
modules in a language model. Runs are those of anyones_data.py, each in a process of its own: accuracy on test
pairs, the process's CPU seconds (reading of all texts included) and its peak memory.

--json keeps the runs, and the same command goes on where it stopped; --page FILE writes the table between its
marks; --only-show runs nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig

from anyones_data import measured, settings, shown  # isort: skip
from marked_page import write  # isort: skip

MODELS: dict[str, dict[str, Any]] = {
    "all-MiniLM-L6-v2": {},
    "all-mpnet-base-v2": {},
    "smollm2-135m": {"adapter.target_modules": ["down_proj"], "adapter.layers": [-1]},
}
"""Name of a base model -> what it needs beside its name."""
SETS: dict[str, dict[str, Any]] = {"senate": {}, "arguments": {"data.clients": 250}}
SHARES = ("lore", "common", "A")
Run = dict[str, Any]


def configured(model: str, name: str, share: str, seed: int, data: Path | None) -> RunConfig:
    """The configuration of one run."""
    own = {"model.base_model": model} | MODELS[model] | SETS[name]
    return settings(name, data, share, seed, "test").changed(own)


def one(config: RunConfig) -> Run:
    """Its accuracy, CPU seconds, and the peak memory of this process in MB."""
    torch.set_num_threads(1)
    began = time.process_time()
    found = measured(config, ModelCache())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"macro": found["macro"], "cpu_seconds": time.process_time() - began, "peak_mb": peak}


def in_a_process(*asked: object) -> Run:
    """What `one` finds in a process of its own."""
    command = [sys.executable, __file__, "--json", "-", "--one", *map(str, asked)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: dict[str, Run], seeds: Sequence[int]) -> list[str]:
    """Every set and share, model by model, in Markdown; rows of which nothing was run are left out."""
    lines = [
        "| set, share | base model | accuracy | CPU seconds | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for name in SETS:
        for share in SHARES:
            for model in MODELS:
                found = [run for seed in seeds if (run := runs.get(f"{name} {share} {model} {seed}"))]
                if found:
                    seconds = sum(run["cpu_seconds"] for run in found) / len(found)
                    peak = max(run["peak_mb"] for run in found)
                    right = shown([run["macro"] for run in found])
                    lines.append(f"| {name}, {share} | {model} | {right} | {seconds:.0f} | {peak:,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--shares", default=",".join(SHARES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, help="the folder that holds arguments")
    parser.add_argument("--json", type=Path, required=True, help="a file to add the runs to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        model, name, share, seed, data = given.one
        print(json.dumps(one(configured(model, name, share, int(seed), Path(data)))))
        return
    runs: dict[str, Run] = json.loads(given.json.read_text("utf-8")) if given.json.exists() else {}
    seeds = [int(seed) for seed in given.seeds.split(",")]
    asked = [
        (model, name, share, seed)
        for seed in seeds
        for name in given.sets.split(",")
        for share in given.shares.split(",")
        for model in given.models.split(",")
    ]
    for model, name, share, seed in asked if not given.only_show else []:
        key = f"{name} {share} {model} {seed}"
        if key not in runs:
            runs[key] = in_a_process(model, name, share, seed, given.data or ".")
            given.json.write_text(json.dumps(runs, indent=0, sort_keys=True) + "\n", encoding="utf-8")
            print(key, runs[key], flush=True)
    lines = table(runs, seeds)
    print("\n".join(lines))
    if given.page:
        write(given.page, "backbones", lines)


if __name__ == "__main__":
    main()
