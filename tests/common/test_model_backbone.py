"""Base models: found, checked, loaded; which modules a name means."""

from __future__ import annotations

import fnmatch
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import BaseModelError
from penchant.common.model import backbone, base_models, packaged_models
from penchant.common.model.backbone import load_backbone, load_generator
from penchant.common.model.base_models import base_digest, digest_of
from penchant.common.model.modules import find_adapted, find_blocks

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
    adapted = find_adapted(minilm.model, AdapterConfig(target_modules=("output.dense",), layers=(-1,)))
    assert [module.name for module in adapted] == ["encoder.layer.5.output.dense"]
    assert (adapted[0].in_features, adapted[0].out_features) == (1536, 384)


def test_a_name_without_a_dot_is_the_last_segment(minilm: backbone.Backbone) -> None:
    adapted = find_adapted(minilm.model, AdapterConfig(target_modules=("value", "query"), layers=(0, -1)))
    assert [module.name for module in adapted] == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.value",
        "encoder.layer.5.attention.self.query",
        "encoder.layer.5.attention.self.value",
    ]
    assert len(find_adapted(minilm.model, AdapterConfig(target_modules=("dense",), layers=()))) == 18


def test_modules_and_blocks_that_are_not_there(minilm: backbone.Backbone) -> None:
    with pytest.raises(BaseModelError, match=r'"q_proj"; there are attention\.output\.dense'):
        find_adapted(minilm.model, AdapterConfig(target_modules=("output.dense", "q_proj")))
    with pytest.raises(BaseModelError, match="names block 6, but the base model has 6 blocks"):
        find_adapted(minilm.model, AdapterConfig(layers=(6,)))


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
    assert "is not a folder" in refused("/nowhere/at/all")
    assert "is not a folder" in refused("all-minilm")


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


# --- a folder with code of its own: none of it runs ------------------------------------------------

EVIL = """
from pathlib import Path
Path(WHERE).write_text("ran")
from transformers import BertConfig, BertModel, BertTokenizerFast
class EvilConfig(BertConfig):
    model_type = "evil"
class EvilModel(BertModel):
    config_class = EvilConfig
class EvilTokenizer(BertTokenizerFast):
    pass
"""
FROM_CONFIG = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
FROM_TOKENIZER = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}


@pytest.fixture
def folder(tiny_model, tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(tiny_model("bert"), made)
    return made


def change(path: Path, **more: object) -> None:
    table = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(table | more))


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("config.json", {"auto_map": FROM_CONFIG, "model_type": "evil"}),
        ("config.json", {"auto_map": FROM_CONFIG}),
        ("config.json", {"text_config": {"deeper": [{"auto_map": FROM_CONFIG}]}}),
        ("config.json", {"auto_map": None}),
        ("config.json", {"auto_map": {"AutoModel": "somebody/something--evil.EvilModel"}}),
        ("tokenizer_config.json", {"auto_map": FROM_TOKENIZER, "tokenizer_class": "EvilTokenizer"}),
        ("tokenizer_config.json", {"auto_map": FROM_TOKENIZER["AutoTokenizer"]}),
        ("config.json", {"_attn_implementation": "somebody/kernel:attend"}),
        ("config.json", {"text_config": {"attn_implementation": {"": "somebody/kernel"}}}),
    ],
)
def test_code_that_comes_with_a_model_never_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, more: dict[str, object]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # somebody says yes to whatever is asked
    (folder / "evil.py").write_text(EVIL.replace("WHERE", repr(str(tmp_path / "ran"))))
    change(folder / file, **more)
    assert "which penchant never runs" in refused(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_generator_is_held_to_the_same(tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "evil.py").write_text(EVIL.replace("WHERE", repr(str(tmp_path / "ran"))))
    change(folder / "generation_config.json", auto_map={"GenerationConfig": "evil.EvilConfig"})
    with pytest.raises(BaseModelError, match="which penchant never runs"):
        load_generator(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_every_load_says_that_it_trusts_no_code(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the refusal: were a key to ask for code that it does not know, nobody would be asked either."""
    import transformers

    asked = []
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoTokenizer"):
        loader = getattr(transformers, name)
        original = loader.from_pretrained

        def watched(*given: object, _original: Any = original, **more: object) -> object:
            asked.append(more.get("trust_remote_code"))
            return _original(*given, **more)

        monkeypatch.setattr(loader, "from_pretrained", watched)
    load_backbone(ModelConfig(base_model=str(tiny_model("llama"))), device="cpu")
    assert asked == [False, False]


def test_a_pickle_beside_good_weights_is_not_read(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.write_text, (tmp_path / "ran", "ran")

    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Evil()))
    load_backbone(ModelConfig(base_model=str(folder)), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_what_the_digest_does_not_cover_changes_nothing(folder: Path, tiny_model, tmp_path: Path) -> None:
    """transformers would read each of these: another base, another configuration, another tokenizer."""
    before = load_backbone(ModelConfig(base_model=str(folder)), device="cpu")
    other = tmp_path / "other"
    shutil.copytree(tiny_model("roberta"), other)
    table = {"base_model_name_or_path": str(other), "peft_type": "LORA", "r": 2, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(table))
    (folder / "config.4.0.0.json").write_text((other / "config.json").read_text())
    (folder / "chat_template.jinja").write_text("{{ other }}")
    (folder / "modules.json").write_text(json.dumps([{"type": "evil.Evil", "path": "evil"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"auto_map": FROM_CONFIG}))
    after = load_backbone(ModelConfig(base_model=str(folder)), device="cpu")
    assert after.digest == before.digest
    assert after.tokenizer("a b").input_ids == before.tokenizer("a b").input_ids
    assert not after.tokenizer.chat_template
    assert after.model.state_dict().keys() == before.model.state_dict().keys()
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name
    assert backbone.published(after) == str(folder)


@pytest.mark.parametrize("name", ["../evil.safetensors", "deeper/evil.safetensors", "gone.safetensors", 3])
def test_an_index_names_weights_of_its_own_folder_only(folder: Path, name: object) -> None:
    (folder / "model.safetensors").rename(folder.parent / "evil.safetensors")
    (folder / "deeper").mkdir()
    shutil.copy(folder.parent / "evil.safetensors", folder / "deeper")
    shutil.copy(folder.parent / "evil.safetensors", folder / "part.safetensors")
    change(folder / "model.safetensors.index.json", metadata={}, weight_map={"embeddings": name})
    assert "names weights that are not in this folder" in refused(str(folder))


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, '{"hidden_size": ', "\xff"])
def test_a_configuration_that_is_none_is_refused_in_one_line(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(str(folder))


def test_a_configuration_of_wrong_kinds_is_refused_in_one_line(folder: Path) -> None:
    change(folder / "config.json", hidden_size="a\x1b[2Jb", num_attention_heads=[1])
    assert "\x1b" not in refused(str(folder))


def test_every_vocabulary_that_transformers_reads_is_covered() -> None:
    """So that the digest names it; a tokenizer with a file of another name can't be loaded."""
    folder = Path(__import__("transformers").__file__).parent / "models"
    files = set()
    for path in folder.glob("*/tokenization_*.py"):
        for block in re.findall(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", path.read_text(), re.S):
            files |= set(re.findall(r":\s*\"([^\"/]+)\"", block))
    assert len(files) > 10
    patterns = base_models.TOKENIZER_FILES
    assert {
        name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    } == set()


def test_broken_weights(tiny_model, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model("bert"), folder)
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    assert "can't be loaded" in refused(str(folder))


def test_wrong_digest_of_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(packaged_models, "package_folder", lambda _: tmp_path)
    assert "wrong sha256" in refused("all-MiniLM-L6-v2")


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_models, "package_folder", lambda _: None)
    assert "pip install" in refused("smollm2-135m")
