"""The verdict on a canary: how its devices' held-out choices judge it, beside the release in use.

Two runs measure it, one from each release, with the same settings and the same devices. What they count
leaves no device but inside the masked sum of a round, with the noise of the run where it has noise. A
difference within two standard errors, of people and of noise together, is no difference that is known.

Choices of one person are alike, so counts of other people differ by more than as many choices would by
chance: whoever is in the counts of one release alone adds what people differ by. How many choices each of
them judged is in no sum. What is known is how many people these are, and by how much the choices of the two
counts differ, which somebody with many choices of their own makes large. Their part is estimated from both,
and is no bound: with counts as unequal as the tests draw them, fewer than 5% of verdicts on releases that are
as good are false. Where the same people judged both, what they differ by cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from penchant.common.wording import percent, points
from penchant.server.measured import APART
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.standing import RunStanding

__all__ = ["CanaryVerdict", "ReleaseCounts"]

UNEQUAL = 2.0
"""How often the square of what two counts differ by, as a part of the larger, stands for the squared shares
of people with many choices who are in one of them alone. Where either count may miss them, the square is
as large as the sum of theirs on average, and often smaller: hence twice."""

Outcome = Literal["not measured", "hidden", "not known", "better", "worse"]

_TOLD: dict[Outcome, str] = {
    "not measured": "not measured yet",
    "hidden": "not known: the noise hides the counts of so few people",
    "not known": "not known yet: the difference is within what chance and noise make",
    "better": "better than the release in use",
    "worse": "worse than the release in use",
}


@dataclass(frozen=True)
class ReleaseCounts:
    """What masked sums say of one release, by the devices of a canary.

    Attributes:
        people: how many are in the largest of these sums.
        standing: the accuracy with its error, which holds the noise; None where the noise hides it, or nobody
            holds any choices back.
        privacy: what the noise of a measuring run promises; None where sums are exact.
        runs: how many runs measured it.
        parts: member -> the part of the counts that is theirs; None where it is not known who judged.
    """

    people: int
    standing: RunStanding | None
    privacy: PrivacyFigures | None
    runs: int = 1
    parts: Mapping[int, float] | None = None

    def words(self) -> str:
        """The accuracy and whose it is, in words."""
        known = self.standing
        shown = "no accuracy" if known is None else percent(known.accuracy, error=known.error)
        noise = (
            "sums over secure aggregation, not noised"
            if self.privacy is None
            else f"noised, {self.privacy.words()} for each person and run"
        )
        often = f" in {self.runs} runs" if self.runs > 1 else ""
        return f"{shown} of {self.people} people{often} ({noise})"


@dataclass(frozen=True)
class CanaryVerdict:
    """What is known of a canary and of the release in use; None for one that is not measured."""

    tried: ReleaseCounts | None = None
    used: ReleaseCounts | None = None

    @property
    def outcome(self) -> Outcome:
        """Better or worse only where the difference is more than chance and noise would make."""
        if self.tried is None or self.used is None:
            return "not measured"
        tried, used = self.tried.standing, self.used.standing
        if tried is None or used is None:
            return "hidden"
        variance = tried.error**2 + used.error**2 + _between_people(self.tried, self.used)
        if abs(tried.accuracy - used.accuracy) <= APART * sqrt(variance):
            return "not known"
        return "better" if tried.accuracy > used.accuracy else "worse"

    def words(self) -> str:
        """The verdict in a line."""
        told = _TOLD[self.outcome]
        if self.tried is None or self.used is None:
            return told
        if self.tried.standing is not None and self.used.standing is not None:
            told += f", by {points(self.tried.standing.accuracy - self.used.standing.accuracy)} points"
        told += f"; canary {self.tried.words()}, in use {self.used.words()}"
        return told + ("; what other people differ by is estimated" if self._is_of_others else "")

    @property
    def _is_of_others(self) -> bool:
        """Whether not the same people judged both, as far as an error of choices is known."""
        if self.tried is None or self.used is None:
            return False
        both = self.tried.standing, self.used.standing
        known = all(one is not None and one.judged is not None for one in both)
        return known and (self.tried.parts is None or self.tried.parts != self.used.parts)


def _between_people(tried: ReleaseCounts, used: ReleaseCounts) -> float:
    """About what people differ by of whom one of two counts holds more, as a variance. Where noise hides how
    many choices there are, each error has it: a person counts as one choice there."""
    first, second = tried.standing, used.standing
    if first is None or second is None or first.judged is None or second.judged is None:
        return 0.0
    part = (first.accuracy + second.accuracy) / 2  # people's accuracies vary by part * (1 - part) at most
    choices = first.judged / tried.runs, second.judged / used.runs
    unequal = (choices[0] - choices[1]) / max(choices)
    return part * (1 - part) * (_squared_shares(tried, used) + UNEQUAL * unequal**2)


def _squared_shares(tried: ReleaseCounts, used: ReleaseCounts) -> float:
    """The sum over people of the squares of what their shares of two counts differ by, if all of a count have
    the same share."""
    if tried.parts is None or used.parts is None:
        return 1 / tried.people + 1 / used.people  # as if they were all others
    whose = {*tried.parts, *used.parts}
    return sum((tried.parts.get(one, 0.0) - used.parts.get(one, 0.0)) ** 2 for one in whose)
