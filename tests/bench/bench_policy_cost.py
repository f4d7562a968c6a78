"""What a round of DPO costs a device: `python tests/bench/bench_policy_cost.py [--json FILE] [--page FILE]`

SmolLM2-135M, LoRA on queries and values, ranks 4 and 32, in the last two blocks and in all. Each case is a
process of its own, bound to --cores cores with as many threads: it loads the model, reads one person's
choices (the frozen part of every text, and what the reference says), and trains one epoch on them, as a round
does. Then three such people make one masked round of `simulate`, of which come the bytes. CPU seconds bear a
busy machine; seconds of the clock don't, so nothing else should run beside. --page writes the table between
its marks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bench.table import machine

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.deploy import run_directory
from penchant.deploy.owner_policy import fleet_policy
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import SimulationSetup

RESULTS = Path(__file__).resolve().parent / "results"
MARKS = re.compile(r"(<!-- policy cost -->\n).*?(<!-- end policy cost -->)", re.S)
PEOPLE = 3  # of the round whose bytes are counted: the fewest that masks are made for
WHERE = {"last two": [-2, -1], "all": []}
WORDS = (
    "a walk by the river with an old friend and some bread cheese music late light quiet garden table "
    "story long evening rain tea window book small gift letter for them perhaps again tomorrow kind warm"
)


def choices(count: int, tokens: int, seed: int) -> tuple[Preference, ...]:
    """Of one person: a prompt of about ten words, two responses of about `tokens` tokens, all distinct."""
    draw = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS.split(), k=words)) + "."

    return tuple(Preference(text(10), text(tokens), text(tokens)) for _ in range(count))


def config_of(given: argparse.Namespace, rank: int, blocks: str) -> RunConfig:
    return RunConfig().changed(
        {
            "data.dataset": "made-up",
            "model.base_model": given.base_model,
            "model.objective": "dpo",
            "model.dtype": given.dtype,
            "model.max_tokens": 256,
            "adapter.share": "A",
            "adapter.target_modules": ["q_proj", "v_proj"],
            "adapter.layers": WHERE[blocks],
            "adapter.rank": rank,
            "adapter.alpha": 2.0 * rank,
            "training.local_epochs": 1,
            "training.final_fit_epochs": 0,
            "federation.rounds": 1,
            "federation.warmup_rounds": 0,
            "federation.cohort": PEOPLE,
            "privacy.min_honest": 1,
            "privacy.max_colluders": 0,
        }
    )


def measured(given: argparse.Namespace, cores: int, rank: int, blocks: str) -> dict[str, Any]:
    """One case, in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    torch.set_num_threads(cores)
    config, cache = config_of(given, rank, blocks), ModelCache()
    planned = cache.of(config.plan("main", PEOPLE))
    own = choices(given.choices, given.response, 0)
    loaded = _peak_mb()
    shared, personal = planned.split.initial(0)
    read, prepared = _timed(lambda: planned.model.prepare(own))
    trained, _ = _timed(lambda: planned.trainer(personal).train(shared, personal, prepared, 0))
    peak = _peak_mb()
    return {
        "cores": cores,
        "rank": rank,
        "blocks": blocks,
        "tail": planned.model.tail.name,
        "shared": len(shared),
        "personal": len(personal),
        "read": read,
        "trained": trained,
        "loaded_mb": loaded,
        "peak_mb": peak,
        **_bytes(config, cache),
    }


def _timed(work: Any) -> tuple[dict[str, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}, made


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _bytes(config: RunConfig, cache: ModelCache) -> dict[str, float]:
    """What a device sends and receives in one masked round; by how many choices it trains changes nothing."""
    people = []
    for number in range(PEOPLE):
        train, held, test = (choices(1, 4, 10 * number + part) for part in (1, 2, 3))
        people.append(Person(f"person {number}", train, held, test))
    world = SimulationSetup(
        config, Federation("made-up", tuple(people)), cache, PEOPLE, fleet_policy(config, PEOPLE)
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        run_directory.create(directory, config)
        (log,) = simulate(world, directory, command="a benchmark").rounds_log
    return {"bytes_up": log.upload or math.nan, "bytes_down": log.download or math.nan}


# --- the table --------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """In Markdown; seconds by the clock only where nothing else ran beside."""
    lines = [
        "| cores | rank | blocks | reading, CPU s | an epoch, CPU s | by the clock | peak memory "
        "| sent a round | received |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    given, of = found["given"], found["machine"]
    for row in found["rows"]:
        read, trained = row["read"], row["trained"]
        clock = f"{read['wall_s'] + trained['wall_s']:.1f} s" if row["load"] <= row["cores"] + 0.5 else "–"
        lines.append(
            f"| {row['cores']} | {row['rank']} | {row['blocks']} | {read['cpu_s']:.1f} | "
            f"{trained['cpu_s']:.1f} | {clock} | {row['peak_mb']:,.0f} MB | "
            f"{row['bytes_up'] / 1e3:,.0f} kB | {row['bytes_down'] / 1e3:,.0f} kB |"
        )
    lines += [
        "",
        f"{given['choices']} choices, responses of about {given['response']} words, {given['dtype']}; "
        f"{of['processor']}, load {of['load']:g} at the end; torch {of['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base-model", default="smollm2-135m")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--blocks", nargs="+", choices=WHERE, default=list(WHERE))
    parser.add_argument("--choices", type=int, default=16)
    parser.add_argument("--response", type=int, default=32, help="words")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path, default=RESULTS / "policy_cost.json")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    if max(given.cores) > len(os.sched_getaffinity(0)):
        raise SystemExit(f"this process may use {len(os.sched_getaffinity(0))} cores; give --cores of those")
    asked = {key: value for key, value in vars(given).items() if key not in ("json", "page")}
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"given": asked, "rows": rows}
    for cores, blocks, rank in itertools.product(given.cores, given.blocks, given.ranks):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measured, (given, cores, rank, blocks)))
        rows[-1]["load"] = os.getloadavg()[0]  # over the last minute, this case included
        print(json.dumps(rows[-1]), flush=True)
        found["machine"] = machine()
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = table(found)
    print(text)
    if given.page:
        before = given.page.read_text(encoding="utf-8")
        given.page.write_text(MARKS.sub(lambda mark: mark[1] + text + mark[2], before), encoding="utf-8")


if __name__ == "__main__":
    main()
