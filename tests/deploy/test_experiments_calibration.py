"""Reliability and calibration error: by hand, on draws that are right by construction, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from support.calibration import Bin, calibration_error, reliability

from penchant.common.errors import DataError


def test_a_worked_example():
    """Four at 90 %, three of them right; two at 60 %, one of them right."""
    chosen = np.array([0.91, 0.91, 0.91, 0.09, 0.62, 0.38])
    low, high = reliability(chosen)
    assert (low.confidence, low.accuracy, low.count) == (pytest.approx(0.62), 0.5, 2)
    assert (high.confidence, high.accuracy, high.count) == (pytest.approx(0.91), 0.75, 4)
    assert calibration_error(chosen) == pytest.approx((4 * 0.16 + 2 * 0.12) / 6)


def test_probabilities_that_are_true_have_next_to_no_error():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    chosen = np.where(rng.random(len(p)) < p, p, 1 - p)
    assert calibration_error(chosen) < 0.005
    assert sum(b.count for b in reliability(chosen)) == len(chosen)


def test_being_too_sure_shows():
    rng = np.random.default_rng(0)
    right = rng.random(100_000) < 0.7
    assert calibration_error(np.where(right, 0.95, 0.05)) == pytest.approx(0.25, abs=0.01)


def test_certainty_and_a_toss_up_have_their_place():
    assert reliability(np.array([1.0])) == [Bin(1.0, 1.0, 1)]
    assert reliability(np.array([0.0])) == [Bin(1.0, 0.0, 1)]
    assert reliability(np.array([0.5])) == [Bin(0.5, 0.5, 1)]


@pytest.mark.parametrize("wrong", [[], [1.2], [-0.1], [float("nan")]])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(DataError, match="between 0 and 1"):
        calibration_error(np.array(wrong))
