"""Training several people in lockstep gives each what training alone gives: every share rule, tail,
objective, optimiser and order of updates; unequal amounts of data; who diverges is alone in that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fleet_scene import WORDS
from support.tiny_models import write_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from penchant.client.learning.group_round import work_together
from penchant.client.learning.local_round import work
from penchant.client.learning.lockstep import Learner, LockstepTrainer, can_lockstep, why_one_by_one
from penchant.client.learning.model_cache import PlannedModel
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.trainer import LocalTrainer
from penchant.client.learning.workplace import Job
from penchant.common.config import AdapterConfig, ModelConfig, RunConfig, TrainingConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import ConfigError, DataError, DeviceError
from penchant.common.model.backbone import load_backbone
from penchant.common.model.factors import AdaptedModule, Split
from penchant.common.model.reward import RewardModel
from penchant.common.model.signature import ModelSignature
from penchant.common.model.stacked import composes_stacked, stacked_tail
from penchant.common.shares import SHARES, ShareRule, share_rule

SETTINGS = TrainingConfig(lr_shared=0.02, lr_personal=0.03, lr_head=0.01, local_epochs=4, final_fit_epochs=5)
DESCENT = dataclasses.replace(SETTINGS, optimizer="sgd", final_fit_epochs=3)
ROOM = 1 << 30
OWN_RULES = [name for name in SHARES.names() if share_rule(name).adapts_modules]
HEADS_ALONE = [name for name in SHARES.names() if not share_rule(name).adapts_modules and name != "meta"]
COUNTS = (5, 1, 3, 8, 3)
QUERIES = {"bert": ("query", "value"), "gpt2": ("c_attn",), "modernbert": ("Wqkv",)}
FEED_FORWARD = {"llama": ("down_proj",), "gpt2": ("c_proj",)}


def some_pairs(count: int, seed: int, ties: bool = False, strong: bool = False) -> list[Preference]:
    """Pairs over texts of a few words, some of which answer the same prompt; every third a tie, or none, and
    every other choice with a strength, or none."""
    draw = np.random.default_rng(seed)

    def words(most: int) -> str:
        return " ".join(draw.choice(WORDS, size=draw.integers(2, most)))

    prompts = [f"{words(6)} " for _ in range(2)]
    return [
        Preference(
            prompts[int(draw.integers(2))],
            f"{words(5)} a",
            f"{words(5)} b",
            "equal" if ties and number % 3 == 1 else "",
            float(number + 1) if strong and number % 2 == 0 and not (ties and number % 3 == 1) else None,
        )
        for number in range(count)
    ]


def model_of(
    folder: Path, share: str, kind: str = "bert", **settings: Any
) -> tuple[RewardModel, AdapterConfig]:
    """settings: of the adapter, and `objective` and `pooling` of the model."""
    chosen = {name: settings.pop(name) for name in ("objective", "pooling", "dtype") if name in settings}
    model = ModelConfig(base_model=str(folder), **chosen)
    adapter = AdapterConfig(share=share, **settings)
    words = PreTrainedTokenizerFast.from_pretrained(folder)  # a token a word, whatever the family's own is
    backbone = dataclasses.replace(load_backbone(model, device="cpu"), tokenizer=words)
    return RewardModel(backbone, model, adapter), adapter


def learners(
    model: RewardModel,
    split: Split,
    counts: Sequence[int] = COUNTS,
    ties: Sequence[int] = (),
    strong: Sequence[int] = (),
) -> list[Learner]:
    """People with so many pairs, some with ties or strengths, each with factors of their own."""
    draw = np.random.default_rng(0)
    shared, personal = split.initial(0)

    def moved(vector: Any) -> Any:
        return vector + 0.1 * draw.normal(size=vector.shape).astype(np.float32)

    received = moved(shared)
    return [
        Learner(
            received,
            moved(personal),
            model.prepare(some_pairs(count, 10 + n, n in ties, n in strong)),
            seed=100 + n,
        )
        for n, count in enumerate(counts)
    ]


def alike(one: Any, other: Any, atol: float) -> bool:
    """Whether two vectors are, but for some numbers whose gradient is as good as zero: Adam makes a whole
    step of its rounding error."""
    apart = np.abs(one - other)
    return not apart.size or bool(
        np.mean(apart > atol) < 0.02 and np.linalg.norm(apart) <= 0.02 * np.linalg.norm(other)
    )


def check(made: Any, alone: Outcome, atol: float = 2e-5) -> None:
    assert isinstance(made, Outcome)
    assert made.shared_update.shape == alone.shared_update.shape
    assert alike(made.shared_update, alone.shared_update, atol)
    assert alike(made.personal, alone.personal, atol)
    assert (made.weight, made.steps) == (alone.weight, alone.steps)
    assert made.before.loss_sum == pytest.approx(alone.before.loss_sum, rel=1e-4)
    assert (made.before.correct, made.before.total) == (alone.before.correct, alone.before.total)


def compare(
    model: RewardModel,
    split: Split,
    training: TrainingConfig = SETTINGS,
    counts: Sequence[int] = COUNTS,
    step_bytes: int = ROOM,
    atol: float = 2e-5,
    ties: Sequence[int] = (),
    strong: Sequence[int] = (),
) -> None:
    """Training and the closing fit, in lockstep and alone."""
    people = learners(model, split, counts, ties, strong)
    start = split.initial(0)[1]
    together = LockstepTrainer(model, split, training, start, step_bytes=step_bytes)
    alone = LocalTrainer(model, split, training, start)
    for one, made in zip(people, together.train(people), strict=True):
        check(made, alone.train(one.shared, one.personal, one.prepared, one.seed), atol)
    for one, made in zip(people, together.refit(people), strict=True):
        check(made, alone.refit(one.shared, one.personal, one.prepared, one.seed), atol)
    for one, counted in zip(people, together.evaluate(people), strict=True):
        expected = alone.evaluate(one.shared, one.personal, one.prepared)
        assert counted.correct == expected.correct
        assert counted.loss_sum == pytest.approx(expected.loss_sum, rel=1e-4)
        assert (counted.total, counted.ties) == (expected.total, expected.ties)
        assert counted.ties_expected == pytest.approx(expected.ties_expected, rel=1e-4)


# --- equal to one by one --------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("share", OWN_RULES)
def test_every_rule_on_the_default_tail(tiny_model: Callable[[str], Path], share: str, rank: int) -> None:
    model, _ = model_of(tiny_model("bert"), share, rank=rank)
    assert model.tail.name == "tokenwise"
    compare(model, model.split())


@pytest.mark.parametrize("share", OWN_RULES)
def test_every_rule_with_factors_in_blocks(tiny_model: Callable[[str], Path], share: str) -> None:
    model, _ = model_of(
        tiny_model("llama"), share, rank=2, target_modules=("q_proj", "v_proj"), layers=(), dtype="float32"
    )
    people = learners(model, split := model.split())
    plain = dataclasses.replace(DESCENT, local_epochs=3)
    alone = LocalTrainer(model, split, plain)
    for one, made in zip(
        people, LockstepTrainer(model, split, plain, step_bytes=ROOM).train(people), strict=True
    ):
        expected = alone.train(one.shared, one.personal, one.prepared, one.seed)
        assert isinstance(made, Outcome)
        assert np.allclose(made.shared_update, expected.shared_update, atol=1e-6)
        assert np.allclose(made.personal, expected.personal, atol=1e-6)
    compare(model, split, atol=5e-5)


@pytest.mark.parametrize("share", HEADS_ALONE)
def test_heads_over_frozen_embeddings(tiny_model: Callable[[str], Path], share: str) -> None:
    model, _ = model_of(tiny_model("bert"), share, rank=2)
    assert model.tail.name == "pooled"
    compare(model, model.split())


@pytest.mark.parametrize("layers", [(), (-1,)])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2", "modernbert"])
def test_families(tiny_model: Callable[[str], Path], kind: str, layers: Any) -> None:
    """The first block adapted as well, and nothing but the last one."""
    modules = QUERIES.get(kind, ("q_proj", "v_proj"))
    model, _ = model_of(tiny_model(kind), "A", rank=2, target_modules=modules, layers=layers)
    compare(model, model.split(), DESCENT)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_factors_in_the_feed_forward_part(tiny_model: Callable[[str], Path], kind: str, pooling: str) -> None:
    """That of the last block runs on the pooled tokens alone."""
    model, _ = model_of(
        tiny_model(kind), "B", rank=2, target_modules=FEED_FORWARD[kind], layers=(), pooling=pooling
    )
    compare(model, model.split(), atol=5e-5)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "simpo"])
def test_objectives_without_a_head(tiny_writer: Callable[[str], Path], objective: str) -> None:
    model, _ = model_of(
        tiny_writer("llama"), "A", objective=objective, rank=2, target_modules=("q_proj",), layers=()
    )
    compare(model, model.split(), atol=5e-5)


@pytest.mark.parametrize("batch_size", [0, 2])
@pytest.mark.parametrize("share", ["A", "mixed", "lore"])
def test_ties_of_some(tiny_model: Callable[[str], Path], share: str, batch_size: int) -> None:
    """Each with the number of ties that they have, and beside people without any."""
    model, _ = model_of(tiny_model("bert"), share, rank=2)
    people = learners(model, model.split(), ties=[0, 3])
    assert [one.prepared.choices for one in people] == [3, 1, 3, 5, 3]
    compare(model, model.split(), dataclasses.replace(SETTINGS, batch_size=batch_size), ties=[0, 3])


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_ties_without_a_head(tiny_writer: Callable[[str], Path], objective: str) -> None:
    model, _ = model_of(
        tiny_writer("llama"), "A", objective=objective, rank=2, target_modules=("q_proj",), layers=()
    )
    compare(model, model.split(), atol=5e-5, ties=[0, 3])


@pytest.mark.parametrize("share", ["A", "mixed", "common"])
@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2},  # who has fewer pairs drops out earlier
        {"batch_size": 3, "update_order": "personal-first", "personal_epochs": 2},
        {"update_order": "alternating", "optimizer": "sgd"},
        {"shared_optimizer": "sgd", "weight_decay": 0.1, "batch_size": 2},
        {"l2_to_start": 0.5},
        {"lr_personal": 0.0},
        {"lr_shared": 0.0, "lr_personal": 0.0, "lr_head": 0.0, "final_fit_lr": 0.0},
    ],
)
def test_settings(tiny_model: Callable[[str], Path], share: str, changes: dict[str, Any]) -> None:
    model, _ = model_of(tiny_model("bert"), share, rank=2)
    compare(model, model.split(), dataclasses.replace(SETTINGS, **changes), atol=5e-5)


@pytest.mark.parametrize("share", ["A", "common"])
def test_a_warm_up(tiny_model: Callable[[str], Path], share: str) -> None:
    rule = share_rule(share)
    model, _ = model_of(tiny_model("bert"), share, rank=2)
    if rule.can_warm_up:
        compare(model, model.split(warmup=True))
    compare(model, model.split())


def test_parts_of_the_base_in_the_last_norm(tiny_model: Callable[[str], Path]) -> None:
    model, _ = model_of(tiny_model("bert"), "A", rank=2, share_base=("encoder.layer.2.output.LayerNorm",))
    assert model.tail.name == "tokenwise"
    compare(model, model.split())


def test_a_number_format_that_is_not_exact(tiny_model: Callable[[str], Path]) -> None:
    model, _ = model_of(
        tiny_model("llama"), "A", rank=2, target_modules=("q_proj",), layers=(), dtype="bfloat16"
    )
    few = dataclasses.replace(SETTINGS, local_epochs=1, final_fit_epochs=1, optimizer="sgd")
    people = learners(model, split := model.split())
    together = LockstepTrainer(model, split, few, step_bytes=ROOM).train(people)
    alone = LocalTrainer(model, split, few)
    for one, made in zip(people, together, strict=True):
        expected = alone.train(one.shared, one.personal, one.prepared, one.seed)
        assert isinstance(made, Outcome)
        assert np.allclose(made.shared_update, expected.shared_update, atol=2e-3)


# --- what a GPU does, in this processor's arithmetic ----------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_attention_of_alike_pieces_at_once(tiny_model: Callable[[str], Path], kind: str) -> None:
    modules = QUERIES.get(kind, ("q_proj", "v_proj"))
    model, _ = model_of(tiny_model(kind), "A", rank=2, target_modules=modules, layers=())
    vars(model)["stacked"] = stacked_tail(model.tail, model._network, gathered=True)
    compare(model, model.split(), atol=5e-5)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize(
    ("kind", "window"), [("mistral", {"sliding_window": 4}), ("modernbert", {"local_attention": 4})]
)
def test_windows_that_are_shorter_than_texts(
    tmp_path: Path, kind: str, window: dict[str, int], gathered: bool
) -> None:
    write_tiny_model(kind, tmp_path, **window)
    modules = QUERIES.get(kind, ("q_proj", "v_proj"))
    model, _ = model_of(tmp_path, "A", rank=2, target_modules=modules, layers=())
    vars(model)["stacked"] = stacked_tail(model.tail, model._network, gathered=gathered)
    compare(model, model.split(), atol=5e-5)


def test_low_rank_products_of_all_at_once(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from penchant.common.model import stacked

    monkeypatch.setattr(stacked, "_low_rank", stacked._batched_low_rank)
    model, _ = model_of(tiny_model("llama"), "A", rank=2, target_modules=("q_proj", "down_proj"), layers=())
    compare(model, model.split(), atol=5e-5)


# --- each alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [1, 3])  # who has least, beside what is filled up, and who has most
@pytest.mark.parametrize("share", ["A", "lore", "blocks"])
def test_who_diverges_is_alone_in_that(tiny_model: Callable[[str], Path], share: str, who: int) -> None:
    blocks: dict[str, Any] = {"target_modules": ("query", "value"), "layers": ()}
    settings = blocks if share == "blocks" else {}
    model, _ = model_of(tiny_model("bert"), "A" if share == "blocks" else share, rank=2, **settings)
    split = model.split()
    people = learners(model, split)
    people[who] = dataclasses.replace(people[who], personal=np.full_like(people[who].personal, np.inf))
    alone = LocalTrainer(model, split, SETTINGS)
    with pytest.raises(DeviceError, match="diverged"), np.errstate(all="ignore"):
        alone.train(people[who].shared, people[who].personal, people[who].prepared, 0)
    made = LockstepTrainer(model, split, SETTINGS, step_bytes=ROOM).train(people)
    assert [isinstance(one, DeviceError) for one in made] == [place == who for place in range(5)]
    for place in {0, 1, 2, 3, 4} - {who}:
        one, outcome = people[place], made[place]
        check(outcome, alone.train(one.shared, one.personal, one.prepared, one.seed), 5e-5)


def test_a_group_of_one_and_people_in_another_order(tiny_model: Callable[[str], Path]) -> None:
    model, _ = model_of(tiny_model("bert"), "A", rank=2)
    split = model.split()
    people = learners(model, split)
    trainer = LockstepTrainer(model, split, SETTINGS, step_bytes=ROOM)
    forward, backward = trainer.train(people), trainer.train(people[::-1])[::-1]
    for one, other in zip(forward, backward, strict=True):
        assert isinstance(one, Outcome)
        check(other, one)
    (alone,) = trainer.train(people[:1])
    assert isinstance(forward[0], Outcome)
    check(alone, forward[0])


@pytest.mark.parametrize("batch_size", [0, 2])
@pytest.mark.parametrize("share", ["A", "mixed", "lore"])
def test_strengths_of_some(tiny_model: Callable[[str], Path], share: str, batch_size: int) -> None:
    """Each relative to their own mean, beside people without any and one who has both strengths and ties."""
    model, _ = model_of(tiny_model("bert"), share, rank=2)
    people = learners(model, model.split(), ties=[3], strong=[0, 3])
    assert [one.prepared.weights is None for one in people] == [False, True, True, False, True]
    training = dataclasses.replace(SETTINGS, batch_size=batch_size)
    compare(model, model.split(), training, ties=[3], strong=[0, 3])


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_strengths_without_a_head(tiny_writer: Callable[[str], Path], objective: str) -> None:
    model, _ = model_of(
        tiny_writer("llama"), "A", objective=objective, rank=2, target_modules=("q_proj",), layers=()
    )
    compare(model, model.split(), atol=5e-5, strong=[0, 3])


# --- the whole of a round's work ------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["main", "close"])
@pytest.mark.parametrize("share", ["A", "mixed", "common"])
@pytest.mark.parametrize("ties", [False, True], ids=["choices", "ties and strengths"])
def test_a_round_of_several_people(
    tiny_model: Callable[[str], Path], share: str, phase: Any, ties: bool
) -> None:
    """One of whom has no choices at all, one none to judge by, and one losses that are no numbers."""
    config = RunConfig().changed({"model.base_model": str(tiny_model("bert")), "adapter.share": share})
    plan = config.plan(phase, 4)
    model, _ = model_of(tiny_model("bert"), share, rank=config.adapter.rank)
    planned = PlannedModel(model, ModelSignature.of(model), model.split(), plan)
    shared, start = planned.split.initial(0)
    shared = shared + 0.1 * np.random.default_rng(1).normal(size=shared.shape).astype(np.float32)
    counts = [(4, 3), (0, 2), (2, 0), (3, 2)]
    jobs = [
        Job(
            plan,
            b"",
            shared,
            start,
            start.copy(),
            some_pairs(n, k, ties, ties),
            some_pairs(m, 50 + k, ties, ties),
            seed=k,
        )
        for k, (n, m) in enumerate(counts)
    ]
    jobs[3] = dataclasses.replace(jobs[3], personal=np.full_like(start, np.nan))
    prepared = [model.prepare(job.train) if job.train else None for job in jobs]
    made = work_together(planned, jobs, prepared, step_bytes=ROOM)
    assert isinstance(made[1], DataError)
    assert isinstance(made[3], DeviceError)
    for place in (0, 2):
        job = jobs[place]
        expected = work(planned, job.shared, job.start, job.personal, job.train, job.held_out, job.seed)
        outcome = made[place]
        check(outcome, expected)
        assert isinstance(outcome, Outcome)
        assert (outcome.judged.correct, outcome.judged.total) == (
            expected.judged.correct,
            expected.judged.total,
        )


def test_whose_held_out_choices_are_too_many_is_judged_piece_by_piece(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than `pack_bytes` of frozen states are put together for somebody who is judged."""
    config = RunConfig().changed({"model.base_model": str(tiny_model("bert"))})
    model, _ = model_of(tiny_model("bert"), config.adapter.share)
    planned = PlannedModel(model, ModelSignature.of(model), model.split(), config.plan("main", 4))
    shared, start = planned.split.initial(0)
    jobs = [
        Job(planned.plan, b"", shared, start, start.copy(), some_pairs(6, k), some_pairs(n, 50 + k), seed=k)
        for k, n in enumerate((3, 40, 2))
    ]
    prepared = [planned.model.prepare(job.train) for job in jobs]
    expected = work_together(planned, jobs, prepared, step_bytes=ROOM)
    largest = max(one.state_bytes for one in prepared)
    monkeypatch.setattr(planned.model, "pack_bytes", largest)
    sizes: list[int] = []
    collate = planned.model.tail.collate

    def counted(parts: Any) -> Any:
        sizes.append(sum(t.numel() * t.element_size() for part in parts for t in part))
        return collate(parts)

    monkeypatch.setattr(planned.model.tail, "collate", counted)
    made = work_together(planned, jobs, prepared, step_bytes=ROOM)
    assert planned.model.prepare(jobs[1].held_out).state_bytes > 2 * largest
    assert max(sizes) <= largest
    for one, other in zip(made, expected, strict=True):
        assert isinstance(one, Outcome)
        assert isinstance(other, Outcome)
        assert one.shared_update.tobytes() == other.shared_update.tobytes()
        assert (one.judged.correct, one.judged.total) == (other.judged.correct, other.judged.total)
        assert one.judged.loss_sum == pytest.approx(other.judged.loss_sum, rel=1e-5)


def test_whose_step_alone_is_too_large_is_trained_alone(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In portions, to the outcome that the person has alone, to the bit; the others stay together."""
    modules = {"adapter.target_modules": ("q_proj", "v_proj"), "adapter.layers": (), "adapter.rank": 2}
    config = RunConfig().changed({"model.base_model": str(tiny_model("llama")), **modules})
    plan = config.plan("main", 4)
    model, _ = model_of(
        tiny_model("llama"),
        config.adapter.share,
        rank=2,
        layers=(),
        target_modules=modules["adapter.target_modules"],
    )
    planned = PlannedModel(model, ModelSignature.of(model), model.split(), plan)
    shared, start = planned.split.initial(0)
    jobs = [
        Job(plan, b"", shared, start, start.copy(), some_pairs(n, k), some_pairs(2, 50 + k), seed=k)
        for k, n in enumerate((3, 24, 2))
    ]
    prepared = [model.prepare(job.train) for job in jobs]
    needs = [
        next(
            n
            for n in range(10, 40)
            if planned_with(planned, 1 << n).trainer(start).at_once(shared, start, one)
        )
        for one in prepared
    ]
    assert needs[1] > max(needs[0], needs[2])
    bounded = planned_with(planned, 1 << max(needs[0], needs[2]))
    together: list[int] = []
    train = LockstepTrainer.train

    def watched(self: LockstepTrainer, people: Sequence[Learner]) -> Any:
        together.append(len(people))
        return train(self, people)

    monkeypatch.setattr(LockstepTrainer, "train", watched)
    made = work_together(bounded, jobs, prepared, step_bytes=ROOM)
    assert together == [2]
    for job, outcome in zip(jobs, made, strict=True):
        expected = work(bounded, job.shared, job.start, job.personal, job.train, job.held_out, job.seed)
        check(outcome, expected)
    alone = work(bounded, shared, start, start, jobs[1].train, jobs[1].held_out, jobs[1].seed)
    assert isinstance(made[1], Outcome)
    assert made[1].shared_update.tobytes() == alone.shared_update.tobytes()


def planned_with(planned: PlannedModel, step_bytes: int) -> PlannedModel:
    return dataclasses.replace(planned, step_bytes=step_bytes)


def test_work_of_different_plans_is_refused(tiny_model: Callable[[str], Path]) -> None:
    config = RunConfig().changed({"model.base_model": str(tiny_model("bert"))})
    model, _ = model_of(tiny_model("bert"), "A")
    planned = PlannedModel(model, ModelSignature.of(model), model.split(), config.plan("main", 4))
    nothing = np.zeros(0, np.float32)
    job = Job(config.plan("main", 5), b"", nothing, nothing, nothing, [], [], 0)
    with pytest.raises(ConfigError, match="one plan"):
        work_together(planned, [job], [None], step_bytes=ROOM)


# --- memory ---------------------------------------------------------------------------------------


def test_a_step_goes_in_portions_where_its_bytes_are_few(tiny_model: Callable[[str], Path]) -> None:
    for settings in ({}, {"target_modules": ("query", "value"), "layers": ()}):
        model, _ = model_of(tiny_model("bert"), "A", rank=2, **settings)
        split = model.split()
        people = learners(model, split)
        tail = model.stacked
        assert tail is not None
        sizes = [tail.size(one.prepared.texts.packed) for one in people]
        trainer = LockstepTrainer(model, split, SETTINGS, step_bytes=max(sizes) + 1)
        assert len(list(trainer._portions([one.prepared for one in people]))) > 2
        compare(model, split, step_bytes=max(sizes) + 1, atol=5e-5)
        compare(model, split, step_bytes=1, atol=5e-5)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_what_a_step_holds_is_below_its_estimate(tiny_model: Callable[[str], Path], kind: str) -> None:
    """Counted in what autograd keeps, weights and the texts themselves apart."""
    modules = QUERIES.get(kind, ("q_proj", "v_proj"))
    model, _ = model_of(tiny_model(kind), "A", rank=2, target_modules=modules, layers=())
    split = model.split()
    people = learners(model, split, counts=(20, 30, 25))
    tail = model.stacked
    assert tail is not None
    frozen = {p.untyped_storage().data_ptr() for p in model._network.module.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    trainer = LockstepTrainer(model, split, dataclasses.replace(SETTINGS, local_epochs=1), step_bytes=ROOM)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.train(people)
    assert sum(held.values()) < sum(tail.size(one.prepared.texts.packed) for one in people)


# --- who is served one by one ---------------------------------------------------------------------


class _Products(TorchDispatchMode):
    """Counts the matrix products with a frozen weight."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self._frozen = {p.untyped_storage().data_ptr() for p in model._network.module.parameters()}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.count += any(arg.untyped_storage().data_ptr() in self._frozen for arg in args)
        return func(*args, **(kwargs or {}))


def test_products_with_frozen_weights_are_shared(tiny_model: Callable[[str], Path]) -> None:
    """Four people whose texts fit into one row take as many as one of them."""
    model, _ = model_of(tiny_model("llama"), "A", rank=2, target_modules=("q_proj",), layers=(-1,))
    split = model.split()
    once = dataclasses.replace(SETTINGS, local_epochs=1)
    people = learners(model, split, counts=[1] * 4)
    alone = LocalTrainer(model, split, once)
    alone.train(people[0].shared, people[0].personal, people[0].prepared, 0)  # what a step holds is measured
    with _Products(model) as one_by_one:
        for one in people:
            alone.train(one.shared, one.personal, one.prepared, one.seed)
    together = LockstepTrainer(model, split, once, step_bytes=ROOM)
    together.train(people)  # the first time the tokens that all texts begin with are read as well
    with _Products(model) as at_once:
        together.train(people)
    assert at_once.count > 0
    assert 4 * at_once.count == one_by_one.count


def test_what_can_not_be_trained_together(tiny_model: Callable[[str], Path]) -> None:
    padded, _ = model_of(tiny_model("bloom"), "A", target_modules=("query_key_value",), layers=())
    assert padded.stacked is None
    assert not can_lockstep(padded, padded.split(), SETTINGS)
    assert "does not read several people's texts" in why_one_by_one(padded, padded.split(), SETTINGS)
    with pytest.raises(ConfigError, match="one by one"):
        LockstepTrainer(padded, padded.split(), SETTINGS, step_bytes=ROOM)
    model, _ = model_of(tiny_model("bert"), "A")
    in_parts = dataclasses.replace(SETTINGS, micro_batch_size=2)
    assert can_lockstep(model, model.split(), SETTINGS)
    assert why_one_by_one(model, model.split(), SETTINGS) == ""
    assert not can_lockstep(model, model.split(), in_parts)
    assert why_one_by_one(model, model.split(), in_parts).startswith("training.micro_batch_size")
    halved, _ = model_of(tiny_model("bert"), "meta")  # everybody's pairs, each by their own seed
    assert not can_lockstep(halved, halved.split(), SETTINGS)


@pytest.mark.parametrize("share", OWN_RULES)
def test_a_split_that_was_never_used_composes_stacked(share: str) -> None:
    """What is frozen at its draw is drawn before: `torch.vmap` lets nothing be drawn."""
    modules = [AdaptedModule("one", 6, 4), AdaptedModule("two", 6, 4)]
    fresh = Split.of(modules, 6, AdapterConfig(share=share, rank=2), seed=1)
    assert composes_stacked(fresh)
    once_used = Split.of(modules, 6, AdapterConfig(share=share, rank=2), seed=1)
    once_used.merged(*once_used.initial(0))
    assert fresh.draw_frozen().keys() == once_used.draw_frozen().keys()
    assert all(
        torch.equal(value, once_used.draw_frozen()[name]) for name, value in fresh.draw_frozen().items()
    )


def test_a_rule_that_composes_one_person_at_a_time(tiny_model: Callable[[str], Path]) -> None:
    """As a package's may: it looks at numbers."""

    def looks(factors: Any) -> Any:
        return (factors["A"] if float(factors["A"].sum()) > 0 else 2 * factors["A"]), factors["B"]

    model, _ = model_of(tiny_model("bert"), "A", rank=2)
    split = model.split()
    assert composes_stacked(split)
    rule = dataclasses.replace(share_rule("A"), compose=looks)
    assert isinstance(rule, ShareRule)
    assert not composes_stacked(Split(model.adapted_modules, model.embedding, 2, rule, split.head))
