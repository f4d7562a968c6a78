"""What is kept of a text, how often it is computed, and that the fast paths give the slow one's numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model.activation_cache import PrefixCache
from penchant.common.model.backbone import load_backbone
from penchant.common.model.log_probability import ResponseTokens
from penchant.common.model.reward import RewardModel
from penchant.common.model.tails import Activations

DENSE = {"target_modules": ("output.dense",), "layers": (-1,)}
FEED_FORWARD = {"target_modules": ("intermediate.dense", "output.dense"), "layers": (-1,)}
LAST = {"target_modules": ("query_key_value",), "layers": (-1,)}
QV = {"target_modules": ("q_proj", "v_proj"), "layers": (-2, -1)}
TEXTS = [
    ("", "the motion to table the bill"),
    ("a vote on", "cloture"),
    ("", "budget"),
    ("", "tax of the judge on a bill to vote on the budget of the table"),
    ("", "judge the judge"),
]


def both(
    base: Any, adapter: dict[str, Any], share: str = "AB", **settings: Any
) -> tuple[RewardModel, RewardModel]:
    """The model with its fast tail, and with the full path."""
    model = ModelConfig(base_model=str(base), dtype="float32", **settings)
    config = AdapterConfig(share=share, rank=2, alpha=4.0, **adapter)
    fast = RewardModel(load_backbone(model, device="cpu"), model, config)
    slow = RewardModel(load_backbone(model, device="cpu"), model, config, full=True)
    return fast, slow


def scores_and_gradients(model: RewardModel, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, list[Tensor]]:
    split = model.split()
    vector = np.random.default_rng(1).normal(size=split.shared.size).astype(np.float32) * 0.1
    leaves = {name: tensor.requires_grad_() for name, tensor in split.shared.unflatten(vector).items()}
    scores = model.scores(model.prepare_texts(texts), split.effective(leaves, {}))
    weights = torch.linspace(-1, 1, len(texts)) + 0.3
    return scores.detach(), list(torch.autograd.grad((scores * weights).sum(), list(leaves.values())))


def scored(model: RewardModel, texts: Sequence[tuple[str, str]]) -> Tensor:
    split, vectors = model.split(), np.random.default_rng(1)
    shared, personal = (
        layout.unflatten(vectors.normal(size=layout.size).astype(np.float32) * 0.1)
        for layout in (split.shared, split.personal)
    )
    return model.scores(model.prepare_texts(texts), split.effective(shared, personal))


def assert_same(fast: RewardModel, slow: RewardModel, texts: Sequence[tuple[str, str]]) -> None:
    (found, gradients), (expected, slow_gradients) = (scores_and_gradients(m, texts) for m in (fast, slow))
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, slow_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * max(1.0, float(other.abs().max())))


# --- the same numbers -----------------------------------------------------------------------------

CASES = [
    ("bert", DENSE, "tokenwise"),
    ("bert", FEED_FORWARD, "blocks"),
    ("bert", {"target_modules": ("output.dense",), "layers": (-2,)}, "blocks"),  # not the last block
    ("bert", {"target_modules": ("attention.output.dense",), "layers": (-1,)}, "blocks"),  # not its end
    ("bert", {"target_modules": ("query", "value"), "layers": ()}, "full"),  # ids are all that is kept
    ("roberta", DENSE, "tokenwise"),  # its positions depend on the padding id
    ("llama", QV, "blocks"),
    ("llama", {"target_modules": ("down_proj",), "layers": (-1,)}, "blocks"),
    ("gptj", {"target_modules": ("q_proj", "v_proj"), "layers": (-1,)}, "blocks"),
]


POOLED = [(*case, pooling) for case in CASES for pooling in ("mean", "first", "last")]


@pytest.mark.parametrize(
    ("kind", "adapter", "tail", "pooling"),
    [case for case in POOLED if case[0] in ("bert", "roberta") or case[-1] != "first"],
)
def test_fast_is_slow(tiny_model, kind: str, adapter: dict[str, Any], tail: str, pooling: str) -> None:
    fast, slow = both(tiny_model(kind), adapter, pooling=pooling)
    assert (fast.tail.name, slow.tail.name) == (tail, "full")
    assert_same(fast, slow, TEXTS)


SENTENCES = [
    ("", "Motion to table the amendment offered by Senator Byrd to the budget resolution."),
    ("", "On the cloture motion"),
    ("Shall the nomination be confirmed?", "The nomination of a judge of the circuit court is confirmed."),
    ("", "To provide funds for veterans' health care, for homeland security, and for other purposes."),
]


@pytest.mark.parametrize(("adapter", "tail"), [(DENSE, "tokenwise"), (FEED_FORWARD, "blocks")])
def test_fast_is_slow_for_minilm(adapter: dict[str, Any], tail: str) -> None:
    fast, slow = both("all-MiniLM-L6-v2", adapter)
    assert fast.tail.name == tail
    assert_same(fast, slow, SENTENCES)


@pytest.mark.slow
def test_fast_is_slow_for_smollm2() -> None:
    fast, slow = both("smollm2-135m", QV)
    assert fast.tail.name == "blocks"
    assert_same(fast, slow, SENTENCES)


def test_what_fits_no_fast_path_runs_in_full(tiny_model, monkeypatch, caplog) -> None:
    """A model whose blocks can't be entered is run as a whole, and the log says so."""
    monkeypatch.setattr("penchant.common.model.tails.BlockTail.precompute", lambda *_: [()])
    with caplog.at_level("INFO"):
        fast, slow = both(tiny_model("llama"), QV)
    assert fast.tail.name == "full"
    assert "every step runs all of it" in caplog.text
    assert_same(fast, slow, TEXTS)


# --- computed once --------------------------------------------------------------------------------


def test_the_frozen_part_runs_once_a_text(tiny_model, monkeypatch) -> None:
    """Embeddings are looked up when a text is new and never again, however often it is scored."""
    fast, _ = both(tiny_model("bert"), DENSE)
    looked_up: list[int] = []
    forward = torch.nn.Embedding.forward

    def watch(self: torch.nn.Embedding, ids: Tensor) -> Tensor:
        looked_up.append(ids.shape[0])
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", watch)
    scores_and_gradients(fast, TEXTS)
    assert fast.cache.forwards == len(TEXTS)
    assert looked_up
    looked_up.clear()
    scores_and_gradients(fast, TEXTS)
    scores_and_gradients(fast, TEXTS[::-1])
    assert fast.cache.forwards == len(TEXTS)
    assert looked_up == []


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_pooling_by_one_token_keeps_one_token_a_text(tiny_model, pooling: str) -> None:
    fast, _ = both(tiny_model("bert"), DENSE, pooling=pooling)
    assert fast.prepare_texts(TEXTS).packed.inputs.shape == (len(TEXTS), 32)


def test_a_kept_product_is_not_used_for_another_a(tiny_model) -> None:
    """The product with a frozen A is kept between steps; a changed or another A must not meet it."""
    fast, slow = both(tiny_model("bert"), DENSE)
    split = fast.split()
    texts, slow_texts = fast.prepare_texts(TEXTS), slow.prepare_texts(TEXTS)
    vector = np.random.default_rng(0).normal(size=split.shared.size).astype(np.float32)
    tensors = split.shared.unflatten(vector)
    a = tensors[f"{fast.adapted_modules[0].name}.lora_A"]
    for change in (lambda: None, lambda: a.mul_(3), lambda: a.requires_grad_(), lambda: a.data.add_(1)):
        change()
        effective = split.effective(tensors, {})
        for _ in range(2):
            assert torch.allclose(
                fast.scores(texts, effective), slow.scores(slow_texts, effective), atol=1e-4
            )


def test_batches_pad_to_their_own_longest(tiny_model) -> None:
    _, padded = both(tiny_model("llama"), QV)
    texts = [("", "budget " * n) for n in (*[2] * 40, *[30] * 8)]
    shapes = [tuple(batch.ids.shape) for batch in padded.prepare_texts(texts).packed.batches]
    assert shapes == [(32, 2), (16, 30)]


def test_what_is_trained_on_has_the_bits_of_each_text_alone(tiny_model) -> None:
    """Whatever was prepared with it, and though it was ranked with others before."""
    alone, company = both(tiny_model("bert"), DENSE)[0], both(tiny_model("bert"), DENSE)[0]
    company.prepare_texts(TEXTS[::-1])
    pairs = [SimpleNamespace(prompt=p, chosen=r, rejected="tax") for p, r in TEXTS]
    company.prepare(pairs)
    for pair in pairs:
        one, other = (m.prepare([pair]).texts.packed for m in (alone, company))
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.centred, other.centred)


RANKED = [("bert", DENSE), ("bert", FEED_FORWARD), ("llama", QV), ("gptj", QV), ("bloom", LAST)]


@pytest.mark.parametrize(("kind", "adapter"), RANKED)
@pytest.mark.parametrize("share", ["AB", "common"])
def test_texts_ranked_together_score_what_each_scores_alone(tiny_model, kind, adapter, share) -> None:
    together, alone = (both(tiny_model(kind), adapter, share=share)[0] for _ in range(2))
    texts = [(prompt, response) for prompt in ("", "the motion to ") for _, response in TEXTS]
    found = scored(together, texts)
    expected = torch.cat([scored(alone, [text]) for text in texts])
    assert together.cache.forwards == alone.cache.forwards == len(texts)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "adapter"), RANKED)
def test_ranking_reads_no_token_twice_and_none_that_fills_up(tiny_model, monkeypatch, kind, adapter) -> None:
    """Of a causal model the tokens that candidates begin with are read once for all."""
    fast, _ = both(tiny_model(kind), adapter)
    read: list[int] = []
    forward = torch.nn.Embedding.forward

    def watch(self: torch.nn.Embedding, ids: Tensor) -> Tensor:
        read.append(ids.numel())
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", watch)
    prompt = "the motion to table the bill "
    candidates = [(prompt, response) for response in ("a vote", "cloture on the tax of the judge", "budget")]
    lengths, begun = fast.lengths(candidates), fast.lengths([(prompt, "")])[0]
    fast.prepare_texts(candidates)
    causal = kind in ("llama", "gptj")
    padded = 3 * max(lengths)
    assert max(read) == (padded if kind == "bloom" else sum(lengths) - 2 * begun * causal)


def test_warming_depends_on_the_set_of_texts_alone(tiny_model) -> None:
    pairs = [SimpleNamespace(prompt=p, chosen=r, rejected=r) for p, r in TEXTS]
    one, other = both(tiny_model("bert"), DENSE)[0], both(tiny_model("bert"), DENSE)[0]
    one.warm(pairs)
    other.warm([*pairs[::-1], *pairs], threads=2)
    assert one.cache.forwards == other.cache.forwards == len(TEXTS)
    for text in TEXTS:
        first, second = (m.prepare_texts([text]).packed for m in (one, other))
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.centred, second.centred)
    one.warm(pairs)
    assert one.cache.forwards == len(TEXTS)


# --- the cache ------------------------------------------------------------------------------------


class Words:
    """A tail for the cache's own tests: keeps as many floats as a text has words, slowly."""

    name = "words"

    def __init__(self, seconds: float = 0.0) -> None:
        self.captured: list[int] = []
        self.calls: list[list[int]] = []
        self.seconds = seconds

    def precompute(self, texts: Sequence[Tensor]) -> list[Activations]:
        time.sleep(self.seconds)
        self.calls.append([len(ids) for ids in texts])
        self.captured += self.calls[-1]
        return [(ids.float(),) for ids in texts]


def words(text: str) -> Tensor:
    if not text:
        raise ValueError("nothing there")
    return torch.tensor([ord(word[0]) for word in text.split()])


def test_the_least_recently_used_text_goes_first() -> None:
    cache = PrefixCache(words, Words(), limit=4 * 5)  # five words
    cache.get(["a a", "b b"])
    cache.get(["a a"])
    cache.get(["c c"])  # b goes
    assert (len(cache), cache.held, cache.forwards) == (2, 16, 3)
    cache.get(["a a", "c c"])
    assert cache.forwards == 3
    cache.get(["b b"])
    assert cache.forwards == 4
    assert len(cache.get(["a " * 9])[0][0]) == 9  # more than fits is answered all the same


def test_warming_leaves_what_does_not_fit() -> None:
    cache = PrefixCache(words, Words(), limit=4 * 5)
    cache.warm(["a a", "b b", "c c"])
    assert (len(cache), cache.forwards) == (0, 0)
    cache.warm(["a a", "b b"])
    assert (len(cache), cache.forwards) == (2, 2)


def test_two_threads_compute_a_text_once() -> None:
    tail = Words(seconds=0.02)
    cache = PrefixCache(words, tail)
    texts = ["a", "b b", "c c c"]
    threads = [threading.Thread(target=cache.get, args=(order,)) for order in (texts, texts[::-1], texts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tail.captured) == [1, 2, 3]


def test_texts_of_which_the_same_is_read_are_computed_and_kept_once() -> None:
    """The words of a text are read by their first letters, so `able` reads as `a`."""
    tail = Words()
    cache = PrefixCache(words, tail)
    cache.warm(["able", "a", "b"])
    assert (sorted(tail.captured), len(cache), cache.held) == ([1, 1, 1], 2, 8)  # one of them a measurement
    one, other = cache.get(["any", "a"])
    assert one[0] is other[0]
    together = cache.together(["c c", "cc cd", "ace"])
    assert together[0][0] is together[1][0]
    assert together[2][0] is one[0]
    assert cache.forwards == 3
    assert cache.key("able") == cache.key("a") != cache.key("b")
    assert cache.key("a a") not in (cache.key("a"), cache.key("b b"))


def test_a_response_is_kept_apart_by_where_it_begins() -> None:
    cache = PrefixCache(lambda text: ResponseTokens(words(text[0] + text[1]), len(text[0].split())), Words())
    assert cache.key(("a ", "b c")) != cache.key(("a b ", "c"))
    assert cache.key(("a ", "b c")) == cache.key(("any ", "bill c"))


def test_few_keys_are_remembered_where_little_may_be_kept() -> None:
    looked_at: list[str] = []

    def seen(text: str) -> Tensor:
        looked_at.append(text)
        return words(text)

    cache = PrefixCache(seen, Words(), limit=2 * 4096)
    for text in ("a", "b", "b", "c", "b", "a"):
        cache.key(text)
    assert looked_at == ["a", "b", "c", "a"]


@pytest.mark.parametrize("ask", [PrefixCache.get, PrefixCache.together])
def test_a_failed_text_can_be_asked_for_again(ask: Any) -> None:
    cache = PrefixCache(words, Words())
    for _ in range(2):
        with pytest.raises(ValueError, match="nothing there"):
            ask(cache, ["a", ""])
    assert [len(entry[0]) for entry in ask(cache, ["a", "b b"])] == [1, 2]


def test_what_was_computed_in_company_is_used_again_but_not_for_training() -> None:
    tail = Words()
    cache = PrefixCache(words, tail)
    assert [len(entry[0]) for entry in cache.together(["a", "b b", "a"])] == [1, 2, 1]
    assert (tail.calls, cache.forwards, cache.held) == ([[1, 2]], 2, 12)
    cache.together(["b b", "c c c"])
    assert tail.calls[1:] == [[3]]
    cache.get(["a", "b b"])  # alone, and kept in place of what was computed in company
    assert tail.calls[2:] == [[1], [2]]
    assert (len(cache), cache.held) == (3, 24)
    cache.together(["c c c", "a", "b b"])
    assert len(tail.calls) == 4


def test_two_threads_rank_a_text_once() -> None:
    tail = Words(seconds=0.02)
    cache = PrefixCache(words, tail)
    texts = ["a", "b b", "c c c", "d d d d"]
    asked = (texts, texts[::-1], texts[1:], texts[:2])
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = [len(entry[0]) for entry in cache.together(asked[number])]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tail.captured) == [1, 2, 3, 4]
    assert [found[number] for number in range(len(asked))] == [[len(t.split()) for t in a] for a in asked]
