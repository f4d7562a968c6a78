"""An accuracy belongs to the factors that it was measured on."""

from __future__ import annotations

import pytest
from support.console_scene import log

from penchant.server.measured import best, by_round, measurements


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


@pytest.mark.parametrize(
    ("judged", "error", "apart"), [(100, 0.05, False), (10_000, 0.005, True), (None, None, False)]
)
def test_an_accuracy_is_as_sure_as_the_number_of_choices_makes_it(
    judged: int | None, error: float | None, apart: bool
) -> None:
    low, high = (log(n, val_accuracy=a, judged=judged) for n, a in ((1, 0.5), (2, 0.55)))
    first, second = measurements([low, high])
    assert first.error == (None if error is None else pytest.approx(error))
    assert first.is_told_apart(second) is apart
