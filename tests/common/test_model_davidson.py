"""Davidson's model: by hand, against autograd, and Bradley and Terry's to the bit where there are no ties."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.data.preferences import Preference
from penchant.common.model.davidson import (
    CHOICES,
    PLAIN,
    Habits,
    PairLikelihood,
    bradley_terry,
    davidson,
    habits_of,
    is_tie,
    nu_of,
    tie_probability,
)
from penchant.common.model.strengths import mean_strength, strength_of, weights_of

MARGINS = np.concatenate([np.linspace(-9, 9, 37), [-700.0, -60.0, 60.0, 700.0]])
MARGIN = st.floats(-50, 50)
NU = st.floats(1e-3, 1e3)


def said(tie: str = "") -> Preference:
    return Preference("p", "a", "b", tie)  # type: ignore[arg-type]


def by_the_paper(first: float, second: float, nu: float) -> tuple[float, float, float]:
    """P(first), P(second), P(tie) of worths π = exp(score), as Davidson (1970) writes them."""
    whole = first + second + nu * math.sqrt(first * second)
    return first / whole, second / whole, nu * math.sqrt(first * second) / whole


@given(st.floats(-8, 8), st.floats(-8, 8), NU)
def test_the_likelihood_is_the_papers(first: float, second: float, nu: float) -> None:
    wanted = by_the_paper(math.exp(first), math.exp(second), nu)
    assert sum(wanted) == pytest.approx(1)
    margin = first - second
    margins, ties = torch.tensor([margin, -margin, margin]).double(), torch.tensor([False, False, True])
    assert torch.exp(-davidson(margins, ties, nu)).tolist() == pytest.approx(wanted, rel=1e-6)
    assert tie_probability(np.array([margin]), nu)[0] == pytest.approx(wanted[2], rel=1e-9)
    assert wanted[0] / wanted[1] == pytest.approx(math.exp(margin))  # whatever ν is


@given(st.lists(st.tuples(MARGIN, st.booleans()), min_size=1, max_size=9), NU)
def test_slope_and_curvature_are_the_derivatives(pairs: list[tuple[float, bool]], nu: float) -> None:
    values, ties = [margin for margin, _ in pairs], [tie for _, tie in pairs]
    likelihood = PairLikelihood(ties, nu)
    margins = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    loss = davidson(margins, torch.tensor(ties), nu).sum()
    (slope,) = torch.autograd.grad(loss, margins, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), margins)
    found = np.array(values)
    assert likelihood.loss(found) == pytest.approx(loss.item(), rel=1e-9, abs=1e-9)
    assert likelihood.slope(found) == pytest.approx(-slope.detach().numpy(), rel=1e-9, abs=1e-12)
    assert likelihood.curvature(found) == pytest.approx(curvature.numpy(), rel=1e-6, abs=1e-12)
    assert (likelihood.curvature(found) >= 0).all()


def test_without_ties_everything_is_bradley_and_terrys_to_the_bit() -> None:
    likely = np.exp(-np.logaddexp(0, -MARGINS))
    for likelihood in (CHOICES, PairLikelihood.of([said()] * len(MARGINS))):
        assert likelihood.nu == 0
        assert likelihood.loss(MARGINS) == float(np.logaddexp(0, -MARGINS).sum())
        assert np.array_equal(likelihood.slope(MARGINS), 1 - likely)
        assert np.array_equal(likelihood.curvature(MARGINS), likely * (1 - likely))
    for kind in (torch.float32, torch.float64):
        margins = torch.tensor(MARGINS, dtype=kind, requires_grad=True)
        losses = davidson(margins, None, 0.0)
        assert torch.equal(losses, torch.nn.functional.softplus(-margins))
        assert torch.equal(losses, bradley_terry(margins))
        own = torch.autograd.grad(losses.sum(), margins)[0]
        plain = torch.autograd.grad(torch.nn.functional.softplus(-margins).sum(), margins)[0]
        assert torch.equal(own, plain)


def test_choices_are_bradley_and_terrys_as_ties_become_rare() -> None:
    some = MARGINS[np.abs(MARGINS) < 10]
    rare = PairLikelihood([False] * len(some), 1e-9)
    assert rare.loss(some) == pytest.approx(CHOICES.loss(some))
    assert rare.slope(some) == pytest.approx(CHOICES.slope(some))
    assert rare.curvature(some) == pytest.approx(CHOICES.curvature(some), rel=1e-6)


def test_far_margins_overflow_nowhere() -> None:
    far = np.array([-5000.0, 5000.0])
    for ties in ([True, True], [False, False]):
        likelihood = PairLikelihood(ties, 0.7)
        values = (likelihood.loss(far), *likelihood.slope(far), *likelihood.curvature(far))
        assert np.isfinite(values).all()
        assert torch.isfinite(davidson(torch.tensor(far).float(), torch.tensor(ties), 0.7)).all()
    assert PairLikelihood([True, True], 0.7).slope(far) == pytest.approx([0.5, -0.5])  # back towards 0


def test_nu_makes_equal_scores_tie_as_often_as_the_person_did() -> None:
    assert nu_of([]) == nu_of([said(), said()]) == 0
    nu = nu_of([said()] * 59 + [said("equal")] * 20 + [said("both bad")] * 20)
    assert nu == 2 * 40 / 60
    assert tie_probability(np.zeros(1), nu)[0] == pytest.approx(0.4)
    assert nu_of([said("equal")] * 5) == 10  # finite
    assert (is_tie(said("equal")), is_tie(said()), is_tie(object())) == (True, False, False)


# --- strengths ------------------------------------------------------------------------------------


def strong(strength: float | None = None, tie: str = "") -> Preference:
    return Preference("p", "a", "b", tie, strength)  # type: ignore[arg-type]


def test_a_weight_is_relative_to_the_persons_own_mean_and_one_where_nothing_is_known() -> None:
    assert weights_of([]) is None
    assert weights_of([said(), said("equal")]) is None
    assert weights_of([strong(5), strong(5), said(), said("equal")]) is None
    for strength, many in itertools.product((0.1, 0.7, 1 / 3, 2.3), (2, 3, 7, 59)):
        assert weights_of([strong(strength)] * many) is None, (
            "the mean of equals may differ in its last digit"
        )
    assert weights_of([strong(0), strong(0)]) is None
    found = weights_of([strong(1), strong(3), said(), said("equal")])
    assert found is not None
    assert found.tolist() == [0.5, 1.5, 1, 1]
    assert strength_of(said("equal")) is strength_of(object()) is None
    some = weights_of([strong(1)], mean_strength([strong(1), strong(3)]))
    assert some is not None
    assert some.tolist() == [0.5]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), min_size=1, max_size=12), st.floats(1e-3, 1e3))
def test_weights_are_one_on_the_average_whatever_the_unit(known: list[float | None], unit: float) -> None:
    weights = weights_of([strong(value) for value in known])
    if weights is None:
        return
    assert (weights >= 0).all()
    assert weights.mean() == pytest.approx(1)
    scaled = [None if value is None else value * unit for value in known]
    other = weights_of([SimpleNamespace(strength=value) for value in scaled])
    assert other is not None
    assert other == pytest.approx(weights, rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(MARGIN, st.integers(1, 4)), min_size=1, max_size=6), st.booleans())
def test_a_strong_choice_is_so_many_alike(pairs: list[tuple[float, int]], tie: bool) -> None:
    """Up to what a choice counts on the average; with a tie, in Davidson's model, too."""
    margins, times = np.array([m for m, _ in pairs]), np.array([s for _, s in pairs])
    ties = [said("equal")] if tie else []
    given_pairs = [*(strong(float(s)) for s in times), *ties]
    nu = nu_of(given_pairs)
    found = PairLikelihood.of(given_pairs)
    plain = PairLikelihood([False] * len(margins) + [True] * tie, nu)
    at = np.append(margins, [0.3] * tie)
    weights = np.append(times / times.mean(), [1.0] * tie)
    for name in ("slope", "curvature"):
        assert getattr(found, name)(at) == pytest.approx(getattr(plain, name)(at) * weights)
    each = [
        PairLikelihood([t], nu).loss(at[[i]]) for i, t in enumerate([False] * len(margins) + [True] * tie)
    ]
    assert found.loss(at) == pytest.approx(float(np.dot(each, weights)))


def test_habits_say_what_some_pairs_do_not() -> None:
    every = [strong(1), strong(3), said("equal")]
    habits = habits_of(every)
    assert habits == Habits(1.0 * 2 / 3, 2.0)
    some = PairLikelihood.of(every[:1], habits)
    assert some.curvature(np.zeros(1)) == pytest.approx(PairLikelihood.of(every).curvature(np.zeros(3))[:1])
    assert habits_of([said()]) == PLAIN
