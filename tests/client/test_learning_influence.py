"""What choices say of a ranking is what taking each of them away would change."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from penchant.client.learning.doubt import doubt_of
from penchant.client.learning.influence import influence_of
from penchant.client.learning.laplace import Laplace, Posterior
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.davidson import habits_of
from penchant.common.model.factors import Split
from penchant.common.model.reward import RewardModel

TEXTS = ("the motion to table", "a bill on tax", "vote on the judge", "budget of the bill", "cloture")
ASKED = [("on tax ", TEXTS[0]), ("on tax ", TEXTS[1]), ("on tax ", TEXTS[4])]


def pair(prompt: str, chosen: str, rejected: str) -> SimpleNamespace:
    return SimpleNamespace(prompt=prompt, chosen=chosen, rejected=rejected)


CHOICES = [
    pair(prompt, TEXTS[n % 5], TEXTS[(n + step) % 5])
    for n, (prompt, step) in enumerate([("on tax ", 1), ("the vote ", 2), ("", 3), ("on bill ", 1)] * 3)
]


@pytest.fixture(scope="module")
def scene(tiny_model) -> SimpleNamespace:
    """A tiny model with a personal head and factors, fitted to the choices to the end."""
    model_config, adapter = ModelConfig(base_model=str(tiny_model("bert"))), AdapterConfig(share="none")
    model = RewardModel(load_backbone(model_config, device="cpu"), model_config, adapter)
    split = Split.of(model.adapted_modules, model.embedding, adapter)
    rng = np.random.default_rng(1)
    shared, start = (v + 0.2 * rng.normal(size=v.shape).astype(np.float32) for v in split.initial(0))
    laplace = Laplace(model, split, shared)
    prior = laplace.prior(start, 1.0, CHOICES)
    return SimpleNamespace(laplace=laplace, prior=prior, posterior=laplace.fit(prior, CHOICES))


def differences(scene: SimpleNamespace, posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    scores, gradients = scene.laplace.score_gradients(posterior.vector, ASKED)
    return scores[:-1] - scores[1:], gradients[:-1] - gradients[1:]


def test_it_is_the_formula_with_the_covariance_written_out(
    scene: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.client.learning.influence.PAIRS_AT_ONCE", 5)
    personal = scene.posterior.vector
    doubt = doubt_of(scene.laplace, scene.prior, personal, CHOICES)
    _, asked = differences(scene, scene.posterior)
    found = influence_of(scene.laplace, doubt, personal, asked, CHOICES)

    margins, gradients = scene.laplace.margin_gradients(personal, CHOICES)
    likely = 1 / (1 + np.exp(-margins))
    slope = likely * (1 - likely)
    variance = np.broadcast_to(scene.prior.variance, personal.shape)
    covariance = np.linalg.inv(np.diag(1 / variance) + gradients.T * slope @ gradients)
    for s, row in enumerate(asked):
        for i, own in enumerate(gradients):
            k, e2 = row @ covariance @ own, own @ covariance @ own
            expected = (1 - likely[i]) * k / (1 - slope[i] * e2)
            doubtful = abs(k) * slope[i] * np.sqrt(e2) / (1 - slope[i] * e2)
            assert found.change[s, i] == pytest.approx(expected, rel=1e-3, abs=1e-5)
            assert found.error[s, i] == pytest.approx(doubtful, rel=1e-3, abs=1e-5)


def test_it_is_what_a_fit_without_the_choice_changes(scene: SimpleNamespace) -> None:
    doubt = doubt_of(scene.laplace, scene.prior, scene.posterior.vector, CHOICES)
    now, asked = differences(scene, scene.posterior)
    found = influence_of(scene.laplace, doubt, scene.posterior.vector, asked, CHOICES).change
    real = np.empty_like(found)
    for i in range(len(CHOICES)):
        without = scene.laplace.fit(scene.prior, CHOICES[:i] + CHOICES[i + 1 :])
        real[:, i] = now - differences(scene, without)[0]
    for one, other in zip(found, real, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.97
        assert abs(one - other).max() < 0.15 * abs(other).max()


def test_a_choice_between_the_same_two_speaks_for_its_side(scene: SimpleNamespace) -> None:
    doubt = doubt_of(scene.laplace, scene.prior, scene.posterior.vector, CHOICES)
    _, asked = differences(scene, scene.posterior)
    found = influence_of(scene.laplace, doubt, scene.posterior.vector, asked, CHOICES)
    same = next(i for i, p in enumerate(CHOICES) if (p.prompt, p.chosen, p.rejected) == (*ASKED[0], TEXTS[1]))
    assert found.change[0, same] > 0.5 * found.change[0].max() > 0
    turned = influence_of(scene.laplace, doubt, scene.posterior.vector, -asked, CHOICES)
    assert np.array_equal(turned.change, -found.change)
    assert np.array_equal(turned.error, found.error)


def test_without_choices_nothing_speaks(scene: SimpleNamespace) -> None:
    doubt = doubt_of(scene.laplace, scene.prior, scene.posterior.vector, CHOICES)
    _, asked = differences(scene, scene.posterior)
    found = influence_of(scene.laplace, doubt, scene.posterior.vector, asked, [])
    assert found.change.shape == found.error.shape == (2, 0)


def test_a_strong_choice_speaks_louder_and_a_choice_of_no_strength_is_silent(scene: SimpleNamespace) -> None:
    """As a fit without it says, too."""
    strengths = [0.0, 3.0, *[1.0] * (len(CHOICES) - 2)]
    said = [SimpleNamespace(**vars(one), strength=s) for one, s in zip(CHOICES, strengths, strict=True)]
    posterior = scene.laplace.fit(scene.prior, said)
    doubt = doubt_of(scene.laplace, scene.prior, posterior.vector, said)
    _, asked = differences(scene, posterior)
    found = influence_of(scene.laplace, doubt, posterior.vector, asked, said, habits_of(said)).change
    unheard = influence_of(scene.laplace, doubt, posterior.vector, asked, said).change
    weights = np.array(strengths) / np.mean(strengths)
    assert np.array_equal(found[:, 0], np.zeros(2))
    assert (np.abs(found[:, 1]) > 1.5 * np.abs(unheard[:, 1])).all()
    assert (np.abs(found) <= np.abs(unheard) * np.maximum(weights, 1) * 2).all()
