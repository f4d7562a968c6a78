"""Which pair to ask about next: a worked example, the integral by sampling, and whole interviews."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from penchant.client.learning.active import ActiveLearner, information
from penchant.client.learning.laplace import Laplace, Posterior, Prior, linear_optimum
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.davidson import PairLikelihood, is_tie
from penchant.common.model.factors import Split
from penchant.common.model.reward import RewardModel

CANDIDATES = [
    SimpleNamespace(prompt="", chosen=chosen, rejected=rejected)
    for chosen, rejected in [
        ("the motion to table", "a bill on tax"),
        ("vote on the judge", "budget of the bill"),
        ("the motion to table", "a bill on tax for the"),
        ("cloture", "tax"),
        ("a judge", "budget"),
        ("vote", "table the motion on the budget"),
    ]
]


def told(mean: float, error: float) -> float:
    return float(information(np.array([mean]), np.array([error]))[0])


# --- the integral ---------------------------------------------------------------------------------


def test_a_known_margin_tells_nothing():
    assert told(0.0, 0.0) == pytest.approx(0, abs=1e-12)
    assert told(3.0, 0.0) == pytest.approx(0, abs=1e-12)


def test_a_margin_that_may_be_anything_tells_one_bit():
    assert told(0.0, 100.0) == pytest.approx(math.log(2), abs=0.02)


def test_it_is_the_mutual_information_of_answer_and_margin():
    rng = np.random.default_rng(0)
    for mean, error in [(0.0, 1.0), (1.0, 2.0), (-2.0, 0.5)]:
        p = 1 / (1 + np.exp(-(mean + error * rng.standard_normal(400_000))))
        entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
        q = p.mean()
        sampled = -(q * np.log(q) + (1 - q) * np.log(1 - q)) - entropy.mean()
        assert told(mean, error) == pytest.approx(sampled, abs=2e-3)


def test_which_response_is_called_first_makes_no_difference():
    assert told(1.3, 0.7) == pytest.approx(told(-1.3, 0.7))


def test_doubt_about_the_margin_tells_more_and_a_foregone_answer_less():
    assert told(0.0, 0.5) < told(0.0, 1.0) < told(0.0, 2.0) < math.log(2)
    assert told(4.0, 1.0) < told(2.0, 1.0) < told(0.0, 1.0)


def test_a_wide_margin_far_from_zero_can_tell_more_than_a_narrow_one_at_zero():
    """That is where it differs from asking about the closest call."""
    assert told(1.0, 3.0) > told(0.0, 0.3)


# --- a worked example -----------------------------------------------------------------------------


class TwoTastes:
    """A linear model with two tastes: a text's reward is ⟨its features, θ⟩, that of "nothing" is 0."""

    def __init__(self, features: dict[str, tuple[float, float]]) -> None:
        self.features = {text: np.array(f) for text, f in features.items()} | {"nothing": np.zeros(2)}

    def margin_gradients(self, personal: Any, pairs: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = [self.features[pair.chosen] - self.features[pair.rejected] for pair in pairs]
        gradients = np.array(rows).reshape(-1, 2)
        return gradients @ personal, gradients

    def fit(self, prior: Prior, choices: Any) -> Posterior:
        margins, rows = self.margin_gradients(prior.mean, choices)
        likelihood = PairLikelihood.of(choices)
        at = prior.mean + linear_optimum(prior, prior.mean.astype(float), margins, rows, likelihood)
        return Posterior(prior, at.astype(np.float32), rows, rows @ at, likelihood)


def two_tastes(features: dict[str, tuple[float, float]], known: Any = (), **more: Any) -> ActiveLearner:
    """more: what else candidates say."""
    candidates = [SimpleNamespace(prompt="", chosen=text, rejected="nothing", **more) for text in features]
    laplace: Any = TwoTastes(features)
    return ActiveLearner(laplace, Prior(np.zeros(2, np.float32), 1.0), candidates, known)


def test_after_an_answer_about_one_taste_the_other_is_asked_about():
    """Candidates 0 and 1 ask about the first taste, 2 a little less about the second.

    Before any answer the margins are N(0, 4), N(0, 3.61) and N(0, 3.24): 0 tells most. Its answer leaves
    candidate 1 in less doubt than 2, which it said nothing about.
    """
    learner = two_tastes({"tax": (2.0, 0.0), "budget": (1.9, 0.0), "judge": (0.0, 1.8)})
    assert learner.informative() == pytest.approx([told(0, 2.0), told(0, 1.9), told(0, 1.8)])
    assert learner.question() == 0
    learner.answer(0, True)
    after = learner.informative()
    assert after[1] < told(0, 1.9)
    assert after[2] == pytest.approx(told(0, 1.8))
    assert learner.question() == 2
    learner.answer(2, False)
    assert learner.question() == 1
    learner.answer(1, True)
    assert learner.question() is None


def test_what_was_chosen_before_is_not_asked_about_again():
    """Somebody known to like taxes: the second taste tells more than the first."""
    features = {"tax": (2.0, 0.0), "judge": (0.0, 1.8)}
    candidates = [SimpleNamespace(prompt="", chosen=text, rejected="nothing") for text in features]
    laplace: Any = TwoTastes(features)
    prior = Prior(np.zeros(2, np.float32), 1.0)
    assert ActiveLearner(laplace, prior, candidates).question() == 0
    known = ActiveLearner(laplace, prior, candidates, candidates[:1])
    assert known.question() == 1
    assert known.informative()[1] == pytest.approx(told(0, 1.8))
    asked = ActiveLearner(laplace, prior, candidates)
    asked.answer(0, True)
    assert known.informative() == pytest.approx(asked.informative())


def test_an_answer_taken_back_is_open_again_and_only_some_may_be_asked_about():
    learner = two_tastes({"tax": (2.0, 0.0), "budget": (1.9, 0.0), "judge": (0.0, 1.8)})
    before = learner.informative()
    assert learner.question([1, 2]) == 1
    learner.answer(0, True)
    learner.undo()
    assert learner.question() == 0
    assert learner.informative() == pytest.approx(before)
    assert learner.question([]) is None


# --- on a reward model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tiny_model) -> SimpleNamespace:
    config, adapter = ModelConfig(base_model=str(tiny_model("bert"))), AdapterConfig(share="A")
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    split = Split.of(model.adapted_modules, model.embedding, adapter)
    shared, start = split.initial(0)
    laplace = Laplace(model, split, shared)
    return SimpleNamespace(laplace=laplace, prior=laplace.prior(start, 3.0, CANDIDATES))


def test_questions_are_about_open_candidates_and_answers_become_choices(scene):
    learner = ActiveLearner(scene.laplace, scene.prior, CANDIDATES)
    asked = []
    for turn in range(4):
        index = learner.question()
        asked.append(index)
        learner.answer(index, first=turn % 2 == 0)
    assert len(set(asked)) == 4
    assert set(learner.open) == set(range(6)) - set(asked)
    choices = learner.choices()
    assert (choices[0].chosen, choices[0].rejected) == (
        CANDIDATES[asked[0]].chosen,
        CANDIDATES[asked[0]].rejected,
    )
    assert (choices[1].chosen, choices[1].rejected) == (
        CANDIDATES[asked[1]].rejected,
        CANDIDATES[asked[1]].chosen,
    )
    same = scene.laplace.fit(scene.prior, choices)
    assert (learner.posterior().vector == same.vector).all()


def test_what_an_answer_tells_is_what_it_takes_off_the_doubt(scene):
    """A twin of the candidate that was answered tells less afterwards."""
    learner = ActiveLearner(scene.laplace, scene.prior, [*CANDIDATES, CANDIDATES[3]])
    before = learner.informative()
    learner.answer(3, True)
    assert learner.informative()[6] < 0.8 * before[6]


def test_the_candidates_order_of_responses_gives_nothing_away(scene):
    """Whoever is called chosen before the answer: the same questions, for the same answers."""
    swapped = [SimpleNamespace(prompt=p.prompt, chosen=p.rejected, rejected=p.chosen) for p in CANDIDATES]
    one, other = (ActiveLearner(scene.laplace, scene.prior, pairs) for pairs in (CANDIDATES, swapped))
    for _ in range(4):
        index = one.question()
        assert other.question() == index
        one.answer(index, True)
        other.answer(index, False)


def test_linear_between_looks_is_close_to_fitting_anew(scene):
    """After three answers the view is of two; the margins are those of a fit to three, to first order."""
    learner = ActiveLearner(scene.laplace, Prior(scene.prior.mean, scene.prior.variance / 100), CANDIDATES)
    for index in (0, 1, 3):
        learner.answer(index, True)
    posterior = learner.posterior()
    margins = scene.laplace.margins(posterior, CANDIDATES)
    assert learner.informative() == pytest.approx(information(margins.mean, margins.error), rel=0.05)


def test_nothing_is_asked_twice(scene):
    learner = ActiveLearner(scene.laplace, scene.prior, CANDIDATES)
    learner.answer(2, True)
    for index in (2, 6, -1):
        with pytest.raises(ValueError, match="not open"):
            learner.answer(index, True)


# --- ties -----------------------------------------------------------------------------------------


def test_with_ties_it_is_the_mutual_information_of_three_answers_and_the_margin():
    rng = np.random.default_rng(0)
    for mean, error, nu in [(0.0, 1.0, 0.5), (1.0, 2.0, 2.0), (-2.0, 0.5, 0.1)]:
        worth = np.exp(mean + error * rng.standard_normal(400_000))
        answers = np.stack([worth, np.ones_like(worth), nu * np.sqrt(worth)])
        answers = answers / answers.sum(axis=0)
        whole = answers.mean(axis=1)
        sampled = -(whole * np.log(whole)).sum() + (answers * np.log(answers)).sum(axis=0).mean()
        found = float(information(np.array([mean]), np.array([error]), nu)[0])
        assert found == pytest.approx(sampled, abs=2e-3)
        assert found == pytest.approx(float(information(np.array([-mean]), np.array([error]), nu)[0]))
    assert float(information(np.zeros(1), np.ones(1), 1e-9)[0]) == pytest.approx(told(0.0, 1.0), abs=1e-6)


def test_a_tie_is_an_answer_that_is_learned_from_and_taken_back():
    learner = two_tastes({"tax": (2.0, 0.0), "budget": (1.9, 0.0), "judge": (0.0, 1.8)})
    before = learner.beliefs()
    learner.answer(0, None)
    (answered,) = learner.choices()
    assert is_tie(answered)
    assert learner.open == [1, 2]
    after = learner.beliefs()
    assert after.mean == pytest.approx(before.mean)  # 0, and a tie keeps it there
    assert after.error[1] < 0.9 * before.error[1]  # of the same taste
    learner.undo()
    assert learner.beliefs().error == pytest.approx(before.error)


# --- strengths ------------------------------------------------------------------------------------


def test_what_was_said_strongly_is_asked_about_last():
    """Of two tastes that one choice each is known of, the next question is about the weaker one."""
    features = {"tax": (2.0, 0.0), "judge": (0.0, 2.0)}
    for weaker, strengths in enumerate([(1.0, 3.0), (3.0, 1.0)]):
        known = [
            SimpleNamespace(prompt="", chosen=text, rejected="nothing", strength=strength)
            for text, strength in zip(features, strengths, strict=True)
        ]
        learner = two_tastes(features, known)
        assert learner.question() == weaker
        error = learner.beliefs().error
        assert error[weaker] > 1.1 * error[1 - weaker]


def test_a_candidates_strength_is_not_known_before_it_is_asked():
    features = {"tax": (2.0, 0.0), "judge": (0.0, 1.9)}
    plain, strong = two_tastes(features), two_tastes(features, strength=5.0)
    for learner in (plain, strong):
        learner.answer(0, True)
        learner.answer(1, False)
    assert strong.margins() == pytest.approx(plain.margins())
    assert [getattr(pair, "strength", None) for pair in strong.choices()] == [None, None]
