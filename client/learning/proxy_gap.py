"""Whether a model may be taken at its word where it is surest: where a proxy parts from what its owner wants.

A model of somebody's choices is a proxy of them. Who takes the best of n responses, or trains a policy, goes
by its largest margins, and there a proxy errs most: what it promises grows with n, what its owner gets of it
does not (Gao, Schulman and Hilton, *Scaling Laws for Reward Model Overoptimization*, ICML 2023). Held-out
choices are the gold at hand: of those with the largest margins a model expects to be right in so many, which
follows from the margins alone, and it was right in so many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penchant.common.wire.codec import U32, Exactly, decode_record, encode_record
from penchant.common.wording import percent

__all__ = ["ProxyGap", "proxy_gap"]

ALPHA = 0.025
"""How likely a warning may be of a model that is right about itself, where no two choices share a response.
Of choices that do, as pairs made of ratings, fewer are independent, and up to one such model in seven is
warned of."""
LEAST = 0.05
"""A smaller gap is no reason to warn, however many choices show it."""
_EXACT_MOST = 2000  # choices: of more, sums are normal enough


@dataclass(frozen=True, slots=True)
class _KeptGap:
    choices: U32
    parts: Annotated[bytes, Exactly(24)]  # expected, observed, chance: float64


@dataclass(frozen=True)
class ProxyGap:
    """The half of some held-out choices of which a model is surest.

    Attributes:
        choices: how many they are.
        expected: the part of them in which the model expects to be right, by its margins.
        observed: the part in which it was.
        chance: how likely so few or fewer would be if the margins were right.
    """

    choices: int
    expected: float
    observed: float
    chance: float

    @property
    def parts(self) -> bool:
        """Whether the model promises more than it keeps: beyond noise, and by enough to matter."""
        return self.chance <= ALPHA and self.expected - self.observed >= LEAST

    def warning(self, who: str = "the models are", whose: str = "owners") -> str:
        """One sentence, for whoever takes the best of several responses."""
        return (
            f"Where {who} surest (the {self.choices} held-out choices with the largest margins) "
            f"{percent(self.expected)} were to be ranked right, and {whose} agreed in "
            f"{percent(self.observed)}: a best of n goes by such margins, so it brings less than scores say, "
            "and a larger n may bring nothing."
        )

    def encode(self) -> bytes:
        """Bytes for the device's own sealed store."""
        numbers = np.array([self.expected, self.observed, self.chance], dtype="<f8")
        return encode_record(_KeptGap(self.choices, numbers.tobytes()))

    @classmethod
    def decode(cls, data: bytes) -> ProxyGap:
        """Undo `encode`; raises `CodecError` of anything else."""
        kept = decode_record(data, _KeptGap)
        return cls(kept.choices, *map(float, np.frombuffer(kept.parts, "<f8")))


def proxy_gap(margins: ArrayLike) -> ProxyGap | None:
    """Of the margins (log-odds, [m]) of held-out choices: score of the chosen less that of the other.

    The surest half are those with the largest margins either way. Ties are for the caller to leave out;
    margins of zero say nothing and are left out here. None where none is left.
    """
    known = np.asarray(margins, dtype=np.float64)
    known = known[known != 0]
    if not known.size:
        return None
    surest = known[np.argsort(-np.abs(known), kind="stable")[: math.ceil(known.size / 2)]]
    right = 1 / (1 + np.exp(-np.abs(surest)))
    correct = int((surest > 0).sum())
    return ProxyGap(
        choices=len(surest),
        expected=float(right.mean()),
        observed=correct / len(surest),
        chance=_at_most(correct, right),
    )


def _at_most(count: int, chances: NDArray[np.float64]) -> float:
    """How likely `count` or fewer of independent events are, of these chances (Poisson's binomial law)."""
    if len(chances) > _EXACT_MOST:
        away = (count + 0.5 - chances.sum()) / max(math.sqrt((chances * (1 - chances)).sum()), 1e-12)
        return 0.5 * math.erfc(-away / math.sqrt(2))
    law = np.ones(1)
    for chance in chances:
        law = np.convolve(law, (1 - chance, chance))
    return float(min(law[: count + 1].sum(), 1.0))
