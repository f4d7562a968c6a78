"""What single changes of a recipe bring: `python tests/experiments/levers.py [SHARE] [--json FILE]`.

Where the adapters sit, how deep, of what rank; the warm-up; the pull towards the common start; whose the head
is; which tokens are the embedding. Each is the recipe with that one change and nothing tuned anew, judged in
pasts of the test part (`pasts.py`), which is never read. Prints the mean accuracy and the mean difference
from the recipe, paired by case, with its standard error. --levers: some of them, by number;
--cases: the first so many.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from penchant.deploy.recipes import recipe
from penchant.deploy.tuning.space import Changes

from recipes import Runs  # isort: skip
from curves import standard_error  # isort: skip
from pasts import CASES  # isort: skip

LEVERS: dict[str, Changes] = {
    "the recipe": {},
    "feed-forward blocks: the last two": {"adapter.layers": (-2, -1)},
    "modules: query, value": {"adapter.target_modules": ("query", "value")},
    "rank 1": {"adapter.rank": 1, "adapter.alpha": 1.0},
    "rank 4": {"adapter.rank": 4, "adapter.alpha": 4.0},
    "no warm-up": {"federation.warmup_rounds": 0},
    "pull .01": {"training.l2_to_start": 0.01},
    "pull .1": {"training.l2_to_start": 0.1},
    "shared head": {"adapter.head": "shared"},
    "first token": {"model.pooling": "first"},
    "24 tokens": {"model.max_tokens": 24},
    "first token of 24": {"model.pooling": "first", "model.max_tokens": 24},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("share", nargs="?", default="A")
    parser.add_argument("--levers", help="some of them, by number from 0", default="")
    parser.add_argument("--cases", type=int, default=len(CASES))
    parser.add_argument("--json", type=Path, help="a file to add the figures to")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    runs, base = Runs(chosen.share), recipe("senate", chosen.share)
    cases = runs.cases[: chosen.cases]
    some = {int(number) for number in chosen.levers.split(",")} if chosen.levers else set(range(len(LEVERS)))
    kept = chosen.json is not None and chosen.json.is_file()
    everything: dict[str, Any] = json.loads(chosen.json.read_text("utf-8")) if kept else {}
    found = everything.setdefault(chosen.share, {})
    for lever in (list(LEVERS)[number] for number in sorted(some | {0})):
        found[lever] = [runs.accuracy(base | LEVERS[lever], case) for case in cases]
        apart = [one - other for one, other in zip(found[lever], found["the recipe"], strict=True)]
        error = standard_error(apart) or 0.0
        mean = statistics.fmean(found[lever])
        print(f"{lever:34s} {mean:.3f}  {statistics.fmean(apart):+.3f} ± {error:.3f}", flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
