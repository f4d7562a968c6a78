"""Jester5k: 5,000 people's ratings of 100 jokes, from -10 to 10.

Read from ``Jester5k.rda`` of the R package recommenderlab by PyPI's ``rdata``: a sparse matrix of ratings
(people by jokes) and the jokes' texts. Free for research with a citation of Goldberg, Roeder, Gupta and
Perkins, "Eigentaste", Information Retrieval 2001.
"""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes, choose_people, people_from_pairs, seeded, wanted_pairs
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared

__all__ = ["LOADER", "least_apart", "prepare", "read"]

LEAST = 2.0
"""Jokes are compared if their ratings differ by as much or more: the slider was moved, not hit."""
CAVEATS = (
    "Jester: jokes are split at random: people are tested on jokes that nobody was trained on.",
    "Jester: a pair joins two ratings that nobody compared.",
    f"Jester: only jokes whose ratings differ by {LEAST:g} or more, on a scale from -10 to 10, are compared.",
)


def prepare(path: Path, sizes: Sizes, seed: int, bad_rows: BadRows, clients: int | None) -> Prepared:
    """Pairs of the people who are drawn; jokes are split for all alike, the same for every seed."""
    log = RowLog(bad_rows)
    ratings, jokes = read(path, log)
    report = log.finish(path)
    shuffled = sorted(jokes, key=lambda joke: seeded(0, "jester", joke).random())
    parts = sizes.split(shuffled)
    pairs: dict[str, list[Preference]] = {}
    for person in choose_people(list(ratings), clients, seed):
        pairs[person] = []
        for part, wanted in wanted_pairs(sizes).items():
            here = {joke: score for joke, score in ratings[person].items() if parts.part_of[joke] == part}
            drawn = least_apart(here, wanted, seeded(seed, person, part))
            pairs[person] += [Preference("", jokes[better], jokes[worse]) for better, worse in drawn]
    name_of = {text: joke for joke, text in jokes.items()}
    people, shortfalls, _ = people_from_pairs(
        pairs,
        sizes,
        seed,
        items_of=lambda pair: (name_of[pair.chosen], name_of[pair.rejected]),
        parts=parts,
    )
    return Prepared("jester", people, shortfalls, CAVEATS, report)


def least_apart(
    scores: Mapping[str, float], count: int, rng: random.Random, least: float = LEAST
) -> list[tuple[str, str]]:
    """Up to `count` distinct pairs (better, worse) whose scores differ by `least` or more, in sweeps: within
    one, no item is used twice."""
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    while len(pairs) < count:
        waiting, before = list(scores), len(pairs)
        rng.shuffle(waiting)
        while waiting and len(pairs) < count:
            one = waiting.pop()
            other = next(
                (
                    o
                    for o in waiting
                    if abs(scores[one] - scores[o]) >= least and frozenset((one, o)) not in pairs
                ),
                None,
            )
            if other is not None:
                waiting.remove(other)
                better, worse = (one, other) if scores[one] > scores[other] else (other, one)
                pairs[frozenset((one, other))] = (better, worse)
        if len(pairs) == before:  # there are no more
            break
    return list(pairs.values())


def read(path: Path, log: RowLog) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """(person -> joke -> rating, joke -> text).

    Raises:
        DataError: there is no such file, it can't be read, or `rdata` is not installed.
    """
    file = path / "Jester5k.rda" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"there is no file {file}; give Jester5k.rda of the R package recommenderlab")
    data = _objects(file)
    try:
        return _ratings(data["Jester5k"], log), _texts(data["Jester5k"], data["JesterJokes"])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{file} does not hold what Jester5k.rda holds ({type(error).__name__})") from None


def _objects(file: Path) -> Any:
    try:
        rdata = importlib.import_module("rdata")
    except ImportError:
        raise DataError("Jester5k.rda is a file of R's, which needs: pip install 'penchant[rdata]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that it has no converter for
        try:
            return rdata.conversion.convert(rdata.parser.parse_file(file))
        except Exception as error:  # whatever a foreign file makes it raise
            raise DataError(f"{file} can't be read as a file of R's ({type(error).__name__})") from None


def _ratings(matrix: Any, log: RowLog) -> dict[str, dict[str, float]]:
    """Of a realRatingMatrix: columns of a sparse matrix (i: rows, p: where each column begins)."""
    sparse = matrix.data
    people, jokes = ([str(name) for name in names] for names in sparse.Dimnames)
    rated: dict[str, dict[str, float]] = {person: {} for person in people}
    for column, joke in enumerate(jokes):
        for place in range(int(sparse.p[column]), int(sparse.p[column + 1])):
            log.met()
            score = float(sparse.x[place])
            if not -10 <= score <= 10:
                log.reject(f"rating {place + 1}", "a rating that is not from -10 to 10")
                continue
            rated[people[int(sparse.i[place])]][joke] = score
    return rated


def _texts(matrix: Any, texts: Any) -> dict[str, str]:
    """Joke -> its text; texts are in the order of the matrix's columns."""
    names = matrix.data.Dimnames[1]
    return {str(name): " ".join(str(text).split()) for name, text in zip(names, texts, strict=True)}


LOADER = DatasetLoader(
    name="jester",
    about="5,000 people's ratings of 100 jokes (Jester5k); needs its file, and the extra rdata.",
    prepare=lambda asked: prepare(
        asked.path or Path(), asked.sizes, asked.seed, asked.bad_rows, asked.clients
    ),
    needs_folder=True,
    chooses_people=True,
)
