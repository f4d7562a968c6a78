"""Why one response comes before another: which of the owner's own choices speak for it, and which against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from penchant.client.device.preference_store import Recorded
from penchant.client.learning.doubt import Doubt
from penchant.client.learning.influence import influence_of
from penchant.client.learning.laplace import Laplace
from penchant.common.model.davidson import PLAIN, Habits
from penchant.common.model.factors import Vector

__all__ = ["Explanation", "SpeakingChoice", "explained"]

SPEAK_MOST = 3  # choices for, and against


@dataclass(frozen=True)
class SpeakingChoice:
    """One of the owner's choices, and by how much a difference of scores is larger for it being there, in
    log-odds; error: the standard error of that."""

    choice: Recorded = field(repr=False)
    change: float
    error: float


@dataclass(frozen=True)
class Explanation:
    """Why one response comes before the next one below.

    Attributes:
        speak_for, against: the choices that say most, the loudest first.
        heard: how many choices the model was learned from, and are still recorded.
    """

    speak_for: tuple[SpeakingChoice, ...]
    against: tuple[SpeakingChoice, ...]
    heard: int


def explained(
    laplace: Laplace,
    doubt: Doubt,
    personal: Vector,
    texts: Sequence[tuple[str, str]],
    choices: Sequence[Recorded],
    habits: Habits = PLAIN,
) -> list[Explanation]:
    """For each of (prompt, response) texts but the last: why it comes before the next one.

    choices: those that the personal part was learned from; habits: as of `influence_of`, whose errors it has.
    """
    _, gradients = laplace.score_gradients(personal, texts)
    pairs = [row.preference for row in choices]
    found = influence_of(laplace, doubt, personal, gradients[:-1] - gradients[1:], pairs, habits)
    explanations = []
    for change, error in zip(found.change, found.error, strict=True):
        order = np.argsort(-change, kind="stable")
        rows = [SpeakingChoice(choices[i], float(change[i]), float(error[i])) for i in order]
        explanations.append(
            Explanation(
                tuple(row for row in rows[:SPEAK_MOST] if row.change > 0),
                tuple(row for row in rows[::-1][:SPEAK_MOST] if row.change < 0),
                len(choices),
            )
        )
    return explanations
