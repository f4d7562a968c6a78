"""A clip that follows a quantile of norms, or one that stays: `python tests/experiments/adaptive_clip.py`.

After Andrew, Thakkar, McMahan and Ramaswamy, "Differentially private learning with adaptive clipping",
NeurIPS 2021: each device counts whether its update is within the clip; what the noised sum says of how many
are moves the clip, by a factor of exp(-SPEED (part within - QUANTILE)) a round. The count is paid for: it
stands where a noised vector has the accuracy (COUNT_PART of the norm bound), is noised as all of it, and the
vector as a whole is cut to the bound. So epsilon is that of the fixed clip.

Share lore at epsilon 8, the rounds and the server's rate of private_utility.py, which found a clip of 1 best;
first clips of a tenth and of ten times as much. --json keeps the runs, and the same command goes on where it
stopped; --page FILE writes the table between its marks; --only-show runs nothing.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.data.preferences import Person
from penchant.common.model.factors import Vector
from penchant.common.secagg.update_vector import CORRECT, Contribution, UpdateLayout
from penchant.deploy import datasets
from penchant.deploy.recipes import recipe

from many_people import taught  # isort: skip
from marked_page import write  # isort: skip
from noised_fleet import Fleet, Training, ring_sum  # isort: skip
from private_utility import PEOPLE, SEEDS, SIZES, settings, shown  # isort: skip

EPSILON, ROUNDS, RATE = 8.0, 10, 3.0
QUANTILE, SPEED = 0.5, 1.0  # the paper's quantile; its speed of 0.2 is for hundreds of rounds
CLIPS = (0.1, 1.0, 10.0)
NAMES = ("senate", "taught")


class Adaptive(Fleet):
    """A fleet whose clip follows the QUANTILE of the norms of updates; the configuration's is the first."""

    def rounds(self, train: Training) -> tuple[Vector, Tensor]:
        state, personal = self.start()
        clip, everybody = self.config.federation.clip, range(len(self.people))
        entropy = SeededEntropy(self.config.seed.to_bytes(32, "big"), "adaptive clip")
        for _ in range(self.config.federation.rounds):
            layout = UpdateLayout.of(replace(self.planned.plan, clip=clip), self.planned.split)
            sent, personal = train(state.factors, everybody, personal)
            total = ring_sum(layout, counted(sent, clip), entropy)
            state = state.moved(layout.read(total, len(sent)).mean, self.config.federation)
            _, counts = layout.quantiser.dequantise(total)
            clip = moved(clip, counts[CORRECT] / len(sent))
        return state.factors, personal


def counted(sent: Sequence[Contribution], clip: float) -> list[Contribution]:
    """What people send, with the accuracy replaced by whether their update is within the clip."""
    within = [bool(np.linalg.norm(part.update) <= clip) for part in sent]
    return [replace(part, correct=int(inside), total=1) for part, inside in zip(sent, within, strict=True)]


def moved(clip: float, within: float) -> float:
    """The next round's clip, where this part of the people, as noise has it, was within this round's."""
    return clip * math.exp(-SPEED * (min(max(within, 0.0), 1.0) - QUANTILE))


def run(name: str, clip: float, adaptive: bool, seed: int, cache: ModelCache) -> float:
    """The accuracy on test pairs of one federation."""
    shape = {"federation.rounds": ROUNDS, "federation.clip": clip, "federation.server_lr": RATE}
    config = RunConfig().changed(recipe("senate", "lore") | settings("lore", EPSILON, seed, **shape))
    people = people_of(name, config)
    config = config.changed({"federation.cohort": len(people)})
    fleet = (Adaptive if adaptive else Fleet).of(config, people, cache)
    return fleet.accuracy(fleet.learn())


def people_of(name: str, config: RunConfig) -> Sequence[Person]:
    if name == "taught":
        return taught(PEOPLE[name][0], SIZES, config.seed).people
    return datasets.configured(config.data, config.seed).people


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """In Markdown, of the people that anything was run for."""
    lines = ["| people | first clip | it stays | it follows the median |", "|---|---|---|---|"]
    for name in (name for name in NAMES if f"{name} {CLIPS[0]:g} fixed" in found):
        for clip in CLIPS:
            cells = [
                shown({int(seed): value for seed, value in found.get(f"{name} {clip:g} {kind}", {}).items()})
                for kind in ("fixed", "adaptive")
            ]
            lines.append(f"| {name} | {clip:g} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", default=",".join(NAMES), help="names, with commas between them")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--json", type=Path, required=True, help="a file to add the runs to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    given = parser.parse_args()
    found: dict[str, dict[str, float]] = json.loads(given.json.read_text()) if given.json.exists() else {}
    cache = ModelCache()
    for seed in given.seeds.split(",") if not given.only_show else ():
        for name in given.people.split(","):
            for clip in CLIPS:
                for kind in ("fixed", "adaptive"):
                    runs = found.setdefault(f"{name} {clip:g} {kind}", {})
                    if seed not in runs:
                        runs[seed] = run(name, clip, kind == "adaptive", int(seed), cache)
                        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                        print(f"{runs[seed]:.4f}  {name} {clip:g} {kind} {seed}", flush=True)
    lines = table(found)
    print("\n".join(lines))
    if given.page:
        write(given.page, "adaptive clip", lines)


if __name__ == "__main__":
    main()
