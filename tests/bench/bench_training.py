"""How long the device's work takes on one core: `python tests/bench/bench_training.py [--full]`.

20 training and 60 test pairs over texts of about 46 tokens, MiniLM, rank 2 on the last feed-forward output.
Prints CPU milliseconds of the calling thread, the best of several calls. `--full` adds the plain loop
that runs the whole network at every step.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch

from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import AdapterConfig, ModelConfig, TrainingConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.reward import RewardModel

VOCABULARY = (
    "motion to table the amendment offered by a senator on appropriations for defense homeland security "
    "energy cloture nomination judge circuit court funds veterans health care budget resolution report trade"
)


def some_pairs(count: int, texts: int, seed: int) -> list[SimpleNamespace]:
    """Pairs over distinct texts of 28 to 60 words."""
    draw = random.Random(seed)
    words = VOCABULARY.split()
    written = [" ".join(draw.choices(words, k=draw.randint(28, 60))) for _ in range(texts)]
    drawn = (draw.sample(written, 2) for _ in range(count))
    return [SimpleNamespace(prompt="", chosen=chosen, rejected=rejected) for chosen, rejected in drawn]


def report(name: str, call: Callable[[], object], repeats: int) -> None:
    call()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    print(f"{name:44s} {min(times) * 1e3:8.1f} ms")


def measure(full: bool, repeats: int) -> None:
    model_config, adapter = ModelConfig(dtype="float32"), AdapterConfig(share="A", rank=2)
    model = RewardModel(load_backbone(model_config, device="cpu"), model_config, adapter, full=full)
    train, test = some_pairs(20, 60, seed=1), some_pairs(60, 120, seed=2)
    start = time.process_time()
    model.warm([*train, *test])
    per_text = (time.process_time() - start) / model.cache.forwards
    print(f"--- {model.tail.name} path: {per_text * 1e3:.1f} ms a new text")
    trainer = LocalTrainer(model, split := model.split(), TrainingConfig(local_epochs=6, final_fit_epochs=30))
    shared, personal = split.initial(0)
    mine, others = model.prepare(train), model.prepare(test)
    report("prepare 20 pairs", lambda: model.prepare(train), repeats)
    report("train, 6 steps on 20 pairs", lambda: trainer.train(shared, personal, mine, 0), repeats)
    report("refit, 30 steps on 20 pairs", lambda: trainer.fit_personal(shared, personal, mine, 0), repeats)
    report("evaluate 60 pairs", lambda: trainer.evaluate(shared, personal, others), repeats)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure(full=False, repeats=15)
    if "--full" in sys.argv:
        measure(full=True, repeats=1)
