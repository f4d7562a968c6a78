"""What the strength of a choice brings, on real people's: `python tests/experiments/strengths.py FILE`.

FILE is Jester5k.rda (docs/data.md). A pair is two jokes that a person rated differently, its strength by how
much. A joke is eight directions of the ratings of 2,500 people who are in nothing else, and its mean. From 20
pairs a linear model is fitted under a Gaussian prior for each of some other people, by each way to use
strengths; 100 pairs of jokes that are not among theirs judge it. Every second person chooses the prior's
precision, the others are judged.

Prints the part of pairs ranked right and the log loss, means over people, and the gain over no strengths with
its standard error.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from penchant.common.data.row_files import RowLog
from penchant.deploy.datasets.jester import read

Matrix = NDArray[np.float64]
Losses = Callable[[Tensor], Tensor]

MADE_FROM, JUDGED = 2500, 1500  # people
PAIRS, TEST_PAIRS, LEAST_RATED = 20, 100, 60
DIRECTIONS = 8
PRECISIONS = (0.1, 0.3, 1.0, 3.0, 10.0)


def ratings_of(path: Path) -> Matrix:
    """Ratings [people, jokes] in an order drawn by chance, NaN where there is none."""
    given, jokes = read(path, RowLog())
    place = {joke: number for number, joke in enumerate(jokes)}
    found = np.full((len(given), len(jokes)), np.nan)
    for row, own in enumerate(given.values()):
        for joke, rating in own.items():
            found[row, place[joke]] = rating
    np.random.default_rng(0).shuffle(found)
    return found


def features_of(ratings: Matrix) -> Matrix:
    """Jokes [jokes, directions + 1]: the first directions of ratings whose gaps they fill, and the mean."""
    mean, absent = np.nanmean(ratings, 0), np.isnan(ratings)
    filled = np.where(absent, mean, ratings)
    for _ in range(30):
        middle = filled.mean(0)
        people, scales, jokes = np.linalg.svd(filled - middle, full_matrices=False)
        low = (people[:, :DIRECTIONS] * scales[:DIRECTIONS]) @ jokes[:DIRECTIONS] + middle
        filled = np.where(absent, low, ratings)
    directions = jokes[:DIRECTIONS].T * scales[:DIRECTIONS] / math.sqrt(len(ratings)) / 5
    return np.concatenate([directions, ((mean - mean.mean()) / 5)[:, None]], axis=1)


def pairs_of(ratings: Matrix, features: Matrix) -> tuple[Tensor, Tensor, Tensor]:
    """Of people with ratings enough: differences [people, pairs, d] to learn from, their strengths, and
    differences to be judged by."""
    rng = np.random.default_rng(0)
    learned: list[Matrix] = []
    judged: list[Matrix] = []
    strengths: list[Matrix] = []
    for own in ratings:
        rated = rng.permutation(np.flatnonzero(np.isfinite(own)))
        if len(rated) < LEAST_RATED:
            continue
        sides = []
        for jokes, count in zip(np.array_split(rated, 2), (PAIRS, TEST_PAIRS), strict=True):
            every = [(i, j) for i, j in itertools.combinations(jokes, 2) if own[i] != own[j]]
            drawn = [every[place] for place in rng.permutation(len(every))[:count]]
            sides.append(np.array([(i, j) if own[i] > own[j] else (j, i) for i, j in drawn]))
        for side, kept in zip(sides, (learned, judged), strict=True):
            kept.append(features[side[:, 0]] - features[side[:, 1]])
        strengths.append(own[sides[0][:, 0]] - own[sides[0][:, 1]])
    return torch.tensor(np.array(learned)), torch.tensor(np.array(strengths)), torch.tensor(np.array(judged))


def scaled(strengths: Tensor) -> Losses:
    """Each choice counts by its strength over the person's mean."""
    weights = strengths / strengths.mean(1, keepdim=True)
    return lambda margins: weights * softplus(-margins)


def shifted(strengths: Tensor, much: float) -> Losses:
    """The margin in the loss of Llama 2: `much` for a choice of the person's mean strength."""
    ahead = much * strengths / strengths.mean(1, keepdim=True)
    return lambda margins: softplus(-(margins - ahead))


def adjacent(strengths: Tensor, levels: int) -> Losses:
    """Adjacent-categories logits of so many equally filled levels a person, whose scores are 1, 2, 3, … over
    the mean, and as often at equal scores as the person said them."""
    level = strengths.argsort(1).argsort(1) * levels // strengths.shape[1]
    scores = torch.arange(1, levels + 1, dtype=torch.double)
    often = torch.stack([(level == one).double().mean(1) for one in range(levels)], 1)  # [people, levels]
    scale = (often * scores).sum(1)[:, None]
    mine, all_scores = scores[level] / scale, (scores / scale)[:, None, :]

    def losses(margins: Tensor) -> Tensor:
        half = margins[:, :, None] * all_scores / 2
        whole = torch.logsumexp(torch.cat([half, -half], 2) + often.log()[:, None, :].repeat(1, 1, 2), dim=2)
        return whole - mine * margins / 2

    return losses


def fitted(pairs: Tensor, losses: Losses, precision: float) -> Tensor:
    """Everybody's most probable weights [people, d] under N(0, 1 / precision)."""
    weights = torch.zeros(len(pairs), pairs.shape[2], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        margins = torch.einsum("npd,nd->np", pairs, weights)
        loss = losses(margins).sum() + precision / 2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return weights.detach()


def judge(pairs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(part of pairs ranked right, log loss) of everybody."""
    margins = torch.einsum("npd,nd->np", pairs, weights)
    return (margins > 0).double().mean(1), softplus(-margins).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    ratings = ratings_of(parser.parse_args().file)
    features = features_of(ratings[:MADE_FROM])
    pairs, strengths, test = pairs_of(ratings[MADE_FROM : MADE_FROM + JUDGED], features)
    ways: dict[str, Losses] = {"none": lambda margins: softplus(-margins), "scaled": scaled(strengths)}
    ways |= {f"margin {much:g}": shifted(strengths, much) for much in (0.5, 1.0, 2.0)}
    ways |= {f"adjacent, {levels} levels": adjacent(strengths, levels) for levels in (3, 5, 10)}
    choosing = torch.arange(len(pairs)) % 2 == 0
    print(f"{int((~choosing).sum())} people are judged")
    plain = None
    for name, losses in ways.items():
        found = [judge(test, fitted(pairs, losses, precision)) for precision in PRECISIONS]
        right, loss = max(found, key=lambda one: float(one[0][choosing].mean()))
        plain = right if plain is None else plain
        gain = (right - plain)[~choosing]
        error = float(gain.std() / math.sqrt(len(gain)))
        print(
            f"{name:20s} {right[~choosing].mean():.4f}  log loss {loss[~choosing].mean():.4f}"
            f"  gain {gain.mean():+.4f} ± {error:.4f}"
        )


if __name__ == "__main__":
    main()
