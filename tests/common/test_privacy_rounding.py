"""Rounding: the norm's bound holds always, the mean stays, and nothing rests on floats alone."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penchant.common.errors import PrivacyError
from penchant.common.privacy import rounding
from penchant.common.privacy.rounding import (
    CLIP_MOST,
    SIZE_MOST,
    norm_bound,
    round_within,
    squared_norm_bound,
)

LOW, HIGH = 0, 2**32 - 1  # words that round everything up, or down where there is a fraction


def words(size: int, seed: int = 1) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 2**32, size, dtype=np.uint32)


def all_of(word: int, size: int) -> NDArray[np.uint32]:
    return np.full(size, word, np.uint32)


def squared(integers: NDArray[np.int64]) -> int:
    return sum(int(v) ** 2 for v in integers)


def exact_norm_squared(values: NDArray[np.float64]) -> Fraction:
    return sum((Fraction(float(v)) ** 2 for v in values), Fraction(0))


def of_norm(size: int, norm: float, seed: int = 1) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).normal(size=size)
    return np.asarray(values * (norm / np.linalg.norm(values)), np.float64)


# --- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "size"), [(1, 1), (10, 100), (1_000, 3_500), (3_000, 1_000_000), (7, 10**9)]
)
def test_the_bound_is_the_formula(clip: int, size: int) -> None:
    spread = math.sqrt(2 * 40 * math.log(2))
    likely = clip**2 + size / 4 + spread * (clip + math.sqrt(size) / 2)
    formula = min(likely, (clip + math.sqrt(size)) ** 2)
    assert formula - 1 <= squared_norm_bound(clip, size) <= formula + 2
    assert norm_bound(clip, size) == pytest.approx(math.sqrt(squared_norm_bound(clip, size)), rel=1e-15)
    assert Fraction(norm_bound(clip, size)) ** 2 >= squared_norm_bound(clip, size)


def test_nothing_to_round_keeps_the_clip() -> None:
    assert norm_bound(123, 0) == 123
    assert round_within(np.empty(0), 123, np.empty(0, np.uint32)).size == 0


@given(st.integers(1, CLIP_MOST), st.integers(0, SIZE_MOST))
@settings(deadline=None)
def test_the_bound_covers_the_clip_grows_with_it_and_leaves_sums_in_64_bits(clip: int, size: int) -> None:
    bound = squared_norm_bound(clip, size)
    assert clip**2 <= bound
    assert (math.sqrt(clip**2) + math.sqrt(size)) ** 2 < 2**63
    if clip < CLIP_MOST:
        assert bound < squared_norm_bound(clip + 1, size)


# --- rounding -------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1, 1), max_size=60),
    st.integers(1, 200),
    st.floats(0, 1),
    st.sampled_from([LOW, HIGH, None]),
    st.integers(0, 1_000),
)
@settings(deadline=None, max_examples=300)
def test_the_norm_is_bounded_and_no_element_moves_by_1(
    numbers: list[float], clip: int, fraction: float, word: int | None, seed: int
) -> None:
    values = np.array(numbers, np.float64)
    norm = float(np.linalg.norm(values))
    values = values * (clip * fraction / norm) if norm > 1e-100 else np.zeros_like(values)
    random = words(values.size, seed) if word is None else all_of(word, values.size)
    rounded = round_within(values, clip, random)
    assert rounded.dtype == np.int64
    assert squared(rounded) <= squared_norm_bound(clip, values.size)
    assert np.abs(rounded - values).max(initial=0) <= 1
    assert np.abs(rounded).max(initial=0) <= clip


def test_the_worst_words_meet_the_cut_and_the_bound_still_holds() -> None:
    """Everything up: without the cut the norm would be beyond what the accounting knows."""
    size, clip = 10_000, 50
    values = np.full(size, clip / math.sqrt(size) * (1 - 1e-9))
    rounded = round_within(values, clip, all_of(LOW, size))
    assert size > squared_norm_bound(clip, size)  # what all ones would have had
    assert not rounded.any()
    likely = round_within(values, clip, words(size))
    assert 0 < squared(likely) <= squared_norm_bound(clip, size)


def test_negative_elements_are_cut_towards_zero() -> None:
    size, clip = 10_000, 150
    values = np.full(size, -1.5 * (1 - 1e-9))
    assert squared(round_within(values, clip, all_of(HIGH, size))) == size  # all cut to -1, not to -2


def test_rounding_is_unbiased() -> None:
    values = of_norm(400, 30.0)
    runs = 2_000
    total = sum(round_within(values, 30, words(400, seed)).astype(float) for seed in range(runs))
    error = np.abs(np.asarray(total) / runs - values)
    fraction = values - np.floor(values)
    assert (error < 5 * np.sqrt(fraction * (1 - fraction) / runs) + 1e-6).all()


def test_a_word_rounds_up_with_the_probability_of_the_fraction() -> None:
    values = np.full(3, 0.25)
    assert round_within(values, 2, np.array([2**30 - 1, 2**30, HIGH], np.uint32)).tolist() == [1, 0, 0]
    assert round_within(np.array([-0.25]), 2, np.array([3 * 2**30 - 1], np.uint32)).tolist() == [0]
    assert round_within(np.array([-0.25]), 2, np.array([3 * 2**30], np.uint32)).tolist() == [-1]


def test_integers_stay_and_large_ones_do_not_lose_their_last_bits() -> None:
    values = np.array([float(2**29 + 1), -float(2**29 + 3), 0.0])
    for word in (LOW, HIGH):
        assert round_within(values, CLIP_MOST, all_of(word, 3)).tolist() == [2**29 + 1, -(2**29) - 3, 0]


def test_words_may_come_from_a_call() -> None:
    values = of_norm(50, 9.0)
    np.testing.assert_array_equal(round_within(values, 9, words), round_within(values, 9, words(50)))


def test_the_values_are_left_as_they_were() -> None:
    values = of_norm(50, 9.0)
    before = values.copy()
    round_within(values, 9, words)
    np.testing.assert_array_equal(values, before)


# --- floats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "seed"), [(1, 1), (2, 1), (2, 2), (1_000, 1), (1_000, 2), (20_000, 1)])
def test_a_norm_that_floats_put_a_hair_above_the_clip_is_taken_for_the_clip(size: int, seed: int) -> None:
    clip = 1_000
    values = of_norm(size, clip, seed)
    longer = values * (1 + 2.0**-52)
    for candidate in (values, longer):
        within = rounding._shortened(candidate, clip)
        assert exact_norm_squared(within) <= clip**2
        assert np.abs(within - candidate).max() < 1e-6
        assert squared(round_within(candidate, clip, words(size))) <= squared_norm_bound(clip, size)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.001, 0.0], "beyond the clip"),
        ([math.nan, 0.0], "beyond the clip"),
        ([math.inf, 0.0], "beyond the clip"),
        ([1e200, 0.0], "beyond the clip"),
        ([[0.5], [0.5]], "one row"),
    ],
)
def test_values_that_were_not_clipped_are_refused_in_one_line(values: list[float], said: str) -> None:
    array = np.array(values, np.float64)
    with pytest.raises(PrivacyError, match=said) as refused:
        round_within(array, 1, np.zeros(array.shape, np.uint32))
    assert "\n" not in str(refused.value)
    assert not re.search(r"1\.001|nan|inf|e\+", str(refused.value))  # what they are stays with the owner


@pytest.mark.parametrize(("shape", "kind"), [((3,), np.uint32), ((2,), np.uint64), ((2, 1), np.uint32)])
def test_words_that_do_not_fit_are_refused(shape: tuple[int, ...], kind: type[np.uint32]) -> None:
    with pytest.raises(PrivacyError, match="32-bit random word"):
        round_within(np.zeros(2), 1, np.zeros(shape, kind))


@pytest.mark.parametrize(
    ("clip", "size", "said"),
    [
        (0, 5, "clip of 0"),
        (-1, 5, "clip of -1"),
        (CLIP_MOST + 1, 5, "clip of"),
        (5, -1, "-1 elements"),
        (5, SIZE_MOST + 1, "elements"),
    ],
)
def test_bounds_out_of_range_are_refused(clip: int, size: int, said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        norm_bound(clip, size)


def test_were_a_norm_taken_for_shorter_than_it_is_the_integers_would_still_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A float error that nobody thought of may not put a vector beyond what the accounting knows."""
    random = all_of(LOW, 2)
    monkeypatch.setattr(rounding, "_shortened", lambda values, clip: np.array([3.0, 4.0]))
    assert round_within(np.zeros(2), 5, random).tolist() == [3, 4]  # exactly the clip
    with pytest.raises(PrivacyError, match="beyond the clip"):
        round_within(np.zeros(2), 4, random)


def test_a_hair_above_the_clip_is_the_last_that_is_taken() -> None:
    last = 4 * (1 + (1 + 8) * 2.0**-52)
    assert round_within(np.array([last]), 4, all_of(LOW, 1)).tolist() == [4]
    with pytest.raises(PrivacyError, match="beyond the clip"):
        round_within(np.array([math.nextafter(last, 5)]), 4, all_of(LOW, 1))
