"""Who is served worse than by one model for all: worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from penchant.client.learning.chosen import Blend
from penchant.deploy.simulation.served import (
    ModelsInUse,
    Served,
    Versus,
    beyond_noise,
    ranked_right,
    served,
    versus,
    why_not_served,
)


@pytest.mark.parametrize(
    ("chances", "found"),
    [
        ([], 0),
        ([0.05], 1),
        ([0.06], 0),
        ([0.04, 0.04], 0),  # .04 > .05 / 2
        ([0.04, 0.025], 2),  # .025 ≤ .05 / 2, then .04 ≤ .05
        ([0.04, 0.02, 0.016], 3),  # .016 ≤ .05 / 3, .02 ≤ .05 / 2, .04 ≤ .05
        ([0.04, 0.03, 0.016], 1),  # .03 > .05 / 2
        ([1.0, 0.001, 1.0], 1),
    ],
)
def test_holm_by_hand(chances: list[float], found: int) -> None:
    assert beyond_noise(chances) == found


def test_which_models_devices_chose_is_counted() -> None:
    blends = [Blend(), Blend(100, 0, 3, 1, 9), Blend(50, 50, 6, 0, 9), Blend(0, 0, 6, 0, 9)]
    chosen = ModelsInUse.of(blends)
    assert chosen == ModelsInUse(own=2, halfway=1, everybodys=1)
    assert chosen.words() == "own 2, halfway 1, everybody's 1"
    assert ModelsInUse.of([]) is None


def test_one_clear_case_among_people_alike() -> None:
    """12 to 0 is one chance in 4,096, below .05 / 4; 5 to 0 is one in 32, above .05 / 3."""
    rows = [Versus(0, 12, 30, 40), Versus(0, 5, 20, 40), Versus(3, 3, 20, 40), Versus(12, 0, 10, 40)]
    assert served(rows) == Served(people=4, accuracy=pytest.approx(0.5), worse=1, better=1)
    assert served(rows).words() == "1 worse, 1 better of 4"


def test_noise_alone_counts_somebody_in_one_of_twenty_fleets_at_most() -> None:
    draw = np.random.default_rng(0)
    fleets = []
    for _ in range(300):
        ahead = draw.binomial(20, 0.5, size=50)
        fleets.append(served([Versus(int(n), 20 - int(n), 30, 60) for n in ahead]).worse > 0)
    assert np.mean(fleets) <= 0.05


def test_two_models_on_the_same_pairs_by_hand() -> None:
    own, common = ranked_right([0.5, -0.1, 2.0, 0.0, 1.0]), ranked_right([-1.0, 0.1, 3.0, -2.0, 0.2])
    assert (own, common) == ("10101", "01101"), "equal scores are not ranked right"
    assert versus(own, common) == Versus(ahead=1, behind=1, common=3, pairs=5)
    assert versus("111100", "000011") == Versus(ahead=4, behind=2, common=2, pairs=6)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        versus("10", "1")


@pytest.mark.parametrize(
    ("share", "head", "says"),
    [
        (
            "A",
            "shared",
            "share A trains no model for all beside people's own; penchant compare --shares A,AB on",
        ),
        ("none", "personal", "penchant compare --shares none,AB"),
        ("of-a-plugin", "shared", "penchant compare --shares of-a-plugin,AB"),
        ("AB", "shared", "share AB trains one model for all"),
        ("AB", "personal", "share AB trains no model for all"),
        ("common", "shared", "the version that made this result did not compare them"),
    ],
)
def test_why_nothing_is_said_is_said(share: str, head: str, says: str) -> None:
    assert says in why_not_served(share, head)
