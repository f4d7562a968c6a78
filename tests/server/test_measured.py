"""An accuracy belongs to the factors that it was measured on."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from support.console_scene import log

from penchant.server.measured import Measurement, best, by_round, maybe_as_good, measurements


def test_a_round_measures_the_factors_that_the_finished_round_before_ended_with() -> None:
    rounds = [log(1), log(2), log(4), log(5, phase="close")]  # the third was skipped
    assert [one.after for one in measurements(rounds)] == [0, 1, 2, 4]
    assert {number: one.log.round for number, one in by_round(rounds).items()} == {
        0: 1,
        1: 2,
        2: 4,
        4: 5,
        5: 5,
    }


def test_what_the_journal_says_goes_before_what_its_order_says() -> None:
    assert [one.after for one in measurements([log(3, measured_on=0), log(4, measured_on=3)])] == [0, 3]


def test_the_best_factors_are_those_of_a_finished_round_without_the_final_fit() -> None:
    accuracies = [0.9, 0.6, 0.7, 0.65, 0.8]  # of the start, of rounds 1 to 3, and of 4 after the final fit
    rounds = [
        log(n, val_accuracy=a, phase="close" if n == 5 else "main") for n, a in enumerate(accuracies, 1)
    ]
    found = best(measurements(rounds))
    assert found is not None
    assert (found.after, found.accuracy) == (2, 0.7)
    assert best(measurements([log(1), log(2, val_accuracy=None)])) is None


TENTHS = [0, 0, 0, 0, 0, 20, 0, 20, 0, 0]  # 40 people, half of them with .55 or so, half with .75


def measured(number: int, accuracy: float, **more: Any) -> Measurement:
    (one,) = measurements([log(number + 1, measured_on=number, val_accuracy=accuracy, **more)])
    return one


@pytest.mark.parametrize("judged", [400, 40_000])
def test_an_accuracy_is_as_sure_as_people_differ_however_many_choices_each_made(judged: int) -> None:
    assert measured(1, 0.65, judged=judged, histogram=TENTHS).error == pytest.approx(
        sqrt((0.1**2 + 0.1**2 / 12) / 39)  # how they differ, and where in their tenths they may be
    )


@pytest.mark.parametrize(
    ("survivors", "judged", "people"), [(12, 240, 12), (12, 10_000, 12), (12, 5, 5), (0, 5, 1)]
)
def test_of_few_people_each_counts_as_one_choice(survivors: int, judged: int, people: int) -> None:
    """At its most: a person's choices are all right, or all wrong. There are no more people than choices."""
    one = measured(1, 0.8, survivors=survivors, judged=judged, histogram=None)
    assert one.error == pytest.approx(sqrt(0.8 * 0.2 / people))


def test_with_noise_people_are_counted_by_the_noised_number_and_the_noise_is_in_it() -> None:
    """Tenths that are noised tell nothing of how people differ."""
    one = measured(1, 0.5, judges=100, count_noise=0.04, histogram=TENTHS)
    assert one.error == pytest.approx(sqrt(0.05**2 + 0.04**2 * 1.25))
    assert measured(1, 0.5, judged=None, judges=None).error is None
    assert measured(1, 0.5, judged=0).error is None


def test_the_error_of_people_covers_what_they_make_of_it_and_that_of_choices_does_not() -> None:
    """Forty people of very different accuracies, each with 50 choices that are nearly all alike: of 400 such
    sums, one standard error holds two thirds."""
    draws = np.random.default_rng(1)
    by_people = by_choices = 0
    for _ in range(400):
        right = draws.binomial(50, draws.beta(0.7, 0.3, 40))
        part, tenths = right.sum() / 2000, np.minimum(right * 10 // 50, 9)
        shown = np.bincount(tenths, minlength=10).tolist()
        error = measured(1, float(part), judged=2000, survivors=40, histogram=shown).error
        assert error is not None
        by_people += abs(part - 0.7) <= error
        by_choices += abs(part - 0.7) <= sqrt(part * (1 - part) / 2000)
    assert 0.6 < by_people / 400 < 0.76
    assert by_choices / 400 < 0.3


def test_accuracies_are_told_apart_by_people() -> None:
    low, high = (measured(n, a, judged=100_000, histogram=TENTHS) for n, a in ((1, 0.63), (2, 0.67)))
    assert not low.is_told_apart(high), "of choices it would be 18 standard errors"
    assert low.is_told_apart(measured(3, 0.8, judged=100_000, histogram=[*TENTHS[:7], 0, 40, 0]))
    assert not low.is_told_apart(measured(3, 0.8))


def test_the_best_of_many_is_asked_for_a_larger_lead() -> None:
    """0.65 leads 0.605 by 2.46 standard errors: more than the luck of the best of two, not of forty."""
    first = measured(40, 0.65, judged=1000, histogram=TENTHS)
    other = measured(1, 0.605, judged=1000, histogram=[0, 0, 0, 0, 0, 40, 0, 0, 0, 0])
    alike = [measured(n, 0.65, judged=1000, histogram=TENTHS) for n in range(2, 40)]
    assert maybe_as_good([first, other]) == []
    assert maybe_as_good([first, other, *alike]) == [other, *alike]


def test_what_is_not_known_to_be_worse_is_said_to_be_so() -> None:
    """The start and the final fit are no candidates; where no error is known, none is known to be worse."""
    rounds = [
        log(n, val_accuracy=a, judged=None, phase="close" if n == 5 else "main")
        for n, a in enumerate([0.9, 0.1, 0.9, 0.2, 0.95], 1)
    ]
    assert [one.after for one in maybe_as_good(measurements(rounds))] == [1, 3]
    assert maybe_as_good([]) == []
