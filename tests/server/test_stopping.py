"""Training ends once held-out choices say nothing better, with the best round's factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from support.console_scene import log

from penchant.common.config import RunConfig
from penchant.server.journal import RoundLog
from penchant.server.stopping import ends_with


def config(stop_after: int = 2, **changes: object) -> RunConfig:
    asked = {key.replace("__", "."): value for key, value in changes.items()}
    return RunConfig().changed({"federation.stop_after": stop_after} | asked)


def logs(accuracies: Sequence[float | None], judged: int | None = 100) -> list[RoundLog]:
    """Of rounds 1, 2, …, which measured the start, round 1, …"""
    return [log(n, val_accuracy=a, judged=judged) for n, a in enumerate(accuracies, 1)]


RISEN = (0.5, *[0.8] * 3, *[0.9] * 7, *[0.7] * 6)  # the start; the best is what round 7 ended with


@pytest.mark.parametrize(("seen", "ends"), [(1, None), (11, None), (12, 7), (17, 7)])
def test_training_ends_with_the_best_factors_once_those_since_are_worse(seen: int, ends: int | None) -> None:
    assert ends_with(config(3), logs(RISEN[:seen])) == ends


def test_it_ends_so_many_rounds_after_the_best_at_the_earliest() -> None:
    assert ends_with(config(9), logs(RISEN[:16])) is None
    assert ends_with(config(9), logs(RISEN)) == 7


def test_a_fall_that_chance_would_make_of_so_few_choices_ends_nothing() -> None:
    assert ends_with(config(3), logs(RISEN, judged=2)) is None


@pytest.mark.parametrize(("lower", "ends"), [(0.73, None), (0.72, 1)])
def test_worse_than_the_best_of_eight_is_so_many_standard_errors(lower: float, ends: int | None) -> None:
    """400 choices and 400 later: sqrt(2 + 2 ln 8) = 2.48 errors of sqrt(2 * .76 * .24 / 400) are .075, and
    .07 is missing at .73, .08 at .72."""
    assert ends_with(config(5), logs([0.5, *[0.8] * 4, *[lower] * 4])) == ends


def ended_early(accuracy: Callable[[int], float]) -> int:
    """How many of fifty runs of 60 rounds, with 200 choices each, end before their time."""
    ended = 0
    for seed in range(50):
        draws = np.random.default_rng(seed)
        seen = logs([draws.binomial(200, accuracy(n)) / 200 for n in range(61)], judged=200)
        ended += any(ends_with(config(8), seen[:n]) is not None for n in range(1, 62))
    return ended


def test_of_runs_that_do_not_get_worse_few_end_early_by_chance() -> None:
    assert ended_early(lambda number: 0.7) <= 8
    assert ended_early(lambda number: 0.65 + 0.1 * number / 60) <= 8


def test_runs_that_get_worse_end_early() -> None:
    assert ended_early(lambda number: 0.7 - 0.1 * max(0, number - 20) / 40) >= 42


def test_the_closing_rounds_own_figure_is_after_another_fit_and_counts_for_nothing() -> None:
    closed = [*logs(RISEN), log(31, phase="close", val_accuracy=0.99, judged=100)]
    assert ends_with(config(3), closed) == 7


def test_the_last_rounds_factors_stay_where_nothing_is_worse() -> None:
    assert ends_with(config(2), logs([0.5, 0.6, 0.7, 0.8])) is None
    assert ends_with(config(2), logs([0.7] * 9)) is None
    assert ends_with(config(2), logs([0.5])) is None


def test_one_lucky_cohort_makes_no_best_round() -> None:
    lucky = [0.5, 0.5, 1.0, *[0.5] * 4, *[0.9] * 7, *[0.5] * 8]
    assert ends_with(config(3), logs(lucky)) == 10


def test_rounds_count_by_their_choices() -> None:
    many = [log(n, val_accuracy=a, judged=100) for n, a in enumerate(RISEN, 1)]
    few = [*many[:11], *(log(n, val_accuracy=a, judged=1) for n, a in enumerate(RISEN[11:], 12))]
    assert ends_with(config(3), many) == 7
    assert ends_with(config(3), few) is None


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (config(0), "it was not asked for"),
        (config(3, adapter__share="none"), "there are no shared factors"),
        (config(3, federation__warmup_rounds=9), "the warm-up's factors are others"),
    ],
)
def test_every_round_is_trained_where(settings: RunConfig, why: str) -> None:
    assert ends_with(settings, logs(RISEN)) is None, why


def test_every_round_is_trained_where_noise_hides_the_counts() -> None:
    assert ends_with(config(3), logs(RISEN, judged=None)) is None
