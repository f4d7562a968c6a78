"""Parts of the base model that are trained and shared as well: which, how they travel, that they count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.tastes import write_choices
from torch import Tensor

from penchant.client.device.export import Export, export_peft
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import AdapterConfig, ModelConfig, Plan, RunConfig, TrainingConfig
from penchant.common.errors import BaseModelError, ConfigError, UsageError
from penchant.common.model.backbone import load_backbone
from penchant.common.model.factors import Split
from penchant.common.model.reward import RewardModel
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.shares import Head, share_rule
from penchant.deploy import run_directory
from penchant.deploy.audit.record import read_tensors
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare

LAST = "encoder.layer.2"
NORMS = {
    f"base.{LAST}.{module}.LayerNorm.{parameter}": (16,)
    for module in ("attention.output", "output")
    for parameter in ("weight", "bias")
}
TEXTS = [
    ("", "the motion to table the bill"),
    ("a vote on", "cloture"),
    ("", "budget"),
    ("", "tax of the judge"),
]


def reward_model(base: Any, *share_base: str, full: bool = False, **adapter: Any) -> RewardModel:
    model = ModelConfig(base_model=str(base), dtype="float32")
    config = AdapterConfig(**{"share": "AB", "alpha": 4.0, "share_base": share_base, **adapter})
    return RewardModel(load_backbone(model, device="cpu"), model, config, full=full)


def somewhere(model: RewardModel) -> tuple[Any, Any]:
    generator = np.random.default_rng(1)
    return tuple(v + 0.1 * generator.normal(size=v.shape).astype("f4") for v in model.split().initial(0))


# --- which ----------------------------------------------------------------------------------------


def test_norm_is_the_norms_of_the_adapted_blocks_by_name_and_shape(tiny_model) -> None:
    split = reward_model(tiny_model("bert"), "norm").split()
    assert {s.name: s.shape for s in split.shared.specs if s.name.startswith("base.")} == NORMS
    assert split.shared.names[-4:] == tuple(NORMS)  # behind everything else, in the backbone's order
    assert split.personal.size == 0


def test_rms_norms_count_as_norms(tiny_model) -> None:
    model = reward_model(tiny_model("llama"), "norm", target_modules=("q_proj",), layers=(-2, -1))
    assert [tensor.name for tensor in model.base] == [
        f"layers.{block}.{norm}.weight"
        for block in (1, 2)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]


def test_a_module_is_named_by_its_path(tiny_model) -> None:
    model = reward_model(tiny_model("bert"), "encoder.layer.*.intermediate", "embeddings.LayerNorm")
    assert [tensor.name for tensor in model.base] == [
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
        *(f"encoder.layer.{i}.intermediate.dense.{part}" for i in range(3) for part in ("weight", "bias")),
    ]


@pytest.mark.parametrize("share", ["B", "A", "kernel", "svd", "AB", "ffa"])
@pytest.mark.parametrize("head", ["shared", "personal"])
def test_it_is_shared_whatever_else_is(tiny_model, share: str, head: str) -> None:
    config = AdapterConfig(share=share, head=head, share_base=("norm",))
    model = reward_model(tiny_model("bert"), "norm")
    made = Split.of(model.adapted_modules, model.embedding, config, base=model.base)
    plain = Split.of(model.adapted_modules, model.embedding, config)
    assert made.shared.names == (*plain.shared.names, *NORMS)
    assert made.personal == plain.personal


def test_the_warm_up_trains_it_too_and_hands_it_on(tiny_model) -> None:
    model = reward_model(tiny_model("bert"), "norm")
    config = AdapterConfig(share="B", share_base=("norm",))
    warm, main = (
        Split.of(model.adapted_modules, model.embedding, config, base=model.base, warmup=w)
        for w in (True, False)
    )
    trained = np.random.default_rng(0).normal(size=warm.shared.size).astype("f4")
    shared, _ = main.start_from(warm, trained, seed=0)
    for name in NORMS:
        assert np.array_equal(main.shared.named(shared)[name], warm.shared.named(trained)[name])


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["none", "lore"])
def test_where_nothing_of_a_base_is_shared(share: str) -> None:
    with pytest.raises(ConfigError, match="shares nothing of the base; drop"):
        AdapterConfig(share=share, share_base=("norm",))
    with pytest.raises(ConfigError, match="shares nothing of the base; drop"):
        share_rule(share).parts(Head.PERSONAL, base=True)


def test_a_head_is_not_both(tiny_model) -> None:
    with pytest.raises(ConfigError, match="names the head although"):
        AdapterConfig(head="personal", share_base=("head",))
    assert reward_model(tiny_model("bert"), "head").base == ()  # it is shared as it is


def test_modules_that_are_not_there(tiny_model) -> None:
    for pattern in ("encoder.layer.7.output", "LayerNorm", "encoder.layer.2.output.dropout"):
        with pytest.raises(BaseModelError, match=f'no module "{pattern}" with weights'):
            reward_model(tiny_model("bert"), pattern)


def test_weights_on_which_no_reward_depends(tiny_model) -> None:
    with pytest.raises(ConfigError, match=r"pooler\.dense\.weight, on which no reward depends"):
        reward_model(tiny_model("bert"), "pooler")


# --- the same numbers, fast and slow --------------------------------------------------------------

FEED_FORWARD = {"target_modules": ("output.dense",), "layers": (-1,)}
QV = {"target_modules": ("q_proj", "v_proj"), "layers": (-1,)}
CASES = [
    ("bert", FEED_FORWARD, (f"{LAST}.output.LayerNorm",), "tokenwise"),  # the last norm has a closed form
    ("bert", FEED_FORWARD, ("norm",), "blocks"),  # one of them lies below the adapted module
    ("bert", FEED_FORWARD, ("encoder.layer.1.output",), "blocks"),  # what is kept moves a block down
    ("bert", FEED_FORWARD, (f"{LAST}.output.dense",), "blocks"),  # the adapted module's own weights
    ("bert", FEED_FORWARD, ("embeddings.LayerNorm",), "full"),  # nothing can be kept
    ("llama", QV, ("norm",), "blocks"),
    ("llama", QV, ("nor?",), "blocks"),  # the final norm, behind all blocks
    ("llama", QV, ("embed_tokens",), "full"),
    ("gptj", QV, ("norm", "ln_f"), "blocks"),
]


def scores_and_gradients(model: RewardModel, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, list[Tensor]]:
    split = model.split()
    leaves = {n: t.requires_grad_() for n, t in split.shared.unflatten(somewhere(model)[0]).items()}
    scores = model.scores(model.prepare_texts(texts), split.effective(leaves, {}))
    weights = torch.linspace(-1, 1, len(texts)) + 0.3
    return scores.detach(), list(torch.autograd.grad((scores * weights).sum(), list(leaves.values())))


@pytest.mark.parametrize(("kind", "adapter", "share_base", "tail"), CASES)
def test_fast_is_slow(tiny_model, kind: str, adapter: Any, share_base: Any, tail: str) -> None:
    fast = reward_model(tiny_model(kind), *share_base, **adapter)
    slow = reward_model(tiny_model(kind), *share_base, full=True, **adapter)
    assert (fast.tail.name, slow.tail.name) == (tail, "full")
    assert fast.base == slow.base != ()
    (found, gradients), (expected, slow_gradients) = (scores_and_gradients(m, TEXTS) for m in (fast, slow))
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, slow_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("full", [False, True])
def test_a_change_is_added_to_the_weight_itself(tiny_model, tmp_path: Path, full: bool) -> None:
    """The scores are those of a base model that was saved with the changed weights."""
    from transformers import AutoModel, AutoTokenizer

    share_base = ("norm", "encoder.layer.1.intermediate", f"{LAST}.output.dense")
    model = reward_model(tiny_model("bert"), *share_base, full=full)
    split = model.split()
    shared, personal = somewhere(model)
    tensors = split.shared.unflatten(shared)
    changed = AutoModel.from_pretrained(tiny_model("bert"))
    with torch.no_grad():
        for tensor in model.base:
            changed.get_parameter(tensor.name).add_(tensors[f"base.{tensor.name}"])
    changed.save_pretrained(tmp_path / "changed")
    AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(tmp_path / "changed")
    plain = reward_model(tmp_path / "changed", full=True)
    expected = plain.scores(
        plain.prepare_texts(TEXTS),
        plain.split().merged(shared[: plain.split().shared.size], personal),
    )
    found = model.scores(model.prepare_texts(TEXTS), split.merged(shared, personal))
    assert torch.allclose(found, expected, atol=1e-5)
    start = split.merged(*split.initial(0))
    assert all(not change.any() for change in start.base.values())


# --- training, and the wire -----------------------------------------------------------------------


def test_training_changes_every_part(tiny_model) -> None:
    model = reward_model(tiny_model("bert"), "norm", share="A")
    pairs = [
        SimpleNamespace(prompt="", chosen="the motion to table", rejected="a bill on tax"),
        SimpleNamespace(prompt="", chosen="vote on the judge", rejected="budget of the bill"),
    ]
    made = LocalTrainer(model, model.split(), TrainingConfig(local_epochs=3))
    outcome = made.train(*somewhere(model), model.prepare(pairs), seed=0)
    updates = model.split().shared.named(outcome.shared_update)
    assert set(NORMS) < set(updates)
    assert all(np.abs(update).max() > 0 for update in updates.values())
    off = LocalTrainer(model, model.split(), TrainingConfig(local_epochs=3, lr_shared=0.0))
    still = model.split().shared.named(
        off.train(*somewhere(model), model.prepare(pairs), seed=0).shared_update
    )
    assert not any(still[name].any() for name in NORMS)


def test_it_is_no_peft_adapter(tiny_model, tmp_path: Path) -> None:
    model = reward_model(tiny_model("bert"), "norm")
    config = AdapterConfig(share="AB", share_base=("norm",))
    effective = model.split().merged(*somewhere(model))
    export = Export(effective, ModelConfig(), config, "base", model.digest, "mean", 64)
    with pytest.raises(UsageError, match="shares parts of the base model too"):
        export_peft(export, tmp_path / "export")


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole run that shares A and the norms of the last block."""
    folder = tmp_path_factory.mktemp("run")
    write_choices(folder / "choices.jsonl", [12] * 4)
    config = RunConfig().changed(
        {
            "data.dataset": str(folder / "choices.jsonl"),
            "data.person_column": "user",
            "data.pairs": 4,
            "data.validation_pairs": 1,
            "data.test_pairs": 3,
            "model.base_model": str(tiny_model("bert")),
            "adapter.share_base": ["norm"],
            "federation.rounds": 2,
            "federation.cohort": 4,
        }
    )
    world = prepare(config, ModelCache())
    run_directory.create(folder / "run", config)
    return simulate(world, folder / "run", command="test").to_dict(), folder / "run"


def test_what_leaves_a_client_holds_them_by_name(finished: tuple[dict[str, Any], Path]) -> None:
    result, directory = finished
    names = {row["name"]: tuple(row["shape"]) for row in result["shared_tensors"]}
    assert NORMS.items() <= names.items()
    config = run_directory.read_config(directory)
    split = prepare(config).model_cache.of(config.plan("main", 4)).split
    plan = config.plan("main", 4)
    recorded = {tensor.name: tensor.shape for tensor in read_tensors(directory)["main"]}
    assert NORMS.items() <= recorded.items()
    assert UpdateLayout.of(plan, split).quantiser.size == sum(int(np.prod(shape)) for shape in names.values())
    trained = load_file(directory / "checkpoints" / "round-000002.safetensors")["factors"]
    assert all(np.abs(split.shared.named(trained)[name]).max() > 0 for name in NORMS)


def test_the_plan_tells_devices(finished: tuple[dict[str, Any], Path]) -> None:
    plan = run_directory.read_config(finished[1]).plan("main", 4)
    assert Plan.decode(plan.encode()).adapter.share_base == ("norm",)
