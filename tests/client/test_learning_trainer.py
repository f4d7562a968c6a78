"""Local training: a worked step, the slow reference, rates by part, determinism, threads."""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.held_bytes import HeldBytes
from support.tiny_models import WORDS

from penchant.client.learning.trainer import LocalTrainer, halves
from penchant.common.config import AdapterConfig, FederationConfig, ModelConfig, RunConfig, TrainingConfig
from penchant.common.errors import ConfigError, DataError, DeviceError
from penchant.common.model.backbone import load_backbone
from penchant.common.model.davidson import bradley_terry
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.reward import RewardModel
from penchant.common.model.step_memory import Portion
from penchant.common.objectives import objective
from penchant.common.shares import SHARES

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
SETTINGS = TrainingConfig(lr_shared=0.02, lr_personal=0.02, lr_head=0.02, local_epochs=5)


def reward_model(folder: Any, *, full: bool = False, **adapter: Any) -> RewardModel:
    model = ModelConfig(base_model=str(folder))
    return RewardModel(load_backbone(model, device="cpu"), model, AdapterConfig(**adapter), full=full)


@pytest.fixture(scope="module")
def model(tiny_model) -> RewardModel:
    return reward_model(tiny_model("bert"))


def split_of(model: RewardModel, share: str = "A", head: str = "auto", warmup: bool = False) -> Split:
    config = AdapterConfig(share=share, head=head)
    return Split.of(model.adapted_modules, model.embedding, config, warmup=warmup)


def somewhere(split: Split) -> tuple[Any, Any]:
    """Vectors away from the start, so that every tensor has a gradient."""
    generator = np.random.default_rng(1)
    shared, personal = split.initial(0)
    return tuple(v + 0.1 * generator.normal(size=v.shape).astype(np.float32) for v in (shared, personal))


def trainer(model: RewardModel, share: str = "A", head: str = "auto", **changes: Any) -> LocalTrainer:
    return LocalTrainer(model, split_of(model, share, head), dataclasses.replace(SETTINGS, **changes))


# --- a worked example -----------------------------------------------------------------------------


class Line:
    """A reward model one can work out by hand: text number x has the embedding x (d = 1)."""

    device = torch.device("cpu")
    step_memory = SimpleNamespace(portions=lambda batch, *_: [Portion(range(len(batch)))])  # all at once

    def scores(self, texts: Any, effective: MergedWeights) -> torch.Tensor:
        return texts * effective.head[0]

    def margins(self, prepared: Any, effective: MergedWeights) -> torch.Tensor:
        scores = self.scores(prepared.texts, effective)
        return scores[prepared.chosen] - scores[prepared.rejected]

    def pieces(self, prepared: Any) -> list[range]:
        return [range(len(prepared))]

    def piece(self, prepared: Any, rows: range) -> Any:
        return prepared

    def losses(self, margins: torch.Tensor, prepared: Any) -> torch.Tensor:
        return bradley_terry(margins)


class LinePairs(SimpleNamespace):
    ties, nu, weights = None, 0.0, None

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def choices(self) -> int:
        return len(self)


def test_two_steps_by_hand() -> None:
    """LoRe with V = 1 shared, w personal, texts 0 and 2, the second preferred: margin 2 w V.

    With w = 0 the loss is log 2. Adam's first step moves by the rate: w becomes 0.1; V has no gradient
    at w = 0 and stays 1. Then d/dw = -σ(-2wV)·2V and d/dV = -σ(-2wV)·2w are Adam's second and first
    gradients.
    """
    split = Split.of((), 1, AdapterConfig(share="lore", rank=1))
    settings = TrainingConfig(lr_shared=0.01, lr_personal=0.1, local_epochs=2)
    prepared = LinePairs(texts=torch.tensor([0.0, 2.0]), chosen=torch.tensor([1]), rejected=torch.tensor([0]))
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    outcome = LocalTrainer(Line(), split, settings).train(one, zero, prepared, seed=0)  # type: ignore[arg-type]

    def adam(gradients: list[float], rate: float) -> float:
        """Sum of Adam's steps (β1 .9, β2 .999) for these gradients."""
        mean = square = moved = 0.0
        for t, g in enumerate(gradients, 1):
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
            moved -= rate * (mean / (1 - 0.9**t)) / (math.sqrt(square / (1 - 0.999**t)) + 1e-8)
        return moved

    unsure = 1 / (1 + math.exp(2 * 0.1))  # σ(-2wV) at the second step
    assert outcome.before.loss_sum == pytest.approx(math.log(2))
    assert outcome.personal[0] == pytest.approx(adam([-1.0, -2 * unsure], 0.1), rel=1e-5)
    assert outcome.shared_update[0] == pytest.approx(adam([0.0, -2 * 0.1 * unsure], 0.01), rel=1e-4)
    assert (outcome.weight, outcome.steps, outcome.before.correct, outcome.before.total) == (1, 2, 0, 1)


# --- the slow reference ---------------------------------------------------------------------------


def plain_prior(tensors: Any) -> Any:
    """‖D‖² / 2σ² over the pairs, with σ = 0.3 eᵗ, where there are deviations D from a population."""
    found = [tensors[name].square().sum() for name in tensors if name.endswith(".lora_D")]
    return (
        sum(found) / (2 * (0.3 * math.exp(float(tensors["mixed.spread"].detach()))) ** 2 * len(PAIRS))
        if found
        else 0
    )


def plain_training(model: RewardModel, split: Split, shared: Any, personal: Any, epochs: int) -> Any:
    """The same in the plainest way: one pair at a time, one optimiser over everything."""
    tensors = split.shared.unflatten(shared) | split.personal.unflatten(personal)
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    optimizer = torch.optim.AdamW(leaves, lr=0.02, weight_decay=0.0)
    for _ in range(epochs):
        optimizer.zero_grad()
        for pair in PAIRS:
            effective = split.effective(
                {n: tensors[n] for n in split.shared.names}, {n: tensors[n] for n in split.personal.names}
            )
            chosen = model.scores(model.prepare_texts([("", pair.chosen)]), effective)
            rejected = model.scores(model.prepare_texts([("", pair.rejected)]), effective)
            loss = -torch.log(torch.sigmoid(chosen - rejected)).sum() / len(PAIRS)
            loss.backward()
        if split.rule.spread:
            plain_prior(tensors).backward()
        optimizer.step()
    return (
        split.shared.flatten({n: tensors[n] for n in split.shared.names}),
        split.personal.flatten({n: tensors[n] for n in split.personal.names}),
    )


@pytest.mark.parametrize("share", ["A", "B", "AB", "none", "kernel", "svd", "mixed"])
def test_training_is_plain_training(tiny_model, model: RewardModel, share: str) -> None:
    slow = reward_model(tiny_model("bert"), full=True)
    split = split_of(model, share)
    shared, personal = somewhere(split)
    outcome = trainer(model, share).train(shared, personal, model.prepare(PAIRS), seed=0)
    expected_shared, expected_personal = plain_training(slow, split, shared, personal, epochs=5)
    assert np.allclose(shared + outcome.shared_update, expected_shared, atol=1e-4)
    assert np.allclose(outcome.personal, expected_personal, atol=1e-4)


def plain_descent(
    model: RewardModel, split: Split, shared: Any, personal: Any, stages: list[tuple[set[str], int]]
) -> Any:
    """Stages of (names of the tensors in training, steps), each a plain gradient descent at rate .02."""
    tensors = split.shared.unflatten(shared) | split.personal.unflatten(personal)
    for names, steps in stages:
        for _ in range(steps):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
            effective = split.effective(
                {n: leaves[n] for n in split.shared.names}, {n: leaves[n] for n in split.personal.names}
            )
            margins = [
                model.scores(model.prepare_texts([("", p.chosen), ("", p.rejected)]), effective)
                for p in PAIRS
            ]
            loss = sum(-torch.log(torch.sigmoid(m[0] - m[1])) for m in margins).div(len(PAIRS))
            (loss + plain_prior(leaves)).backward()
            tensors = {
                n: leaf.detach() - (0.02 * leaf.grad if n in names and leaf.grad is not None else 0.0)
                for n, leaf in leaves.items()
            }
    return (
        split.shared.flatten({n: tensors[n] for n in split.shared.names}),
        split.personal.flatten({n: tensors[n] for n in split.personal.names}),
    )


@pytest.mark.parametrize("share", ["A", "B", "kernel", "svd", "none", "AB", "mixed"])
def test_alternating_is_plain_descent_on_one_part_then_the_other(
    tiny_model, model: RewardModel, share: str
) -> None:
    slow = reward_model(tiny_model("bert"), full=True)
    split = split_of(model, share)
    shared, personal = somewhere(split)
    made = trainer(model, share, optimizer="sgd", update_order="alternating", personal_epochs=3)
    outcome = made.train(shared, personal, model.prepare(PAIRS), seed=0)
    stages = [(set(split.personal.names), 3), (set(split.shared.names), 5)]
    expected_shared, expected_personal = plain_descent(slow, split, shared, personal, stages)
    assert np.allclose(shared + outcome.shared_update, expected_shared, atol=1e-5)
    assert np.allclose(outcome.personal, expected_personal, atol=1e-5)


def test_each_part_can_have_its_own_optimiser(model: RewardModel) -> None:
    """In one step from the same place each part moves as if both had its optimiser."""
    shared, personal = somewhere(split_of(model))
    prepared = model.prepare(PAIRS)

    def one_step(**changes: Any) -> Any:
        return trainer(model, local_epochs=1, **changes).train(shared, personal, prepared, seed=0)

    mixed = one_step(optimizer="adamw", shared_optimizer="sgd")
    adamw, sgd = one_step(optimizer="adamw"), one_step(optimizer="sgd")
    assert mixed.personal.tobytes() == adamw.personal.tobytes() != sgd.personal.tobytes()
    assert mixed.shared_update.tobytes() == sgd.shared_update.tobytes() != adamw.shared_update.tobytes()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("head", ["shared", "personal"])
def test_each_step_of_alternating_leaves_the_other_part_as_it_is_to_the_bit(
    model: RewardModel, optimizer: str, head: str
) -> None:
    """The personal step is a fit on frozen shared factors; the shared step trains as if alone."""
    shared, personal = somewhere(split_of(model, "A", head))
    prepared = model.prepare(PAIRS)
    changes = {"optimizer": optimizer, "update_order": "alternating"}
    outcome = trainer(model, "A", head, **changes).train(shared, personal, prepared, seed=0)
    fitted = trainer(model, "A", head, optimizer=optimizer).fit_personal(
        shared, personal, prepared, 0, epochs=5, lr=0.02
    )
    assert outcome.personal.tobytes() == fitted.tobytes() != personal.tobytes()
    frozen = {"lr_personal": 0.0, "lr_head": 0.02 if head == "shared" else 0.0}
    then = trainer(model, "A", head, optimizer=optimizer, **frozen).train(shared, fitted, prepared, seed=0)
    assert outcome.shared_update.tobytes() == then.shared_update.tobytes()
    assert then.personal.tobytes() == fitted.tobytes()
    assert np.abs(outcome.shared_update).max() > 0
    assert outcome.steps == 5 + 5


# --- what training does ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["A", "B", "AB", "none", "kernel", "svd", "ffa", "lore", "mixed", "common"])
def test_the_loss_falls(tiny_model, model: RewardModel, share: str) -> None:
    used = reward_model(tiny_model("bert"), share=share) if share in ("lore", "common") else model
    made = trainer(used, share, local_epochs=40)
    shared, personal = split_of(used, share).initial(0)
    prepared = used.prepare(PAIRS)
    outcome = made.train(shared, personal, prepared, seed=0)
    after = made.evaluate(shared + outcome.shared_update, outcome.personal, prepared)
    assert outcome.loss_sum == outcome.before.loss_sum == made.evaluate(shared, personal, prepared).loss_sum
    assert after.loss_sum < 0.7 * outcome.before.loss_sum
    assert after.correct == after.total == outcome.weight == len(PAIRS)
    assert (outcome.shared_update.dtype, outcome.personal.dtype) == (np.float32, np.float32)


def moved(model: RewardModel, head: str, **changes: Any) -> set[str]:
    """Which tensors a training call moves."""
    split = split_of(model, "A", head)
    shared, personal = somewhere(split)
    outcome = trainer(model, "A", head, **changes).train(shared, personal, model.prepare(PAIRS), seed=0)
    updates = split.shared.named(outcome.shared_update) | split.personal.named(outcome.personal - personal)
    return {name.rsplit(".", 1)[1] for name, update in updates.items() if np.abs(update).max() > 0}


@pytest.mark.parametrize("head", ["shared", "personal"])
def test_each_part_has_its_own_rate(model: RewardModel, head: str) -> None:
    off = {"lr_shared": 0.0, "lr_personal": 0.0, "lr_head": 0.0}
    assert moved(model, head, **off) == set()
    assert moved(model, head, **{**off, "lr_shared": 0.01}) == {"lora_A"}
    assert moved(model, head, **{**off, "lr_personal": 0.01}) == {"lora_B"}
    assert moved(model, head, **{**off, "lr_head": 0.01}) == {"weight"}


def test_the_first_step_is_as_long_as_the_rate(model: RewardModel) -> None:
    split = split_of(model)
    shared, personal = somewhere(split)
    rates = {"lr_shared": 0.003, "lr_personal": 0.01, "lr_head": 0.001}
    made = trainer(model, local_epochs=1, **rates)
    outcome = made.train(shared, personal, model.prepare(PAIRS), seed=0)
    named = split.shared.named(outcome.shared_update)
    assert np.abs(named[f"{model.adapted_modules[0].name}.lora_A"]).max() == pytest.approx(0.003, rel=1e-2)
    assert np.abs(named["head.weight"]).max() == pytest.approx(0.001, rel=1e-2)
    assert np.abs(outcome.personal - personal).max() == pytest.approx(0.01, rel=1e-2)


def test_personal_first_is_a_refit_and_then_joint_training(model: RewardModel) -> None:
    shared, personal = split_of(model).initial(0)
    prepared = model.prepare(PAIRS)
    made = trainer(model, update_order="personal-first", personal_epochs=4)
    outcome = made.train(shared, personal, prepared, seed=0)
    fitted = trainer(model).fit_personal(shared, personal, prepared, 0, epochs=4, lr=0.02)
    then = trainer(model).train(shared, fitted, prepared, seed=0)
    assert outcome.steps == 4 + 5
    assert outcome.personal.tobytes() == then.personal.tobytes()
    assert outcome.shared_update.tobytes() == then.shared_update.tobytes()


def test_without_a_number_of_its_own_the_personal_step_takes_as_many_epochs(model: RewardModel) -> None:
    shared, personal = split_of(model).initial(0)
    prepared = model.prepare(PAIRS)
    for order, steps in (("joint", 5), ("personal-first", 10), ("alternating", 10)):
        assert trainer(model, update_order=order).train(shared, personal, prepared, seed=0).steps == steps
        assert dataclasses.replace(SETTINGS, update_order=order, final_fit_epochs=0).epochs == steps


def test_fitting_the_personal_part_helps_and_leaves_the_shared_one(model: RewardModel) -> None:
    made = trainer(model)
    shared, personal = split_of(model).initial(0)
    kept = shared.copy()
    prepared = model.prepare(PAIRS)
    fitted = made.fit_personal(shared, personal, prepared, seed=0)
    before, after = (made.evaluate(shared, vector, prepared) for vector in (personal, fitted))
    assert after.loss_sum < before.loss_sum
    assert shared.tobytes() == kept.tobytes()


def test_where_nothing_is_personal_there_is_nothing_to_fit(model: RewardModel) -> None:
    shared, personal = split_of(model, "AB").initial(0)
    assert trainer(model, "AB").fit_personal(shared, personal, model.prepare(PAIRS), seed=0).size == 0


def test_pull_holds_the_personal_part_near_the_start(model: RewardModel) -> None:
    split = split_of(model)
    shared, start = split.initial(0)
    prepared = model.prepare(PAIRS)
    lengths = []
    for pull in (0.0, 10.0):
        settings = dataclasses.replace(SETTINGS, l2_to_start=pull, local_epochs=20)
        outcome = LocalTrainer(model, split, settings, start).train(shared, start, prepared, seed=0)
        lengths.append(float(np.linalg.norm(outcome.personal - start)))
    assert lengths[1] < 0.5 * lengths[0]
    with pytest.raises(ConfigError, match="common start"):
        LocalTrainer(model, split, dataclasses.replace(SETTINGS, l2_to_start=1.0))


@pytest.mark.parametrize(("size", "steps"), [(0, 5), (6, 5), (4, 10), (1, 30)])
def test_steps_of_a_batch_size(model: RewardModel, size: int, steps: int) -> None:
    shared, personal = split_of(model).initial(0)
    made = trainer(model, batch_size=size)
    assert made.train(shared, personal, model.prepare(PAIRS), seed=0).steps == steps


@pytest.mark.parametrize(("batch", "chunk"), [(0, 1), (0, 4), (3, 2), (3, 100)])
def test_chunks_spare_memory_and_change_nothing(model: RewardModel, batch: int, chunk: int) -> None:
    start = split_of(model).initial(0)
    prepared = model.prepare(PAIRS)
    settings = dataclasses.replace(SETTINGS, optimizer="sgd", batch_size=batch, l2_to_start=0.5)
    outcomes = [
        LocalTrainer(
            model,
            split_of(model),
            dataclasses.replace(settings, micro_batch_size=size),
            start[1] + np.float32(1),
        ).train(*start, prepared, seed=0)
        for size in (0, chunk)
    ]
    whole, pieces = outcomes
    assert np.allclose(whole.shared_update, pieces.shared_update, atol=1e-6)
    assert np.allclose(whole.personal, pieces.personal, atol=1e-6)
    assert whole.steps == pieces.steps


def test_warm_up_rounds_have_a_rate_of_their_own() -> None:
    training = TrainingConfig(lr_shared=0.1, lr_personal=0.2, lr_head=0.3, warmup_lr=0.05)
    config = RunConfig(training=training, federation=FederationConfig(rounds=3, warmup_rounds=1))
    warmup, main = (config.plan(phase, 3).training for phase in ("warmup", "main"))
    assert (warmup.lr_shared, warmup.lr_head) == (0.05, 0.05)
    assert main == training
    assert TrainingConfig().warming() == TrainingConfig()


def test_warm_up_trains_everything_as_shared(model: RewardModel) -> None:
    split = split_of(model, "A", warmup=True)
    shared, personal = split.initial(0)
    outcome = LocalTrainer(model, split, SETTINGS).train(shared, personal, model.prepare(PAIRS), seed=0)
    assert outcome.personal.size == 0
    assert all(np.abs(update).max() > 0 for update in split.shared.named(outcome.shared_update).values())


# --- evaluation -----------------------------------------------------------------------------------


def test_counts_are_those_of_the_scores(model: RewardModel) -> None:
    made = trainer(model)
    shared, personal = somewhere(split_of(model))
    texts = model.prepare_texts([("", t) for p in PAIRS for t in (p.chosen, p.rejected)])
    scores = made.score(shared, personal, texts)
    margins = scores[0::2] - scores[1::2]
    counts = made.evaluate(shared, personal, model.prepare(PAIRS))
    assert counts.correct == int((margins > 0).sum())
    assert counts.accuracy == counts.correct / 6
    assert counts.loss_sum == pytest.approx(float(np.log1p(np.exp(-margins)).sum()), rel=1e-5)


def test_a_tie_is_not_correct(model: RewardModel) -> None:
    same = [SimpleNamespace(prompt="", chosen="tax", rejected="tax")]
    shared, personal = split_of(model).initial(0)
    assert trainer(model).evaluate(shared, personal, model.prepare(same)).correct == 0


# --- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2])
def test_the_same_inputs_give_the_same_bits(tiny_model, model: RewardModel, size: int) -> None:
    fresh = reward_model(tiny_model("bert"))
    shared, personal = split_of(model).initial(0)
    outcomes = [
        trainer(m, batch_size=size).train(shared, personal, m.prepare(PAIRS), seed=s)
        for m, s in ((model, 3), (fresh, 3), (model, 4))
    ]
    first, again, other = ((o.shared_update.tobytes(), o.personal.tobytes()) for o in outcomes)
    assert first == again
    assert (first == other) is (size == 0)  # the seed orders the batches


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_two_threads_give_what_one_gives(tiny_model, kind: str) -> None:
    adapter = {} if kind == "bert" else {"target_modules": ("q_proj", "v_proj")}
    used = reward_model(tiny_model(kind), **adapter)
    made = trainer(used, local_epochs=3)
    starts = [split_of(used).initial(seed) for seed in range(6)]

    def work(start: tuple[Any, Any]) -> tuple[bytes, bytes]:
        outcome = made.train(*start, used.prepare(PAIRS), seed=0)
        return outcome.shared_update.tobytes(), outcome.personal.tobytes()

    alone = [work(start) for start in starts]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, starts)) == alone


# --- wrong use ------------------------------------------------------------------------------------


def test_no_pairs(model: RewardModel) -> None:
    shared, personal = split_of(model).initial(0)
    nothing = model.subset(model.prepare(PAIRS), [0])
    empty = dataclasses.replace(nothing, chosen=nothing.chosen[:0], rejected=nothing.rejected[:0])
    with pytest.raises(DataError, match="no preference pairs"):
        trainer(model).train(shared, personal, empty, seed=0)
    with pytest.raises(DataError, match="no preference pairs"):
        model.prepare([])


def test_divergence_is_an_error(model: RewardModel) -> None:
    shared, personal = split_of(model).initial(0)
    with pytest.raises(DeviceError, match="diverged"):
        trainer(model).train(shared * np.float32(np.inf), personal, model.prepare(PAIRS), seed=0)


# --- ties -----------------------------------------------------------------------------------------


def with_ties() -> list[SimpleNamespace]:
    """PAIRS, the last two of them as ties."""
    return [*PAIRS[:-2], *(SimpleNamespace(**vars(pair), tie="equal") for pair in PAIRS[-2:])]


def test_ties_draw_scores_together_and_are_no_choices(model: RewardModel) -> None:
    made = trainer(model, "AB", local_epochs=20)
    shared, personal = made.split.initial(0)
    pairs = with_ties()
    prepared = model.prepare(pairs)
    assert prepared.ties is not None
    assert prepared.ties.tolist() == [False] * (len(PAIRS) - 2) + [True] * 2
    assert (prepared.choices, prepared.nu) == (len(PAIRS) - 2, 4 / (len(PAIRS) - 1))
    learned = made.train(shared, personal, prepared, seed=0)
    assert learned.weight == learned.before.total == len(PAIRS) - 2
    assert learned.before.ties == 2
    as_choices = made.train(shared, personal, model.prepare(PAIRS), seed=0)
    apart = [
        np.abs(made.margins(shared + out.shared_update, out.personal, prepared)[-2:]).sum()
        for out in (learned, as_choices)
    ]
    assert apart[0] < apart[1]
    counts = made.evaluate(shared + learned.shared_update, learned.personal, prepared)
    assert (counts.total, counts.ties) == (len(PAIRS) - 2, 2)
    assert 0 < counts.ties_expected < len(PAIRS)
    assert made.evaluate(shared, personal, prepared, nu=0.0).ties_expected == 0


def test_ties_in_small_pieces_give_the_same_gradients(model: RewardModel) -> None:
    whole, pieces = (
        trainer(model, "AB", micro_batch_size=size).train(
            *trainer(model, "AB").split.initial(0), model.prepare(with_ties()), seed=0
        )
        for size in (0, 1)
    )
    assert pieces.shared_update == pytest.approx(whole.shared_update, rel=1e-3, abs=1e-5)


def test_an_objective_with_losses_of_its_own_takes_a_tie_as_half_a_choice_each_way(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipo = objective("ipo")
    monkeypatch.setattr(model, "objective", dataclasses.replace(model.objective, losses=ipo.losses))
    monkeypatch.setattr(model, "beta", 0.5)
    prepared = model.prepare(with_ties())
    margins = torch.linspace(-1, 1, len(PAIRS))
    target = 1 / (2 * 0.5)
    wanted = [(m / 0.5 - target) ** 2 for m in margins.tolist()]
    wanted[-2:] = [(m / 0.5) ** 2 + target**2 for m in margins.tolist()[-2:]]
    assert model.losses(margins, prepared).tolist() == pytest.approx(wanted, rel=1e-5)


# --- strengths ------------------------------------------------------------------------------------


def strong(*strengths: float | None) -> list[SimpleNamespace]:
    """PAIRS with strengths."""
    return [SimpleNamespace(**vars(p), strength=s) for p, s in zip(PAIRS, strengths, strict=True)]


def as_copies(pairs: Sequence[SimpleNamespace], times: Sequence[int]) -> list[SimpleNamespace]:
    return [pair for pair, count in zip(pairs, times, strict=True) for _ in range(count)]


@pytest.mark.parametrize("share", [name for name in SHARES.names() if name != "meta"])  # which halves them
def test_a_choice_of_strength_three_counts_as_three_alike(tiny_model: Any, share: str) -> None:
    """One full-batch step on the mean loss: with weights, and with every choice written down that often."""
    model = reward_model(tiny_model("bert"), share=share)
    times = [1 + number % 3 for number in range(len(PAIRS))]
    made = trainer(model, share, batch_size=0, optimizer="sgd", local_epochs=1)
    shared, personal = made.split.initial(0)
    learned = made.train(shared, personal, model.prepare(strong(*map(float, times))), seed=0)
    copied = made.train(shared, personal, model.prepare(as_copies(PAIRS, times)), seed=0)
    assert learned.shared_update == pytest.approx(copied.shared_update, rel=1e-3, abs=1e-6)
    assert learned.personal == pytest.approx(copied.personal, rel=1e-3, abs=1e-6)
    assert learned.weight == len(PAIRS)
    mean_loss = [out.before.loss_sum / out.before.total for out in (learned, copied)]
    assert mean_loss[0] == pytest.approx(mean_loss[1], rel=1e-5)


def test_alike_strengths_and_none_give_the_same_bits(model: RewardModel) -> None:
    plain, alike, nought = (
        trainer(model, "A").train(*trainer(model, "A").split.initial(0), model.prepare(pairs), seed=0)
        for pairs in (PAIRS, strong(*[7.3] * len(PAIRS)), strong(*[0.0] * len(PAIRS)))
    )
    for other in (alike, nought):
        assert np.array_equal(plain.shared_update, other.shared_update)
        assert np.array_equal(plain.personal, other.personal)
        assert plain.before == other.before


def test_every_objective_counts_choices_by_their_strength(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = strong(*(float(number) for number in range(len(PAIRS))))
    prepared, margins = model.prepare(given), torch.linspace(-1, 1, len(PAIRS))
    weights = np.arange(len(PAIRS)) / np.arange(len(PAIRS)).mean()
    for name in ("reward", "ipo", "simpo"):
        losses = objective(name).losses
        monkeypatch.setattr(model, "objective", dataclasses.replace(model.objective, losses=losses))
        alone = model.losses(margins, model.prepare(PAIRS)).numpy()
        assert model.losses(margins, prepared).numpy() == pytest.approx(alone * weights, rel=1e-5)


# --- rivals ---------------------------------------------------------------------------------------


def bert(tiny_model: Any, share: str) -> RewardModel:
    return reward_model(tiny_model("bert"), share=share, rank=2)


def test_fine_tuning_is_the_model_for_all_and_then_a_copy_of_it_that_goes_on(tiny_model: Any) -> None:
    """Against the rule AB, whose one model is trained further on one person's pairs."""
    tuned, plain = bert(tiny_model, "finetune"), bert(tiny_model, "AB")
    made = LocalTrainer(tuned, tuned.split(), dataclasses.replace(SETTINGS, final_fit_epochs=7))
    reference = LocalTrainer(plain, plain.split(), SETTINGS)
    shared, personal = somewhere(plain.split())[0], tuned.split().initial(0)[1]
    assert not personal.any()
    learned = made.train(shared, personal, tuned.prepare(PAIRS), seed=0)
    wanted = reference.train(shared, np.zeros(0, np.float32), plain.prepare(PAIRS), seed=0)
    assert learned.shared_update == pytest.approx(wanted.shared_update, rel=1e-5, abs=1e-7)
    assert not learned.personal.any()  # rounds train what is shared
    own = made.refit(shared, personal, tuned.prepare(PAIRS), seed=0).personal
    rate = SETTINGS.final_fit_lr
    onward = dataclasses.replace(SETTINGS, lr_shared=rate, lr_head=rate, local_epochs=7)
    copy = LocalTrainer(plain, plain.split(), onward).train(
        shared, np.zeros(0, np.float32), plain.prepare(PAIRS), seed=0
    )
    assert own == pytest.approx(copy.shared_update, rel=1e-3, abs=1e-5)
    with pytest.raises(
        ConfigError, match=r"after the last round alone; set training\.final_fit_epochs above 0"
    ):
        RunConfig().changed({"adapter.share": "finetune", "training.final_fit_epochs": 0})
    with pytest.raises(ConfigError, match='share "meta" gives everybody a personal part by the fit'):
        RunConfig().changed({"adapter.share": "meta", "training.final_fit_epochs": 0})


def test_meta_learning_is_first_order_maml_written_out(tiny_model: Any) -> None:
    """One step of w on one half of the pairs, then one of V and u on the other half, at that w."""
    model = bert(tiny_model, "meta")
    settings = dataclasses.replace(SETTINGS, optimizer="sgd", lr_personal=0.3, lr_shared=0.1, local_epochs=1)
    made = LocalTrainer(model, model.split(), settings)
    shared, start = somewhere(model.split())[0], model.split().initial(0)[1]
    outcome = made.train(shared, start, model.prepare(PAIRS), seed=3)

    support, query = halves(model, model.prepare(PAIRS), 3)
    named = {name: torch.tensor(value) for name, value in model.split().shared.named(shared).items()}
    basis, begin = named["meta.basis"].requires_grad_(), named["meta.start"].requires_grad_()
    weights = torch.zeros(2, requires_grad=True)

    def loss(half: Any) -> torch.Tensor:
        head = ((begin + weights) @ basis).unsqueeze(0)
        return torch.nn.functional.softplus(-model.margins(half, MergedWeights({}, head))).mean()

    (inner,) = torch.autograd.grad(loss(support), weights)
    weights = (-0.3 * inner).detach()
    outer = torch.autograd.grad(loss(query), [basis, begin])
    assert outcome.personal == pytest.approx(weights.numpy(), rel=1e-4)
    update = model.split().shared.named(outcome.shared_update)
    assert update["meta.basis"] == pytest.approx(-0.1 * outer[0].numpy(), rel=1e-3, abs=1e-7)
    assert update["meta.start"] == pytest.approx(-0.1 * outer[1].numpy(), rel=1e-3, abs=1e-7)
    before = made.evaluate(shared, start, model.prepare(PAIRS))  # of the start, on all pairs
    assert outcome.before.loss_sum == pytest.approx(before.loss_sum)
    assert outcome.before.total == len(PAIRS)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_halves_hold_every_pair_once_and_choices_each(model: RewardModel, count: int) -> None:
    pairs = [*PAIRS[:count], *(SimpleNamespace(**vars(pair), tie="equal") for pair in PAIRS[count:])]
    prepared = model.prepare(pairs)
    first, second = halves(model, prepared, seed=5)
    if count == 1:
        assert first is second is prepared
        return
    assert len(first) + len(second) == len(PAIRS)
    assert first.choices + second.choices == count
    assert abs(first.choices - second.choices) <= 1
    assert first.nu == prepared.nu
    again, other = halves(model, prepared, seed=5)[0], halves(model, prepared, seed=6)[0]
    assert torch.equal(again.chosen, first.chosen)
    del other


def test_shrinkage_is_ridge_regression_around_the_common_head(tiny_model: Any) -> None:
    """Newton's method on the embeddings: Σ log(1 + e^-(h + d)x) + |d|² / 2σ²."""
    model = bert(tiny_model, "shrinkage")
    settings = dataclasses.replace(SETTINGS, optimizer="sgd", final_fit_epochs=4000, final_fit_lr=0.05)
    made = LocalTrainer(model, model.split(), settings)
    named = model.split().shared.named(somewhere(model.split())[0])
    named["shrinkage.spread"][:] = math.log(0.5 / 0.05)  # σ = 1/2
    shared = np.concatenate([value.ravel() for value in named.values()])
    prepared = model.prepare(PAIRS)
    found = made.refit(shared, model.split().initial(0)[1], prepared, seed=0).personal

    eye = [MergedWeights({}, row.unsqueeze(0)) for row in torch.eye(model.embedding)]
    with torch.no_grad():
        x = torch.stack([model.margins(prepared, one) for one in eye], 1).double().numpy()
    head, own = named["common.head"][0].astype(float), np.zeros(model.embedding)
    for _ in range(50):
        likely = 1 / (1 + np.exp(-x @ (head + own)))
        slope = -x.T @ (1 - likely) + own / 0.25
        curve = (x * (likely * (1 - likely))[:, None]).T @ x + np.eye(len(own)) / 0.25
        own -= np.linalg.solve(curve, slope)
    assert found == pytest.approx(own, rel=2e-2, abs=2e-3)
    assert np.abs(found).max() > 0.05


# --- memory ---------------------------------------------------------------------------------------

BLOCKS = {"share": "AB", "rank": 2, "target_modules": ("q_proj", "v_proj"), "layers": ()}
PLAIN = dataclasses.replace(SETTINGS, optimizer="sgd", local_epochs=3)


def many_pairs(prompts: int, pairs_a_prompt: int) -> list[SimpleNamespace]:
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    return [
        SimpleNamespace(prompt=f"{prompt} ", chosen=text(draw.randint(4, 8)), rejected=text(6))
        for prompt in [text(16) for _ in range(prompts)]
        for _ in range(pairs_a_prompt)
    ]


def trained_within(model: RewardModel, prepared: Any, step_bytes: int, **changes: Any) -> Any:
    split, settings = model.split(), dataclasses.replace(PLAIN, **changes)
    start = split.initial(0)[1] + np.float32(0.1)
    made = LocalTrainer(model, split, settings, start, step_bytes=step_bytes)
    return made.train(*split.initial(0), prepared, seed=0)


def assert_as_near(found: Any, expected: Any) -> None:
    assert found.steps == expected.steps
    assert found.before.total == expected.before.total
    assert found.before.loss_sum == pytest.approx(expected.before.loss_sum, rel=1e-5)
    assert found.shared_update == pytest.approx(expected.shared_update, rel=1e-3, abs=1e-6)
    assert found.personal == pytest.approx(expected.personal, rel=1e-4, abs=1e-6)
    assert float(np.abs(found.shared_update).max()) > 1e-3


def needed(model: RewardModel, prepared: Any) -> int:
    """What a step on all pairs holds."""
    split = model.split()
    shared, personal = (
        {name: tensor.requires_grad_() for name, tensor in layout.unflatten(vector).items()}
        for layout, vector in zip((split.shared, split.personal), split.initial(0), strict=True)
    )
    return model.step_memory.of(prepared.texts.packed, split.effective(shared, personal))


@pytest.mark.parametrize("kind", ["llama", "gptj", "bert"])
@pytest.mark.parametrize("share", [0.3, 0.01])
def test_a_step_holds_no_more_than_its_bound(tiny_model, kind: str, share: float) -> None:
    """All tensors that are there at a time are counted, forward and back. Where one pair is above the bound
    its blocks run again."""
    targets = {"bert": ("query", "value")}.get(kind, ("q_proj", "v_proj"))
    model = reward_model(tiny_model(kind), **{**BLOCKS, "target_modules": targets})
    prepared = model.prepare(many_pairs(12, 2))
    whole = needed(model, prepared)
    single = max(needed(model, model.subset(prepared, [row])) for row in range(len(prepared)))
    found, most = [], []
    for bound in (sys.maxsize, int(share * whole)):
        with HeldBytes() as held:
            found.append(trained_within(model, prepared, bound, l2_to_start=0.5))
        most.append(held.most)
    assert_as_near(found[1], found[0])
    factors = 4 * (model.split().shared.size + model.split().personal.size)
    assert most[0] > 0.8 * whole
    assert most[1] < max(share * whole, single) * 1.2 + 12 * factors + 0.05 * whole


@pytest.mark.parametrize("share", [0.3, 0.01])
@pytest.mark.parametrize("batch_size", [0, 7])
def test_portions_give_what_each_pair_alone_gives(tiny_model, share: float, batch_size: int) -> None:
    """With ties, strengths, an L2 penalty and a rule with a prior. One pair at a time is the reference."""
    model = reward_model(tiny_model("llama"), **{**BLOCKS, "share": "mixed"})
    pairs = many_pairs(5, 3)
    pairs[3].tie, pairs[4].strength, pairs[7].strength = "equal", 1, 3
    prepared = model.prepare(pairs)
    changes = {"l2_to_start": 0.3, "batch_size": batch_size}
    slow = trained_within(model, prepared, sys.maxsize, micro_batch_size=1, **changes)
    bound = int(share * needed(model, prepared))
    assert_as_near(trained_within(model, prepared, bound, **changes), slow)
    assert_as_near(trained_within(model, prepared, bound, micro_batch_size=4, **changes), slow)


@pytest.mark.parametrize("share", [0.3, 0.01])
def test_responses_are_portioned_as_texts_are(tiny_writer, share: float) -> None:
    config = ModelConfig(base_model=str(tiny_writer("llama")), objective="dpo", beta=0.5, max_tokens=64)
    adapter = AdapterConfig(**BLOCKS)
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    prepared = model.prepare(many_pairs(5, 3))
    bounds = sys.maxsize, int(share * needed(model, prepared))
    whole, portioned = (trained_within(model, prepared, bound) for bound in bounds)
    assert_as_near(portioned, whole)


def test_within_the_bound_all_is_done_at_once_to_the_bit(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reward_model(tiny_model("llama"), **BLOCKS)
    prepared = model.prepare(many_pairs(4, 2))
    seen: list[Any] = []
    margins = model.margins

    def watched(some: Any, effective: MergedWeights) -> torch.Tensor:
        seen.append(some)
        return margins(some, effective)

    monkeypatch.setattr(model, "margins", watched)
    whole = needed(model, prepared)
    found = [trained_within(model, prepared, bound) for bound in (sys.maxsize, whole + 1)]
    assert [some is prepared for some in seen] == [True] * 6
    assert found[0].shared_update.tobytes() == found[1].shared_update.tobytes()
    assert found[0].personal.tobytes() == found[1].personal.tobytes()
    seen.clear()
    trained_within(model, prepared, int(0.4 * whole))
    assert sum(len(some) for some in seen) == 3 * len(prepared)
    assert len(seen) == 3 * 4  # each prompt with its pairs: two prompts are too many, and none is cut


def test_the_gain_of_deviating_is_summed_over_portions(tiny_model) -> None:
    model = reward_model(tiny_model("llama"), **{**BLOCKS, "share": "mixed"})
    split = model.split()
    assert split.spread_tensor
    shared, personal = somewhere(split)
    prepared = model.prepare(many_pairs(5, 3))
    gains = [
        LocalTrainer(model, split, PLAIN, step_bytes=bound).gain_of_deviating(shared, personal, prepared)
        for bound in (sys.maxsize, int(0.2 * needed(model, prepared)))
    ]
    assert gains[1] == pytest.approx(gains[0], rel=1e-4)
    assert abs(gains[0]) > 1e-6
