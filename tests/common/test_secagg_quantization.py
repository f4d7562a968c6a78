"""Numbers to ring elements: no overflow by construction, exact counters, unbiased rounding, bounded error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.errors import ConfigError, ProtocolError, QuantiserError
from penchant.common.secagg.quantization import FLOOR, MOST, Counter, Quantiser

VECTORS = Path(__file__).parents[1] / "vectors"
COUNTERS = (Counter("weight", 50), Counter("loss", 100, 2**-10), Counter("correct", 50))


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_a_worked_example() -> None:
    """Three devices, weight up to 2, clip 1: 2^31 / 3 levels for w*u in [-2, 2]."""
    quantiser = Quantiser.choose(size=2, members=3, weight=2, clip=1.0, counters=(Counter("weight", 2),))
    assert (quantiser.ring, quantiser.levels, quantiser.length) == (32, (2**31 - 1) // 3, 3)
    sent = [
        quantiser.quantise(np.float32([1.0, -0.5]), 2, {"weight": 2}, key(1)),
        quantiser.quantise(np.float32([-1.0, 0.25]), 1, {"weight": 1}, key(2)),
    ]
    assert sent[0][0] == quantiser.levels  # 2 * 1.0, the largest there is
    total = sum(vector.view("<i4").astype(np.int64) for vector in sent)
    update, counts = quantiser.dequantise(total)
    assert counts == {"weight": 3.0}
    np.testing.assert_allclose(update / counts["weight"], [1 / 3, -0.75 / 3], atol=2 * quantiser.step)


@pytest.mark.parametrize("ring", [32, 64])
@pytest.mark.parametrize("members", [1, 3, 100, 1000])
def test_the_largest_sum_fits(ring: int, members: int) -> None:
    """Every device at its bound, in either direction: half the ring is not reached."""
    quantiser = Quantiser.choose(size=1, members=members, weight=1, clip=0.1, counters=COUNTERS, ring=ring)
    assert members * quantiser.levels < 2 ** (ring - 1)
    assert all(members * counter.bound < 2 ** (ring - 1) for counter in COUNTERS)
    for sign in (1, -1):
        counts = {counter.name: counter.most for counter in COUNTERS}
        vector = quantiser.quantise(
            np.float32([sign * 0.1]).astype(np.float64).clip(-0.1, 0.1), 1, counts, key(1)
        )
        centred = vector.view(f"<i{ring // 8}").astype(object) * members
        assert -(2 ** (ring - 1)) <= min(centred)
        assert max(centred) < 2 ** (ring - 1)


def test_the_ring_is_the_smallest_that_does() -> None:
    small = {"size": 1, "members": 256, "clip": 1.0}
    assert Quantiser.choose(**small, weight=8191).ring == 32  # type: ignore[arg-type]
    assert Quantiser.choose(**small, weight=8192).ring == 64  # type: ignore[arg-type]
    assert Quantiser.choose(**small, weight=1, counters=(Counter("many", 2.0**23),)).ring == 64  # type: ignore[arg-type]
    assert Quantiser.choose(**small, weight=1, ring=64).levels == MOST  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bounds",
    [
        {"weight": 8192, "ring": 32},
        {"weight": 2**31},
        {"weight": 1, "counters": (Counter("many", 2.0**41),)},
        {"members": 0},
        {"weight": 0},
        {"clip": 0.0},
        {"clip": math.inf},
        {"clip": math.nan},
        {"ring": 16},
        {"size": -1},
    ],
)
def test_bounds_without_a_safe_ring_are_refused(bounds: dict[str, object]) -> None:
    with pytest.raises(QuantiserError):
        Quantiser.choose(**{"size": 1, "members": 256, "weight": 1, "clip": 1.0, **bounds})  # type: ignore[arg-type]


def test_a_refusal_is_wrong_use_and_a_protocol_error() -> None:
    assert issubclass(QuantiserError, ConfigError)
    assert issubclass(QuantiserError, ProtocolError)
    assert QuantiserError.exit_code == 2


@pytest.mark.parametrize(
    ("update", "weight", "counts"),
    [
        ([1.1, 0], 1, {"weight": 1}),
        ([np.nan, 0], 1, {"weight": 1}),
        ([-np.inf, 0], 1, {"weight": 1}),
        ([0.0], 1, {"weight": 1}),
        ([0.0, 0], 3, {"weight": 1}),
        ([0.0, 0], -1, {"weight": 1}),
        ([0.0, 0], 1, {}),
        ([0.0, 0], 1, {"weight": 1, "more": 1}),
        ([0.0, 0], 1, {"weight": 3}),
        ([0.0, 0], 1, {"weight": -1}),
        ([0.0, 0], 1, {"weight": math.nan}),
    ],
)
def test_nothing_out_of_bounds_is_quantised(
    update: list[float], weight: int, counts: dict[str, float]
) -> None:
    quantiser = Quantiser.choose(size=2, members=3, weight=2, clip=1.0, counters=(Counter("weight", 2),))
    with pytest.raises(QuantiserError):
        quantiser.quantise(np.float32(update), weight, counts, key(1))


def test_counters_come_back_exactly() -> None:
    quantiser = Quantiser.choose(size=0, members=40, weight=50, clip=1.0, counters=COUNTERS)
    rng = np.random.default_rng(0)
    total = np.zeros(3, np.int64)
    weight = loss = 0.0
    for device in range(40):
        w, fixed = int(rng.integers(51)), int(rng.integers(100 * 1024)) / 1024
        weight, loss = weight + w, loss + fixed
        vector = quantiser.quantise(np.zeros(0), 0, {"weight": w, "loss": fixed, "correct": 1}, key(device))
        total += vector.view("<i4")
    assert quantiser.dequantise(total)[1] == {"weight": weight, "loss": loss, "correct": 40.0}


def test_rounding_is_stochastic_unbiased_and_by_the_device_secret() -> None:
    quantiser = Quantiser.choose(size=100_000, members=2**20, weight=1, clip=1.0)
    update = np.full(100_000, 0.3 * quantiser.step)
    ups = quantiser.quantise(update, 1, {}, key(1))
    assert set(ups.tolist()) == {0, 1}
    assert abs(ups.mean() - 0.3) < 5 * math.sqrt(0.21 / 100_000)
    assert (ups == quantiser.quantise(update, 1, {}, key(1))).all()
    assert (ups != quantiser.quantise(update, 1, {}, key(2))).any()
    below = quantiser.quantise(-update, 1, {}, key(1)).view("<i4")
    assert abs(below.mean() + 0.3) < 5 * math.sqrt(0.21 / 100_000)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 40),
    st.integers(1, 64),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32),
    st.sampled_from([None, 64]),
)
def test_the_error_of_the_mean_is_bounded(
    n: int, weight: int, clip: float, seed: int, ring: int | None
) -> None:
    """|error| < n*s / total weight always; its standard deviation is at most sqrt(n)*s/2 / total weight."""
    size = 500
    quantiser = Quantiser.choose(size=size, members=n, weight=weight, clip=clip, ring=ring)
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, weight + 1, n)
    updates = rng.uniform(-clip, clip, (n, size)).astype(np.float32).clip(-clip, clip)
    updates = np.clip(updates.astype(np.float64), -clip, clip)
    total = sum(
        quantiser.quantise(u, int(w), {}, key(seed + i)).view(f"<i{quantiser.ring // 8}").astype(np.int64)
        for i, (u, w) in enumerate(zip(updates, weights, strict=True))
    )
    mean = quantiser.dequantise(total)[0] / weights.sum()
    error = mean - weights @ updates / weights.sum()
    rounding = 1e-9 * clip
    assert np.abs(error).max() < n * quantiser.step / weights.sum() + rounding
    assert error.std() < 1.2 * math.sqrt(n) * quantiser.step / 2 / weights.sum() + rounding


def test_the_stated_floor_holds() -> None:
    """A device of weight 1 has at least FLOOR steps between 0 and C."""
    for members, weight in ((256, 8191), (34, 1024), (1000, 2000)):
        quantiser = Quantiser.choose(size=1, members=members, weight=weight, clip=1.0)
        assert quantiser.clip / quantiser.step >= FLOOR


def test_a_sum_of_another_length_is_refused() -> None:
    quantiser = Quantiser.choose(size=2, members=3, weight=2, clip=1.0)
    with pytest.raises(QuantiserError):
        quantiser.dequantise(np.zeros(3, np.int64))


@pytest.mark.parametrize(
    "case", json.loads((VECTORS / "quantise.json").read_text())["cases"], ids=lambda c: c["name"]
)
def test_vectors(case: dict[str, Any]) -> None:
    loss = (Counter("loss", 64, 2.0**-10),)
    quantiser = Quantiser.choose(size=5, members=100, weight=20, clip=0.5, counters=loss, ring=case["ring"])
    assert quantiser.levels == case["levels"]
    key = bytes.fromhex(case["key"])
    vector = quantiser.quantise(np.array(case["update"]), 7, {"loss": 3.25}, key)
    assert vector.view(f"<i{case['ring'] // 8}").tolist() == case["vector"]


@pytest.mark.parametrize("ring", [0, 16, 33, 128])
def test_a_ring_that_does_not_exist_is_refused(ring: int) -> None:
    with pytest.raises(QuantiserError, match=f"a ring of {ring} bits does not exist"):
        Quantiser.choose(size=1, members=3, weight=1, clip=1.0, ring=ring)
