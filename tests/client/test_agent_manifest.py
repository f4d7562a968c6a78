"""A malicious server against the run manifest and the owner's limits, over real messages and real agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fleet_scene import FleetScene
from support.scene import NOW, RUN, authority

from penchant.client.vault.vault import Vault
from penchant.common.config import Plan
from penchant.common.crypto.domain import domain
from penchant.common.durations import DAY
from penchant.common.errors import AgreementError, PolicyRefusal, UsageError
from penchant.common.membership.identity import Authority
from penchant.common.membership.manifest import PrivacyParameter, SignedManifest, day_of, sign_run
from penchant.common.wire.codec import decode_record
from penchant.common.wire.messages import Abort, AbortCode, Announce, Entry, Kind, Status, abort_code

N = 4
Scenes = Callable[..., FleetScene]


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Scenes:
    made: list[FleetScene] = []

    def make(n: int = N, **settings: Any) -> FleetScene:
        made.append(FleetScene(tiny_model("bert"), tmp_path / str(len(made)), n, **settings))
        return made[-1]

    return make


def resigned(announce: Announce, by: Authority | None = None, **changes: Any) -> Announce:
    """The announcement with its manifest changed, and signed by the authority (or by another)."""
    manifest = decode_record(announce.manifest, SignedManifest).manifest
    return replace(announce, manifest=sign_run(by or authority(), replace(manifest, **changes)).encode())


def refused(scene: FleetScene, announce: Announce, kind: type[Exception], reason: str) -> None:
    """Refused with this code before anything was changed: nothing is burnt, counted or open."""
    before = Vault(scene.home(0)).rounds(), Vault(scene.home(0)).ledger.runs()
    assert scene.ask("keys", 0, announce) == Abort(abort_code(kind("")))
    assert reason in scene.reason(0)[2]
    assert (Vault(scene.home(0)).rounds(), Vault(scene.home(0)).ledger.runs()) == before
    assert not scene.is_open(0)


# --- what is announced and what was signed --------------------------------------------------------


def test_seventeen_of_eighteen_without_a_manifest_are_refused(scenes: Scenes) -> None:
    scene = scenes(4)
    refused(scene, scene.announce(manifest=b""), PolicyRefusal, "no manifest")
    smaller = scene.config.plan("main", 3).encode()
    refused(scene, replace(scene.announce(plan=smaller), manifest=b""), PolicyRefusal, "no manifest")


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"run": bytes(16)}, AgreementError, "a different run"),
        ({"base": bytes(32)}, AgreementError, "a different base model"),
        ({"unmasked": True}, AgreementError, "secure aggregation"),
        ({"rounds": 2, "plans": "two"}, AgreementError, "allows 2"),
        ({"least_cohort": 5, "plans": "five"}, AgreementError, "at least 5"),
        ({"least_group": 5}, AgreementError, "at least 5 people in a sum"),
        ({"last_day": day_of(NOW) - 1}, PolicyRefusal, "is valid from"),
        ({"first_day": day_of(NOW) + 1}, PolicyRefusal, "is valid from"),
    ],
)
def test_what_the_manifest_does_not_allow_is_refused(
    scenes: Scenes, changes: dict[str, Any], kind: type[Exception], reason: str
) -> None:
    scene = scenes()
    if changes.get("plans") == "five":
        plans = tuple(scene.config.plan(phase, 5).encode() for phase in ("main", "close"))
        changes = changes | {"plans": plans}
    elif changes.get("plans") == "two":
        plans = tuple(scene.config.plan(phase, N).encode() for phase in ("main", "close"))
        changes = changes | {"plans": plans}
    refused(scene, resigned(scene.announce(3), **changes), kind, reason)


def test_the_first_day_the_last_day_and_the_last_round_are_within(scenes: Scenes) -> None:
    scene, today = scenes(), day_of(NOW)
    one_day = resigned(scene.announce(), first_day=today, last_day=today)
    assert isinstance(scene.ask("keys", 0, one_day), Entry)
    closing = scene.announce(2, phase="close", run=bytes(16))
    assert decode_record(closing.manifest, SignedManifest).manifest.rounds == 2
    assert isinstance(scene.ask("keys", 0, closing), Entry)


def test_another_authoritys_manifest_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    refused(
        scene, resigned(scene.announce(), by=Authority.create()), PolicyRefusal, "not signed by this fleet"
    )


def test_a_changed_manifest_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    honest = scene.announce()
    signed = decode_record(honest.manifest, SignedManifest)
    forged = replace(signed, manifest=replace(signed.manifest, rounds=4000)).encode()
    refused(scene, replace(honest, manifest=forged), PolicyRefusal, "not signed")
    refused(scene, replace(honest, manifest=honest.manifest[:-1]), AgreementError, "can't be read")
    refused(scene, replace(honest, manifest=honest.manifest + b"\0"), AgreementError, "can't be read")


@pytest.mark.parametrize("change", [{"clip": 9.0}, {"training__local_epochs": 3}, {"max_weight": 1}])
def test_an_altered_plan_is_refused(scenes: Scenes, change: dict[str, Any]) -> None:
    scene = scenes()
    honest, other = scene.announce(), scene.announce(plan=scene.plan(**change))
    refused(
        scene, replace(other, manifest=honest.manifest), AgreementError, "not the one that the run manifest"
    )


def test_a_phase_out_of_turn_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    honest, closing = scene.announce(2), scene.announce(2, phase="close")
    refused(scene, replace(closing, manifest=honest.manifest), AgreementError, "for this round")


def test_a_round_for_fewer_people_is_refused_and_one_for_more_is_not(scenes: Scenes) -> None:
    scene = scenes()
    honest = scene.announce()
    fewer = scene.announce(plan=scene.config.plan("main", N - 1).encode())
    refused(scene, replace(fewer, manifest=honest.manifest), AgreementError, "at least 4")
    more = scene.announce(plan=scene.config.plan("main", N + 3).encode())
    assert isinstance(scene.ask("keys", 0, replace(more, manifest=honest.manifest)), Entry)


def test_a_roster_smaller_than_the_manifest_says_is_refused(scenes: Scenes) -> None:
    scene = scenes()
    announce = resigned(scene.announce(), least_group=4)
    scene.play_to("shares", {"keys": [3]}, announce)
    assert scene.ask("shares", 0, scene.requests[0]) == Abort(AbortCode.AGREEMENT)
    assert "a sum over 3 people" in scene.reason(0)[2]
    whole = scenes()
    whole.play_to("shares", {}, resigned(whole.announce(), least_group=4))
    assert not isinstance(whole.ask("shares", 0, whole.requests[0]), Abort)


def test_unmasked_rounds_need_a_manifest_that_says_so(scenes: Scenes) -> None:
    scene = scenes(policy={"allow_unmasked": True})
    plain = scene.announce(kind=Kind.PLAIN)
    refused(scene, plain, AgreementError, "secure aggregation")
    assert not isinstance(scene.ask("keys", 0, resigned(plain, unmasked=True)), Abort)


def test_two_manifests_of_one_run_are_refused_after_a_restart_too(scenes: Scenes) -> None:
    scene = scenes()
    assert isinstance(scene.ask("keys", 0, scene.announce()), Entry)
    scene.restart(0)
    other = resigned(scene.announce(2), last_day=day_of(NOW) + 11)
    refused(scene, other, PolicyRefusal, "another manifest than before")
    assert isinstance(scene.ask("keys", 0, scene.announce(2)), Entry)


def test_a_sum_over_fewer_than_the_manifest_says_is_not_opened(scenes: Scenes) -> None:
    """The roster has enough people, but too few vectors arrive: nobody confirms."""
    scene = scenes()
    announce = resigned(scene.announce(), least_group=N)
    scene.play_to("confirm", {"masked": [N - 1]}, announce)
    for device in range(N - 1):
        assert scene.ask("confirm", device, scene.requests[device]) == Abort(AbortCode.AGREEMENT)
        assert f"a sum over {N - 1} people" in scene.reason(device)[2]


def test_a_manifest_that_contradicts_itself_is_neither_signed_nor_followed(scenes: Scenes) -> None:
    scene = scenes()
    honest = decode_record(scene.announce().manifest, SignedManifest).manifest
    plans = honest.plans
    for changes in (
        {"rounds": 0},
        {"warmup": 1000},
        {"least_cohort": 0},
        {"least_cohort": N + 1},
        {"least_group": 0},
        {"last_day": honest.first_day - 1},
        {"last_day": 2**31},
        {"plans": plans[::-1]},
        {"plans": plans[:1]},
        {"plans": (plans[0] + b" ", plans[1])},
        {"privacy": (PrivacyParameter("epsilon", "1"),)},  # which no plan promises
        {"plans": (replace(Plan.decode(plans[0]), dp_epsilon=1.0).encode(), plans[1])},
    ):
        unsound = replace(honest, **changes)  # type: ignore[arg-type]
        with pytest.raises(AgreementError) as caught:
            sign_run(authority(), unsound)
        # An authority that signs whatever it is asked to, an earlier version's say.
        signature = authority().sign(domain("run manifest", unsound.encode()))
        signed = SignedManifest(unsound, signature).encode()
        refused(scene, replace(scene.announce(), manifest=signed), AgreementError, str(caught.value))


# --- the owner accepts each run -------------------------------------------------------------------


def test_an_owner_who_accepts_each_run_is_asked_first(scenes: Scenes) -> None:
    scene = scenes(policy={"runs": "each"})
    assert scene.ask("keys", 0, scene.announce()) == Abort(AbortCode.POLICY)
    assert f"accept-run {RUN.hex()[:8]}" in scene.reason(0)[2]
    ledger = Vault(scene.home(0)).ledger
    assert Vault(scene.home(0)).rounds() == []
    assert [(run.run, run.accepted, run.rounds) for run in ledger.runs()] == [(RUN, False, 0)]
    assert ledger.runs()[0].asks.rounds == 1000
    for wrong in ("", RUN.hex()[:7], "ff" * 16):
        with pytest.raises(UsageError, match="names no run"):
            ledger.accept(wrong)
    assert ledger.accept(RUN.hex()[:8]) == RUN
    assert scene.ask("keys", 0, resigned(scene.announce(), least_group=2)) == Abort(AbortCode.POLICY)
    assert isinstance(scene.ask("keys", 0, scene.announce()), Entry)


# --- the owner's limits ---------------------------------------------------------------------------


def of_run(scene: FleetScene, number: int, round: int = 1, attempt: int = 1) -> Announce:
    return scene.announce(round, attempt, run=number.to_bytes(16, "big"))


DEFAULTS = {"rounds_a_day": 100, "runs_a_month": 8, "attempts_a_round": 10, "attempts_a_day": 200}


def test_sixty_runs_hit_the_owners_limit_also_after_a_restart(scenes: Scenes) -> None:
    scene = scenes(policy=DEFAULTS)
    replies = []
    for number in range(60):
        replies.append(scene.ask("keys", 0, of_run(scene, number)))
        if number % 20 == 9:
            scene.restart(0)
    assert [isinstance(reply, Entry) for reply in replies] == [True] * 8 + [False] * 52
    assert set(map(type, replies[8:])) == {Abort}
    assert "8 runs in 30 days" in scene.reason(0)[2]
    assert isinstance(scene.ask("keys", 0, of_run(scene, 0, 2)), Entry)  # a run that it is in goes on


def test_a_new_run_is_possible_after_thirty_days_and_not_by_setting_the_clock_back(scenes: Scenes) -> None:
    scene = scenes(policy={"runs_a_month": 1})
    long = {"first_day": 0, "last_day": day_of(NOW) + 100}
    assert isinstance(scene.ask("keys", 0, resigned(of_run(scene, 1), **long)), Entry)
    refused(scene, resigned(of_run(scene, 2), **long), PolicyRefusal, "1 runs in 30 days")
    ledger, limits = Vault(scene.home(0)).ledger, scene.policy.limits()
    today = day_of(NOW)
    assert [ledger.has_room(b"2" * 16, limits, day) for day in (today, today + 29, today + 30, 0)] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("limit", "asked", "reason"),
    [
        ("rounds_a_day", [(1, 1), (1, 2), (2, 1), (3, 1)], "2 rounds today"),
        ("attempts_a_round", [(1, 1), (1, 2), (1, 3)], "tried 2 times"),
        ("attempts_a_day", [(1, 1), (2, 1), (3, 1)], "asked 2 times today"),
    ],
)
def test_the_owners_limits(scenes: Scenes, limit: str, asked: list[tuple[int, int]], reason: str) -> None:
    scene = scenes(policy={limit: 2})
    *fine, beyond = asked
    for round, attempt in fine:
        assert isinstance(scene.ask("keys", 0, scene.announce(round, attempt)), Entry)
    scene.restart(0)
    refused(scene, scene.announce(*beyond), PolicyRefusal, reason)
    scene.now = NOW - 5 * 60  # of the same day, or the day before
    refused(scene, scene.announce(*beyond), PolicyRefusal, reason)


def test_a_clock_that_goes_back_gives_nothing_new(scenes: Scenes) -> None:
    scene = scenes(policy={"rounds_a_day": 1})
    days = {"first_day": day_of(NOW) - 10, "last_day": day_of(NOW) + 10}
    assert isinstance(scene.ask("keys", 0, resigned(scene.announce(1), **days)), Entry)
    scene.restart(0, clock=lambda: NOW - 250)  # as far back as the member list's date is believed
    ledger = Vault(scene.home(0)).ledger
    assert ledger.day(day_of(NOW - 3 * DAY)) == day_of(NOW)
    assert ledger.day(day_of(NOW + DAY)) == day_of(NOW) + 1
    refused(scene, resigned(scene.announce(2), **days), PolicyRefusal, "1 rounds today")


def test_limits_outlast_forgetting(scenes: Scenes) -> None:
    scene = scenes(policy={"runs_a_month": 1})
    assert isinstance(scene.ask("keys", 0, of_run(scene, 1)), Entry)
    Vault(scene.home(0)).forget()
    refused(scene, of_run(scene, 2), PolicyRefusal, "1 runs in 30 days")


def test_a_device_that_is_at_its_limit_is_not_ready(scenes: Scenes) -> None:
    scene = scenes(policy={"rounds_a_day": 1})
    assert scene.greet(0, []) == Status(True, 1, scene.members.digest)
    scene.ask("keys", 0, scene.announce())
    assert scene.greet(0, []) == Status(False, 1, scene.members.digest)


def test_a_replayed_announcement_counts_once(scenes: Scenes) -> None:
    scene = scenes(policy={"attempts_a_day": 2})
    announce = scene.announce()
    assert isinstance(scene.ask("keys", 0, announce), Entry)
    for _ in range(3):
        assert scene.ask("keys", 0, announce) == Abort(AbortCode.STAGE)
    assert isinstance(scene.ask("keys", 0, scene.announce(2)), Entry)


def test_what_a_manifest_says_in_plain_words(scenes: Scenes) -> None:
    scene = scenes()
    manifest = decode_record(scene.announce().manifest, SignedManifest).manifest
    text = "\n".join(manifest.lines())
    for part in (RUN.hex(), "at most 1000 rounds", "2027-01-", "at least 4 people are asked", "no noise"):
        assert part in text
    assert manifest.allows(Plan.decode(scene.announce().plan))
    assert "NO: the server sees" in "\n".join(replace(manifest, unmasked=True).lines())
