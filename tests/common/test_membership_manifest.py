"""What a run manifest says of itself: nothing that a plan asks for hides behind plain words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, get_args, get_origin

import pytest

from penchant.common.config import Plan, RunConfig
from penchant.common.errors import AgreementError
from penchant.common.membership.identity import Authority
from penchant.common.membership.manifest import (
    MAX_LINE,
    NONCE_BYTES,
    RunManifest,
    RunRequest,
    phases_of,
    promised,
    sign_run,
)
from penchant.common.printable import MOST_SHOWN, is_printable, one_line
from penchant.common.settings import Setting, settings_of

COHORT = 100
HONEST = {"adapter.rank": 16, "training.local_epochs": 30}
HOSTILE = HONEST | {
    "model.max_tokens": 2,
    "model.pooling": "last",
    "model.normalize": 0.0,
    "adapter.layers": [0],
    "adapter.target_modules": ["value", "query", "key"],
    "training.optimizer": "sgd",
    "training.lr_shared": 1.0,
    "training.l2_to_start": 1e6,
}
WITH_WARM_UP = {"federation.warmup_rounds": 5, "training.warmup_lr": 0.5}


def manifest(changes: dict[str, Any] | None = None, *plans: Plan) -> RunManifest:
    config = RunConfig().changed(changes or {})
    warmup, rounds = config.federation.warmup_rounds, config.federation.rounds + 1
    given = plans or tuple(config.plan(phase, COHORT) for phase in phases_of(rounds, warmup))
    return RunManifest(
        run=bytes(16),
        base=bytes(32),
        rounds=rounds,
        warmup=warmup,
        least_cohort=COHORT,
        least_group=50,
        unmasked=False,
        first_day=20_000,
        last_day=20_010,
        plans=tuple(plan.encode() for plan in given),
        privacy=promised(given[0]),
    )


def test_a_hostile_plan_does_not_read_like_an_honest_one() -> None:
    honest, hostile = manifest(HONEST).lines(), manifest(HOSTILE).lines()
    assert honest[-2:] == (
        "settings of main rounds that are not the default: cohort = 100, adapter.rank = 16, "
        "training.local_epochs = 30",
        "settings of the closing round that are not the default: cohort = 100, adapter.rank = 16, "
        "training.local_epochs = 30",
    )
    assert hostile[:-2] == honest[:-2]  # the plain words alone can't tell
    for line in hostile[-2:]:
        for said in (
            'model.pooling = "last", model.normalize = 0.0, model.max_tokens = 2',
            'adapter.target_modules = ["value", "query", "key"], adapter.layers = [0]',
            'training.optimizer = "sgd", training.lr_shared = 1.0',
            "training.l2_to_start = 1000000.0",
        ):
            assert said in line


def test_each_phase_has_its_own_line() -> None:
    warmup, main, close = manifest(WITH_WARM_UP).lines()[-3:]
    assert warmup.startswith("settings of warm-up rounds ")
    assert main.startswith("settings of main rounds ")
    assert close.startswith("settings of the closing round ")
    assert "training.lr_shared = 0.5" in warmup
    assert "lr_shared" not in main + close
    assert "start_sent = true" in main


def other(one: Setting, value: Any) -> Any:
    """Another value of a setting."""
    if one.choices:
        return next(choice for choice in one.choices if choice != value)
    if get_origin(one.kind) is tuple:
        return (4,) if get_args(one.kind)[0] is int else ("norm",)
    if one.kind is bool:
        return not value
    return next(v for v in map(one.kind, (one.declared.high or "x", one.declared.low or "x")) if v != value)


PARTS = [one for one in settings_of(Plan) if one.key != "phase"]


@pytest.mark.parametrize("one", PARTS, ids=lambda one: one.key)
def test_whatever_differs_in_one_phases_plan_is_in_its_line(one: Setting) -> None:
    policy = {"model.objective": "dpo"}
    reads_it = {"model.beta": policy, "model.template": policy, "model.beside": {"adapter.share": "common"}}
    config = RunConfig().changed(reads_it.get(one.key, {}))
    main, close = (config.plan(phase, COHORT) for phase in ("main", "close"))
    section, _, name = one.key.rpartition(".")
    inner = getattr(main, section) if section else main
    inner = replace(inner, **{name: other(one, getattr(inner, name))})
    changed = replace(main, **{section: inner}) if section else inner
    before, after = manifest(None, main, close).lines(), manifest(None, changed, close).lines()
    assert after[-1] == before[-1]
    assert after[-2] != before[-2]
    assert re.search(rf"\b{re.escape(one.key)} = ", after[-2])


def test_the_lines_steer_no_terminal_and_are_read_whole() -> None:
    name = "que\x1b[2Kry\nkey\u202e"
    asked = manifest({"adapter.target_modules": [name], "model.base_model": "mo\ndel"})
    line = asked.lines()[-1]
    assert is_printable(line)
    assert "que\\u001b[2Kry\\nkey\\u202e" in line
    assert one_line(line) == line
    assert MAX_LINE < MOST_SHOWN


def test_a_name_that_can_not_be_seen_is_refused() -> None:
    with pytest.raises(AgreementError, match="can't be printed"):
        RunRequest.decode(RunRequest("one\x1b[2K", manifest(HONEST)).encode())
    assert RunRequest.decode(RunRequest("one", manifest(HONEST)).encode()).name == "one"


def test_a_request_that_is_made_again_is_other_bytes() -> None:
    first = RunRequest("one", manifest(HONEST))
    again = replace(first, nonce=bytes(range(NONCE_BYTES)))
    assert again.encode() == first.encode() + again.nonce
    assert [RunRequest.decode(one.encode()) for one in (first, again)] == [first, again]
    for wrong in (again.encode() + b"x", again.encode()[:-1], b"", b"x"):
        with pytest.raises(AgreementError, match="does not ask for a run's signature"):
            RunRequest.decode(wrong)


def test_what_is_too_long_to_be_read_is_signed_by_nobody() -> None:
    """Names upon names would push what follows them out of sight."""
    padded = manifest(HOSTILE | {"adapter.target_modules": ["x" * 40] * 50})
    assert max(map(len, padded.lines())) > MAX_LINE
    with pytest.raises(AgreementError, match="lines of more than 1900 characters"):
        sign_run(Authority.create(), padded)
    with pytest.raises(AgreementError, match="lines of more than 1900 characters"):
        RunRequest.decode(RunRequest("run", padded).encode())
    named = manifest({"model.base_model": "m" * 1890})
    with pytest.raises(AgreementError, match="lines of more than 1900 characters"):
        named.check()


def test_a_line_of_just_the_length_that_is_shown_whole_passes() -> None:
    longest = max(map(len, manifest({"model.base_model": "m"}).lines())) - 1
    full = manifest({"model.base_model": "m" * (MAX_LINE - longest)})
    assert max(map(len, full.lines())) == MAX_LINE
    full.check()
    with pytest.raises(AgreementError, match="lines of more than"):
        manifest({"model.base_model": "m" * (MAX_LINE - longest + 1)}).check()


def test_a_plan_that_changes_everything_is_still_short_enough() -> None:
    plan = RunConfig().plan("main", COHORT)
    for section in ("model", "adapter", "training"):
        inner = getattr(plan, section)
        for one in settings_of(type(inner)):
            if one.name not in ("share", "head", "share_base", "objective", "beta", "template", "beside"):
                inner = replace(inner, **{one.name: other(one, getattr(inner, one.name))})
        plan = replace(plan, **{section: inner})
    plan = replace(plan, seed=2**62, clip=1e-6, start_sent=True)
    manifest(None, plan, replace(plan, phase="close")).check()
