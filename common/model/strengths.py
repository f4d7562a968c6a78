"""How strongly a response was preferred: the weight of a choice in everything that is learned from it.

A choice of strength s counts as s alike choices do: its log-likelihood is multiplied by s ("scaled
Bradley-Terry": Wang et al., *HelpSteer2-Preference: Complementing Ratings with Preferences*, ICLR 2025,
arXiv 2410.01257). A weight is relative to the person's own mean strength, so that units don't matter (points,
stars, words), all choices of a person count together for as much as without strengths, and so does a choice
whose strength isn't known: 1. A tie has none and counts 1 too. Where nobody says a strength, or somebody
always the same one, there are no weights and nothing changes, to the bit.

Why this and not its rivals: Wang et al. measured it against the margin in the loss of Llama 2 (Touvron et
al. 2023; TRL's `margin`), which shifts the difference of scores by an amount in the scores' own unit, so that
it has to be tuned to the model. The ordinal models (cumulative and adjacent-categories logits: Agresti,
*Analysis of Ordinal Paired Comparison Data*, JRSS C 41, 1992) need each person's thresholds beside the model.
With real people's ratings as strengths, 20 pairs a person (`tests/experiments/strengths.py`), .625 of unseen
pairs are ranked right without them and .631 with this; with adjacent categories .630 to .632, with margins
.629 or .630. A weight also keeps the likelihood log-concave, holds in every batch by itself, and fits any
objective's loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_strength", "strength_of", "weights_of"]


def strength_of(pair: object) -> float | None:
    """How strong a choice is, as its `strength` says; None where that isn't known, as of a tie."""
    found = getattr(pair, "strength", None)
    return None if found is None else float(found)


def mean_strength(pairs: Sequence[object]) -> float:
    """The mean over those whose strength is known; 0 where there is none, or all of them are 0."""
    known = [found for pair in pairs if (found := strength_of(pair)) is not None]
    return sum(known) / len(known) if known else 0.0


def weights_of(pairs: Sequence[object], mean: float | None = None) -> NDArray[np.float64] | None:
    """What each pair counts, float64 [n], 1 on the average; None where each counts 1.

    mean: the strength that counts 1, of all that the person said; by default of these pairs.
    """
    mean = mean_strength(pairs) if mean is None else mean
    if not mean:
        return None
    found = [strength_of(pair) for pair in pairs]
    known = [strength for strength in found if strength is not None]
    if known and len(set(known)) == 1 and _is_mean(known[0], mean):
        return None  # a mean of equal numbers may differ from them in its last digit
    weights = np.array([1.0 if strength is None else strength / mean for strength in found])
    return None if (weights == 1).all() else weights


def _is_mean(strength: float, mean: float) -> bool:
    """Whether a strength is the mean, but for what adding numbers up leaves of it."""
    return math.isclose(strength, mean, rel_tol=1e-12)
