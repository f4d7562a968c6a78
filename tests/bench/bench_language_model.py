"""A client's training step with factors in every block of a language model, beside a plain peft loop.

`python tests/bench/bench_language_model.py [--pairs-a-prompt N …] [--dtype bfloat16] [--step-mb N …]`

SmolLM2-135M (or `--base-model`), LoRA on the queries and values of all blocks, prompts and responses of some
many tokens. Each measurement is a process of its own: CPU seconds of all its threads for some steps,
tokenising included and loading not, and its peak memory. Both begin with the same factors and head, and must
end with the same loss. `--step-mb` is what a step may hold until its gradients are there, one measurement for
each bound; 0 is none, and where one pair is above it blocks are computed again on the way back. Also how much
faster a product is in bfloat16 here. OMP_NUM_THREADS and nice are the caller's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.peft_loop import PeftLoop

from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import AdapterConfig, ModelConfig, TrainingConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.prompt_form import joined
from penchant.common.model.reward import RewardModel
from penchant.common.model.step_memory import STEP_BYTES

WORDS = (
    "motion table amendment offered senator appropriations defense homeland security energy cloture judge "
    "nomination circuit court funds veterans health care budget resolution report trade the a of to on for"
)
TARGETS = ("q_proj", "v_proj")
RATE = 1e-3
MB = 1 << 20


def some_pairs(model: RewardModel, given: argparse.Namespace, pairs_a_prompt: int) -> list[SimpleNamespace]:
    """Two responses a pair, none of them in two pairs; about as many tokens as asked for."""
    draw = random.Random(1)

    def text(tokens: int) -> str:
        words = " ".join(draw.choices(WORDS.split(), k=tokens))
        return words[: int(len(words) * tokens / model.lengths([("", words)])[0])].rsplit(" ", 1)[0] + "\n"

    def response() -> str:
        return text(given.response + draw.randint(-given.spread, given.spread))

    prompts = [text(given.prompt) for _ in range(given.prompts)]
    return [
        SimpleNamespace(prompt=prompt, chosen=response(), rejected=response())
        for prompt in prompts
        for _ in range(pairs_a_prompt)
    ]


def measured(given: argparse.Namespace, pairs_a_prompt: int, who: str, step_mb: int) -> dict[str, Any]:
    """CPU seconds of `given.steps` steps, memory, and losses before and after."""
    config = ModelConfig(
        base_model=given.base_model, dtype=given.dtype, normalize=0, max_tokens=given.max_tokens
    )
    adapter = AdapterConfig(
        share="AB", rank=given.rank, alpha=2.0 * given.rank, target_modules=TARGETS, layers=()
    )
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter, full=who == "full")
    split = model.split()
    pairs = some_pairs(model, given, pairs_a_prompt)
    shared, personal = split.initial(0)
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if who == "peft":
        losses, seconds = peft_steps(config, split.merged(shared, personal), pairs, model, given)
    else:
        losses, seconds = own_steps(model, shared, personal, pairs, given, step_mb)
    return {
        "who": who,
        "path": "" if who == "peft" else path(model),
        "step_mb": None if who == "peft" else step_mb,
        "pairs": len(pairs),
        "pairs_a_prompt": pairs_a_prompt,
        "tokens": round(float(np.mean(model.lengths([(p.prompt, p.chosen) for p in pairs])))),
        "pairs_per_cpu_second": len(pairs) * given.steps / seconds,
        "cpu_seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loaded_mb": begun / 1024,
        "losses": losses,
    }


def own_steps(
    model: RewardModel,
    shared: Any,
    personal: Any,
    pairs: list[SimpleNamespace],
    given: argparse.Namespace,
    step_mb: int,
) -> tuple[list[float], float]:
    training = TrainingConfig(
        lr_shared=RATE, lr_head=RATE, lr_personal=RATE, local_epochs=given.steps, weight_decay=0.0
    )
    bound = step_mb * MB or sys.maxsize
    trainer = LocalTrainer(model, model.split(), training, step_bytes=bound)
    start = time.process_time()
    prepared = model.prepare(pairs)
    outcome = trainer.train(shared, personal, prepared, 0)
    seconds = time.process_time() - start
    if given.loss_before:
        return [outcome.before.loss_sum / len(pairs)], seconds
    after = trainer.evaluate(shared + outcome.shared_update, outcome.personal, prepared)
    return [outcome.before.loss_sum / len(pairs), after.loss_sum / len(pairs)], seconds


def peft_steps(
    config: ModelConfig,
    begin: Any,
    pairs: list[SimpleNamespace],
    model: RewardModel,
    given: argparse.Namespace,
) -> tuple[list[float], float]:
    backbone = load_backbone(config, device="cpu")
    loop = PeftLoop(
        backbone.model, TARGETS, given.rank, alpha=2.0 * given.rank, rate=RATE, pad_id=backbone.pad_id
    )
    loop.begin_with(begin.adapters, begin.head)

    def tokens(text: str) -> torch.Tensor:
        return torch.tensor(backbone.tokenizer(text).input_ids)

    start = time.process_time()
    chosen = [tokens(joined(p.prompt, p.chosen)) for p in pairs]
    rejected = [tokens(joined(p.prompt, p.rejected)) for p in pairs]
    losses = [loop.step(chosen, rejected) for _ in range(given.steps)]
    seconds = time.process_time() - start
    with torch.no_grad():
        return [losses[0], float(loop.loss(chosen, rejected))], seconds


def path(model: RewardModel) -> str:
    tail: Any = model.tail
    return f"{tail.name}, {tail.packing.name}"


def report(row: dict[str, Any]) -> None:
    losses = ", ".join(f"{loss:.5f}" for loss in row["losses"])
    print(
        f"{row['pairs']} pairs, {row['pairs_a_prompt']} a prompt  {row['who']:9s} {row['path']:14s} "
        f"{bound(row['step_mb'])}{row['cpu_seconds']:7.1f} CPU s "
        f"{row['pairs_per_cpu_second']:8.4f} pairs/CPU s {row['peak_mb']:7.0f} MB  loss {losses}",
        flush=True,
    )


def bound(step_mb: int | None) -> str:
    return "" if step_mb is None else f"{step_mb} MB a step " if step_mb else "all at once "


def bfloat16_speed() -> float:
    """How many times as fast a product of SmolLM2's shapes is in bfloat16 as in float32, on this machine."""
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        states, weight = torch.randn(512, 576).to(dtype), torch.randn(576, 1536).to(dtype)
        times = []
        for _ in range(6):
            start = time.process_time()
            states @ weight
            times.append(time.process_time() - start)
        taken[dtype] = min(times)
    return taken[torch.float32] / taken[torch.bfloat16]


def variants(given: argparse.Namespace) -> list[tuple[str, int]]:
    """Who is measured, with which bound of a step."""
    return [(who, mb) for who in given.who for mb in (given.step_mb if who == "penchant" else [0])]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-model", default="smollm2-135m")
    parser.add_argument("--pairs-a-prompt", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=300, help="tokens")
    parser.add_argument("--response", type=int, default=60, help="tokens")
    parser.add_argument(
        "--spread", type=int, default=0, help="responses are up to so many tokens longer or shorter"
    )
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--step-mb", type=int, nargs="+", default=[STEP_BYTES // MB])
    parser.add_argument(
        "--loss-before", action="store_true", help="alone: what comes after the steps takes as long as they"
    )
    parser.add_argument(
        "--who", nargs="+", default=["peft", "penchant"], choices=["peft", "penchant", "full"]
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for pairs_a_prompt in given.pairs_a_prompt:
        own = []
        for who, step_mb in variants(given):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                own.append(pool.apply(measured, (given, pairs_a_prompt, who, step_mb)))
            report(own[-1])
        for row in own[1:]:
            row["ratio"] = row["pairs_per_cpu_second"] / own[0]["pairs_per_cpu_second"]
            print(f"  {row['who']} / {own[0]['who']}: {row['ratio']:.2f} x")
        rows += own
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "bfloat16_speed": round(bfloat16_speed(), 2),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if given.json:
        found = {
            "machine": machine,
            "given": {k: v for k, v in vars(given).items() if k != "json"},
            "rows": rows,
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
