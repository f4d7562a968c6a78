"""Settings: what one declaration gives, and what the names of earlier versions still mean."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.config import (
    FederationConfig,
    Phase,
    Plan,
    PrivacyConfig,
    RunConfig,
    TrainingConfig,
    config_digest,
)
from penchant.common.errors import ConfigError
from penchant.common.settings import (
    RenamedSetting,
    Section,
    as_in,
    as_toml,
    build_section,
    current_keys,
    current_names,
    section_table,
    setting,
    settings_by_group,
    settings_of,
)

NEW_NAMES = {
    "data.until": "data.time_cutoff",
    "training.chunk": "training.micro_batch_size",
    "training.order": "training.update_order",
    "training.pull": "training.l2_to_start",
    "training.refit_epochs": "training.final_fit_epochs",
    "training.refit_lr": "training.final_fit_lr",
}


# --- one declaration ------------------------------------------------------------------------------

KNOWN = ["mean", "median"]


@dataclass(frozen=True)
class TeaConfig(Section):
    """A section of its own, with every kind of setting."""

    minutes: float = setting(3.0, "How long it draws.", low=0, high=10, old=("steep",), stored="steep")
    cups: int = setting(1, "How many.", choices=(1, 2, 4))
    milk: Literal["none", "first"] = setting(
        "none", "When milk goes in.", flag="--milk-first/--no-milk", switch=("first", "none")
    )
    rule: str = setting("mean", "A rule out of a registry.", choices=lambda: tuple(KNOWN), group="Rules")


@dataclass(frozen=True)
class Kitchen(Section):
    seed: int = setting(0, "The seed.", low=0, high=9)
    tea: TeaConfig = dataclasses.field(default_factory=TeaConfig)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"minutes": 11.0}, "tea.minutes is 11.0; it must lie in 0 … 10"),
        ({"minutes": "long"}, "tea.minutes is 'long'; it must be a number"),
        ({"cups": 3}, "tea.cups is 3; it must be 1 or 2 or 4"),
        ({"milk": "last"}, "tea.milk is 'last'; choose one of none, first"),
        ({"rule": "mode"}, "tea.rule is 'mode'; choose one of mean, median"),
    ],
)
def test_a_section_checks_what_was_declared(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TeaConfig(**change)
    assert str(caught.value) == line


def test_a_registry_that_grows_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.KNOWN", [*KNOWN, "mode"])
    assert TeaConfig(rule="mode").rule == "mode"
    (rule,) = [one for one in settings_of(TeaConfig) if one.key == "rule"]
    assert rule.allowed == "mean, median, mode"


def test_what_was_declared_is_listed_with_flag_default_range_and_heading() -> None:
    listed = [(one.key, one.flag, one.default_text, one.allowed, one.group) for one in settings_of(Kitchen)]
    assert listed == [
        ("seed", "--seed", "0", "0 to 9", "Kitchen"),
        ("tea.minutes", "--minutes", "3.0", "0 to 10", "Tea"),
        ("tea.cups", "--cups", "1", "1, 2, 4", "Tea"),
        ("tea.milk", "--milk-first/--no-milk", '"none"', "none, first", "Tea"),
        ("tea.rule", "--rule", '"mean"', "mean, median", "Rules"),
    ]
    assert list(settings_by_group(Kitchen)) == ["Kitchen", "Tea", "Rules"]


def test_a_copied_field_has_the_range_and_the_choices_of_its_source() -> None:
    @dataclass(frozen=True)
    class Order(Section):
        minutes: float = dataclasses.field(metadata=as_in(TeaConfig, "minutes"))
        cups: int = dataclasses.field(metadata=as_in(TeaConfig, "cups"))

    for change, line in (({"minutes": 11.0}, "must lie in 0 … 10"), ({"cups": 3}, "must be 1 or 2 or 4")):
        with pytest.raises(ConfigError, match=line):
            Order(**{"minutes": 1.0, "cups": 1, **change})


@pytest.mark.parametrize("name", ["seed", "clip", "max_weight", "ring_bits", "group_size"])
def test_a_plan_has_the_bounds_of_the_settings_that_it_copies(name: str) -> None:
    source = next(
        one.declared
        for kind in (RunConfig, FederationConfig, PrivacyConfig)
        for one in settings_of(kind)
        if one.key == name
    )
    plan = RunConfig().plan("main", 5)
    good = source.choices or (source.low, source.high)
    assert callable(good) is False
    for value in good:
        kind = type(getattr(plan, name))
        assert getattr(dataclasses.replace(plan, **{name: kind(value)}), name) == value
    for value in (source.low or 0) - 1, (source.high or 64) + 1:
        with pytest.raises(ConfigError, match=rf"plan\.{name} is"):
            dataclasses.replace(plan, **{name: value})


# --- every setting of a run -----------------------------------------------------------------------


@pytest.mark.parametrize("one", settings_of(RunConfig), ids=lambda one: one.key)
def test_every_setting_is_explained_in_a_sentence_and_checks_its_numbers(one: Any) -> None:
    assert one.help.endswith(".")
    assert len(one.help) > 20
    assert not set("[]") & set(one.help)  # the help of a command would read them as its own mark-up
    if one.kind in (int, float):
        assert one.choices or None not in (one.declared.low, one.declared.high)
    assert one.allowed
    assert json.loads(one.default_text) == section_value(one.key)


def section_value(key: str) -> Any:
    value: Any = section_table(RunConfig())
    for name in key.split("."):
        value = value[name]
    return value


def test_no_two_settings_have_the_same_flag_and_no_old_name_is_taken() -> None:
    declared = settings_of(RunConfig)
    flags = [flag for one in declared for flag in one.flag.split("/")]
    assert len(set(flags)) == len(flags)
    keys = {one.key for one in declared}
    old = [key for one in declared for key in one.old_keys]
    assert len(set(old)) == len(old)
    assert keys.isdisjoint(old)
    assert {key: one.key for one in declared for key in one.old_keys} == NEW_NAMES


# --- names of earlier versions --------------------------------------------------------------------

CHANGED = {
    "seed": 7,
    "data.time_cutoff": 0.75,
    "data.pairs": 12,
    "model.normalize": 5,
    "adapter.share": "B",
    "adapter.layers": [4, 5],
    "adapter.share_base": ["norm"],
    "training.l2_to_start": 0.25,
    "training.final_fit_epochs": 4,
    "training.final_fit_lr": 0.02,
    "training.micro_batch_size": 8,
    "training.update_order": "alternating",
    "training.warmup_lr": 0.001,
    "federation.rounds": 9,
    "federation.warmup_rounds": 2,
    "federation.clip": 2.5,
    "privacy.ring_bits": 64,
    "privacy.group_size": 5,
}

# What version 0.1.0 computed, for its defaults and for CHANGED under its own names: the digest that a run's
# id comes from, and SHA-256 of the plan for 17 people in each phase.
BY_0_1_0: list[tuple[dict[str, Any], str, dict[Phase, str]]] = [
    (
        {},
        "7a65953a9670c64baf7a83fdf63c74b2044538a9d49cc38a8ba261fc71577f43",
        {
            "warmup": "3ece40c56f5719b9326d80ae6575d15411c761d55570f0812dd0cad0ed7cc713",
            "main": "d836c18e9a3e4fc905fd7c71a91a3625523cdc11407ffa8d4d26fb3f64920f52",
            "close": "61c48c6d197c579f30b981b08b3a8bdc83a62993bde39374367311c902baa49d",
        },
    ),
    (
        CHANGED,
        "53305f1f75df9df31ae68e87e09180f241572b37e3df48f9d4ab9ebc5f8f7f71",
        {
            "warmup": "7d5ed90bca4c71757d38e8d7a924c1c79caa3e435a25bf50ade42a66d350f2c0",
            "main": "bb395f124c381b1a05eae425132959fce19c0218259e7eee291ee9ea594a16c3",
            "close": "32c2a005f1cfbc3a960d2cd9ce2223f3a0a579caab6705b678e8a8b81dd7d65d",
        },
    ),
]

PLAN_OF_0_1_0 = (
    '{"adapter":{"alpha":2.0,"head":"auto","layers":[4,5],"rank":2,"share":"B","share_base":["norm"],'
    '"target_modules":["output.dense"]},"clip":2.5,"cohort":17,"group_size":5,"max_weight":1024,"mode'
    'l":{"base_model":"all-MiniLM-L6-v2","dtype":"auto","max_tokens":256,"normalize":5.0,"pooling":"a'
    'uto","quantize":"none","truncation":"left"},"phase":"warmup","ring_bits":64,"seed":7,"start_sent'
    '":false,"training":{"batch_size":0,"chunk":8,"local_epochs":6,"lr_head":0.001,"lr_personal":0.01'
    ',"lr_shared":0.001,"optimizer":"adamw","order":"alternating","personal_epochs":0,"prior_head":1.'
    '0,"prior_spread":3.0,"pull":0.25,"refit_epochs":4,"refit_lr":0.02,"shared_optimizer":"same","war'
    'mup_lr":0.001,"weight_decay":0.0}}'
)

TOML_OF_0_1_0 = """\
seed = 7
grid = "local"
workers = 0

[data]
dataset = "senate"
clients = 0
holdout_clients = 0
pairs = 12
validation_pairs = 20
test_pairs = 60
until = 0.75
person_column = ""
bad_rows = "refuse"
evaluate = "test"

[model]
base_model = "all-MiniLM-L6-v2"
pooling = "auto"
normalize = 5.0
max_tokens = 256
truncation = "left"
dtype = "auto"
quantize = "none"

[adapter]
share = "B"
head = "auto"
rank = 2
alpha = 2.0
target_modules = [
    "output.dense",
]
layers = [
    4,
    5,
]
share_base = [
    "norm",
]

[training]
optimizer = "adamw"
shared_optimizer = "same"
lr_shared = 0.003
lr_personal = 0.01
lr_head = 0.003
warmup_lr = 0.001
local_epochs = 6
batch_size = 0
chunk = 8
weight_decay = 0.0
order = "alternating"
personal_epochs = 0
pull = 0.25
refit_epochs = 4
refit_lr = 0.02
prior_spread = 3.0
prior_head = 1.0

[federation]
rounds = 9
warmup_rounds = 2
cohort = 0
min_survivors = 0
deadline_seconds = 600.0
patience_seconds = 3600.0
attempts = 3
server_optimizer = "fedavg"
server_lr = 1.0
server_beta1 = 0.9
server_beta2 = 0.99
server_epsilon = 0.001
clip = 2.5
max_weight = 1024

[privacy]
secagg = true
min_honest = 10
max_colluders = 2
group_size = 5
ring_bits = 64
"""


@pytest.mark.parametrize(("changes", "digest", "plans"), BY_0_1_0, ids=["defaults", "changed"])
def test_digests_and_plans_are_those_of_0_1_0(
    changes: dict[str, Any], digest: str, plans: dict[Phase, str]
) -> None:
    config = RunConfig().changed(changes)
    assert config_digest(config) == digest
    for phase, expected in plans.items():
        assert hashlib.sha256(config.plan(phase, 17).encode()).hexdigest() == expected, phase


def test_a_plan_of_0_1_0_is_the_same_bytes() -> None:
    plan = RunConfig().changed(CHANGED).plan("warmup", 17)
    assert plan.encode().decode() == PLAN_OF_0_1_0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody renamed what is on the wire
        assert Plan.decode(PLAN_OF_0_1_0.encode()) == plan


def test_a_plan_knows_its_stored_names_only() -> None:
    with pytest.raises(ConfigError, match=r'unknown configuration key "plan\.training\.l2_to_start"'):
        Plan.decode(PLAN_OF_0_1_0.replace('"pull"', '"l2_to_start"').encode())


def test_a_configuration_of_0_1_0_is_read_as_the_same_with_one_notice() -> None:
    with pytest.warns(RenamedSetting) as heard:
        config = RunConfig.from_toml(TOML_OF_0_1_0)
    assert config == RunConfig().changed(CHANGED)
    assert config_digest(config) == hashlib.sha256(TOML_OF_0_1_0.encode()).hexdigest()
    (notice,) = [str(one.message) for one in heard]
    assert "\n" not in notice
    for old, new in NEW_NAMES.items():
        assert f"{old} is now {new}" in notice


def test_what_is_written_has_the_new_names_and_gives_no_notice() -> None:
    text = RunConfig().changed(CHANGED).to_toml()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RunConfig.from_toml(text) == RunConfig().changed(CHANGED)
    assert not [old for old in NEW_NAMES if f"\n{old.split('.')[1]} = " in text]


def test_old_keys_change_a_configuration_too() -> None:
    with pytest.warns(RenamedSetting, match=r"training\.pull is now training\.l2_to_start"):
        changed = RunConfig().changed({"training.pull": 0.5})
    assert changed == RunConfig(training=TrainingConfig(l2_to_start=0.5))
    with pytest.warns(RenamedSetting):
        assert current_keys(RunConfig, {"data.until": 0.5, "seed": 1}) == {"data.time_cutoff": 0.5, "seed": 1}


def test_a_setting_given_by_both_names_is_refused() -> None:
    line = "training.pull is the old name of training.l2_to_start, and both are given; drop training.pull"
    for read in (
        lambda: RunConfig.from_toml("[training]\npull = 0.1\nl2_to_start = 0.1\n"),
        lambda: RunConfig().changed({"training.pull": 0.1, "training.l2_to_start": 0.1}),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(caught.value) == line


def test_a_table_of_an_older_result_gets_todays_names_whatever_else_it_holds() -> None:
    table = {"training": {"refit_epochs": 4, "gone": 1}, "elsewhere": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = current_names(RunConfig, table, quiet=True)
    assert found == {"training": {"final_fit_epochs": 4, "gone": 1}, "elsewhere": 3}


def test_a_wrong_value_under_an_old_name_is_refused_by_the_new_one() -> None:
    with pytest.warns(RenamedSetting), pytest.raises(ConfigError) as caught:
        build_section(TrainingConfig, {"refit_lr": 2}, "training")
    assert str(caught.value) == "training.final_fit_lr is 2.0; it must lie in 0 … 1"


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**60), 2**60),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
    )
)
def test_toml_reads_what_a_value_is_spelled_as(value: Any) -> None:
    spelled = as_toml(value)
    assert "\n" not in spelled
    assert tomllib.loads(f"key = {spelled}")["key"] == (list(value) if isinstance(value, tuple) else value)
