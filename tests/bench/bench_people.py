"""Several people trained in lockstep beside one by one, on a CPU.

`python tests/bench/bench_people.py [--people N …] [--only CASE …] [--json FILE]`

Random weights of real shapes: heads over frozen embeddings, MiniLM's default adapter, and factors in the
blocks of SmolLM2-135M's shape (four of its thirty: all are alike). CPU seconds of both on the same people,
the best of `--repeats`, how many operations each calls, and how far the outcomes are apart. OMP_NUM_THREADS
and nice are the caller's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.random_models import SHAPES, learners_of, model_of, pairs_of

from penchant.client.learning.lockstep import Learner, LockstepTrainer
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import TrainingConfig
from penchant.common.model.reward import RewardModel


@dataclass(frozen=True)
class Case:
    """A shape, changes of its sizes, and what one person has."""

    shape: str
    sizes: dict[str, Any]
    prompts: int
    pairs_a_prompt: int
    prompt: int
    response: int
    steps: int


CASES = {
    "heads": Case("heads", {"num_hidden_layers": 2}, 20, 1, 0, 46, steps=36),
    "last output": Case("MiniLM", {"num_hidden_layers": 2}, 20, 1, 0, 46, steps=6),
    "blocks, short": Case("SmolLM2-135M", {"num_hidden_layers": 4, "vocab_size": 1002}, 2, 1, 8, 8, steps=3),
    "blocks": Case("SmolLM2-135M", {"num_hidden_layers": 4, "vocab_size": 1002}, 1, 2, 100, 30, steps=1),
}
ROOM = 1 << 30


class Operations(TorchDispatchMode):
    """Counts the operations that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def measured(name: str, model: RewardModel, people: int, repeats: int) -> dict[str, Any]:
    """Both ways to train so many people."""
    case = CASES[name]
    learners = learners_of(
        model,
        [pairs_of(n, case.prompts, case.pairs_a_prompt, case.prompt, case.response) for n in range(people)],
    )
    training = TrainingConfig(local_epochs=case.steps)
    alone = LocalTrainer(model, model.split(), training)
    together = LockstepTrainer(model, model.split(), training, step_bytes=ROOM)
    first, seconds, calls = timed(lambda: one_by_one(alone, learners), repeats)
    second, lockstep, fewer = timed(lambda: together.train(learners), repeats)
    return {
        "case": name,
        "people": people,
        "one_by_one_ms": 1e3 * seconds / people,
        "lockstep_ms": 1e3 * lockstep / people,
        "ratio": seconds / lockstep,
        "operations_one_by_one": calls,
        "operations_lockstep": fewer,
        "apart": apart(first, second),
    }


def one_by_one(trainer: LocalTrainer, people: list[Learner]) -> list[Outcome]:
    return [trainer.train(one.shared, one.personal, one.prepared, one.seed) for one in people]


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float, int]:
    """(what comes of it, CPU seconds of the best call, operations of a call)."""
    with Operations() as operations:
        made = work()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return made, min(times), operations.count


def apart(first: list[Any], second: list[Any]) -> float:
    """How far the changes of shared factors are apart, at most, as a part of their length."""
    return max(
        float(np.linalg.norm(a.shared_update - b.shared_update) / np.linalg.norm(a.shared_update))
        for a, b in zip(first, second, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for name in given.only or CASES:
        case = CASES[name]
        model = model_of(SHAPES[case.shape], torch.device("cpu"), torch.float32, **case.sizes)
        for people in given.people:
            rows.append(measured(name, model, people, given.repeats))
            row = rows[-1]
            print(
                f"{name:14s} {people:4d} people  one by one {row['one_by_one_ms']:8.2f} ms, "
                f"{row['operations_one_by_one']:7,} operations  lockstep {row['lockstep_ms']:8.2f} ms, "
                f"{row['operations_lockstep']:7,}  {row['ratio']:.2f} x  apart {row['apart']:.1e}",
                flush=True,
            )
    if given.json:
        cases = {name: dataclasses.asdict(case) for name, case in CASES.items()}
        given.json.write_text(json.dumps({"cases": cases, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
