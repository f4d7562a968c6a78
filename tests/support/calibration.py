"""Whether probabilities mean what they say: reliability by bins, and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from support.teacher import Array

from penchant.common.errors import DataError

__all__ = ["Bin", "calibration_error", "reliability"]

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence.

    confidence: their mean probability of the response held likelier, from 1/2 to 1. accuracy: how many of
    them were right, as a part of 1. count: how many there are.
    """

    confidence: float
    accuracy: float
    count: int


def reliability(probabilities: Array, bins: int = BINS) -> list[Bin]:
    """Bins of equal width over confidences from 1/2 to 1, empty ones left out.

    probabilities: of what was really chosen, [n]; the response held likelier is right where that is above
    1/2. At exactly 1/2 no side is held likelier: it counts as half right.

    Raises:
        DataError: there is none, or one is no probability.
    """
    if not len(probabilities) or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError("calibration needs probabilities between 0 and 1, at least one of them")
    confidence = np.maximum(probabilities, 1 - probabilities)
    right = np.where(probabilities == 0.5, 0.5, probabilities > 0.5)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return [
        Bin(float(confidence[here].mean()), float(right[here].mean()), int(here.sum()))
        for here in (place == index for index in range(bins))
        if here.any()
    ]


def calibration_error(probabilities: Array, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015): the mean over predictions of the distance
    between confidence and accuracy of their bin. Errors as `reliability`."""
    found = reliability(probabilities, bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / len(probabilities)
