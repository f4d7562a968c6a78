"""Who goes on in a race: the cheapest that counts do not tell apart from the best."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.config import RunConfig
from penchant.server.journal import RoundLog
from penchant.server.standing import POOLED, RunStanding, going_on, standing

CONFIG = RunConfig()


def row(number: int, right: int, judged: int, *, people: int = 10, phase: str = "main") -> RoundLog:
    accuracy = right / judged if judged else None
    return RoundLog(
        number, 1, phase, people, people, {}, 0.0, 0, 0, 0, None, accuracy, None, 0.0, judged=judged
    )  # fmt: skip


def test_the_last_rounds_are_pooled_and_the_start_never_counts() -> None:
    logs = [row(1, 0, 100), row(2, 10, 100), row(3, 60, 100), row(4, 70, 100), row(5, 80, 100)]
    found = standing(CONFIG, logs, people=1000)
    assert found is not None
    assert (found.accuracy, found.judged) == (0.7, 300)
    first = standing(CONFIG, logs[:1], people=1000)
    assert first is None  # round 1 judges what nobody has trained
    second = standing(CONFIG, logs[:2], people=1000)
    assert second is not None
    assert second.accuracy == 0.1


def test_a_closing_round_is_not_held_against_others() -> None:
    logs = [row(1, 50, 100), row(2, 60, 100), row(3, 100, 100, phase="close")]
    found = standing(CONFIG, logs, people=1000)
    assert found is not None
    assert found.accuracy == 0.6


def test_who_judges_again_counts_once_for_the_error() -> None:
    logs = [row(number, 60, 100) for number in range(1, POOLED + 2)]
    many, few = standing(CONFIG, logs, people=1000), standing(CONFIG, logs, people=10)
    assert many is not None
    assert few is not None
    assert few.error == pytest.approx(many.error * sqrt(POOLED))
    assert few.error == pytest.approx(sqrt(0.24 / 100), rel=0.02)


def test_noise_makes_the_error_larger_and_people_count_instead_of_choices() -> None:
    logs = [replace(row(number, 6, 10), judged=None) for number in range(1, POOLED + 2)]
    exact, noised = standing(CONFIG, logs, people=30), standing(CONFIG, logs, people=30, noise=0.05)
    assert exact is not None
    assert noised is not None
    assert noised.judged is None
    assert noised.error**2 == pytest.approx(exact.error**2 + 0.05**2 * 1.36 / POOLED, rel=0.01)


def test_nothing_known_of_held_out_choices() -> None:
    logs = [replace(row(number, 1, 1), val_accuracy=None, judged=0) for number in (1, 2, 3)]
    assert standing(CONFIG, logs, people=10) is None


def test_level_runs_go_on_by_cost() -> None:
    level = [RunStanding(0.6, 0.02), RunStanding(0.61, 0.02), RunStanding(0.62, 0.02), RunStanding(0.6, 0.02)]
    assert going_on(level, 1) == [0]
    assert going_on(level, 2) == [0, 1]


def test_a_clear_winner_goes_on_whatever_it_costs() -> None:
    assert going_on([RunStanding(0.6, 0.01), RunStanding(0.6, 0.01), RunStanding(0.7, 0.01)], 1) == [2]
    assert going_on([RunStanding(0.6, 0.01), RunStanding(0.65, 0.01), RunStanding(0.7, 0.01)], 2) == [1, 2]


def test_runs_that_nothing_is_known_of_come_last() -> None:
    assert going_on([None, RunStanding(0.4, 0.1)], 1) == [1]
    assert going_on([None, None], 1) == [0]


PLACES = st.lists(
    st.one_of(st.none(), st.builds(RunStanding, st.floats(0, 1), st.floats(1e-3, 0.2))),
    min_size=1,
    max_size=8,
)


@given(PLACES, st.integers(1, 8))
def test_as_many_go_on_as_should_and_the_best_or_a_cheaper_one_is_among_them(
    standings: list[RunStanding | None], stay: int
) -> None:
    chosen = going_on(standings, stay)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(stay, len(standings))
    known = [(one.accuracy, -place) for place, one in enumerate(standings) if one is not None]
    if known:
        accuracy, place = max(known)
        first = going_on(standings, 1)[0]
        winner = standings[first]
        assert winner is not None
        assert first <= -place
        assert not RunStanding(accuracy, standings[-place].error).leads(winner)  # type: ignore[union-attr]
