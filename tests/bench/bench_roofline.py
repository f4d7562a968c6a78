"""Work beside the floor of its floating-point operations: `python tests/bench/bench_roofline.py`.

What a device does with the default base model in one thread: ranking 16 new answers to a prompt, with all
blocks (share A) and with three (`common`, of heads alone), and training six steps on 20 pairs whose frozen
states are kept. Operations are counted by torch (two for a product and its sum; products
alone); the machine's rate is that of a product in the shape of the feed-forward layer, measured in between.
The floor is operations by rate; the ratio is how many times as long the whole takes, tokens, normalisation
and Python in it. Processor seconds of this thread: median and 99th percentile.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.bench_training import some_pairs

from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import AdapterConfig, ModelConfig, TrainingConfig
from penchant.common.model.reward import RewardModel, load_reward_model

ANSWERS = 16
TOKENS, WIDTH, INNER = 1024, 384, 1536
Work = Callable[[int], object]
"""What is measured; the number makes its texts new."""


def rate() -> float:
    """Floating-point operations a second of one product [TOKENS, WIDTH] x [WIDTH, INNER], the best of ten."""
    left, right = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH, INNER)
    best = float("inf")
    for _ in range(10):
        began = time.thread_time()
        left @ right
        best = min(best, time.thread_time() - began)
    return 2 * TOKENS * WIDTH * INNER / best


def measured(what: str, work: Work, repeats: int) -> dict[str, Any]:
    """One row."""
    work(-1)
    with FlopCounterMode(display=False) as counter:
        work(-2)
    operations = counter.get_total_flops()
    times, rates = [], []
    for number in range(repeats):
        rates.append(rate())
        began = time.thread_time()
        work(number)
        times.append(time.thread_time() - began)
    p50, p99 = np.percentile(times, [50, 99])
    floor = operations / float(np.median(rates))
    return {
        "what": what,
        "p50_ms": 1e3 * float(p50),
        "p99_ms": 1e3 * float(p99),
        "gigaflop": operations / 1e9,
        "gigaflop_a_second": float(np.median(rates)) / 1e9,
        "floor_ms": 1e3 * floor,
        "ratio": float(p50) / floor,
        "ratio_p99": float(p99) / floor,
    }


def ranking(model: RewardModel) -> Work:
    """Scores of 16 answers that the model has not read before, by a person's own part."""
    trainer = LocalTrainer(model, split := model.split(), TrainingConfig())
    shared, personal = split.initial(0)
    written = [pair.chosen for pair in some_pairs(ANSWERS, 2 * ANSWERS, seed=3)]

    def work(number: int) -> object:
        texts = [(f"Question {number}: ", f"{place} {text}") for place, text in enumerate(written)]
        return trainer.score(shared, personal, model.prepare_texts(texts))

    return work


def training(model: RewardModel) -> Work:
    """Six steps on 20 pairs."""
    trainer = LocalTrainer(model, split := model.split(), TrainingConfig(local_epochs=6))
    shared, personal = split.initial(0)
    mine = model.prepare(some_pairs(20, 60, seed=1))
    return lambda number: trainer.train(shared, personal, mine, 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    whole = load_reward_model(ModelConfig(dtype="float32"), AdapterConfig(share="A"), device="cpu")
    heads = load_reward_model(
        ModelConfig(dtype="float32", blocks=3), AdapterConfig(share="common"), device="cpu"
    )
    works = {
        f"ranking {ANSWERS} answers, share A, 6 blocks": ranking(whole),
        f"ranking {ANSWERS} answers, share common, 3 blocks": ranking(heads),
        "training 6 steps on 20 pairs, share A": training(whole),
    }
    rows = [measured(what, work, asked.repeats) for what, work in works.items()]
    print(f"{'':52} {'p50 ms':>8} {'p99 ms':>8} {'GFLOP':>8} {'GFLOP/s':>8} {'floor ms':>9} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['what']:52} {row['p50_ms']:8.1f} {row['p99_ms']:8.1f} {row['gigaflop']:8.3f} "
            f"{row['gigaflop_a_second']:8.1f} {row['floor_ms']:9.1f} {row['ratio']:6.2f}"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
