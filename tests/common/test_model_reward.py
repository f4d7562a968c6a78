"""Rewards: what the model reads, pooling, normalisation, the loss, and peft's own answer beside ours."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import write_tiny_model

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import ConfigError
from penchant.common.model.backbone import load_backbone
from penchant.common.model.davidson import bradley_terry
from penchant.common.model.factors import MergedWeights
from penchant.common.model.prompt_form import joined
from penchant.common.model.reward import RewardModel

QV = AdapterConfig(share="AB", target_modules=("q_proj", "v_proj"), layers=(-1,), rank=2, alpha=6.0)
DENSE = AdapterConfig(share="AB", rank=2, alpha=6.0)
TEXTS = [("", "the motion to table the bill"), ("a vote on", "cloture"), ("", "budget")]


def reward_model(folder: Any, adapter: AdapterConfig = DENSE, **settings: Any) -> RewardModel:
    settings = {"normalize": 0.0, **settings}
    model = ModelConfig(base_model=str(folder), **settings)
    return RewardModel(load_backbone(model, device="cpu"), model, adapter)


def factors(model: RewardModel, seed: int = 0) -> MergedWeights:
    split = model.split()
    shared = np.random.default_rng(seed).normal(size=split.shared.size) * 0.3
    return split.merged(shared.astype(np.float32), np.zeros(split.personal.size, np.float32))


def test_joined() -> None:
    assert joined("", "yes") == "yes"
    assert joined("The sky is", " blue") == "The sky is blue"


@pytest.mark.parametrize(("kind", "adapter"), [("bert", DENSE), ("llama", QV)])
def test_rewards_are_those_of_a_plain_peft_model(tiny_model, kind: str, adapter: AdapterConfig) -> None:
    """The same factors in an ordinary peft model, one text at a time, pooled by hand."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    model = reward_model(tiny_model(kind), adapter)
    effective = factors(model)
    found = model.scores(model.prepare_texts(TEXTS), effective)

    base = AutoModel.from_pretrained(tiny_model(kind))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(kind))
    names = [module.name for module in model.adapted_modules]
    plain = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=names)).eval()
    for name, (a, b) in effective.adapters.items():
        layer = plain.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data = a
        layer.lora_B["default"].weight.data = b
    for place, (prompt, response) in enumerate(TEXTS):
        with torch.no_grad():
            states = plain(**tokenizer(joined(prompt, response), return_tensors="pt")).last_hidden_state[0]
        embedding = states[-1] if kind == "llama" else states.mean(0)
        assert found[place].item() == pytest.approx(float(embedding @ effective.head[0]), abs=1e-5)


def test_normalised_embeddings_have_the_length_asked_for(tiny_model) -> None:
    model = reward_model(tiny_model("bert"), normalize=10.0)
    effective = factors(model)
    basis = [MergedWeights(effective.adapters, torch.eye(16)[i : i + 1]) for i in range(16)]
    texts = model.prepare_texts(TEXTS)
    embeddings = torch.stack([model.scores(texts, one) for one in basis], dim=1)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([10.0] * 3)


def test_pooling_can_be_chosen(tiny_model) -> None:
    """A causal model's last state sees all tokens, the mean of one token's states is that token's."""
    last, mean = (reward_model(tiny_model("llama"), QV, pooling=p) for p in ("last", "mean"))
    effective = factors(last)

    def scores(model: RewardModel, *texts: str) -> list[float]:
        return model.scores(model.prepare_texts([("", text) for text in texts]), effective).tolist()

    assert scores(last, "vote") == pytest.approx(scores(mean, "vote"))
    first, second, both = scores(last, "vote", "vote bill", "bill")[0], *scores(last, "vote bill", "bill")
    assert scores(mean, "vote bill") == pytest.approx([(first + second) / 2], abs=1e-5)
    assert both != pytest.approx(second)


def test_the_first_token_of_an_encoder_has_read_the_text(tiny_model) -> None:
    first, last = (reward_model(tiny_model("bert"), pooling=p) for p in ("first", "last"))
    one, more = (
        first.scores(first.prepare_texts([("", text)]), factors(first)) for text in ("the motion", "the bill")
    )
    assert not torch.allclose(one, more)
    there = last.scores(last.prepare_texts([("", "the motion")]), factors(last))
    assert not torch.allclose(one, there)


def test_the_first_token_of_a_causal_model_is_refused(tiny_model) -> None:
    with pytest.raises(ConfigError, match="has read nothing; use last or mean"):
        reward_model(tiny_model("llama"), QV, pooling="first")


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_texts_lose_the_configured_side(tiny_model, side: str) -> None:
    model = reward_model(tiny_model("bert"), max_tokens=2, truncation=side)
    texts = [("", "the motion to"), ("", "motion to"), ("", "the motion")]
    whole, end, start = model.scores(model.prepare_texts(texts), factors(model)).tolist()
    assert whole == pytest.approx(end if side == "left" else start)
    assert end != pytest.approx(start)


def test_an_empty_text_has_a_reward(tiny_model) -> None:
    model = reward_model(tiny_model("llama"), QV)
    assert math.isfinite(model.scores(model.prepare_texts([("", "")]), factors(model)).item())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_texts_that_are_read_alike_have_one_score_to_the_bit(tiny_model, kind: str) -> None:
    """Long texts that differ behind where they are cut: trained on, ranked, and served several at a time."""
    adapter = AdapterConfig(target_modules=("auto",), layers=(0,))  # a tail that runs blocks on many texts
    model = reward_model(tiny_model(kind), adapter, max_tokens=8, truncation="right")
    long = "the motion to table the bill on the budget " * 2
    pairs = [
        SimpleNamespace(prompt="", chosen=f"{word} {long} {word}", rejected=f"{word} {long} the {other} tax")
        for word in ("bill", "tax", "vote", "judge", "cloture")
        for other in ("amendment", "judge")
    ]
    pairs.append(SimpleNamespace(prompt="", chosen="a bill", rejected="a tax"))
    model.warm(pairs)
    prepared, effective = model.prepare(pairs), factors(model)
    assert prepared.texts.count == 5 + 2
    assert model.cache.forwards == 5 + 2
    margins = model.margins(prepared, effective)
    assert margins[:-1].tolist() == [0.0] * 10
    assert margins[-1] != 0
    assert model.margins(model.subset(prepared, [0, 3, 10]), effective)[:2].tolist() == [0.0, 0.0]

    texts = [("", one) for pair in pairs for one in (pair.chosen, pair.rejected)]
    ranked = model.scores(model.prepare_texts(texts), effective)
    assert torch.equal(ranked[0:20:2], ranked[1:20:2])
    assert torch.equal(ranked[0:20:4], ranked[2:20:4])
    assert len(set(ranked.tolist())) == 5 + 2
    assert reward_model(tiny_model(kind), adapter).prepare(pairs).texts.count == 15 + 2  # nothing is cut


def test_rewards_of_one_text_are_one_number_however_wide_the_head_is(tmp_path: Path) -> None:
    """A product of equal rows with a vector differs by a bit between rows from 64 numbers a row on."""
    write_tiny_model("bert", tmp_path, hidden_size=128)
    model = reward_model(tmp_path)
    draws = torch.Generator().manual_seed(5)
    effective = factors(model)
    effective = replace(effective, head=torch.randn(effective.head.shape, generator=draws))
    for count in range(2, 9):
        same = model.scores(model.prepare_texts([("", "the budget")] * count + [("", "a tax")]), effective)
        assert len(set(same.tolist())) == 2, count


def test_each_distinct_text_is_encoded_once(tiny_model) -> None:
    model = reward_model(tiny_model("bert"))
    pairs = [
        SimpleNamespace(prompt="", chosen="bill", rejected="tax"),
        SimpleNamespace(prompt="", chosen="tax", rejected="vote"),
        SimpleNamespace(prompt="", chosen="vote", rejected="bill"),
    ]
    prepared = model.prepare(pairs)
    assert prepared.texts.count == 3
    assert model.cache.forwards == 3
    assert (prepared.chosen.tolist(), prepared.rejected.tolist()) == ([0, 1, 2], [1, 2, 0])

    some = model.subset(prepared, [2])
    assert some.texts.count == 2
    assert model.cache.forwards == 3
    effective = factors(model)
    assert model.margins(some, effective)[0] == pytest.approx(model.margins(prepared, effective)[2].item())


def test_bradley_terry_by_hand() -> None:
    losses = bradley_terry(torch.tensor([0.0, 2.0, -40.0]))
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-2)), 40.0])


def test_lore_keeps_one_embedding_a_text(tiny_model) -> None:
    model = reward_model(tiny_model("bert"), AdapterConfig(share="lore", rank=2))
    assert model.adapted_modules == ()
    assert model.tail.name == "pooled"
    plain = reward_model(tiny_model("bert"))
    split = model.split()
    shared = np.random.default_rng(0).normal(size=split.shared.size).astype(np.float32)
    effective = split.merged(shared, np.ones(2, np.float32))
    zero = {module.name: (torch.zeros(2, 32), torch.zeros(16, 2)) for module in plain.adapted_modules}
    expected = plain.scores(plain.prepare_texts(TEXTS), MergedWeights(zero, effective.head))
    assert torch.allclose(model.scores(model.prepare_texts(TEXTS), effective), expected, atol=1e-5)


def test_bfloat16_base_keeps_float32_factors(tiny_model) -> None:
    exact, half = reward_model(tiny_model("bert")), reward_model(tiny_model("bert"), dtype="bfloat16")
    effective = factors(exact)
    one, other = (m.scores(m.prepare_texts(TEXTS), effective) for m in (exact, half))
    assert other.dtype == torch.float32
    assert torch.allclose(one, other, atol=0.1)
