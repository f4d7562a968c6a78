"""Who takes part: the same for the same seed, another in every round, hardly moved by who comes or goes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, RoundFailed, TooFewDevices
from penchant.server.cohort import next_cohort, sample_cohort
from penchant.server.run import cohort_size

fleets = st.sets(st.integers(0, 2**64 - 1), min_size=2, max_size=40)


def drawn(members: list[int] | range, size: int, *, seed: int = 0, round: int = 1) -> tuple[int, ...]:
    return sample_cohort(members, size, seed=seed, round=round)


@given(fleets, st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_same_seed_round_and_fleet_give_the_same_cohort(fleet: set[int], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(fleet)))
    cohort = drawn(sorted(fleet), size)
    assert cohort == drawn(data.draw(st.permutations(sorted(fleet))), size)
    assert len(set(cohort)) == len(cohort) == size
    assert list(cohort) == sorted(cohort)
    assert set(cohort) <= fleet


@given(fleets, st.integers(0, 2**64 - 1), st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_member_that_joins_or_leaves_moves_nobody_elses_rank(
    fleet: set[int], other: int, data: st.DataObject
) -> None:
    """At most one place changes hands: the newcomer's, with who was last; or the leaver's, with the next."""
    fleet.discard(other)
    size = data.draw(st.integers(1, len(fleet)))
    without, together = set(drawn(sorted(fleet), size)), set(drawn(sorted(fleet | {other}), size))
    assert len(without - together) == len(together - without)
    assert together - without <= {other}
    # The order of ranks is the same: growing the cohort one by one takes the same members in the same order.
    assert ranks(fleet) == [member for member in ranks(fleet | {other}) if member != other]


def ranks(fleet: set[int]) -> list[int]:
    """Members in the order in which larger and larger cohorts take them."""
    order: list[int] = []
    for size in range(1, len(fleet) + 1):
        (new,) = set(drawn(sorted(fleet), size)) - set(order)
        order.append(new)
    return order


def test_rounds_and_seeds_draw_anew_and_evenly() -> None:
    members = range(1, 21)
    cohorts = [drawn(members, 5, round=number) for number in range(1, 801)]
    assert len(set(cohorts)) > 700
    times = Counter(member for cohort in cohorts for member in cohort)
    assert set(times) == set(members)
    assert max(abs(count - 200) for count in times.values()) < 5 * (800 * 0.25 * 0.75) ** 0.5
    assert [drawn(members, 5, seed=1, round=n) for n in range(1, 11)] != cohorts[:10]


def test_zero_takes_everybody() -> None:
    assert drawn([7, 3, 5], 0) == (3, 5, 7)


@pytest.mark.parametrize(
    ("ready", "size", "line"),
    [
        (
            [1, 2],
            3,
            "round 4 needs 3 devices but 2 are ready; wait for more, or start a new run with a smaller "
            "federation.cohort",
        ),
        ([], 1, "round 4 needs 1 devices but 0 are ready"),
        ([], 0, "round 4 needs 1 devices but 0 are ready"),
    ],
)
def test_too_few_are_a_typed_error(ready: list[int], size: int, line: str) -> None:
    with pytest.raises(TooFewDevices) as caught:
        drawn(ready, size, round=4)
    assert line in str(caught.value)
    assert isinstance(caught.value, RoundFailed)


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "asked", "people", "clients"),
    [
        ("A", 0, 102, 34),  # a third
        ("A", 0, 100, 34),  # rounded up
        ("A", 0, 20, 10),  # at least ten
        ("A", 0, 7, 7),  # at most all
        ("A", 17, 102, 17),
        ("none", 0, 102, 102),  # a round is everybody's own training
        ("none", 5, 102, 5),
    ],
)
def test_clients_a_round(share: str, asked: int, people: int, clients: int) -> None:
    config = RunConfig().changed({"adapter.share": share, "federation.cohort": asked})
    assert cohort_size(config, people) == clients


def test_more_than_there_are_is_refused() -> None:
    config = RunConfig().changed({"federation.cohort": 11})
    with pytest.raises(ConfigError, match=r"federation\.cohort is 11 but there are 10 people; lower it"):
        cohort_size(config, 10)


# --- in turn --------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_nobody_has_a_second_turn_before_everybody_had_one(people: int, size: int, rounds: int) -> None:
    """So of R rounds with n of N people, a person is in R n / N at most, rounded up."""
    size, turns, after = min(size, people), Counter[int](), None
    for number in range(1, rounds + 1):
        cohort, after = next_cohort(range(people), size, seed=7, round=number, after=after)
        assert len(set(cohort)) == size
        turns.update(cohort)
        counts = [turns[member] for member in range(people)]
        assert max(counts) - min(counts) <= 1
    assert max(turns.values()) <= -(-rounds * size // people)


def test_who_comes_and_goes_costs_others_no_turn() -> None:
    """Nine people leave, the last one of a round among them: those behind them come next all the same."""
    after = None
    turns = Counter[int]()
    for number in range(1, 10):
        cohort, after = next_cohort(range(100), 10, seed=7, round=number, after=after)
        turns.update(cohort)
    gone = {*list(turns)[:8], after}
    there = [member for member in range(100) if member not in gone]
    cohort, _ = next_cohort(there, 10, seed=7, round=10, after=after)
    assert set(cohort) == set(range(100)) - set(turns)


def test_too_few_are_refused_in_turn_as_well() -> None:
    with pytest.raises(TooFewDevices, match="needs 3 devices"):
        next_cohort([1, 2], 3, seed=0, round=1, after=None)
