"""What a device adds to a round: it is read back as it was, bounded, and holds nothing but what it says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.config import AdapterConfig, FederationConfig, PrivacyConfig, RunConfig
from penchant.common.crypto.masks import Ring
from penchant.common.errors import ConfigError, QuantiserError
from penchant.common.model.factors import AdaptedModule, Split
from penchant.common.secagg.update_vector import BINS, JUDGED_MOST, Contribution, RoundSums, UpdateLayout

SLOTS = (AdaptedModule("block.0.dense", 3, 4), AdaptedModule("block.1.dense", 3, 4))
COUNTERS = ["weight", "loss", "correct", "total", *(f"accuracy {i}/{BINS}" for i in range(BINS))]


def layout(
    phase: Any = "main", *, cohort: int = 8, clip: float = 2.0, share: Any = "A", **privacy: Any
) -> tuple[UpdateLayout, Split]:
    """The form of a round on two tiny modules, weights up to 64."""
    config = RunConfig(
        adapter=AdapterConfig(share=share),
        federation=FederationConfig(clip=clip, max_weight=64, rounds=3, warmup_rounds=1),
        privacy=PrivacyConfig(**privacy),
    )
    plan = config.plan(phase, cohort)
    split = Split.of(SLOTS, 3, plan.adapter, warmup=phase == "warmup", seed=0)
    return UpdateLayout.of(plan, split), split


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def part(update: Sequence[float] | np.ndarray, **changes: Any) -> Contribution:
    """A contribution of 10 pairs with loss 7, 3 of 4 validation pairs right."""
    usual = Contribution(np.asarray(update, np.float32), weight=10, loss=7.0, correct=3, total=4)
    return replace(usual, **changes)


def added(layout: UpdateLayout, parts: Sequence[Contribution]) -> RoundSums:
    """What the server reads from the sum of these devices' vectors, added in the ring."""
    total: Ring = np.zeros(layout.words, f"<u{layout.ring // 8}")
    for number, each in enumerate(parts):
        total = total + layout.quantise(each, key(number))
    return layout.read(total.view(f"<i{layout.ring // 8}").astype(np.int64), len(parts))


def updates(layout: UpdateLayout, count: int, *, norm: float) -> list[np.ndarray]:
    """Random updates of a given L2 norm, float32 [size]."""
    draw = np.random.default_rng(count)
    raw = draw.normal(size=(count, layout.quantiser.size))
    return list((raw / np.linalg.norm(raw, axis=1, keepdims=True) * norm).astype(np.float32))


# --- what a vector holds --------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["warmup", "main", "close"])
@pytest.mark.parametrize("share", ["B", "A", "kernel", "svd", "mixed"])
def test_a_vector_holds_the_shared_tensors_and_the_counters_and_nothing_else(phase: Any, share: Any) -> None:
    """Counted by hand: A is 2 × 3, B is 4 × 2, twice; the shared head has 3 weights."""
    a, b, head = 2 * (2 * 3), 2 * (4 * 2), 3
    sizes = {
        "B": b + head,
        "A": a + head,
        "kernel": a + b + head,
        "svd": a + b + head,
        "mixed": a + b + 1 + head,
    }
    expected = {"warmup": a + b + head, "main": sizes[share], "close": 0}[phase]
    this, split = layout(phase, share=share)
    assert this.quantiser.size == expected
    assert [counter.name for counter in this.quantiser.counters] == COUNTERS
    assert this.words == expected + 4 + BINS
    assert phase == "close" or split.shared.size == expected
    assert this.quantise(part(np.zeros(expected)), key(0)).shape == (this.words,)


@pytest.mark.parametrize("size", [0, 14, 16])
def test_an_update_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(QuantiserError, match="the update must have 15 elements"):
        layout()[0].quantise(part(np.zeros(size)), key(0))


def test_a_closing_round_takes_counts_and_no_tensors() -> None:
    close, _ = layout("close")
    with pytest.raises(QuantiserError, match="the update must have 0 elements"):
        close.quantise(part([0.1]), key(0))
    sums = added(close, [part([]), part([], correct=1)])
    assert sums.mean.shape == (0,)
    assert (sums.weight, sums.correct, sums.total, sums.accuracy) == (20, 4, 8, 0.5)
    assert sums.train_loss == pytest.approx(0.7, abs=0.01)


# --- what comes back ------------------------------------------------------------------------------


def test_a_worked_example() -> None:
    """Two people: one moves by +1 everywhere and counts for 30 pairs, the other by -1 and counts for 10."""
    this, split = layout(clip=4.0)
    ones = np.ones(split.shared.size)
    sums = added(
        this,
        [
            part(ones, weight=30, loss=15.0, correct=9, total=10, in_histogram=True),
            part(-ones, weight=10, loss=25.0, correct=1, total=10, in_histogram=True),
        ],
    )
    assert sums.mean == pytest.approx(0.5 * ones, abs=1e-6)  # (30 · 1 - 10 · 1) / 40
    assert sums.weight == 40
    assert sums.train_loss == pytest.approx(1.0)  # (15 + 25) / 40
    assert (sums.correct, sums.total, sums.accuracy) == (10, 20, 0.5)
    assert sums.histogram == (0, 1, 0, 0, 0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("ring_bits", [32, 64])
@given(
    weights=st.lists(st.integers(1, 64), min_size=1, max_size=8),
    norm=st.floats(1e-3, 2.0),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_the_sum_is_the_weighted_mean_within_the_quantisers_bound(
    ring_bits: int, weights: list[int], norm: float, seed: int
) -> None:
    this, _ = layout(ring_bits=ring_bits)
    given_ = updates(this, 8, norm=norm)[: len(weights)]
    sums = added(this, [part(u, weight=w) for u, w in zip(given_, weights, strict=True)])
    exact = np.average(np.asarray(given_, np.float64), axis=0, weights=weights)
    bound = len(weights) * this.quantiser.step / sum(weights)
    assert np.abs(sums.mean - exact).max() <= bound + 1e-6 * norm  # the second: clipping a hair below
    assert sums.weight == sum(weights)
    assert (sums.correct, sums.total) == (3 * len(weights), 4 * len(weights))


def test_what_nobody_sent_reads_as_nothing() -> None:
    this, _ = layout()
    sums = this.read(np.zeros(this.words, np.int64), 3)
    assert not sums.mean.any()
    assert (sums.weight, sums.train_loss, sums.accuracy, sums.histogram) == (0, None, None, None)


def test_a_device_without_validation_pairs_adds_no_accuracy() -> None:
    this, split = layout()
    sums = added(this, [part(np.zeros(split.shared.size), correct=0, total=0, in_histogram=True)])
    assert (sums.accuracy, sums.histogram) == (None, None)
    assert sums.train_loss == pytest.approx(0.7, abs=0.01)


def test_another_device_secret_rounds_another_way_and_the_same_one_alike() -> None:
    this, _ = layout()
    mine = part(updates(this, 1, norm=1.0)[0])
    assert np.array_equal(this.quantise(mine, key(1)), this.quantise(mine, key(1)))
    assert not np.array_equal(this.quantise(mine, key(1)), this.quantise(mine, key(2)))


# --- bounds ---------------------------------------------------------------------------------------


def test_a_long_update_is_clipped_to_the_norm_and_keeps_its_direction() -> None:
    this, _ = layout(clip=2.0)
    long = updates(this, 1, norm=50.0)[0]
    mean = added(this, [part(long)]).mean
    assert np.linalg.norm(mean) == pytest.approx(2.0, rel=1e-4)
    assert float(mean @ long) == pytest.approx(float(np.linalg.norm(mean) * np.linalg.norm(long)), rel=1e-6)


@pytest.mark.parametrize("value", [2.1, 1e3, 1e20, 3e38])
def test_one_huge_element_is_clipped_and_not_refused(value: float) -> None:
    this, split = layout(clip=2.0)
    update = np.zeros(split.shared.size, np.float32)
    update[3] = value
    mean = added(this, [part(update)]).mean
    assert mean[3] == pytest.approx(2.0, rel=1e-4)
    assert np.abs(np.delete(mean, 3)).max() <= this.quantiser.step / 10


def test_an_update_within_the_norm_is_left_alone() -> None:
    this, _ = layout(clip=2.0)
    short = updates(this, 1, norm=1.999)[0]
    assert added(this, [part(short)]).mean == pytest.approx(short, abs=this.quantiser.step / 10)


class Watched(np.ndarray):  # type: ignore[type-arg]
    """An array that notes what is computed with it, element by element."""

    noted: ClassVar[list[tuple[str, str, int]]] = []

    def __array_ufunc__(self, ufunc: Any, method: Any, *inputs: Any, **more: Any) -> Any:
        Watched.noted.append((ufunc.__name__, method, self.size))
        bare = [np.asarray(one) if isinstance(one, Watched) else one for one in inputs]
        if more.get("out"):
            more["out"] = tuple(np.asarray(one) for one in more["out"])
        result = getattr(ufunc, method)(*bare, **more)
        return result.view(Watched) if isinstance(result, np.ndarray) else result


def test_the_same_is_computed_however_long_the_update_is() -> None:
    """So how long it takes does not tell whether an update was clipped."""
    this, split = layout()
    found = []
    for value in (0.0, 1e-42, 1e-3, 1e30):
        Watched.noted = []
        update = np.full(split.shared.size, value, np.float32).view(Watched)
        this.quantise(replace(part([]), update=update), key(0))
        found.append(Watched.noted)
    assert [one for one in found[0] if one[0] == "multiply"]
    assert all(one == found[0] for one in found)


def test_nobody_counts_for_more_than_the_greatest_weight() -> None:
    """65 pairs count as 64; the mean loss stays that of all 65."""
    this, split = layout()
    zeros = np.zeros(split.shared.size)
    for weight in (64, 65, 10**9):
        sums = added(this, [part(zeros, weight=weight, loss=0.5 * weight)])
        assert sums.weight == 64
        assert sums.train_loss == pytest.approx(0.5)


@pytest.mark.parametrize(("loss", "shown"), [(-3.0, 0.0), (80.0, 8.0), (80.1, 8.0), (math.inf, 8.0)])
def test_a_mean_loss_lies_between_0_and_8_nats(loss: float, shown: float) -> None:
    this, split = layout()
    assert added(this, [part(np.zeros(split.shared.size), loss=loss)]).train_loss == pytest.approx(shown)


def test_the_largest_contributions_of_a_whole_group_do_not_overflow() -> None:
    this, split = layout(cohort=8)
    largest = np.zeros(split.shared.size, np.float32)
    largest[0] = -1e30
    most = part(largest, weight=64, loss=1e9, correct=JUDGED_MOST, total=JUDGED_MOST, in_histogram=True)
    sums = added(this, [most] * this.group)
    assert sums.mean[0] == pytest.approx(-2.0, rel=1e-4)
    assert (sums.weight, sums.train_loss) == (8 * 64, 8.0)
    assert (sums.correct, sums.total) == (8 * JUDGED_MOST, 8 * JUDGED_MOST)
    assert sums.histogram == (0,) * 9 + (8,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    this, split = layout()
    update = np.zeros(split.shared.size, np.float32)
    update[-1] = value
    with pytest.raises(QuantiserError, match="holds a NaN, an infinity"):
        this.quantise(part(update), key(0))


def test_a_loss_that_is_no_number_is_refused() -> None:
    this, split = layout()
    with pytest.raises(QuantiserError, match='counter "loss"'):
        this.quantise(part(np.zeros(split.shared.size), loss=math.nan), key(0))


@pytest.mark.parametrize("changes", [{"weight": -1}, {"correct": -1}, {"total": -1}])
def test_negative_counts_are_refused(changes: dict[str, int]) -> None:
    this, split = layout()
    with pytest.raises(QuantiserError):
        this.quantise(part(np.zeros(split.shared.size), **changes), key(0))


def test_more_validation_pairs_than_are_counted_are_refused() -> None:
    this, split = layout()
    zeros = np.zeros(split.shared.size)
    assert added(this, [part(zeros, total=JUDGED_MOST)]).total == JUDGED_MOST
    with pytest.raises(ConfigError, match="1025 validation pairs; at most 1024 are counted"):
        this.quantise(part(zeros, total=JUDGED_MOST + 1), key(0))


def test_with_noise_an_update_of_another_size_or_of_no_numbers_is_refused() -> None:
    this, split = layout(dp_epsilon=8.0, dp_participations=1, dp_honest=8)
    sound = np.ones(split.shared.size)
    assert this.quantise(part(sound), key(0)).shape == (this.words,)
    for size in (split.shared.size - 1, split.shared.size + 1):
        with pytest.raises(QuantiserError, match="the update must have 15 elements"):
            this.quantise(part(np.ones(size)), key(0))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(QuantiserError, match="a NaN or an infinity"):
            this.quantise(part(np.where(np.arange(sound.size), sound, value)), key(0))


def test_noise_that_may_overflow_the_ring_is_refused_before_the_round() -> None:
    """So many honest people are counted on that each may send long vectors."""
    noised = {"dp_epsilon": 100.0, "dp_participations": 1, "dp_honest": 100_000, "group_size": 1000}
    with pytest.raises(QuantiserError, match=r"may overflow a ring of 32 bits: .* or use 64 bits"):
        layout(cohort=1000, **noised)
    assert layout(cohort=1000, ring_bits=64, **noised)[0].ring == 64


def test_bounds_that_no_ring_holds_are_refused_before_the_round() -> None:
    config = RunConfig().changed({"federation.max_weight": 1 << 20})
    plan = config.plan("main", 256)
    with pytest.raises(QuantiserError, match="lower the group size or max_weight, or use 64 bits"):
        UpdateLayout.of(plan, Split.of(SLOTS, 3, plan.adapter))
    wide = replace(plan, ring_bits=64)
    assert UpdateLayout.of(wide, Split.of(SLOTS, 3, wide.adapter)).ring == 64


@pytest.mark.parametrize(("cohort", "group"), [(1, 1), (8, 8), (256, 256), (1000, 256)])
def test_a_sum_holds_at_most_a_group(cohort: int, group: int) -> None:
    assert layout(cohort=cohort)[0].group == group


# --- the histogram --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "total", "place"),
    [
        (0, 20, 0),
        (1, 20, 0),
        (2, 20, 1),  # .1 belongs to the second tenth
        (10, 20, 5),
        (19, 20, 9),
        (20, 20, 9),  # all right belongs to the last
        (1, 3, 3),
        (2, 3, 6),
        (99, 1000, 0),
        (100, 1000, 1),
    ],
)
def test_a_device_shows_its_tenth_of_accuracy(correct: int, total: int, place: int) -> None:
    this, split = layout()
    each = part(np.zeros(split.shared.size), correct=correct, total=total, in_histogram=True)
    expected = tuple(int(i == place) for i in range(BINS))
    assert added(this, [each]).histogram == expected


def test_a_device_shows_nothing_unless_it_decided_to() -> None:
    this, split = layout()
    silent = part(np.zeros(split.shared.size))
    assert added(this, [silent, silent]).histogram is None
    shown = replace(silent, in_histogram=True)
    assert added(this, [silent, shown, shown]).histogram == (0, 0, 0, 0, 0, 0, 0, 2, 0, 0)


def test_nobodys_numbers_show_in_a_repr() -> None:
    mine = part(np.full(15, 0.125), weight=41, loss=17.25, correct=5, total=43)
    assert repr(mine) == "Contribution(in_histogram=False)"
