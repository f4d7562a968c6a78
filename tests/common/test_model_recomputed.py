"""Blocks that run again on the way back: the same scores and gradients, to the bit, for less memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.family_models import FAMILIES, QUERIES, TEXTS, model_of
from support.held_bytes import HeldBytes
from torch import Tensor

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.modules import find_blocks
from penchant.common.model.recomputed import blocks_recomputed
from penchant.common.model.reward import RewardModel


def leaves_of(model: RewardModel) -> dict[str, Tensor]:
    """Factors away from their start, all in training."""
    split, draw = model.split(), np.random.default_rng(1)
    return {
        name: tensor.requires_grad_()
        for layout in (split.shared, split.personal)
        for name, tensor in layout.unflatten(0.1 * draw.normal(size=layout.size).astype(np.float32)).items()
    }


def scores_of(model: RewardModel, leaves: dict[str, Tensor], *, again: bool) -> Tensor:
    split = model.split()
    effective = split.effective(
        {name: leaves[name] for name in split.shared.names},
        {name: leaves[name] for name in split.personal.names},
    )
    with blocks_recomputed(again):
        return model.scores(model.prepare_texts(TEXTS), effective)


def gradients(scores: Tensor, leaves: dict[str, Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, len(scores)) + 0.3
    found = torch.autograd.grad((scores * weights).sum(), list(leaves.values()))
    assert max(float(one.abs().max()) for one in found) > 0
    return list(found)


def assert_the_same_for_less(model: RewardModel) -> None:
    leaves = leaves_of(model)
    found, most = [], []
    for again in (False, True):
        with HeldBytes() as held:
            scores = scores_of(model, leaves, again=again)
            found.append([scores.detach(), *gradients(scores, leaves)])
        most.append(held.most)
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)
    tail: Any = model.tail
    assert most[1] < (0.8 if tail.blocks > 2 else 0.95) * most[0]


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_gradients_are_the_same_to_the_bit(tiny_model: Any, kind: str, name: str) -> None:
    model = model_of(tiny_model(kind), kind)
    tail: Any = model.tail
    assert (tail.name, tail.packing.name, tail.blocks) == ("full", name, 3)
    assert_the_same_for_less(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "bert", "bloom"])
def test_behind_blocks_that_are_kept(tiny_model: Any, kind: str) -> None:
    model = model_of(tiny_model(kind), kind, layers=(1, 2))
    tail: Any = model.tail
    assert (tail.name, tail.blocks) == ("blocks", 2)
    assert_the_same_for_less(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "modernbert", "gptj"])
def test_with_parts_of_the_base_in_training(tiny_model: Any, kind: str) -> None:
    config = ModelConfig(base_model=str(tiny_model(kind)), normalize=0, max_tokens=32)
    targets = QUERIES.get(kind, ("q_proj", "v_proj"))
    adapter = AdapterConfig(share="AB", rank=2, target_modules=targets, layers=(), share_base=("norm",))
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    assert model.base
    assert_the_same_for_less(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("layers", [(), (1, 2)])
def test_with_responses_log_probabilities(tiny_writer: Any, kind: str, layers: Any) -> None:
    config = ModelConfig(base_model=str(tiny_writer(kind)), objective="dpo", beta=0.1, max_tokens=32)
    targets = QUERIES.get(kind, ("q_proj", "v_proj"))
    adapter = AdapterConfig(share="AB", rank=2, target_modules=targets, layers=layers)
    model = RewardModel(load_backbone(config, device="cpu"), config, adapter)
    assert model.tail.name == "responses"
    assert_the_same_for_less(model)


@pytest.mark.parametrize("kind", ["llama", "gptj", "bloom"])
def test_the_way_back_may_be_in_another_thread(tiny_model: Any, kind: str) -> None:
    """As it is on a GPU: there nothing is known of the row that was read, nor of what was wanted."""
    model = model_of(tiny_model(kind), kind)
    leaves = leaves_of(model)
    expected = gradients(scores_of(model, leaves, again=False), leaves)
    scores = scores_of(model, leaves, again=True)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(gradients, scores, leaves).result()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_each_block_runs_again_once_and_only_where_that_is_wanted(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("llama"), "llama")
    kind: Any = type(find_blocks(model._network.module)[1][0].self_attn)
    runs: list[None] = []
    plain = kind.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(None)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counted)
    leaves = leaves_of(model)
    for again, wanted in ((False, 6), (True, 12), (False, 6)):  # three blocks, two rows
        runs.clear()
        gradients(scores_of(model, leaves, again=again), leaves)
        assert len(runs) == wanted


def test_two_ways_back_through_one_pass(tiny_model: Path | Any) -> None:
    model = model_of(tiny_model("llama"), "llama")
    leaves = leaves_of(model)
    scores = scores_of(model, leaves, again=True)
    first, second = (
        torch.autograd.grad(scores.sum(), list(leaves.values()), retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
