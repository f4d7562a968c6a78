"""Davidson's model: by hand, against autograd, and Bradley and Terry's to the bit where there are no ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.data.preferences import Preference
from penchant.common.model.davidson import (
    CHOICES,
    PairLikelihood,
    bradley_terry,
    davidson,
    is_tie,
    nu_of,
    tie_probability,
)

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
