"""Which pair to ask next: `python tests/bench/bench_queries.py [--seeds 0,1,2,3,4] [--home DIR] [--out DIR]`

Senate, newcomers with up to 150 open pairs each. Pairs are asked about by expected information
(`client/queries.py`), by the closest call (smallest margin), or at random; after each answer count the
personal part is fitted and judged on the held-out roll calls. Reported: accuracy by answers, the number of
queried answers that reach the accuracy of 20 random ones, and its ratio to 20. Writes queries.json and, with
matplotlib, queries.png. Federations are kept in --home (tests/bench/fleets.py).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fleets import Fleet, trained  # isort: skip

from penchant.client.newcomer import prior_of
from penchant.client.posterior import Laplace, Prior
from penchant.client.queries import Interview
from penchant.common.preferences import Person

HERE = Path(__file__).resolve().parent
ANSWERS = (1, 2, 3, 5, 7, 10, 14, 20)
GOAL = 20  # random answers whose accuracy is to be reached
RANDOM_DRAWS = 2  # orders of a person's pairs
WAYS = ("information", "closest call", "random")

Way = Callable[[Interview], int]


def by_information(interview: Interview) -> int:
    return next(index for index in [interview.question()] if index is not None)


def by_closest_call(interview: Interview) -> int:
    margins = np.abs(interview.margins())
    return min(interview.open, key=lambda index: float(margins[index]))


def asked(laplace: Laplace, prior: Prior, person: Person, way: Way) -> list[float]:
    """Accuracy after each of `ANSWERS`."""
    interview = Interview(laplace, prior, person.train)
    accuracies = []
    while len(interview.answers) < min(ANSWERS[-1], len(person.train)):
        interview.answer(way(interview), True)
        if len(interview.answers) in ANSWERS:
            accuracies.append(judged(laplace, prior, interview.choices(), person))
    return accuracies + accuracies[-1:] * (len(ANSWERS) - len(accuracies))


def at_random(laplace: Laplace, prior: Prior, person: Person, seed: int) -> list[float]:
    """The same, mean over orders of the pairs."""
    curves = []
    for draw in range(RANDOM_DRAWS):
        pairs = list(person.train)
        random.Random(f"{seed} {draw} {person.name}").shuffle(pairs)
        curves.append([judged(laplace, prior, pairs[:number], person) for number in ANSWERS])
    return [statistics.fmean(column) for column in zip(*curves, strict=True)]


def judged(laplace: Laplace, prior: Prior, choices: Sequence[Any], person: Person) -> float:
    posterior = laplace.fit(prior, choices)
    return float(np.mean(laplace.margins(posterior, person.test).mean > 0))


def measure(fleet: Fleet, seed: int) -> dict[str, list[float]]:
    """Way -> accuracy after each of `ANSWERS`, mean over newcomers."""
    bench = fleet.bench()
    shared, start = bench.parts(fleet.factors)
    laplace = Laplace(bench.model, bench.split, shared)
    curves: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for person in fleet.newcomers:
        prior = prior_of(bench, laplace, start, person.train)
        curves["information"].append(asked(laplace, prior, person, by_information))
        curves["closest call"].append(asked(laplace, prior, person, by_closest_call))
        curves["random"].append(at_random(laplace, prior, person, seed))
    return {way: [statistics.fmean(c) for c in zip(*own, strict=True)] for way, own in curves.items()}


def reached(curve: Sequence[float], goal: float) -> float:
    """Answers, interpolated, after which `curve` first reaches `goal`; infinite where it never does."""
    before, last = 0.0, None
    for number, accuracy in zip(ANSWERS, curve, strict=True):
        if accuracy >= goal:
            if last is None:
                return float(number)
            return before + (number - before) * (goal - last) / (accuracy - last)
        before, last = float(number), accuracy
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--share", default="A")
    parser.add_argument("--home", type=Path, default=Path("runs/senate-fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    found = []
    for seed in seeds:
        curves = measure(trained(options.share, seed, options.home), seed)
        found.append(curves)
        goal = curves["random"][ANSWERS.index(GOAL)]
        numbers = {way: reached(curves[way], goal) for way in WAYS[:2]}
        print(f"seed {seed}: 20 random answers give {goal:.3f}; reached after {numbers}", flush=True)
    means = {way: [statistics.fmean(c[way][i] for c in found) for i in range(len(ANSWERS))] for way in WAYS}
    errors = {
        way: [
            statistics.stdev([c[way][i] for c in found]) / math.sqrt(len(found)) if len(found) > 1 else None
            for i in range(len(ANSWERS))
        ]
        for way in WAYS
    }
    goal = means["random"][ANSWERS.index(GOAL)]
    ratios = {way: reached(means[way], goal) / GOAL for way in WAYS[:2]}
    each = {
        way: [reached(c[way], c["random"][ANSWERS.index(GOAL)]) / GOAL for c in found] for way in WAYS[:2]
    }
    for way in WAYS:
        print(f"{way:13s}", "  ".join(f"{n}: {m:.3f}" for n, m in zip(ANSWERS, means[way], strict=True)))
    for way, ratio in ratios.items():
        print(f"{way}: ratio {ratio:.2f} of the mean curves; by seed {[round(r, 2) for r in each[way]]}")
    options.out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {
        "answers": ANSWERS,
        "means": means,
        "errors": errors,
        "goal": goal,
        "seeds": seeds,
    }
    made["ratio"] = {way: _number(ratio) for way, ratio in ratios.items()}
    made["ratio_by_seed"] = {way: [_number(r) for r in own] for way, own in each.items()}
    (options.out / "queries.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    try:
        draw(made, options.out / "queries.png")
    except ImportError:
        print("matplotlib is not there: no figure")


def _number(value: float) -> float | None:
    """None where the goal was never reached."""
    return value if math.isfinite(value) else None


def draw(made: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    looks = {
        "information": ("by expected information", "#1f5fbf", "o"),
        "closest call": ("by the closest call", "#c2571a", "s"),
        "random": ("at random", "#666666", "^"),
    }
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    for way, (label, colour, marker) in looks.items():
        errors = [error or 0 for error in made["errors"][way]]
        axes.errorbar(ANSWERS, made["means"][way], errors, color=colour, marker=marker, ms=5, label=label)
    axes.axhline(made["goal"], color="#666666", ls=":", lw=1)
    axes.set_xlabel("answers of a newcomer")
    axes.set_ylabel("accuracy on held-out roll calls")
    axes.set_xticks([1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20])
    axes.grid(True, color="#dddddd", lw=0.6)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
