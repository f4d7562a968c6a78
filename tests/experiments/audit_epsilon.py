"""Does the noise keep its promise? `python tests/experiments/audit_epsilon.py --json FILE [--seeds 0,1]`.

Lower bounds on epsilon at 95 % confidence, from what a server could see, by two ways. Vectors are clipped,
rounded and noised by the product's own code; all noise but that of the `honest` is known to the attacker.

- *many sums*: one canary, a person whose vector is as long as may be, is in a sum or is not, 25,000 times
  each to choose a threshold and as often again to judge by it: Clopper and Pearson's bounds of both rates.
  Only the canary's own element is drawn: noise on all others is independent of it.
- *one run*: a thousand people, each a canary with an element of its own, in or out by a coin; the attacker
  guesses about the 300 of whom the one sum says most. Steinke, Nasr and Jagielski, "Privacy auditing with one
  (1) training run", NeurIPS 2023, theorem 5.2.

Each is done as it is and with a quarter of the noise, as an implementation with a mistake would have it:
there the bound has to exceed the promise. 300 right guesses show no more than 4.6, so one run can't do that
at epsilon 8. --page FILE writes the table between its marks.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.common.config import RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.model.factors import AdaptedModule, Split
from penchant.common.privacy.discrete_gaussian import discrete_gaussian
from penchant.common.secagg.update_vector import Contribution, UpdateLayout

from marked_page import write  # isort: skip
from noised_fleet import noise_of, signed  # isort: skip

DELTA = 1e-5
MODULE = AdaptedModule(
    "output.dense", in_features=1536, out_features=384
)  # MiniLM's: 3,072 elements at rank 2
EPSILONS = (1.0, 2.0, 8.0)
PARTS = (1.0, 0.25)  # of the noise that there should be
SUMS = 25_000
HONEST = 10
CANARIES, GUESSES = 1000, 300
CONFIDENCE = 0.95
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """A layout for one sum that spends the whole epsilon, with a part of the noise that belongs to it."""

    layout: UpdateLayout
    sigma: int

    @classmethod
    def of(cls, epsilon: float, part: float, people: int, honest: int) -> Setting:
        changes = {
            "privacy.dp_epsilon": epsilon,
            "privacy.dp_delta": DELTA,
            "privacy.dp_participations": 1,
            "privacy.dp_honest": honest,
            "privacy.group_size": 1000,
        }
        plan = RunConfig().changed(changes).plan("main", people)
        layout = UpdateLayout.of(plan, Split.of((MODULE,), MODULE.out_features, plan.adapter))
        if layout.noise is None:
            raise ValueError("this plan has no noise to audit")
        sigma = max(round(layout.noise.sigma * part), 1)
        # the layout quantises as planned, and only the noise that it adds is another one
        return cls(replace(layout, noise=replace(layout.noise, sigma=sigma)), sigma)

    def canary(self, element: int) -> Contribution:
        """Somebody whose update lies in one element and is far longer than the clip."""
        update = np.zeros(self.layout.quantiser.size, np.float32)
        update[element] = 1e6 * self.layout.clip
        return Contribution(update, weight=1, loss=0.0, correct=0, total=0)


def many_sums(setting: Setting, seed: int, count: int = SUMS) -> float:
    """The lower bound on epsilon from `count` sums with the canary and `count` without, and as many to choose
    the threshold by."""
    entropy = SeededEntropy(seed.to_bytes(32, "big"), "audit of many sums")
    vector = signed(setting.layout.quantise(setting.canary(0), entropy.draw(32)), setting.layout.ring)
    noise = (
        discrete_gaussian(4 * count * HONEST, setting.sigma, entropy).reshape(4, count, HONEST).sum(axis=2)
    )
    present = noise[:2] + vector[0]
    absent = noise[2:]
    threshold = chosen_threshold(present[0], absent[0])
    return separation(present[1], absent[1], threshold)


def chosen_threshold(present: NDArray[np.int64], absent: NDArray[np.int64]) -> float:
    """The threshold with the largest bound among a hundred quantiles of both."""
    steps = np.concatenate((np.linspace(0.001, 0.999, 50), 1 - np.geomspace(1e-5, 1e-3, 25)))
    tried = np.unique(np.concatenate((np.quantile(absent, steps), np.quantile(present, 1 - steps))))
    return float(max(tried, key=lambda at: separation(present, absent, float(at))))


def separation(present: NDArray[np.int64], absent: NDArray[np.int64], threshold: float) -> float:
    """The lower bound on epsilon from the rates above (and below) a threshold, each at half of what is left
    to error."""
    hits, alarms = int((present > threshold).sum()), int((absent > threshold).sum())
    count = len(present)
    return max(
        _bound(hits, alarms, count),
        _bound(count - alarms, count - hits, count),
        0.0,
    )


def _bound(hits: int, alarms: int, count: int) -> float:
    error = (1 - CONFIDENCE) / 4  # two sides, two rates
    least, most = clopper_pearson(hits, count, error)[0], clopper_pearson(alarms, count, error)[1]
    return math.log((least - DELTA) / most) if least > DELTA else 0.0


def clopper_pearson(hits: int, count: int, error: float) -> tuple[float, float]:
    """(lower, upper) bounds of a rate, each wrong with a probability of `error` at most."""
    from scipy.stats import beta

    low = float(beta.ppf(error, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - error, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def one_run(setting: Setting, seed: int, canaries: int = CANARIES, guesses: int = GUESSES) -> float:
    """The lower bound on epsilon from one sum over `canaries` people, each in or out by a coin."""
    entropy = SeededEntropy(seed.to_bytes(32, "big"), "audit of one run")
    inside = np.random.default_rng([seed, 9]).random(canaries) < 0.5
    nothing = Contribution.nothing(setting.layout.quantiser.size)
    sent = [setting.canary(at) if there else nothing for at, there in enumerate(inside)]
    total = noise_of(setting.layout, setting.layout.honest, entropy)
    for contribution in sent:
        total += signed(setting.layout.quantise(contribution, entropy.draw(32)), setting.layout.ring)
    total = total[:canaries]
    order = np.argsort(total)
    half = guesses // 2
    right = int((~inside[order[:half]]).sum() + inside[order[-half:]].sum())
    return guessing_bound(right, 2 * half, canaries)


def guessing_bound(right: int, guesses: int, canaries: int) -> float:
    """The largest epsilon at which so many right guesses have a probability below 5 %."""
    low, high = 0.0, 20.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if chance_of(right, guesses, canaries, middle) < 1 - CONFIDENCE else (low, middle)
        )
    return low


def chance_of(right: int, guesses: int, canaries: int, epsilon: float) -> float:
    """A bound on the probability of `right` guesses or more under (epsilon, DELTA): theorem 5.2."""
    from scipy.stats import binom

    rate = 1 / (1 + math.exp(-epsilon))
    base = float(binom.sf(right - 1, guesses, rate))
    sums = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, rate))
    slack = float(np.max(sums / np.arange(1, right + 1))) if right else 0.0
    return min(base + slack * DELTA * 2 * canaries, 1.0)


# --- figures --------------------------------------------------------------------------------------

WAYS = {"many sums": (many_sums, HONEST + 2, HONEST), "one run": (one_run, CANARIES, 665)}


def measured(path: Path, seeds: Sequence[int], only_show: bool) -> dict[str, list[float]]:
    """Bounds by way, epsilon and part of the noise, a figure for each seed; kept in `path`."""
    found: dict[str, list[float]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for way, (bound, people, honest) in WAYS.items():
        for epsilon in EPSILONS:
            for part in PARTS:
                row = found.setdefault(f"{way}|{epsilon:g}|{part:g}", [])
                for seed in [] if only_show else seeds[len(row) :]:
                    row.append(round(bound(Setting.of(epsilon, part, people, honest), seed), 3))
                    print(way, epsilon, part, row, flush=True)
                    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def table(found: dict[str, list[float]]) -> list[str]:
    """Rows by way and promise: the least and the largest bound over seeds."""
    lines = ["| way | promised ε | bound, as it is | bound, a quarter of the noise |", "|---|---|---|---|"]
    for way in WAYS:
        for epsilon in EPSILONS:
            cells = [_shown(found.get(f"{way}|{epsilon:g}|{part:g}", [])) for part in PARTS]
            lines.append(f"| {way} | {epsilon:g} | {' | '.join(cells)} |")
    return lines


def _shown(bounds: Sequence[float]) -> str:
    return f"{min(bounds):.2f} … {max(bounds):.2f}" if bounds else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--json", type=Path, required=True, help="a file to add the bounds to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true", help="compute nothing")
    given: Any = parser.parse_args()
    lines = table(measured(given.json, list(map(int, given.seeds.split(","))), given.only_show))
    print("\n".join(lines))
    if given.page:
        write(given.page, "audit", lines)


if __name__ == "__main__":
    main()
