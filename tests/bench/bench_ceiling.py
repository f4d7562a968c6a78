"""What bounds a model of Senate: `python tests/bench/bench_ceiling.py [--seeds 0,1,2,3,4] [--json FILE]`.

Two oracles, judged on the very pairs on which `penchant simulate --dataset senate` judges everybody:

- *all votes*: sees how everybody voted on every roll call of the training part (some 300 votes a person
  instead of 20 pairs), in one place. The votes' first directions are read off the frozen embedding of the
  roll calls' texts by ridge regression. How many directions, tokens and how much ridge: chosen on the
  validation roll calls. What is missing from here to 1 is what the texts, as the backbone reads them, don't
  say of roll calls that are yet to come.
- *known positions*: sees the votes on the test roll calls themselves and keeps their first k directions: the
  most that any model of rank k could reach, had it understood the texts completely.

Prints macro accuracy on test pairs, mean and standard error over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penchant.common.adapters import Effective
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.preferences import Federation, Preference
from penchant.common.reward import load_reward_model
from penchant.common.splits import split_items
from penchant.deploy import datasets
from penchant.deploy.datasets import senate

Matrix = NDArray[np.float64]

TOKENS = (16, 24, 64)
RIDGES = (0.1, 0.3, 1.0, 3.0)
DIRECTIONS = (1, 2, 4)


class Votes:
    """Votes on contested roll calls, by part: [roll calls, people], yea 1, nay -1, neither 0."""

    def __init__(self) -> None:
        data = senate.read()
        contested = data.contested()
        parts = split_items(contested)
        self.items = {
            part: [item for item in contested if parts.part_of[item] == part]
            for part in ("train", "validation", "test")
        }
        self.texts = {item: senate.worded(data.roll_calls[item]) for item in contested}
        self.people = {name: column for column, name in enumerate(data.people)}
        signs = {"+": 1.0, "-": -1.0, ".": 0.0}
        self.of = {
            part: np.array([[signs[line[item]] for line in data.votes] for item in items])
            for part, items in self.items.items()
        }

    def texts_of(self, part: str) -> list[str]:
        return [self.texts[item] for item in self.items[part]]


def directions(votes: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """(roll calls' positions [n, k], people's weights [k, people]): the first singular vectors of the votes
    about each person's mean."""
    cast = votes != 0
    means = votes.sum(0) / np.maximum(cast.sum(0), 1)
    left, values, right = np.linalg.svd(np.where(cast, votes - means, 0.0), full_matrices=False)
    return left[:, :count] * values[:count], right[:count]


def ridge(x: Matrix, y: Matrix, strength: float) -> Callable[[Matrix], Matrix]:
    """The linear map x [n, d] -> y [n, k] with an L2 penalty, through the kernel [n, n]."""
    mean = x.mean(0)
    centred = x - mean
    dual = np.linalg.solve(centred @ centred.T + strength * np.eye(len(x)), y)
    return lambda z: (z - mean) @ (centred.T @ dual)


def embeddings(texts: Sequence[str], tokens: int) -> Matrix:
    """The frozen backbone's, pooled and of length 1: [n, d]."""
    model = load_reward_model(
        ModelConfig(max_tokens=tokens, truncation="right"), AdapterConfig(share="lore"), device="cpu"
    )
    prepared = model.prepare_texts([("", text) for text in texts])
    pooled = model.tail.embed(prepared.packed, Effective({}, torch.empty(0))).double()
    return np.asarray(torch.nn.functional.normalize(pooled, dim=1).numpy())


def accuracy(scores: Matrix, votes: Votes, part: str, federation: Federation) -> float:
    """Macro accuracy of scores [roll calls of the part, people] on everybody's pairs; a tie is wrong."""
    row = {text: scores[i] for i, text in enumerate(votes.texts_of(part))}

    def correct(name: str, pairs: Sequence[Preference]) -> float:
        column = votes.people[name]
        return statistics.fmean(row[pair.chosen][column] > row[pair.rejected][column] for pair in pairs)

    people = federation.people
    return statistics.fmean(correct(p.name, p.test if part == "test" else p.validation) for p in people)


def all_votes(votes: Votes, federations: Sequence[Federation]) -> dict[str, Any]:
    """The first oracle: its settings from validation, then its accuracy of each seed on test pairs."""
    x = {
        tokens: {part: embeddings(votes.texts_of(part), tokens) for part in votes.items} for tokens in TOKENS
    }

    def scores(tokens: int, strength: float, count: int, part: str) -> Matrix:
        positions, weights = directions(votes.of["train"], count)
        return ridge(x[tokens]["train"], positions, strength)(x[tokens][part]) @ weights

    def on(part: str, setting: tuple[int, float, int]) -> list[float]:
        return [accuracy(scores(*setting, part), votes, part, federation) for federation in federations]

    best = max(
        itertools.product(TOKENS, RIDGES, DIRECTIONS), key=lambda s: statistics.fmean(on("validation", s))
    )
    chosen = dict(zip(("tokens", "ridge", "directions"), best, strict=True))
    return {"oracle": "all votes", **chosen, "validation": on("validation", best), "test": on("test", best)}


def known_positions(votes: Votes, federations: Sequence[Federation], count: int) -> dict[str, Any]:
    """The second oracle, of rank `count`."""
    positions, weights = directions(votes.of["test"], count)
    reached = [accuracy(positions @ weights, votes, "test", federation) for federation in federations]
    return {"oracle": "known positions", "directions": count, "test": reached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    federations = [datasets.load("senate", seed=int(seed)) for seed in chosen.seeds.split(",")]
    votes = Votes()
    rows = [all_votes(votes, federations)]
    rows += [known_positions(votes, federations, count) for count in DIRECTIONS]
    for row in rows:
        settings = ", ".join(f"{key} {row[key]}" for key in ("tokens", "ridge", "directions") if key in row)
        figures = "  ".join(f"{part} {spoken(row[part])}" for part in ("validation", "test") if part in row)
        print(f"{row['oracle']:16s} ({settings}): {figures}")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def spoken(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
