"""Each family of base models, tiny and random: its usual modules, padding, pooling, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from penchant.common.config import AdapterConfig, ModelConfig, RunConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import BaseModelError, ConfigError
from penchant.common.model.backbone import Backbone, load_backbone
from penchant.common.model.factors import MergedWeights, Split
from penchant.common.model.network import AdaptedNetwork
from penchant.common.model.reward import RewardModel, load_reward_model

TABLE = Path(__file__).parents[2] / "docs" / "base-models.md"
FAMILIES = [
    tuple(cell.strip().strip("`") for cell in line.strip("|\n ").split("|"))
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| `[a-z0-9_-]+` \|", line)
]
"""(model type, target modules, pooling, what is read, classifier) of each row of the table."""
TEXTS = [
    ("the motion ", "on the bill"),
    ("", "a vote"),
    ("cloture ", "the judge of the budget to table a tax"),
]
AUTO = AdapterConfig(target_modules=("auto",), layers=(-2, -1), rank=2)


def loaded(folder: Path, **model: Any) -> RewardModel:
    return load_reward_model(ModelConfig(base_model=str(folder), max_tokens=12, **model), AUTO)


def factors(model: RewardModel) -> MergedWeights:
    split = Split.of(model.adapted_modules, model.embedding, AUTO, seed=3)
    rng = np.random.default_rng(5)
    return split.merged(
        *(rng.normal(size=part.size).astype(np.float32) for part in (split.shared, split.personal))
    )


def scores(model: RewardModel, effective: MergedWeights, texts: list[tuple[str, str]]) -> list[float]:
    with torch.no_grad():
        return model.scores(model.prepare_texts(texts), effective).tolist()


def test_the_table_has_the_families_that_were_asked_for() -> None:
    kinds = {row[0] for row in FAMILIES}
    assert {"bert", "llama", "gpt2", "t5", "gptj", "gpt_neox", "gemma3", "mixtral"} <= kinds
    assert len(kinds) == len(FAMILIES) >= 24


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row[0])
def test_a_family_is_as_the_table_says(row: tuple[str, ...], tiny_model: Callable[[str], Path]) -> None:
    kind, targets, pooling, part, classifier = row[:5]
    model = loaded(tiny_model(kind))
    assert model.targets == tuple(targets.split("`, `"))
    assert model.pooling == pooling
    assert model.part == ("" if part == "all of it" else part)
    assert model.classifier == ("" if classifier == "none" else classifier)
    assert len(model.adapted_modules) == 2
    effective = factors(model)
    together = scores(model, effective, TEXTS)  # padded to the longest
    alone = [scores(model, effective, [text])[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=2e-5)
    plain = MergedWeights({n: (a, b * 0) for n, (a, b) in effective.adapters.items()}, effective.head)
    assert together != pytest.approx(scores(model, plain, TEXTS), abs=1e-3)  # the factors are felt


@pytest.mark.parametrize(
    "kind", ["bert", "llama", "gpt2", "t5", "mpnet", "modernbert", "distilbert", "gpt_neox"]
)
def test_a_model_of_fewer_blocks_reads_what_the_whole_one_has_after_them(
    tiny_model: Callable[[str], Path], kind: str
) -> None:
    def cut(blocks: int) -> Backbone:
        return load_backbone(
            ModelConfig(base_model=str(tiny_model(kind)), max_tokens=12, blocks=blocks), device="cpu"
        )

    whole, short = cut(0), cut(2)
    assert len(short.blocks[1]) == 2 < len(whole.blocks[1])
    assert len({whole.digest, short.digest, cut(1).digest}) == 3
    assert short.digest == cut(2).digest
    tokens = whole.tokenizer(["the motion on the bill"], return_tensors="pt")
    seen: list[torch.Tensor] = []

    def see(_: Any, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    for one in (whole, short):
        one.blocks[1][1].register_forward_hook(see)
        with torch.no_grad():
            one.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    "kind", ["bert", "llama", "gpt2", "gptj", "t5", "mpnet", "modernbert", "distilbert", "gpt_neox", "bloom"]
)
def test_two_embeddings_side_by_side_are_those_of_either_block(
    tiny_model: Callable[[str], Path], kind: str, pooling: str
) -> None:
    """The first is made of what a block in between gives, the second of the last states; each is scaled."""
    folder, texts = str(tiny_model(kind)), [("", "the motion on the bill"), ("", "tax")]
    common = AdapterConfig(share="common")

    def model(**settings: Any) -> RewardModel:
        return load_reward_model(
            ModelConfig(base_model=folder, max_tokens=12, pooling=pooling, normalize=5, **settings),
            common,
            device="cpu",
        )

    both, last = model(beside=2), model()
    assert both.embedding == 2 * last.embedding
    assert len({both.digest, last.digest, model(beside=1).digest, model(blocks=2).digest}) == 4
    expected = torch.stack([_after(folder, 2, text, last.pooling) for _, text in texts])
    found, alone = both.prepare_texts(texts).packed, last.prepare_texts(texts).packed
    torch.testing.assert_close(found, torch.cat([expected, alone], 1), rtol=1e-4, atol=1e-5)
    head = torch.randn(1, both.embedding, generator=torch.Generator().manual_seed(0))
    scores = both.scores(both.prepare_texts(texts), MergedWeights({}, head))
    halves = torch.stack([normalize(expected), normalize(alone)], 1) * 5 / 2**0.5  # [texts, 2, d]
    torch.testing.assert_close(scores, halves.flatten(1) @ head[0], rtol=1e-4, atol=1e-5)


def _after(folder: str, block: int, text: str, pooling: str) -> torch.Tensor:
    """A text's pooled states after a block, as the block gives them."""
    backbone = load_backbone(ModelConfig(base_model=folder, max_tokens=12), device="cpu")
    seen: list[torch.Tensor] = []

    def see(_: Any, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    backbone.blocks[1][block - 1].register_forward_hook(see)
    tokens = backbone.tokenizer([text], return_tensors="pt", truncation=True, max_length=12)
    with torch.no_grad():
        backbone.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    states = seen[0].reshape(-1, seen[0].shape[-1])  # [tokens, d]
    return states.mean(0) if pooling == "mean" else states[-1]


def test_a_second_embedding_that_there_can_not_be_is_refused(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(BaseModelError, match=r"has 3 blocks, and model\.beside is 3; .* last, 2 at most"):
        loaded(tiny_model("bert"), beside=3)
    with pytest.raises(ConfigError, match=r"model\.beside is 2, and of 2 blocks .* last, 1 at most"):
        ModelConfig(blocks=2, beside=2)
    with pytest.raises(ConfigError, match=r"model\.beside is about the embedding under a score head"):
        ModelConfig(objective="dpo", beside=2)
    with pytest.raises(ConfigError, match=r"adapt no module, such as common, and share \"A\" does"):
        RunConfig().changed({"model.beside": 2})


def test_a_family_that_counts_its_states_otherwise_is_refused(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mamba's states have no embeddings in front of them, so that each would be read a block too deep."""

    def one_too_deep(network: AdaptedNetwork, output: Any) -> torch.Tensor:
        return torch.cat([output.hidden_states[network.beside + 1], output.last_hidden_state], dim=-1)

    monkeypatch.setattr(AdaptedNetwork, "states", one_too_deep)
    asked = ModelConfig(base_model=str(tiny_model("bert")), beside=1)
    with pytest.raises(BaseModelError, match=r"counts the states .* otherwise .*; set model\.beside to 0"):
        load_reward_model(asked, AdapterConfig(share="common"), device="cpu")


def test_more_blocks_than_there_are_are_refused_with_their_number(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(BaseModelError, match=r"has 3 blocks, and model.blocks is 4; ask for 3 at most, or"):
        loaded(tiny_model("bert"), blocks=4)
    with pytest.raises(BaseModelError, match=r"looks at pictures, and can't be cut; set model\.blocks to 0"):
        loaded(tiny_model("gemma3"), blocks=2)
    with pytest.raises(ConfigError, match=r"model\.blocks is about the embedding under a score head"):
        ModelConfig(objective="dpo", blocks=2)


def test_a_family_without_a_list_of_blocks_is_refused_in_one_line(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(BaseModelError, match="AlbertModel has no list of 3 blocks; it can't be adapted"):
        loaded(tiny_model("albert"))


def test_a_wrong_module_is_answered_with_those_there_are(tiny_model: Callable[[str], Path]) -> None:
    adapter = AdapterConfig(target_modules=("q_proj",))
    for kind, there in (
        ("gpt2", "attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"),
        ("t5", "layer.0.SelfAtt"),
    ):
        with pytest.raises(BaseModelError, match=f'no linear module "q_proj"; there are {there}.*auto takes'):
            load_reward_model(ModelConfig(base_model=str(tiny_model(kind))), adapter)


def test_auto_is_the_default_of_the_default_model(tiny_model: Callable[[str], Path]) -> None:
    assert loaded(tiny_model("bert")).targets == AdapterConfig().target_modules


# --- folders that are not as they should be -------------------------------------------------------


@pytest.fixture
def copied(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny model with changes to its config.json."""

    def copy(kind: str, **changes: object) -> Path:
        folder = tmp_path / kind
        shutil.copytree(tiny_model(kind), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return copy


def refusal(folder: Path) -> str:
    with pytest.raises(BaseModelError) as refused:
        loaded(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("pad", [-1, None])
def test_a_padding_token_that_is_none_changes_no_score(copied: Callable[..., Path], pad: int | None) -> None:
    as_it_was = loaded(copied("llama"))
    effective = factors(as_it_was)
    expected = scores(as_it_was, effective, TEXTS)
    shutil.rmtree(Path(as_it_was.published))
    folder = copied("llama", pad_token_id=pad)
    assert scores(loaded(folder), effective, TEXTS) == pytest.approx(expected, abs=1e-6)


def test_a_padding_token_beyond_the_vocabulary_is_refused(copied: Callable[..., Path]) -> None:
    assert "can't be loaded: Padding_idx must be within num_embeddings" in refusal(
        copied("llama", pad_token_id=40)
    )


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
def test_a_folder_without_a_tokenizer_is_refused(copied: Callable[..., Path], kind: str) -> None:
    folder = copied(kind)
    for file in folder.glob("*token*"):
        file.unlink()
    assert "has no tokenizer files; save its tokenizer into" in refusal(folder)


def test_a_tokenizer_that_knows_no_words_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied("bert")
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast"}))
    assert "tokenizer" in refusal(folder)


def test_the_last_value_of_a_large_tensor_is_looked_at_as_well(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are looked at in parts; the last part is a shorter one."""
    folder = copied("llama")
    weights = load_file(folder / "model.safetensors")
    name = "layers.1.mlp.down_proj.weight"
    monkeypatch.setattr("penchant.common.model.backbone._LOOKED_AT", weights[name].numel() // 2 - 1)
    weights[name][-1, -1] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"the weights of {name} hold values that are no numbers" in refusal(folder)


def test_weights_that_are_no_numbers_or_absent_are_refused_by_name(copied: Callable[..., Path]) -> None:
    folder = copied("llama")
    weights = load_file(folder / "model.safetensors")
    name = "layers.1.mlp.down_proj.weight"
    whole = weights[name].clone()
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"the weights of {name} hold values that are no numbers" in refusal(folder)
    weights[name] = whole
    del weights["layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "has no weights for layers.2.mlp.up_proj.weight; get the base model again" in refusal(folder)


# --- what is read of texts ------------------------------------------------------------------------


def test_texts_that_are_cut_and_pairs_that_are_then_the_same_are_counted(
    tiny_model: Callable[[str], Path],
) -> None:
    model = loaded(tiny_model("bert"))
    tail = "the motion on the bill to table a tax for the judge of cloture"  # 13 tokens, 12 are read
    pairs = [
        Preference("", f"yes {tail}", f"no {tail}"),  # cut at the left to the same
        Preference("", "the bill", "a vote"),
        Preference("", "unheard", "unseen"),  # both unknown words
    ]
    found = model.reading(pairs)
    assert (found.texts, found.cut, found.pairs, found.alike) == (6, 2, 3, 2)
    assert model.reading([]).cut == 0
    right = loaded(tiny_model("bert"), truncation="right").reading(pairs[:1])
    assert (right.cut, right.alike) == (2, 1)  # both unknown words first
