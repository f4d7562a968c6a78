"""Share rules as objects: what each says of itself, and rules that a program or another package adds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from penchant.common.config import AdapterConfig, RunConfig
from penchant.common.errors import ConfigError
from penchant.common.model.factors import AdaptedModule, Split
from penchant.common.shares import (
    EVERYONE_ALONE,
    ONE_FOR_ALL,
    SHARES,
    Factor,
    Part,
    ShareRule,
    Side,
    Spread,
    Start,
    find_share,
    register_share,
    share_names,
    share_rule,
)

HEADS_ALONE = {"lore", "common", "meta", "shrinkage"}
OWN = (
    "B",
    "A",
    "kernel",
    "svd",
    "AB",
    "none",
    "ffa",
    "lore",
    "mixed",
    "common",
    "finetune",
    "meta",
    "shrinkage",
)
ADAPTED = (AdaptedModule("layers.0.q_proj", 8, 6), AdaptedModule("layers.1.v_proj", 8, 4))
A = Factor("A", Part.SHARED, (Side.RANK, Side.IN), Start.UNIFORM)
B = Factor("B", Part.SHARED, (Side.OUT, Side.RANK), Start.ZEROS)
GAIN = Factor("g", Part.PERSONAL, (1,), Start.ONES, warmup=Part.FROZEN)


def rule(**changes: Any) -> ShareRule:
    usual: dict[str, Any] = {
        "name": "gain",
        "label": "A, B shared, gain personal",
        "shared": "factors A and B",
        "personal": "one gain for each module",
        "factors": (A, B, GAIN),
        "can_warm_up": True,
        "compose": lambda factors: (factors["g"] * factors["A"], factors["B"]),
    }
    return ShareRule(**{**usual, **changes})


@pytest.fixture
def gain() -> Iterator[ShareRule]:
    made = rule()
    register_share(made)
    yield made
    SHARES._things.pop("gain", None)


# --- penchant's own -------------------------------------------------------------------------------


def test_the_choices_stand_in_their_old_order() -> None:
    assert share_names()[: len(OWN)] == OWN
    with pytest.raises(ConfigError, match=rf"^adapter\.share is 'C'; choose one of {', '.join(OWN)}$"):
        AdapterConfig(share="C")


@pytest.mark.parametrize(
    ("asked", "yes"),
    [
        ("can_warm_up", {"B", "A", "kernel", "svd", "mixed"}),
        ("adapts_modules", {*OWN} - HEADS_ALONE),
        ("shares_base", {*OWN} - HEADS_ALONE - {"none"}),
        ("shares_nothing", {EVERYONE_ALONE}),
        ("shares_everything", {ONE_FOR_ALL}),
    ],
)
def test_what_each_rule_answers(asked: str, yes: set[str]) -> None:
    assert {name for name in OWN if getattr(share_rule(name), asked)} == yes


def test_what_is_shared_in_a_short_phrase() -> None:
    assert [share_rule(name).sharing for name in OWN] == [
        "B", "A", "A and B", "A and B", "A and B", "", "B", "a low-rank basis", "A and B",
        "a common head and a low-rank basis", "one model for all as a start", "a low-rank basis and a start",
        "a common head",
    ]  # fmt: skip


def test_rules_are_read_without_torch() -> None:
    code = (
        "import sys\nfrom penchant.common.config import RunConfig\n"
        "RunConfig().adapter.rule\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0


# --- a rule of somebody else's --------------------------------------------------------------------


def test_a_rule_that_was_registered_is_all_that_a_method_needs(gain: ShareRule) -> None:
    config = AdapterConfig(share="gain", rank=2)
    split = Split.of(ADAPTED, 5, config)
    assert share_names()[-1] == "gain"
    assert split.shared.names == (
        "layers.0.q_proj.lora_A", "layers.0.q_proj.lora_B",
        "layers.1.v_proj.lora_A", "layers.1.v_proj.lora_B", "head.weight",
    )  # fmt: skip
    assert split.personal.names == ("layers.0.q_proj.lora_g", "layers.1.v_proj.lora_g")
    shared, personal = split.initial(0)
    assert personal.tolist() == [1, 1]
    assert shared.tobytes() == Split.of(ADAPTED, 5, AdapterConfig(share="AB", rank=2)).initial(0)[0].tobytes()
    plain, twice = split.merged(shared, personal), split.merged(shared, 2 * personal)
    for module in ADAPTED:
        assert (2 * plain.adapters[module.name][0] == twice.adapters[module.name][0]).all()


def test_its_warm_up_hands_the_factors_on_and_starts_the_rest(gain: ShareRule) -> None:
    RunConfig().changed({"adapter.share": "gain", "federation.warmup_rounds": 1})
    config = AdapterConfig(share="gain", rank=2, head="personal")
    warm, main = Split.of(ADAPTED, 5, config, warmup=True), Split.of(ADAPTED, 5, config)
    trained = np.random.default_rng(0).normal(size=warm.shared.size).astype(np.float32)
    assert warm.personal.size == 0
    shared, personal = main.start_from(warm, trained, seed=0)
    assert np.concatenate([shared, personal[2:]]).tobytes() == trained.tobytes()
    assert personal[:2].tolist() == [1, 1]


def test_tensors_of_a_rule_are_known_by_name_and_shape(gain: ShareRule) -> None:
    assert [gain.role_of(name) for name in ("x.lora_g", "head.weight", "base.x.weight", "lore.basis")] == [
        "g", "head", "base", "lore.basis",
    ]  # fmt: skip
    assert gain.allows_shape("A", (2, 99), 2)
    assert not gain.allows_shape("A", (3, 99), 2)
    assert gain.allows_shape("g", (1,), 2)
    assert not gain.allows_shape("g", (1, 1), 2)
    assert gain.allows_shape("head", (1, 5), 2)
    assert not gain.allows_shape("head", (2, 5), 2)


def test_factors_of_the_wrong_shape_are_named() -> None:
    wrong = rule(compose=lambda factors: (factors["A"].T, factors["B"]))
    split = Split(ADAPTED, 5, 2, wrong, wrong.head("auto"))
    line = r'share "gain" composes factors of shape \(8, 2\) and \(6, 2\) for layers\.0\.q_proj; they must be'
    with pytest.raises(ConfigError, match=line):
        split.merged(*split.initial(0))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"factors": (A, A)}, "roles must differ"),
        ({"factors": (Factor("head", Part.SHARED, (1,), Start.ONES),)}, 'none may be "head" or "base"'),
        ({"factors": (A, replace(GAIN, warmup=Part.PERSONAL))}, "shared or frozen"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        rule(**changes)


def test_only_rules_under_free_names_are_registered() -> None:
    with pytest.raises(ConfigError, match="AB is part of penchant and can't be replaced"):
        register_share(rule(name="AB"))
    with pytest.raises(ConfigError, match="can't name a"):
        register_share(rule(name="A,B"))
    with pytest.raises(ConfigError, match="must be a ShareRule"):
        register_share("A")  # type: ignore[arg-type]


def test_a_result_of_an_unknown_rule_can_still_be_read() -> None:
    assert find_share("from-elsewhere") is None
    assert find_share("A") is share_rule("A")


NUMBER = Factor("t", Part.SHARED, (1,), Start.ZEROS, warmup=Part.FROZEN, tensor="gain.spread")
OWN_B = Factor("D", Part.PERSONAL, (Side.OUT, Side.RANK), Start.ZEROS, warmup=Part.FROZEN)


@pytest.mark.parametrize(
    ("factors", "spread"),
    [
        ((A, B, OWN_B), Spread("t", of=("D",))),  # no such number
        ((A, B, OWN_B, replace(NUMBER, tensor="")), Spread("t", of=("D",))),  # one for each module
        ((A, B, OWN_B, replace(NUMBER, warmup=Part.SHARED)), Spread("t", of=("D",))),
        ((A, B, OWN_B, replace(NUMBER, shape=(2,))), Spread("t", of=("D",))),
        ((A, B, OWN_B, NUMBER), Spread("t", of=())),
        ((A, B, OWN_B, NUMBER), Spread("t", of=("B",))),  # not personal
        ((A, B, replace(OWN_B, start=Start.ONES), NUMBER), Spread("t", of=("D",))),
    ],
)
def test_a_spread_is_refused_where_its_factors_are_not_what_it_needs(factors: Any, spread: Spread) -> None:
    rule(factors=(A, B, OWN_B, NUMBER), spread=Spread("t", of=("D",)))
    with pytest.raises(ConfigError, match=r'^share "gain": a spread needs a shared factor of shape \(1,\)'):
        rule(factors=factors, spread=spread)
