"""Configuration: what is written is read back, what is wrong is refused by name, a plan has one spelling."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.config import (
    PLAN_LIMIT,
    AdapterConfig,
    DataConfig,
    FederationConfig,
    ModelConfig,
    Plan,
    PrivacyConfig,
    RunConfig,
    TrainingConfig,
    config_digest,
)
from penchant.common.errors import ConfigError, UsageError
from penchant.common.settings import Section, section_table

SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "adapter": AdapterConfig,
    "training": TrainingConfig,
    "federation": FederationConfig,
    "privacy": PrivacyConfig,
}

NUMBERS = [
    (f"{section}.{f.name}", get_type_hints(kind)[f.name])
    for section, kind in SECTIONS.items()
    for f in dataclasses.fields(kind)
    if get_type_hints(kind)[f.name] in (int, float)
] + [("seed", int), ("workers", int), ("batch_people", int)]

BOUNDED = [  # key, smallest allowed, largest allowed
    ("seed", 0, 2**63 - 1),
    ("workers", 0, 1024),
    ("batch_people", 0, 4096),
    ("data.clients", 0, 1_000_000),
    ("data.pairs", 1, 100_000),
    ("data.test_pairs", 1, 100_000),
    ("model.max_tokens", 2, 8192),
    ("adapter.rank", 1, 512),
    ("training.local_epochs", 1, 1000),
    ("training.final_fit_epochs", 0, 10_000),
    ("federation.rounds", 0, 4000),
    ("federation.cohort", 0, 1_000_000),
    ("federation.attempts", 1, 100),
    ("federation.max_weight", 1, 1 << 20),
    ("privacy.min_honest", 1, 100_000),
    ("privacy.max_colluders", 0, 100_000),
    ("privacy.group_size", 3, 1000),
    ("privacy.dp_participations", 0, 100_000),
    ("privacy.dp_honest", 0, 100_000),
]


def refused(change: dict[str, Any]) -> str:
    """The one line that a changed default configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        RunConfig().changed(change)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- TOML -----------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
rate = st.floats(0, 1)
share = st.sampled_from(["B", "A", "kernel", "svd", "AB", "ffa", "lore"])


@st.composite
def configurations(draw: st.DrawFn) -> RunConfig:
    """Valid configurations with every kind of value changed in every section."""
    rounds = draw(st.integers(0, 4000))
    chosen = draw(share)
    splits = chosen in ("B", "A", "kernel", "svd")
    return RunConfig(
        seed=draw(st.integers(0, 2**63 - 1)),
        grid=draw(st.sampled_from(["local", "processes", "ray"])),
        workers=draw(st.integers(0, 1024)),
        batch_people=draw(st.integers(0, 4096)),
        data=DataConfig(
            dataset=draw(text),
            clients=draw(st.integers(0, 1_000_000)),
            pairs=draw(st.integers(1, 100_000)),
            validation_pairs=draw(st.integers(1, 100_000)),
            test_pairs=draw(st.integers(1, 100_000)),
            time_cutoff=draw(st.floats(0.01, 1)),
            person_column=draw(text),
            bad_rows=draw(st.sampled_from(["refuse", "skip"])),
            evaluate=draw(st.sampled_from(["test", "validation"])),
        ),
        model=ModelConfig(
            base_model=draw(text),
            pooling=draw(st.sampled_from(["auto", "mean", "first", "last"])),
            normalize=draw(st.floats(0, 1000)),
            max_tokens=draw(st.integers(2, 8192)),
            blocks=draw(st.integers(0, 1000)),
            truncation=draw(st.sampled_from(["left", "right"])),
            dtype=draw(st.sampled_from(["auto", "float32", "bfloat16"])),
        ),
        adapter=AdapterConfig(
            share=chosen,
            head=draw(st.sampled_from(["auto", "shared", "personal"])),
            rank=draw(st.integers(1, 512)),
            alpha=draw(st.floats(1e-3, 4096)),
            target_modules=tuple(draw(st.lists(text, min_size=1, max_size=3))),
            layers=tuple(draw(st.lists(st.integers(-40, 40), max_size=3))),
        ),
        training=TrainingConfig(
            optimizer=draw(st.sampled_from(["adamw", "sgd"])),
            lr_shared=draw(rate),
            lr_personal=draw(rate),
            lr_head=draw(rate),
            warmup_lr=draw(rate),
            local_epochs=draw(st.integers(1, 1000)),
            batch_size=draw(st.integers(0, 100_000)),
            micro_batch_size=draw(st.integers(0, 100_000)),
            weight_decay=draw(st.floats(0, 100)),
            update_order=draw(st.sampled_from(["joint", "personal-first", "alternating"])),
            personal_epochs=draw(st.integers(0, 1000)),
            l2_to_start=draw(st.floats(0, 1e6)),
            final_fit_epochs=draw(st.integers(0, 10_000)),
            final_fit_lr=draw(rate),
        ),
        federation=FederationConfig(
            rounds=rounds,
            warmup_rounds=draw(st.integers(0, rounds)) if splits else 0,
            cohort=draw(st.integers(0, 1_000_000)),
            min_survivors=draw(st.integers(0, 1_000_000)),
            deadline_seconds=draw(st.floats(0.1, 7 * 86400)),
            attempts=draw(st.integers(1, 100)),
            server_optimizer=draw(st.sampled_from(["fedavg", "fedadam"])),
            server_lr=draw(st.floats(0, 100)),
            server_beta1=draw(st.floats(0, 0.9999)),
            server_beta2=draw(st.floats(0, 0.99999)),
            server_epsilon=draw(st.floats(1e-12, 1)),
            clip=draw(st.floats(1e-6, 1e6)),
            max_weight=draw(st.integers(1, 1 << 20)),
        ),
        privacy=PrivacyConfig(
            secagg=(secagg := draw(st.booleans())),
            dp_epsilon=draw(st.sampled_from([0.0]) | st.floats(1e-3, 100)) if secagg else 0.0,
            dp_delta=draw(st.floats(1e-12, 0.01)),
            dp_participations=draw(st.integers(0, 100_000)),
            dp_honest=draw(st.integers(0, 100_000)),
            min_honest=draw(st.integers(1, 100_000)),
            max_colluders=draw(st.integers(0, 100_000)),
            group_size=draw(st.integers(3, 1000)),
            ring_bits=draw(st.sampled_from([32, 64])),
        ),
    )


@given(configurations())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_configuration_is_read_back_as_it_was_written(config: RunConfig) -> None:
    again = RunConfig.from_toml(config.to_toml())
    assert again == config
    assert again.to_toml() == config.to_toml()
    assert config_digest(again) == config_digest(config)


def test_what_is_written_names_every_key_of_every_section() -> None:
    import tomllib

    table = tomllib.loads(RunConfig().to_toml())
    for section, kind in SECTIONS.items():
        assert list(table[section]) == [f.name for f in dataclasses.fields(kind)]
    assert RunConfig.from_toml("") == RunConfig()


def test_a_file_changes_what_it_names_and_leaves_the_rest() -> None:
    config = RunConfig.from_toml(
        'seed = 7\n[adapter]\nshare = "B"\nlayers = [4, 5]\n[model]\nnormalize = 1\n'
    )
    assert config == RunConfig(
        seed=7, adapter=AdapterConfig(share="B", layers=(4, 5)), model=ModelConfig(normalize=1.0)
    )
    assert isinstance(config.model.normalize, float)


def test_different_configurations_have_different_digests() -> None:
    keys = [key for key, _ in NUMBERS if key != "privacy.ring_bits"]
    read = {  # each is refused where nothing reads it
        "model.beta": {"model.objective": "dpo"},
        "model.beside": {"adapter.share": "common"},
    }
    digests = {config_digest(RunConfig().changed({key: nudged(key)} | read.get(key, {}))) for key in keys}
    assert len(digests) == len(keys)


def nudged(key: str) -> int | float:
    """Another valid value for a numeric key than its default."""
    value: Any = section_table(RunConfig())
    for name in key.split("."):
        value = value[name]
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read configuration .*absent\.toml"):
        RunConfig.read(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b'[data]\ndataset = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"can't read configuration .*latin\.toml"):
        RunConfig.read(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    "document",
    [
        "seed = ",
        "seed = 1\nseed = 2",
        "a = " + "[" * 5000,
        "seed = " + "9" * 5000,
        "[data]\n[data]",
        '[data]\ndataset = "unfinished',
    ],
    ids=["no value", "twice", "deep", "long number", "table twice", "open string"],
)
def test_what_is_no_toml_is_one_line(document: str) -> None:
    with pytest.raises(ConfigError, match="the configuration is not valid TOML") as caught:
        RunConfig.from_toml(document)
    assert "\n" not in str(caught.value)


# --- unknown keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ("sed = 1", 'unknown configuration key "sed"; did you mean "seed"?'),
        ("[adapter]\nrnak = 2", 'unknown configuration key "adapter.rnak"; did you mean "rank"?'),
        (
            "[federation]\ncohorts = 2",
            'unknown configuration key "federation.cohorts"; did you mean "cohort"?',
        ),
        ("[adaptr]\nrank = 2", 'unknown configuration key "adaptr"; did you mean "adapter"?'),
        ("adapter = 3", "adapter must be a table"),
    ],
)
def test_unknown_keys_are_refused_by_name_with_a_suggestion(document: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_toml(document)
    assert str(caught.value) == line


def test_a_key_like_no_other_is_answered_with_the_keys_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_toml("[privacy]\nxyzzy = 1")
    assert str(caught.value) == (
        'unknown configuration key "privacy.xyzzy"; '
        "known here: dp_delta, dp_epsilon, dp_honest, dp_participations, group_size, max_colluders, "
        "min_honest, ring_bits, secagg"
    )


@pytest.mark.parametrize("key", ["adapter.ranks", "nowhere.rank", "seed.x", "adapter.rank.x"])
def test_changing_a_key_that_does_not_exist_is_refused(key: str) -> None:
    assert refused({key: 1}).startswith('unknown configuration key "')


# --- types and ranges -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RunConfig, *SECTIONS.values()], ids=lambda kind: kind.__name__)
def test_sections_are_frozen(kind: type[Section]) -> None:
    section = kind()
    for f in dataclasses.fields(section):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, f.name, getattr(section, f.name))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"adapter.rank": "2"}, "adapter.rank is '2'; it must be a whole number"),
        ({"adapter.rank": 2.0}, "adapter.rank is 2.0; it must be a whole number"),
        ({"adapter.rank": True}, "adapter.rank is True; it must be a whole number"),
        ({"adapter.alpha": "2"}, "adapter.alpha is '2'; it must be a number"),
        ({"adapter.alpha": False}, "adapter.alpha is False; it must be a number"),
        ({"privacy.secagg": 1}, "privacy.secagg is 1; it must be true or false"),
        ({"data.dataset": 3}, "data.dataset is 3; it must be a text"),
        ({"adapter.layers": 3}, "adapter.layers must be a list"),
        ({"adapter.layers": ["x"]}, "adapter.layers is 'x'; it must be a whole number"),
        ({"adapter.target_modules": "output.dense"}, "adapter.target_modules must be a list"),
        ({"adapter.target_modules": []}, "adapter.target_modules is empty; name at least one linear module"),
        ({"adapter.head": "both"}, "adapter.head is 'both'; choose one of auto, shared, personal"),
        ({"adapter.share": ["A"]}, "choose one of B, A, kernel, svd, AB, none, ffa, lore, mixed, common"),
        ({"privacy.ring_bits": 16}, "privacy.ring_bits is 16; it must be 32 or 64"),
        ({"federation.rounds": 2, "federation.warmup_rounds": 3}, "there are only 2 rounds"),
        ({"adapter.share": "AB", "federation.warmup_rounds": 1}, "set federation.warmup_rounds to 0"),
        ({"adapter.share": "none", "adapter.head": "shared"}, "drop one"),
        ({"data.dataset": "\ud800"}, "data.dataset contains a lone surrogate, so it is not valid text"),
    ],
)
def test_wrong_values_are_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    assert line in refused(change)


@pytest.mark.parametrize(("key", "low", "high"), BOUNDED, ids=[key for key, _, _ in BOUNDED])
def test_ranges_are_inclusive_and_end_there(key: str, low: int, high: int) -> None:
    for good in (low, high):
        RunConfig().changed({key: good})
    for bad in (low - 1, high + 1):
        assert refused({key: bad}).endswith(f"it must lie in {low:g} … {high:g}")


@pytest.mark.parametrize(("key", "kind"), NUMBERS, ids=[key for key, _ in NUMBERS])
@pytest.mark.parametrize("value", [-1, -1e300, 10**400, math.nan, math.inf, -math.inf], ids=str)
def test_hostile_numbers_are_refused_everywhere(key: str, kind: type, value: Any) -> None:
    line = refused({key: value})
    assert line.split(" ")[0].split(".")[-1] == key.split(".")[-1]
    assert len(line) < 200


def test_wrong_configuration_is_wrong_use() -> None:
    assert issubclass(ConfigError, UsageError)
    assert ConfigError.exit_code == 2


def test_epochs_are_what_one_round_may_cost() -> None:
    assert TrainingConfig(local_epochs=6, final_fit_epochs=30).epochs == 30
    assert TrainingConfig(local_epochs=6, final_fit_epochs=0).epochs == 6
    alternating = TrainingConfig(local_epochs=6, final_fit_epochs=0, update_order="alternating")
    assert (alternating.alone_epochs, alternating.epochs) == (6, 12)
    first = TrainingConfig(
        local_epochs=6, personal_epochs=4, final_fit_epochs=0, update_order="personal-first"
    )
    assert (first.alone_epochs, first.epochs) == (4, 10)


# --- plans ----------------------------------------------------------------------------------------


def plan(**changes: Any) -> Plan:
    return dataclasses.replace(RunConfig().plan("main", 17), **changes)


@given(configurations(), st.sampled_from(["warmup", "main", "close"]), st.integers(1, 1_000_000))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_plan_is_read_back_as_it_was_written(config: RunConfig, phase: Any, cohort: int) -> None:
    sent = config.plan(phase, cohort)
    assert Plan.decode(sent.encode()) == sent


def test_a_plan_says_what_devices_must_know_and_nothing_of_the_data_or_the_owners_policy() -> None:
    config = RunConfig(seed=5, adapter=AdapterConfig(share="B"), federation=FederationConfig(clip=2.0))
    sent = config.plan("main", 17)
    assert (sent.phase, sent.cohort, sent.seed, sent.clip) == ("main", 17, 5, 2.0)
    assert (sent.model, sent.adapter, sent.training) == (config.model, config.adapter, config.training)
    keys = set(json.loads(sent.encode()))
    assert keys.isdisjoint({"data", "privacy", "min_honest", "max_colluders", "secagg"})


def test_the_start_follows_the_factors_after_a_warm_up_only() -> None:
    warm = RunConfig(federation=FederationConfig(rounds=3, warmup_rounds=1))
    assert [warm.plan(phase, 3).start_sent for phase in ("warmup", "main", "close")] == [False, True, True]
    assert not any(RunConfig().plan(phase, 3).start_sent for phase in ("warmup", "main", "close"))


def test_warm_up_rounds_have_a_rate_of_their_own() -> None:
    training = TrainingConfig(lr_shared=0.01, lr_personal=0.02, lr_head=0.03, warmup_lr=0.5)
    config = RunConfig(training=training, federation=FederationConfig(rounds=3, warmup_rounds=1))
    warm, main = (config.plan(phase, 3).training for phase in ("warmup", "main"))
    assert (warm.lr_shared, warm.lr_head) == (0.5, 0.5)
    assert main == training
    usual = dataclasses.replace(config, training=TrainingConfig())
    assert usual.plan("warmup", 3).training == TrainingConfig()


@pytest.mark.parametrize("cohort", [0, -1, 1_000_001])
def test_a_plan_for_nobody_or_for_too_many_is_refused(cohort: int) -> None:
    with pytest.raises(ConfigError, match=r"plan\.cohort is"):
        RunConfig().plan("main", cohort)


def spellings() -> dict[str, bytes]:
    """The default plan in other spellings."""
    data = plan().encode()
    table = json.loads(data)
    return {
        "spaces": json.dumps(table, sort_keys=True).encode(),
        "another order": json.dumps(dict(reversed(table.items())), separators=(",", ":")).encode(),
        "a whole number": data.replace(b'"clip":10.0', b'"clip":10'),
        "an exponent": data.replace(b'"clip":10.0', b'"clip":1e1'),
        "escapes": data.replace(b'"main"', b'"m\\u0061in"'),
        "a key twice": data.replace(b'"clip":10.0', b'"clip":9.0,"clip":10.0'),
        "a newline": data + b"\n",
        "UTF-16": data.decode().encode("utf-16"),
        "a default left out": data.replace(b'"alpha":2.0,', b""),
    }


@pytest.mark.parametrize("name", list(spellings()))
def test_a_plan_has_one_spelling(name: str) -> None:
    data = spellings()[name]
    assert data != plan().encode()
    assert Plan.decode(data, canonical=False) == plan()
    with pytest.raises(ConfigError, match="the plan is not in its canonical form"):
        Plan.decode(data)


def test_a_plan_is_at_most_64_kib() -> None:
    largest = dataclasses.replace(plan().model, base_model="")
    room = PLAN_LIMIT - len(plan(model=largest).encode())
    fits = plan(model=dataclasses.replace(largest, base_model="x" * room))
    assert len(fits.encode()) == PLAN_LIMIT == 65536
    assert Plan.decode(fits.encode()) == fits
    over = plan(model=dataclasses.replace(largest, base_model="x" * (room + 1)))
    with pytest.raises(ConfigError, match="a plan of 65537 bytes; the limit is 65536"):
        Plan.decode(over.encode())


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b'"clip":10.0', b'"clip":NaN', "plan.clip is nan; it must be a finite number"),
        (b'"clip":10.0', b'"clip":Infinity', "plan.clip is inf; it must be a finite number"),
        (b'"clip":10.0', b'"clip":-10.0', "plan.clip is -10.0; it must lie in"),
        (b'"clip":10.0', b'"clip":' + b"9" * 400, "plan.clip is a number of 1329 bits"),
        (b'"max_weight":1024', b'"max_weight":0', "plan.max_weight is 0; it must lie in"),
        (b'"max_weight":1024', b'"max_weight":1048577', "plan.max_weight is 1048577; it must lie in"),
        (b'"cohort":17', b'"cohort":' + b"9" * 5000, "the plan is not valid JSON"),
        (b'"ring_bits":32', b'"ring_bits":8', "plan.ring_bits is 8; it must be 32 or 64"),
        (b'"group_size":256', b'"group_size":2', "plan.group_size is 2; it must lie in"),
        (b'"phase":"main"', b'"phase":"open"', "plan.phase is 'open'; choose one of warmup, main, close"),
        (b'"phase":"main"', b'"phase":["main"]', "plan.phase is ['main']; choose one of"),
        (b'"rank":2', b'"rank":100000', "adapter.rank is 100000; it must lie in"),
        (b'"local_epochs":6', b'"local_epochs":1000000', "training.local_epochs is 1000000; it must lie in"),
        (b'"seed":0', b'"seed":-1', "plan.seed is -1; it must lie in"),
        (b'"seed":0', b'"seed":0,"run":1', 'unknown configuration key "plan.run"'),
        (b'"seed":0,', b"", "plan lacks seed"),
        (b'"start_sent":false', b'"start_sent":0', "plan.start_sent is 0; it must be true or false"),
        (
            b'"output.dense"',
            b'"\\ud800"',
            "adapter.target_modules contains a lone surrogate, so it is not valid text",
        ),
        (b'"output.dense"', b"[" * 20000, "the plan is not valid JSON"),
    ],
    ids=lambda value: value.decode()[:24] if isinstance(value, bytes) else "",
)
def test_a_hostile_plan_is_refused_in_one_line(old: bytes, new: bytes, line: str) -> None:
    data = plan().encode()
    assert old in data
    with pytest.raises(ConfigError) as caught:
        Plan.decode(data.replace(old, new, 1))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"3", b'"plan"', b"\xff\xfe", b"{", b"{}"])
def test_what_is_no_plan_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Plan.decode(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_nothing_but_a_config_error_comes_of_a_plan_with_one_value_changed(data: st.DataObject) -> None:
    table = json.loads(plan().encode())
    section = data.draw(st.sampled_from(["model", "adapter", "training", None]))
    target = table[section] if section else table
    key = data.draw(st.sampled_from(sorted(target)))
    target[key] = data.draw(json_values)
    encoded = json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    line = ""
    try:
        assert Plan.decode(encoded).encode() == encoded
    except ConfigError as error:
        line = str(error)
    assert "\n" not in line


def test_an_older_plan_that_knew_fewer_keys_can_still_be_read_by_its_owner() -> None:
    table = json.loads(plan().encode())
    del table["training"]["chunk"]
    older = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    assert Plan.decode(older, canonical=False) == plan()


def test_every_choice_is_a_literal_or_a_plain_type() -> None:
    """What `_coerce` knows: a new kind of field would otherwise be checked by accident."""
    for kind in SECTIONS.values():
        for name, hint in get_type_hints(kind).items():
            plain = hint in (int, float, str, bool)
            listed = get_origin(hint) is tuple and get_args(hint)[0] in (int, str)
            assert plain or listed or all(isinstance(choice, str) for choice in get_args(hint)), name


def test_noise_without_masks_is_refused() -> None:
    assert "privacy.dp_epsilon needs privacy.secagg" in refused(
        {"privacy.dp_epsilon": 8.0, "privacy.secagg": False}
    )
