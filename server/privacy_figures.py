"""What a run's noise amounts to: the promise of the whole run, and how much of it is spent by now."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Self

from penchant.common.config import RunConfig
from penchant.common.errors import JournalError, PrivacyError
from penchant.common.privacy.accounting import check_target, epsilon_of

__all__ = ["EXACT", "FACT", "PrivacyFigures", "not_begun"]

FACT = "privacy"
"""The name under which a journal keeps them."""

EXACT = (
    "No differential privacy: sums are exact, no epsilon bounds what they tell of one person, and devices "
    "take part only where their owners allow that (allow_exact_sums). With privacy.dp_epsilon they add noise."
)
"""What is said of a run without noise."""

MEASURED_NORM = 4.63
"""The longest noise that was measured (docs/privacy.md#in-accuracy), in lengths as of `noise_norm`."""

MEASURED = "which took a twelfth to five sixths of what people learn together where it was measured"
"""What noise of a norm from 1 to MEASURED_NORM costs."""

BEYOND = "longer than any that was measured, so little of what people learn together may be left"


def not_begun(config: RunConfig | None) -> str:
    """What is said of a run whose journal has no figures: its process notes them when it begins."""
    if config is None or not config.privacy.dp_epsilon:
        return "no noise: sums are exact"
    return f"epsilon 0 of {config.privacy.dp_epsilon:g}, delta {config.privacy.dp_delta:g}: it has not begun"


@dataclass(frozen=True)
class PrivacyFigures:
    """The differential privacy of a run, for each person in it: what changes in all that is released if the
    person's choices are replaced by none.

    Attributes:
        epsilon: the bound for the whole run, closing round and failed attempts included.
        delta: the delta that belongs to it.
        noise_multiplier: the standard deviation of a sum's noise over what one person can change.
        participations: how often one person takes part at most.
        honest: how many honest people's noise every sum holds.
        rho: the cost of one participation, in zero-concentrated differential privacy.
        noise_norm: about how long the noise on a round's mean update is where nobody is lost, as a multiple
            of the longest update that one person can send.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    participations: int
    honest: int
    rho: float
    noise_norm: float

    def to_dict(self) -> dict[str, float | int]:
        """As result.json and release.json hold them."""
        return asdict(self)

    def encode(self) -> str:
        """As the journal keeps them."""
        return json.dumps(self.to_dict())

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Those that a journal keeps; None where it keeps none. JournalError for anything else."""
        if text is None:
            return None
        try:
            found = json.loads(text)
            values = {f.name: found[f.name] for f in fields(cls)}
            sound = all(type(v) in (int, float) and math.isfinite(v) and v > 0 for v in values.values())
            check_target(values["epsilon"], values["delta"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, PrivacyError):
            sound = False
        if not sound:
            raise JournalError("the journal's figures of differential privacy can't be read")
        return cls(**values)

    def spent(self, attempts: int) -> float:
        """The epsilon that one person has spent at most after so many attempts at rounds."""
        taken = min(attempts, self.participations)
        return epsilon_of(taken * self.rho, self.delta)

    @property
    def told(self) -> str:
        """What whoever begins the run is told of it, in one line."""
        return f"Differential privacy: {self.words()} for each person{self._drowned and '; '}{self._drowned}."

    @property
    def caveat(self) -> str:
        """What must be said where the noise is longer than what anybody can send; empty elsewhere."""
        return f"Differential privacy: {self._drowned}." if self._drowned else ""

    @property
    def _drowned(self) -> str:
        if self.noise_norm <= 1:
            return ""
        cost = MEASURED if self.noise_norm <= MEASURED_NORM else BEYOND
        return (
            f"the noise on a round's mean update is {self.noise_norm:.1f} times as long as one person's "
            f"update can be, {cost}; more people a round or a smaller shared part would make it shorter"
        )

    def words(self, attempts: int | None = None) -> str:
        """In words; attempts: how many there were so far."""
        far = "" if attempts is None else f"{self.spent(attempts):.3g} of "
        return f"epsilon {far}{self.epsilon:g}, delta {self.delta:g}"
