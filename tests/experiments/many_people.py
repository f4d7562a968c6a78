"""A thousand people to learn from: readers of Jester's jokes, and made-up ones over Senate's roll calls.

Jester: Goldberg, Roeder, Gupta and Perkins, "Eigentaste", Information Retrieval 2001; a folder with
`Jester5k.rda`, as the R package recommenderlab carries it, which is not part of this repository.
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np
import torch
from numpy.typing import NDArray
from support.teacher import Teacher

from penchant.common.config import ModelConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.data.splits import Sizes, choose_people, people_from_ratings, seeded
from penchant.common.model.backbone import load_backbone
from penchant.deploy.datasets import senate

FEATURES, RANK, SHARPNESS = 16, 2, 3.0
"""Of made-up people: directions of the texts' embeddings that tastes are about, rank of all tastes together,
standard deviation of a choice's margin."""
Matrix = NDArray[np.float64]


def jester(folder: Path, people: int, sizes: Sizes, seed: int) -> Federation:
    """People's choices between jokes by their ratings; jokes are split, in an order drawn from the seed."""
    import rdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes of R that rdata does not know
        stored: Any = rdata.read_rda(str(folder / "Jester5k.rda"))
    table = stored["Jester5k"].data
    names = [str(name) for name in table.Dimnames[0]]
    ratings: dict[str, dict[int, float]] = {name: {} for name in names}
    for joke, (first, last) in enumerate(zip(table.p, table.p[1:], strict=False)):
        for row, rating in zip(table.i[first:last], table.x[first:last], strict=True):
            ratings[names[row]][joke] = float(rating)
    texts = dict(enumerate(map(str, stored["JesterJokes"])))
    order = list(texts)
    seeded(seed, "jokes").shuffle(order)
    drawn = choose_people(names, people * 6 // 5, seed)  # some have too few ratings
    found, _ = people_from_ratings(
        {name: ratings[name] for name in drawn}, texts, sizes.split(order), sizes, seed
    )
    return Federation("jester", tuple(found[:people]))


def taught(people: int, sizes: Sizes, seed: int) -> Federation:
    """Made-up people who choose between roll calls by Bradley and Terry, with tastes of one low rank.

    A text's features are its frozen embedding's first directions, standardised.
    """
    data = senate.read()
    contested = data.contested()
    texts = list(dict.fromkeys(senate.worded(data.roll_calls[item]) for item in contested))
    features = _features(texts)
    parts = sizes.split(list(range(len(texts))))
    tastes = Teacher.draw(people, FEATURES, 1, RANK, sharpness=SHARPNESS / math.sqrt(2), seed=seed).parameters
    made = []
    for number in range(people):
        own = np.random.default_rng([seed, 2, number])
        utilities = features @ tastes[number, :, 0]
        chosen = {
            part: _choices(utilities, [i for i in range(len(texts)) if parts.part_of[i] == part], count, own)
            for part, count in _wanted(sizes).items()
        }
        pairs = {
            part: tuple(Preference("", texts[one], texts[other]) for one, other in rows)
            for part, rows in chosen.items()
        }
        made.append(Person(f"person {number}", pairs["train"], pairs["validation"], pairs["test"]))
    return Federation("taught", tuple(made))


def _wanted(sizes: Sizes) -> dict[str, int]:
    return {"train": sizes.pairs, "validation": sizes.validation_pairs, "test": sizes.test_pairs}


def _choices(
    utilities: Matrix, items: list[int], count: int, draw: np.random.Generator
) -> list[tuple[int, int]]:
    """(chosen, rejected) of `count` different pairs of `items`."""
    found: dict[frozenset[int], tuple[int, int]] = {}
    while len(found) < count:
        one, other = (int(item) for item in draw.choice(items, 2, replace=False))
        margin = utilities[one] - utilities[other]
        if draw.random() > 1 / (1 + np.exp(-margin)):
            one, other = other, one
        found.setdefault(frozenset((one, other)), (one, other))
    return list(found.values())


def _features(texts: list[str]) -> Matrix:
    """[texts, FEATURES]"""
    backbone = load_backbone(ModelConfig())
    found = []
    with torch.no_grad():
        for first in range(0, len(texts), 32):
            batch = backbone.tokenizer(
                texts[first : first + 32], padding=True, truncation=True, max_length=24, return_tensors="pt"
            )
            states = backbone.model(**batch).last_hidden_state
            kept = batch["attention_mask"][:, :, None]
            found.append(((states * kept).sum(1) / kept.sum(1)).double().numpy())
    centred = np.concatenate(found)
    centred = centred - centred.mean(axis=0)
    left, _, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(left[:, :FEATURES] * np.sqrt(len(texts)))
