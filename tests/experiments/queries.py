"""Which pair to ask next: `python tests/experiments/queries.py [--seeds 0,1,2,3,4] [--home DIR] [--out DIR]`

Senate, newcomers with up to 150 open pairs each. Pairs are asked about by expected information
(`client/learning/active.py`) or at random; the personal part is fitted to the answers and judged on 150
held-out pairs a person. Reported: accuracy by answers, how many answers reach the accuracy of 20 random
ones, and its ratio to 20, with its error by the jackknife over seeds. Beside it what chance would give:
random answers in one more order, against the same goal. Writes queries.json and, with matplotlib,
queries.png. Federations are kept in --home (tests/experiments/fleets.py).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curves import Look, draw, summary, told  # isort: skip
from fleets import Fleet, trained  # isort: skip

from penchant.client.learning.active import ActiveLearner
from penchant.client.learning.laplace import Array, Laplace, Posterior, Prior, linear_optimum
from penchant.client.learning.newcomer import prior_of
from penchant.common.data.preferences import Person, Preference
from penchant.common.model.factors import Vector

HERE = Path(__file__).resolve().parent
ANSWERS = (1, 2, 5, 8, 13, 20)
GOAL = 20  # random answers whose accuracy is to be reached
ORDERS = 2  # of a person's pairs, for the goal; one more for what chance gives
LOOKS = {
    "information": Look("by expected information", "#1f5fbf", "o"),
    "random": Look("at random", "#666666", "^"),
}

Curve = list[float]


class Linear:
    """A model linear in the personal part, as `laplace` sees one person's pairs at `start`: what
    `ActiveLearner` takes for true between two looks. A whole interview costs a tenth of a second."""

    def __init__(self, laplace: Laplace, start: Vector, pairs: Sequence[Preference]) -> None:
        self._start = start
        margins, gradients = laplace.margin_gradients(start, pairs)
        self._rows = {(p.chosen, p.rejected): row for p, *row in zip(pairs, margins, gradients, strict=True)}

    def margin_gradients(self, personal: Vector, pairs: Sequence[Preference]) -> tuple[Array, Array]:
        """As `Laplace.margin_gradients`."""
        rows = [self._rows[p.chosen, p.rejected] for p in pairs]
        gradients = np.array([row[1] for row in rows]).reshape(len(pairs), len(self._start))
        return np.array([row[0] for row in rows]) + gradients @ (personal - self._start), gradients

    def fit(self, prior: Prior, pairs: Sequence[Preference], near: Vector | None = None) -> Posterior:
        """As `Laplace.fit`: one step leads to the end."""
        margins, gradients = self.margin_gradients(prior.mean, pairs)
        away = linear_optimum(prior, prior.mean.astype(np.float64), margins, gradients)
        vector = (prior.mean + away).astype(np.float32)
        return Posterior(prior, vector, gradients, margins + gradients @ away)


def asked(laplace: Any, prior: Prior, person: Person) -> Sequence[Preference]:
    """The answers to the first questions, in order."""
    learner = ActiveLearner(laplace, prior, person.train)
    while len(learner.answers) < ANSWERS[-1] and (index := learner.question()) is not None:
        learner.answer(index, True)
    return learner.choices()


def at_random(person: Person, seed: int, order: int) -> Sequence[Preference]:
    pairs = list(person.train)
    random.Random(f"{seed} {order} {person.name}").shuffle(pairs)
    return pairs


def measure(fleet: Fleet, seed: int, part: str, linear: bool) -> dict[str, Curve]:
    """Way -> accuracy after each of `ANSWERS`, mean over newcomers."""
    planned = fleet.planned()
    shared, start = planned.parts(fleet.factors)
    whole = Laplace(planned.model, planned.split, shared)
    curves: dict[str, list[Curve]] = {}
    for person in fleet.newcomers:
        prior = prior_of(planned, whole, start, person.train)
        held = person.test if part == "test" else person.validation
        laplace: Any = Linear(whole, start, [*person.train, *held]) if linear else whole
        answers = {f"random {order}": at_random(person, seed, order) for order in range(ORDERS + 1)}
        answers["information"] = asked(laplace, prior, person)
        for way, own in answers.items():
            curve: Curve = []
            near = None
            for number in ANSWERS:
                near = laplace.fit(prior, own[:number], near).vector
                curve.append(float(np.mean(laplace.margin_gradients(near, held)[0] > 0)))
            curves.setdefault(way, []).append(curve)
    means = {
        way: [statistics.fmean(column) for column in zip(*own, strict=True)] for way, own in curves.items()
    }
    return {
        "information": means["information"],
        "random": _mean([means[f"random {order}"] for order in range(ORDERS)]),
        "chance": means[f"random {ORDERS}"],
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
    if len(found) < 2:
        return math.nan
    without = [ratio([*found[:i], *found[i + 1 :]], way) for i in range(len(found))]
    return math.sqrt((len(found) - 1) * statistics.pvariance(without))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--share", default="A")
    parser.add_argument("--part", choices=("test", "validation"), default="test", help="what judges")
    parser.add_argument(
        "--linear", action="store_true", help="the model linear at the start: a tenth of the time"
    )
    parser.add_argument("--home", type=Path, default=Path("runs/fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    found = []
    for seed in [int(seed) for seed in options.seeds.split(",")]:
        found.append(measure(trained(options.share, seed, options.home), seed, options.part, options.linear))
        print(f"seed {seed}: {json.dumps({way: ratio(found[-1:], way) for way in found[-1]})}", flush=True)
    made: dict[str, Any] = {
        "answers": ANSWERS, "seeds": options.seeds, "linear": options.linear, "ratio": {}
    }  # fmt: skip
    for way in found[0]:
        columns = zip(*(one[way] for one in found), strict=True)
        made[way] = [summary(column) for column in columns]
        print(f"{way:13s}", "  ".join(told(n, row) for n, row in zip(ANSWERS, made[way], strict=True)))
    made["goal"] = made["random"][ANSWERS.index(GOAL)]["mean"]
    for way in ("information", "chance"):
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
