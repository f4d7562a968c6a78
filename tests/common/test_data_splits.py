"""Splits: a worked example, then what must hold for whatever people there are."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.data import splits
from penchant.common.data.preferences import Federation, Person, Preference, without_ties
from penchant.common.data.splits import Sizes
from penchant.common.errors import DataError

# --- worked examples ------------------------------------------------------------------------------


def test_twenty_items_in_order_of_time() -> None:
    parts = splits.split_items(list(range(20))).part_of
    # 75 % of 20 are 15; of these the last 15 %, 2.25, are held out: 12 whole items stay before them.
    assert [item for item in range(20) if parts[item] == "train"] == list(range(12))
    assert [item for item in range(20) if parts[item] == "validation"] == [12, 13, 14]
    assert [item for item in range(20) if parts[item] == "test"] == list(range(15, 20))


def test_nothing_is_held_out_where_no_validation_pairs_are_wanted() -> None:
    parts = Sizes(pairs=1, validation_pairs=0, test_pairs=1).split(list(range(20))).part_of
    assert [item for item in range(20) if parts[item] == "train"] == list(range(15))
    assert [item for item in range(20) if parts[item] == "test"] == list(range(15, 20))  # as ever


def test_what_is_later_is_in_no_part() -> None:
    now = Sizes(until=0.75).split(list(range(20))).part_of
    assert [item for item in range(20) if now[item] == "later"] == list(range(15, 20))  # the test part of all
    assert {item: now[item] for item in range(15)} == Sizes().split(list(range(15))).part_of


def test_votes_become_pairs() -> None:
    pairs = splits.form_pairs({"A": 1.0, "B": 0.0, "C": 1.0, "D": 0.0}, 2, random.Random(0))
    assert {item for pair in pairs for item in pair} == set("ABCD")  # disjoint
    assert all(better in "AC" and worse in "BD" for better, worse in pairs)


def test_items_are_used_again_only_when_there_is_no_other_way() -> None:
    votes = {"yes-1": 1.0, "yes-2": 1.0, "yes-3": 1.0, "no": 0.0}
    assert len(splits.form_pairs(votes, 1, random.Random(0))) == 1
    pairs = splits.form_pairs(votes, 3, random.Random(0))
    assert {better for better, _ in pairs} == {"yes-1", "yes-2", "yes-3"}
    assert splits.form_pairs(votes, 10, random.Random(0)) == pairs  # no more exist


def test_a_common_order_for_items_that_people_met_at_their_own_times() -> None:
    items, met = splits.item_times([["a", "b", "c", "d"], ["b", "d"], ["a", "d"]])
    assert items == ["a", "b", "c", "d"]
    assert met == [2.0, 2.0, 1.0, 3.0]


def people() -> dict[str, dict[int, float]]:
    rng = random.Random(1)
    return {name: {item: float(rng.random() < 0.5) for item in range(200)} for name in ("ann", "bob", "cy")}


TEXTS = {item: f"item {item}" for item in range(200)}
PARTS = splits.split_items(list(range(200)))


def test_people_from_votes() -> None:
    found, short = splits.people_from_ratings(people(), TEXTS, PARTS, Sizes(20, 10, 20), seed=3)
    assert not short
    for person in found:
        assert (len(person.train), len(person.validation), len(person.test)) == (20, 10, 20)
        for part in ("train", "validation", "test"):
            texts = [text for pair in getattr(person, part) for text in (pair.chosen, pair.rejected)]
            assert {PARTS.part_of[int(text.split()[1])] for text in texts} == {part}
            if part != "validation":  # 23 items there, of which fewer than ten are of one kind
                assert len(set(texts)) == len(texts)
        assert all(pair.prompt == "" for pair in person.train)


# --- what must hold -------------------------------------------------------------------------------


@given(st.lists(st.floats(0.5, 9), min_size=1, max_size=60))
def test_parts_are_consecutive_and_never_larger_than_their_share(weights: list[float]) -> None:
    items = list(range(len(weights)))
    parts = splits.split_items(items, weights).part_of
    order = [parts[item] for item in items]
    assert order == sorted(order, key=("train", "validation", "test").index)
    before_test = sum(w for w, part in zip(weights, order, strict=True) if part != "test")
    assert before_test <= 0.75 * sum(weights) + 1e-9


SCORES = st.dictionaries(st.integers(0, 30), st.integers(1, 4).map(float), max_size=14)


@given(SCORES, st.integers(1, 40), st.integers(0, 3))
def test_pairs_are_right_distinct_and_as_many_as_can_be(
    scores: dict[int, float], count: int, seed: int
) -> None:
    pairs = splits.form_pairs(scores, count, random.Random(seed))
    assert all(scores[better] > scores[worse] for better, worse in pairs)
    assert len(set(pairs)) == len(pairs)
    possible = sum(scores[a] > scores[b] for a in scores for b in scores)
    assert len(pairs) == min(count, possible)


@given(SCORES, st.integers(0, 3))
def test_the_first_pairs_are_a_largest_set_of_disjoint_ones(scores: dict[int, float], seed: int) -> None:
    levels = Counter(scores.values())
    largest = min(len(scores) // 2, len(scores) - max(levels.values(), default=0))
    pairs = splits.form_pairs(scores, 100, random.Random(seed))[:largest]
    assert len({item for pair in pairs for item in pair}) == 2 * largest
    # asking for fewer gives the beginning of the same
    assert splits.form_pairs(scores, largest, random.Random(seed)) == pairs


def test_other_people_and_other_parts_change_nobody() -> None:
    everyone, _ = splits.people_from_ratings(people(), TEXTS, PARTS, Sizes(20, 10, 20), seed=3)
    alone, _ = splits.people_from_ratings({"bob": people()["bob"]}, TEXTS, PARTS, Sizes(30, 0, 20), seed=3)
    assert alone[0].train[:20] == everyone[1].train
    assert alone[0].test == everyone[1].test
    other_seed, _ = splits.people_from_ratings(people(), TEXTS, PARTS, Sizes(20, 10, 20), seed=4)
    assert other_seed[1].train != everyone[1].train


def test_choosing_more_people_only_adds_some() -> None:
    names = [f"p{number}" for number in range(30)]
    chosen = [set(splits.choose_people(names, count, seed=5)) for count in range(1, 31)]
    assert all(fewer < more for fewer, more in itertools.pairwise(chosen))
    assert splits.choose_people(names, None, 5) == names
    assert splits.choose_people(names, 3, 5) != splits.choose_people(names, 3, 6)
    for count in (0, 31):
        with pytest.raises(DataError, match="1 to 30"):
            splits.choose_people(names, count, 5)


# --- people who can't give as much as asked -------------------------------------------------------


def test_shortfalls_are_reported_and_named() -> None:
    ratings = {
        "few": {0: 1.0, 1: 0.0, 180: 1.0, 181: 0.0},
        "yes-man": dict.fromkeys(range(200), 1.0),
        "gone": {item: float(item % 2) for item in range(100)},
    }
    found, short = splits.people_from_ratings(ratings, TEXTS, PARTS, Sizes(2, 0, 1), seed=0)
    assert [person.name for person in found] == ["few"]
    by_name = {entry.person: entry for entry in short}
    assert (by_name["few"].train, by_name["few"].test, by_name["few"].kept) == (1, 1, True)
    assert "one class" in by_name["yes-man"].reason
    assert by_name["gone"].reason == "has no pairs to test on"
    assert not by_name["yes-man"].kept
    assert not by_name["gone"].kept


@pytest.mark.parametrize("sizes", [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_sizes_out_of_range(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="must be at least"):
        Sizes(*sizes)


def test_split_refuses_nonsense() -> None:
    with pytest.raises(DataError, match="twice"):
        splits.split_items([1, 1])
    with pytest.raises(DataError, match="share"):
        splits.split_items([1, 2], training_share=1.0)


# --- pairs given as such --------------------------------------------------------------------------


def asked(prompt: str, chosen: str = "good", rejected: str = "bad") -> Preference:
    return Preference(prompt, chosen, rejected)


def test_given_pairs_are_split_by_prompt_and_time() -> None:
    own = [asked(f"prompt {number}", f"good {copy}") for number in range(20) for copy in range(2)]
    found, short, across = splits.people_from_pairs({"ann": own}, Sizes(24, 4, 10), seed=0)
    assert (short, across) == ([], 0)
    (ann,) = found
    sides = [{int(pair.prompt.split()[1]) for pair in part} for part in (ann.train, ann.validation, ann.test)]
    assert sides == [set(range(12)), {12, 13, 14} & sides[1], set(range(15, 20))]
    assert len({pair.prompt for pair in ann.train[:12]}) == 12  # every prompt once before any twice


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=20),
        min_size=1,
    )
)
def test_no_prompt_is_on_two_sides_for_anyone(given_pairs: dict[str, list[tuple[int, int]]]) -> None:
    pairs = {
        name: [asked(f"p{prompt}", f"good {copy}") for prompt, copy in own]
        for name, own in given_pairs.items()
    }
    found, short, _ = splits.people_from_pairs(pairs, Sizes(50, 50, 50), seed=1)
    sides: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for person in found:
        for part, prompts in sides.items():
            prompts.update(pair.prompt for pair in getattr(person, part))
    assert sum(map(len, sides.values())) == len(set.union(*sides.values()))
    assert {person.name for person in found} | {s.person for s in short if not s.kept} == set(pairs)


def test_without_prompts_the_responses_are_the_items() -> None:
    own = [asked("", f"text {n}", f"text {n + 1}") for n in range(40)]
    found, _, across = splits.people_from_pairs({"ann": own}, Sizes(99, 99, 99), seed=0)
    (ann,) = found
    texts = [
        {text for pair in part for text in (pair.chosen, pair.rejected)}
        for part in (ann.train, ann.validation, ann.test)
    ]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert across == 2  # the pairs at the two borders
    assert len(ann.train) + len(ann.validation) + len(ann.test) == 38


def test_one_class_among_given_pairs() -> None:
    pairs = {"ann": [asked("p"), asked("p"), Preference("p", "bad", "good")]}
    found, short, _ = splits.people_from_pairs(pairs, Sizes(1, 0, 1), seed=0)
    assert not found
    assert "one class" in short[0].reason


# --- ties -----------------------------------------------------------------------------------------


def test_ties_are_split_like_choices_and_drawn_in_proportion() -> None:
    """Choices are the same as without ties; of 2 ties a prompt as many as of its choices."""
    own = [asked(f"prompt {n}", f"good {copy}") for n in range(20) for copy in range(2)]
    ties = [Preference(f"prompt {n}", f"so {copy}", "so so", "equal") for n in range(20) for copy in range(2)]
    sizes = Sizes(12, 3, 5)
    (plain,), _, _ = splits.people_from_pairs({"ann": own}, sizes, seed=0)
    (ann,), short, across = splits.people_from_pairs({"ann": [*own, *ties]}, sizes, seed=0)
    assert (short, across) == ([], 0)
    for part, prompts, count in (
        ("train", range(12), 12),
        ("validation", range(12, 15), 3),
        ("test", range(15, 20), 5),
    ):
        pairs, before = getattr(ann, part), getattr(plain, part)
        assert tuple(without_ties(pairs)) == before
        drawn = [pair for pair in pairs if pair.tie]
        assert pairs == (*before, *drawn)
        assert len(drawn) == count
        assert {int(pair.prompt.split()[1]) for pair in drawn} <= set(prompts)
    parts = {"train": [*own[:30], *ties[:30]], "test": [*own[30:], *ties[30:]]}
    (given,), _, told = splits.people_from_parts({"ann": parts}, Sizes(99, 0, 5), seed=0)
    assert [len(without_ties(given.train)), len(given.train)] == [30, 60]
    assert [len(without_ties(given.test)), len(given.test)] == [5, 10]
    assert (told.tested, told.spare) == (5, 5)


def test_somebody_with_ties_alone_has_no_pairs() -> None:
    ties = [Preference(f"prompt {n}", "a", "b", "equal") for n in range(20)]
    found, (short,), _ = splits.people_from_pairs({"ann": ties}, Sizes(5, 1, 5), seed=0)
    assert (found, short.kept, short.train) == ([], False, 0)
    with pytest.raises(DataError, match="no pairs to test on"):
        Federation("f", (Person("ann", (asked("p"),), (), tuple(ties[:1])),))
