"""What one device adds to a round, and how a round's sum is read: the vector inside the masks.

Everything a device says about its data travels in there and nowhere else: its weighted update, example
weight, loss, correct and total counts, and its place in a coarse histogram of accuracies
(docs/protocol.md#vectors).

Where a plan promises differential privacy, the vector is another one: every person counts as one, each count
is one number a person, update and counts together have a bounded L2 norm, and noise comes on top
(docs/privacy.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from penchant.common.config import Plan
from penchant.common.crypto.entropy import Entropy
from penchant.common.crypto.masks import Ring, ring_type
from penchant.common.errors import ConfigError, QuantiserError
from penchant.common.model.factors import Split
from penchant.common.privacy.discrete_gaussian import discrete_gaussian
from penchant.common.privacy.noise import Noise, solve
from penchant.common.privacy.rounding import norm_bound, round_within
from penchant.common.secagg.quantization import Counter, Quantiser, uniform_words

__all__ = [
    "BINS",
    "BIN_NAMES",
    "CORRECT",
    "COUNTERS",
    "COUNT_PART",
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

_HAIR = 1 - 1e-9  # so that float arithmetic does not carry a norm over its bound

COUNT_PART = 0.1
"""Under differential privacy: the largest part of a person's norm bound that one count takes. At most five
counts of a person differ from 0, so they take no more than 0.23 of it together."""

COUNT_ERROR = 0.05
"""Counts are not shown when their noise has a larger standard deviation, as a part of their range."""

_TAIL = 40 * np.log(2)  # noise beyond its bound has the probability 2^-40


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
        mean: the example-weighted mean update, float64 [d]; with noise everybody counts as one.
        weight: the sum of the example weights; with noise the number of people.
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
    """The vector of a round under a plan: the same for the server and for each device.

    Attributes:
        quantiser: real numbers to ring elements and back.
        clip: the largest L2 norm of an update; with noise, of the whole vector.
        group: the most devices in one sum.
        noise: what every device adds at most; None where sums are exact.
        honest: how many honest people's noise every sum holds at least, with noise.
    """

    quantiser: Quantiser
    clip: float
    group: int
    noise: Noise | None = None
    honest: int = 0

    @classmethod
    def of(cls, plan: Plan, split: Split) -> UpdateLayout:
        """The form that `plan` fixes.

        Raises QuantiserError when no ring rules out overflow, ConfigError when no noise keeps the plan's
        promise.
        """
        size = 0 if plan.phase == "close" else split.shared.size
        group = min(plan.group_size, max(plan.cohort, 1))
        if plan.dp_epsilon:
            return cls._with_noise(plan, size, group)
        quantiser = Quantiser.choose(
            size=size,
            members=group,
            weight=plan.max_weight,
            clip=plan.clip,
            counters=_counters(plan.max_weight),
            ring=plan.ring_bits,
        )
        return cls(quantiser, plan.clip, group)

    @classmethod
    def _with_noise(cls, plan: Plan, size: int, group: int) -> UpdateLayout:
        noise = solve(
            epsilon=plan.dp_epsilon,
            delta=plan.dp_delta,
            participations=plan.dp_participations,
            size=size + len(COUNTERS),
            honest=plan.dp_honest,
        )
        if not noise.fits(group, plan.ring_bits, -(-max(plan.cohort, 1) // group)):
            raise QuantiserError(
                f"the noise of {group} devices may overflow a ring of {plan.ring_bits} bits: lower the group "
                "size or raise epsilon" + ("" if plan.ring_bits == 64 else ", or use 64 bits")
            )
        counters = _counters_a_person(noise.clip)
        quantiser = Quantiser(size, group, 1, plan.clip, counters, plan.ring_bits, noise.clip)
        return cls(quantiser, plan.clip, group, noise, plan.dp_honest)

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
        """A device's vector, before any noise: its update clipped to the L2 norm `clip`, weight and counts to
        their bounds; where noise comes on top, the whole of it clipped to that norm.

        key: 32 secret bytes for the rounding, new for each round. Raises QuantiserError for what is no
        number, ConfigError for more validation pairs than are counted.
        """
        if self.noise is not None:
            return self._bounded(contribution, self.noise, key)
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
        counts |= _histogram(contribution)
        return self.quantiser.quantise(_clipped(contribution.update, self.clip), weight, counts, key)

    def draw_noise(self, entropy: Entropy, honest: int) -> Ring | None:
        """A device's part of the noise, drawn anew: ring elements [words]; None where sums are exact.

        honest: how many honest people's noise the sum will hold. Where that is more than the plan counts on,
        each adds less, and together they add as much.
        """
        if self.noise is None:
            return None
        drawn = discrete_gaussian(self.words, self.device_sigma(self.noise, honest), entropy)
        return drawn.astype(f"<i{self.ring // 8}").view(ring_type(self.ring))

    def device_sigma(self, noise: Noise, honest: int) -> int:
        """The sigma of one device's part of `noise`, in units of the ring; honest: as for `draw_noise`."""
        spare = self.honest / max(honest, 1)
        return noise.sigma if spare >= 1 else ceil(noise.sigma * sqrt(spare) * (1 + 1e-12))

    def with_noise(self, vector: Ring, noise: Ring | None) -> Ring:
        """The vector and the noise, modulo the ring."""
        if noise is None:
            return vector
        added: Ring = vector + noise
        return added

    def _bounded(self, contribution: Contribution, noise: Noise, key: bytes) -> Ring:
        """Update and counts of one person as one vector, whose norm in the ring is at most `norm_bound`."""
        quantiser, there = self.quantiser, contribution.weight > 0
        if contribution.update.shape != (quantiser.size,):
            raise QuantiserError(f"the update must have {quantiser.size} elements")
        counts = _counts_a_person(contribution)
        values = np.concatenate(
            (
                contribution.update.astype(np.float64) * (there / quantiser.step),
                [counts[counter.name] / counter.unit for counter in quantiser.counters],
            )
        )  # [words], in units of the ring
        if not np.isfinite(values).all():
            raise QuantiserError("the update holds a NaN or an infinity")
        norm = float(np.linalg.norm(values))
        values *= min(1.0, noise.clip * _HAIR / max(norm, 1.0))  # computed in any case
        rounded = round_within(values, noise.clip, uniform_words(key, values.size))
        return rounded.astype(f"<i{self.ring // 8}").view(ring_type(self.ring))

    def fault(self, total: NDArray[np.int64], people: int) -> str:
        """Why no `people` devices that keep to the bounds can have made this sum; "" where they can.

        The bounds are public: what `quantise` holds every device to, added up. With noise an honest sum lies
        outside with a probability of 2^-39 at most.
        """
        if self.noise is not None:
            return self._noised_fault(total, people, self.noise)
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

    def _noised_fault(self, total: NDArray[np.int64], people: int, noise: Noise) -> str:
        """The same with noise. Its norm: Hsu, Kakade and Zhang 2012, theorem 2.1 (sub-Gaussian vectors)."""
        slack, size = noise.tail(people), self.quantiser.size
        for counter, found in zip(self.quantiser.counters, total[size:].tolist(), strict=True):
            most = people * (counter.bound + 1) + slack
            if not -slack <= found <= most:
                return f"{found} units of {counter.name}, {-slack} to {most} can be"
        norm = float(np.linalg.norm(total[:size].astype(np.float64)))
        spread = noise.sigma * np.sqrt(people * (size + 2 * np.sqrt(size * _TAIL) + 2 * _TAIL))
        most_norm = people * norm_bound(noise.clip, noise.size) + float(spread)
        return "" if norm <= most_norm else f"an update of norm {norm:.6g}, at most {most_norm:.6g} can be"

    def _too_long(self, update: NDArray[np.int64], weight: int, people: int) -> str:
        """Of an update's sum: clipped by each device, each with a rounding error below a step an element."""
        step, size = self.quantiser.step, self.quantiser.size
        norm = float(np.linalg.norm(update.astype(np.float64))) * step
        most = weight * self.clip + min(people, weight) * step * float(np.sqrt(size))
        return "" if norm <= most else f"an update of norm {norm:.6g}, at most {most:.6g} can be"

    def count_error(self, people: int) -> float:
        """The standard deviation of the noise on a count's mean over `people`, as a part of its range; 0
        where sums are exact."""
        if self.noise is None:
            return 0.0
        return self.noise.sigma / (COUNT_PART * self.noise.clip * sqrt(people))

    def shows_counts(self, people: int) -> bool:
        """Whether the sum of `people` says how many held-out choices are ranked right."""
        return self.count_error(people) <= COUNT_ERROR

    def read(self, total: NDArray[np.int64], people: int) -> RoundSums:
        """What the sum of the vectors (int64 [words]) of `people` survivors says."""
        update, counts = self.quantiser.dequantise(total)
        if self.noise is not None:
            return _noised_sums(update, counts, people, self.count_error(people))
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


def _counters_a_person(levels: int) -> tuple[Counter, ...]:
    """The counts of a noised vector: each goes up to COUNT_PART of the norm bound, `levels` in the ring."""
    most = {LOSS: LOSS_MOST}
    units = max(int(levels * COUNT_PART), 1)
    return tuple(Counter(name, most.get(name, 1), most.get(name, 1) / units) for name in COUNTERS)


def _counts_a_person(contribution: Contribution) -> dict[str, float]:
    """One number for each count, whoever has how many pairs: whether there are any, mean loss, accuracy."""
    weight, total = contribution.weight, contribution.total
    counts: dict[str, float] = {
        WEIGHT: 1 if weight else 0,
        LOSS: min(max(contribution.loss / weight, 0.0), LOSS_MOST) if weight else 0.0,
        CORRECT: contribution.correct / total if total else 0.0,
        TOTAL: 1 if total else 0,
    }
    return counts | _histogram(contribution)


def _histogram(contribution: Contribution) -> dict[str, float]:
    bins: dict[str, float] = dict.fromkeys(BIN_NAMES, 0)
    if contribution.in_histogram and contribution.total:
        bins[BIN_NAMES[min(contribution.correct * BINS // contribution.total, BINS - 1)]] = 1
    return bins


def _noised_sums(
    update: NDArray[np.float64], counts: dict[str, float], people: int, error: float
) -> RoundSums:
    """What a noised sum says. People are counted in public; a noised count that can't be is taken as the
    nearest one that can, and says nothing where noise is most of it.

    error: the standard deviation of the noise of a count's mean over people, as a part of its range.
    """
    if error > COUNT_ERROR:
        return RoundSums(update / people, people, None, 0, 0, None)

    def within(value: float, most: int) -> int:
        return min(max(round(value), 0), most)

    judged = within(counts[TOTAL], people)
    bins = tuple(within(counts[name], people) for name in BIN_NAMES)
    return RoundSums(
        mean=update / people,
        weight=people,
        train_loss=max(counts[LOSS], 0.0) / people,
        correct=within(counts[CORRECT], judged),
        total=judged,
        histogram=bins if any(bins) else None,
    )


def _outside(what: str, found: int, most: int) -> str:
    return "" if 0 <= found <= most else f"{found} {what}, 0 to {most} can be"


def _clipped(update: NDArray[np.float32], clip: float) -> NDArray[np.float32]:
    """`update` scaled down to the L2 norm `clip`; NaN and infinities are left in, and refused later.

    It is multiplied in any case, by 1 where it is short: how long this takes does not tell which it was.
    """
    exact = update.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    # A hair less, so that float32 rounding does not carry a lone large element over the bound again.
    scale = clip / norm * (1 - 1e-6) if clip < norm < np.inf else 1.0
    return (exact * scale).astype(np.float32)
