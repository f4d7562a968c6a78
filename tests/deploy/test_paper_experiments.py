"""The paper's experiments as configuration files: what they say, and that they run on small files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.common.config import ModelConfig, RunConfig
from penchant.common.errors import BaseModelError, ConfigError
from penchant.common.model import backbone
from penchant.deploy import run_directory
from penchant.deploy.configuration import configure
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "tests" / "experiments" / "paper").glob("*.toml"))}
DATA = ROOT / "tests" / "data"
HUB = {"gpt-j-6b": "EleutherAI/gpt-j-6b", "llama-3-8b": "meta-llama/Meta-Llama-3-8B"}
BLOCKS = {"gpt-j-6b": "h.{}.attn", "llama-3-8b": "layers.{}.self_attn"}
KINDS = {"gpt-j-6b": "gptj", "llama-3-8b": "llama"}
SMALL = {"data.clients": 3, "federation.cohort": 3, "data.pairs": 2, "data.test_pairs": 2}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are drawn elsewhere (tests/deploy/test_report.py)."""
    monkeypatch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)


def run(config: RunConfig, directory: Path) -> dict[str, Any]:
    world = prepare(config)
    run_directory.create(directory, config)
    return simulate(world, directory, command="test").to_dict()


def test_two_data_sets_with_two_base_models() -> None:
    assert sorted(FILES) == sorted(f"{data}-{base}" for data in ("helpsteer2", "tldr") for base in HUB)


@pytest.mark.parametrize("name", list(FILES))
def test_the_settings_are_those_of_the_paper(name: str) -> None:
    config = RunConfig.read(FILES[name])
    dataset, _, base = name.partition("-")
    assert (config.data.dataset, config.model.base_model) == (dataset, HUB[base])
    adapter = config.adapter
    assert (adapter.rank, adapter.alpha, adapter.target_modules, adapter.layers) == (
        32,
        16.0,
        ("q_proj", "v_proj"),
        (),
    )
    assert (config.model.pooling, config.model.normalize, config.model.dtype) == ("last", 0.0, "bfloat16")
    warmup, main = (config.plan(phase, 5).training for phase in ("warmup", "main"))
    assert {warmup.lr_shared, warmup.lr_head} == {1e-4}
    assert {main.lr_shared, main.lr_personal, main.lr_head} == {5e-5}
    federation = config.federation
    epochs = config.training.local_epochs
    assert federation.warmup_rounds * epochs == 2
    assert (federation.rounds - federation.warmup_rounds) * epochs == 3
    assert (config.data.clients, federation.cohort, config.training.final_fit_epochs) == (5, 5, 0)
    assert federation.max_weight >= config.data.pairs  # nobody's weight is cut
    assert config.privacy.secagg


@pytest.mark.parametrize("name", list(FILES))
def test_the_command_in_a_file_is_its_own(name: str) -> None:
    assert f"--config tests/experiments/paper/{FILES[name].name} " in FILES[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(FILES))
def test_it_runs_on_a_tiny_model_of_the_same_kind(tiny_model, tmp_path: Path, name: str) -> None:
    """The file as it is, but for the base model, the rank that fits it, and how many people and pairs."""
    dataset, _, base = name.partition("-")
    flags = {
        "data.dataset": f"{dataset}:{DATA / dataset}",
        "model.base_model": str(tiny_model(KINDS[base])),
        "adapter.rank": 2,
    }
    config = configure(SMALL | flags, FILES[name])
    result = run(config, tmp_path / "run")
    assert [row["phase"] for row in result["rounds_log"]] == ["warmup"] * 2 + ["main"] * 3
    assert all(row["survivors"] == 3 for row in result["rounds_log"])
    assert result["base_model"] == str(tiny_model(KINDS[base]))
    blocks = [BLOCKS[base].format(i) for i in range(3)]
    expected = [f"{block}.{m}.lora_B" for block in blocks for m in ("q_proj", "v_proj")]
    assert sorted(row["name"] for row in result["shared_tensors"]) == sorted([*expected, "head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["tldr", "helpsteer2"])
def test_it_runs_on_smollm2(tmp_path: Path, dataset: str) -> None:
    """A real causal model, at the paper's rank, from the same file by overriding data set and base model."""
    flags = {
        "data.dataset": f"{dataset}:{DATA / dataset}",
        "model.base_model": "smollm2-135m",
        "model.max_tokens": 48,
        "model.dtype": "float32",
        "adapter.layers": (-2, -1),
        "adapter.share": "kernel" if dataset == "tldr" else "A",
    }
    config = configure(SMALL | flags, FILES[f"{dataset}-llama-3-8b"])
    result = run(config, tmp_path / "run")
    losses = [row["train_loss"] for row in result["rounds_log"]]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    shapes = {row["name"]: row["shape"] for row in result["shared_tensors"]}
    assert shapes["layers.29.self_attn.q_proj.lora_A"] == [32, 576]
    kept = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert kept["config"]["adapter"]["rank"] == 32


def test_a_small_cohort_is_said_aloud_even_if_the_file_asks_for_it() -> None:
    """Five clients, three honest, one colluder: what the file sets, and less than usual."""
    config = configure(
        {"data.dataset": f"helpsteer2:{DATA / 'helpsteer2'}", "data.pairs": 2, "data.test_pairs": 2}
        | {"model.base_model": "all-MiniLM-L6-v2", "adapter.target_modules": ("query",), "adapter.rank": 2},
        FILES["helpsteer2-gpt-j-6b"],
    )
    world = prepare(config)
    assert (world.policy.min_honest, world.policy.max_colluders) == (3, 1)
    assert any("owners usually ask for 10 and 2" in line for line in world.caveats())


# --- 4-bit base models ----------------------------------------------------------------------------


def test_4bit_without_bitsandbytes(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "package_folder", lambda _: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes: pip install") as caught:
        backbone.load_backbone(ModelConfig(base_model=str(tiny_model("llama")), quantize="4bit"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_4bit_without_cuda(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "package_folder", lambda _: Path())
    model = ModelConfig(base_model=str(tiny_model("llama")), quantize="4bit")
    with pytest.raises(ConfigError, match="needs a CUDA GPU, not cpu"):
        backbone.load_backbone(model, device="cpu")


def test_4bit_is_asked_of_transformers_as_nf4(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loader is told; computing with such weights takes a GPU."""
    import transformers

    asked: dict[str, Any] = {}

    def watch(folder: str, **settings: Any) -> Any:
        asked.update(settings)
        raise ValueError("seen enough")

    monkeypatch.setattr(backbone, "_check_quantising", lambda place: None)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", watch)
    config = ModelConfig(base_model=str(tiny_model("llama")), quantize="4bit", dtype="bfloat16")
    with pytest.raises(BaseModelError, match="seen enough"):
        backbone.load_backbone(config, device="cpu")
    settings = asked["quantization_config"]
    assert settings.load_in_4bit
    assert (settings.bnb_4bit_quant_type, settings.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert asked["device_map"] == {"": torch.device("cpu")}


def test_quantize_is_none_or_4bit() -> None:
    with pytest.raises(ConfigError, match="choose one of none, 4bit"):
        RunConfig.from_toml('[model]\nquantize = "8bit"\n')
    assert tomllib.loads(RunConfig().to_toml())["model"]["quantize"] == "none"
