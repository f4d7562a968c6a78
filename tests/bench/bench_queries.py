"""Which pair to ask next: `python tests/bench/bench_queries.py [--seeds 0,1,2,3,4] [--home DIR] [--out DIR]`

Senate, newcomers with up to 150 open pairs each. Pairs are asked about by expected information
(`client/queries.py`), by the closest call (smallest margin), or at random; the personal part is fitted to
the answers and judged on 150 held-out pairs a person. Reported: accuracy by answers, how many answers reach
the accuracy of 20 random ones, and its ratio to 20, with its error by the jackknife over seeds. What chance
gives such a ratio is there beside it: random answers in two more orders, against the same goal. Writes
queries.json and, with matplotlib, queries.png. Federations are kept in --home (tests/bench/fleets.py).
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

from curves import Look, draw, summary, told  # isort: skip
from fleets import Fleet, trained  # isort: skip

from penchant.client.newcomer import prior_of
from penchant.client.posterior import Laplace, Prior
from penchant.client.queries import Interview
from penchant.common.preferences import Person, Preference

HERE = Path(__file__).resolve().parent
ANSWERS = (1, 2, 3, 5, 7, 10, 14, 20)
GOAL = 20  # random answers whose accuracy is to be reached
ORDERS = 2  # of a person's pairs, for the goal; as many again for what chance gives
LOOKS = {
    "information": Look("by expected information", "#1f5fbf", "o"),
    "closest call": Look("by the closest call", "#c2571a", "s"),
    "random": Look("at random", "#666666", "^"),
}

Way = Callable[[Interview], int]
Curve = list[float]


def by_information(interview: Interview) -> int:
    return next(index for index in [interview.question()] if index is not None)


def by_closest_call(interview: Interview) -> int:
    margins = np.abs(interview.margins())
    return min(interview.open, key=lambda index: float(margins[index]))


def asked(laplace: Laplace, prior: Prior, person: Person, way: Way) -> Sequence[Preference]:
    """The answers to the first questions, in order."""
    interview = Interview(laplace, prior, person.train)
    while interview.open and len(interview.answers) < ANSWERS[-1]:
        interview.answer(way(interview), True)
    return interview.choices()


def at_random(person: Person, seed: int, order: int) -> Sequence[Preference]:
    pairs = list(person.train)
    random.Random(f"{seed} {order} {person.name}").shuffle(pairs)
    return pairs


def measure(fleet: Fleet, seed: int, part: str) -> dict[str, Curve]:
    """Way -> accuracy after each of `ANSWERS`, mean over newcomers."""
    bench = fleet.bench()
    shared, start = bench.parts(fleet.factors)
    laplace = Laplace(bench.model, bench.split, shared)
    trainer = bench.trainer(start)
    curves: dict[str, list[Curve]] = {}
    for person in fleet.newcomers:
        prior = prior_of(bench, laplace, start, person.train)
        held = bench.model.prepare(person.test if part == "test" else person.validation)
        answers = {
            "information": asked(laplace, prior, person, by_information),
            "closest call": asked(laplace, prior, person, by_closest_call),
        } | {f"random {order}": at_random(person, seed, order) for order in range(2 * ORDERS)}
        for way, own in answers.items():
            fitted = [laplace.fit(prior, own[:number]).vector for number in ANSWERS]
            curves.setdefault(way, []).append([trainer.evaluate(shared, v, held).accuracy for v in fitted])
    means = {
        way: [statistics.fmean(column) for column in zip(*own, strict=True)] for way, own in curves.items()
    }
    return {
        "information": means["information"],
        "closest call": means["closest call"],
        "random": _mean([means[f"random {order}"] for order in range(ORDERS)]),
        "chance": _mean([means[f"random {order}"] for order in range(ORDERS, 2 * ORDERS)]),
    }


def _mean(curves: Sequence[Curve]) -> Curve:
    return [statistics.fmean(column) for column in zip(*curves, strict=True)]


def reached(curve: Curve, goal: float) -> float:
    """Answers, interpolated, after which `curve` first reaches `goal`; infinite where it never does."""
    before, last = 0.0, None
    for number, accuracy in zip(ANSWERS, curve, strict=True):
        if accuracy >= goal:
            if last is None:
                return float(number)
            return before + (number - before) * (goal - last) / (accuracy - last)
        before, last = float(number), accuracy
    return math.inf


def ratio(found: Sequence[dict[str, Curve]], way: str) -> float:
    """Of the mean curves over these seeds."""
    goal = _mean([one["random"] for one in found])[ANSWERS.index(GOAL)]
    return reached(_mean([one[way] for one in found]), goal) / GOAL


def jackknife(found: Sequence[dict[str, Curve]], way: str) -> float:
    """Standard error of `ratio` (Tukey 1958): each seed left out in turn."""
    without = [ratio([*found[:i], *found[i + 1 :]], way) for i in range(len(found))]
    return math.sqrt((len(found) - 1) * statistics.pvariance(without)) if len(found) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--share", default="A")
    parser.add_argument("--part", choices=("test", "validation"), default="test", help="what judges")
    parser.add_argument("--home", type=Path, default=Path("runs/fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    found = []
    for seed in [int(seed) for seed in options.seeds.split(",")]:
        found.append(measure(trained(options.share, seed, options.home), seed, options.part))
        print(f"seed {seed}: {json.dumps({way: ratio(found[-1:], way) for way in found[-1]})}", flush=True)
    made: dict[str, Any] = {"answers": ANSWERS, "seeds": options.seeds, "ratio": {}}
    for way in found[0]:
        columns = zip(*(one[way] for one in found), strict=True)
        made[way] = [summary(column) for column in columns]
        print(f"{way:13s}", "  ".join(told(n, row) for n, row in zip(ANSWERS, made[way], strict=True)))
    made["goal"] = made["random"][ANSWERS.index(GOAL)]["mean"]
    for way in ("information", "closest call", "chance"):
        values = {
            "mean": ratio(found, way),
            "se": jackknife(found, way),
            "seeds": [ratio([one], way) for one in found],
        }
        made["ratio"][way] = _finite(values)
        print(f"{way}: {values}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "queries.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    names = ("answers of a newcomer", "accuracy on held-out roll calls")
    draw(made, LOOKS, options.out / "queries.png", places=ANSWERS, names=names, level=made["goal"])


def _finite(values: Any) -> Any:
    """None where a goal was never reached: JSON has no infinity."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if math.isfinite(values) else None


if __name__ == "__main__":
    main()
