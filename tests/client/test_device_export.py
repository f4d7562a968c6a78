"""An exported personal model scores as the product does, with nothing of penchant installed."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import random_model
from support.random_model import a_policy
from transformers import AutoModelForCausalLM

from penchant.client.device.export import CLASSIFIER, Export, export_peft, snippet
from penchant.client.device.exported_model import load_exported
from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig, PoolingName, ShareName
from penchant.common.errors import BaseModelError, DeviceError, UsageError
from penchant.common.model.backbone import load_classifier
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.reward import RewardModel, load_reward_model
from penchant.common.settings import settings_of

TEXTS = [
    ("the motion ", "on the bill"),
    ("", "a vote to table the tax"),
    ("cloture", "the judge of the budget"),
]
PLAIN = ["README.md", "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "penchant.json"]
SHARES: list[ShareName] = ["B", "A", "kernel", "svd", "AB", "none", "ffa", "lore", "mixed", "common"]


def a_person(
    folder: Path, share: ShareName, normalize: float, pooling: PoolingName = "auto"
) -> tuple[RewardModel, Export]:
    """A reward model with random factors, and what it exports."""
    model = ModelConfig(str(folder), pooling, normalize, max_tokens=12, truncation="right")
    modules = ("output.dense",) if "bert" in folder.name else ("q_proj", "v_proj")
    adapter = AdapterConfig(share=share, rank=2, alpha=3.0, target_modules=modules, layers=(-2, -1))
    loaded = load_reward_model(model, adapter)
    split = Split.of(loaded.adapted_modules, loaded.embedding, adapter, seed=3)
    rng = np.random.default_rng(5)
    shared, personal = (
        rng.normal(size=layout.size).astype(np.float32) for layout in (split.shared, split.personal)
    )
    return loaded, exported(loaded, split.merged(shared, personal), model, adapter)


def exported(
    loaded: RewardModel, effective: MergedWeights, model: ModelConfig, adapter: AdapterConfig
) -> Export:
    return Export(
        effective,
        model,
        adapter,
        model.base_model,
        loaded.digest,
        loaded.pooling,
        12,
        part=loaded.part,
        classifier=loaded.classifier,
        padding=loaded.padding,
    )


def scores(loaded: RewardModel, effective: MergedWeights) -> list[float]:
    with torch.no_grad():
        return [float(loaded.scores(loaded.prepare_texts([text]), effective)[0]) for text in TEXTS]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("kind", "normalize"), [("bert", 10.0), ("llama", 0.0)])
def test_the_snippet_gives_the_same_scores_in_a_fresh_process(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str, normalize: float, share: ShareName
) -> None:
    loaded, export = a_person(tiny_model(kind), share, normalize)
    directory = tmp_path / "export"
    export_peft(export, directory)
    code = snippet(export, str(directory))
    assert len(code.strip().splitlines()) <= 10
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert code.replace(str(directory), ".") in card
    if (kind, share) not in {("bert", "A"), ("llama", "kernel"), ("llama", "lore")}:  # a process takes 4 s
        namespace: dict[str, object] = {}
        exec(code, namespace)
        said = [namespace["score"](*text) for text in TEXTS]  # type: ignore[operator]
    else:
        program = f"{code}\nimport sys\nfor t in {TEXTS!r}: print(score(*t))\n"
        program += "assert not any(name.startswith('penchant') for name in sys.modules)\n"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=300
        )
        assert done.returncode == 0, done.stderr
        said = [float(line) for line in done.stdout.split()]
    assert said == pytest.approx(scores(loaded, export.effective), abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_the_snippet_pools_as_the_model_does(
    tiny_model: Callable[[str], Path], tmp_path: Path, pooling: PoolingName
) -> None:
    loaded, export = a_person(tiny_model("bert"), "A", 10.0, pooling)
    export_peft(export, tmp_path / "export")
    namespace: dict[str, Any] = {}
    exec(snippet(export, str(tmp_path / "export")), namespace)
    said = [namespace["score"](*text) for text in TEXTS]
    assert said == pytest.approx(scores(loaded, export.effective), abs=1e-5)


def test_a_directory_in_use_is_refused_and_left_alone(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    _, export = a_person(tiny_model("bert"), "A", 10.0)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="in use"):
        export_peft(export, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_is_for_its_owner_alone(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    _, export = a_person(tiny_model("llama"), "A", 0.0)
    export_peft(export, tmp_path / "mine")
    paths = [tmp_path / "mine", *(tmp_path / "mine").rglob("*")]
    assert len(paths) == 9
    assert {path.stat().st_mode & 0o077 for path in paths} == {0}


def test_a_full_disk_leaves_no_half_an_export(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    _, export = a_person(tiny_model("llama"), "A", 0.0)
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, kept[1]))  # the head fits, the card does not
    try:
        with pytest.raises(DeviceError, match="can't write the export"):
            export_peft(export, tmp_path / "mine")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, before)
    assert list((tmp_path / "mine").iterdir()) == []
    export_peft(export, tmp_path / "mine")


def test_a_base_model_kept_in_bfloat16_is_scored_as_the_product_scores_it(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path / "llama-bf16"
    AutoModel.from_pretrained(tiny_model("llama")).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(folder)
    loaded, export = a_person(folder, "A", 0.0)
    export_peft(export, tmp_path / "mine")
    namespace: dict[str, Any] = {}
    exec(snippet(export, str(tmp_path / "mine")), namespace)
    said = [namespace["score"](*text) for text in TEXTS]
    assert said == pytest.approx(scores(loaded, export.effective), abs=1e-5)
    assert loaded.published == str(folder)


# --- every family ---------------------------------------------------------------------------------

CLASSIFIERS = {  # and where its classifier keeps the model
    "gpt2": "transformer",
    "gptj": "transformer",
    "gpt_neo": "transformer",
    "gpt_neox": "gpt_neox",
    "gpt_bigcode": "transformer",
    "opt": "model",  # names a padding token that is not its tokenizer's
    "bloom": "transformer",
    "falcon": "transformer",
    "mpt": "transformer",
    "llama": "model",
    "mistral": "model",
    "mixtral": "model",
    "qwen3": "model",
    "gemma": "model",
    "gemma2": "model",
    "gemma3_text": "model",
    "phi": "model",
    "phi3": "model",
    "olmo2": "model",
    "starcoder2": "model",
}
OTHERS = {"t5": "common family", "gemma3": "common family", "modernbert": "common family"}


def a_model(folder: Path, **changes: Any) -> MergedModel:
    """One whose texts are cut at the right."""
    return random_model.a_model(folder, truncation="right", **changes)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def by_the_card(folder: Path) -> Callable[[list[str]], list[float]]:
    """What the card's lines for a classifier define."""
    code = card_of(folder).split("```python\n")[2].split("```")[0]
    namespace: dict[str, Any] = {}
    with torch.no_grad():
        exec(code.replace("'./", f"'{folder}/"), namespace)
    found: Callable[[list[str]], list[float]] = namespace["scores"]
    return found


@pytest.mark.parametrize("kind", [*CLASSIFIERS, *OTHERS])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft's word on Conv1D, which it then handles
def test_every_family_exports_what_its_card_says(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """The lines for one text, and of a causal model those for a batch of texts of several lengths."""
    merged = a_model(tiny_model(kind))
    why = export_peft(Export.of(merged), tmp_path, tried=merged)
    namespace: dict[str, Any] = {}
    exec(snippet(Export.of(merged), str(tmp_path)), namespace)
    expected = merged.scores(TEXTS)
    assert [namespace["score"](*text) for text in TEXTS] == pytest.approx(expected, abs=1e-5)
    assert merged.model.classifier == CLASSIFIERS.get(kind, "")
    if kind in OTHERS:
        assert OTHERS[kind] in why
        assert why in card_of(tmp_path)
        assert not (tmp_path / CLASSIFIER).exists()
        return
    assert why == ""
    scores_of = by_the_card(tmp_path)
    assert scores_of([p + r for p, r in TEXTS]) == pytest.approx(expected, abs=1e-4)
    assert scores_of([TEXTS[0][0] + TEXTS[0][1]]) == pytest.approx(expected[:1], abs=1e-4)


def ends_with(folder: Path, token: str) -> None:
    """Have a folder's tokenizer put a token behind every text."""
    table = json.loads((folder / "tokenizer.json").read_text())
    number = table["model"]["vocab"][token]
    table["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(table))


def with_settings(folder: Path, name: str, **changes: Any) -> None:
    table = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(table | changes))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_of_a_model_of_fewer_blocks_the_card_loads_no_more(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    whole, merged = (a_model(tiny_model(kind), blocks=blocks) for blocks in (0, 2))
    assert merged.scores(TEXTS) != pytest.approx(whole.scores(TEXTS), abs=1e-3)
    why = export_peft(Export.of(merged), tmp_path / "mine", tried=merged)
    namespace: dict[str, Any] = {}
    exec(snippet(Export.of(merged), str(tmp_path / "mine")), namespace)
    assert [namespace["score"](*text) for text in TEXTS] == pytest.approx(merged.scores(TEXTS), abs=1e-5)
    if kind != "bert":
        assert why == ""
        said = by_the_card(tmp_path / "mine")([p + r for p, r in TEXTS])
        assert said == pytest.approx(merged.scores(TEXTS), abs=1e-4)
    assert load_exported(tmp_path / "mine").scores(TEXTS) == pytest.approx(merged.scores(TEXTS), abs=1e-6)


@pytest.mark.parametrize(("kind", "normalize"), [("bert", 10.0), ("llama", 0.0), ("gpt2", 10.0)])
def test_of_two_embeddings_side_by_side_the_card_reads_both(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str, normalize: float
) -> None:
    merged = a_model(tiny_model(kind), normalize=normalize, share="common", beside=2)
    why = export_peft(Export.of(merged), tmp_path / "mine", tried=merged)
    assert why == "a share without an adapter has none"
    namespace: dict[str, Any] = {}
    exec(snippet(Export.of(merged), str(tmp_path / "mine")), namespace)
    assert [namespace["score"](*text) for text in TEXTS] == pytest.approx(merged.scores(TEXTS), abs=1e-5)
    assert load_exported(tmp_path / "mine").scores(TEXTS) == pytest.approx(merged.scores(TEXTS), abs=1e-6)


def test_padding_that_texts_end_with_is_not_used(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A tokenizer that adds EOS, and EOS as padding: the classifier would read the token before it."""
    folder = tmp_path / "llama"
    shutil.copytree(tiny_model("llama"), folder)
    ends_with(folder, "of")
    with_settings(folder, "tokenizer_config.json", pad_token="of", eos_token="of", bos_token="the")
    with_settings(folder, "config.json", pad_token_id=4, eos_token_id=4)
    merged = a_model(folder)
    assert merged.model.padding == "the"
    assert export_peft(Export.of(merged), tmp_path / "mine", tried=merged) == ""
    said = by_the_card(tmp_path / "mine")([p + r for p, r in TEXTS])
    assert said == pytest.approx(merged.scores(TEXTS), abs=1e-4)
    assert "pad_token='the'" in card_of(tmp_path / "mine")


def test_without_a_token_to_fill_up_with_there_is_no_classifier_and_the_card_says_why(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(tiny_model("llama"), folder)
    with_settings(folder, "tokenizer_config.json", pad_token=None)
    merged = a_model(folder)
    assert merged.model.padding == "", "what is left is the unknown word, with which a text may end"
    why = export_peft(Export.of(merged), tmp_path / "mine", tried=merged)
    assert "give its tokenizer a padding token of its own" in why
    assert why in card_of(tmp_path / "mine")
    assert not (tmp_path / "mine" / CLASSIFIER).exists()


def test_a_classifier_that_scores_otherwise_when_it_is_loaded_is_left_out(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = a_model(tiny_model("llama"))
    other = load_classifier(str(tiny_model("llama")), torch.float32)
    other[0].model.embed_tokens.weight[5:] *= 2
    with monkeypatch.context() as broken:
        broken.setattr("penchant.client.device.classifier.load_classifier", lambda *_: other)
        why = export_peft(Export.of(merged), tmp_path / "mine", tried=merged)
    assert "off" in why
    assert why in card_of(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == PLAIN
    with monkeypatch.context() as broken:
        broken.setattr("penchant.client.device.classifier.load_classifier", no_classifier)
        assert "no such class" in export_peft(Export.of(merged), tmp_path / "other", tried=merged)
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == PLAIN


def no_classifier(*_: Any) -> Any:
    raise BaseModelError("there is no such class")


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", 0.0), ("last", 10.0)])
def test_a_model_that_no_classifier_can_be_says_which_settings_would_let_it(
    tiny_model: Callable[[str], Path], tmp_path: Path, pooling: PoolingName, normalize: float
) -> None:
    _, export = a_person(tiny_model("llama"), "A", normalize, pooling)
    why = export_peft(export, tmp_path / "mine")
    assert why == 'it needs model.pooling = "last" (or "auto") and model.normalize = 0, before training'
    assert why in card_of(tmp_path / "mine")


def test_the_kernel_is_folded_into_the_classifier(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    loaded, export = a_person(tiny_model("llama"), "svd", 0.0)
    assert export_peft(export, tmp_path) == ""
    said = by_the_card(tmp_path)([p + r for p, r in TEXTS])
    assert said == pytest.approx(scores(loaded, export.effective), abs=1e-4)


VLLM_RANK_MOST = 512  # the most that its --max-lora-rank may be


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_a_policy_keeps_to_what_vllm_asks_of_an_adapter(
    tiny_writer: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """What vllm/lora checks in peft_helper.py, lora_model.py and utils.py, said again: vLLM isn't run."""
    export_peft(Export.of(a_policy(tiny_writer(kind))), tmp_path / "mine")
    settings = json.loads((tmp_path / "mine" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["peft_type"], settings["task_type"], settings["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert settings["modules_to_save"] is None
    assert (settings["use_dora"], settings["use_rslora"]) == (False, False)
    assert (settings["r"], settings["lora_alpha"]) == (3, 4.5)
    assert isinstance(settings["target_modules"], list)
    causal = AutoModelForCausalLM.from_pretrained(tiny_writer(kind))
    linear = {name for name, module in causal.named_modules() if isinstance(module, torch.nn.Linear)}
    read: dict[str, set[str]] = {}
    for name, tensor in load_file(tmp_path / "mine" / "adapter_model.safetensors").items():
        first, second, *path, side, last = name.split(".")
        assert (first, second, last) == ("base_model", "model", "weight")
        assert tensor.shape[side == "lora_B"] == settings["r"]
        read.setdefault(".".join(path), set()).add(side)
    assert set(read) == linear - {"lm_head"}
    assert all(sides == {"lora_A", "lora_B"} for sides in read.values())


def test_no_rank_is_above_what_vllm_allows() -> None:
    (rank,) = (setting for setting in settings_of(AdapterConfig) if setting.name == "rank")
    assert rank.declared.high == VLLM_RANK_MOST
