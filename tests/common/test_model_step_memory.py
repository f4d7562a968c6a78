"""What a step holds is estimated as it is, and batches are cut so that it is bounded."""

from __future__ import annotations

import itertools
import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.family_models import FAMILIES, model_of
from support.held_bytes import HeldBytes, saved_bytes
from support.tiny_models import WORDS
from torch import Tensor

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.factors import MergedWeights
from penchant.common.model.recomputed import blocks_recomputed
from penchant.common.model.reward import PreparedPairs, RewardModel


def some_pairs(prompts: int, pairs_a_prompt: int, tokens: int = 16) -> list[SimpleNamespace]:
    """Long prompts and short responses, all different."""
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    return [
        SimpleNamespace(prompt=f"{prompt} ", chosen=text(draw.randint(4, 8)), rejected=text(6))
        for prompt in [text(tokens) for _ in range(prompts)]
        for _ in range(pairs_a_prompt)
    ]


def leaves_of(model: RewardModel, *, trained: bool = True) -> dict[str, Tensor]:
    split, draw = model.split(), np.random.default_rng(1)
    return {
        name: tensor.requires_grad_(trained)
        for layout in (split.shared, split.personal)
        for name, tensor in layout.unflatten(0.1 * draw.normal(size=layout.size).astype(np.float32)).items()
    }


def effective_of(model: RewardModel, leaves: dict[str, Tensor]) -> MergedWeights:
    split = model.split()
    return split.effective(
        {name: leaves[name] for name in split.shared.names},
        {name: leaves[name] for name in split.personal.names},
    )


def saved(model: RewardModel, prepared: PreparedPairs, effective: MergedWeights) -> int:
    """Bytes that autograd keeps of a step, counted."""
    with saved_bytes(model) as held:
        margins = model.margins(prepared, effective)
    assert margins.requires_grad
    return sum(held.values())


# --- the estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_the_estimate_is_what_autograd_keeps(tiny_model: Any, kind: str, name: str) -> None:
    """The texts themselves are in it, which autograd keeps in part."""
    model = model_of(tiny_model(kind), kind)
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(6, 3))
    counted = saved(model, prepared, effective)
    assert 0.95 * counted < model.step_memory.of(prepared.texts.packed, effective) < 1.3 * counted


@pytest.mark.parametrize("writes", [False, True])
def test_the_estimate_of_blocks_behind_kept_ones(tiny_model: Any, tiny_writer: Any, writes: bool) -> None:
    folder = (tiny_writer if writes else tiny_model)("llama")
    settings: dict[str, Any] = {"objective": "dpo", "beta": 0.1} if writes else {}
    config = ModelConfig(base_model=str(folder), max_tokens=64, **settings)
    adapter = AdapterConfig(share="AB", rank=2, target_modules=("q_proj", "v_proj"), layers=(1, 2))
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(6, 3))
    counted = saved(model, prepared, effective)
    assert 0.95 * counted < model.step_memory.of(prepared.texts.packed, effective) < 1.5 * counted


def test_it_is_measured_once_for_each_set_of_trained_factors(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("llama"), "llama")
    prepared = model.prepare(some_pairs(2, 2))
    forward, passes = model.tail.forward, list[int]()

    def counted(packed: Any, effective: MergedWeights) -> Tensor:
        passes.append(1)
        return forward(packed, effective)

    monkeypatch.setattr(model.tail, "forward", counted)
    leaves = leaves_of(model)
    whole = model.step_memory.of(prepared.texts.packed, effective_of(model, leaves))
    assert len(passes) == 4
    assert model.step_memory.of(prepared.texts.packed, effective_of(model, leaves)) == whole
    model.step_memory.portions(prepared, effective_of(model, leaves), sys.maxsize)
    assert len(passes) == 4
    for name, leaf in leaves.items():
        leaf.requires_grad_("layers.2" in name)  # behind two blocks that have nothing to keep
    fewer = model.step_memory.of(prepared.texts.packed, effective_of(model, leaves))
    assert len(passes) == 8
    assert fewer < 0.6 * whole


# --- portions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gptj", "bert", "bloom"])
@pytest.mark.parametrize("share", [0.5, 0.21, 0.1])
def test_each_portion_holds_no_more_than_the_bound(tiny_model: Any, kind: str, share: float) -> None:
    model = model_of(tiny_model(kind), kind)
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(12, 2))
    bound = int(share * saved(model, prepared, effective))
    portions = model.step_memory.portions(prepared, effective, bound)
    assert list(itertools.chain(*(one.rows for one in portions))) == list(range(24))
    assert len(portions) >= 1 / share
    assert not any(one.recomputed for one in portions)
    held = [saved(model, model.subset(prepared, one.rows), effective) for one in portions]
    assert max(held) <= 1.05 * bound
    assert sorted(held)[len(held) // 2] > 0.5 * bound  # no more of them than that takes


def test_pairs_of_one_prompt_stay_together(tiny_model: Any) -> None:
    model = model_of(tiny_model("llama"), "llama")
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(8, 3))
    three = model.step_memory.of(model.prepare(some_pairs(1, 3)).texts.packed, effective)
    portions = model.step_memory.portions(prepared, effective, int(4.7 * three))
    assert [one.rows for one in portions] == [range(0, 12), range(12, 24)]


@pytest.mark.parametrize("pairs_a_prompt", [1, 8])
def test_batches_are_estimated_from_above(tiny_model: Any, pairs_a_prompt: int) -> None:
    """Pairs of a prompt that is read once for all of them are apart in a batch at random."""
    model = model_of(tiny_model("llama"), "llama")
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(64 // pairs_a_prompt, pairs_a_prompt))
    most = model.step_memory.of_batches(prepared, effective, 8)
    held = []
    for seed in range(6):
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:8].tolist()
        held.append(model.step_memory.of(model.subset(prepared, rows).texts.packed, effective))
    assert max(held) <= most < 2 * max(held)
    assert model.step_memory.of(prepared.texts.packed, effective) * 8 / 64 <= most


def test_below_the_bound_nothing_is_cut(tiny_model: Any) -> None:
    model = model_of(tiny_model("llama"), "llama")
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(4, 2))
    whole = model.step_memory.of(prepared.texts.packed, effective)
    (one,) = model.step_memory.portions(prepared, effective, whole + 1)
    assert (one.rows, one.recomputed) == (range(8), False)
    parts = model.step_memory.portions(prepared, effective, whole + 1, 3)
    assert [part.rows for part in parts] == [range(0, 3), range(3, 6), range(6, 8)]
    assert len(model.step_memory.portions(prepared, effective, whole - 1000)) > 1


@pytest.mark.parametrize("kind", ["llama", "gptj", "bert"])
def test_a_pair_above_the_bound_is_computed_again_on_its_way_back(tiny_model: Any, kind: str) -> None:
    model = model_of(tiny_model(kind), kind)
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare([*some_pairs(3, 1, tokens=2), *some_pairs(1, 1, tokens=20)])
    sizes = [model.step_memory.of(model.subset(prepared, [row]).texts.packed, effective) for row in range(4)]
    portions = model.step_memory.portions(prepared, effective, max(sizes[:3]) + 1)
    assert [one.recomputed for one in portions if 3 in one.rows] == [True]
    assert not portions[0].recomputed
    assert portions[-1].rows == range(3, 4)


def test_a_prompt_with_many_pairs_is_computed_again_rather_than_read_for_each(tiny_model: Any) -> None:
    """Each pair alone would read the prompt again, which is more work than the blocks' second run."""
    model = model_of(tiny_model("llama"), "llama")
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(1, 6, tokens=22))
    one = model.step_memory.of(model.subset(prepared, [0]).texts.packed, effective)
    portions = model.step_memory.portions(prepared, effective, int(1.1 * one))
    assert len(portions) < 6
    assert all(portion.recomputed for portion in portions)


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_what_is_computed_again_holds_no_more_than_its_estimate(
    tiny_model: Any, kind: str, name: str
) -> None:
    """All tensors that are there at a time, on the way back as well: the one block that runs again is in the
    estimate."""
    model = model_of(tiny_model(kind), kind)
    leaves = leaves_of(model)
    prepared = model.prepare(some_pairs(6, 2))
    rates = model.step_memory._recomputed_rates(effective_of(model, leaves))
    assert rates is not None
    with HeldBytes() as held:
        with blocks_recomputed():
            margins = model.margins(prepared, effective_of(model, leaves))
        torch.autograd.grad(margins.sum(), list(leaves.values()))
    estimate = model.step_memory._work(prepared.texts.packed).times(rates)
    factors = sum(leaf.numel() * 4 for leaf in leaves.values())
    assert held.most < (3 if name == "padded" else 1.1) * estimate + 4 * factors


def test_a_model_whose_blocks_can_not_run_again_is_found_out(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(tiny_model("llama"), "llama")
    forward, other = model.tail.forward, torch.tensor(1.0)

    def drifting(packed: Any, effective: MergedWeights) -> Tensor:
        nonlocal other
        other = other * 1.5
        return forward(packed, effective) * other

    monkeypatch.setattr(model.tail, "forward", drifting)
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(2, 1))
    with caplog.at_level("INFO", logger="penchant.common.model.step_memory"):
        portions = model.step_memory.portions(prepared, effective, 1)
    assert [(one.rows, one.recomputed) for one in portions] == [(range(0, 1), False), (range(1, 2), False)]
    assert "can't be computed again" in caplog.text


def test_heads_over_frozen_embeddings_hold_next_to_nothing(tiny_model: Any) -> None:
    config = ModelConfig(base_model=str(tiny_model("bert")))
    model = RewardModel(load_backbone(config, device="cpu"), config, AdapterConfig(share="common"))
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(6, 2))
    assert model.step_memory.of(prepared.texts.packed, effective) == 4 * model.embedding * 24


def test_the_default_adapter_is_counted_by_its_tokens(tiny_model: Any) -> None:
    config = ModelConfig(base_model=str(tiny_model("bert")))
    model = RewardModel(load_backbone(config, device="cpu"), config, AdapterConfig(rank=2))
    assert model.tail.name == "tokenwise"
    effective = effective_of(model, leaves_of(model))
    prepared = model.prepare(some_pairs(6, 2))
    counted = saved(model, prepared, effective)
    estimate = model.step_memory.of(prepared.texts.packed, effective)
    assert 0.9 * counted < estimate < 1.5 * counted
    portions = model.step_memory.portions(prepared, effective, estimate // 3)
    held = [saved(model, model.subset(prepared, one.rows), effective) for one in portions]
    assert len(held) > 2
    assert max(held) <= 1.1 * estimate // 3
