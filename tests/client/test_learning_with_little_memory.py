"""Training and judging with memory for a few texts, and a disk: the same as with memory for all of them."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import WORDS

from penchant.client.learning.laplace import Laplace, Prior
from penchant.client.learning.model_cache import device_models
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import AdapterConfig, ModelConfig, TrainingConfig
from penchant.common.data.preferences import Preference
from penchant.common.model import reward
from penchant.common.model.reward import RewardModel, load_reward_model
from penchant.common.model.state_store import StateStore


def some_pairs(count: int = 24) -> list[Preference]:
    """Pairs over distinct texts of 3 to 14 words that tiny models know; some are ties."""
    draw = random.Random(0)
    return [
        Preference(
            " ".join(draw.choices(WORDS, k=3)) + " ",
            " ".join(draw.choices(WORDS, k=draw.randint(1, 11))) + " bill",
            " ".join(draw.choices(WORDS, k=draw.randint(1, 11))) + " tax",
            tie="equal" if number % 5 == 4 else "",
        )
        for number in range(count)
    ]


KINDS = {
    "tokenwise": ("bert", "A"),
    "blocks": ("llama", "A"),
    "pooled": ("bert", "lore"),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request: Any, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(the tail's name, a model with all in memory, one with a few kB and a disk, whose pieces are small)."""
    family, share = KINDS[request.param]
    own = ("auto",) if family == "llama" else ("output.dense",)
    adapter = AdapterConfig(share=share, target_modules=own)
    settings = ModelConfig(base_model=str(tiny_model(family)), max_tokens=24)
    few = 200 if request.param == "pooled" else 8000
    return (
        request.param,
        load_reward_model(settings, adapter, device="cpu"),
        load_reward_model(
            settings,
            adapter,
            device="cpu",
            cache_bytes=few,
            pack_bytes=few,
            disk=StateStore(tmp_path_factory.mktemp("states")),
        ),
    )


def trainer(model: RewardModel, **changes: Any) -> tuple[LocalTrainer, Any, Any]:
    split = model.split()
    shared, personal = split.initial(0)
    moved = torch.randn(len(personal), generator=torch.Generator().manual_seed(1)).numpy() * 0.1
    settings = TrainingConfig(lr_shared=0.02, lr_personal=0.02, local_epochs=2, **changes)
    return LocalTrainer(model, split, settings), shared, personal + moved


def test_the_tail_is_the_one_that_is_meant(both: Any) -> None:
    name, plenty, little = both
    assert plenty.tail.name == little.tail.name == name


@pytest.mark.parametrize("changes", [{}, {"batch_size": 5}, {"micro_batch_size": 3}], ids=str)
def test_training_with_a_disk_has_the_same_bits_and_computes_each_text_once(
    both: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    _, plenty, little = both
    monkeypatch.setattr(little, "pack_bytes", plenty.pack_bytes)
    pairs, before = some_pairs(), little.cache.forwards
    learned = []
    for model in (plenty, little):
        own, shared, personal = trainer(model, **changes)
        learned.append(own.train(shared, personal, model.prepare(pairs), seed=3))
    one, other = learned
    assert one.shared_update.tobytes() == other.shared_update.tobytes()
    assert one.personal.tobytes() == other.personal.tobytes()
    assert (one.weight, one.steps) == (other.weight, other.steps)
    assert one.before.loss_sum == pytest.approx(other.before.loss_sum, rel=1e-6)
    assert little.cache.forwards == 48
    assert before in (0, 48)
    assert little.cache.held <= little.cache._limit


@pytest.mark.parametrize("changes", [{}, {"batch_size": 5}, {"micro_batch_size": 3}], ids=str)
def test_training_piece_by_piece_comes_to_the_same(both: Any, changes: dict[str, int]) -> None:
    """Frozen states of no more than `pack_bytes` lie in one piece at a time, and gradients are summed."""
    _, plenty, little = both
    pairs = some_pairs()
    learned, packed = [], list[int]()
    for model in (plenty, little):
        own, shared, personal = trainer(model, optimizer="sgd", **changes)
        prepared = model.prepare(pairs)
        own.train(shared, personal, prepared, seed=3)  # what a step holds is measured once, on other texts
        collate = model.tail.collate
        with pytest.MonkeyPatch.context() as patch:
            if model is little:
                patch.setattr(
                    model.tail,
                    "collate",
                    lambda parts, real=collate: packed.append(_bytes(parts)) or real(parts),
                )
            learned.append(own.train(shared, personal, prepared, seed=3))
    one, other = learned
    largest = max(little.subset(prepared, [row]).state_bytes for row in range(24))
    assert 0 < max(packed) <= max(little.pack_bytes, largest) < prepared.state_bytes / 3
    assert np.allclose(one.shared_update, other.shared_update, rtol=1e-4, atol=1e-6)
    assert np.allclose(one.personal, other.personal, rtol=1e-4, atol=1e-6)
    assert np.abs(one.shared_update).max() > 1e-4
    assert one.before.loss_sum == pytest.approx(other.before.loss_sum, rel=1e-6)


def _bytes(parts: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part)


def test_a_full_disk_costs_time_and_no_bit(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refused)
    settings, adapter = (
        ModelConfig(base_model=str(tiny_model("bert")), max_tokens=24),
        AdapterConfig(share="A"),
    )
    plenty = load_reward_model(settings, adapter, device="cpu")
    little = load_reward_model(settings, adapter, device="cpu", cache_bytes=8000, disk=StateStore(tmp_path))
    learned = []
    for model in (plenty, little):
        own, shared, personal = trainer(model, batch_size=5)
        learned.append(own.train(shared, personal, model.prepare(some_pairs()), seed=3))
    assert learned[0].shared_update.tobytes() == learned[1].shared_update.tobytes()
    assert learned[0].personal.tobytes() == learned[1].personal.tobytes()
    assert (plenty.cache.forwards, little.cache.forwards > 100) == (48, True)


def test_judging_with_little_memory_gives_the_same_piece_by_piece(both: Any) -> None:
    _, plenty, little = both
    pairs = some_pairs()
    whole, parts = plenty.prepare(pairs), little.prepare(pairs)
    assert whole.sizes == parts.sizes
    pieces = little.pieces(parts)
    assert plenty.pieces(whole) == [range(24)]
    assert len(pieces) > 3
    assert [row for piece in pieces for row in piece] == list(range(24))
    for rows in pieces:
        assert little.subset(parts, rows).state_bytes <= little.pack_bytes
    assert parts.texts.packed is not parts.texts.packed  # not kept
    assert whole.texts.packed is whole.texts.packed
    (own, shared, personal), (theirs, _, _) = trainer(plenty), trainer(little)
    counts = own.evaluate(shared, personal, whole)
    assert counts.total == 20
    assert theirs.evaluate(shared, personal, parts).correct == counts.correct
    assert theirs.evaluate(shared, personal, parts).loss_sum == pytest.approx(counts.loss_sum, rel=1e-6)
    margins = own.margins(shared, personal, whole)
    assert theirs.margins(shared, personal, parts) == pytest.approx(margins, rel=1e-5, abs=1e-6)


def test_many_texts_are_scored_in_portions_and_those_that_read_alike_the_same(
    both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plenty, little = both
    texts = [(pair.prompt, text) for pair in some_pairs() for text in (pair.chosen, pair.rejected)]
    texts.append(texts[0])
    monkeypatch.setattr(reward, "_FEW_TOKENS", 0)
    assert plenty.portions(texts) == [range(49)]
    portions = little.portions(texts)
    assert len(portions) > 2
    assert [place for rows in portions for place in rows] == list(range(49))
    read: list[int] = []
    real = little.cache.together
    monkeypatch.setattr(little.cache, "together", lambda asked: read.append(len(asked)) or real(asked))
    own, shared, personal = trainer(plenty)
    theirs, _, _ = trainer(little)
    found = theirs.rewards(shared, personal, texts)
    assert read == [len(rows) for rows in portions]
    assert found[48] == found[0]
    assert found == pytest.approx(own.rewards(shared, personal, texts), rel=1e-4, abs=1e-5)


def test_a_piece_is_one_pair_at_least(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    settings = ModelConfig(base_model=str(tiny_model("bert")), max_tokens=24)
    model = load_reward_model(
        settings, AdapterConfig(share="A"), device="cpu", pack_bytes=1, disk=StateStore(tmp_path)
    )
    prepared = model.prepare(some_pairs(4))
    assert model.pieces(prepared) == [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]


def test_how_sure_a_model_is_and_how_far_it_deviates_come_piece_by_piece(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    settings, adapter = (
        ModelConfig(base_model=str(tiny_model("bert")), max_tokens=24),
        AdapterConfig(share="shrinkage"),
    )
    plenty = load_reward_model(settings, adapter, device="cpu")
    little = load_reward_model(
        settings, adapter, device="cpu", cache_bytes=200, pack_bytes=200, disk=StateStore(tmp_path)
    )
    pairs, found = some_pairs(), []
    for model in (plenty, little):
        own, shared, personal = trainer(model)
        laplace = Laplace(model, own.split, shared)
        posterior = laplace.fit(Prior(personal, 0.3), pairs)
        found.append((own.gain_of_deviating(shared, personal, model.prepare(pairs)), posterior.vector))
    (gain, vector), (pieced, same) = found
    assert gain != 0
    assert pieced == pytest.approx(gain, rel=1e-4)
    assert same == pytest.approx(vector, rel=1e-3, abs=1e-5)
    assert little.cache.forwards == 48


@pytest.mark.parametrize(
    ("memory_mb", "by_text", "in_one_piece"),
    [
        (None, 4 << 30, 1 << 30),
        (4096, 1 << 30, 512 << 20),
        (96, 24 << 20, 12 << 20),
        (1 << 20, 4 << 30, 1 << 30),
    ],
)
def test_frozen_states_have_their_share_of_what_a_job_may_take(
    memory_mb: int | None, by_text: int, in_one_piece: int, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = ModelConfig(base_model=str(tiny_model("bert")), max_tokens=24)
    models = device_models(memory_mb, tmp_path)
    model = models.model(settings, AdapterConfig())
    assert (model.cache._limit, model.pack_bytes) == (by_text, in_one_piece)
    disk = model.cache._disk
    assert disk is not None
    assert disk._store._folder == tmp_path
    assert disk._store._most == (8 << 30) // (32 << 10)
    other = models.model(dataclasses.replace(settings, max_tokens=20), AdapterConfig()).cache._disk
    assert other is not None
    assert other._store is disk._store  # the bound is on both together
    assert device_models(memory_mb, None).model(settings, AdapterConfig()).cache._disk is None
