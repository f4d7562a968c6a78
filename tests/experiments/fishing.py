"""What one sum says to a server that shapes it: `python tests/experiments/fishing.py [--seeds 0,1,2]`.

Senate, `--people` people with `--pairs` choices each, in one sum. The server knows every text that anyone
could have chosen between (the candidates), chooses plan and factors, and sees the sum of weighted updates,
quantised as devices quantise it; masks hide nothing of a sum. For each candidate it computes the update of a
made-up person with that choice alone, and solves for how many people chose it, minus how many chose the other
side (least squares).

Reported, for a plan that an honest server makes, for a hostile one that the owner's policy of version 0.1 let
pass, and for one within today's default policy: how many of the candidates' counts are exactly right, and the
area under the curve for whether anybody in the sum has the candidate among their choices. `--json FILE` keeps
the rows.

With `--epsilon 8` people add noise, which spends all of that epsilon on this one sum; two of them collude.
The clip is then what half of the people's updates exceed, the best for the server, and `bound` in a row is
the area under the curve that no test about all of one person's vector exceeds at this noise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from support.scene import announcement

from penchant.client.agent.policy import OwnerPolicy
from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache, PlannedModel
from penchant.client.learning.outcome import contribution_of
from penchant.common.config import RunConfig
from penchant.common.crypto.entropy import Entropy, SeededEntropy
from penchant.common.data.preferences import Person, Preference
from penchant.common.errors import PolicyRefusal
from penchant.common.model.factors import Vector
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.shares import HEAD
from penchant.common.wire.messages import Kind
from penchant.deploy import datasets
from penchant.deploy.recipes import recipe

SHAPED = {
    "adapter.share": "A",
    "adapter.head": "shared",
    "training.local_epochs": 1,
    "training.lr_personal": 0.0,
    "training.weight_decay": 0.0,
    "training.batch_size": 0,
}
PLANS: dict[str, dict[str, Any]] = {
    "honest: the recipe": {},
    "0.1's bounds: one step of SGD, rank 64": SHAPED
    | {
        "adapter.rank": 64,
        "adapter.alpha": 64.0,
        "training.optimizer": "sgd",
        "training.lr_shared": 1.0,
        "training.lr_head": 1.0,
    },
} | {
    f"today's bounds: one step of AdamW, a head of norm {norm:g}": SHAPED
    | {
        "adapter.rank": 16,
        "adapter.alpha": 16.0,
        "training.optimizer": "adamw",
        "training.lr_shared": 0.1,
        "training.lr_head": 0.1,
    }
    for norm in (1e-9, 1e-8, 1e-7, 1e-6, 1.0)
}
PLANS["today's bounds: one step of AdamW, an untrained head of norm 1e-08"] = PLANS[
    "today's bounds: one step of AdamW, a head of norm 1e-08"
] | {"training.lr_head": 0.0}
# The head's own step is as long whatever people chose, and would be most of the vector.
# A step of AdamW is proportional to the gradient while that is far below its epsilon of 1e-8, which a small
# head sees to; and it is the gradient's sign where that is far above.
CANDIDATES = 286
COLLUDERS = 2  # whose noise the server knows, where there is any


@dataclass(frozen=True)
class Shaped:
    """A plan with the factors that go with it."""

    planned: PlannedModel
    shared: Vector
    start: Vector

    def update(self, person: tuple[Preference, ...]) -> tuple[Vector, int]:
        """(update, weight) of somebody with these choices, before quantisation."""
        outcome = work(self.planned, self.shared, self.start, self.start, person, (), 0)
        return outcome.shared_update, outcome.weight

    def noised(self, epsilon: float, people: list[tuple[Preference, ...]]) -> Shaped:
        """The same with noise that spends epsilon on one sum over `people`, two of whom collude."""
        clip = float(np.median([np.linalg.norm(self.update(person)[0]) for person in people]))
        plan = replace(
            self.planned.plan,
            cohort=len(people),
            clip=clip,
            dp_epsilon=epsilon,
            dp_participations=1,
            dp_honest=len(people) - COLLUDERS,
        )
        return replace(self, planned=replace(self.planned, plan=plan))

    def bound(self) -> float | None:
        """The largest area under the curve about all of one person's vector; None without noise.

        Of two Gaussians that are 1 / z standard deviations apart: continuous noise, to which this one is
        closer than a float can say.
        """
        layout = UpdateLayout.of(self.planned.plan, self.planned.split)
        if layout.noise is None:
            return None
        return NormalDist().cdf(1 / layout.noise.multiplier(layout.honest) / math.sqrt(2))

    def total(self, people: list[tuple[Preference, ...]], entropy: Entropy) -> NDArray[np.float64]:
        """The sum of the people's weighted updates, float64 [d], as the server opens it."""
        layout = UpdateLayout.of(self.planned.plan, self.planned.split)
        total = np.zeros(layout.words, dtype=np.int64)
        for number, person in enumerate(people):
            outcome = work(self.planned, self.shared, self.start, self.start, person, (), 0)
            key = number.to_bytes(32, "big")
            vector = layout.quantise(contribution_of(outcome, in_histogram=False), key)
            unknown = number < len(people) - COLLUDERS
            noise = layout.draw_noise(entropy, layout.honest) if unknown else None
            total += layout.with_noise(vector, noise).astype(np.int64)
        modulus = 1 << layout.ring
        total %= modulus
        total[total >= modulus // 2] -= modulus
        sums = layout.read(total, len(people))
        return sums.mean * sums.weight


def shape(cache: ModelCache, config: RunConfig, name: str, seed: int) -> Shaped:
    """Plan and factors of one way to shape a sum."""
    plan = config.plan("main", 34)
    hostile = not name.startswith("honest")
    plan = replace(plan, start_sent=True, clip=10.0) if hostile else replace(plan, start_sent=False)
    planned = cache.of(plan)
    shared, start = planned.split.initial(plan.seed)
    if not hostile:
        return Shaped(planned, shared, start)
    draw = np.random.default_rng(seed)
    tensors, own = planned.split.shared.named(shared), planned.split.personal.named(start)
    scale = float(name.rpartition(" ")[2]) if plan.training.optimizer == "adamw" else 1.0
    head = draw.normal(size=tensors[HEAD].shape)
    tensors[HEAD] = (head / np.linalg.norm(head) * scale).astype(np.float32)
    for key, tensor in own.items():  # B: every row of A then sees the whole gradient
        own[key] = (draw.normal(size=tensor.shape) / np.sqrt(tensor.size)).astype(np.float32)
    flat = [
        np.concatenate([named[key].ravel() for key in layout.names]).astype(np.float32)
        for named, layout in ((tensors, planned.split.shared), (own, planned.split.personal))
    ]
    return Shaped(planned, flat[0], flat[1])


def allowed(shaped: Shaped) -> str:
    """Why the default policy's bounds refuse the plan or the factors; empty if they do not."""
    policy = OwnerPolicy(allow_exact_sums=True)  # noise is another matter
    try:
        policy.check(announcement(34, kind=Kind.SECAGG), shaped.planned.plan)
        policy.check_size(shaped.planned.split)
        norms = shaped.planned.model.weight_norms
        policy.check_norms(shaped.planned.split, shaped.shared, shaped.start, norms)
    except PolicyRefusal as refusal:
        return str(refusal)
    return ""


def sides(pair: Preference) -> tuple[tuple[str, str, str], int]:
    """(the candidate, which side was chosen): the same candidate whoever chose what."""
    first, second = sorted((pair.chosen, pair.rejected))
    return (pair.prompt, first, second), 1 if pair.chosen == first else -1


def auc(scores: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    """Area under the curve: how often somebody's candidate scores above one that is nobody's."""
    within, without = int(inside.sum()), int((~inside).sum())
    above = (
        rankdata(scores)[inside].sum() - within * (within + 1) / 2
    )  # Mann and Whitney's U; ties are halves
    return float(above / (within * without))


def fish(
    shaped: Shaped, people: list[tuple[Preference, ...]], candidates: list[Preference], entropy: Entropy
) -> dict[str, Any]:
    """How well the sum tells the candidates' counts."""
    truth: dict[Any, int] = {}
    inside: set[Any] = set()
    for person in people:
        for pair in person:
            key, side = sides(pair)
            truth[key] = truth.get(key, 0) + side
            inside.add(key)
    single = np.stack([shaped.update((pair,))[0] for pair in candidates]).astype(np.float64)
    found, *_ = np.linalg.lstsq(single.T, shaped.total(people, entropy), rcond=1e-6)
    counts = np.array([truth.get(sides(pair)[0], 0) * sides(pair)[1] for pair in candidates])
    there = np.array([sides(pair)[0] in inside for pair in candidates])
    return {
        "candidates": len(candidates),
        "exact": int((np.rint(found) == counts).sum()),
        "guessed": int((counts == 0).sum()),  # right by saying 0 each time
        "auc": auc(np.abs(found), there),
        "refused by the default policy": allowed(shaped),
    }


def chosen_people(seed: int, count: int, pairs: int) -> tuple[list[tuple[Preference, ...]], list[Preference]]:
    """(the choices of the people in the sum, all candidates)."""
    config = RunConfig().changed({"data.dataset": "senate", "data.pairs": 60, "seed": seed})
    everybody: tuple[Person, ...] = datasets.configured(config.data, seed).people
    draw = np.random.default_rng(seed)
    names = draw.choice(len(everybody), count, replace=False)
    people = [
        tuple(everybody[i].train[j] for j in draw.permutation(len(everybody[i].train))[:pairs]) for i in names
    ]
    candidates = {sides(pair)[0]: pair for person in people for pair in person}
    decoys = {sides(pair)[0]: pair for person in everybody for pair in person.train}
    others = [key for key in decoys if key not in candidates]
    for at in draw.permutation(len(others))[: CANDIDATES - len(candidates)]:
        candidates[others[at]] = decoys[others[at]]
    return people, list(candidates.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--plans", default="", help="parts of plans' names, with commas between them")
    parser.add_argument("--epsilon", type=float, default=0.0, help="with noise; 0 stands for none")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cache, rows = ModelCache(), []
    wanted = {
        name: changes for name, changes in PLANS.items() if any(p in name for p in given.plans.split(","))
    }
    for name, changes in wanted.items():
        for seed in map(int, given.seeds.split(",")):
            settings = recipe("senate", "A") | changes | {"seed": seed, "federation.warmup_rounds": 0}
            people, candidates = chosen_people(seed, given.people, given.pairs)
            shaped = shape(cache, RunConfig().changed(settings), name, seed)
            entropy = SeededEntropy(seed.to_bytes(32, "big"), f"fishing {name}")
            noise = {}
            if given.epsilon:
                shaped = shaped.noised(given.epsilon, people)
                noise = {"epsilon": given.epsilon, "bound": shaped.bound()}
            rows.append({"plan": name, "seed": seed} | noise | fish(shaped, people, candidates, entropy))
            print(json.dumps(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
