"""What a vector is charged is never below what its sum costs, whatever plan, roster and owner."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scene import announcement, signed_manifest

from penchant.client.agent.policy import OwnerPolicy
from penchant.client.agent.privacy_cost import cost_of, honest_in
from penchant.common.config import Plan, RunConfig
from penchant.common.errors import AgreementError, PolicyRefusal
from penchant.common.privacy.noise import Noise
from penchant.common.secagg.quantization import Quantiser
from penchant.common.secagg.transcript import threshold
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.wire.messages import Announce, Kind

NOISE = Noise(1024, 3000, 20)


def plan(honest: int) -> Plan:
    noised = {"privacy.dp_epsilon": 8.0, "privacy.dp_participations": 3, "privacy.dp_honest": honest}
    return RunConfig().changed(noised).plan("close", 1000)


def announced(asked: Plan, least: int, kind: Kind = Kind.SECAGG) -> Announce:
    manifest = signed_manifest([asked.encode()], bytes(32), rounds=1, least_group=least)
    return replace(announcement(3, kind=kind), manifest=manifest)


def layout(honest: int) -> UpdateLayout:
    return UpdateLayout(Quantiser(0, 3, 1, 1.0, (), 32, NOISE.clip), 1.0, 3, NOISE, honest)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_charge_covers_what_the_sum_costs(data: st.DataObject) -> None:
    """In exact fractions: the honest noise in a sum over the threshold of a roster, or over the least group,
    with each share scaled as `draw_noise` scales it, against the shares that the charge counts."""
    least = data.draw(st.integers(2, 400))
    honest = data.draw(st.integers(1, least))
    colluders = data.draw(st.integers(0, least - 1))
    people = data.draw(st.integers(least, 1000))
    asked = plan(honest)
    announce = announced(asked, least)
    there = honest_in(announce, asked, people)
    share = min(Fraction(1), Fraction(honest, there))  # of sigma squared
    in_the_sum = (max(threshold(people), least) - colluders) * share
    cost = cost_of(announce, asked, layout(honest), OwnerPolicy(max_colluders=colluders))
    charged = [n for n in range(1, least + 1) if NOISE.rho(n) == cost.rho]
    assert charged
    assert in_the_sum >= charged[0]


@pytest.mark.parametrize(("owners", "times"), [(1, 1), (2, 2), (3, 3), (1_000_000, 3)])
def test_a_run_takes_as_many_vectors_as_plan_and_owner_allow(owners: int, times: int) -> None:
    policy = OwnerPolicy(max_colluders=0, sums_a_run=owners)
    asked = plan(10)
    assert cost_of(announced(asked, 10), asked, layout(10), policy).times == times
    exact = replace(layout(10), noise=None)
    assert cost_of(announced(asked, 10), asked, exact, policy).times == owners


def test_an_owner_who_expects_fewer_colluders_than_the_plan_pays_what_the_plan_says() -> None:
    asked = plan(14)
    found = cost_of(announced(asked, 34), asked, layout(14), OwnerPolicy(max_colluders=0))
    assert found.rho == NOISE.rho(14)


def test_a_vector_that_is_seen_alone_pays_for_it() -> None:
    """Even if an authority signed such a manifest, which none does: see below."""
    asked = plan(10)
    announce = replace(announced(asked, 34), kind=Kind.PLAIN)
    assert cost_of(announce, asked, layout(10), OwnerPolicy()).rho == NOISE.rho(1)


def test_nobody_signs_a_promise_that_its_numbers_contradict() -> None:
    for least, unmasked, honest in ((20, False, 21), (20, True, 10)):
        with pytest.raises(AgreementError, match="contradicts itself"):
            signed_manifest(
                [plan(honest).encode()], bytes(32), rounds=1, least_group=least, unmasked=unmasked
            )


def test_a_sum_with_nobody_elses_noise_is_refused() -> None:
    asked = plan(1)
    with pytest.raises(PolicyRefusal, match="max_colluders"):
        cost_of(announced(asked, 3), asked, layout(1), OwnerPolicy(max_colluders=3))
