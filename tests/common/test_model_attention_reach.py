"""How far each block's attention reaches is read off the masks that the network itself makes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import write_tiny_model

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.model import attention_reach
from penchant.common.model.attention_reach import Reach, reaches_of, window_of, windows_of
from penchant.common.model.backbone import load_backbone
from penchant.common.model.network import AdaptedNetwork
from penchant.common.model.reward import RewardModel


def network_of(folder: Path, max_tokens: int = 32) -> AdaptedNetwork:
    settings = ModelConfig(base_model=str(folder), max_tokens=max_tokens)
    model = RewardModel(load_backbone(settings, device="cpu"), settings, AdapterConfig(share="common"))
    return model._network


ALL, EARLIER = Reach(None, None), Reach(None, 0)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("mistral", {"sliding_window": 8}, [Reach(7, 0)] * 3),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, None),
        (
            "gemma3_text",
            {"sliding_window": 5, "sliding_window_pattern": 2},
            [Reach(4, 0), EARLIER, Reach(4, 0)],
        ),
        ("modernbert", {"local_attention": 16}, [ALL, Reach(8, 8), Reach(8, 8)]),
        ("modernbert", {"local_attention": 4, "global_attn_every_n_layers": 2}, [ALL, Reach(2, 2), ALL]),
        ("modernbert", {"local_attention": 4, "global_attn_every_n_layers": 1}, [ALL] * 3),
    ],
)
def test_each_block_s_reach(tmp_path: Path, kind: str, settings: dict[str, Any], expected: Any) -> None:
    write_tiny_model(kind, tmp_path, **settings)
    expected = expected or [EARLIER, Reach(5, 0), Reach(5, 0)]
    assert list(reaches_of(network_of(tmp_path)).values()) == expected


def test_looking_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    write_tiny_model("mistral", tmp_path, sliding_window=8)
    network = network_of(tmp_path)
    ids = torch.arange(3, 20).unsqueeze(0)
    before = network.module(input_ids=ids).last_hidden_state
    attributes = [set(vars(part)) for part in network.module.modules()]
    reaches_of(network)
    assert [set(vars(part)) for part in network.module.modules()] == attributes
    assert torch.equal(network.module(input_ids=ids).last_hidden_state, before)


def test_an_attention_of_its_own_cannot_be_looked_at(tmp_path: Path) -> None:
    write_tiny_model("gpt_neo", tmp_path, attention_types=[[["local"], 3]], window_size=8)
    network = network_of(tmp_path)
    assert windows_of(network.module) == [8]
    assert window_of(network.module) == 8
    with pytest.raises(TypeError, match="can't be looked at"):
        reaches_of(network)


def test_a_mask_that_is_no_window_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a text that see themselves alone (chunked attention), say."""
    write_tiny_model("mistral", tmp_path, sliding_window=8)
    network = network_of(tmp_path)
    look = attention_reach._look

    def chunked(module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        place = torch.arange(mask.shape[-1])
        chunk = (place[:, None] // 8 == place // 8) & (place[:, None] >= place)
        return look(module, query, key, value, chunk[None, None], **others)

    monkeypatch.setattr(attention_reach, "_look", chunked)
    with pytest.raises(TypeError, match="something else than a window"):
        reaches_of(network)


def test_what_a_reach_sees() -> None:
    """Of a token at place 3 of 6."""
    away = 3 - torch.arange(6)
    assert Reach(1, 1).sees(away).tolist() == [False, False, True, True, True, False]
    assert Reach(2, 0).sees(away).tolist() == [False, True, True, True, False, False]
    assert Reach(None, 0).sees(away).tolist() == [True] * 4 + [False] * 2
    assert Reach(None, None).sees(away).all()
    assert [Reach(2, 0).holds(n) for n in (3, 4)] == [True, False]
    assert [Reach(None, 1).holds(n) for n in (2, 3)] == [True, False]
    assert dataclasses.replace(Reach(2, 2), back=None).holds(3)
