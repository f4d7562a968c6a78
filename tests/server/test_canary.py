"""What is said of a canary: better or worse only where neither chance nor noise would make the difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penchant.common.secagg.update_vector import JUDGED_MOST
from penchant.server.canary import CanaryVerdict, ReleaseCounts
from penchant.server.journal import RoundLog
from penchant.server.measured import Measurement
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.standing import RunStanding, pooled_standing

PRIVACY = PrivacyFigures(4.0, 1e-5, 2.0, 3, 20, 0.1, 0.5)


def counts(accuracy: float, error: float, privacy: PrivacyFigures | None = None) -> ReleaseCounts:
    return ReleaseCounts(200, RunStanding(accuracy, error), privacy)


def test_a_canary_that_nobody_measured_is_not_known() -> None:
    assert CanaryVerdict().outcome == "not measured"
    assert CanaryVerdict(tried=counts(0.7, 0.01)).outcome == "not measured"
    assert CanaryVerdict(used=counts(0.7, 0.01)).words() == "not measured yet"


def test_noise_that_hides_the_counts_says_nothing_of_the_canary() -> None:
    hidden = ReleaseCounts(20, None, PRIVACY)
    verdict = CanaryVerdict(hidden, counts(0.7, 0.01, PRIVACY))
    assert verdict.outcome == "hidden"
    assert "the noise hides the counts" in verdict.words()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-4, 0.3), st.floats(1e-4, 0.3))
def test_nothing_is_decided_within_two_standard_errors(
    a: float, b: float, first: float, second: float
) -> None:
    outcome = CanaryVerdict(counts(a, first), counts(b, second)).outcome
    told_apart = abs(a - b) > 2 * sqrt(first**2 + second**2)
    assert outcome == (("better" if a > b else "worse") if told_apart else "not known")


def judged_by(members: list[int] | None, accuracy: float, choices: int = 20) -> ReleaseCounts:
    """So many choices of each of 50 people."""
    standing = RunStanding(accuracy, sqrt(accuracy * (1 - accuracy) / (50 * choices)), 50 * choices)
    return ReleaseCounts(50, standing, None, 1, members and dict.fromkeys(members, 1 / len(members)))


def test_counts_of_other_people_are_no_verdict_for_the_sake_of_their_many_choices() -> None:
    """1,000 choices of 50 people: 6 points are told apart where the same people judged both."""
    same, others = list(range(50)), list(range(50, 100))
    assert CanaryVerdict(judged_by(same, 0.7), judged_by(same, 0.64)).outcome == "better"
    for used in (judged_by(others, 0.64), judged_by(None, 0.64)):
        assert CanaryVerdict(judged_by(same, 0.7), used).outcome == "not known"
        assert CanaryVerdict(judged_by(same, 0.7), used).words().startswith("not known yet")
    one_else = [*range(49), 50]
    assert CanaryVerdict(judged_by(same, 0.7), judged_by(one_else, 0.64)).outcome == "better"
    assert CanaryVerdict(judged_by(same, 0.9), judged_by(others, 0.64)).outcome == "better"


def test_people_who_differ_give_a_false_verdict_no_oftener_than_promised() -> None:
    """People whose accuracy is beta(6, 3) judge 20 choices each; both releases are as good."""
    draw = np.random.default_rng(7)

    def measured(members: list[int]) -> ReleaseCounts:
        own = draw.beta(6, 3, size=50)
        return judged_by(members, float(draw.binomial(20, own).sum()) / 1000)

    first, second = list(range(50)), list(range(50, 100))
    told = [CanaryVerdict(measured(first), measured(second)).outcome for _ in range(2000)]
    assert sum(outcome != "not known" for outcome in told) / len(told) < 0.05


UNEQUAL_CHOICES: dict[str, Callable[[np.random.Generator, int], NDArray[np.int_]]] = {
    "alike": lambda draw, people: np.full(people, 20),
    "heavy tail": lambda draw, people: np.minimum(
        1 + (5 * draw.pareto(1.0, people)).astype(int), JUDGED_MOST
    ),
    "heavier tail": lambda draw, people: np.minimum(
        1 + (5 * draw.pareto(0.7, people)).astype(int), JUDGED_MOST
    ),
    "a tenth have the most": lambda draw, people: np.where(draw.random(people) < 0.1, JUDGED_MOST, 5),
    "log-normal": lambda draw, people: np.minimum(
        1 + draw.lognormal(2, 1.5, people).astype(int), JUDGED_MOST
    ),
}


@pytest.mark.parametrize("people", [10, 30, 100])
@pytest.mark.parametrize("online", [0.85, 0.5])
@pytest.mark.parametrize("choices", list(UNEQUAL_CHOICES))
def test_people_with_unequal_counts_give_a_false_verdict_no_oftener_than_promised(
    choices: str, online: float, people: int
) -> None:
    """Both releases are as good; each count has whoever was online then."""
    draw = np.random.default_rng(11)

    def measured(many: NDArray[np.int_], own: NDArray[np.float64]) -> ReleaseCounts:
        who = np.flatnonzero(draw.random(people) < online)
        who = who if len(who) else np.array([0])
        right, total = int(draw.binomial(many[who], own[who]).sum()), int(many[who].sum())
        part = (right + 1) / (total + 2)
        standing = RunStanding(right / total, sqrt(part * (1 - part) / total), total)
        return ReleaseCounts(len(who), standing, None, 1, dict.fromkeys(who.tolist(), 1 / len(who)))

    told = []
    for _ in range(1000):
        many, own = UNEQUAL_CHOICES[choices](draw, people), draw.beta(2, 1, people)
        told.append(CanaryVerdict(measured(many, own), measured(many, own)).outcome)
    assert sum(outcome != "not known" for outcome in told) / len(told) < 0.05


def test_someone_with_many_choices_who_is_in_one_count_alone_is_no_verdict() -> None:
    """50 people judge 20 choices each; one more has 1,000, and half of the counts."""
    whole, without = list(range(51)), list(range(50))
    used = judged_by(without, 0.7)
    one_more = ReleaseCounts(51, RunStanding(0.6, 0.011, 2000), None, 1, dict.fromkeys(whole, 1 / 51))
    assert CanaryVerdict(one_more, used).outcome == "not known"
    few = ReleaseCounts(51, RunStanding(0.6, 0.011, 1020), None, 1, dict.fromkeys(whole, 1 / 51))
    assert CanaryVerdict(few, used).outcome == "worse"
    twice = ReleaseCounts(50, RunStanding(0.6, 0.011, 2000), None, 2, used.parts)
    assert CanaryVerdict(twice, used).outcome == "worse"  # the same choices, in two runs
    assert CanaryVerdict(few, used).words().endswith("what other people differ by is estimated")
    assert "estimated" not in CanaryVerdict(twice, used).words()


def test_the_words_say_the_noise_or_that_there_is_none() -> None:
    exact = CanaryVerdict(counts(0.75, 0.01), counts(0.65, 0.01)).words()
    assert exact.startswith(
        "better than the release in use, by +10.0 points; canary 75.0 ± 1.0% of 200 people"
    )
    assert exact.count("sums over secure aggregation, not noised") == 2
    noised = CanaryVerdict(counts(0.6, 0.02, PRIVACY), counts(0.65, 0.02, PRIVACY)).words()
    assert noised.startswith("not known yet: the difference is within what chance and noise make")
    assert noised.count("noised, epsilon 4, delta 1e-05 for each person and run") == 2


def test_the_error_of_a_noised_accuracy_holds_people_and_noise() -> None:
    exact = RoundLog(2, 1, "close", 100, 100, {}, 0.0, 0, 0, 0, None, 0.6, None, 0.0, judged=400)
    noised = replace(exact, judged=None, judges=100, count_noise=0.04)
    assert Measurement(1, exact).error == pytest.approx(sqrt(0.24 / 100))  # of 100 people, not 400 choices
    assert Measurement(1, noised).error == pytest.approx(sqrt(0.24 / 100 + 0.04**2 * 1.36))
    assert Measurement(1, replace(exact, judged=None)).error is None
    standing = pooled_standing([Measurement(1, noised)], 100, 0.04)
    assert standing is not None
    assert standing.error == pytest.approx(sqrt(0.24 / 100 + 0.04**2 * 1.36), rel=0.02)
