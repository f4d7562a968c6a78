"""Many people to learn from: readers of Jester's jokes, judges of arguments, and made-up ones over Senate's
roll calls.

Neither of the first two is part of this repository. Jester: Goldberg, Roeder, Gupta and Perkins,
"Eigentaste", Information Retrieval 2001; a folder with `Jester5k.rda`, as the R package recommenderlab
carries it. Arguments: Habernal and Gurevych, "Which argument is more convincing?", ACL 2016; a folder with
the XML files of UKPConvArg1, "full".
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np
import torch
from numpy.typing import NDArray
from support.teacher import Teacher

from penchant.common.config import ModelConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.data.splits import Sizes, choose_people, people_from_pairs, people_from_ratings, seeded
from penchant.common.model.backbone import load_backbone
from penchant.deploy.datasets import senate

FEATURES, RANK, SHARPNESS = 16, 2, 3.0
"""Of made-up people: directions of the texts' embeddings that tastes are about, rank of all tastes together,
standard deviation of a choice's margin."""
Matrix = NDArray[np.float64]


def jester(folder: Path, people: int, sizes: Sizes, seed: int, *, known: bool = False) -> Federation:
    """People's choices between jokes by their ratings.

    known: everybody's jokes are split in an order of their own, so that test jokes are new to the person, but
    known to others; else one order, drawn from the seed, splits them for all, and they are new to everybody.
    """
    ratings, texts = _jester(folder)
    names = list(ratings)
    drawn = choose_people(names, min(people * 6 // 5, len(names)), seed)  # some have too few ratings
    found: list[Person] = []
    for name in drawn:
        order = list(texts)
        seeded(seed, "jokes", *([name] if known else [])).shuffle(order)
        found += people_from_ratings({name: ratings[name]}, texts, sizes.split(order), sizes, seed)[0]
    return Federation("jester", tuple(found[:people]))


@functools.cache
def _jester(folder: Path) -> tuple[dict[str, dict[int, float]], dict[int, str]]:
    """Ratings by reader and joke, and the jokes."""
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
    return ratings, dict(enumerate(map(str, stored["JesterJokes"])))


def arguments(folder: Path, least: int, sizes: Sizes, seed: int) -> Federation:
    """People's strict choices of the more convincing of two arguments; of those who made `least` or more.

    Topics and sides (a file each) are split, in an order drawn from the seed, so that nobody is tested on an
    argument that anyone was trained on.
    """
    own: dict[str, list[Preference]] = defaultdict(list)
    topic_of: dict[str, str] = {}
    files = sorted(folder.glob("*.xml"))
    for file in files:
        for pair in ElementTree.parse(file).getroot():
            first, second = (pair.findtext(f"{side}/text", "").strip() for side in ("arg1", "arg2"))
            topic_of[first] = topic_of[second] = file.stem
            for choice in pair.iter("mTurkAssignment"):
                who, value = choice.findtext("turkID", ""), choice.findtext("value", "")
                if value in ("a1", "a2") and first != second:
                    texts = (first, second) if value == "a1" else (second, first)
                    own[who].append(Preference("", *texts))
    kept = {who: pairs for who, pairs in sorted(own.items()) if len(pairs) >= least}
    order = [file.stem for file in files]
    seeded(seed, "topics").shuffle(order)
    found, _, _ = people_from_pairs(
        kept,
        sizes,
        seed,
        items_of=lambda pair: tuple({topic_of[pair.chosen], topic_of[pair.rejected]}),
        parts=sizes.split(order),
    )
    return Federation("arguments", tuple(found))


def taught(people: int, sizes: Sizes, seed: int, agreement: float = 0.0) -> Federation:
    """Made-up people who choose between roll calls by Bradley and Terry, with tastes of one low rank.

    A text's features are its frozen embedding's first directions, standardised. agreement: the part of a
    margin's variance that comes of a taste that all people have, beside their own; 0 to 1.
    """
    return _taught(people, sizes, seed, agreement)[0]


def oracle(people: int, sizes: Sizes, seed: int, agreement: float = 0.0) -> float:
    """The mean over `taught` people of the part of their test pairs that their own taste ranks right: it
    falls short of 1 by the luck of their choices."""
    return statistics.fmean(_taught(people, sizes, seed, agreement)[1])


def _taught(people: int, sizes: Sizes, seed: int, agreement: float) -> tuple[Federation, list[float]]:
    """The people, and what each one's taste ranks right of the test pairs."""
    data = senate.read()
    contested = data.contested()
    texts = list(dict.fromkeys(senate.worded(data.roll_calls[item]) for item in contested))
    features = _features(tuple(texts))
    parts = sizes.split(list(range(len(texts))))
    sharpness = SHARPNESS / math.sqrt(2)
    tastes = Teacher.draw(people, FEATURES, 1, RANK, sharpness=sharpness, seed=seed).parameters[:, :, 0]
    if agreement:
        common = np.random.default_rng([seed, 3]).standard_normal(FEATURES)
        common *= sharpness / np.linalg.norm(common)
        tastes = math.sqrt(1 - agreement) * tastes + math.sqrt(agreement) * common
    made: list[Person] = []
    right: list[float] = []
    for number in range(people):
        own = np.random.default_rng([seed, 2, number])
        utilities = features @ tastes[number]
        chosen = {
            part: _choices(utilities, [i for i in range(len(texts)) if parts.part_of[i] == part], count, own)
            for part, count in _wanted(sizes).items()
        }
        pairs = {
            part: tuple(Preference("", texts[one], texts[other]) for one, other in rows)
            for part, rows in chosen.items()
        }
        made.append(Person(f"person {number}", pairs["train"], pairs["validation"], pairs["test"]))
        right.append(statistics.fmean(utilities[one] > utilities[other] for one, other in chosen["test"]))
    return Federation("taught", tuple(made)), right


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


@functools.cache
def _features(texts: tuple[str, ...]) -> Matrix:
    """[texts, FEATURES]"""
    backbone = load_backbone(ModelConfig())
    found = []
    with torch.no_grad():
        for first in range(0, len(texts), 32):
            batch = backbone.tokenizer(
                list(texts[first : first + 32]),
                padding=True,
                truncation=True,
                max_length=24,
                return_tensors="pt",
            )
            states = backbone.model(**batch).last_hidden_state
            kept = batch["attention_mask"][:, :, None]
            found.append(((states * kept).sum(1) / kept.sum(1)).double().numpy())
    centred = np.concatenate(found)
    centred = centred - centred.mean(axis=0)
    left, _, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(left[:, :FEATURES] * np.sqrt(len(texts)))
