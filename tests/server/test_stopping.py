"""Training ends once held-out choices say nothing better, with the best round's factors."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.console_scene import log

from penchant.common.config import RunConfig
from penchant.server.journal import RoundLog
from penchant.server.stopping import ends_with, is_over


def config(stop_after: int = 2, **changes: object) -> RunConfig:
    asked = {key.replace("__", "."): value for key, value in changes.items()}
    return RunConfig().changed({"federation.stop_after": stop_after} | asked)


def logs(accuracies: Sequence[float | None], judged: int | None = 100) -> list[RoundLog]:
    """Of rounds 1, 2, …, which measured the start, round 1, …"""
    return [log(n, val_accuracy=a, judged=judged) for n, a in enumerate(accuracies, 1)]


RISEN = (0.5, 0.6, 0.7, 0.9, 0.7, 0.6)  # the start; the best is what round 3 ended with


@pytest.mark.parametrize(("seen", "over"), [(1, False), (2, False), (4, False), (5, False), (6, True)])
def test_training_ends_when_the_best_factors_are_so_many_rounds_old(seen: int, over: bool) -> None:
    assert is_over(config(2), logs(RISEN[:seen])) is over


def test_a_run_ends_with_the_best_rounds_factors() -> None:
    assert ends_with(config(2), logs(RISEN)) == 3
    closed = [*logs(RISEN), log(31, phase="close", val_accuracy=0.99, judged=100)]
    assert ends_with(config(2), closed) == 3  # the closing round's own figure is after another fit


def test_the_last_rounds_factors_stay_where_those_before_them_were_the_best() -> None:
    assert ends_with(config(9), logs([0.5, 0.6, 0.7, 0.8])) is None
    assert ends_with(config(9), logs([0.5])) is None


def test_one_lucky_cohort_makes_no_best_round() -> None:
    lucky = [0.5, 0.5, 0.85, 0.5, 0.7, 0.8, 0.75, 0.6]  # after round 2 alone .85; around 5 .75 on average
    assert ends_with(config(9), logs(lucky)) == 5


def test_neighbours_count_by_their_choices() -> None:
    few = [log(n, val_accuracy=a, judged=j) for n, (a, j) in enumerate([(0.5, 9), (0.6, 100), (1.0, 1)], 1)]
    assert ends_with(config(9), [*few, log(4, val_accuracy=0.7, judged=100)]) is None


def test_what_stays_as_it_is_is_no_rise() -> None:
    level = logs([0.7] * 4)
    assert is_over(config(2), level)
    assert ends_with(config(2), level) == 1


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (config(0), "it was not asked for"),
        (config(2, adapter__share="none"), "there are no shared factors"),
        (config(2, federation__warmup_rounds=9), "the warm-up's factors are others"),
    ],
)
def test_every_round_is_trained_where(settings: RunConfig, why: str) -> None:
    assert not is_over(settings, logs(RISEN)), why
    assert ends_with(settings, logs(RISEN)) is None, why


def test_every_round_is_trained_where_noise_drowns_the_counts() -> None:
    assert not is_over(config(1), logs([None] * 9, judged=None))
