"""Base models: found, checked, loaded; which modules a name means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import BaseModelError
from penchant.common.model import backbone, base_models
from penchant.common.model.backbone import load_backbone
from penchant.common.model.base_models import base_digest, digest_of
from penchant.common.model.modules import find_blocks, find_slots

MINILM_DIGEST = "ba25ff2953a386750c47619622ca058294bc32e317704056b53259063c735e63"


@pytest.fixture(scope="module")
def minilm() -> backbone.Backbone:
    return load_backbone(ModelConfig(dtype="float32"), device="cpu")


def test_default_model_comes_from_its_package(minilm: backbone.Backbone) -> None:
    assert minilm.hidden == 384
    assert not minilm.causal
    assert minilm.max_tokens == 256
    assert minilm.digest == MINILM_DIGEST
    assert minilm.blocks[0] == "encoder.layer"
    assert not minilm.model.training
    assert not any(p.requires_grad for p in minilm.model.parameters())


def test_output_dense_is_not_attention_output_dense(minilm: backbone.Backbone) -> None:
    slots = find_slots(minilm.model, AdapterConfig(target_modules=("output.dense",), layers=(-1,)))
    assert [slot.name for slot in slots] == ["encoder.layer.5.output.dense"]
    assert (slots[0].in_features, slots[0].out_features) == (1536, 384)


def test_a_name_without_a_dot_is_the_last_segment(minilm: backbone.Backbone) -> None:
    slots = find_slots(minilm.model, AdapterConfig(target_modules=("value", "query"), layers=(0, -1)))
    assert [slot.name for slot in slots] == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.value",
        "encoder.layer.5.attention.self.query",
        "encoder.layer.5.attention.self.value",
    ]
    assert len(find_slots(minilm.model, AdapterConfig(target_modules=("dense",), layers=()))) == 18


def test_modules_and_blocks_that_are_not_there(minilm: backbone.Backbone) -> None:
    with pytest.raises(BaseModelError, match=r'"q_proj"; there are attention\.output\.dense'):
        find_slots(minilm.model, AdapterConfig(target_modules=("output.dense", "q_proj")))
    with pytest.raises(BaseModelError, match="names block 6, but the base model has 6 blocks"):
        find_slots(minilm.model, AdapterConfig(layers=(6,)))


@pytest.mark.parametrize(
    ("kind", "causal", "blocks", "max_tokens"),
    [
        ("bert", False, "encoder.layer", 64),
        ("roberta", False, "encoder.layer", 62),  # two positions are taken by its padding
        ("llama", True, "layers", 64),
        ("gptj", True, "h", 64),
    ],
)
def test_a_folder(tiny_model, kind: str, causal: bool, blocks: str, max_tokens: int) -> None:
    loaded = load_backbone(ModelConfig(base_model=str(tiny_model(kind))), device="cpu")
    assert loaded.causal is causal
    assert find_blocks(loaded.model)[0] == blocks
    assert loaded.max_tokens == max_tokens
    assert loaded.dtype == torch.float32


def test_bfloat16_on_request(tiny_model) -> None:
    loaded = load_backbone(ModelConfig(base_model=str(tiny_model("bert")), dtype="bfloat16"), device="cpu")
    assert next(loaded.model.parameters()).dtype == torch.bfloat16


def test_digest_covers_config_weights_and_tokenizer_only(tiny_model, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model("bert"), folder)
    digest = digest_of(folder)
    assert digest == digest_of(tiny_model("bert")) == base_digest(str(folder))
    (folder / "README.md").write_text("a word about it")
    assert digest_of(folder) == digest
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + b"?")
        assert digest_of(folder) != digest
        (folder / name).write_bytes(whole)
    assert digest_of(folder) == digest


# --- bad input: one line each ---------------------------------------------------------------------


def refused(name: str) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_backbone(ModelConfig(base_model=name), device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_missing_folder_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_models, "_download", lambda _: pytest.fail("asked the hub"))
    assert "is no folder" in refused("/nowhere/at/all")
    assert "is no folder" in refused("all-minilm")


def test_local_models_ask_nobody(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("used the network"))
    load_backbone(ModelConfig(base_model=str(tiny_model("llama"))), device="cpu")


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert "can't be fetched (ConnectionError)" in refused("somebody/something")


def test_folder_without_a_model(tmp_path: Path) -> None:
    assert "holds no base model" in refused(str(tmp_path))


def test_pickled_weights_are_not_read(tiny_model, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model("bert"), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "holds no base model" in refused(str(folder))


def test_broken_weights(tiny_model, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model("bert"), folder)
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    assert "can't be loaded" in refused(str(folder))


def test_wrong_digest_of_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(base_models, "package_folder", lambda _: tmp_path)
    assert "wrong sha256" in refused("all-MiniLM-L6-v2")


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_models, "package_folder", lambda _: None)
    assert "pip install" in refused("smollm2-135m")
