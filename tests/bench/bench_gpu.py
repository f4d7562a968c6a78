"""What one GPU gives: a client's step beside a plain peft loop, and several people trained in lockstep.

`python tests/bench/bench_gpu.py [--minutes 9] [--shapes NAME …] [--json FILE] [--dry-run]`

SmolLM2-135M's shape in bfloat16 and float32, and Llama-3-8B's in bfloat16, with random weights made on the
GPU; LoRA r=32 on queries and values of all blocks, prompts of 300 tokens, responses of 60, two pairs each.
For each: the peft loop one person after the other (TRL's way, `tests/support/peft_loop.py`, under autocast
where the weights are bfloat16), penchant one by one, and groups of growing size in lockstep. Pairs a second
on the clock, tokenising and loading not included, after one call to warm up; peak memory; the mean loss
before the first step, which must be the same of one by one and lockstep. It stops in time: what does not fit
into `--minutes` is left out and said. Without a GPU it refuses; `--dry-run` goes through all of it with a
tiny shape on the CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.peft_loop import PeftLoop
from support.random_models import SHAPES, Shape, backbone_of, learners_of, model_of, pairs_of

from penchant.client.learning.lockstep import Learner, LockstepTrainer
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import TrainingConfig
from penchant.common.model.prompt_form import joined
from penchant.common.model.reward import RewardModel

RATE = 1e-4
STEPS = 2
SECONDS = 8.0  # that a measurement repeats its call for
PLAIN = TrainingConfig(lr_shared=RATE, lr_personal=RATE, lr_head=RATE, local_epochs=STEPS, weight_decay=0.0)


@dataclass(frozen=True)
class Case:
    """A shape in a number format, and the sizes of groups that are tried."""

    shape: str
    dtype: torch.dtype
    groups: tuple[int, ...]


CASES = (
    Case("SmolLM2-135M", torch.bfloat16, (1, 4, 16, 64)),
    Case("SmolLM2-135M", torch.float32, (1, 4, 16)),
    Case("Llama-3-8B", torch.bfloat16, (1, 4, 16)),
)
DRY = (Case("tiny", torch.bfloat16, (1, 2)), Case("tiny", torch.float32, (1, 3)))


class Clock:
    """The time that is left, and what a call takes of it."""

    def __init__(self, minutes: float, device: torch.device, repeat_for: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._device = device
        self._repeat_for = repeat_for

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def seconds(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """(what the first call gives, seconds of one call on the average of those after it)."""
        made = call()
        self._wait()
        begun, calls = time.perf_counter(), 0
        while calls == 0 or (time.perf_counter() - begun < self._repeat_for and self.left() > 0):
            call()
            self._wait()
            calls += 1
        return made, (time.perf_counter() - begun) / calls

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Bench:
    """All measurements of one run."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device = torch.device("cpu" if given.dry_run else "cuda")
        self.clock = Clock(given.minutes, self.device, 0.0 if given.dry_run else SECONDS)
        self._tokens = (12, 4) if given.dry_run else (300, 60)
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    def case(self, case: Case) -> None:
        """One shape: the peft loop, one by one, groups."""
        name = f"{case.shape} {str(case.dtype).removeprefix('torch.')}"
        shape = SHAPES[case.shape]
        if self.clock.left() < 4 * SECONDS and self.device.type == "cuda":
            self.left_out.append(name)
            return
        peers = self._measure(name, "peft loop", 1, 4, lambda: self._peft(shape, case.dtype))
        model = model_of(shape, self.device, case.dtype)
        for people in case.groups:
            if self.clock.left() < 3 * SECONDS and self.device.type == "cuda":
                self.left_out.append(f"{name}, {people} people")
                continue
            own, group = self._people(name, model, people)
            for row in (own, group):
                row["to_peft"] = row["pairs_a_second"] / peers["pairs_a_second"]
            group["to_one_by_one"] = group["pairs_a_second"] / own["pairs_a_second"]
        del model
        self._forget()

    def _people(self, name: str, model: RewardModel, people: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """So many people one by one, and in lockstep."""
        learners = learners_of(model, [self._pairs(number) for number in range(people)])
        pairs = 4 * people
        own = self._measure(name, "one by one", people, pairs, lambda: self._alone(model, learners))
        return own, self._measure(name, "lockstep", people, pairs, lambda: self._group(model, learners))

    def _measure(
        self, name: str, who: str, people: int, pairs: int, make: Callable[[], Callable[[], list[float]]]
    ) -> dict[str, Any]:
        """One row; what `make` gives is called again and again, and says the losses before the first step."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        losses, seconds = self.clock.seconds(make())
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0
        row = {
            "case": name,
            "who": who,
            "people": people,
            "pairs_a_second": pairs * STEPS / seconds,
            "seconds": seconds,
            "peak_gb": peak,
            "losses": losses,
        }
        self.rows.append(row)
        self._forget()
        return row

    def _pairs(self, person: int) -> list[Any]:
        return pairs_of(person, 2, 2, *self._tokens)

    def _peft(self, shape: Shape, dtype: torch.dtype) -> Callable[[], list[float]]:
        backbone = backbone_of(shape, self.device, dtype)
        loop = PeftLoop(
            backbone.model,
            shape.adapter["target_modules"],
            shape.adapter["rank"],
            shape.adapter["alpha"],
            RATE,
            backbone.pad_id,
            autocast=torch.bfloat16 if dtype == torch.bfloat16 else None,
        )
        texts = [
            [torch.tensor(backbone.tokenizer(joined(p.prompt, r)).input_ids) for r in (p.chosen, p.rejected)]
            for p in self._pairs(0)
        ]
        chosen, rejected = [one for one, _ in texts], [other for _, other in texts]
        return lambda: [loop.step(chosen, rejected) for _ in range(STEPS)][:1]

    def _alone(self, model: RewardModel, people: Sequence[Learner]) -> Callable[[], list[float]]:
        trainer = LocalTrainer(model, model.split(), PLAIN)
        return lambda: _losses(
            [trainer.train(one.shared, one.personal, one.prepared, one.seed) for one in people]
        )

    def _group(self, model: RewardModel, people: Sequence[Learner]) -> Callable[[], list[float]]:
        room = 1 << 30
        if self.device.type == "cuda":
            room = torch.cuda.get_device_properties(self.device).total_memory // 2
        trainer = LockstepTrainer(model, model.split(), PLAIN, step_bytes=room)
        return lambda: _losses(trainer.train(people))

    def _forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _losses(outcomes: Sequence[Any]) -> list[float]:
    """Mean losses before the first step; SystemExit where somebody's training failed."""
    failed = [one for one in outcomes if not isinstance(one, Outcome)]
    if failed:
        raise SystemExit(f"bench_gpu: a person's training failed: {failed[0]}")
    return [one.before.loss_sum / one.weight for one in outcomes]


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [("case", "who", "people", "pairs/s", "x peft", "x one by one", "peak GB", "loss")]
    for row in rows:
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("to_peft", "to_one_by_one")]
        mean = sum(row["losses"]) / len(row["losses"])
        figures = f"{row['pairs_a_second']:.1f}", *ratios, f"{row['peak_gb']:.1f}", f"{mean:.4f}"
        lines.append((row["case"], row["who"], str(row["people"]), *figures))
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in body) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write. SystemExit with one line where there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--shapes", nargs="+", choices=sorted({case.shape for case in CASES}))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(words)
    if not given.dry_run and not torch.cuda.is_available():
        raise SystemExit(
            "bench_gpu: torch sees no CUDA GPU here; --dry-run tries it with tiny shapes on the CPU"
        )
    if not 0 < given.minutes <= 10:
        raise SystemExit("bench_gpu: --minutes must lie above 0 and be 10 at most")
    bench = Bench(given)
    for case in DRY if given.dry_run else CASES:
        if given.dry_run or not given.shapes or case.shape in given.shapes:
            bench.case(case)
    name = "dry run, CPU" if given.dry_run else torch.cuda.get_device_name(0)
    machine = {
        "device": name,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(text(bench.rows), end="")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for what in bench.left_out:
        print(f"left out for want of time: {what}")
    if given.json:
        found = {"machine": machine, "rows": bench.rows, "left_out": bench.left_out}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
