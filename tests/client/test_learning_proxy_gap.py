"""A model is warned of where it is surest and wrong, and left in peace where it is right about itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penchant.client.learning.proxy_gap import ProxyGap, proxy_gap
from penchant.common.errors import CodecError


def test_the_half_with_the_largest_margins_is_judged() -> None:
    found = proxy_gap([3.0, -3.0, 0.1, -0.2, 0.3])  # the surest three: 3, -3, 0.3
    assert found is not None
    sure, less = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-0.3))
    assert found.choices == 3
    assert found.expected == pytest.approx((2 * sure + less) / 3)
    assert found.observed == pytest.approx(2 / 3)
    # two or fewer of three: all but all three
    assert found.chance == pytest.approx(1 - sure * sure * less)


def test_nothing_is_known_without_margins() -> None:
    assert proxy_gap([]) is None
    assert proxy_gap([0.0, 0.0]) is None
    one = proxy_gap([0.0, -2.0])
    assert one is not None
    assert (one.choices, one.observed) == (1, 0.0)


def test_a_model_that_is_surest_and_wrong_is_warned_of_and_one_that_is_right_is_not() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 400)
    right = rng.random(400) < 1 / (1 + np.exp(-np.abs(margins)))
    honest = proxy_gap(np.where(right, 1, -1) * np.abs(margins))
    boasting = proxy_gap(
        np.where(right, 4, -4) * np.abs(margins)
    )  # the same choices, margins four times so large
    assert honest is not None
    assert boasting is not None
    assert not honest.parts
    assert boasting.parts
    assert boasting.observed == honest.observed
    said = boasting.warning()
    assert said.startswith("Where the models are surest (the 200 held-out choices with the largest margins)")
    assert "your model is surest" in boasting.warning("your model is", "you")
    assert "\n" not in said


def test_few_choices_and_small_gaps_warn_of_nothing() -> None:
    few = proxy_gap([4.0, 4.0, 4.0, -4.0])
    assert few is not None
    assert few.observed == 1.0  # the surest two, the first of equals
    assert not few.parts
    assert not ProxyGap(10_000, 0.90, 0.88, 1e-6).parts
    assert not ProxyGap(10, 0.90, 0.70, 0.07).parts
    assert ProxyGap(100, 0.90, 0.70, 1e-6).parts


def test_false_alarms_are_rare() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        size = np.abs(rng.normal(0, 1.5, 40))
        right = rng.random(40) < 1 / (1 + np.exp(-size))
        found = proxy_gap(np.where(right, size, -size))
        alarms += found is not None and found.parts
    assert alarms <= 0.025 * 400 + 3 * math.sqrt(400 * 0.025)


def test_many_choices_are_judged_as_few_are() -> None:
    """The sum of many is taken as normal; just below that number it is computed exactly."""
    rng = np.random.default_rng(2)
    size = np.abs(rng.normal(0, 1, 4100))
    right = rng.random(4100) < 1 / (1 + np.exp(-size))
    margins = np.where(right, size, -size)
    exact, normal = proxy_gap(margins[:4000]), proxy_gap(margins[:4002])
    assert exact is not None
    assert normal is not None
    assert normal.chance == pytest.approx(exact.chance, abs=0.05)


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-50, 50)))
def test_whatever_the_margins_are(margins: np.ndarray) -> None:
    found = proxy_gap(margins)
    if found is None:
        assert not margins.any()
        return
    assert 0 <= found.observed <= 1
    assert 0.5 <= found.expected <= 1
    assert 0 <= found.chance <= 1
    assert found.choices == math.ceil(np.count_nonzero(margins) / 2)


def test_what_is_kept_is_what_was_found_to_the_bit() -> None:
    found = proxy_gap([3.0, -3.0, 0.1, -0.2, 0.3])
    assert found is not None
    assert ProxyGap.decode(found.encode()) == found
    for damaged in (found.encode()[:-1], found.encode() + b"x", b""):
        with pytest.raises(CodecError):
            ProxyGap.decode(damaged)
