"""From choices to training, validation and test pairs.

*The split is by time and by item, and the same for everybody.* Items (roll calls, films, prompts)
are put in order of time; the first 75 % are for training, the last 25 % for testing, and the last
15 % of the training part are held out for validation, unless no validation pairs are asked for. No
item is on two sides, for anyone: a shared factor must not have seen through one person what it is
tested on with another.

Where items have no common clock (people answer prompts at their own times), an item's time is the
mean of its relative positions, from 0 to 1, in the orders of the people who met it, and items count
as often as they were met (:func:`item_times`).

*Pairs* come from item-level votes or ratings (:func:`people_from_ratings`: higher ≻ lower) or are
given as pairs already (:func:`people_from_pairs`). Items are reused as little as possible.

*Draws are seeded for each person and part by name*, so that adding people, or asking for more pairs
of one part, changes nobody else's and no other part.

*Ties* are split like choices. What is asked for is choices; of the ties of a part as great a share is
drawn as of its choices.

*People who can't give as many pairs as asked* are kept with what they have, if that is at least one
training and one test pair; the others are left out. Both are reported (:class:`Shortfall`) and named
in the federation's caveats, never silently.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, TypeVar

from penchant.common.data.preferences import Person, Preference, comparison_of, each_once, without_ties
from penchant.common.errors import DataError

__all__ = [
    "Cause",
    "OwnParts",
    "Shortfall",
    "Sizes",
    "SplitParts",
    "choose_people",
    "form_pairs",
    "item_times",
    "own_items",
    "people_from_pairs",
    "people_from_parts",
    "people_from_ratings",
    "seeded",
    "split_items",
    "wanted_pairs",
]

Item = TypeVar("Item", bound=Hashable)

TRAINING_SHARE = 0.75
VALIDATION_SHARE = 0.15
_PARTS = ("train", "validation", "test")
FEWEST_TEST_PAIRS = 40
"""With fewer test pairs a person's accuracy is too coarse; the shortfall is reported."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Pairs of each part that every person is asked for; `until`: of all items, in order of time, those
    that are there yet. With less than 1, learning and testing both happen in the past, and what follows
    is not touched: so settings are chosen on several pasts (rolling origin, Tashman 2000).

    Raises:
        DataError: a number is out of range.
    """

    pairs: int = 20
    validation_pairs: int = 20
    test_pairs: int = 60
    until: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("validation_pairs", 0), ("test_pairs", 1)):
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.until <= 1:
            raise DataError(f"until is {self.until:g}; it must lie above 0, and be at most 1")

    def split(self, items: Sequence[Hashable], weights: Sequence[float] | None = None) -> SplitParts:
        """Items, oldest first, into parts; nothing is held out where no validation pairs are wanted of it."""
        held_out = VALIDATION_SHARE if self.validation_pairs else 0.0
        return split_items(items, weights, validation_share=held_out, until=self.until)


Cause = Literal["one prompt", "other people", "tested on"]
"""What there may be to say of why somebody has no pairs of a part: all their choices have one prompt; the
test part names other people than the training part; all their pairs for training are tested on as well."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A person with fewer pairs than asked for; ``kept`` says whether they stay. cause: None where there is
    no more to say than that they gave too few."""

    person: str
    train: int
    validation: int
    test: int
    kept: bool
    reason: str = ""
    cause: Cause | None = None


def seeded(seed: int, *names: str) -> random.Random:
    """A generator of its own for these names: independent of every other name's."""
    digest = hashlib.sha256("\x1f".join(("penchant split 1", str(seed), *names)).encode()).digest()
    return random.Random(digest)


def choose_people(names: Iterable[str], count: int | None, seed: int) -> list[str]:
    """``count`` of the names, in their given order; a larger count only adds people.

    Raises:
        DataError: more people are asked for than there are, or fewer than one.
    """
    everyone = list(names)
    if count is None:
        return everyone
    if not 1 <= count <= len(everyone):
        raise DataError(f"{count} clients asked for; this data set can give 1 to {len(everyone)}")
    drawn = sorted(everyone, key=lambda name: seeded(seed, "client", name).random())[:count]
    return [name for name in everyone if name in set(drawn)]


# --- the sides of the split -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SplitParts:
    """Which part an item belongs to: ``part_of[item]`` is "train", "validation" or "test", or "later" for
    what is not there yet."""

    part_of: Mapping[Hashable, str]

    def common(self, items: Iterable[Hashable]) -> str | None:
        """The part that all these items belong to, or None if they are of several."""
        parts = {self.part_of[item] for item in items}
        return parts.pop() if len(parts) == 1 else None


def split_items(
    items: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    *,
    training_share: float = TRAINING_SHARE,
    validation_share: float = VALIDATION_SHARE,
    until: float = 1.0,
) -> SplitParts:
    """Cut items, in order of time, into training, validation and test.

    Args:
        items: distinct, oldest first.
        weights: how much each item counts towards the shares; all alike if None.
        training_share: of everything, what comes before the test part.
        validation_share: of that, what is held out at its end.
        until: of everything, what there is; the rest is later, and in none of the three parts.

    Raises:
        DataError: a share is not between 0 and 1, or an item is there twice.
    """
    if not 0 < training_share < 1 or not 0 <= validation_share < 1:
        raise DataError("the training share must lie between 0 and 1, the validation share in [0, 1)")
    if len(set(items)) != len(items):
        raise DataError("an item appears twice; give every item once")
    weights = [1.0] * len(items) if weights is None else weights
    total = until * sum(weights)
    test_from = training_share * total
    ends = {
        "train": (1 - validation_share) * test_from,
        "validation": test_from,
        "test": total if until < 1 else math.inf,  # the last item is in, however the sums are rounded
    }
    part_of: dict[Hashable, str] = {}
    passed = 0.0
    for item, weight in zip(items, weights, strict=True):
        # An item is on the side on which its end lies: "the first 75 %" never takes more than that.
        passed += weight
        part_of[item] = next((part for part, end in ends.items() if passed <= end), "later")
    return SplitParts(part_of)


def item_times(orders: Iterable[Sequence[Item]]) -> tuple[list[Item], list[float]]:
    """Common order of items that people met in orders of their own.

    Each order lists one person's items, oldest first, each once. An item's time is the mean, over the
    people who met it, of its relative position; ties stay in order of first appearance.

    Returns:
        items, oldest first, and how many people met each.
    """
    places: dict[Item, list[float]] = defaultdict(list)
    for order in orders:
        for place, item in enumerate(order):
            places[item].append((place + 0.5) / len(order))
    items = sorted(places, key=lambda item: sum(places[item]) / len(places[item]))
    return items, [float(len(places[item])) for item in items]


# --- pairs out of ratings -------------------------------------------------------------------------


def form_pairs(scores: Mapping[Item, float], count: int, rng: random.Random) -> list[tuple[Item, Item]]:
    """Up to ``count`` distinct pairs (better, worse) with items reused as little as possible.

    Pairs are drawn in sweeps; within a sweep no item is used twice. A sweep takes one item of the most
    numerous remaining score and one of the others, which makes it as long as it can be; items that
    earlier sweeps left over come first. So the first sweep is a largest set of disjoint pairs, and
    items are used again only after it. Fewer pairs come back only if no more exist.
    """
    pairs: list[tuple[Item, Item]] = []
    seen: set[frozenset[Item]] = set()
    used: Counter[Item] = Counter()
    while len(pairs) < count:
        fresh = [pair for pair in _sweep(scores, used, rng) if frozenset(pair) not in seen]
        if not fresh:  # only repetitions: look at all the pairs there are
            fresh = _unused_pairs(scores, used, seen, rng)
            if not fresh:
                break
        for pair in fresh[: count - len(pairs)]:
            pairs.append(pair)
            seen.add(frozenset(pair))
            used.update(pair)
    return pairs


def _sweep(scores: Mapping[Item, float], used: Counter[Item], rng: random.Random) -> list[tuple[Item, Item]]:
    """A largest set of disjoint pairs, least used items first."""
    levels: dict[float, list[Item]] = defaultdict(list)
    for item in _shuffled(scores, rng):
        levels[scores[item]].append(item)
    for level in levels.values():
        level.sort(key=lambda item: -used[item])  # stable; the end is taken first
    pairs: list[tuple[Item, Item]] = []
    while len(levels) > 1:
        most = max(levels, key=lambda score: len(levels[score]))
        others = [score for score in levels if score != most]
        other = rng.choices(others, [len(levels[score]) for score in others])[0]
        first, second = levels[most].pop(), levels[other].pop()
        pairs.append((first, second) if most > other else (second, first))
        levels = {score: level for score, level in levels.items() if level}
    # The leftovers of an earlier sweep meet used partners; they go first.
    return sorted(pairs, key=lambda pair: used[pair[0]] + used[pair[1]])


def _unused_pairs(
    scores: Mapping[Item, float], used: Counter[Item], seen: set[frozenset[Item]], rng: random.Random
) -> list[tuple[Item, Item]]:
    """The least used of all pairs not drawn so far (a list of at most one)."""
    candidates = [
        (better, worse)
        for better in _shuffled(scores, rng)
        for worse in scores
        if scores[better] > scores[worse] and frozenset((better, worse)) not in seen
    ]
    return [min(candidates, key=lambda pair: used[pair[0]] + used[pair[1]])] if candidates else []


def _shuffled(items: Iterable[Item], rng: random.Random) -> list[Item]:
    shuffled = list(items)
    rng.shuffle(shuffled)
    return shuffled


def people_from_ratings(
    ratings: Mapping[str, Mapping[Item, float]],
    texts: Mapping[Item, str],
    parts: SplitParts,
    sizes: Sizes,
    seed: int,
) -> tuple[list[Person], list[Shortfall]]:
    """People with pairs formed from what they think of single items (votes: 1 and 0).

    Pairs have an empty prompt. Somebody who rates everything alike has one class: no pair can be
    formed, and the shortfall says so.

    Args:
        ratings: person -> item -> score.
        texts: item -> text; two items may share a text, they are then not paired.
        parts: the split.
        sizes: pairs asked of each part.
        seed: of the draws.
    """
    people: list[Person] = []
    shortfalls: list[Shortfall] = []
    for name, scores in ratings.items():
        drawn = {}
        for part, wanted in wanted_pairs(sizes).items():
            here = {item: score for item, score in scores.items() if parts.part_of[item] == part}
            pairs = form_pairs(here, wanted, seeded(seed, name, part))
            drawn[part] = [
                Preference("", texts[better], texts[worse])
                for better, worse in pairs
                if texts[better] != texts[worse]
            ]
        one_class = len(set(scores.values())) < 2
        reason = "has one class: they rate everything alike" if one_class else ""
        _settle(name, drawn, sizes, reason, people, shortfalls)
    return people, shortfalls


# --- pairs given as such --------------------------------------------------------------------------


def own_items(pair: Preference) -> tuple[str, ...]:
    """A pair's item is its prompt; with an empty prompt, its items are the two responses."""
    return (pair.prompt,) if pair.prompt.strip() else (pair.chosen, pair.rejected)


def people_from_pairs(
    pairs: Mapping[str, Sequence[Preference]],
    sizes: Sizes,
    seed: int,
    *,
    items_of: Callable[[Preference], tuple[str, ...]] = own_items,
    parts: SplitParts | None = None,
) -> tuple[list[Person], list[Shortfall], int]:
    """People from pairs they gave, each person's oldest first.

    A pair whose items lie on different sides can't be used. Of the rest of a part, pairs are drawn at
    random, an item's second pair after every item's first. The same pair given twice counts once.

    Args:
        pairs: person -> pairs.
        sizes: pairs asked of each part.
        seed: of the draws.
        items_of: what must not be on two sides, for each pair.
        parts: the split, where items have a common clock; else :func:`item_times` makes one.

    Returns:
        people, shortfalls, and how many pairs lie across sides.
    """
    if parts is None:
        parts = sizes.split(*item_times(_first_seen(map(items_of, own)) for own in pairs.values()))
    people: list[Person] = []
    shortfalls: list[Shortfall] = []
    across = 0
    for name, own in pairs.items():
        sides: dict[str | None, list[Preference]] = defaultdict(list)
        for pair in each_once(own):
            sides[parts.common(items_of(pair))].append(pair)
        across += len(sides[None])
        drawn = {
            part: _drawn(sides[part], wanted, items_of, seed, name, part)
            for part, wanted in wanted_pairs(sizes).items()
        }
        cause: Cause | None = "one prompt" if _has_one_prompt(own) else None
        _settle(name, drawn, sizes, _one_class(own), people, shortfalls, cause)
    return people, shortfalls, across


def _has_one_prompt(pairs: Sequence[Preference]) -> bool:
    """Whether several choices are all about one prompt, which can be on one side of the split alone."""
    prompts = {pair.prompt for pair in without_ties(pairs)}
    return len(prompts) == 1 < len(without_ties(pairs)) and bool(prompts.pop().strip())


@dataclass(frozen=True, slots=True)
class OwnParts:
    """What there is to say of data that tells its test part itself: pairs.

    Attributes:
        copies: that are left out of training, or of validation, because somebody is tested on the same.
        met: to test on whose prompt somebody is trained on.
        tested: to test on, in all.
        spare: to test on that are more than was asked for, and are not used.
        across: that compare items on both sides of training and validation.
    """

    copies: int
    met: int
    tested: int
    spare: int
    across: int


def people_from_parts(
    given: Mapping[str, Mapping[str, Sequence[Preference]]], sizes: Sizes, seed: int
) -> tuple[list[Person], list[Shortfall], OwnParts]:
    """People from pairs that are in parts already: person -> part -> pairs, each person's oldest first.

    No comparison that anybody is tested on, whichever side won, is trained on or validated on by anyone.
    Without validation pairs of its own, the data's last training items are held out for it, as usual.
    """
    every = {part: [pair for own in given.values() for pair in own.get(part, ())] for part in _PARTS}
    tested = {comparison_of(pair) for pair in every["test"]}
    held = tested | {comparison_of(pair) for pair in every["validation"]}
    kept = {
        name: {
            "train": [pair for pair in own.get("train", ()) if comparison_of(pair) not in held],
            "validation": [pair for pair in own.get("validation", ()) if comparison_of(pair) not in tested],
            "test": list(own.get("test", ())),
        }
        for name, own in given.items()
    }
    copies = sum(map(len, every.values())) - sum(
        len(pairs) for own in kept.values() for pairs in own.values()
    )
    learners = {name for name, own in kept.items() if own["train"]}
    across = 0 if every["validation"] or not sizes.validation_pairs else _hold_out(kept)
    people: list[Person] = []
    shortfalls: list[Shortfall] = []
    spare = 0
    strangers = not any(own.get("train") and own.get("test") for own in given.values())
    for name, own in kept.items():
        drawn = {}
        for part, wanted in wanted_pairs(sizes).items():
            once = each_once(own[part])
            drawn[part] = _drawn(once, wanted, own_items, seed, name, part)
            spare += max(len(without_ties(once)) - wanted, 0) if part == "test" else 0
        copied = bool(given[name].get("train")) and name not in learners
        cause: Cause | None = "other people" if strangers else "tested on" if copied else None
        _settle(name, drawn, sizes, _one_class(own["train"]), people, shortfalls, cause)
    prompts = {pair.prompt for person in people for pair in person.train if pair.prompt.strip()}
    used = [pair for person in people for pair in without_ties(person.test)]
    met = sum(pair.prompt in prompts for pair in used)
    return people, shortfalls, OwnParts(copies, met, len(used), spare, across)


def _hold_out(kept: Mapping[str, dict[str, list[Preference]]]) -> int:
    """Move the pairs of the last training items to validation; -> how many pairs lie across, and are in no
    part any more."""
    items, times = item_times(_first_seen(map(own_items, own["train"])) for own in kept.values())
    parts = split_items(items, times, training_share=1 - VALIDATION_SHARE, validation_share=0.0)
    sides = {"train": "train", "test": "validation"}
    across = 0
    for own in kept.values():
        pairs = own["train"]
        own["train"], own["validation"] = [], []
        for pair in pairs:
            side = parts.common(own_items(pair))
            if side is None:
                across += 1
            else:
                own[sides[side]].append(pair)
    return across


def _one_class(pairs: Sequence[Preference]) -> str:
    """Why somebody with these pairs falls short: all are one comparison; empty where they are not."""
    one = len(set(map(comparison_of, pairs))) < 2 <= len(pairs)
    return "has one class: all their pairs are the same comparison" if one else ""


def _first_seen(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(item for group in groups for item in group))


def _drawn(
    pairs: Sequence[Preference],
    wanted: int,
    items_of: Callable[[Preference], tuple[str, ...]],
    seed: int,
    name: str,
    part: str,
) -> list[Preference]:
    """Up to so many choices of one person's part, and behind them as great a share of its ties."""
    choices = without_ties(pairs)
    drawn = _spread(choices, items_of, seeded(seed, name, part))[:wanted]
    ties = [pair for pair in pairs if pair.tie]
    if drawn and ties:
        some = round(len(ties) * len(drawn) / len(choices))
        drawn += _spread(ties, items_of, seeded(seed, name, part, "ties"))[:some]
    return drawn


def _spread(
    pairs: Iterable[Preference], items_of: Callable[[Preference], tuple[str, ...]], rng: random.Random
) -> list[Preference]:
    """In random order, but every item's first pair before any item's second."""
    met: Counter[str] = Counter()
    turns = []
    for pair in _shuffled(pairs, rng):
        turns.append((max(met[item] for item in items_of(pair)), pair))
        met.update(items_of(pair))
    return [pair for _, pair in sorted(turns, key=itemgetter(0))]


# --- what both share ------------------------------------------------------------------------------


def wanted_pairs(sizes: Sizes) -> dict[str, int]:
    """Part -> pairs asked for."""
    return {"train": sizes.pairs, "validation": sizes.validation_pairs, "test": sizes.test_pairs}


def _settle(
    name: str,
    drawn: Mapping[str, Sequence[Preference]],
    sizes: Sizes,
    reason: str,
    people: list[Person],
    shortfalls: list[Shortfall],
    cause: Cause | None = None,
) -> None:
    """Keep the person if at all possible, and note what is missing. cause: of a part without pairs."""
    counts = {part: len(without_ties(drawn[part])) for part in _PARTS}
    kept = counts["train"] > 0 and counts["test"] > 0 and not reason
    if kept or reason:
        cause = None
    else:
        empty = "train" if counts["train"] == 0 else "test"
        reason = f"has no pairs to {empty} on"
    if not kept or any(counts[part] < wanted for part, wanted in wanted_pairs(sizes).items()):
        shortfalls.append(Shortfall(name, **counts, kept=kept, reason=reason, cause=cause))
    if kept:
        people.append(Person(name, tuple(drawn["train"]), tuple(drawn["validation"]), tuple(drawn["test"])))
