"""The rule table, the order on the wire, and the one function from tensors to factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.config import AdapterConfig
from penchant.common.errors import CodecError, ConfigError
from penchant.common.model.factors import AdaptedModule, Split
from penchant.common.shares import Head, Part, share_names, share_rule

ONE = (AdaptedModule("encoder.layer.5.output.dense", 6, 4),)
TWO = (AdaptedModule("layers.0.q_proj", 4, 4), AdaptedModule("layers.0.v_proj", 4, 2))
SLOT = "encoder.layer.5.output.dense"


def split(share: str, head: str = "auto", adapted_modules=ONE, rank: int = 2, **more) -> Split:
    rule = share_rule(share)
    return Split(adapted_modules, 4, rank, rule, rule.head(head), **more)


# --- the rule table -------------------------------------------------------------------------------

HEADLESS = ("lore", "common", "finetune", "meta", "shrinkage")  # whose head is made of other tensors
SHARED_NAMES = {
    "B": {f"{SLOT}.lora_B": (4, 2), "head.weight": (1, 4)},
    "A": {f"{SLOT}.lora_A": (2, 6), "head.weight": (1, 4)},
    "kernel": {f"{SLOT}.lora_A": (2, 6), f"{SLOT}.lora_B": (4, 2), "head.weight": (1, 4)},
    "svd": {f"{SLOT}.lora_A": (2, 6), f"{SLOT}.lora_B": (4, 2), "head.weight": (1, 4)},
    "AB": {f"{SLOT}.lora_A": (2, 6), f"{SLOT}.lora_B": (4, 2), "head.weight": (1, 4)},
    "none": {},
    "ffa": {f"{SLOT}.lora_B": (4, 2), "head.weight": (1, 4)},
    "lore": {"lore.basis": (2, 4)},
    "mixed": {
        f"{SLOT}.lora_A": (2, 6),
        f"{SLOT}.lora_B": (4, 2),
        "mixed.spread": (1,),
        "head.weight": (1, 4),
    },
    "common": {"common.head": (1, 4), "common.basis": (2, 4), "common.spread": (1,)},
    "finetune": {f"{SLOT}.lora_A": (2, 6), f"{SLOT}.lora_B": (4, 2), "common.head": (1, 4)},
    "meta": {"meta.basis": (2, 4), "meta.start": (2,)},
    "shrinkage": {"common.head": (1, 4), "shrinkage.spread": (1,)},
}
PERSONAL_NAMES = {
    "B": {f"{SLOT}.lora_A": (2, 6)},
    "A": {f"{SLOT}.lora_B": (4, 2)},
    "kernel": {f"{SLOT}.lora_K": (2, 2)},
    "svd": {f"{SLOT}.lora_s": (2,)},
    "AB": {},
    "none": {f"{SLOT}.lora_A": (2, 6), f"{SLOT}.lora_B": (4, 2), "head.weight": (1, 4)},
    "ffa": {},
    "lore": {"lore.weights": (2,)},
    "mixed": {f"{SLOT}.lora_D": (4, 2)},
    "common": {"common.weights": (2,)},
    "finetune": {f"{SLOT}.lora_DA": (2, 6), f"{SLOT}.lora_DB": (4, 2), "finetune.head": (1, 4)},
    "meta": {"meta.weights": (2,)},
    "shrinkage": {"shrinkage.head": (1, 4)},
}


@pytest.mark.parametrize("share", share_names())
def test_what_leaves_the_device_by_name_and_shape(share: str) -> None:
    made = split(share)
    assert {s.name: s.shape for s in made.shared.specs} == SHARED_NAMES[share]
    assert {s.name: s.shape for s in made.personal.specs} == PERSONAL_NAMES[share]


@pytest.mark.parametrize("share", [s for s in share_names() if s not in ("none", *HEADLESS)])
def test_a_personal_head_moves_from_shared_to_personal(share: str) -> None:
    made = split(share, "personal")
    assert "head.weight" not in made.shared.names
    assert made.personal.names[-1] == "head.weight"


@pytest.mark.parametrize("share", ["B", "A", "kernel", "svd", "mixed"])
@pytest.mark.parametrize("head", ["shared", "personal"])
def test_warm_up_shares_both_factors_and_the_head(share: str, head: str) -> None:
    warm = split(share, head, warmup=True)
    assert {s.name: s.shape for s in warm.shared.specs} == SHARED_NAMES["AB"]
    assert warm.personal.size == 0


@pytest.mark.parametrize("share", ["AB", "none", "ffa", *HEADLESS])
def test_no_warm_up_where_there_is_nothing_to_warm_up_for(share: str) -> None:
    with pytest.raises(ConfigError, match="no split to warm up"):
        split(share, warmup=True)


def test_every_trained_tensor_has_one_part() -> None:
    for share in share_names():
        parts = share_rule(share).parts(Head.PERSONAL)
        assert all(isinstance(part, Part) for part in parts.values())
        frozen = {role for role, part in parts.items() if part is Part.FROZEN}
        assert frozen == ({"A"} if share == "ffa" else set())


# --- the order on the wire ------------------------------------------------------------------------


def test_order_is_slots_then_factors_then_head() -> None:
    made = split("AB", adapted_modules=TWO)
    assert made.shared.names == (
        "layers.0.q_proj.lora_A",
        "layers.0.q_proj.lora_B",
        "layers.0.v_proj.lora_A",
        "layers.0.v_proj.lora_B",
        "head.weight",
    )
    assert made.shared.size == 2 * 4 + 4 * 2 + 2 * 4 + 2 * 2 + 4


def test_named_is_row_major_in_that_order() -> None:
    made = split("A")
    named = made.shared.named(np.arange(16, dtype=np.float32))
    assert named[f"{SLOT}.lora_A"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert named["head.weight"].tolist() == [[12, 13, 14, 15]]


@settings(max_examples=40, deadline=None)
@given(
    share=st.sampled_from(share_names()),
    rank=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_flatten_undoes_unflatten(share: str, rank: int, seed: int) -> None:
    made = split(share, adapted_modules=TWO, rank=rank)
    for layout in (made.shared, made.personal):
        vector = np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)
        back = layout.flatten(layout.unflatten(vector))
        assert back.dtype == np.float32
        assert back.tobytes() == vector.tobytes()


def test_unflattened_tensors_share_no_memory() -> None:
    made = split("A")
    vector = np.zeros(made.shared.size, dtype=np.float32)
    made.shared.unflatten(vector)["head.weight"].fill_(1)
    assert not vector.any()


@pytest.mark.parametrize(
    "vector",
    [np.zeros(15, np.float32), np.zeros(17, np.float32), np.zeros(16), np.zeros((4, 4), np.float32)],
)
def test_a_vector_of_another_length_or_type_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(CodecError, match="same configuration"):
        split("A").shared.unflatten(vector)


def test_flatten_refuses_other_names_and_shapes() -> None:
    made = split("A")
    with pytest.raises(ConfigError, match="not those of the split"):
        made.shared.flatten({"head.weight": torch.zeros(1, 4)})
    with pytest.raises(ConfigError, match="has shape"):
        made.personal.flatten({f"{SLOT}.lora_B": torch.zeros(2, 4)})


# --- starts ---------------------------------------------------------------------------------------


def test_the_start_is_the_same_for_all_methods_and_devices() -> None:
    shared, personal = split("A").initial(7)
    again, _ = split("A").initial(7)
    other, _ = split("A").initial(8)
    both, _ = split("AB").initial(7)
    assert shared.tobytes() == again.tobytes()
    assert shared.tobytes() != other.tobytes()
    assert not personal.any()  # B starts at zero
    as_ab = split("AB").shared.named(both)
    as_a = split("A").shared.named(shared)
    assert all((as_ab[name] == as_a[name]).all() for name in as_a)


def test_a_is_drawn_with_the_true_fan_in() -> None:
    wide = (AdaptedModule("x.dense", 1000, 8),)
    shared, _ = Split(wide, 8, 4, share_rule("A"), Head.PERSONAL).initial(0)
    assert np.abs(shared).max() == pytest.approx(1 / math.sqrt(1000), rel=0.01)


def test_kernel_and_diagonal_start_at_the_identity() -> None:
    assert split("kernel").initial(3)[1].tolist() == [1, 0, 0, 1]
    assert split("svd").initial(3)[1].tolist() == [1, 1]


@pytest.mark.parametrize("share", ["B", "A", "kernel", "svd", "mixed"])
@pytest.mark.parametrize("head", ["shared", "personal"])
def test_after_the_warm_up_the_model_is_the_same_one(share: str, head: str) -> None:
    warm, main = split(share, head, warmup=True), split(share, head)
    trained = np.random.default_rng(0).normal(size=warm.shared.size).astype(np.float32)
    shared, personal = main.start_from(warm, trained, seed=0)
    before = warm.merged(trained, np.zeros(0, np.float32))
    after = main.merged(shared, personal)
    for name, factors in before.adapters.items():
        for one, other in zip(factors, after.adapters[name], strict=True):
            assert torch.equal(one, other)
    assert torch.equal(before.head, after.head)


def test_ffa_freezes_the_same_a_everywhere() -> None:
    one, other = split("ffa", seed=5), split("ffa", seed=5)
    shared, personal = one.initial(0)
    factors = [s.merged(shared, personal).adapters[SLOT][0] for s in (one, other)]
    assert torch.equal(*factors)
    assert factors[0].abs().max() > 0


# --- effective ------------------------------------------------------------------------------------


def _tensors(**values: list) -> dict[str, torch.Tensor]:
    names = {"A": f"{SLOT}.lora_A", "B": f"{SLOT}.lora_B", "K": f"{SLOT}.lora_K", "s": f"{SLOT}.lora_s"}
    names |= {"head": "head.weight", "V": "lore.basis", "w": "lore.weights"}
    return {names[key]: torch.tensor(value, dtype=torch.float32) for key, value in values.items()}


SMALL = (AdaptedModule(SLOT, 2, 2),)
A = [[1.0, 2.0], [3.0, 4.0]]
B = [[1.0, 0.0], [1.0, 1.0]]
HEAD = [[1.0, 0.0, 0.0, 2.0]]


def test_effective_by_hand() -> None:
    """B K A with K = [[0, 1], [2, 0]]: K A = [[3, 4], [2, 4]], so B K A = [[3, 4], [5, 8]]."""
    made = split("kernel", adapted_modules=SMALL)
    effective = made.effective(_tensors(A=A, B=B, head=HEAD), _tensors(K=[[0, 1], [2, 0]]))
    a, b = effective.adapters[SLOT]
    assert (b @ a).tolist() == [[3, 4], [5, 8]]
    assert effective.head.tolist() == HEAD

    made = split("svd", adapted_modules=SMALL)
    a, b = made.effective(_tensors(A=A, B=B, head=HEAD), _tensors(s=[10, 1])).adapters[SLOT]
    assert (b @ a).tolist() == [[10, 20], [13, 24]]

    made = split("B", adapted_modules=SMALL)
    a, b = made.effective(_tensors(B=B, head=HEAD), _tensors(A=A)).adapters[SLOT]
    assert (b @ a).tolist() == [[1, 2], [4, 6]]


def test_lore_is_a_head_and_no_adapter() -> None:
    made = split("lore", adapted_modules=SMALL)
    effective = made.effective(_tensors(V=[[1, 0, 0, 0], [0, 1, 1, 0]]), _tensors(w=[2, 3]))
    assert effective.adapters == {}
    assert effective.head.tolist() == [[2, 3, 3, 0]]


@pytest.mark.parametrize("share", share_names())
def test_effective_is_differentiable_in_every_trained_tensor(share: str) -> None:
    made = split(share)
    vectors = [np.random.default_rng(0).normal(size=p.size) for p in (made.shared, made.personal)]
    shared = made.shared.unflatten(vectors[0].astype(np.float32))
    personal = made.personal.unflatten(vectors[1].astype(np.float32))
    trained = {name: t for name, t in (shared | personal).items() if name != made.spread_tensor}
    leaves = [t.requires_grad_() for t in trained.values()]
    effective = made.effective(shared, personal)
    total = effective.head.sum() + sum((b @ a).square().sum() for a, b in effective.adapters.values())
    gradients = torch.autograd.grad(total, leaves)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 5])
def test_rank_out_of_range(rank: int) -> None:
    with pytest.raises(ConfigError, match=r"must lie in 1 … 4"):
        split("A", rank=rank)


def test_contradictions() -> None:
    with pytest.raises(ConfigError, match="contradicts"):
        share_rule("none").head("shared")
    with pytest.raises(ConfigError, match="auto, shared or personal"):
        share_rule("A").head("both")
    with pytest.raises(ConfigError, match="no module is adapted"):
        split("A", adapted_modules=())


def test_from_configuration() -> None:
    made = Split.of(ONE, 4, AdapterConfig(share="B", rank=3))
    assert made.shared.names == (f"{SLOT}.lora_B", "head.weight")
    assert made.personal.specs[0].shape == (3, 6)
