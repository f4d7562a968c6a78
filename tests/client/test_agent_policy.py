"""The owner's policy: what this device accepts, whatever a server says."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scene import announcement

from penchant.client.agent import policy as policy_module
from penchant.client.agent.policy import OwnerPolicy, checked_factors
from penchant.common.config import AdapterConfig, ModelConfig, Plan, RunConfig, TrainingConfig
from penchant.common.errors import AgreementError, ConfigError, PolicyRefusal
from penchant.common.model.factors import AdaptedModule, Split
from penchant.common.settings import settings_of
from penchant.common.wire.messages import Announce, Kind
from penchant.deploy.recipes import recipe

NOISED = {"privacy.dp_epsilon": 8.0, "privacy.dp_participations": 11, "privacy.dp_honest": 10}


def plan(**changes: Any) -> Plan:
    return dataclasses.replace(RunConfig().changed(NOISED).plan("main", 17), **changes)


def announced(kind: Kind = Kind.SECAGG) -> Announce:
    return announcement(17, kind=kind)


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-01T{clock}")


# --- what a server may ask ------------------------------------------------------------------------


def test_the_defaults_allow_a_usual_round_and_nothing_unmasked() -> None:
    OwnerPolicy().check(announced(), plan())
    with pytest.raises(PolicyRefusal, match="asks to send unmasked; only the owner's policy may allow that"):
        OwnerPolicy().check(announced(Kind.PLAIN), plan())
    OwnerPolicy(allow_unmasked=True).check(announced(Kind.PLAIN), plan())


def test_a_paused_device_takes_part_in_nothing() -> None:
    paused = OwnerPolicy(paused=True, allow_unmasked=True)
    for kind in Kind:
        with pytest.raises(PolicyRefusal, match="paused by the owner"):
            paused.check(announced(kind), plan())
    assert not paused.ready(at("12:00"))
    assert OwnerPolicy().ready(at("12:00"))


def test_only_base_models_that_the_owner_named_are_loaded() -> None:
    asked = plan(model=ModelConfig(base_model="evil/model"))
    with pytest.raises(PolicyRefusal, match="base model 'evil/model' is not among those the owner allows"):
        OwnerPolicy().check(announced(), asked)
    OwnerPolicy(base_models=("evil/model",)).check(announced(), asked)
    with pytest.raises(PolicyRefusal, match="all-MiniLM-L6-v2"):
        OwnerPolicy(base_models=()).check(announced(), plan())


@pytest.mark.parametrize(
    ("training", "cost"),
    [
        ({"local_epochs": 101, "final_fit_epochs": 0}, 101),
        ({"local_epochs": 1, "final_fit_epochs": 101}, 101),
        ({"local_epochs": 60, "final_fit_epochs": 0, "update_order": "alternating"}, 120),
    ],
)
def test_one_round_costs_no_more_than_the_owner_allows(training: dict[str, Any], cost: int) -> None:
    asked = plan(training=TrainingConfig(**training))
    with pytest.raises(PolicyRefusal, match=f"{cost} epochs in one round; the owner allows 100"):
        OwnerPolicy(max_epochs=100).check(announced(), asked)
    OwnerPolicy(max_epochs=cost).check(announced(), asked)


# --- bounds on everything that a plan asks for --------------------------------------------------------

ADAPTER, TRAINING = AdapterConfig(), TrainingConfig()


def adapted(**changes: Any) -> dict[str, Any]:
    return {"adapter": dataclasses.replace(ADAPTER, **changes)}


def reading(**changes: Any) -> dict[str, Any]:
    return {"model": dataclasses.replace(ModelConfig(), **changes)}


def trained(**changes: Any) -> dict[str, Any]:
    return {"training": dataclasses.replace(TRAINING, **changes)}


@pytest.mark.parametrize(
    ("asked", "bound", "tight", "wide"),
    [
        (adapted(share="AB"), "shares", ("A",), ("A", "AB")),
        (adapted(target_modules=("query", "value")), "modules", ("query",), ("*",)),
        (adapted(share_base=("norm",)), "base_parts", (), ("norm",)),
        (adapted(layers=(-1, -3)), "last_blocks", 2, 3),
        (adapted(layers=(0,)), "any_block", False, True),
        (adapted(layers=()), "any_block", False, True),
        (reading(max_tokens=15), "min_tokens", 16, 15),
        (reading(blocks=2), "min_blocks", 3, 2),
        (reading(beside=2) | adapted(share="common"), "min_blocks", 3, 2),
        (reading(pooling="first"), "poolings", ("auto", "mean"), ("first",)),
        (reading(pooling="last"), "poolings", ("auto", "mean"), ("*",)),
        (reading(normalize=31.0), "max_normalize", 30.0, 31.0),
        (reading(objective="dpo"), "objectives", ("reward",), ("dpo",)),
        (reading(normalize=0.0), "unnormalized", False, True),
        (adapted(rank=17), "max_rank", 16, 17),
        (adapted(alpha=17.0, rank=2), "max_scale", 8.0, 8.5),
        (adapted(head="shared"), "shared_head", False, True),
        ({"phase": "warmup"}, "warm_up", False, True),
        (trained(optimizer="sgd"), "optimizers", ("adamw",), ("adamw", "sgd")),
        (trained(shared_optimizer="sgd"), "optimizers", ("adamw",), ("sgd", "adamw")),
        (trained(local_epochs=101), "max_epochs", 100, 101),
        (trained(batch_size=3), "min_batch", 4, 3),
        (trained(lr_shared=0.3), "max_rate", 0.2, 0.3),
        (trained(lr_personal=0.3), "max_rate", 0.2, 0.3),
        (trained(lr_head=0.3), "max_rate", 0.2, 0.3),
        (trained(final_fit_lr=0.3), "max_rate", 0.2, 0.3),
        (trained(l2_to_start=1e6), "max_rate", 1.0, 1e4),
        (trained(weight_decay=100.0, lr_personal=0.1), "max_rate", 1.0, 10.0),
        ({"clip": 11.0}, "max_clip", 10.0, 11.0),
        ({"max_weight": 2000}, "max_weight", 1024, 2000),
        ({"training_seconds": 9.0}, "min_training_seconds", 10.0, 9.0),
        ({"training_seconds": 900.0}, "max_training_seconds", 600.0, 900.0),
    ],
    ids=str,
)
def test_a_plan_beyond_a_bound_is_refused_by_its_name(
    asked: dict[str, Any], bound: str, tight: Any, wide: Any
) -> None:
    said = {"any_block": "last_blocks"}.get(bound, bound)
    with pytest.raises(PolicyRefusal, match=rf"\({said}\)$"):
        OwnerPolicy(**{bound: tight}).check(announced(), plan(**asked))
    OwnerPolicy(**{bound: wide}).check(announced(), plan(**asked))


BLOCK = AdaptedModule("encoder.layer.0.output.dense", 8, 4)


def split(share: str = "A", modules: int = 1) -> Split:
    adapted = [dataclasses.replace(BLOCK, name=f"encoder.layer.{i}.output.dense") for i in range(modules)]
    return Split.of(adapted, 4, AdapterConfig(share=share), seed=0)


def test_size_is_counted_in_modules_and_in_shared_numbers() -> None:
    OwnerPolicy(max_modules=2).check_size(split(modules=2))
    with pytest.raises(PolicyRefusal, match=r"3 adapted modules; the owner allows 2 \(max_modules\)"):
        OwnerPolicy(max_modules=2).check_size(split(modules=3))
    size = split().shared.size
    OwnerPolicy(max_shared=size).check_size(split())
    with pytest.raises(PolicyRefusal, match=rf"{size} shared numbers; the owner allows {size - 1}"):
        OwnerPolicy(max_shared=size - 1).check_size(split())


@pytest.mark.parametrize(
    ("share", "tensor", "bound"),
    [
        ("A", "encoder.layer.0.output.dense.lora_A", "max_factor_ratio"),
        ("A", "encoder.layer.0.output.dense.lora_B", "max_factor_ratio"),  # in the start of what is personal
        ("A", "head.weight", "max_head_norm"),
        ("lore", "lore.basis", "max_head_norm"),
    ],
)
def test_announced_factors_are_measured_by_the_weight_that_they_change(
    share: str, tensor: str, bound: str
) -> None:
    parts = split(share)
    norms = {BLOCK.name: 5.0} if share == "A" else {}

    def announce(norm: float) -> None:
        tensors = {"shared": parts.shared.named(np.zeros(parts.shared.size, np.float32))}
        tensors["personal"] = parts.personal.named(np.zeros(parts.personal.size, np.float32))
        for named in tensors.values():
            if tensor in named:
                named[tensor].flat[0] = norm
        flat = {
            part: np.concatenate([one.ravel() for one in named.values()] or [np.zeros(0, np.float32)])
            for part, named in tensors.items()
        }
        policy = OwnerPolicy(max_factor_ratio=2.0, max_head_norm=10.0)
        policy.check_norms(parts, flat["shared"], flat["personal"], norms)

    announce(10.0)
    with pytest.raises(PolicyRefusal, match=rf"the announced {tensor} has the L2 norm 10.*\({bound}\)"):
        announce(10.1)


def test_the_usual_recipes_are_within_the_default_bounds() -> None:
    for share in ("A", "B", "AB", "none", "lore", "kernel", "svd", "ffa", "mixed", "common"):
        config = RunConfig().changed(recipe("senate", share)).changed(NOISED)
        for phase in ("warmup", "main", "close"):
            if phase != "warmup" or config.federation.warmup_rounds:
                OwnerPolicy().check(announced(), config.plan(phase, 34))


def test_what_stands_beside_the_last_embedding_is_bounded_like_it() -> None:
    for beside, refused in ((2, True), (3, False)):
        changes = {"adapter.share": "common", "model.beside": beside}
        plan = RunConfig().changed(NOISED | changes).plan("main", 17)
        with pytest.raises(PolicyRefusal, match=r"\(min_blocks\)") if refused else contextlib.nullcontext():
            OwnerPolicy().check(announced(), plan)


HOSTILE = {  # each of them reads single choices, or words, better than an honest plan does
    "model.max_tokens": 2,
    "model.blocks": 1,
    "model.pooling": "first",
    "model.normalize": 1000.0,
    "model.objective": "dpo",
    "adapter.layers": [0],
    "training.batch_size": 1,
    "training.local_epochs": 1000,
    "training.final_fit_epochs": 1000,
    "training.lr_shared": 1.0,
    "training.lr_personal": 1.0,
    "training.lr_head": 1.0,
    "federation.training_seconds": 0.1,
}
AT_THE_BOUNDS = {
    "model.max_tokens": 16,
    "model.blocks": 3,
    "model.pooling": "mean",
    "model.normalize": 30.0,
    "adapter.target_modules": ["value", "query", "key"],
    "adapter.rank": 16,
    "adapter.alpha": 128.0,
    "training.batch_size": 4,
    "training.local_epochs": 100,
    "training.lr_shared": 0.1,
    "training.lr_personal": 0.1,
    "training.lr_head": 0.1,
    "training.final_fit_lr": 0.1,
    "training.weight_decay": 1.0,
    "federation.training_seconds": 10.0,
}


@pytest.mark.parametrize("key", HOSTILE)
def test_no_part_of_a_hostile_plan_passes_by_default(key: str) -> None:
    asked = RunConfig().changed(NOISED | {key: HOSTILE[key]}).plan("main", 17)
    with pytest.raises(PolicyRefusal, match=r"the (owner|plan) "):
        OwnerPolicy().check(announced(), asked)


def test_the_bounds_themselves_are_allowed() -> None:
    OwnerPolicy().check(announced(), RunConfig().changed(NOISED | AT_THE_BOUNDS).plan("main", 17))


def test_beta_is_bounded_where_the_owner_allows_an_objective_that_reads_it() -> None:
    policy = OwnerPolicy(objectives=("reward", "dpo"))
    usual = RunConfig().changed(NOISED | {"model.objective": "dpo"})
    policy.check(announced(), usual.changed({"model.beta": 1.0}).plan("main", 17))
    with pytest.raises(PolicyRefusal, match=r"\(max_beta\)"):
        policy.check(announced(), usual.changed({"model.beta": 1.1}).plan("main", 17))
    wider = dataclasses.replace(policy, max_beta=1.1)
    wider.check(announced(), usual.changed({"model.beta": 1.1}).plan("main", 17))


BOUNDED = {  # by what the owner bounds each part of a plan
    "phase": "warm_up",
    "model.base_model": "base_models",
    "model.pooling": "poolings",
    "model.normalize": "max_normalize",
    "model.max_tokens": "min_tokens",
    "model.blocks": "min_blocks",
    "model.beside": "min_blocks",
    "model.objective": "objectives",
    "model.beta": "max_beta",
    "adapter.share": "shares",
    "adapter.head": "shared_head",
    "adapter.rank": "max_rank",
    "adapter.alpha": "max_scale",
    "adapter.target_modules": "modules",
    "adapter.layers": "last_blocks",
    "adapter.share_base": "base_parts",
    "training.optimizer": "optimizers",
    "training.shared_optimizer": "optimizers",
    "training.lr_shared": "max_rate",
    "training.lr_personal": "max_rate",
    "training.lr_head": "max_rate",
    "training.weight_decay": "max_rate",
    "training.l2_to_start": "max_rate",
    "training.final_fit_lr": "max_rate",
    "training.local_epochs": "max_epochs",
    "training.personal_epochs": "max_epochs",
    "training.final_fit_epochs": "max_epochs",
    "training.batch_size": "min_batch",
    "clip": "max_clip",
    "max_weight": "max_weight",
    "training_seconds": "min_training_seconds",
    "dp_epsilon": "max_epsilon",
    "dp_delta": "max_epsilon",
    "dp_participations": "max_epsilon",
    "dp_honest": "max_epsilon",
}
ROOT = Path(__file__).resolve().parents[2]


def test_whatever_a_plan_can_ask_is_bounded_or_argued_for() -> None:
    """A new part of a plan fails here until the owner bounds it, or the threat model says why not."""
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    argued = page.split("### What a plan can ask")[1].split("\n#")[0]
    keys = {one.key for one in settings_of(Plan)}
    assert set(BOUNDED) <= keys
    assert set(BOUNDED.values()) <= {one.key for one in settings_of(OwnerPolicy)}
    for key in keys - set(BOUNDED):
        assert f"`{key.rpartition('.')[2]}`" in argued, f"the threat model does not say why {key} is harmless"
    for key in BOUNDED:
        assert f"`{key.rpartition('.')[2]}`" not in argued, f"the owner does bound {key}"


def test_the_page_lists_every_setting_of_the_policy_with_its_default() -> None:
    page = (ROOT / "docs" / "device.md").read_text(encoding="utf-8").split("## policy.toml")[1]
    table = page.split("\n\n")[1]
    listed = set(re.findall(r"`([a-z_]+)`", " ".join(row.split("|")[1] for row in table.splitlines())))
    assert listed == {one.key for one in settings_of(OwnerPolicy)}
    shown = {key: row.split("|")[2] for row in table.splitlines() for key in re.findall(r"`([a-z_]+)`", row)}
    for one in settings_of(OwnerPolicy):
        if one.kind in (int, float):
            numbers = shown[one.key].replace(",", "").split()
            assert one.default in [float(number) for number in numbers if number[0].isdigit()], one.key


def test_a_step_of_adamw_moves_a_number_by_less_than_is_said() -> None:
    """Gradients that grow as the bound of Cauchy and Schwarz has it, after a long silence: the worst case."""
    number = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([number], lr=0.1, weight_decay=0.0, foreach=False)
    growth, largest = 0.999 / 0.9, 0.0
    for step in range(-6000, 60):
        before = number.item()
        number.grad = torch.tensor([growth**step if step >= 0 else 0.0])
        optimizer.step()
        largest = max(largest, abs(number.item() - before))
    assert 7.2 * 0.1 < largest < 7.3 * 0.1


def test_sums_without_noise_are_the_owners_to_allow() -> None:
    exact = plan(dp_epsilon=0.0)
    with pytest.raises(PolicyRefusal, match="allow_exact_sums"):
        OwnerPolicy().check(announced(), exact)
    OwnerPolicy(allow_exact_sums=True).check(announced(), exact)


def test_refusals_are_one_line() -> None:
    asked = plan(model=ModelConfig(base_model="two\nlines"))
    with pytest.raises(PolicyRefusal) as caught:
        OwnerPolicy().check(announced(), asked)
    assert "\n" not in str(caught.value)


# --- hours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("", ["00:00", "12:00", "23:59:59"], []),
        ("09:00-17:30", ["09:00", "12:00", "17:29:59"], ["08:59:59", "17:30", "00:00"]),
        ("22:00-06:30", ["22:00", "23:59:59", "00:00", "06:29"], ["06:30", "12:00", "21:59:59"]),
        ("22:00 - 06:30", ["23:00"], ["07:00"]),
        ("00:00-23:59", ["00:00", "23:58"], ["23:59"]),
    ],
)
def test_hours_hold_from_their_start_until_before_their_end(
    hours: str, inside: list[str], outside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = OwnerPolicy(hours=hours)
    for clock in (*inside, *outside):
        assert policy.ready(at(clock)) == (clock in inside), clock

        class Now(datetime):
            @classmethod
            def now(cls, tz: Any = None, clock: str = clock) -> datetime:  # type: ignore[override]
                return at(clock)

        monkeypatch.setattr(policy_module, "datetime", Now)
        if clock in inside:
            policy.check(announced(), plan())
        else:
            with pytest.raises(PolicyRefusal, match=f"outside the hours that the owner allows, {hours}"):
                policy.check(announced(), plan())
            policy.check_time(sent=True)  # a round whose vector has left is finished


@pytest.mark.parametrize(
    "hours",
    [
        *("night", "22:00", "22:00-", "25:00-26:00", "1:00-2:00-3:00"),
        *("09:00Z-17:00", "09:00-17:00Z", "09:00+01:00-17:00"),
    ],
)
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OwnerPolicy(hours=hours)
    assert str(caught.value) == f'policy.hours is "{hours}"; write it like "22:00-06:30"'


# --- as a file ------------------------------------------------------------------------------------


@given(
    st.builds(
        OwnerPolicy,
        base_models=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3).map(
            tuple
        ),
        min_honest=st.integers(1, 100_000),
        max_colluders=st.integers(0, 100_000),
        allow_unmasked=st.booleans(),
        paused=st.booleans(),
        hours=st.sampled_from(["", "22:00-06:30", "09:00-17:00"]),
        max_epochs=st.integers(1, 1_000_000),
        max_factor=st.floats(1e-3, 1e9),
        max_message_mb=st.integers(1, 512),
    )
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_a_policy_is_read_back_as_it_was_written(policy: OwnerPolicy) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.toml"
        path.write_text(policy.to_toml(), encoding="utf-8")
        assert OwnerPolicy.read(path) == policy


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("min_honst = 3", 'unknown configuration key "min_honst"; did you mean "min_honest"?'),
        ("min_honest = 0", "policy.min_honest is 0; it must lie in 1 … 100000"),
        ("max_colluders = -1", "policy.max_colluders is -1"),
        ("max_epochs = 0", "policy.max_epochs is 0; it must lie in 1 … 1"),
        ("max_message_mb = 513", "policy.max_message_mb is 513; it must lie in 1 … 512"),
        ("max_factor = 1e10", "policy.max_factor is 10000000000.0; it must lie in 0.001 … 1e+09"),
        ("max_factor = nan", "policy.max_factor is nan; it must be a finite number"),
        ("allow_unmasked = 1", "policy.allow_unmasked is 1; it must be true or false"),
        ('base_models = "all"', "policy.base_models must be a list"),
        ('hours = "late"', 'policy.hours is "late"'),
        ("paused = ", "can't read the owner's policy"),
        ("min_honest = " + "9" * 5000, "can't read the owner's policy"),
        ("paused = " + "[" * 5000, "can't read the owner's policy"),
    ],
    ids=lambda text: text[:20],
)
def test_a_wrong_policy_file_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "policy.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        OwnerPolicy.read(tmp_path / "policy.toml")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_policy_file_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read the owner's policy"):
        OwnerPolicy.read(tmp_path / "absent.toml")


# --- honest people --------------------------------------------------------------------------------


def test_honest_people_in_a_sum_are_counted_by_the_owners_word() -> None:
    """t = ⌊2n/3⌉ + 1 of them send; as many as the owner fears may be the server's."""
    assert OwnerPolicy(max_colluders=2).honest_among(30) == 21 - 2
    assert OwnerPolicy(max_colluders=0).honest_among(3) == 3
    passed = OwnerPolicy(min_honest=7, max_colluders=3, allow_unmasked=True).secagg()
    assert (passed.min_honest, passed.max_colluders, passed.allow_unmasked) == (7, 3, True)


# --- received factors -----------------------------------------------------------------------------


def test_sound_factors_lie_in_what_was_sent_and_can_not_be_written() -> None:
    sent = np.float32([1.0, -1000.0, 0.0])
    got = checked_factors(sent.astype("<f4").tobytes(), 3, 1e3)
    assert got.dtype == np.float32
    assert not got.flags.writeable
    assert np.array_equal(got, sent)
    assert checked_factors(b"", 0, 1e3).size == 0


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1.0, 2.0], "the announced factors have 8 bytes, expected 3 numbers"),
        ([1.0, 2.0, 3.0, 4.0], "the announced factors have 16 bytes, expected 3 numbers"),
        ([1.0, math.nan, 3.0], "values that are not finite"),
        ([1.0, -math.inf, 3.0], "values that are not finite"),
        ([1.0, 1000.1, 3.0], "exceed 1000"),
        ([1.0, -1000.1, 3.0], "exceed 1000"),
    ],
)
def test_unsound_factors_are_refused(values: list[float], line: str) -> None:
    with pytest.raises(AgreementError, match=line):
        checked_factors(np.asarray(values, "<f4").tobytes(), 3, 1e3)


def test_half_a_number_is_refused() -> None:
    with pytest.raises(AgreementError, match="factors have 11 bytes"):
        checked_factors(bytes(11), 3, 1e3)
