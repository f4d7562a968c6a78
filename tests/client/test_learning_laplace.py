"""The Laplace posterior: against a dense reference, worked examples, and what it must do to probabilities."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import WORDS

from penchant.client.learning.laplace import Belief, Laplace, Posterior, Prior, linear_optimum, probability
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import ConfigError, DeviceError
from penchant.common.model.backbone import load_backbone
from penchant.common.model.davidson import PairLikelihood
from penchant.common.model.factors import Split
from penchant.common.model.reward import RewardModel

PAIRS = [
    SimpleNamespace(prompt="", chosen=chosen, rejected=rejected)
    for chosen, rejected in [
        ("the motion to table", "a bill on tax"),
        ("vote on the judge", "budget of the bill"),
        ("table the motion to vote", "a tax on the budget"),
        ("cloture", "tax"),
        ("a judge", "budget"),
        ("the motion to table", "budget"),
    ]
]
OTHERS = [
    SimpleNamespace(prompt="vote ", chosen="on the judge", rejected="on a tax"),
    SimpleNamespace(prompt="", chosen="budget", rejected="cloture"),
]


@pytest.fixture(scope="module", params=["A", "B", "kernel", "none", "lore", "mixed", "common"])
def scene(request, tiny_model) -> SimpleNamespace:
    """A tiny model with each kind of personal part, at factors away from the start."""
    folder = tiny_model("bert")
    model_config, adapter = ModelConfig(base_model=str(folder)), AdapterConfig(share=request.param)
    model = RewardModel(load_backbone(model_config, device="cpu"), model_config, adapter)
    split = Split.of(model.adapted_modules, model.embedding, adapter)
    rng = np.random.default_rng(1)
    shared, start = (v + 0.2 * rng.normal(size=v.shape).astype(np.float32) for v in split.initial(0))
    prior = Prior(start, 0.3)
    return SimpleNamespace(model=model, split=split, shared=shared, start=start, prior=prior)


def laplace(scene: SimpleNamespace) -> Laplace:
    return Laplace(scene.model, scene.split, scene.shared)


def dense(scene: SimpleNamespace, prior: Prior, personal: np.ndarray, pairs: list) -> SimpleNamespace:
    """The same by the textbook: gradients by autograd of all margins, and d × d matrices."""
    prepared = scene.model.prepare(pairs)
    shared = scene.split.shared.unflatten(scene.shared)
    leaves = scene.split.personal.unflatten(personal)
    for leaf in leaves.values():
        leaf.requires_grad_()
    margins = scene.model.margins(prepared, scene.split.effective(shared, leaves))
    rows = [torch.autograd.grad(m, list(leaves.values()), retain_graph=True) for m in margins]
    jacobian = np.stack([np.concatenate([t.numpy().ravel() for t in row]) for row in rows]).astype(float)
    likely = torch.sigmoid(margins.detach()).double().numpy()
    before = prior.variance * np.eye(len(personal))
    precision = np.linalg.inv(before)
    hessian = jacobian.T @ np.diag(likely * (1 - likely)) @ jacobian + precision
    away = personal.astype(float) - prior.mean
    return SimpleNamespace(
        jacobian=jacobian,
        covariance=np.linalg.inv(hessian),
        gradient=precision @ away - jacobian.T @ (1 - likely),
        evidence=np.log(likely).sum()
        - away @ precision @ away / 2
        - (np.linalg.slogdet(hessian)[1] + np.linalg.slogdet(before)[1]) / 2,
        distance=away @ precision @ away,
    )


# --- against the dense reference ------------------------------------------------------------------


def test_errors_and_evidence_are_those_of_the_dense_reference(scene):
    prior = scene.prior
    tool = laplace(scene)
    posterior = tool.around(prior, scene.start + 0.1, PAIRS)
    reference = dense(scene, prior, scene.start + 0.1, PAIRS)
    _, gradients = tool.margin_gradients(scene.start + 0.1, OTHERS)
    wanted = gradients @ reference.covariance @ gradients.T
    assert posterior.covariance(gradients) == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert posterior.error(gradients) == pytest.approx(np.sqrt(np.diag(wanted)), rel=1e-4)
    assert posterior.evidence == pytest.approx(reference.evidence, rel=1e-5)
    assert prior.distance(scene.start.astype(float) + 0.1) == pytest.approx(reference.distance, rel=1e-4)


def test_a_fit_has_the_same_bits_whatever_was_read_before(scene, monkeypatch):
    """Also on a processor whose last bits of a text depend on what is read with it."""
    precompute = scene.model.tail.precompute

    def with_company(texts):
        bent = 1 + 1e-3 * (len(texts) > 1)
        return [tuple(t * bent if t.is_floating_point() else t for t in own) for own in precompute(texts)]

    monkeypatch.setattr(scene.model.tail, "precompute", with_company)
    texts = [(p.prompt, r) for p in PAIRS for r in (p.chosen, p.rejected)]
    found = []
    for ranked in ([], texts, []):  # at last with what the others have left
        if len(found) < 2:
            scene.model.cache.clear()
        if ranked:
            scene.model.prepare_texts(ranked)
        fit = laplace(scene).fit(laplace(scene).prior(scene.start, 0.5, PAIRS), PAIRS)
        found.append((fit.vector.tobytes(), fit.evidence))
    scene.model.cache.clear()
    assert found[0] == found[2]
    assert found[0] == found[1]


def test_the_fit_is_where_the_posterior_has_no_slope(scene):
    prior = scene.prior
    posterior = laplace(scene).fit(prior, PAIRS)
    reference = dense(scene, prior, posterior.vector, PAIRS)
    slope = np.abs(reference.gradient).max()
    at_start = np.abs(dense(scene, prior, scene.start, PAIRS).gradient).max()
    assert slope < 5e-3 * at_start


def test_gradients_belong_to_the_pairs_in_order(scene):
    margins, gradients = laplace(scene).margin_gradients(scene.start, PAIRS)
    reference = dense(scene, scene.prior, scene.start, PAIRS)
    assert gradients == pytest.approx(reference.jacobian, rel=1e-4, abs=1e-5)
    swapped = [SimpleNamespace(prompt=p.prompt, chosen=p.rejected, rejected=p.chosen) for p in PAIRS]
    assert laplace(scene).margin_gradients(scene.start, swapped)[0] == pytest.approx(-margins, abs=1e-5)


# --- what must hold -------------------------------------------------------------------------------


def test_where_a_fit_begins_makes_no_difference(scene):
    tool = laplace(scene)
    near = tool.fit(scene.prior, PAIRS[:3]).vector
    posteriors = [tool.fit(scene.prior, PAIRS, begin) for begin in (None, near)]
    one, other = (tool.margins(posterior, OTHERS) for posterior in posteriors)
    assert one.mean == pytest.approx(other.mean, abs=0.02)
    assert one.error == pytest.approx(other.error, rel=0.02)


def test_without_choices_there_is_the_prior(scene):
    posterior = laplace(scene).fit(scene.prior, [])
    assert (posterior.vector == scene.start).all()
    _, gradients = laplace(scene).margin_gradients(scene.start, OTHERS)
    assert posterior.error(gradients) == pytest.approx(np.sqrt(0.3) * np.linalg.norm(gradients, axis=1))
    assert posterior.evidence == 0


def test_each_choice_makes_margins_surer_and_the_own_choices_likelier(scene):
    tool, prior = laplace(scene), scene.prior
    errors = [
        tool.around(prior, scene.start, PAIRS[:n]).error(tool.margin_gradients(scene.start, OTHERS)[1])
        for n in range(len(PAIRS) + 1)
    ]
    assert all((later <= earlier + 1e-9).all() for earlier, later in itertools.pairwise(errors))
    before, after = (tool.margin_gradients(v, PAIRS)[0] for v in (scene.start, tool.fit(prior, PAIRS).vector))
    assert np.logaddexp(0, -after).sum() < np.logaddexp(0, -before).sum()


def test_scores_come_with_errors_and_margins_agree_with_them(scene):
    tool = laplace(scene)
    posterior = tool.fit(scene.prior, PAIRS)
    scores = tool.scores(posterior, [("vote ", "on the judge"), ("vote ", "on a tax")])
    margin = tool.margins(posterior, OTHERS[:1])
    assert scores.mean[0] - scores.mean[1] == pytest.approx(margin.mean[0], abs=1e-5)
    assert (scores.error > 0).all()
    assert margin.error[0] <= scores.error.sum() + 1e-9


def test_the_same_choices_give_the_same_bits(scene):
    first, second = (laplace(scene).fit(scene.prior, PAIRS) for _ in range(2))
    assert (first.vector == second.vector).all()
    assert first.evidence == second.evidence


def test_a_priors_spread_is_that_of_the_margins_whoever_chose(scene):
    tool = laplace(scene)
    prior = tool.prior(scene.start, 2.0, PAIRS)
    _, gradients = tool.margin_gradients(scene.start, PAIRS)
    errors = tool.fit(prior, []).error(gradients)
    several = (
        scene.split.rule.name == "none"
    )  # a head, B and A: 4 from the head, at most as much from each other
    assert 4.5 < np.square(errors).mean() < 12 if several else np.square(errors).mean() == pytest.approx(4.0)
    swapped = [SimpleNamespace(prompt=p.prompt, chosen=p.rejected, rejected=p.chosen) for p in PAIRS]
    assert tool.prior(scene.start, 2.0, swapped).variance == pytest.approx(prior.variance)
    assert (tool.prior(scene.start, 2.0, []).variance == 1.0).all()


def test_factors_behind_a_head_near_zero_are_not_left_free(tiny_model):
    """Alone on a device B is zero and the head small at first: A has no slope, B next to none. Once choices
    have moved all three, the doubt about margins is still of the prior's size."""
    config, adapter = ModelConfig(base_model=str(tiny_model("bert"))), AdapterConfig(share="none")
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    split = Split.of(model.adapted_modules, model.embedding, adapter)
    shared, start = split.initial(0)
    tool = Laplace(model, split, shared)
    posterior = tool.fit(tool.prior(start, 1.0, PAIRS), PAIRS)
    margins = tool.margins(posterior, [*PAIRS, *OTHERS])
    assert np.abs(margins.mean[: len(PAIRS)]).min() > 0.5
    assert (margins.error < 4).all()


def test_evidence_chooses_a_wide_prior_for_choices_that_agree(scene):
    """Choices that all point one way need a part far from the start; nothing is held out to see that."""
    tool = laplace(scene)
    narrow, wide = (tool.prior(scene.start, spread, PAIRS[:1]) for spread in (0.01, 3.0))
    agreed = [PAIRS[0]] * 8
    assert tool.choose(scene.start, (0.01, 3.0), agreed).prior.variance == pytest.approx(wide.variance)
    assert tool.fit(wide, agreed).evidence > tool.fit(narrow, agreed).evidence


def test_choices_against_a_confident_mean_are_fitted_all_the_same():
    """The mean is sure of the opposite, the prior is wide: whole Newton steps go to and fro for ever."""
    rng = np.random.default_rng(0)
    gradients = 3 * rng.standard_normal((20, 8))
    margins, prior = -2 + rng.standard_normal(20), Prior(np.zeros(8, np.float32), 1.0)
    found = linear_optimum(prior, np.zeros(8), margins, gradients)
    wrong = 1 / (1 + np.exp(margins + gradients @ found))  # σ(-m)
    assert found == pytest.approx(gradients.T @ wrong, abs=1e-5)  # no slope is left


def test_each_number_can_have_a_variance_of_its_own():
    """Two numbers and a choice about their sum: as with two numbers of variance 1 that are scaled."""
    wide = Prior(np.zeros(2, np.float32), np.array([9.0, 0.25]))
    plain = Prior(np.zeros(2, np.float32), 1.0)
    rows, scaled = np.ones((1, 2)), np.array([[3.0, 0.5]])
    at, same = (
        linear_optimum(prior, np.zeros(2), np.zeros(1), g) for prior, g in ((wide, rows), (plain, scaled))
    )
    assert at == pytest.approx(same * [3.0, 0.5])
    margins = rows @ at
    first = Posterior(wide, at.astype(np.float32), rows, margins)
    second = Posterior(plain, same.astype(np.float32), scaled, margins)
    assert first.evidence == pytest.approx(second.evidence)
    asked = np.array([[1.0, -1.0], [0.0, 1.0]])
    assert first.error(asked) == pytest.approx(second.error(asked * [3.0, 0.5]))
    assert first.covariance(asked) == pytest.approx(second.covariance(asked * [3.0, 0.5]))


# --- by hand --------------------------------------------------------------------------------------


def test_one_number_by_hand():
    """d = 1, prior N(0, 4), one choice with margin θ, at θ = 0: precision 1/4 + 1/4, so variance 2."""
    prior = Prior(np.zeros(1, np.float32), 4.0)
    posterior = Posterior(prior, np.zeros(1, np.float32), np.ones((1, 1)), np.zeros(1))
    assert posterior.error(np.array([[1.0], [3.0]])) == pytest.approx([math.sqrt(2), 3 * math.sqrt(2)])
    # log(1/2) - log√(1 + 4/4)
    assert posterior.evidence == pytest.approx(math.log(0.5) - math.log(2) / 2)


def test_doubt_pulls_probabilities_to_one_half_and_keeps_the_side():
    believed = Belief(np.array([2.0, -2.0, 0.0]), np.array([3.0, 3.0, 3.0]))
    assert believed.probability == pytest.approx([0.7189, 0.2811, 0.5], abs=1e-4)
    assert probability(np.array([2.0]), np.array([0.0])) == pytest.approx([1 / (1 + math.exp(-2))])


def test_the_probit_approximation_is_close_to_the_integral():
    grid = np.linspace(-9, 9, 4001)
    density = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    for margin, error in [(0.5, 1.0), (2.0, 3.0), (-1.0, 0.3)]:
        exact = (density / (1 + np.exp(-(margin + error * grid)))).sum()
        assert probability(np.array([margin]), np.array([error])) == pytest.approx([exact], abs=0.01)


# --- what is refused ------------------------------------------------------------------------------


def test_a_model_without_a_personal_part_has_nothing_to_be_unsure_of(tiny_model):
    config, adapter = ModelConfig(base_model=str(tiny_model("bert"))), AdapterConfig(share="AB")
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    split = Split.of(model.adapted_modules, model.embedding, adapter)
    with pytest.raises(ConfigError, match="no personal part"):
        Laplace(model, split, split.initial(0)[0])


def test_a_prior_must_be_one():
    start = np.zeros(3, np.float32)
    with pytest.raises(ConfigError, match=r"\(3,\) means"):
        Prior(start, np.ones(2))
    for variance in (0.0, -1.0, math.inf, math.nan, np.array([1.0, 0.0, 1.0])):
        with pytest.raises(ConfigError, match="must be positive"):
            Prior(start, variance)


def test_a_damaged_personal_part_is_named(scene):
    with pytest.raises(DeviceError, match="not finite"):
        laplace(scene).score_gradients(np.full_like(scene.start, np.nan), [("", "tax")])


# --- ties -----------------------------------------------------------------------------------------


def tied(pair: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(**vars(pair), tie="equal")


def test_with_ties_the_fit_is_where_their_posterior_has_no_slope(scene):
    """The slope of the log-likelihood by autograd of Davidson's formula as it is in the paper."""
    pairs = [*PAIRS[:4], tied(PAIRS[4]), tied(PAIRS[5])]
    nu = 2 * 2 / 5
    posterior = laplace(scene).fit(scene.prior, pairs)
    margins, gradients = laplace(scene).margin_gradients(posterior.vector, pairs)
    m = torch.tensor(margins, requires_grad=True)
    first, second = torch.exp(m), torch.ones_like(m)
    whole = first + second + nu * (first * second).sqrt()
    likelihood = torch.cat([(first / whole)[:4], (nu * (first * second).sqrt() / whole)[4:]])
    (slope,) = torch.autograd.grad(likelihood.log().sum(), m)
    pull = slope.numpy() @ gradients
    away = (posterior.vector.astype(float) - scene.prior.mean) / scene.prior.variance
    assert np.abs(pull - away).max() < 5e-3 * max(np.abs(pull).max(), 1e-3)


def test_a_tie_draws_its_two_scores_together_and_makes_surer(scene):
    tool = laplace(scene)
    without = tool.margins(tool.fit(scene.prior, PAIRS[:4]), PAIRS[:1])
    turned = SimpleNamespace(prompt="", chosen=PAIRS[0].rejected, rejected=PAIRS[0].chosen, tie="both bad")
    for tie in (tied(PAIRS[0]), turned):
        posterior = tool.fit(scene.prior, [*PAIRS[1:4], tie])
        with_tie = tool.margins(posterior, PAIRS[:1])
        assert abs(with_tie.mean[0]) < abs(without.mean[0])
        before = tool.fit(scene.prior, PAIRS[1:4])
        assert with_tie.error[0] < tool.margins(before, PAIRS[:1]).error[0]


@pytest.mark.parametrize(("nu", "gain"), [(1.0, 0.0059), (3.0, 0.0090)])
def test_people_who_tie_are_known_better_by_their_ties_than_without_them(nu: float, gain: float):
    """300 people of ten tastes say what they think of 40 pairs, by Davidson; docs/data.md has the figures."""
    rng, gained = np.random.default_rng(0 if nu == 1 else 1), []
    for _ in range(300):
        tastes = rng.standard_normal(10)
        pairs, others = (rng.standard_normal((count, 10)) * 2 / math.sqrt(10) for count in (40, 400))
        worth = np.exp(pairs @ tastes / 2)
        said = rng.random(40) * (worth + 1 / worth + nu)
        ties, first = said < nu, said < nu + worth
        gradients = np.where(first, 1.0, -1.0)[:, None] * pairs
        right = []
        for rows, own in ((np.ones(40, bool), 2 * ties.sum() / ((~ties).sum() + 1)), (~ties, 0.0)):
            likelihood = PairLikelihood(list(ties[rows]), float(own))
            prior, start = Prior(np.zeros(10, np.float32), 1.0), np.zeros(10)
            found = linear_optimum(prior, start, np.zeros(rows.sum()), gradients[rows], likelihood)
            right.append(np.mean((others @ found > 0) == (others @ tastes > 0)))
        gained.append(right[0] - right[1])
    error = np.std(gained) / math.sqrt(300)
    assert np.mean(gained) > 2 * error
    assert np.mean(gained) == pytest.approx(gain, abs=3 * error)


# --- strengths ------------------------------------------------------------------------------------


def with_strength(pair: SimpleNamespace, strength: float) -> SimpleNamespace:
    return SimpleNamespace(**vars(pair), strength=strength)


def test_a_choice_of_twice_the_strength_is_two_in_the_fit_the_errors_and_the_evidence(scene):
    """Strengths 2, 1 and 1 weigh 1.5, 0.75 and 0.75: four choices under a prior of 4/3 the variance, up to
    the scale of the evidence's determinant, which is checked by hand."""
    given = [with_strength(PAIRS[0], 2.0), with_strength(PAIRS[1], 1.0), with_strength(PAIRS[2], 1.0)]
    copies = [PAIRS[0], PAIRS[0], PAIRS[1], PAIRS[2]]
    tool = laplace(scene)
    wider = Prior(scene.prior.mean, np.asarray(scene.prior.variance) * 0.75)
    found, wanted = tool.fit(scene.prior, given), tool.fit(wider, copies)
    assert found.vector == pytest.approx(wanted.vector, rel=1e-3, abs=1e-4)
    _, gradients = tool.score_gradients(found.vector, [("", "a judge"), ("", "a budget")])
    likelihood = PairLikelihood.of(given)
    assert likelihood.curvature(np.zeros(3)) == pytest.approx(0.25 * np.array([1.5, 0.75, 0.75]))
    around = tool.around(wider, found.vector, copies).error(gradients) * math.sqrt(4 / 3)
    assert tool.around(scene.prior, found.vector, given).error(gradients) == pytest.approx(around, rel=1e-6)


def test_people_who_say_how_strongly_are_known_better_than_by_the_choices_alone():
    """300 people of ten tastes choose in 20 pairs and say "slightly", "better" or "much" as a difference with
    logistic noise lies; docs/data.md has the figures."""
    rng, gained = np.random.default_rng(0), []
    for _ in range(300):
        tastes = rng.standard_normal(10)
        pairs, others = (rng.standard_normal((count, 10)) * 2 / math.sqrt(10) for count in (20, 400))
        felt = pairs @ tastes + rng.logistic(size=20)
        gradients = np.sign(felt)[:, None] * pairs
        said = [SimpleNamespace(strength=1.0 + (f > 1) + (f > 2.5)) for f in np.abs(felt)]
        right = []
        for likelihood in (PairLikelihood.of(said), PairLikelihood([False] * 20, 0.0)):
            prior, start = Prior(np.zeros(10, np.float32), 1.0), np.zeros(10)
            found = linear_optimum(prior, start, np.zeros(20), gradients, likelihood)
            right.append(np.mean((others @ found > 0) == (others @ tastes > 0)))
        gained.append(right[0] - right[1])
    error = np.std(gained) / math.sqrt(300)
    print(np.mean(gained), error)
    assert np.mean(gained) > 2 * error
    assert np.mean(gained) == pytest.approx(0.02, abs=3 * error)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gptj"])
def test_of_long_texts_fewer_gradients_are_taken_at_a_time(
    tiny_model: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound the same bits. One text alone above it has its blocks computed again, to the same
    gradients."""
    config = ModelConfig(base_model=str(tiny_model(kind)))
    adapter = AdapterConfig(share="AB", rank=2, target_modules=("q_proj", "v_proj"), layers=())
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    split = Split.of(model.adapted_modules, model.embedding, AdapterConfig(share="A", rank=2))
    shared, start = split.initial(0)
    personal = start + np.float32(0.05)
    draw = random.Random(0)
    texts = [("", " ".join(draw.choices(WORDS, k=20))) for _ in range(11)]
    counts: list[int] = []
    scores = model.scores

    def watched(some: Any, effective: Any) -> torch.Tensor:
        counts.append(some.count)
        return scores(some, effective)

    monkeypatch.setattr(model, "scores", watched)

    def found(step_bytes: int | None) -> Any:
        counts.clear()
        return Laplace(model, split, shared, step_bytes=step_bytes).score_gradients(personal, texts)

    at_once, slopes = found(None)
    assert counts == [8, 3]
    one = model.step_memory.of(
        model.prepare_texts(texts[:1]).packed,
        split.effective(
            split.shared.unflatten(shared),
            {n: t.requires_grad_() for n, t in split.personal.unflatten(personal).items()},
        ),
    )
    for bound, wanted in ((4 * one, [2, 2, 2, 2, 2, 1]), (one // 2, [1] * 11)):
        again, fewer = found(bound)
        assert counts == wanted
        assert again == pytest.approx(at_once, rel=1e-5, abs=1e-6)
        assert fewer == pytest.approx(slopes, rel=1e-3, abs=1e-5 * float(np.abs(slopes).max()))
