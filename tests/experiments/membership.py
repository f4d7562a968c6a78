"""Was somebody in the federation? `python tests/experiments/membership.py --json FILE [--shadows 48]`.

Share lore, over the people of `--people`: `senate`, or `taught` and `taught10000`, as many as that of
made-up ones (many_people.py). Groups are of 1,000, so that what the server sees is one sum; of the ten
thousand they are of 256 (the default), and only what comes of all sums together is judged, as a release is.
Each of `--shadows` federations trains on a half of the people, drawn anew; a server that knows somebody's
choices asks whether they are in. It sees the factors of every round, and so the sums.
Two statistics for each person and federation:

- *sums*: the inner product of what the person would have sent in each round with what the sum said, the best
  that one direction can tell; the attacker repeats the person's training to know it;
- *final factors*: minus the mean loss of the person's choices under a model fitted on the last factors.

Each is judged by the likelihood ratio of two Gaussians, fitted on the other federations with the person and
without (Carlini, Chien, Nasr, Song, Terzis and Tramer, "Membership inference attacks from first principles",
IEEE S&P 2022, online attack with a common variance). Reported are the area under the curve and the rate of
hits at 0.1 % false alarms, over all people and federations, with 95 % intervals by resampling people.
--json keeps the figures by people; --page FILE writes the table of all that it holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.data.preferences import Person
from penchant.common.data.splits import Sizes
from penchant.deploy import datasets
from penchant.deploy.recipes import recipe

from fishing import auc  # isort: skip
from many_people import taught  # isort: skip
from marked_page import write  # isort: skip
from noised_fleet import Fleet, Pairs, ring_sum  # isort: skip

EPSILON, DELTA = 8.0, 1e-5
ROUNDS, CLIP, RATE, FIT = 10, 1.0, 3.0, 10  # what private_utility.py finds best at epsilon 8
STATISTICS = ("sums", "final factors")
FALSE_ALARMS = 0.001
PEOPLE = {"senate": 0, "taught": 1000, "taught10000": 10_000}
"""Names, and how many of those who are made up."""
GROUP = {"senate": 1000, "taught": 1000, "taught10000": 256}
SIZES = Sizes(pairs=20, validation_pairs=1, test_pairs=1)  # of those who are made up
Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]


def setting(epsilon: float, group: int = 1000) -> RunConfig:
    noised = {"privacy.dp_epsilon": epsilon, "privacy.dp_delta": DELTA} if epsilon else {}
    return RunConfig().changed(
        recipe("senate", "lore")
        | noised
        | {
            "data.dataset": "senate",
            "adapter.share": "lore",
            "federation.rounds": ROUNDS,
            "federation.clip": CLIP,
            "federation.warmup_rounds": 0,
            "federation.server_optimizer": "fedavg",
            "federation.server_lr": RATE,
            "privacy.group_size": group,
            "training.final_fit_epochs": FIT,
        }
    )


def shadow(
    config: RunConfig, people: Sequence[Person], inside: Flags, cache: ModelCache, seed: int
) -> Matrix:
    """Both statistics of everybody, [2, people], for the federation of those who are inside."""
    members = np.flatnonzero(inside)
    config = config.changed({"federation.cohort": len(members)})
    layout = Fleet.of(config, [people[i] for i in members], cache).layout
    everybody = Fleet.of(config, people, cache)  # who is outside as well: as they would have trained
    pairs = Pairs.of(everybody.planned, [person.train for person in people])
    state, personal = everybody.start()
    entropy = SeededEntropy(seed.to_bytes(32, "big"), f"shadow {config.privacy.dp_epsilon}")
    told = np.zeros(len(people))
    for _ in range(config.federation.rounds):
        sent, personal = everybody.round(state.factors, personal, pairs)
        seen = layout.read(ring_sum(layout, [sent[i] for i in members], entropy), len(members)).mean
        updates = np.stack([part.update for part in sent]).astype(np.float64)
        told += updates @ seen * np.minimum(1.0, CLIP / np.linalg.norm(updates, axis=1))
        state = state.moved(seen, config.federation)
    own = everybody.fitted(state.factors, torch.zeros_like(personal), pairs)
    margins = -everybody.losses(state.factors, own, pairs)
    return np.stack((told, margins))


def likelihood_ratios(values: Matrix, inside: Flags) -> Matrix:
    """log p(value | in) - log p(value | out) of each, by the other federations; both [shadows, people]."""
    scores = np.empty_like(values)
    for at in range(len(values)):
        others = np.arange(len(values)) != at
        within = np.where(inside[others], values[others], np.nan)
        without = np.where(~inside[others], values[others], np.nan)
        centres = np.nanmean(within, axis=0), np.nanmean(without, axis=0)
        spread = (np.nanvar(within, axis=0) + np.nanvar(without, axis=0)) / 2 + 1e-30
        distances = [(values[at] - centre) ** 2 for centre in centres]
        scores[at] = (distances[1] - distances[0]) / (2 * spread)
    return scores


def hits_at(scores: Matrix, inside: Flags, rate: float) -> float:
    """The part of those inside who score above all but a `rate` of those outside."""
    return float((scores[inside] > np.quantile(scores[~inside], 1 - rate)).mean())


def judged(values: Matrix, inside: Flags) -> dict[str, tuple[float, float, float]]:
    """(figure, lower, upper) of both figures of one statistic; values and inside are [shadows, people]."""
    scores = likelihood_ratios(values, inside)
    draw = np.random.default_rng(0)
    samples = [np.arange(values.shape[1])]
    samples += [draw.integers(0, values.shape[1], values.shape[1]) for _ in range(200)]
    figures = {
        "auc": [auc(scores[:, who].ravel(), inside[:, who].ravel()) for who in samples[:41]],
        "hits": [hits_at(scores[:, who].ravel(), inside[:, who].ravel(), FALSE_ALARMS) for who in samples],
    }
    return {
        name: (found[0], *map(float, np.quantile(found[1:], (0.025, 0.975))))  # type: ignore[misc]
        for name, found in figures.items()
    }


def people_of(name: str) -> Sequence[Person]:
    """The people of one of `PEOPLE`."""
    if count := PEOPLE[name]:
        return taught(count, SIZES, 0).people
    return datasets.configured(setting(0.0).data, 0).people


def measured(path: Path, people: Sequence[Person], group: int, shadows: int) -> dict[str, list[Any]]:
    """By epsilon: for each shadow who is inside and both statistics; kept in `path`. group: people a sum."""
    found: dict[str, list[Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    cache = ModelCache()
    for epsilon in (EPSILON, 0.0):
        rows = found.setdefault(f"{epsilon:g}", [])
        config = setting(epsilon, group)
        for seed in range(len(rows), shadows):
            order = np.random.default_rng([seed, 5]).permutation(len(people))
            inside = np.zeros(len(people), bool)
            inside[order[: len(people) // 2]] = True
            told = shadow(config, people, inside, cache, seed)
            rows.append([inside.astype(int).tolist(), [[float(f"{v:.6g}") for v in row] for row in told]])
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")
            print(epsilon, seed, flush=True)
    return found


def summary(found: dict[str, list[Any]]) -> dict[str, Any]:
    """The figures of the table by epsilon and statistic."""
    told: dict[str, Any] = {}
    for epsilon, rows in found.items():
        if len(rows) < 8:
            continue
        inside = np.array([row[0] for row in rows], bool)
        values = np.array([row[1] for row in rows])
        told[epsilon] = {"shadows": len(rows)} | {
            name: judged(values[:, at], inside) for at, name in enumerate(STATISTICS)
        }
    return told


def table(told: dict[str, dict[str, Any]]) -> list[str]:
    """What was found over all people, in Markdown."""
    lines = [
        "| people | the server judges by | noise | area under the curve | hits at 0.1 % false alarms |",
        "|---|---|---|---|---|",
    ]
    for people, found in told.items():
        for name in (
            STATISTICS if PEOPLE[people] <= GROUP[people] else STATISTICS[1:]
        ):  # sums are of one group
            for epsilon, title in (("0", "none"), (f"{EPSILON:g}", f"ε = {EPSILON:g}")):
                lines.append(f"| {people} | {name} | {title} | {cells(found.get(epsilon, {}).get(name))} |")
    return lines


def cells(own: dict[str, tuple[float, float, float]] | None) -> str:
    """Both figures with their intervals; dashes for nothing."""
    if own is None:
        return "– | –"
    area, hits = "{:.3f} ({:.3f} … {:.3f})", "{:.1%} ({:.1%} … {:.1%})"
    return f"{area.format(*own['auc'])} | {hits.format(*own['hits'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", default="senate", choices=PEOPLE)
    parser.add_argument("--shadows", type=int, default=48)
    parser.add_argument("--work", type=Path, help="where each shadow's statistics are kept, to go on from")
    parser.add_argument("--json", type=Path, required=True, help="the file for the figures")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true", help="compute nothing, show what --json holds")
    given = parser.parse_args()
    told: dict[str, Any] = json.loads(given.json.read_text("utf-8")) if given.json.exists() else {}
    if not given.only_show:
        kept = given.work or given.json.with_suffix(f".{given.people}.shadows.json")
        found = measured(kept, people_of(given.people), GROUP[given.people], given.shadows)
        told[given.people] = summary(found)
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    lines = table(told)
    print("\n".join(lines))
    if given.page:
        write(given.page, "membership", lines)


if __name__ == "__main__":
    main()
