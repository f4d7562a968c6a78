"""What a sum costs, how far it reaches, and the noise that a promise needs."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.errors import ConfigError, PrivacyError
from penchant.common.privacy.accounting import RHO_GRID, epsilon_of, rho_of
from penchant.common.privacy.discrete_gaussian import SIGMA_MOST, discrete_gaussian
from penchant.common.privacy.noise import SIGMA, Noise, solve
from penchant.common.privacy.rounding import CLIP_MOST, norm_bound, round_within, squared_norm_bound

# --- rho ------------------------------------------------------------------------------------------


def test_rho_by_hand_without_discreteness() -> None:
    """No elements, so B is the clip: 100^2 / (2 * 25 * 40^2) = 1/8."""
    assert Noise(40, 100, 0).rho(25) == pytest.approx(1 / 8, rel=1e-11)
    assert Noise(40, 100, 0).multiplier(25) == pytest.approx(2.0)


def test_rho_by_hand_where_discreteness_counts() -> None:
    """sigma 1, 3 shares, 4 elements: B^2 = 10^2 + 2 * 10 * 2 + 4; tau = 10 (e^-pi^2 + e^-(4 pi^2 / 3))."""
    noise = Noise(1, 10, 4)
    assert noise.norm == 12
    tau = 10 * (math.exp(-(math.pi**2)) + math.exp(-4 * math.pi**2 / 3))
    assert tau == pytest.approx(5.366e-4, rel=1e-3)
    assert noise.rho(3) == pytest.approx((12 / math.sqrt(3) + 2 * tau) ** 2 / 2, rel=1e-11)
    assert noise.rho(1) == pytest.approx(144 / 2, rel=1e-11)  # one share is a discrete Gaussian itself


def test_rho_is_at_least_that_of_the_continuous_gaussian() -> None:
    for honest in (1, 2, 34, 1_000):
        noise = Noise(SIGMA, 5_000, 3_500)
        assert noise.rho(honest) >= 1 / (2 * noise.multiplier(honest) ** 2)
        assert noise.rho(honest) <= 1 / (2 * noise.multiplier(honest) ** 2) * (1 + 1e-9)


@given(
    st.integers(1, SIGMA_MOST - 1), st.integers(1, CLIP_MOST - 1), st.integers(0, 10**7), st.integers(1, 100)
)
@settings(deadline=None)
def test_rho_falls_with_noise_and_people_and_grows_with_the_vector(s: int, c: int, d: int, h: int) -> None:
    rho = Noise(s, c, d).rho(h)
    assert Noise(s + 1, c, d).rho(h) < rho
    assert Noise(s, c + 1, d).rho(h) > rho
    assert Noise(s, c, d + 1).rho(h) >= rho
    if s >= 4:  # below, what each further share adds to tau can outweigh what it hides
        assert Noise(s, c, d).rho(h + 1) < rho


def test_the_cost_of_many_sums_adds_up_without_error_in_any_order() -> None:
    """So that a ledger that adds one at a time comes to what was promised for all of them."""
    costs = [Noise(SIGMA, clip, 3_500).rho(34) for clip in (2_957, 1_000, 313)] * 10
    forwards, backwards, exactly = 0.0, 0.0, sum(map(Fraction, costs))
    for cost, other in zip(costs, reversed(costs), strict=True):
        forwards, backwards = forwards + cost, backwards + other
    assert Fraction(forwards) == Fraction(backwards) == exactly
    assert all((cost * RHO_GRID).is_integer() for cost in costs)


def convolved(sigma: int, shares: int) -> np.ndarray:
    reach = 25 * sigma  # so far that what is cut off weighs nothing, at order 32 either
    one = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    total = one = one / one.sum()
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return total


@pytest.mark.parametrize("shares", [2, 3, 10])
def test_a_sum_of_shares_is_as_near_to_one_discrete_gaussian_as_proved(shares: int) -> None:
    """proofs.md, 3: |ln(P/Q)| <= tau/2, at sigma 1, where discreteness is at its worst."""
    total = convolved(1, shares)
    far = np.arange(total.size) - total.size // 2
    single = np.exp(-(far**2) / (2 * shares))
    single /= single.sum()
    middle = np.abs(far) <= 4 * math.sqrt(shares)
    apart = float(np.abs(np.log(total[middle] / single[middle])).max())
    tau = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, shares))
    assert apart <= tau / 2
    assert shares > 2 or apart > tau / 6  # so the bound is not idle


@pytest.mark.parametrize("order", [1.5, 2.0, 8.0, 32.0])
def test_the_divergence_between_neighbouring_sums_is_within_rho(order: float) -> None:
    """The whole of it, computed for one element: the sum with 3 shares of sigma 1, for vectors 1 and 0."""
    total = convolved(1, 3)
    p, q = total[:-1], total[1:]
    there = (p > 1e-250) & (q > 1e-250)
    for one, two in ((p[there], q[there]), (q[there], p[there])):
        terms = order * np.log(one) + (1 - order) * np.log(two)
        divergence = (math.log(np.exp(terms - terms.max()).sum()) + terms.max()) / (order - 1)
        exactly = (1 / math.sqrt(3) + 10 * (math.exp(-(math.pi**2)) + math.exp(-4 * math.pi**2 / 3))) ** 2 / 2
        assert 0.99 * order / 6 < divergence <= order * exactly <= order * Noise(1, 1, 1).rho(3)


# --- reach ----------------------------------------------------------------------------------------


def test_the_tail_by_hand() -> None:
    """sigma sqrt(2 n ln(2 d 2^40)), rounded up."""
    wanted = 10 * math.sqrt(2 * 16 * (math.log(2 * 100) + 40 * math.log(2)))
    assert Noise(10, 1, 100).tail(16) == math.ceil(wanted)
    assert Noise(10, 1, 0).tail(16) == 0


def test_the_tail_bounds_a_single_share_exactly() -> None:
    """For one share of sigma 7 the probability is a sum: below 2^-40 beyond the tail, for one element."""
    tail = Noise(7, 1, 1).tail(1)
    weights = {x: math.exp(-(x**2) / 98) for x in range(-400, 401)}
    beyond = sum(w for x, w in weights.items() if abs(x) > tail) / sum(weights.values())
    assert 2.0**-50 < beyond <= 2.0**-40


def test_sums_stay_within_sub_gaussian_tails_in_simulation() -> None:
    """Beyond t = s sqrt(2 n ln(2/p)) lie no more than a share p of the elements; at p = 2^-40 none does."""
    people, size, sigma = 10, 50_000, 3
    entropy = SeededEntropy(bytes(32), "tail")
    total = np.abs(sum(discrete_gaussian(size, sigma, entropy) for _ in range(people)))
    for p in (0.1, 0.01, 0.001):
        beyond = float((total > sigma * math.sqrt(2 * people * math.log(2 / p))).mean())
        assert 0 < beyond <= p
    assert total.max() <= Noise(sigma, 1, size).tail(people)


@pytest.mark.parametrize("ring", [32, 64])
def test_a_sum_fits_up_to_the_last_unit(ring: int) -> None:
    noise = Noise(100, 1_000, 50)
    half = 1 << (ring - 1)
    people = 1
    while noise.fits(2 * people, ring):
        people *= 2
    low, high = people, 2 * people
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if noise.fits(middle, ring) else (low, middle)
    assert low * 1_000 + noise.tail(low) < half <= high * 1_000 + noise.tail(high)


def test_a_round_of_many_groups_keeps_the_probability_of_one_that_has_one() -> None:
    """P(one of G d elements passes t) <= 2 G d exp(-t^2 / (2 n sigma^2)) = 2^-40, solved for t."""
    noise, people = Noise(100, 1_000, 50), 20
    for groups in (1, 4, 40, 333_334):
        tail = noise.tail(people, groups)
        assert 2 * groups * 50 * math.exp(-(tail**2) / (2 * people * 100**2)) <= 2.0**-40
        assert 2 * groups * 50 * math.exp(-((tail - 1) ** 2) / (2 * people * 100**2)) > 2.0**-40
    room = people * 1_000 + noise.tail(people) + 1  # of one sum, exactly
    assert noise.tail(people) < noise.tail(people, 4)
    tight = Noise(100, ((1 << 31) - room) // people + 1_000, 50)
    assert tight.fits(people, 32)
    assert not tight.fits(people, 32, 4)


def test_the_largest_noise_exists() -> None:
    assert Noise(SIGMA_MOST, CLIP_MOST, 10).rho(1) > 0


def test_half_the_ring_itself_does_not_fit() -> None:
    assert not Noise(1, 1 << 30, 0).fits(2, 32)
    assert Noise(1, (1 << 30) - 1, 0).fits(2, 32)


def test_ten_thousand_people_at_epsilon_8_fit_into_32_bits() -> None:
    noise = solve(epsilon=8, delta=1e-5, participations=1, size=3_500, honest=10_000)
    assert noise.fits(10_000, 32)
    assert not noise.fits(1_000_000, 32)
    assert noise.fits(1_000_000, 64)


# --- solving --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("honest", "participations"), [(34, 10), (100, 3), (256, 8), (667, 3)])
@pytest.mark.parametrize("epsilon", [1.0, 2.0, 8.0])
def test_the_largest_clip_that_keeps_the_promise(honest: int, participations: int, epsilon: float) -> None:
    noise = solve(epsilon=epsilon, delta=1e-5, participations=participations, size=3_500, honest=honest)
    assert (noise.sigma, noise.size) == (SIGMA, 3_500)
    assert epsilon_of(noise.rho(honest) * participations, 1e-5) <= epsilon
    more = Noise(SIGMA, noise.clip + 1, 3_500)
    assert epsilon_of(more.rho(honest) * participations, 1e-5) > epsilon
    wanted = math.sqrt(participations / 2 / rho_of(epsilon, 1e-5))
    assert noise.multiplier(honest) == pytest.approx(wanted, rel=2e-3)


@given(st.integers(20, 300), st.integers(1, 30), st.sampled_from([1.0, 2.0, 4.0, 8.0]))
@settings(deadline=None, max_examples=30)
def test_more_people_and_fewer_rounds_allow_more(honest: int, participations: int, epsilon: float) -> None:
    def clip(h: int, k: int) -> int:
        return solve(epsilon=epsilon, delta=1e-5, participations=k, size=500, honest=h).clip

    assert clip(honest + 1, participations) > clip(honest, participations) > clip(honest, participations + 1)


def test_rounding_costs_little_of_the_clip() -> None:
    noise = solve(epsilon=8, delta=1e-5, participations=10, size=3_500, honest=34)
    assert noise.norm / noise.clip < 1.002
    assert noise.norm == norm_bound(noise.clip, noise.size)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": 1_000.0}, "epsilon is 1000"),
        ({"delta": 0.0}, "delta is 0"),
        ({"delta": 0.1}, "delta is 0.1"),
        ({"participations": 0}, "0 participations"),
        ({"honest": 0}, "0 people"),
        ({"size": -1}, "-1 elements"),
        ({"honest": 1, "size": 1_000_000, "epsilon": 0.1}, "too few .* have more people in a sum"),
        ({"participations": 10**9, "epsilon": 0.01}, "too few .* fewer rounds"),
        ({"honest": 1, "participations": 640, "size": 10_000}, "too few .* a smaller shared part"),
    ],
)
def test_bad_input_is_refused_in_one_line(changed: dict[str, float], said: str) -> None:
    asked = {"epsilon": 8.0, "delta": 1e-5, "participations": 3, "size": 3_500, "honest": 34} | changed
    with pytest.raises(ConfigError, match=said) as refused:
        solve(**asked)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_rounding_may_double_a_vector_and_no_more() -> None:
    """A budget that pays for a clip whose bound after rounding is twice as much, to the last unit."""
    clip, size = 1_000, 11_918_793
    assert squared_norm_bound(clip, size) == 4 * clip**2
    epsilon = epsilon_of(Noise(SIGMA, clip, size).rho(1), 1e-5)
    assert solve(epsilon=epsilon, delta=1e-5, participations=1, size=size, honest=1).clip == clip
    with pytest.raises(PrivacyError, match="too few"):
        solve(epsilon=epsilon, delta=1e-5, participations=1, size=size + 4, honest=1)


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0}, {"sigma": SIGMA_MOST + 1}, {"clip": 0}, {"clip": CLIP_MOST + 1}, {"size": -1}]
)
def test_noise_out_of_range_does_not_exist(wrong: dict[str, int]) -> None:
    with pytest.raises(PrivacyError):
        Noise(**({"sigma": 10, "clip": 10, "size": 10} | wrong))


# --- all of it together ---------------------------------------------------------------------------


def test_a_sum_of_devices_is_the_sum_of_their_vectors_plus_noise_of_the_promised_size() -> None:
    people, size = 40, 2_000
    noise = solve(epsilon=8, delta=1e-5, participations=3, size=size, honest=people)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(people, size))
    vectors *= noise.clip / np.linalg.norm(vectors, axis=1, keepdims=True)
    total = np.zeros(size, np.int64)
    for person, vector in enumerate(vectors):
        rounded = round_within(vector, noise.clip, rng.integers(0, 2**32, size, dtype=np.uint32))
        assert int(rounded @ rounded) <= noise.norm**2
        total += rounded + discrete_gaussian(size, noise.sigma, SeededEntropy(bytes(32), str(person)))
    left = total - vectors.sum(axis=0)
    wanted = math.sqrt(people) * noise.sigma
    assert left.std() == pytest.approx(wanted, rel=4 / math.sqrt(2 * size))
    assert abs(left.mean()) < 4 * wanted / math.sqrt(size)
    assert np.abs(total).max() < people * noise.clip + noise.tail(people)
