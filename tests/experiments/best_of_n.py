"""Does the best of n suit its person? `python tests/experiments/best_of_n.py [--seeds 0,…] [--home DIR]`

SmolLM2-135M writes responses to everyday requests (tests/experiments/generated.py). Made-up people like or
dislike what these texts are about: food, being outdoors, company (words of `FEATURES`, counted); a taste
has a common part and a low-rank one of its own. Forty people choose between responses to some requests, by
Bradley and Terry, and train a federation: a personal model (share A) and a global one (AB), with the
settings tuned on Senate. Then, for requests that nobody has seen, each model takes the best of n responses
out of 32. The judge is the taste itself, which no training sees. Writes best_of_n.json and, with
matplotlib, best_of_n.png.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np

from curves import Look, draw, summary, told  # isort: skip
from fleets import Trained, settled  # isort: skip
from generated import Texts, in_order, texts  # isort: skip

from support.teacher import Array

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.deploy.owner_policy import fleet_policy
from penchant.deploy.recipes import recipe
from penchant.deploy.simulation.world import SimulationSetup
from penchant.server.run import cohort_size

HERE = Path(__file__).resolve().parent
PEOPLE, CHOICES, HELD, RANK = 40, 40, 20, 2
DECIDED = 1.0  # difference in utility below which nobody chooses
SHARPNESS = 3.0  # standard deviation of a person's utility over the responses to learn from
COMMON = 0.2  # of a taste's variance that everybody has alike
NUMBERS = (1, 2, 4, 8, 16, 32)
LOOKS = {
    "oracle": Look("by the taste itself", "#999999", "", ":"),
    "personal": Look("by the personal model", "#1f5fbf", "o"),
    "global": Look("by the global model", "#c2571a", "s"),
    "random": Look("at random", "#666666", "^"),
}
_BENCHES = ModelCache()

FEATURES = {  # roots of words
    "food": "eat food dinner lunch breakfast meal cook bak bakery cake tea coffee wine recipe soup chocolate"
    " bread pasta cheese fruit restaurant dish snack treat cookie delicious kitchen taste feast",
    "outdoors": "walk hike hiking garden park beach forest mountain nature outdoor river lake snow flower"
    " tree sky sunset sea ocean wood trail wildflower hill village field bird sunshine sunlight",
    "company": "friend family families together party parties guest love couple neighbor neighbour child"
    " children kid mother father parent daughter son wife husband mom dad sister brother",
}


@dataclass(frozen=True)
class Tastes:
    """weights [people, features]; centre and scale [features] of the texts to learn from."""

    weights: Array
    centre: Array
    scale: Array

    @classmethod
    def draw(cls, learned: Sequence[str], seed: int) -> Tastes:
        """Everybody's taste: the utility of a text is ⟨w_i, standardised features⟩."""
        rng = np.random.default_rng([seed, 7])
        found = features(learned)
        centre, scale = found.mean(axis=0), found.std(axis=0) + 1e-9
        common = rng.standard_normal(found.shape[1])
        own = rng.standard_normal((PEOPLE, RANK)) @ rng.standard_normal((RANK, found.shape[1]))
        weights = math.sqrt(COMMON) * common / np.linalg.norm(common)
        own = math.sqrt(1 - COMMON) * own / np.linalg.norm(own, axis=1, keepdims=True)
        utilities = ((found - centre) / scale) @ (weights + own).T  # [texts, people]
        return cls((weights + own) * (SHARPNESS / utilities.std(axis=0))[:, None], centre, scale)

    def utilities(self, responses: Sequence[str]) -> Array:
        """[people, texts]"""
        return np.asarray(self.weights @ ((features(responses) - self.centre) / self.scale).T)


def features(responses: Sequence[str]) -> Array:
    """log(1 + count) of each feature's words, [texts, features]."""
    roots = ["|".join(words.split()) for words in FEATURES.values()]
    patterns = [re.compile(rf"\b(?:{own})(?:s|es|ed|ing|y)?\b", re.IGNORECASE) for own in roots]
    counts = [[len(pattern.findall(text)) for pattern in patterns] for text in responses]
    return np.log1p(np.array(counts, dtype=float))


def choosers(drawn: Texts, tastes: Tastes, seed: int) -> Federation:
    """Everybody's choices between two responses to one request; some requests for training, some held out.

    Where two responses are about the same to a person they don't choose.
    """
    requests = list(drawn.learned)
    utilities = {request: tastes.utilities(drawn.learned[request]) for request in requests}
    held = requests[-len(requests) // 4 :]
    learned = requests[: -len(held)]
    people = []
    for person in range(PEOPLE):
        rng = np.random.default_rng([seed, 8, person])

        def chosen(among: Sequence[str], person: int = person, rng: Any = rng) -> Preference:
            while True:
                request = among[rng.integers(len(among))]
                responses = drawn.learned[request]
                one, other = rng.choice(len(responses), 2, replace=False)
                margin = utilities[request][person, one] - utilities[request][person, other]
                if abs(margin) > DECIDED:
                    break
            if rng.random() > 1 / (1 + math.exp(-margin)):
                one, other = other, one
            return Preference(request, responses[one], responses[other])

        train, later = ([chosen(among) for _ in range(n)] for among, n in ((learned, CHOICES), (held, HELD)))
        people.append(Person(f"person {person}", tuple(train), (), tuple(later)))
    return Federation("made-up tastes", tuple(people))


def federation_of(share: str, people: Federation, seed: int, home: Path) -> Trained:
    """These people's federation: the settings of `share` on Senate, half a round, texts read in whole."""
    settings = {
        "data.dataset": "made-up",
        "adapter.share": share,
        "privacy.secagg": False,
        "seed": seed,
        **recipe("senate", share),
        "model.max_tokens": 64,
        "federation.cohort": PEOPLE // 2,
    }
    config = RunConfig().changed(settings)
    cohort = cohort_size(config, len(people.people))
    world = SimulationSetup(config, people, _BENCHES, cohort, fleet_policy(config, cohort))
    return settled(world, home, f"tastes-{share}-seed{seed}")


def rewards(trained: Trained, requests: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """Request -> [people, responses], by everybody's own model."""
    planned = trained.planned()
    shared, start = planned.parts(trained.factors)
    trainer = planned.trainer(start)
    made = {}
    for request, responses in requests.items():
        prepared = planned.model.prepare_texts([(request, response) for response in responses])
        made[request] = np.stack([trainer.score(shared, part, prepared) for part in trained.personal()])
    return made


def chosen(utilities: Array, scores: Array, n: int) -> Array:
    """What the best of n by `scores` is worth on average over all choices of n responses, [people].

    The response at rank k of all m (0 is the best) is the best of n in C(m - 1 - k, n - 1) of C(m, n) sets.
    """
    m = scores.shape[1]
    ranked = np.take_along_axis(utilities, np.argsort(-scores, axis=1), axis=1)
    likely = np.array([math.comb(m - 1 - k, n - 1) for k in range(m)], dtype=float) / math.comb(m, n)
    return np.asarray(ranked @ likely)


def measure(drawn: Texts, seed: int, home: Path) -> dict[str, Any]:
    """Way of choosing -> the utility of what it takes, by n: means over people and requests."""
    tastes = Tastes.draw(in_order(drawn.learned), seed)
    people = choosers(drawn, tastes, seed)
    truth = {request: tastes.utilities(responses) for request, responses in drawn.tested.items()}
    shares = {"personal": "A", "global": "AB"}
    trained = {name: federation_of(share, people, seed, home) for name, share in shares.items()}
    ways = {name: rewards(one, drawn.tested) for name, one in trained.items()} | {"oracle": truth}

    def worth(way: str, n: int) -> Array:
        """[requests, people], in standard deviations of a person's utility"""
        return np.stack([chosen(truth[r], ways[way][r], n) for r in truth]) / SHARPNESS

    found: dict[str, Any] = {way: [float(worth(way, n).mean()) for n in NUMBERS] for way in ways}
    found["random"] = [float(worth("oracle", 1).mean())] * len(NUMBERS)
    ahead = worth("personal", NUMBERS[-1]).mean(axis=0) - worth("global", NUMBERS[-1]).mean(axis=0)
    found["better_served"] = float((ahead > 0).mean())
    found["accuracy"] = {name: one.accuracy()["personal"] for name, one in trained.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--home", type=Path, default=Path("runs/fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    drawn = texts(options.home)
    found = [measure(drawn, seed, options.home) for seed in seeds]
    made: dict[str, Any] = {"numbers": NUMBERS, "seeds": seeds, "people": PEOPLE, "choices": CHOICES}
    made["requests"] = {"learned": len(drawn.learned), "tested": len(drawn.tested)}
    made["responses"] = {"learned": len(in_order(drawn.learned)), "tested": len(in_order(drawn.tested))}
    for way in LOOKS:
        made[way] = [summary([one[way][i] for one in found]) for i in range(len(NUMBERS))]
    made["ahead"] = [
        summary([one["personal"][i] - one["global"][i] for one in found]) for i in range(len(NUMBERS))
    ]
    for way in (*LOOKS, "ahead"):
        print(f"{way:9s}", "  ".join(told(n, row, 2) for n, row in zip(NUMBERS, made[way], strict=True)))
    made["better_served"] = summary([one["better_served"] for one in found])
    made["accuracy"] = {
        name: summary([one["accuracy"][name] for one in found]) for name in ("personal", "global")
    }
    print(f"better served at {NUMBERS[-1]}", told(0, made["better_served"]))
    print("accuracy", {name: round(row["mean"], 3) for name, row in made["accuracy"].items()})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "best_of_n.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    names = ("responses to choose from", "utility of the chosen one to its person, standard deviations")
    draw(made, LOOKS, options.out / "best_of_n.png", places=NUMBERS, names=names, legend="upper left")


if __name__ == "__main__":
    main()
