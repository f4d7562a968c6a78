"""Training ends once held-out choices say nothing better, with the best round's factors."""

from __future__ import annotations

from collections.abc import Sequence

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


RISEN = (0.5, 0.6, 0.7, 0.9, 0.9, 0.9, 0.7, 0.6, 0.6, 0.6)  # the start; the best is what round 4 ended with


@pytest.mark.parametrize(("seen", "ends"), [(1, None), (6, None), (7, None), (8, 4), (10, 4)])
def test_training_ends_with_the_best_factors_once_those_since_are_worse(seen: int, ends: int | None) -> None:
    assert ends_with(config(3), logs(RISEN[:seen])) == ends


def test_it_ends_so_many_rounds_after_the_best_at_the_earliest() -> None:
    assert ends_with(config(5), logs(RISEN[:9])) is None
    assert ends_with(config(5), logs(RISEN)) == 4


def test_a_fall_that_chance_would_make_of_so_few_choices_ends_nothing() -> None:
    assert ends_with(config(3), logs(RISEN, judged=2)) is None


@pytest.mark.parametrize(("lower", "ends"), [(0.74, None), (0.73, 1)])
def test_worse_is_two_standard_errors_of_the_pooled_choices(lower: float, ends: int | None) -> None:
    """Of 300 choices each, two errors are 2 sqrt((.8 * .2 + .74 * .26) / 300) = .068 where .06 are missing,
    and .069 where .07 are."""
    assert ends_with(config(5), logs([0.5, *[0.8] * 3, *[lower] * 3])) == ends


def test_the_closing_rounds_own_figure_is_after_another_fit_and_counts_for_nothing() -> None:
    closed = [*logs(RISEN), log(31, phase="close", val_accuracy=0.99, judged=100)]
    assert ends_with(config(3), closed) == 4


def test_the_last_rounds_factors_stay_where_nothing_is_worse() -> None:
    assert ends_with(config(2), logs([0.5, 0.6, 0.7, 0.8])) is None
    assert ends_with(config(2), logs([0.7] * 9)) is None
    assert ends_with(config(2), logs([0.5])) is None


def test_one_lucky_cohort_makes_no_best_round() -> None:
    lucky = [0.5, 0.5, 1.0, 0.5, 0.5, 0.8, 0.9, 0.9, 0.9, 0.8, 0.5, 0.5, 0.5, 0.5]
    assert ends_with(config(3), logs(lucky)) == 7


def test_rounds_count_by_their_choices() -> None:
    many = [log(n, val_accuracy=a, judged=100) for n, a in enumerate(RISEN, 1)]
    few = [*many[:3], *(log(n, val_accuracy=a, judged=1) for n, a in enumerate(RISEN[3:], 4))]
    assert ends_with(config(3), many) == 4
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
