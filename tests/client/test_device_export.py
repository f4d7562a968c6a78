"""An exported personal model scores as the product does, with nothing of penchant installed."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penchant.client.device.export import Export, export_peft, snippet
from penchant.common.config import AdapterConfig, ModelConfig, PoolingName, ShareName
from penchant.common.errors import DeviceError, UsageError
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.reward import RewardModel, load_reward_model

TEXTS = [
    ("the motion ", "on the bill"),
    ("", "a vote to table the tax"),
    ("cloture", "the judge of the budget"),
]
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
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120
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


def test_a_causal_model_pooled_at_its_last_token_also_loads_as_a_classifier(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    loaded, export = a_person(tiny_model("llama"), "svd", 0.0)
    export_peft(export, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[2].split("```")[0].replace("'./", f"'{tmp_path}/")
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    model = namespace["model"]
    tokenizer = AutoTokenizer.from_pretrained(export.base)
    with torch.no_grad():
        said = [float(model(**tokenizer(p + r, return_tensors="pt")).logits[0, 0]) for p, r in TEXTS]
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

FAMILIES = {  # and where its classifier keeps the model
    "gpt2": "transformer",
    "gptj": "transformer",
    "gpt_neox": "gpt_neox",
    "opt": "model",
    "t5": None,
    "gemma3": None,
    "modernbert": None,
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft's word on Conv1D, which it then handles
def test_every_family_exports_what_its_card_says(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    from transformers import AutoTokenizer

    model = ModelConfig(str(tiny_model(kind)), "auto", 0.0, max_tokens=12, truncation="right")
    adapter = AdapterConfig(share="A", rank=2, alpha=3.0, target_modules=("auto",), layers=(-2, -1))
    loaded = load_reward_model(model, adapter)
    split = Split.of(loaded.adapted_modules, loaded.embedding, adapter, seed=3)
    rng = np.random.default_rng(5)
    effective = split.merged(
        *(rng.normal(size=part.size).astype(np.float32) for part in (split.shared, split.personal))
    )
    export_peft(exported(loaded, effective, model, adapter), tmp_path / "mine")
    namespace: dict[str, Any] = {}
    exec(snippet(exported(loaded, effective, model, adapter), str(tmp_path / "mine")), namespace)
    expected = scores(loaded, effective)
    assert [namespace["score"](*text) for text in TEXTS] == pytest.approx(expected, abs=1e-5)

    assert (tmp_path / "mine" / "sequence-classification").exists() == (FAMILIES[kind] is not None)
    if FAMILIES[kind] is not None:
        card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
        assert "where the base model names none" in card
        code = card.split("```python\n")[2].split("```")[0].replace("'./", f"'{tmp_path}/mine/")
        exec(code, namespace)
        tokenizer = AutoTokenizer.from_pretrained(str(tiny_model(kind)))
        with torch.no_grad():
            said = [
                float(namespace["model"](**tokenizer(p + r, return_tensors="pt")).logits[0, 0])
                for p, r in TEXTS
            ]
        assert said == pytest.approx(expected, abs=1e-5)


def test_there_is_no_classifier_where_it_would_read_another_token(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded, export = a_person(tiny_model("llama"), "A", 0.0)
    assert loaded.classifier == "model"
    export_peft(replace(export, classifier=""), tmp_path / "mine")
    assert not (tmp_path / "mine" / "sequence-classification").exists()
    assert "AutoModelForSequenceClassification" not in (tmp_path / "mine" / "README.md").read_text()
