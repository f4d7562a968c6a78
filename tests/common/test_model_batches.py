"""Texts in rows give what each text gives alone, gradients included, whatever the family, rule and pooling;
and where a model can't bear that, it is found out when the model is loaded."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.family_models import FAMILIES, PROMPTS, TEXTS, model_of
from support.tiny_models import write_tiny_model
from torch import Tensor

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model import attention_reach, batches, tails
from penchant.common.model.factors import Split
from penchant.common.model.reward import RewardModel
from penchant.common.shares import SHARES


def packing(model: RewardModel) -> str:
    tail: Any = model.tail
    return str(tail.packing.name)


def tokens_read(model: RewardModel) -> int:
    return sum(batch.ids.numel() for batch in model.prepare_texts(TEXTS).packed.batches)


def found(model: RewardModel, share: str, one_by_one: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Scores of the texts, and the gradients of a weighted sum of them in all factors."""
    split = model.split() if share == "AB" else split_of(model, share)
    vectors = np.random.default_rng(1)
    leaves = {
        name: tensor.requires_grad_()
        for layout in (split.shared, split.personal)
        for name, tensor in layout.unflatten(
            0.2 * vectors.normal(size=layout.size).astype(np.float32)
        ).items()
    }
    mine = {name: leaves[name] for name in split.shared.names}
    effective = split.effective(mine, {name: leaves[name] for name in split.personal.names})
    given = [[text] for text in TEXTS] if one_by_one else [TEXTS]
    scores = torch.cat([model.scores(model.prepare_texts(batch), effective) for batch in given])
    weights = torch.linspace(-1, 1, len(TEXTS)) + 0.3
    scored = [tensor for name, tensor in leaves.items() if name != split.spread_tensor]  # no part of a score
    return scores.detach(), list(torch.autograd.grad((scores * weights).sum(), scored))


def split_of(model: RewardModel, share: str) -> Split:
    return Split.of(model.adapted_modules, model.embedding, AdapterConfig(share=share, rank=2, alpha=4.0))


def assert_same(fast: RewardModel, slow: RewardModel, share: str = "AB") -> None:
    """The slow one reads each text alone, whole."""
    (scores, gradients), (expected, slow_gradients) = found(fast, share), found(slow, share, one_by_one=True)
    assert torch.allclose(scores, expected, atol=1e-5, rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in slow_gradients)
    assert largest > 0
    for one, other in zip(gradients, slow_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_rows_give_what_each_text_gives_alone(tiny_model: Any, kind: str, name: str, pooling: str) -> None:
    fast = model_of(tiny_model(kind), kind, pooling=pooling)
    slow = model_of(tiny_model(kind), kind, pooling=pooling, full=True)
    assert (fast.tail.name, packing(fast), packing(slow)) == ("full", name, "padded")
    assert_same(fast, slow)


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_a_prompt_is_read_once_where_the_model_allows_it(tiny_model: Any, kind: str, name: str) -> None:
    model = model_of(tiny_model(kind), kind)
    lengths = [len(f"{prompt}{response}".split()) for prompt, response in TEXTS]
    prompts = [len(prompt.split()) for prompt in PROMPTS]
    if kind in ("bert", "modernbert"):
        assert tokens_read(model) == sum(lengths)
    elif name == "padded":
        assert tokens_read(model) > sum(lengths)
    else:  # each prompt once, but for its last token where it is a text of its own as well
        assert tokens_read(model) == sum(lengths) - 4 * (prompts[0] - 1) - 3 * prompts[1]


@pytest.mark.parametrize("share", SHARES.names())
@pytest.mark.parametrize("kind", ["llama", "gptj"])
def test_every_share_rule_has_its_gradients(tiny_model: Any, kind: str, share: str) -> None:
    fast, slow = (model_of(tiny_model(kind), kind, full=full) for full in (False, True))
    if split_of(fast, share).adapted_modules:
        assert_same(fast, slow, share)


@pytest.mark.parametrize(("heads", "fewer"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize(("causal", "reach"), [(True, 7), (False, 7), (True, 12)])
@pytest.mark.parametrize("scaling", [None, 0.2])
def test_attention_by_products_is_that_of_torch(
    heads: int, fewer: int, causal: bool, reach: int, scaling: float | None
) -> None:
    """Values and gradients, in numbers that show a difference."""
    draws = torch.Generator().manual_seed(heads + reach)
    shapes = ((1, heads, 7, 8), (1, fewer, reach, 8), (1, fewer, reach, 8))
    query, key, value = parts = [torch.randn(one, generator=draws).requires_grad_() for one in shapes]
    seen = torch.full((7, reach), -torch.inf).triu(reach - 7 + 1)[None, None] if reach > 7 else None
    found = batches._attend_by_products(query, key, value, seen, causal, scaling)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, seen, is_causal=causal and seen is None, scale=scaling, enable_gqa=True
    )
    weights = torch.randn(found.shape, generator=draws)
    assert torch.allclose(found, expected, atol=1e-6)
    gradients = [torch.autograd.grad((one * weights).sum(), parts) for one in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("size", "bias"), [(1.0, 0.0), (3.0, 0.0), (1.0, 4.0)])
def test_strong_attention_in_16_bits_is_as_near_to_float32_as_torch_s_own(size: float, bias: float) -> None:
    """Large queries and keys, and keys that all have a part alike: what is rounded before a softmax would be
    seen there."""
    draws = torch.Generator().manual_seed(0)
    query, key = (size * 3 * torch.randn(1, 2, 64, 16, generator=draws) + bias for _ in range(2))
    value, weights = (torch.randn(1, 2, 64, 16, generator=draws) for _ in range(2))
    half = [part.bfloat16() for part in (query, key, value)]

    def gradients(given: list[Tensor], products: bool) -> list[Tensor]:
        q, k, v = parts = [part.clone().requires_grad_() for part in given]
        if products:
            found = batches._attend_by_products(q, k, v, None, True, None)
        else:
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return [found, *torch.autograd.grad((found.float() * weights).sum(), parts)]

    expected = gradients([part.float() for part in half], False)
    for one, theirs, exact in zip(gradients(half, True), gradients(half, False), expected, strict=True):
        error, usual = ((got.float() - exact).norm() / exact.norm() for got in (one, theirs))
        assert error < max(2 * usual, 0.01)


def test_products_are_taken_where_they_are_faster(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gradients go back through numbers of 16 bits, and pieces are short; else torch's attention."""
    taken: list[int] = []
    products = batches._attend_by_products
    monkeypatch.setattr(
        batches, "_attend_by_products", lambda *given: taken.append(given[0].shape[2]) or products(*given)
    )
    half, whole = (model_of(tiny_model("llama"), "llama", dtype=dtype) for dtype in ("bfloat16", "float32"))
    found(whole, "AB")
    assert not taken
    scores, _ = found(half, "AB")
    assert taken
    monkeypatch.setattr(batches, "_PRODUCTS_MOST", 0)
    taken.clear()
    assert torch.allclose(found(half, "AB")[0], scores, atol=0.05)
    with torch.no_grad():
        half.scores(half.prepare_texts(TEXTS), half.split().merged(*half.split().initial(0)))
    assert not taken


@pytest.mark.parametrize("kind", ["llama", "gptj", "bert"])
def test_what_lies_below_the_first_adapted_block_is_kept(tiny_model: Any, kind: str) -> None:
    fast, slow = (model_of(tiny_model(kind), kind, full=full, layers=(-2, -1)) for full in (False, True))
    assert (fast.tail.name, packing(fast)) == ("blocks", "mask" if kind == "gptj" else "pieces")
    assert_same(fast, slow)


NARROW = [
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}),
    ("modernbert", {"local_attention": 8}),
    ("modernbert", {"local_attention": 4, "global_attn_every_n_layers": 2}),
]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layers", [(), (-1,)])
@pytest.mark.parametrize(("kind", "window"), NARROW)
def test_a_window_shorter_than_the_texts_is_cut_out_of_each(
    tmp_path: Path, kind: str, window: dict[str, Any], layers: Any, pooling: str
) -> None:
    """Also where texts have a beginning in common, that reaches out of the window."""
    write_tiny_model(kind, tmp_path, **window)
    fast, slow = (
        model_of(tmp_path, kind, full=full, layers=layers, pooling=pooling) for full in (False, True)
    )
    assert packing(fast) == "pieces"
    assert_same(fast, slow)
    longest = max(len(fast._tokens(prompt + response)) for prompt, response in TEXTS)
    assert longest > 2 * max(one for one in window.values() if isinstance(one, int))


@pytest.mark.parametrize(("kind", "window"), [NARROW[0], NARROW[2]])
def test_a_window_is_cut_out_of_contexts_of_responses(
    tmp_path: Path, kind: str, window: dict[str, Any]
) -> None:
    write_tiny_model(kind, tmp_path, writes=True, **window)
    settings = {"objective": "dpo", "template": "none", "normalize": ModelConfig.normalize}
    fast, slow = (model_of(tmp_path, kind, full=full, **settings) for full in (False, True))
    assert (fast.tail.name, packing(fast)) == ("responses", "pieces")
    assert_same(fast, slow)


def test_windows_are_looked_at_once_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model("mistral", tmp_path, sliding_window=8)
    looked: list[Any] = []
    real = attention_reach.reaches_of
    monkeypatch.setattr(tails, "reaches_of", lambda network: looked.append(network) or real(network))
    assert model_of(tmp_path, "mistral").stacked is not None
    assert len(looked) == 1
    (tmp_path / "wide").mkdir()
    write_tiny_model("mistral", tmp_path / "wide", sliding_window=64)
    assert packing(model_of(tmp_path / "wide", "mistral")) == "pieces"
    assert len(looked) == 1


@pytest.mark.parametrize(("kind", "window"), NARROW)
def test_a_window_that_is_forgotten_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, window: dict[str, Any]
) -> None:
    """A probe text is longer than it."""
    write_tiny_model(kind, tmp_path, **window)
    monkeypatch.setattr(tails, "reaches_of", lambda _: {})
    assert packing(model_of(tmp_path, kind)) == "padded"


@pytest.mark.parametrize(
    ("kind", "window", "said"),
    [
        (
            "gpt_neo",
            {"attention_types": [[["local"], 3]], "window_size": 8},
            8,
        ),  # masks that nobody hands over
        ("gemma2", {"sliding_window": 8}, 8),  # an attention that is not torch's
        ("mistral", {"sliding_window": 31}, 31),  # found out over twice as many tokens: too many here
    ],
)
def test_a_window_that_is_not_known_keeps_texts_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, kind: str, window: dict[str, Any], said: int
) -> None:
    """No tiny text would tell: it is seen from the model's settings, and said with what spares it."""
    monkeypatch.setattr(tails, "WINDOW_MOST", 30)
    write_tiny_model(kind, tmp_path, **window)
    with caplog.at_level("INFO"):
        fast = model_of(tmp_path, kind)
    assert packing(fast) == "padded"
    assert f"this base model's window of {said}: they are read padded" in caplog.text
    assert f"--max-tokens {said} spares that" in caplog.text
    assert_same(fast, model_of(tmp_path, kind, full=True))


def test_an_attention_that_mixes_what_it_should_not_is_found_out(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("penchant.common.model.batches.PackedRow.running", _running_unseen)
    monkeypatch.setattr("penchant.common.model.batches._mask", lambda *_: None)
    with caplog.at_level("INFO"):
        fast = model_of(tiny_model("llama"), "llama")
    assert packing(fast) == "padded"
    assert "does not bear texts in one row" in caplog.text


def test_long_texts_turn_no_short_ones_where_a_model_reads_both_differently(tmp_path: Path) -> None:
    """LongRoPE looks at the longest text of a batch. All probe texts are on one side of what it turns at."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [16.0] * 4,
        "original_max_position_embeddings": 12,
    }
    write_tiny_model("phi3", tmp_path, rope_parameters=rope, original_max_position_embeddings=12)
    fast, slow = (model_of(tmp_path, "phi3", full=full, pooling="last") for full in (False, True))
    lengths = {len(fast._tokens(prompt + response)) for prompt, response in TEXTS}
    assert min(lengths) < 12 < max(lengths)
    assert_same(fast, slow)
    assert packing(fast) == "padded"


def test_neighbours_are_taken_as_far_as_their_sizes_allow() -> None:
    assert list(batches.within([3, 3, 3, 9, 1, 1], 6)) == [range(2), range(2, 3), range(3, 4), range(4, 6)]
    assert list(batches.within([], 6)) == []
    assert list(batches.within([1.5] * 4, 6)) == [range(4)]


def _running_unseen(row: Any) -> Any:
    return contextlib.nullcontext()


def test_the_last_feed_forward_part_runs_on_the_pooled_tokens(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("llama"), "llama", pooling="last")
    seen: list[int] = []
    forward = torch.nn.Linear.forward

    def watch(self: torch.nn.Linear, states: Tensor) -> Tensor:
        if self.in_features == 32:  # down_proj
            seen.append(states.shape[1])
        return forward(self, states)

    monkeypatch.setattr(torch.nn.Linear, "forward", watch)
    found(model, "AB")
    assert seen == [64, 64, len(TEXTS) - 1, 1, 1, 1]  # a row of all texts but one, and that one
