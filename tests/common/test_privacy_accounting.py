"""From rho to epsilon and back: known figures, never below the truth, the same everywhere."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.errors import ConfigError, PrivacyError
from penchant.common.privacy import accounting
from penchant.common.privacy.accounting import (
    DELTA_LEAST,
    DELTA_MOST,
    EPSILON_LEAST,
    EPSILON_MOST,
    RHO_MOST,
    epsilon_of,
    rho_of,
)

RHOS = st.floats(1e-7, 90)
DELTAS = st.floats(DELTA_LEAST, DELTA_MOST)


def least_over_all_orders(rho: float, delta: float) -> float:
    """Proposition 12 of Canonne, Kamath and Steinke, at the best order (a search by thirds)."""

    def at(order: float) -> float:
        return order * rho + math.log1p(-1 / order) - math.log(order * delta) / (order - 1)

    low, high = math.log(1e-4), math.log(1e8)
    for _ in range(200):
        third = (high - low) / 3
        if at(1 + math.exp(low + third)) < at(1 + math.exp(high - third)):
            high -= third
        else:
            low += third
    return max(0.0, at(1 + math.exp(low)))


def exact_gaussian(epsilon: float, rho: float) -> float:
    """delta of continuous Gaussian noise whose zCDP is rho (Balle and Wang 2018): nothing can be below it."""
    mu = math.sqrt(2 * rho)

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)


# --- published figures ----------------------------------------------------------------------------


# what is published, each at delta = 1e-10: the least and the largest rho that its digits leave, and epsilon
PUBLISHED = {
    # McMahan and Thakurta (2022), Gboard's Spanish model
    "Gboard": (0.81, 0.81, 8.9),
    # Census Bureau (2021), redistricting data, persons: global_scale = 339/542 in its production code
    "census, persons": ((542 / 339) ** 2, (542 / 339) ** 2, 17.14),
    "census, persons, rounded": (2.555, 2.565, 17.14),
    "census, housing units, rounded": (0.065, 0.075, 2.47),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_come_out(name: str) -> None:
    least, largest, published = PUBLISHED[name]
    digits = len(str(published).partition(".")[2])
    if least == largest:
        assert round(epsilon_of(least, 1e-10), digits) == published
    assert round(epsilon_of(least, 1e-10), digits) <= published <= round(epsilon_of(largest, 1e-10), digits)
    found = rho_of(published, 1e-10)  # the other way
    assert found == pytest.approx((least + largest) / 2, rel=0.07)


def test_it_is_below_the_first_and_simple_conversion() -> None:
    """Bun and Steinke (2016): epsilon = rho + 2 sqrt(rho ln(1/delta))."""
    for rho in (0.01, 0.2, 1.0, 2.0, 10.0):
        assert epsilon_of(rho, 1e-5) < rho + 2 * math.sqrt(rho * math.log(1e5))


# (people, in a sum, participations, epsilon) -> the noise multiplier by the exact figure for Gaussian noise
EXACT = {
    (102, 34, 10, 8): 1.90, (102, 34, 10, 2): 6.31,
    (1_000, 100, 3, 8): 1.04, (1_000, 100, 3, 2): 3.45,
    (1_000, 256, 8, 8): 1.70, (1_000, 256, 8, 2): 5.64,
    (10_000, 256, 1, 8): 0.60, (10_000, 256, 1, 2): 1.99,
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_zcdp_asks_for_6_to_8_percent_more_noise_than_the_exact_figure(
    case: tuple[int, int, int, int],
) -> None:
    """delta = 1e-5. The exact figures are computed here too, and are the table's."""
    participations, epsilon = case[2], case[3]
    low, high = 0.1, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if exact_gaussian(epsilon, participations / 2 / middle**2) > 1e-5
            else (low, middle)
        )
    assert high == pytest.approx(EXACT[case], abs=0.006)
    ours = math.sqrt(participations / 2 / rho_of(epsilon, 1e-5))
    assert 1.05 < ours / high < 1.09


# --- conservative, tight, monotone ----------------------------------------------------------------


@given(RHOS, DELTAS)
@settings(deadline=None, max_examples=60)
def test_epsilon_is_never_below_the_truth_and_hardly_above(rho: float, delta: float) -> None:
    found, least = epsilon_of(rho, delta), least_over_all_orders(rho, delta)
    assert exact_gaussian(found, rho) <= delta * (1 + 1e-9) + 1e-16
    assert found <= least * 1.001 + 1e-6
    if delta**2 < -math.expm1(-rho):  # elsewhere another theorem gives 0
        assert found >= least


@given(RHOS, RHOS, DELTAS, DELTAS)
@settings(deadline=None, max_examples=60)
def test_epsilon_grows_with_rho_and_falls_with_delta(one: float, two: float, d: float, e: float) -> None:
    assert epsilon_of(min(one, two), d) <= epsilon_of(max(one, two), d)
    assert epsilon_of(one, max(d, e)) <= epsilon_of(one, min(d, e))


@given(st.floats(0.001, 100), DELTAS)
@settings(deadline=None, max_examples=15)
def test_rho_is_the_largest_whose_epsilon_keeps_within(epsilon: float, delta: float) -> None:
    rho = rho_of(epsilon, delta)
    assert 0 < rho <= epsilon
    assert epsilon_of(rho, delta) <= epsilon
    assert epsilon_of(rho + 2.0**-44, delta) > epsilon


def test_nothing_costs_nothing_and_too_much_is_infinite() -> None:
    assert epsilon_of(0.0, 1e-5) == 0
    assert math.isfinite(epsilon_of(RHO_MOST, 1e-5))
    assert epsilon_of(2.0 * RHO_MOST, 1e-5) == epsilon_of(math.inf, 1e-5) == math.inf


def test_figures_lie_on_a_grid_that_swallows_last_bits() -> None:
    for rho in (0.01, 0.81, 3.7):
        assert (epsilon_of(rho, 1e-5) * 2**30).is_integer()
    assert (rho_of(8.0, 1e-5) * 2**44).is_integer()
    assert (rho_of(8.0, 1e-5), rho_of(2.0, 1e-5)) == PINNED


PINNED = (1.2297144495854013, 0.10825474663835166)


def test_orders_are_exact_floats_without_gaps() -> None:
    orders = accounting._ORDERS
    assert len(orders) == 864
    assert all((order * 2**11).is_integer() for order in orders)
    assert all(1 < (b - 1) / (a - 1) <= 33 / 32 for a, b in pairwise(orders))


def test_the_ends_of_the_ranges_belong_to_them() -> None:
    assert 0 < rho_of(EPSILON_LEAST, DELTA_LEAST) < 2e-8
    assert 60 < rho_of(EPSILON_MOST, DELTA_MOST) < EPSILON_MOST
    assert epsilon_of(0.0, DELTA_LEAST) == epsilon_of(0.0, DELTA_MOST) == 0


# --- bad input, and what is loaded ----------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 1e-4, EPSILON_MOST + 1, math.inf, math.nan])
def test_an_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"epsilon is .*; it must lie in 0\.001\.\.100") as refused:
        rho_of(epsilon, 1e-5)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1e-16, 0.02, 0.5, 1.0, math.nan])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    for call in (lambda: rho_of(8.0, delta), lambda: epsilon_of(1.0, delta)):
        with pytest.raises(PrivacyError, match=r"delta is .*; it must lie in 1e-15\.\.0\.01"):
            call()


@pytest.mark.parametrize("rho", [-1e-9, math.nan])
def test_a_rho_out_of_range_is_refused(rho: float) -> None:
    with pytest.raises(PrivacyError, match="rho is"):
        epsilon_of(rho, 1e-5)


@settings(max_examples=50, deadline=None)
@given(rho=st.floats(0, RHO_MOST), delta=DELTAS)
def test_every_order_bounds_as_dp_accounting_says(rho: float, delta: float) -> None:
    """To the bit, so that ledgers that the library once filled stay what they are."""
    orders = accounting._ORDERS
    found = [max(0.0, accounting._bound(order, rho * order, delta)) for order in orders]
    assert found == [compute_epsilon([order], [rho * order], delta)[0] for order in orders]
    assert min(found) == compute_epsilon(orders, [rho * order for order in orders], delta)[0]


def test_a_ledger_is_kept_without_an_accountant_s_libraries() -> None:
    script = (
        "import sys\n"
        "import penchant.common.privacy.noise\n"
        "from penchant.common.privacy.accounting import epsilon_of, rho_of\n"
        "epsilon_of(rho_of(1.0, 1e-5), 1e-5)\n"
        "sys.exit(', '.join({'dp_accounting', 'scipy'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
