"""What is kept of a posterior gives its errors, in either form, without the choices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from penchant.client.learning.doubt import Doubt, doubt_of, numbers_kept
from penchant.client.learning.laplace import Laplace, Prior
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import DeviceError
from penchant.common.model.backbone import load_backbone
from penchant.common.model.factors import Split
from penchant.common.model.reward import RewardModel

TEXTS = ("the motion to table", "a bill on tax", "vote on the judge", "budget of the bill", "cloture")


def pairs(count: int) -> list[SimpleNamespace]:
    """Choices between texts that differ."""
    return [
        SimpleNamespace(
            prompt=f"{TEXTS[n % 5]} ", chosen=TEXTS[n % 4 + 1], rejected=TEXTS[(n // 4 + n % 4 + 2) % 5]
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def scene(tiny_model) -> SimpleNamespace:
    """A tiny model with a personal head and factors, away from the start."""
    model_config, adapter = ModelConfig(base_model=str(tiny_model("bert"))), AdapterConfig(share="none")
    model = RewardModel(load_backbone(model_config, device="cpu"), model_config, adapter)
    split = Split.of(model.adapted_modules, model.embedding, adapter)
    rng = np.random.default_rng(1)
    shared, start = (v + 0.2 * rng.normal(size=v.shape).astype(np.float32) for v in split.initial(0))
    variance = 0.1 + rng.random(len(start))
    return SimpleNamespace(laplace=Laplace(model, split, shared), start=start, prior=Prior(start, variance))


@pytest.mark.parametrize(("many", "triangular"), [(7, False), (400, True)])
def test_errors_are_those_of_the_posterior_before_and_after_it_was_kept(
    scene: SimpleNamespace, many: int, triangular: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.client.learning.doubt.PAIRS_AT_ONCE", 3 if many < 10 else 64)
    chosen = pairs(many)
    posterior = scene.laplace.around(scene.prior, scene.start, chosen)
    doubt = doubt_of(scene.laplace, scene.prior, scene.start, chosen)
    assert doubt.triangular is triangular
    assert not triangular or len(scene.start) < many
    _, gradients = scene.laplace.score_gradients(scene.start, [("", text) for text in TEXTS])
    for asked in (gradients, gradients[:-1] - gradients[1:]):
        expected = posterior.error(asked)
        assert doubt.error(asked) == pytest.approx(expected, rel=1e-5)
        assert Doubt.decode(doubt.encode()).error(asked) == pytest.approx(doubt.error(asked), rel=1e-12)
        assert (expected < np.sqrt((np.square(asked) * scene.prior.variance).sum(axis=1))).all()


@pytest.mark.parametrize("many", [7, 400])
def test_covariances_are_those_of_the_posterior(scene: SimpleNamespace, many: int) -> None:
    chosen = pairs(many)
    posterior = scene.laplace.around(scene.prior, scene.start, chosen)
    doubt = doubt_of(scene.laplace, scene.prior, scene.start, chosen)
    _, gradients = scene.laplace.score_gradients(scene.start, [("", text) for text in TEXTS])
    expected = posterior.covariance(gradients)
    assert doubt.covariance(gradients[:2], gradients) == pytest.approx(expected[:2], rel=1e-4, abs=1e-5)
    assert np.sqrt(np.diag(doubt.covariance(gradients, gradients))) == pytest.approx(doubt.error(gradients))


def test_what_is_kept_is_bounded_whatever_the_number_of_choices(scene: SimpleNamespace) -> None:
    size = len(scene.start)
    doubts = [doubt_of(scene.laplace, scene.prior, scene.start, pairs(many)) for many in (size, 2 * size)]
    assert len({len(doubt.encode()) for doubt in doubts}) == 1
    assert numbers_kept(3, size) == 3 * size
    assert numbers_kept(size, size) == numbers_kept(10**6, size) == size * (size + 1) // 2


def test_a_damaged_one_is_refused(scene: SimpleNamespace) -> None:
    doubt = doubt_of(scene.laplace, scene.prior, scene.start, pairs(4))
    other = Doubt(doubt.scale[:-1], doubt.factor, triangular=False)
    with pytest.raises(DeviceError, match="is damaged"):
        Doubt.decode(other.encode())


def test_with_ties_errors_are_those_of_the_posterior_too(scene: SimpleNamespace) -> None:
    some = pairs(7)
    some[2] = SimpleNamespace(**vars(some[2]), tie="equal")
    posterior = scene.laplace.around(scene.prior, scene.start, some)
    doubt = doubt_of(scene.laplace, scene.prior, scene.start, some)
    _, gradients = scene.laplace.score_gradients(scene.start, [("", text) for text in TEXTS])
    assert doubt.error(gradients) == pytest.approx(posterior.error(gradients), rel=1e-5)
    plain = scene.laplace.around(scene.prior, scene.start, pairs(7)).error(gradients)
    assert doubt.error(gradients) != pytest.approx(plain, rel=1e-5)


def test_with_strengths_errors_are_those_of_the_posterior_too(scene: SimpleNamespace) -> None:
    some = [SimpleNamespace(**vars(pair), strength=float(n)) for n, pair in enumerate(pairs(7))]
    posterior = scene.laplace.around(scene.prior, scene.start, some)
    doubt = doubt_of(scene.laplace, scene.prior, scene.start, some)
    _, gradients = scene.laplace.score_gradients(scene.start, [("", text) for text in TEXTS])
    assert doubt.error(gradients) == pytest.approx(posterior.error(gradients), rel=1e-5)
    plain = scene.laplace.around(scene.prior, scene.start, pairs(7)).error(gradients)
    assert doubt.error(gradients) != pytest.approx(plain, rel=1e-5)
