"""What one device adds to a round, and how a round's sum is read: the vector inside the masks.

Everything a device says about its data travels in there and nowhere else: its weighted update, example
weight, loss, correct and total counts, and its place in a coarse histogram of accuracies
(docs/protocol.md#vectors).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penchant.common.config import Plan
from penchant.common.crypto.masks import Ring
from penchant.common.errors import ConfigError
from penchant.common.model.factors import Split
from penchant.common.secagg.quantization import Counter, Quantiser

__all__ = [
    "BINS",
    "BIN_NAMES",
    "CORRECT",
    "COUNTERS",
    "HONEST_FOR_HISTOGRAM",
    "JUDGED_MOST",
    "LOSS",
    "TOTAL",
    "WEIGHT",
    "Contribution",
    "RoundSums",
    "UpdateLayout",
]

BINS = 10
BIN_NAMES = tuple(f"accuracy {i}/{BINS}" for i in range(BINS))
"""The counters of the histogram: people per tenth of validation accuracy."""

WEIGHT, LOSS, CORRECT, TOTAL = "weight", "loss", "correct", "total"

COUNTERS = (WEIGHT, LOSS, CORRECT, TOTAL, *BIN_NAMES)
"""What a vector counts behind the update, in its order."""

HONEST_FOR_HISTOGRAM = 20
"""A device leaves its bin empty unless the sum holds at least this many honest people."""

JUDGED_MOST = 1024
"""Validation pairs that a device counts at most."""

LOSS_MOST = 8.0  # nats a pair; a larger mean loss counts as this
LOSS_UNIT = 2.0**-7  # nats; the sum of losses is rounded to it


@dataclass(frozen=True)
class Contribution:
    """One device's part of a round.

    Attributes:
        update: what training changed in the shared vector, float32 [d]; empty in a closing round.
        weight: how many training pairs it learned from.
        loss: the sum of their losses under the model that the round started from.
        correct: how many of its validation pairs that model ranks right.
        total: how many validation pairs it has.
        in_histogram: whether it shows its tenth of accuracy.
    """

    update: NDArray[np.float32] = field(repr=False)
    weight: int = field(repr=False)
    loss: float = field(repr=False)
    correct: int = field(repr=False)
    total: int = field(repr=False)
    in_histogram: bool = False

    @classmethod
    def nothing(cls, size: int) -> Contribution:
        """What a device adds that has nothing to add: `size` zeros, with weight 0."""
        return cls(np.zeros(size, dtype=np.float32), weight=0, loss=0.0, correct=0, total=0)


@dataclass(frozen=True)
class RoundSums:
    """What a round's sum says.

    Attributes:
        mean: the example-weighted mean update, float64 [d].
        weight: the sum of the example weights.
        train_loss: the mean loss of a training pair; None without pairs.
        correct: how many validation pairs were ranked right.
        total: how many validation pairs there are.
        histogram: how many people lie in each tenth of validation accuracy; None where nobody showed theirs.
    """

    mean: NDArray[np.float64] = field(repr=False)
    weight: int
    train_loss: float | None
    correct: int
    total: int
    histogram: tuple[int, ...] | None

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.total if self.total else None


@dataclass(frozen=True)
class UpdateLayout:
    """The vector of a round under a plan: the same for the server and for each device."""

    quantiser: Quantiser
    clip: float
    group: int  # most devices in one sum

    @classmethod
    def of(cls, plan: Plan, split: Split) -> UpdateLayout:
        """The form that `plan` fixes. Raises QuantiserError when no ring rules out overflow."""
        size = 0 if plan.phase == "close" else split.shared.size
        group = min(plan.group_size, max(plan.cohort, 1))
        quantiser = Quantiser.choose(
            size=size,
            members=group,
            weight=plan.max_weight,
            clip=plan.clip,
            counters=_counters(plan.max_weight),
            ring=plan.ring_bits,
        )
        return cls(quantiser, plan.clip, group)

    @property
    def ring(self) -> int:
        """Bits of a ring element."""
        return self.quantiser.ring

    @property
    def words(self) -> int:
        """Ring elements of a device's vector."""
        return self.quantiser.length

    def parts(self, split: Split) -> list[tuple[str, int]]:
        """(name, bytes) of all that a device's vector holds, in its order: shared tensors, then counts."""
        width = self.ring // 8
        specs = split.shared.specs if self.quantiser.size else ()
        return [*((spec.name, spec.size * width) for spec in specs), *((name, width) for name in COUNTERS)]

    def quantise(self, contribution: Contribution, key: bytes) -> Ring:
        """A device's vector: its update clipped to the L2 norm `clip`, weight and counts to their bounds.

        key: 32 secret bytes for the rounding, new for each round. Raises QuantiserError for what is no
        number, ConfigError for more validation pairs than are counted.
        """
        if contribution.total > JUDGED_MOST:
            raise ConfigError(f"{contribution.total} validation pairs; at most {JUDGED_MOST} are counted")
        weight = min(contribution.weight, self.quantiser.weight)
        mean_loss = contribution.loss / contribution.weight if contribution.weight else 0.0
        counts: dict[str, float] = {
            WEIGHT: weight,
            LOSS: min(max(mean_loss, 0.0), LOSS_MOST) * weight,
            CORRECT: contribution.correct,
            TOTAL: contribution.total,
        }
        counts |= dict.fromkeys(BIN_NAMES, 0)
        if contribution.in_histogram and contribution.total:
            counts[BIN_NAMES[min(contribution.correct * BINS // contribution.total, BINS - 1)]] = 1
        return self.quantiser.quantise(_clipped(contribution.update, self.clip), weight, counts, key)

    def fault(self, total: NDArray[np.int64], people: int) -> str:
        """Why no `people` devices that keep to the bounds can have made this sum; "" where they can.

        The bounds are public: what `quantise` holds every device to, added up.
        """
        counts = dict(
            zip((c.name for c in self.quantiser.counters), total[self.quantiser.size :].tolist(), strict=True)
        )
        weight, judged = counts[WEIGHT], counts[TOTAL]
        shown = [counts[name] for name in BIN_NAMES]
        return (
            _outside("weight", weight, people * self.quantiser.weight)
            or _outside("loss", counts[LOSS], weight * round(LOSS_MOST / LOSS_UNIT))
            or _outside("pairs judged", judged, people * JUDGED_MOST)
            or _outside("pairs ranked right", counts[CORRECT], judged)
            or next((fault for n in shown if (fault := _outside("people of a tenth", n, people))), "")
            or _outside("people of all tenths", sum(shown), min(people, judged))
            or self._too_long(total[: self.quantiser.size], weight, people)
        )

    def _too_long(self, update: NDArray[np.int64], weight: int, people: int) -> str:
        """Of an update's sum: clipped by each device, each with a rounding error below a step an element."""
        step, size = self.quantiser.step, self.quantiser.size
        norm = float(np.linalg.norm(update.astype(np.float64))) * step
        most = weight * self.clip + min(people, weight) * step * float(np.sqrt(size))
        return "" if norm <= most else f"an update of norm {norm:.6g}, at most {most:.6g} can be"

    def read(self, total: NDArray[np.int64]) -> RoundSums:
        """What the sum of the survivors' vectors (int64 [words]) says."""
        update, counts = self.quantiser.dequantise(total)
        weight = counts[WEIGHT]
        bins = tuple(int(counts[name]) for name in BIN_NAMES)
        return RoundSums(
            mean=update / weight if weight else update * 0.0,
            weight=int(weight),
            train_loss=counts[LOSS] / weight if weight else None,
            correct=int(counts[CORRECT]),
            total=int(counts[TOTAL]),
            histogram=bins if any(bins) else None,
        )


def _counters(max_weight: int) -> tuple[Counter, ...]:
    return (
        Counter(WEIGHT, max_weight),
        Counter(LOSS, LOSS_MOST * max_weight, LOSS_UNIT),
        Counter(CORRECT, JUDGED_MOST),
        Counter(TOTAL, JUDGED_MOST),
        *(Counter(name, 1) for name in BIN_NAMES),
    )


def _outside(what: str, found: int, most: int) -> str:
    return "" if 0 <= found <= most else f"{found} {what}, 0 to {most} can be"


def _clipped(update: NDArray[np.float32], clip: float) -> NDArray[np.float32]:
    """`update` scaled down to the L2 norm `clip`; NaN and infinities are left in, and refused later."""
    norm = float(np.linalg.norm(update.astype(np.float64)))
    if norm <= clip or not np.isfinite(norm):
        return update
    # A hair less, so that float32 rounding does not carry a lone large element over the bound again.
    return (update.astype(np.float64) * (clip / norm * (1 - 1e-6))).astype(np.float32)
