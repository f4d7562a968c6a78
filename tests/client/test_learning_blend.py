"""Between the population's model and one's own: the vote on the spread, the prior, and what stays."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penchant.client.agent.kept_model import Model, blend_of, kept_with, model_of
from penchant.client.learning.blend import blended, leads, with_vote
from penchant.client.learning.chosen import Blend, chance_of
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import TrainingConfig
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.step_memory import Portion
from penchant.common.shares import Factor, Head, Part, ShareRule, Spread, Start
from penchant.common.wire.codec import encode_record

RULE = ShareRule(  # a score m + d for each unit of a text's number, d one's own
    name="line",
    label="line",
    shared="m",
    personal="d",
    factors=(
        Factor("m", Part.SHARED, (1, 1), Start.ZEROS, tensor="m"),
        Factor("d", Part.PERSONAL, (1, 1), Start.ZEROS, warmup=Part.FROZEN, tensor="d"),
        Factor("t", Part.SHARED, (1,), Start.ZEROS, warmup=Part.FROZEN, tensor="t"),
    ),
    can_warm_up=True,
    compose_head=lambda factors: factors["m"] + factors["d"],
    spread=Spread("t", of=("d",), start=0.5),
)
SPLIT = Split((), 1, 1, RULE, Head.SHARED)
NONE = np.zeros(1, np.float32)


class Line:
    """A reward model one can work out by hand: text number x has the embedding x (d = 1)."""

    device = torch.device("cpu")
    step_memory = SimpleNamespace(portions=lambda batch, *_: [Portion(range(len(batch)))])  # all at once

    def margins(self, prepared: Any, effective: MergedWeights) -> torch.Tensor:
        return torch.as_tensor(prepared.differences) * effective.head[0, 0]

    def judged(self, prepared: Any, effective: MergedWeights) -> torch.Tensor:
        return self.margins(prepared, effective)

    def pieces(self, prepared: Any) -> list[range]:
        return [range(len(prepared))]

    def piece(self, prepared: Any, rows: range) -> Any:
        return prepared

    def losses(self, margins: torch.Tensor, prepared: Any) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(margins)


class LinePairs(SimpleNamespace):
    ties, nu, weights = None, 0.0, None

    def __len__(self) -> int:
        return len(self.differences)

    @property
    def choices(self) -> int:
        return len(self)


def pairs(*differences: float) -> Any:
    """Pairs by the number of the chosen text minus that of the rejected one."""
    return LinePairs(differences=torch.tensor(differences))


def trainer(**changes: Any) -> LocalTrainer:
    settings = TrainingConfig(**{"lr_shared": 0.1, "lr_personal": 0.1, "local_epochs": 1, **changes})
    return LocalTrainer(Line(), SPLIT, settings)  # type: ignore[arg-type]


def numbers(*values: float) -> Any:
    return np.array(values, np.float32)


def test_the_gain_of_deviating_by_hand() -> None:
    """Margins 2 (m + d s) and -(m + d s) with m = 1, d = 0.5; at s = 1, d/ds log σ = σ(-margin) · slope."""
    own, held_out = numbers(0.5), pairs(2.0, -1.0)
    by_hand = 2 * 0.5 / (1 + math.exp(3.0)) - 0.5 / (1 + math.exp(-1.5))
    found = trainer().gain_of_deviating(numbers(1.0, 0.0), own, held_out)
    assert found == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(("differences", "vote"), [((2.0,), 0.5 * 1 / (1 + math.exp(3.0))), ((-9.0,), -0.5)])
def test_the_vote_is_half_the_gain_and_at_most_a_half(differences: Any, vote: float) -> None:
    """The gain of -9 is -9 · 0.5 · σ(13.5) < -1."""
    shared, own = numbers(1.0, 0.0), numbers(0.5)
    before = Outcome(numbers(0.25, 0.0), own, 1, trainer().evaluate(shared, own, pairs(1.0)), 1)
    after = with_vote(before, trainer(), shared, own, pairs(*differences))
    assert after.shared_update.tolist() == pytest.approx([0.25, vote], rel=1e-5)
    assert before.shared_update.tolist() == [0.25, 0.0]


def test_who_does_not_deviate_does_not_vote() -> None:
    shared = numbers(1.0, 0.0)
    before = Outcome(NONE.repeat(2), NONE, 1, trainer().evaluate(shared, NONE, pairs(1.0)), 1)
    assert with_vote(before, trainer(), shared, NONE, pairs(5.0, -5.0)).shared_update.tolist() == [0, 0]


def test_training_leaves_the_spread_alone_and_draws_the_deviation_back() -> None:
    """One step of plain descent on both from m = 0, d = 1 and one pair of margin 1: σ(-1) pulls up, and d
    down by d / σ² with σ = 0.5 e^t."""
    made = trainer(optimizer="sgd")
    log_spread = math.log(2)
    outcome = made.train(numbers(0.0, log_spread), numbers(1.0), pairs(1.0), seed=0)
    slope = 1 / (1 + math.e)
    assert outcome.shared_update.tolist() == pytest.approx([0.1 * slope, 0.0], rel=1e-5)
    assert outcome.personal[0] == pytest.approx(1 + 0.1 * (slope - 1.0), rel=1e-5)


def test_the_prior_weighs_once_for_all_pairs_however_they_are_cut() -> None:
    """Gradients of whole, halved and micro batches: the prior's is d / σ² over the number of all pairs."""
    shared, own, four = numbers(0.0, 0.0), numbers(0.1), pairs(1.0, 1.0, 1.0, 1.0)
    moved = trainer(optimizer="sgd").train(shared, own, four, seed=0).personal[0] - 0.1
    assert moved == pytest.approx(0.1 * (1 / (1 + math.exp(0.1)) - 0.1 / 0.25 / 4), rel=1e-4)


def test_a_fit_finds_the_most_probable_deviation() -> None:
    """Against the slow reference: the posterior on a fine grid."""
    data = [1.0, 2.0, -0.5, 1.5]
    made = trainer(optimizer="sgd")
    fitted = made.fit_personal(numbers(0.2, 0.0), NONE, pairs(*data), 0, epochs=3000, lr=0.05)
    grid = np.linspace(-2, 2, 40001)
    logs = -sum(np.logaddexp(0, -x * (0.2 + grid)) for x in data) - grid**2 / (2 * 0.25)
    assert fitted[0] == pytest.approx(grid[logs.argmax()], abs=2e-4)


def test_a_small_spread_is_one_model_for_all_and_a_bound_keeps_it_positive() -> None:
    found = [
        trainer(optimizer="sgd").fit_personal(numbers(0.0, t), NONE, pairs(1.0), 0, epochs=2000, lr=5e-4)[0]
        for t in (-1e6, -3.0, 0.0)
    ]
    assert 0 < found[0] <= found[1] < 0.01 < found[2]
    spread = Spread("t", of=("d",), start=0.5)
    assert [spread.deviation(t) for t in (-1e6, 0.0, 1e6)] == pytest.approx([0.025, 0.5, 10.0])


def test_chance_is_the_exact_sign_test() -> None:
    """Counted out for up to 5 against 3; ties say nothing."""
    for ahead, behind in itertools.product(range(6), range(4)):
        one = np.array([True] * ahead + [False] * behind + [True, False])
        other = np.array([False] * ahead + [True] * behind + [True, False])
        throws = list(itertools.product((0, 1), repeat=ahead + behind))
        exact = sum(sum(throw) >= ahead for throw in throws) / len(throws)
        assert leads(one, other) == (ahead, behind)
        assert chance_of(ahead, behind) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("held_out", "kept", "why"),
    [
        ([1.0] * 5, 0.0, Blend(0, 0, 5, 0, 5)),  # right only without the deviation: one chance in 32
        ([1.0] * 4, 1.0, Blend(100, 0, 4, 0, 4)),  # 4 to 0 is chance
        ([-1.0] * 20, 1.0, Blend(100, 100, 0, 0, 20)),
        ([1.0, -1.0] * 20, 1.0, Blend(100, 100, 0, 0, 40)),  # as many either way
        ([], 1.0, Blend(100, 100, 0, 0, 0)),
    ],
)
def test_the_deviation_gives_way_where_held_out_choices_say_so_beyond_chance(
    held_out: list[float], kept: float, why: Blend
) -> None:
    """The population scores by 1, the person by 1 - 2 = -1; halfway all scores are 0, and nothing right."""
    own, blend = blended(trainer(), numbers(1.0, 0.0), NONE, numbers(-2.0), pairs(*held_out))
    assert own.tolist() == [-2.0 * kept]
    assert blend == why


def test_halfway_can_be_best() -> None:
    """By hand: with d = -3 scores are -2, halfway -0.5, at the start 1; a shift decides the pairs."""

    class Shifted(Line):
        def margins(self, prepared: Any, effective: MergedWeights) -> torch.Tensor:
            score = effective.head[0, 0]
            return torch.as_tensor(prepared.differences) * (1.0 - (score + 0.5).abs())

    made = LocalTrainer(Shifted(), SPLIT, TrainingConfig())  # type: ignore[arg-type]
    own, blend = blended(made, numbers(1.0, 0.0), NONE, numbers(-3.0), pairs(*[1.0] * 5))
    assert own.tolist() == [-1.5]
    assert blend == Blend(50, 50, 5, 0, 5)


@pytest.mark.parametrize(
    ("blend", "said"),
    [
        (
            Blend(100, 100, 0, 0, 12),
            "the person's own model is in use: no other ranks more of 12 held-out choices right",
        ),
        (
            Blend(100, 0, 4, 1, 12),
            "the person's own model is in use: everybody's model ranks 4 of 12 held-out choices right that "
            "the own one has wrong, and 1 the other way round, "
            "but chance alone makes such a lead in 19 of 100 cases",
        ),
        (
            Blend(50, 50, 9, 1, 30),
            "the model halfway to everybody's is in use: it ranks 9 of 30 held-out choices right that the "
            "own one has wrong, and 1 the other way round; "
            "chance alone makes such a lead in 1.1 of 100 cases",
        ),
    ],
)
def test_which_model_is_in_use_is_said_with_its_reason(blend: Blend, said: str) -> None:
    assert blend.words() == said
    assert "12" not in repr(blend), "what choices say is in no log"


@given(st.binary(max_size=40), st.integers(0, 100), st.integers(1, 2**32 - 1))
def test_a_blend_is_kept_with_its_model_and_takes_the_same_room_whatever_it_is(
    factors: bytes, percent: int, judged: int
) -> None:
    model, blend = Model(bytes(32), b"plan", factors), Blend(percent, 0, judged, 3, judged)
    for one in (model, None):
        context, other = kept_with(one, blend), kept_with(one, None)
        assert len(context) == len(other)
        assert (blend_of(context), blend_of(other)) == (blend, None)
        if one is not None:
            assert model_of(context) == model_of(other) == model
    earlier = encode_record(model)  # by 0.3 and before
    assert (model_of(earlier), blend_of(earlier), blend_of(b"")) == (model, None, None)
