"""Does the best of n suit its person? `python tests/bench/bench_best_of_n.py [--seeds 0,…] [--home DIR]`

SmolLM2-135M writes responses to everyday requests (tests/bench/generated.py). Made-up people like or dislike
what these texts are about: food, being outdoors, company, … (`FEATURES`, counted in the text); a taste has a
common part and a low-rank one of its own. Thirty people choose between responses to some requests, by Bradley
and Terry, and train a federation: a personal model (share A) and a global one (AB), with the settings tuned
on Senate. Then, for requests that nobody has seen, each model takes the best of the first n of 32 responses.
The judge is the taste itself, which no training sees. Writes best_of_n.json and, with matplotlib,
best_of_n.png.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from generated import Texts, texts  # isort: skip

from penchant.client.bench import Benches
from penchant.client.vault import Vault
from penchant.common.adapters import Vector
from penchant.common.config import RunConfig
from penchant.common.preferences import Federation, Person, Preference
from penchant.deploy import rundir
from penchant.deploy.fleet import fleet_policy
from penchant.deploy.recipes import recipe
from penchant.deploy.simulate import World, simulate
from penchant.deploy.teacher import Array
from penchant.server.journal import Journal
from penchant.server.round import announced_factors, cohort_size

HERE = Path(__file__).resolve().parent
PEOPLE, CHOICES, HELD, RANK = 30, 20, 10, 2
SHARPNESS = 3.0  # standard deviation of a person's utility over the responses to learn from
COMMON = 0.3  # of a taste's variance that everybody has alike
NUMBERS = (1, 2, 4, 8, 16, 32)
ROUNDS, WARMUP = 16, 4

FEATURES = {
    "food": r"eat|food|dinner|lunch|breakfast|meal|cook|bak(?:e|ing)|cake|tea|coffee|wine|recipe|soup",
    "outdoors": r"walk|hik|garden|park|beach|forest|mountain|nature|outdoor|sun|sky|river|lake|snow|flower",
    "culture": r"book|read|music|song|film|movie|paint|art|museum|poem|theat|story|stories|writ",
    "rest": r"relax|rest|sleep|cozy|cosy|warm|blanket|bath|fire|home|quiet|calm|peace",
    "company": r"friend|famil|together|party|guest|love|couple|neighbo|share|children|kids|mother|father",
    "gifts": r"gift|present|buy|shop|card|box|jewel|candle|handmade|personal",
    "to you": r"you\b|your\b|yourself",
    "lively": r"fun|play|game|danc|adventur|excit|celebrat|joy|laugh|!",
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
    patterns = [
        re.compile(rf"\b(?:{words})" if name != "to you" else words) for name, words in FEATURES.items()
    ]
    counts = [[len(pattern.findall(text.lower())) for pattern in patterns] for text in responses]
    return np.log1p(np.array(counts, dtype=float))


def choosers(drawn: Texts, tastes: Tastes, seed: int) -> Federation:
    """Everybody's choices between two responses to one request; some requests for training, some held out."""
    requests = list(drawn.learned)
    utilities = {request: tastes.utilities(drawn.learned[request]) for request in requests}
    held = requests[-len(requests) // 4 :]
    people = []
    for person in range(PEOPLE):
        rng = np.random.default_rng([seed, 8, person])

        def chosen(request: str, person: int = person, rng: np.random.Generator = rng) -> Preference:
            responses = drawn.learned[request]
            one, other = rng.choice(len(responses), 2, replace=False)
            margin = utilities[request][person, one] - utilities[request][person, other]
            if rng.random() > 1 / (1 + math.exp(-margin)):
                one, other = other, one
            return Preference(request, responses[one], responses[other])

        train = [chosen(requests[i % (len(requests) - len(held))]) for i in range(CHOICES)]
        later = [chosen(held[i % len(held)]) for i in range(HELD)]
        people.append(Person(f"person {person}", tuple(train), (), tuple(later)))
    return Federation("made-up tastes", tuple(people))


def scores(
    share: str,
    federation: Federation,
    requests: dict[str, list[str]],
    seed: int,
    home: Path,
    benches: Benches,
) -> tuple[dict[str, Array], float]:
    """(request -> rewards [people, responses] by everybody's own model, its accuracy on held-out choices)."""
    settings = {
        "data.dataset": "made-up",
        "adapter.share": share,
        "privacy.secagg": False,
        "seed": seed,
        **recipe("senate", share),
        "model.max_tokens": 64,
        "federation.rounds": ROUNDS,
        "federation.cohort": PEOPLE // 2,
    }
    if settings.get("federation.warmup_rounds"):
        settings["federation.warmup_rounds"] = WARMUP
    config = RunConfig().changed(settings)
    cohort = cohort_size(config, len(federation.people))
    world = World(config, federation, benches, cohort, fleet_policy(config, cohort))
    directory = home / f"tastes-{share}-seed{seed}-{world.run.hex()[:8]}"
    if rundir.read_result(directory) is None:
        if not (directory / rundir.CONFIG).exists():
            rundir.create(directory, config)
        simulate(world, directory, command="a benchmark")
    journal = Journal(directory)
    try:
        found = journal.load()
    finally:
        journal.close()
    if found is None:
        raise SystemExit(f"{directory} has no checkpoint; remove it")
    bench = benches.of(config.plan("close", len(federation.people)))
    shared, start = bench.parts(announced_factors(bench.plan, found[1]))
    trainer = bench.trainer(start)
    own: list[Vector] = []
    for index in range(len(federation.people)):
        kept = Vault(directory / "agents" / f"{index:06d}").latest()
        own.append(start if kept is None or not bench.split.personal.size else kept[1].vector)
    made = {}
    for request, responses in requests.items():
        prepared = bench.model.prepare_texts([(request, response) for response in responses])
        rows: list[Array] = []
        for personal in own:
            if rows and not bench.split.personal.size:
                rows.append(rows[0])
                continue
            rows.append(trainer.score(shared, personal, prepared).astype(float))
        made[request] = np.stack(rows)
    result = rundir.read_result(directory)
    return made, float(result["accuracy"]["personal"]) if result else math.nan


def measure(drawn: Texts, seed: int, home: Path, benches: Benches) -> dict[str, Any]:
    """Chooser -> utility by the judge of what it takes, by n: means over people and requests."""
    learned = [text for own in drawn.learned.values() for text in own]
    tastes = Tastes.draw(learned, seed)
    federation = choosers(drawn, tastes, seed)
    truth = {request: tastes.utilities(responses) for request, responses in drawn.tested.items()}
    personal, accuracy = scores("A", federation, drawn.tested, seed, home, benches)
    common, common_accuracy = scores("AB", federation, drawn.tested, seed, home, benches)
    ways = {"personal": personal, "global": common, "oracle": truth}
    curves: dict[str, Any] = {
        way: [
            statistics.fmean(
                float(np.take_along_axis(truth[r], given[r][:, :n].argmax(axis=1)[:, None], axis=1).mean())
                for r in truth
            )
            for n in NUMBERS
        ]
        for way, given in ways.items()
    }
    curves["random"] = [statistics.fmean(float(truth[r][:, :n].mean()) for r in truth) for n in NUMBERS]
    wins = [
        np.take_along_axis(truth[r], personal[r].argmax(axis=1)[:, None], axis=1)
        - np.take_along_axis(truth[r], common[r].argmax(axis=1)[:, None], axis=1)
        for r in truth
    ]
    gained = np.concatenate(wins)
    curves["wins"] = float(((gained > 0) + 0.5 * (gained == 0)).mean())
    curves["accuracy"] = {"personal": accuracy, "global": common_accuracy}
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--home", type=Path, default=Path("runs/senate-fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    drawn, benches = texts(options.home), Benches()
    found = []
    for seed in seeds:
        found.append(measure(drawn, seed, options.home, benches))
        print(f"seed {seed}: {json.dumps(found[-1])}", flush=True)
    made: dict[str, Any] = {"numbers": NUMBERS, "seeds": seeds, "people": PEOPLE, "choices": CHOICES}
    made["requests"] = len(drawn.tested)
    for way in ("oracle", "personal", "global", "random"):
        columns = list(zip(*(one[way] for one in found), strict=True))
        made[way] = [{"mean": statistics.fmean(c), "se": standard_error(c)} for c in columns]
        print(
            f"{way:9s}",
            "  ".join(
                f"{n}: {row['mean']:.2f} ±{row['se'] or 0:.2f}"
                for n, row in zip(NUMBERS, made[way], strict=True)
            ),
        )
    ahead = [one["personal"][-1] - one["global"][-1] for one in found]
    made["personal_over_global_at_32"] = {"mean": statistics.fmean(ahead), "se": standard_error(ahead)}
    wins = [one["wins"] for one in found]
    made["wins_at_32"] = {"mean": statistics.fmean(wins), "se": standard_error(wins)}
    made["held_out_accuracy"] = {
        name: statistics.fmean(one["accuracy"][name] for one in found) for name in ("personal", "global")
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "best_of_n.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    try:
        draw(made, options.out / "best_of_n.png")
    except ImportError:
        print("matplotlib is not there: no figure")


def standard_error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def draw(made: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    looks = {
        "oracle": ("by the taste itself", "#999999", "", ":"),
        "personal": ("by the personal model", "#1f5fbf", "o", "-"),
        "global": ("by the global model", "#c2571a", "s", "-"),
        "random": ("at random", "#666666", "^", "-"),
    }
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    for way, (label, colour, marker, style) in looks.items():
        rows = made[way]
        axes.errorbar(
            NUMBERS, [r["mean"] for r in rows], [r["se"] or 0 for r in rows],
            color=colour, marker=marker, ls=style, ms=5, label=label,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(NUMBERS, [str(n) for n in NUMBERS])
    axes.set_xlabel("responses to choose from")
    axes.set_ylabel("utility of the chosen one to its person")
    axes.grid(True, color="#dddddd", lw=0.6)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
