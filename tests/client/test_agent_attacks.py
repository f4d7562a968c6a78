"""A malicious server against whole agents: what it tries is refused before anything is masked, or is no use.

What the role in secure aggregation refuses by itself is played in tests/server/test_secagg_attacks.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import STAGES, FleetScene
from support.scene import NOW, VERIFY, authority, identity, membership

from penchant.client.agent.policy import OwnerPolicy
from penchant.client.learning.model_cache import ModelCache
from penchant.client.secagg import Participant
from penchant.client.vault.vault import Vault
from penchant.common.config import Plan, RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import AgreementKey
from penchant.common.errors import ConfigError, TooFewDevices, TooManyDropouts
from penchant.common.membership.identity import Authority, Identity
from penchant.common.secagg.transcript import entry_text
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import (
    Abort,
    AbortCode,
    Announce,
    Collect,
    Confirmation,
    Confirmations,
    Entry,
    Finished,
    Kind,
    Masked,
    Roster,
    Shares,
    Status,
    Survivors,
    Unmasking,
)
from penchant.deploy.owner_policy import fleet_policy

Scenes = Callable[..., FleetScene]
N = 4  # t = 3
VICTIM = 1
BEYOND = ("masked", "confirm", "unmask")


@pytest.fixture
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("bert")


@pytest.fixture
def scenes(base: Path, tmp_path: Path) -> Scenes:
    made: list[FleetScene] = []

    def make(n: int = N, **settings: Any) -> FleetScene:
        made.append(FleetScene(base, tmp_path / str(len(made)), n, **settings))
        return made[-1]

    return make


def refused(scene: FleetScene, reply: Any, code: AbortCode, reason: str = "", device: int = VICTIM) -> None:
    """One code left; the owner knows more; no attempt is open, so nothing can be masked."""
    assert reply == Abort(code)
    stage, name, told = scene.reason(device)
    assert name == code.name
    assert reason in told
    assert stage in STAGES
    assert not scene.is_open(device)
    assert scene.ask("masked", device, Collect(bytes(32))) == Abort(AbortCode.STAGE)


def turned_away(scene: FleetScene, reply: Any, code: AbortCode, reason: str) -> None:
    """As `refused`, before anything was changed: the attempt that is open stays open."""
    assert reply == Abort(code)
    assert reason in scene.reason(VICTIM)[2]
    assert scene.is_open(VICTIM)


def announced(scene: FleetScene, **changes: Any) -> Any:
    """What the victim says to an announcement with changes, which the authority has signed where it can."""
    announce = replace(scene.announce(), **changes)
    with suppress(ConfigError):
        manifest = scene.manifest(Plan.decode(announce.plan), announce.base, announce.round, run=announce.run)
        announce = replace(announce, manifest=manifest)
    return scene.ask("keys", VICTIM, announce)


# --- a plan that is made for fishing --------------------------------------------------------------

USUAL = OwnerPolicy()
BOUNDS = {  # what the owner of a small model without noise may leave as it is
    name: getattr(USUAL, name)
    for name in (
        *(
            "last_blocks",
            "any_block",
            "min_tokens",
            "poolings",
            "max_normalize",
            "unnormalized",
            "max_epochs",
        ),
        *("optimizers", "max_rate", "min_batch", "min_training_seconds", "base_parts", "max_scale"),
    )
}
FISHING: dict[str, dict[str, Any]] = {
    "two tokens": {"model__max_tokens": 2},
    "one token's embedding": {"model__pooling": "first"},
    "the length of an embedding": {"model__normalize": 0.0},
    "words almost as they are": {
        "adapter__layers": [0],
        "adapter__target_modules": ["query", "key", "value"],
    },
    "all blocks": {"adapter__layers": []},
    "a step for each choice": {"training__batch_size": 1},
    "a thousand passes": {"training__local_epochs": 1000},
    "rates that overshoot": {"training__lr_shared": 1.0},
    "no time to train": {"training_seconds": 0.1},
}


@pytest.mark.parametrize("how", FISHING)
def test_a_hostile_plan_is_refused_before_anything_is_begun(scenes: Scenes, how: str) -> None:
    """The authority has signed it, and all else is as an honest server has it."""
    scene = scenes(policy=BOUNDS)
    assert isinstance(scene.ask("keys", 0, scene.announce()), Entry)
    hostile = scene.announce(plan=scene.plan(**FISHING[how]))
    reply = scene.ask("keys", VICTIM, hostile)
    refused(scene, reply, AbortCode.POLICY, "the plan ")
    assert not Vault(scene.home(VICTIM)).rounds()


# --- told something else than the others ----------------------------------------------------------


def other_factors(scene: FleetScene) -> Announce:
    honest = scene.announce()
    factors = np.frombuffer(honest.factors, "<f4").copy()
    factors[0] = np.nextafter(factors[0], np.float32(1))  # the smallest difference there is
    return replace(honest, factors=factors.tobytes())


def other_rate(scene: FleetScene) -> Announce:
    return scene.announce(plan=scene.plan(training__lr_shared=0.5))


def other_clip(scene: FleetScene) -> Announce:
    return scene.announce(plan=scene.plan(clip=1.0))


def other_finished(scene: FleetScene) -> Announce:
    return scene.announce(finished=(Finished(1, 1),))


def other_list(scene: FleetScene) -> Announce:
    newer = membership(N, 2)
    scene.offer(VICTIM, newer.encoded)
    return scene.announce(list_digest=newer.digest)


@pytest.mark.parametrize("special", [other_factors, other_rate, other_clip, other_finished, other_list])
def test_who_is_told_something_else_is_noticed_by_everybody_before_anything_is_masked(
    scenes: Scenes, special: Callable[[FleetScene], Announce]
) -> None:
    scene = scenes()
    honest = scene.announce()
    entries = [scene.ask("keys", i, special(scene) if i == VICTIM else honest) for i in range(N)]
    assert all(isinstance(entry, Entry) for entry in entries)
    for i in range(N):
        reply = scene.ask("shares", i, Roster(tuple(entries)))
        refused(scene, reply, AbortCode.AGREEMENT, "context digests differ", device=i)
    for stage in BEYOND:
        assert scene.ask(stage, VICTIM, Collect(bytes(32))) == Abort(AbortCode.STAGE)
    assert "masked" not in {stage for stage, _, reply in scene.log if not is_abort(reply)}


def is_abort(reply: bytes) -> bool:
    return len(reply) == len(encode(Abort(AbortCode.STAGE)))


def test_an_honest_server_leaves_out_who_was_told_something_else(scenes: Scenes) -> None:
    """Somebody on the way changes the factors for one device: its keys are for another context."""
    scene = scenes()

    def twist(stage: str, i: int, payload: bytes) -> bytes:
        if (stage, i) != ("keys", VICTIM) or decode(payload, Announce).round != 2:
            return payload
        return encode(
            replace(decode(payload, Announce), factors=bytes(len(decode(payload, Announce).factors)))
        )

    log = scene.serve(twist=twist).journal.logs()[1]
    assert log.named == {"1001": "keys: keys for another context"}
    second = scene.watched[1]
    assert second.survivors == (1000, 1002, 1003)
    assert second.set_aside == {1001: "keys: keys for another context"}
    scene.close()


# --- factors --------------------------------------------------------------------------------------


def with_value(value: float) -> Callable[[bytes], bytes]:
    def change(factors: bytes) -> bytes:
        numbers = np.frombuffer(factors, "<f4").copy()
        numbers[-1] = value
        return numbers.tobytes()

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_value(float("nan")), "not finite"),
        (with_value(float("inf")), "not finite"),
        (with_value(float("-inf")), "not finite"),
        (with_value(3e38), "exceed 1000"),
        (with_value(-1001.0), "exceed 1000"),
        (lambda factors: factors[:-4], "announced factors have"),
        (lambda factors: factors[:-1], "announced factors have"),
        (lambda factors: factors + bytes(4), "announced factors have"),
        (lambda factors: factors * 2, "announced factors have"),
        (lambda factors: b"", "announced factors have"),
    ],
)
def test_factors_that_no_sound_run_has_are_refused(
    scenes: Scenes, change: Callable[[bytes], bytes], reason: str
) -> None:
    scene = scenes()
    refused(scene, announced(scene, factors=change(scene.announce().factors)), AbortCode.AGREEMENT, reason)


def test_the_largest_factor_that_the_owner_allows_is_the_owners_number(scenes: Scenes) -> None:
    scene = scenes(policy={"max_factor": 5000.0})
    assert isinstance(announced(scene, factors=with_value(1001.0)(scene.announce().factors)), Entry)


def test_the_start_of_the_personal_part_is_checked_like_the_factors(scenes: Scenes) -> None:
    """After a warm-up the announcement carries it too: as many numbers more, all finite."""
    scene = scenes(federation__warmup_rounds=1)
    planned = scene.model_cache.of(scene.config.plan("main", N))
    size = 4 * planned.split.personal.size
    shared = scene.announce().factors
    refused(scene, announced(scene), AbortCode.AGREEMENT, "announced factors have")
    spoilt = with_value(float("nan"))(shared + bytes(size))
    refused(scene, announced(scene, factors=spoilt), AbortCode.AGREEMENT, "not finite")
    assert isinstance(announced(scene, factors=shared + bytes(size)), Entry)


@pytest.mark.parametrize("bound", ["max_factor_ratio", "max_head_norm"])
@pytest.mark.parametrize("part", ["shared", "personal"])
def test_factors_out_of_proportion_to_the_model_are_refused(scenes: Scenes, part: str, bound: str) -> None:
    """Each number is within max_factor, the whole is not; in the start of the personal part as well."""
    head = part if bound == "max_head_norm" else "shared"
    scene = scenes(policy={bound: 10.0}, adapter__share="A", adapter__head=head, federation__warmup_rounds=1)
    split = scene.model_cache.of(scene.config.plan("main", N)).split
    flat = {"shared": np.zeros(split.shared.size, "<f4"), "personal": np.zeros(split.personal.size, "<f4")}
    assert isinstance(announced(scene, factors=b"".join(each.tobytes() for each in flat.values())), Entry)
    flat[part][:] = 999.0
    reply = announced(scene, factors=b"".join(each.tobytes() for each in flat.values()))
    refused(scene, reply, AbortCode.POLICY, f"({bound})")


@pytest.mark.parametrize("bound", ["max_modules", "max_shared"])
def test_a_model_that_has_more_to_share_than_the_owner_allows_is_refused(scenes: Scenes, bound: str) -> None:
    """Only the loaded model says how much a plan's words amount to."""
    split = scenes().model_cache.of(scenes().config.plan("main", N)).split
    size = len(split.adapted_modules) if bound == "max_modules" else split.shared.size
    assert isinstance(announced(scenes(policy={bound: size})), Entry)
    scene = scenes(policy={bound: size - 1})
    refused(scene, announced(scene), AbortCode.POLICY, f"({bound})")


# --- the disk -------------------------------------------------------------------------------------


def test_a_round_that_the_disk_has_no_room_for_is_refused_before_keys(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And uses no attempt up: with room, the same announcement is answered."""
    scene = scenes()
    with monkeypatch.context() as patched:
        patched.setattr("penchant.client.vault.budget.SLACK", 1025 << 20)
        refused(scene, announced(scene), AbortCode.POLICY, "the owner allows 1024.0 (max_disk_mb)")
    assert isinstance(announced(scene), Entry)


def test_run_after_run_leaves_no_more_than_the_owner_allows(scenes: Scenes) -> None:
    scene = scenes()
    vault = Vault(scene.home(VICTIM))
    for number in range(8):
        run = bytes([number]) * 16
        honest = scene.announce()
        assert isinstance(scene.ask("keys", VICTIM, scene.announce(run=run)), Entry)
        vault.stage(run, honest.round, honest.attempt, np.ones(3, dtype=np.float32))
    assert vault.disk_use().runs == 4


# --- base models ----------------------------------------------------------------------------------


def test_a_wrong_digest_of_the_base_model_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    refused(scene, announced(scene, base=bytes(32)), AbortCode.CONFIGURATION, "another base model")


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "owner/hub-model", "../somewhere", "", "/"])
def test_a_base_model_that_the_owner_does_not_allow_is_never_loaded(
    scenes: Scenes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    scene = scenes()
    scene.restart(VICTIM, model_cache=ModelCache(lambda *wanted: asked.append(wanted)))  # type: ignore[arg-type]
    hostile = replace(scene.announce(), plan=scene.plan(model__base_model=name))
    refused(scene, scene.ask("keys", VICTIM, hostile), AbortCode.POLICY, "not among those the owner allows")
    assert asked == []


def test_a_server_can_not_fill_the_memory_with_models(scenes: Scenes) -> None:
    """Each new length or scale is another model in memory: the last two are kept."""
    scene = scenes(model_cache=ModelCache())
    for tokens in range(10, 20):
        plan = scene.plan(model__max_tokens=tokens)
        scene.ask("keys", VICTIM, scene.announce(tokens, plan=plan))
    assert scene.model_cache.loads >= 10
    assert len(scene.model_cache) == 2


# --- hyper-parameters -----------------------------------------------------------------------------

AT_THE_BOUNDS = [
    {"training__local_epochs": 1000},
    {"training__refit_epochs": 1000},
    {"training__lr_shared": 1.0, "training__lr_personal": 1.0, "training__lr_head": 1.0},
    {"training__lr_shared": 0.0, "training__lr_personal": 0.0, "training__lr_head": 0.0},
    {"training__batch_size": 1},
    {"training__batch_size": 100_000},
    {"training__weight_decay": 100.0},
    {"training__pull": 1e6},
    {"model__max_tokens": 2},
    {"model__max_tokens": 8192},
    {"model__normalize": 1000.0},
    {"adapter__rank": 16},
    {"adapter__rank": 1},
    {"adapter__alpha": 4096.0},
    {"adapter__alpha": 1e-3},
    {"clip": 1e-6},
    {"clip": 1e6},
    {"max_weight": 1},
    {"seed": 2**63 - 1},
]

CONFIGURATION, POLICY = AbortCode.CONFIGURATION, AbortCode.POLICY

BEYOND_THE_BOUNDS = [
    ({"training__local_epochs": 1001}, CONFIGURATION),
    ({"training__local_epochs": 0}, CONFIGURATION),
    ({"training__local_epochs": -1}, CONFIGURATION),
    ({"training__local_epochs": 10**400}, CONFIGURATION),
    ({"training__local_epochs": 1.5}, CONFIGURATION),
    ({"training__local_epochs": True}, CONFIGURATION),
    ({"training__local_epochs": "many"}, CONFIGURATION),
    ({"training__refit_epochs": 1001}, POLICY),
    ({"training__refit_epochs": 10_001}, CONFIGURATION),
    ({"training__order": "personal-first", "training__personal_epochs": 999}, POLICY),
    ({"training__personal_epochs": 1001}, CONFIGURATION),
    ({"training__lr_shared": 1.0001}, CONFIGURATION),
    ({"training__lr_shared": -1e-9}, CONFIGURATION),
    ({"training__lr_personal": float("nan")}, CONFIGURATION),
    ({"training__lr_head": float("inf")}, CONFIGURATION),
    ({"training__lr_head": 10**400}, CONFIGURATION),
    ({"training__refit_lr": 2}, CONFIGURATION),
    ({"training__batch_size": -1}, CONFIGURATION),
    ({"training__batch_size": 100_001}, CONFIGURATION),
    ({"training__chunk": -1}, CONFIGURATION),
    ({"training__weight_decay": 101.0}, CONFIGURATION),
    ({"training__pull": 1e7}, CONFIGURATION),
    ({"training__order": "mine"}, CONFIGURATION),
    ({"training__optimizer": "__import__"}, CONFIGURATION),
    ({"model__max_tokens": 1}, CONFIGURATION),
    ({"model__max_tokens": 8193}, CONFIGURATION),
    ({"model__normalize": 1001.0}, CONFIGURATION),
    ({"model__pooling": "max"}, CONFIGURATION),
    ({"model__base_model": ["x"]}, CONFIGURATION),
    ({"model__base_model": "\ud800"}, CONFIGURATION),
    ({"adapter__rank": 0}, CONFIGURATION),
    ({"adapter__rank": 17}, CONFIGURATION),  # of a layer that is 16 wide
    ({"adapter__rank": 513}, CONFIGURATION),
    ({"adapter__alpha": 0.0}, CONFIGURATION),
    ({"adapter__alpha": 4097.0}, CONFIGURATION),
    ({"adapter__alpha": float("nan")}, CONFIGURATION),
    ({"adapter__layers": [99]}, CONFIGURATION),
    ({"adapter__layers": ["x"]}, CONFIGURATION),
    ({"adapter__target_modules": []}, CONFIGURATION),
    ({"adapter__target_modules": [".*"]}, CONFIGURATION),
    ({"adapter__target_modules": ["embeddings"]}, CONFIGURATION),
    ({"adapter__share": "everything"}, CONFIGURATION),
    ({"adapter__share": "none", "adapter__head": "shared"}, CONFIGURATION),
    ({"clip": 0.0}, CONFIGURATION),
    ({"clip": 1e7}, CONFIGURATION),
    ({"clip": float("nan")}, CONFIGURATION),
    ({"max_weight": 0}, CONFIGURATION),
    ({"max_weight": (1 << 20) + 1}, CONFIGURATION),
    ({"max_weight": 1 << 20, "cohort": 1000, "group_size": 1000}, CONFIGURATION),  # no ring holds that
    ({"ring_bits": 16}, CONFIGURATION),
    ({"ring_bits": 33}, CONFIGURATION),
    ({"group_size": 2}, CONFIGURATION),
    ({"group_size": 1001}, CONFIGURATION),
    ({"cohort": 0}, CONFIGURATION),
    ({"seed": -1}, CONFIGURATION),
    ({"phase": "peek"}, CONFIGURATION),
    ({"start_sent": 1}, CONFIGURATION),
    ({"threshold": 1}, CONFIGURATION),
    ({"allow_unmasked": True}, CONFIGURATION),
    ({"min_honest": 1}, CONFIGURATION),
]


def described(value: Any) -> str:
    return str(value)[:60] if isinstance(value, dict) else ""


@pytest.mark.parametrize("changes", AT_THE_BOUNDS, ids=described)
def test_hyper_parameters_at_their_bounds_are_taken(scenes: Scenes, changes: dict[str, Any]) -> None:
    scene = scenes()
    reply = scene.ask("keys", VICTIM, scene.announce(plan=scene.plan(**changes)))
    assert isinstance(reply, Entry), scene.agents[VICTIM].reasons()


@pytest.mark.parametrize(("changes", "code"), BEYOND_THE_BOUNDS, ids=described)
def test_hyper_parameters_beyond_their_bounds_are_refused(
    scenes: Scenes, changes: dict[str, Any], code: AbortCode
) -> None:
    scene = scenes()
    refused(scene, announced(scene, plan=as_json(scene, changes)), code)


def test_a_share_rule_that_the_device_does_not_have_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    reply = announced(scene, plan=scene.plan(adapter__share="gain"))
    refused(
        scene, reply, CONFIGURATION, "asks for share 'gain', which is not known here; install the package"
    )
    assert "\n" not in scene.reason(VICTIM)[2]


def as_json(scene: FleetScene, changes: dict[str, Any]) -> bytes:
    """The plan's bytes; what UTF-8 can't hold is escaped."""
    try:
        return scene.plan(**changes)
    except UnicodeEncodeError:
        plan = json.loads(scene.plan())
        plan["model"]["base_model"] = changes["model__base_model"]
        return json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()


def test_the_fastest_rates_cost_a_device_at_most_its_round(scenes: Scenes) -> None:
    """Rates of 1, a scale of 1000, 60 passes: a masked vector; the factor stays finite."""
    scene = scenes()
    plan = scene.plan(
        training__lr_shared=1.0,
        training__lr_personal=1.0,
        training__lr_head=1.0,
        training__local_epochs=60,
        model__normalize=1000.0,
        adapter__alpha=4096.0,
    )
    scene.play_to("masked", announce=scene.announce(plan=plan))
    reply = scene.ask("masked", VICTIM, scene.requests[VICTIM])
    assert isinstance(reply, Masked)
    scene.greet(VICTIM, [(1, 1)])
    kept = scene.personal(VICTIM)
    assert kept is None or np.isfinite(kept[1]).all()


def spaced(plan: bytes) -> bytes:
    return json.dumps(json.loads(plan), sort_keys=True).encode()


def unsorted(plan: bytes) -> bytes:
    table = json.loads(plan)
    return json.dumps(dict(reversed(table.items())), separators=(",", ":")).encode()


def lacking(plan: bytes) -> bytes:
    table = json.loads(plan)
    del table["training"]["pull"]  # its default would stand in
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "spell",
    [
        spaced,
        unsorted,
        lacking,
        lambda plan: plan + b" ",
        lambda plan: plan.replace(b'"clip":10.0', b'"clip":1e1'),
        lambda plan: plan.replace(b'"clip":10.0', b'"clip":10'),
        lambda plan: plan.replace(b'"clip":10.0', b'"clip":10.0,"clip":10.0'),
        lambda plan: plan.decode().encode("utf-16"),
        lambda plan: b"\xef\xbb\xbf" + plan,
        lambda plan: b"[" * 60_000,
        lambda plan: b"\xff",
        lambda plan: b"null",
        lambda plan: b"",
    ],
)
def test_a_plan_in_another_spelling_is_refused(scenes: Scenes, spell: Callable[[bytes], bytes]) -> None:
    scene = scenes()
    assert b'"clip":10.0' in scene.plan()
    refused(scene, announced(scene, plan=spell(scene.plan())), AbortCode.CONFIGURATION)


@pytest.mark.parametrize(
    "changes", [{"ring": 64}, {"words": 1}, {"words": 1 << 26}, {"group": 3}, {"group": 1024}, {"ring": 8}]
)
def test_a_ring_length_or_group_that_does_not_follow_from_the_plan_is_refused(
    scenes: Scenes, changes: dict[str, int]
) -> None:
    scene = scenes()
    refused(scene, announced(scene, **changes), AbortCode.AGREEMENT, "not those that the plan gives")


# --- unmasked -------------------------------------------------------------------------------------


def test_the_request_to_send_unmasked_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    refused(scene, announced(scene, kind=Kind.PLAIN), AbortCode.POLICY, "unmasked")
    assert scene.ask("masked", VICTIM, Collect(bytes(32))) == Abort(AbortCode.STAGE)


def test_a_masked_round_is_not_turned_into_an_unmasked_one(scenes: Scenes) -> None:
    """Even where the owner allows plain rounds, a round announced as masked stays masked."""
    scene = scenes(policy={"allow_unmasked": True}).play_to("masked")
    entry = decode(scene.sent["keys"][VICTIM], Entry)
    refused(scene, scene.ask("masked", VICTIM, Collect(entry.context)), AbortCode.STAGE)


def test_a_whole_plain_run_gets_nothing_from_devices_whose_owners_forbid_it(scenes: Scenes) -> None:
    scene = scenes(privacy__secagg=False)
    with pytest.raises(TooFewDevices):
        scene.serve()
    assert {reason[1] for i in range(N) for reason in scene.agents[i].reasons()} == {"POLICY"}
    assert all(is_abort(reply) for stage, _, reply in scene.log if stage != "status")
    scene.close()


# --- member lists ---------------------------------------------------------------------------------


def listed(
    number: int, *, issued: int = NOW - 10, expires: int = NOW + 10, by: Authority | None = None
) -> bytes:
    members = [identity(i).certificate for i in range(1, N + 1)]
    return (by or authority()).publish(number, members, issued=issued, expires=expires).encode()


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (lambda: membership(N, 2).encoded, "is known"),
        (lambda: listed(3), "is known"),  # another list of the number that is known
        (lambda: listed(4, expires=NOW), "past its date"),
        (lambda: listed(4, issued=NOW + 10_000, expires=NOW + 20_000), "not valid yet"),
        (lambda: listed(4, by=Authority.create(SeededEntropy(b"villain", ""))), "not signed"),
        (lambda: membership(N, 4).encoded[:-64] + bytes(64), "not signed"),
        (lambda: membership(N, 4).encoded[:-1], "can't be read"),
        (lambda: b"no list", "can't be read"),
    ],
    ids=["old", "twin", "stale", "early", "foreign", "unsigned", "cut", "noise"],
)
def test_an_old_stale_or_unsigned_member_list_is_refused(
    scenes: Scenes, offered: Callable[[], bytes], reason: str
) -> None:
    scene = scenes()
    newest = membership(N, 3)
    known = Status(True, VICTIM + 1, newest.digest)
    assert scene.offer(VICTIM, newest.encoded) == known
    assert isinstance(announced(scene, list_digest=newest.digest), Entry)
    turned_away(scene, scene.offer(VICTIM, offered()), AbortCode.MEMBERSHIP, reason)
    assert scene.offer(VICTIM, b"") == known
    assert isinstance(announced(scene, attempt=2, list_digest=newest.digest), Entry)


@pytest.mark.parametrize("digest", [membership(N, 1).digest, membership(N, 3).digest, bytes(32)])
def test_a_round_by_another_member_list_than_the_device_s_is_refused(scenes: Scenes, digest: bytes) -> None:
    """An older one, a newer one that it has not seen, and none."""
    scene = scenes()
    known = membership(N, 2)
    scene.offer(VICTIM, known.encoded)
    assert isinstance(announced(scene, list_digest=known.digest), Entry)
    hostile = scene.announce(attempt=2, list_digest=digest)
    reply = scene.ask("keys", VICTIM, hostile)
    turned_away(scene, reply, AbortCode.MEMBERSHIP, "another member list than list 2")


def test_a_paused_device_takes_over_a_newer_list(scenes: Scenes) -> None:
    scene = scenes()
    newer = membership(N, 2)
    scene.restart(VICTIM, policy=replace(scene.policy, paused=True))
    assert scene.offer(VICTIM, newer.encoded) == Status(False, VICTIM + 1, newer.digest)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_device_without_a_valid_list_joins_nothing(scenes: Scenes, kind: Kind) -> None:
    scene = scenes(policy={"allow_unmasked": True})
    scene.now = NOW + 10_000
    refused(scene, announced(scene, kind=kind), AbortCode.MEMBERSHIP, "past its date")


def test_a_device_restarted_with_an_older_list_keeps_the_newest_it_saw(scenes: Scenes) -> None:
    scene = scenes()
    assert isinstance(scene.offer(VICTIM, membership(N, 3).encoded), Status)
    scene.restart(VICTIM)  # its files at hand hold list 1
    assert scene.offer(VICTIM, membership(N, 2).encoded) == Abort(AbortCode.MEMBERSHIP)
    assert "list 3 is known" in scene.reason(VICTIM)[2]


def test_a_list_given_at_a_start_is_not_forgotten_by_the_next(scenes: Scenes) -> None:
    scene = scenes()
    scene.restart(VICTIM, membership=membership(N, 3))
    scene.restart(VICTIM, membership=membership(N, 1))
    assert scene.offer(VICTIM, membership(N, 2).encoded) == Abort(AbortCode.MEMBERSHIP)
    assert "list 3 is known" in scene.reason(VICTIM)[2]
    scene.restart(VICTIM, membership=membership(N, 5))
    assert scene.offer(VICTIM, membership(N, 4).encoded) == Abort(AbortCode.MEMBERSHIP)
    assert "list 5 is known" in scene.reason(VICTIM)[2]


def test_whom_the_newest_list_revokes_is_refused_in_a_roster(scenes: Scenes) -> None:
    """Its own agent would not make such an entry any more; its owner may."""
    scene = scenes()
    newer = membership(N, 2, revoked=(1,))
    for i in range(N):
        scene.offer(i, newer.encoded)
    announce = scene.announce(list_digest=newer.digest)
    first, *entries = [scene.ask("keys", i, announce) for i in range(N)]
    assert first == Abort(AbortCode.MEMBERSHIP)
    its_owner = Participant(identity(1), scene.members, scene.policy.secagg(), VERIFY)
    _, made = its_owner.begin(announce, SeededEntropy(b"revoked", ""), NOW)
    reply = scene.ask("shares", VICTIM, Roster((decode(made, Entry), *entries)))
    refused(scene, reply, AbortCode.MEMBERSHIP, "member 1 is revoked")


def test_a_list_that_comes_after_keys_is_not_what_a_roster_is_checked_by(scenes: Scenes) -> None:
    """Else the server could show the devices of one round rosters by two lists."""
    scene = scenes()
    announce = scene.announce()
    entries = [scene.ask("keys", i, announce) for i in range(N)]
    newer = membership(N + 1, 2)
    assert isinstance(scene.offer(VICTIM, newer.encoded), Status)
    newcomer = Participant(identity(N + 1), newer, scene.policy.secagg(), VERIFY)
    _, made = newcomer.begin(announce, SeededEntropy(b"newcomer", ""), NOW)
    reply = scene.ask("shares", VICTIM, Roster((*entries, decode(made, Entry))))
    refused(scene, reply, AbortCode.MEMBERSHIP, "came after the round had begun")


# --- keys and groups ------------------------------------------------------------------------------


def forged(entry: Entry, **changes: Any) -> Entry:
    changed = replace(entry, **changes)
    villain = SeededEntropy(b"villain", "").draw(32)
    certificate = replace(changed.certificate, public_key=Identity.public_of(villain))
    signer = Identity(villain, certificate)
    changed = replace(changed, certificate=certificate)
    return replace(changed, signature=signer.sign(entry_text(changed)))


def own_key(entry: Entry) -> Entry:
    """The server's own mask key in a device's entry, whose signature stays."""
    return replace(entry, mask_key=AgreementKey(bytes(31) + b"\1").public())


@pytest.mark.parametrize(
    ("change", "code"), [(own_key, AbortCode.SIGNATURE), (forged, AbortCode.CERTIFICATE)]
)
def test_a_substituted_key_costs_the_server_its_round(
    scenes: Scenes, change: Callable[[Entry], Entry], code: AbortCode
) -> None:
    scene = scenes().play_to("shares")
    entries = list(decode(scene.requests[VICTIM], Roster).entries)
    entries[3] = change(entries[3])
    refused(scene, scene.ask("shares", VICTIM, Roster(tuple(entries))), code)


def test_substituted_keys_for_all_but_one_leave_the_server_without_a_sum(scenes: Scenes) -> None:
    """A server in the middle replaces everybody's mask key in every roster: all refuse, round after round."""
    scene = scenes()

    def twist(stage: str, i: int, payload: bytes) -> bytes:
        if stage != "shares":
            return payload
        entries = decode(payload, Roster).entries
        return encode(Roster(tuple(own_key(e) if at != i else e for at, e in enumerate(entries))))

    with pytest.raises(TooManyDropouts):
        scene.serve(twist=twist)
    assert not any(stage in BEYOND for stage, _, _ in scene.log)
    scene.close()


@pytest.mark.parametrize(
    "other", [{"number": 2}, {"attempt": 2}, {"run": bytes(16)}], ids=["round", "attempt", "run"]
)
def test_a_roster_of_another_round_attempt_or_run_is_refused(scenes: Scenes, other: dict[str, Any]) -> None:
    scene = scenes().play_to("shares")
    elsewhere = scene.requests[VICTIM]
    assert isinstance(scene.ask("keys", VICTIM, scene.announce(**other)), Entry)
    refused(scene, scene.ask("shares", VICTIM, elsewhere), AbortCode.AGREEMENT, "own entry")


@pytest.mark.parametrize("stage", ["masked", "confirm", "unmask"])
def test_messages_of_the_attempt_before_are_refused(scenes: Scenes, stage: str) -> None:
    scene = scenes().play_to(stage)
    before = scene.requests[VICTIM]
    scene.play_to(stage, announce=scene.announce(attempt=2))
    reply = scene.ask(stage, VICTIM, before)
    if stage == "confirm":  # the same lists: what is signed is bound to this attempt, so the old one is safe
        old = decode(scene.sent["confirm"][VICTIM], Confirmation)
        assert isinstance(reply, Confirmation)
        assert reply == old
        return
    assert isinstance(reply, Abort)
    assert reply.code in (AbortCode.SHARES, AbortCode.SIGNATURE)


def test_a_group_that_can_never_meet_the_owners_policy_is_refused_at_once(scenes: Scenes) -> None:
    """The owners' defaults: ten honest people, two colluders. Four devices can't be enough."""
    scene = scenes(policy={"min_honest": 10, "max_colluders": 2})
    refused(scene, announced(scene), AbortCode.POLICY, "with 2 colluders it takes 7")


def test_a_roster_that_is_smaller_than_the_announced_group_is_refused(scenes: Scenes) -> None:
    scene = scenes(policy={"min_honest": 3}).play_to("shares", silent={"keys": [3]})
    assert len(decode(scene.requests[VICTIM], Roster).entries) == 3
    assert isinstance(scene.ask("shares", VICTIM, scene.requests[VICTIM]), Shares)  # t of 3 is 3
    strict = scenes(policy={"min_honest": 2, "max_colluders": 1}).play_to("shares", silent={"keys": [3]})
    reply = strict.ask("shares", VICTIM, strict.requests[VICTIM])
    refused(strict, reply, AbortCode.POLICY, "with 1 colluders it takes 4")


def test_a_cohort_is_not_hidden_in_many_small_groups(scenes: Scenes) -> None:
    scene = scenes(policy={"min_honest": 3, "max_colluders": 0})
    small = scene.announce(plan=scene.plan(group_size=3, cohort=N))
    assert small.group == 3
    assert isinstance(scene.ask("keys", VICTIM, small), Entry)
    scene = scenes(policy={"min_honest": 2, "max_colluders": 1})
    refused(scene, scene.ask("keys", VICTIM, small), AbortCode.POLICY, "it takes 4")


# --- alive and dead -------------------------------------------------------------------------------


def test_two_survivor_lists_to_two_halves_open_nothing(scenes: Scenes) -> None:
    """Half of seven devices hear that device 6 lives, the others that it is lost. Neither list gets five
    signatures, so no device gives a share of anybody."""
    scene = scenes(7).play_to("confirm")
    everyone = tuple(range(7))
    lists = {i: everyone if i < 4 or i == 6 else everyone[:6] for i in range(7)}
    signed = {i: scene.ask("confirm", i, Survivors(everyone, lists[i])) for i in range(7)}
    assert all(isinstance(reply, Confirmation) for reply in signed.values())
    for i in range(7):
        mine = [k for k in range(7) if k in lists[i]]
        mixed = Confirmations(tuple(mine), tuple(signed[k].signature for k in mine))
        assert scene.ask("unmask", i, mixed) == Abort(AbortCode.SIGNATURE)
        few = [k for k in mine if lists[k] == lists[i]]
        assert scene.ask(
            "unmask", i, Confirmations(tuple(few), tuple(signed[k].signature for k in few))
        ) == Abort(AbortCode.STAGE)
    assert all(is_abort(reply) for stage, _, reply in scene.log if stage == "unmask")


def test_too_few_signatures_on_one_list_open_nothing(scenes: Scenes) -> None:
    scene = scenes(7).play_to("unmask")
    given = decode(scene.requests[VICTIM], Confirmations)
    few = Confirmations(given.signers[:4], given.signatures[:4])
    refused(scene, scene.ask("unmask", VICTIM, few), AbortCode.POLICY, "4 of 7 devices, 5 are needed")


@pytest.mark.parametrize(
    ("survivors", "code"),
    [
        ((0, 2, 3), AbortCode.AGREEMENT),  # without the device
        ((0, 1, 2, 9), AbortCode.AGREEMENT),  # with somebody from outside
        ((0, 1, 1, 2), AbortCode.AGREEMENT),  # twice
        ((0, 1), AbortCode.POLICY),  # too few
    ],
)
def test_survivors_that_can_not_be_are_refused(
    scenes: Scenes, survivors: tuple[int, ...], code: AbortCode
) -> None:
    scene = scenes().play_to("confirm")
    refused(scene, scene.ask("confirm", VICTIM, Survivors((0, 1, 2, 3), survivors)), code)


def test_a_lost_peer_is_opened_by_its_key_and_a_living_one_by_its_seed_never_both(scenes: Scenes) -> None:
    scene = scenes().play_to("unmask", silent={"masked": [3]})
    given = scene.ask("unmask", VICTIM, scene.requests[VICTIM])
    assert isinstance(given, Unmasking)
    assert (len(given.seed_shares), len(given.key_shares)) == (3, 1)
    alive = tuple(range(N))
    assert scene.ask("confirm", VICTIM, Survivors(alive, alive)) == Abort(AbortCode.STAGE)
    assert scene.ask("unmask", VICTIM, scene.requests[VICTIM]) == Abort(AbortCode.STAGE)


# --- again ----------------------------------------------------------------------------------------


def test_unmasking_is_answered_once(scenes: Scenes) -> None:
    scene = scenes().play_to("unmask")
    assert isinstance(scene.ask("unmask", VICTIM, scene.requests[VICTIM]), Unmasking)
    refused(scene, scene.ask("unmask", VICTIM, scene.requests[VICTIM]), AbortCode.STAGE)


@pytest.mark.parametrize("restarted", [False, True])
def test_no_second_attempt_after_unmasking(scenes: Scenes, restarted: bool) -> None:
    scene = scenes().play_to("unmask")
    scene.finish("unmask")
    if restarted:
        scene.restart(VICTIM)
    for attempt in (1, 2, 65535):
        refused(scene, announced(scene, attempt=attempt), AbortCode.STAGE, "already unmasked")
    assert isinstance(scene.ask("keys", VICTIM, scene.announce(number=2)), Entry)


@pytest.mark.parametrize("stage", ["shares", "masked", "confirm", "unmask"])
def test_a_device_killed_in_an_attempt_sits_that_attempt_out(scenes: Scenes, stage: str) -> None:
    scene = scenes().play_to(stage)
    scene.restart(VICTIM)
    refused(scene, scene.ask(stage, VICTIM, scene.requests[VICTIM]), AbortCode.STAGE, "no attempt is open")
    refused(scene, announced(scene), AbortCode.STAGE, "attempt 1 of round 1 was already used")
    assert isinstance(announced(scene, attempt=2), Entry)


def test_an_attempt_is_burnt_by_its_first_reply(scenes: Scenes) -> None:
    scene = scenes()
    assert isinstance(announced(scene), Entry)
    refused(scene, announced(scene), AbortCode.STAGE, "already used")
    assert isinstance(announced(scene, attempt=3), Entry)
    refused(scene, announced(scene, attempt=2), AbortCode.STAGE, "already used")


def test_keys_are_fresh_in_every_attempt(scenes: Scenes) -> None:
    scene = scenes(entropy=lambda i: SeededEntropy(b"", f"{i}"))
    seen: set[bytes] = set()
    for attempt in range(1, 6):
        entry = announced(scene, attempt=attempt)
        assert isinstance(entry, Entry)
        fresh = {entry.mask_key, entry.channel_key, entry.commitment, entry.context}
        assert len(fresh) == 4
        assert not fresh & seen
        seen |= fresh


@pytest.mark.parametrize("restarted", [False, True])
def test_an_older_round_is_over(scenes: Scenes, restarted: bool) -> None:
    scene = scenes()
    assert isinstance(scene.ask("keys", VICTIM, scene.announce(number=3)), Entry)
    if restarted:
        scene.restart(VICTIM)
    reply = scene.ask("keys", VICTIM, scene.announce(number=2, attempt=9))
    refused(scene, reply, AbortCode.STAGE, "round 2 is over")
    assert isinstance(scene.ask("keys", VICTIM, scene.announce(number=4)), Entry)


@pytest.mark.parametrize(("now", "other"), permutations(STAGES[1:], 2))
def test_a_stage_skipped_or_repeated_ends_the_attempt(scenes: Scenes, now: str, other: str) -> None:
    """Where stage `now` is due, the device is asked for `other`, with the message that is right for `now`."""
    scene = scenes().play_to(now)
    refused(scene, scene.ask(other, VICTIM, scene.requests[VICTIM]), AbortCode.STAGE)
    assert scene.ask(now, VICTIM, scene.requests[VICTIM]) == Abort(AbortCode.STAGE)


def test_a_new_announcement_ends_the_attempt_before(scenes: Scenes) -> None:
    scene = scenes().play_to("masked")
    assert isinstance(announced(scene, attempt=2), Entry)
    refused(scene, scene.ask("masked", VICTIM, scene.requests[VICTIM]), AbortCode.STAGE)


# --- what a server can't reach --------------------------------------------------------------------


def test_the_owners_policy_is_no_part_of_what_a_server_sends() -> None:
    """`privacy.min_honest` and `max_colluders` of a configuration are a simulator's, and not in the plan."""
    plan = json.loads(RunConfig().plan("main", 10).encode())
    sent = set(plan).union(*(value for value in plan.values() if isinstance(value, dict)))
    bounds_of_the_plan = {"max_weight"}
    assert not sent & (set(OwnerPolicy.__dataclass_fields__) - bounds_of_the_plan)
    assert fleet_policy(RunConfig(), 34).min_honest == 10


def test_a_word_for_the_run_can_not_move_the_factor_of_another(scenes: Scenes) -> None:
    """Naming rounds of another run as finished commits nothing of this one."""
    scene = scenes().play_to("confirm")
    elsewhere = scene.announce(9, run=bytes(16), finished=(Finished(1, 1),))
    assert isinstance(scene.ask("keys", VICTIM, elsewhere), Entry)
    assert scene.personal(VICTIM) is None
    assert scene.personal(VICTIM, bytes(16)) is None
    scene.greet(VICTIM, [(1, 1)])
    kept = scene.personal(VICTIM)
    assert kept is not None
    assert kept[0] == 1
