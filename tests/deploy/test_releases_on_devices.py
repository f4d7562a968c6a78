"""A release on its way: promoted, signed, offered, fetched, checked, and what a new device makes of it."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_bytes
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support.deployment import made_up_choices
from support.device_page_scene import opened
from support.release_scene import RUN, ReleaseScene, now

from penchant.client.device import device as device_module
from penchant.client.device.device import Device
from penchant.client.device.fetching import fetch_release
from penchant.client.device.known_release import FLEETS, FLEETS_MOST, KnownFleets, checked_release
from penchant.client.learning.newcomer import fit_newcomer
from penchant.client.vault.budget import Room
from penchant.common.config import Plan
from penchant.common.errors import (
    AgreementError,
    BaseModelError,
    DeviceError,
    EnrolmentError,
    JournalError,
    PenchantError,
    PolicyRefusal,
    UsageError,
)
from penchant.common.membership.identity import Authority
from penchant.common.membership.release_manifest import (
    EVERYBODY,
    ReleaseContents,
    ReleaseManifest,
    ReleaseOffer,
    ReleaseRequest,
    SignedRelease,
    _text,
    sign_release,
)
from penchant.common.model import announced
from penchant.common.storage import in_turn
from penchant.common.wire.codec import decode_record, encode_record
from penchant.deploy.cli import authority as authority_commands
from penchant.deploy.cli.device import model as model_commands
from penchant.deploy.fleet import fleet_release, release_acts, release_signature, served_run
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import PendingDecision, attend
from penchant.deploy.fleet.backup import back_up, restore
from penchant.deploy.fleet.declined_request import DeclinedRequest
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server import releases as server_releases
from penchant.server.journal_reader import JournalReader


@pytest.fixture(scope="module")
def played(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> ReleaseScene:
    """A fleet whose run is over."""
    return ReleaseScene.made(tmp_path_factory.mktemp("fleet"), tiny_model("bert"))


@pytest.fixture
def scene(played: ReleaseScene) -> Iterator[ReleaseScene]:
    """The same, without any release yet."""
    yield played
    server = played.server_directory
    for path in (server.path / "release.json", server.run(RUN) / "releases.json"):
        path.unlink(missing_ok=True)
    for folder in (server.path / "release", server.requests, server.answers):
        for path in folder.iterdir() if folder.is_dir() else ():
            path.unlink()
    with closing(sqlite3.connect(played.authority_store.directory / "authority.db")) as db, db:
        db.execute("DELETE FROM releases")  # numbers go on growing


@pytest.fixture(scope="module")
def a_manifest(played: ReleaseScene) -> ReleaseManifest:
    """Of a release, for what is said of manifests alone."""
    contents = ReleaseContents(
        id=bytes(16),
        fleet=played.authority_store.digest,
        name=f"{RUN}:release-1",
        rollback=False,
        share=EVERYBODY,
        run=bytes(16),
        round=1,
        base=bytes(32),
        plan=played.config.plan("main", 3).encode(),
        factors=bytes(32),
        size=4,
        privacy=(),
        begins_with="",
        rounds=1,
        people=3,
        contributions=3,
        choices=9,
        accuracy=(),
        promoted=1,
    )
    return ReleaseManifest(1, 1, contents)


# --- what a new device makes of it ----------------------------------------------------------------


def by_hand(scene: ReleaseScene, round: int, device: Device, folder: Path) -> tuple[Any, Any, Any]:
    """(planned, announced factors, personal part) of what `server export` gives, and a newcomer's fit."""
    directory = scene.server_directory.run(RUN)
    served_run.export(directory, folder)
    plan = scene.config.plan("main", scene.config.federation.cohort)
    planned = scene.model_cache.of(plan)
    tensors = load_file(folder / "shared.safetensors")
    shared = np.concatenate([tensors[name].ravel() for name in planned.split.shared.names])
    found = JournalReader(directory).load(round)
    assert found is not None
    factors = announced.join(plan, shared, found[1].start)
    return planned, factors, fit_newcomer(planned, factors, device.choices().train)


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_new_device_has_what_export_and_a_fit_by_hand_give_to_the_bit(
    tiny_model: Callable[[str], Path], tmp_path: Path, warmup: int
) -> None:
    scene = ReleaseScene.made(tmp_path, tiny_model("bert"), **{"federation.warmup_rounds": warmup})
    scene.promote(3)
    device = scene.device()
    assert scene.fetch(device).outcome == "taken"
    planned, factors, personal = by_hand(scene, 3, device, tmp_path / "export")
    shared, start = planned.parts(factors)
    texts = [("a b ", "c"), ("a b ", "d e")]
    first = device.rank("a b ", ["c", "d e"])  # at once, by the model that knows nobody
    by_start = planned.trainer(start).score(shared, start, planned.model.prepare_texts(texts))
    assert {row.response: row.personal for row in first} == dict(
        zip(("c", "d e"), map(float, by_start), strict=True)
    )
    device.train()
    latest = device.vault.latest()
    assert latest is not None
    assert latest[1].vector.tobytes() == personal.tobytes()
    assert np.abs(personal - start).max() > 0  # something was learned
    by_person = planned.trainer(start).score(shared, personal, planned.model.prepare_texts(texts))
    ranked = device.rank("a b ", ["c", "d e"])
    assert {row.response: row.personal for row in ranked} == dict(
        zip(("c", "d e"), map(float, by_person), strict=True)
    )
    report = device.report()
    assert (report.run, report.round, report.rounds_joined) == ("", 0, 0)
    assert report.release is not None
    assert report.release.in_use


def test_the_manifest_says_what_the_release_is(scene: ReleaseScene) -> None:
    scene.promote(2)
    (manifest,) = scene.offered()
    contents, directory = manifest.contents, scene.server_directory.run(RUN)
    logs = JournalReader(directory).logs()
    assert (contents.name, contents.round, contents.share) == (f"{RUN}:release-1", 2, EVERYBODY)
    assert (contents.rounds, contents.people, contents.contributions) == (2, 3, 6)
    assert contents.choices == logs[1].examples
    assert contents.privacy == ()  # the run adds no noise
    (accuracy,) = contents.accuracy
    # the closing round measured what round 2 ended with, after everybody's last fit
    assert (accuracy.measured_in, accuracy.fitted) == (3, True)
    assert float(accuracy.value) == logs[2].val_accuracy
    assert hashlib.sha256(scene.numbers(manifest)).digest() == contents.factors
    told = "\n".join(contents.lines())
    assert "no epsilon bounds them" in told
    assert "measured on these factors by the devices of round 3" in told
    scene.promote(1)
    (manifest,) = scene.offered()
    assert manifest.contents.accuracy[0].measured_in == 2
    assert not manifest.contents.accuracy[0].fitted


def test_a_device_that_was_in_rounds_keeps_their_model_unless_its_owner_says_otherwise(
    scene: ReleaseScene,
) -> None:
    scene.promote(1)
    member = Device(scene.place / "device-1", model_cache=scene.model_cache)
    before = member.vault.latest()
    assert before is not None
    assert scene.fetch(member).outcome == "kept"
    after = member.vault.latest()
    assert after is not None
    assert after[0] == before[0]
    known = member.release()
    assert known is not None
    assert not known.in_use
    assert scene.fetch(member, use=True).outcome == "taken"
    known = member.release()
    assert known is not None
    assert known.in_use
    assert scene.fetch(member).outcome == "same"
    assert member.report(judged=False).run == ""


def test_the_owners_page_names_the_release_that_the_model_comes_from(scene: ReleaseScene) -> None:
    scene.promote(2)
    device = scene.device(choices=0)
    release = f"the fleet&#39;s release {RUN}:release-1"
    assert scene.fetch(device).outcome == "taken"
    with opened(device, made_up_choices(9, 3)) as owner:
        page = owner.get("/model").text
        assert f"the model that knows nobody, {release}: nothing is trained yet" in page
        assert "There is nothing to learn from yet." in page
        device.record(made_up_choices(4, 12))
        assert f"the model that knows nobody, {release}: nothing is trained yet" in owner.finished()
        owner.follow("/model/train")
        page = owner.finished()
        assert f"by your own model, fitted to your choices on top of {release}: once there is one" in page


def test_choices_that_are_forgotten_leave_the_release_in_use(scene: ReleaseScene) -> None:
    scene.promote(2)
    device = scene.device()
    scene.fetch(device)
    device.train()
    device.forget_choices([row for _, row in device.store.marked()][:2])
    known = device.release()
    assert known is not None
    assert known.in_use
    device.forget()
    assert device.release() is None


# --- going on, and going back ---------------------------------------------------------------------


def test_devices_follow_the_fleet_forwards_and_back(scene: ReleaseScene) -> None:
    device = scene.device()
    assert scene.fetch(device).outcome == "none"
    scene.promote(1)
    first = scene.offer()
    assert scene.fetch(device).outcome == "taken"
    assert scene.fetch(device).outcome == "same"
    scene.promote(2)
    second = scene.offer()
    assert scene.fetch(device).outcome == "taken"
    with pytest.raises(PolicyRefusal, match=r"is offered, .* is known: the server is behind"):
        device.offered_release(first.encode())
    scene.roll_back(1)
    (manifest,) = scene.offered()
    assert manifest.contents.rollback
    assert manifest.contents.round == 1
    assert scene.fetch(device).outcome == "taken"
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        device.offered_release(second.encode())
    known = device.release()
    assert known is not None
    assert known.manifest == manifest


def test_a_canary_reaches_its_devices_first_and_then_all(
    scene: ReleaseScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="promote the first one to all"):
        scene.releases.promote(1, "olga", 5000)
    scene.promote(1)
    scene.promote(2, share=5000)
    assert fleet_release.read(scene.server_directory.path).used == f"{RUN}:release-1"
    everybody, canary = scene.offered()
    assert (everybody.contents.round, canary.contents.round, canary.contents.share) == (1, 2, 5000)
    signed_canary = decode_record(scene.offer().signed[1], SignedRelease)
    devices, reached = list[Device](), list[bool]()
    while set(reached) != {True, False}:
        devices.append(scene.device())
        reached.append(signed_canary.reaches(devices[-1].member or 0))
    for device, chosen in zip(devices, reached, strict=True):
        fetched = scene.fetch(device)
        assert fetched.manifest is not None
        assert (fetched.outcome, fetched.manifest.contents.round) == ("taken", 2 if chosen else 1)
    release_acts.to_everybody(scene.server_directory)
    assert len(scene.offered()) == 1  # the canary is withdrawn until all of it is signed
    scene.sign()
    (manifest,) = scene.offered()
    assert (manifest.contents.round, manifest.contents.is_canary) == (2, False)
    for device, chosen in zip(devices, reached, strict=True):
        assert scene.fetch(device).outcome == ("same" if chosen else "taken")


def test_a_canary_that_did_badly_is_rolled_back(scene: ReleaseScene) -> None:
    scene.promote(1)
    scene.promote(2, share=9999)
    devices = [scene.device() for _ in range(3)]
    assert [scene.fetch(device).manifest.contents.round for device in devices] == [2, 2, 2]  # type: ignore[union-attr]
    scene.roll_back(1)
    now_used = fleet_release.read(scene.server_directory.path)
    assert (now_used.used, now_used.canary) == (f"{RUN}:release-1", "")
    (manifest,) = scene.offered()
    assert (manifest.contents.round, manifest.contents.rollback) == (1, True)
    assert [scene.fetch(device).outcome for device in devices] == ["taken"] * 3


def test_what_a_device_asks_about_a_canary_says_nothing_of_its_owner_s_choices(scene: ReleaseScene) -> None:
    """The same bytes before and after the owner chose otherwise, took the canary, and found it bad."""
    scene.promote(1)
    scene.promote(2, share=9999)
    device, moment = scene.device(), now()

    def asked() -> list[bytes]:
        return [device.release_ask(moment, factors).encode() for factors in (b"", bytes(32))]

    before = asked()
    recorded = device.store.recorded()
    assert recorded
    assert all(device.store.turn_round(one) for one in recorded)
    assert asked() == before
    assert scene.fetch(device, use=True).outcome == "taken"
    assert asked() == before
    assert max(map(len, before)) <= 140


def test_the_part_that_a_canary_reaches_is_as_large_as_it_says_and_grows(scene: ReleaseScene) -> None:
    scene.promote(1)
    (manifest,) = scene.offered()
    signed = decode_record(scene.offer().signed[0], SignedRelease)

    def with_share(share: int) -> SignedRelease:
        return replace(signed, manifest=replace(manifest, contents=replace(manifest.contents, share=share)))

    tenth, half = with_share(1000), with_share(5000)
    few = {number for number in range(1, 10_001) if tenth.reaches(number)}
    many = {number for number in range(1, 10_001) if half.reaches(number)}
    assert few < many
    assert 850 < len(few) < 1150  # five standard deviations
    assert 4750 < len(many) < 5250
    assert all(with_share(EVERYBODY).reaches(number) for number in range(1, 1000))


def test_nobody_but_the_authority_s_key_draws_whom_a_canary_reaches(scene: ReleaseScene) -> None:
    scene.promote(1)
    scene.promote(2, share=5000)
    canary = decode_record(scene.offer().signed[1], SignedRelease)
    members = range(1, 1001)
    drawn = [canary.reaches(number) for number in members]
    # whatever of its request the server tries, those that the manifest reaches are known with the signature
    for change in ({"factors": bytes(32)}, {"id": bytes(16)}, {"name": "x"}):
        tried = replace(canary.manifest, contents=replace(canary.manifest.contents, **change))
        assert [replace(canary, manifest=tried).reaches(number) for number in members] == drawn
        signed = sign_release(scene.authority_store.authority, tried)
        assert [signed.reaches(number) for number in members] != drawn
    offer = ReleaseOffer((canary.encode(),))
    reached = [offer.newest_for(n, scene.authority_store.authority.public_key) is not None for n in members]
    assert reached == drawn


def test_a_canary_that_is_being_taken_back_is_no_error(
    scene: ReleaseScene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.promote(1)
    everybody = scene.offer()
    scene.promote(2, share=9999)
    device = scene.device()
    assert scene.fetch(device).outcome == "taken"
    before = device.vault.version(), device.release()
    for asked_again in (False, True):  # not signed yet; declined
        if asked_again:
            scene.sign(grant=False)
        else:
            scene.releases.roll_back(1, "olga")
        assert scene.offer() == everybody
        fetched = scene.fetch(device)
        known = device.release()
        assert known is not None
        assert (fetched.outcome, fetched.manifest) == ("canary", known.manifest)
        assert (device.vault.version(), known) == before
    signed = everybody.signed[0]
    with pytest.raises(PolicyRefusal, match="the server is behind"):  # nobody takes it all the same
        device.take_release(signed, b"", now())
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        device.note_release(signed, now())
    monkeypatch.setattr(model_commands, "open_device", lambda *_: device)
    monkeypatch.setattr("penchant.client.device.joining.KnownServer.of", lambda _: scene.server)
    monkeypatch.setattr("penchant.client.device.fetching.said_by", lambda *_: everybody.encode())
    model_commands.release()
    assert (
        "no release newer than the one that this device is among the first to have" in capsys.readouterr().out
    )
    assert device.release() == before[1]


# --- what a lying server can do -------------------------------------------------------------------


Change = Callable[[ReleaseScene, ReleaseManifest], tuple[bytes, bytes]]
"""-> (what is signed, the numbers) that the server gives."""


def signed_by(authority: Authority, manifest: ReleaseManifest, **changes: Any) -> bytes:
    return sign_release(authority, replace(manifest, contents=replace(manifest.contents, **changes))).encode()


def with_numbers(change: Callable[[np.ndarray], np.ndarray]) -> Change:  # type: ignore[type-arg]
    """Numbers that the authority has signed, digest and size included."""

    def made(scene: ReleaseScene, manifest: ReleaseManifest) -> tuple[bytes, bytes]:
        numbers = np.frombuffer(scene.numbers(manifest), "<f4").copy()
        data = np.ascontiguousarray(change(numbers), "<f4").tobytes()
        names = {"factors": hashlib.sha256(data).digest(), "size": len(data)}
        return signed_by(scene.authority_store.authority, manifest, **names), data

    return made


def with_manifest(**changes: Any) -> Change:
    """A manifest that the authority has signed."""
    return lambda scene, manifest: (
        signed_by(scene.authority_store.authority, manifest, **changes),
        scene.numbers(manifest),
    )


def other_data(change: Callable[[bytes], bytes]) -> Change:
    """The honest manifest, and other bytes for its numbers."""
    return lambda scene, manifest: (
        scene.offer().signed[0],
        change(scene.numbers(manifest)),
    )


def one_nan(numbers: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    numbers[len(numbers) // 2] = np.nan
    return numbers


def plan_of(manifest: ReleaseManifest, **changes: Any) -> bytes:
    return replace(Plan.decode(manifest.contents.plan), **changes).encode()


LIES: dict[str, tuple[Change, type[PenchantError], str]] = {
    "another authority": (
        lambda scene, m: (signed_by(Authority.create(), m), scene.numbers(m)),
        PolicyRefusal,
        "not signed by this fleet's authority",
    ),
    "another fleet": (with_manifest(fleet=bytes(32)), PolicyRefusal, "another fleet's"),
    "a changed manifest": (
        lambda scene, m: (scene.offer().signed[0][:-64] + bytes(64), scene.numbers(m)),
        PolicyRefusal,
        "not signed",
    ),
    "half a manifest": (
        lambda scene, m: (scene.offer().signed[0][:-100], scene.numbers(m)),
        AgreementError,
        "can't be read",
    ),
    "another base model": (with_manifest(base=bytes(32)), BaseModelError, "another base model"),
    "other numbers": (other_data(lambda data: bytes(len(data))), AgreementError, "not those"),
    "truncated numbers": (other_data(lambda data: data[:-4]), AgreementError, "not those"),
    "too many numbers": (other_data(lambda data: data + bytes(4)), EnrolmentError, "too long"),
    "more than the owner allows": (
        with_manifest(size=1 << 27),
        PolicyRefusal,
        "max_message_mb",
    ),
    "not a number": (with_numbers(one_nan), AgreementError, "not finite"),
    "enormous numbers": (with_numbers(lambda n: n + np.float32(1e4)), AgreementError, "exceed"),
    "numbers out of proportion": (with_numbers(lambda n: n + np.float32(900)), PolicyRefusal, "L2 norm"),
    "numbers of another model": (with_numbers(lambda n: n[:-1]), AgreementError, "expected"),
    "a plan of the warm-up": (
        lambda scene, m: (_unchecked(scene, m, plan=plan_of(m, phase="warmup")), scene.numbers(m)),
        AgreementError,
        "contradicts itself",
    ),
    "a share that is none": (
        lambda scene, m: (_unchecked(scene, m, share=EVERYBODY + 1), scene.numbers(m)),
        AgreementError,
        "contradicts itself",
    ),
}


def _unchecked(scene: ReleaseScene, manifest: ReleaseManifest, **changes: Any) -> bytes:
    """What the authority would sign only with another program."""
    changed = replace(manifest, contents=replace(manifest.contents, **changes))
    signature = scene.authority_store.authority.sign(_text(changed))
    return SignedRelease(changed, signature).encode()


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_the_fleet_s_release_changes_nothing(scene: ReleaseScene, lie: str) -> None:
    change, kind, words = LIES[lie]
    scene.promote(2)
    (manifest,) = scene.offered()
    signed, data = change(scene, manifest)

    def answer(request: httpx.Request) -> httpx.Response:
        offer = ReleaseOffer((signed,)).encode()
        asked_for_numbers = len(request.content) > 32 + 8 + 4 + 64
        return httpx.Response(200, content=data if asked_for_numbers else offer)

    device = scene.device()
    policy = device.directory / "policy.toml"
    policy.write_text(re.sub(r"max_factor_ratio = .*", "max_factor_ratio = 1.0", policy.read_text()))
    before = device.vault.version(), device.vault.latest(), device.release()
    with pytest.raises(kind, match=words) as refused:
        fetch_release(
            device,
            scene.server,
            lambda address, context: httpx.Client(
                transport=httpx.MockTransport(answer), base_url=f"https://{address}"
            ),
        )
    assert "\n" not in str(refused.value)
    assert (device.vault.version(), device.vault.latest(), device.release()) == before


@pytest.mark.parametrize("junk", [b"", b"junk", bytes(70_000), b"\x00\x00\x00\x03" + bytes(12)])
def test_an_offer_that_can_t_be_read_changes_nothing(scene: ReleaseScene, junk: bytes) -> None:
    device = scene.device()
    with pytest.raises((AgreementError, PolicyRefusal)):
        device.offered_release(junk)
    assert device.release() is None


def test_two_manifests_of_one_number_and_an_older_release_without_a_word_are_refused(
    scene: ReleaseScene,
) -> None:
    scene.promote(2)
    device = scene.device()
    scene.fetch(device)
    (manifest,) = scene.offered()
    authority = scene.authority_store.authority
    with pytest.raises(AgreementError, match="two release manifests"):
        device.offered_release(ReleaseOffer((signed_by(authority, manifest, people=1),)).encode())
    later, earlier = replace(manifest, sequence=manifest.sequence + 9), manifest.contents.promoted - 1
    with pytest.raises(PolicyRefusal, match="does not say that the fleet goes back"):
        device.offered_release(ReleaseOffer((signed_by(authority, later, promoted=earlier),)).encode())
    back = signed_by(authority, later, promoted=earlier, rollback=True)
    assert device.offered_release(ReleaseOffer((back,)).encode()) is not None


def test_two_processes_never_set_the_known_release_back(
    scene: ReleaseScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = scene.device()
    other = Device(mine.directory, model_cache=scene.model_cache)
    scene.promote(1)
    old, (manifest,) = scene.offer(), scene.offered()
    data = scene.numbers(manifest)
    (signed,) = old.signed
    assert mine.offered_release(old.encode()) is not None
    scene.promote(2)
    newer = scene.offer().signed[0]

    def slowly(*given: Any) -> Any:
        other.note_release(newer, now())  # after the first look, and before it is kept
        return checked_release(*given)

    monkeypatch.setattr(device_module, "checked_release", slowly)
    before = mine.vault.latest()
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        mine.take_release(signed, data, now(), use=True)
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        mine.note_release(signed, now())
    known = mine.release()
    assert known is not None
    assert known.manifest == scene.offered()[0]
    assert (known.in_use, mine.vault.latest()) == (False, before)
    mine.note_release(newer, now())  # the same again is fine


def test_only_what_the_authority_signed_is_noted(scene: ReleaseScene) -> None:
    scene.promote(2)
    device = scene.device()
    (manifest,) = scene.offered()
    for bad in (signed_by(Authority.create(), manifest), b"", scene.offer().signed[0][:-1]):
        with pytest.raises((PolicyRefusal, AgreementError)):
            device.note_release(bad, now())
    assert device.release() is None


def test_what_a_device_knows_of_a_fleet_outlasts_its_time_in_another(
    scene: ReleaseScene, tmp_path: Path
) -> None:
    scene.promote(1)
    old, (first,) = scene.offer(), scene.offered()
    data = scene.numbers(first)
    scene.promote(2)
    new = scene.offer()
    device, other = scene.device(), AuthorityStore.init(tmp_path / "other")
    scene.fetch(device)
    known = device.release()
    assert known is not None
    device.leave()
    device.join(other.issue(device.request()).encode(), other.digest)
    foreign = signed_by(other.authority, replace(first, sequence=1), fleet=other.digest)
    device.take_release(foreign, data, now())  # of lower number, and made before: of another fleet
    assert device.release() != known
    device.leave()
    device.join(scene.authority_store.issue(device.request()).encode(), scene.authority_store.digest)
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        device.offered_release(old.encode())
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        device.take_release(old.signed[0], data, now())
    authority = scene.authority_store.authority
    unsaid = signed_by(authority, replace(first, sequence=known.manifest.sequence + 1))
    with pytest.raises(PolicyRefusal, match="does not say that the fleet goes back"):
        device.take_release(unsaid, data, now())
    assert device.offered_release(new.encode()) is not None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(0, 6), st.booleans())))
def test_no_order_of_releases_and_fleets_takes_a_device_back_unsaid(
    a_manifest: ReleaseManifest, heard: list[tuple[int, int, int, bool]]
) -> None:
    known, newest = KnownFleets(), dict[int, tuple[int, int]]()
    for fleet, sequence, promoted, rollback in heard:
        changes: dict[str, Any] = {"fleet": bytes([fleet]) * 32, "promoted": promoted, "rollback": rollback}
        one = replace(a_manifest, sequence=sequence, contents=replace(a_manifest.contents, **changes))
        try:
            known.refuse_set_back(one)
        except (PolicyRefusal, AgreementError):
            last, latest = newest[fleet]
            assert sequence <= last or (promoted < latest and not rollback)
            continue
        last, latest = newest.get(fleet, (0, 0))
        assert sequence >= last
        assert rollback or promoted >= latest
        known, newest[fleet] = known.after(one), (sequence, max(promoted, latest))
    assert {mark.fleet[0]: (mark.sequence, mark.promoted) for mark in known.marks} == newest


def test_a_device_remembers_the_fleets_that_it_heard_of_last(a_manifest: ReleaseManifest) -> None:
    def of(fleet: int) -> ReleaseManifest:
        return replace(a_manifest, contents=replace(a_manifest.contents, fleet=bytes([fleet]) * 32))

    known = KnownFleets()
    for fleet in (*range(FLEETS_MOST), 0, FLEETS_MOST):  # the first one once more
        known = known.after(of(fleet))
    assert len(known.marks) == FLEETS_MOST
    assert {mark.fleet[0] for mark in known.marks} == set(range(FLEETS_MOST + 1)) - {1}
    assert decode_record(encode_record(known), KnownFleets) == known


def test_a_release_that_an_earlier_version_kept_counts(scene: ReleaseScene) -> None:
    scene.promote(1)
    old = scene.offer()
    scene.promote(2)
    device = scene.device()
    scene.fetch(device)
    device.vault.keep_blob(FLEETS, b"")  # as it left it
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        device.offered_release(old.encode())
    with pytest.raises(PolicyRefusal, match="the server is behind"):
        device.note_release(old.signed[0], now())


def test_an_owner_who_does_not_allow_such_a_model_fetches_no_numbers(scene: ReleaseScene) -> None:
    scene.promote(2)
    device = scene.device()
    policy = device.directory / "policy.toml"
    policy.write_text(policy.read_text().replace("max_rank = ", "max_rank = 1 # "))
    with pytest.raises(PolicyRefusal, match="max_rank"):
        scene.fetch(device)
    assert device.release() is None


def test_a_release_that_does_not_fit_the_disk_is_refused(scene: ReleaseScene) -> None:
    scene.promote(2)
    device = scene.device()
    (manifest,) = scene.offered()
    version = device.vault.version()
    with pytest.raises(PolicyRefusal, match="the release needs"):
        device.vault.keep_release(1, b"", lambda blob: {}, _room(), version=version)
    with pytest.raises(DeviceError, match="changed meanwhile"):
        device.vault.keep_release(1, b"", lambda blob: {}, replace(_room(), row=1), version=version + 1)
    assert manifest.contents.size == len(scene.numbers(manifest))
    assert device.vault.latest() is None


def _room() -> Any:
    return Room(row=1 << 30, most=1 << 20, runs=4, what="release")


# --- who may fetch --------------------------------------------------------------------------------


def post(scene: ReleaseScene, body: bytes) -> httpx.Response:
    with scene.connect("fleet.example:8443", None) as client:
        return client.post("/enrol/release", content=body)


def test_only_members_fetch_and_only_what_is_offered(scene: ReleaseScene) -> None:
    scene.promote(2)
    (manifest,) = scene.offered()
    device, gone = scene.device(), scene.device()
    assert post(scene, device.release_ask(now()).encode()).content == scene.offer().encode()
    numbers = device.release_ask(now(), manifest.contents.factors)
    assert post(scene, numbers.encode()).content == scene.numbers(manifest)
    for wrong in (bytes(32), b"../../../server.toml".ljust(32)):
        assert post(scene, device.release_ask(now(), wrong).encode()).status_code == 403
    for late in (-3600, 3600):
        assert post(scene, device.release_ask(now() + late).encode()).status_code == 400
    stolen = replace(device.release_ask(now()), public_key=gone.release_ask(now()).public_key)
    assert post(scene, stolen.encode()).status_code == 400
    ask = gone.release_ask(now()).encode()
    scene.server_directory.take_members(scene.authority_store.revoke(gone.member or 0))
    assert post(scene, ask).status_code == 403
    assert post(scene, b"junk").status_code == 400
    assert post(scene, bytes(10_000)).status_code == 413


# --- the authority --------------------------------------------------------------------------------


def test_a_release_that_is_declined_is_not_offered_and_may_be_asked_for_again(scene: ReleaseScene) -> None:
    scene.releases.promote(1, "olga")
    server = scene.server_directory
    assert release_signature.state(server).state_of(f"{RUN}:release-1").startswith("waits")
    assert scene.sign(grant=False) == [f"release {RUN}:release-1 is declined"]
    assert release_signature.state(server).why_not == "the authority did not sign it: the authority declined"
    assert scene.offered() == []
    assert list(server.requests.iterdir()) == []
    assert release_acts.ask_again(server) == f"{RUN}:release-1"
    scene.sign()
    (manifest,) = scene.offered()
    state = release_signature.state(server)
    assert state.state_of(f"{RUN}:release-1") == f"signed as number {manifest.sequence}"
    assert (state.asked, state.why_not) == ("", "")


def test_a_decline_is_about_one_request_for_a_release_and_no_later_one(scene: ReleaseScene) -> None:
    """The server can't remove it, and is started anew; the authority has not looked meanwhile."""
    scene.releases.promote(1, "olga")
    server = scene.server_directory
    (path,) = server.requests.iterdir()
    said = server.answers / f"{path.stem}.declined"
    said.write_bytes(DeclinedRequest.of("the authority declined", b"another request").encode())
    scene.collect()
    assert release_signature.state(server).why_not == ""
    kept = DeclinedRequest.of("the authority declined", path.read_bytes()).encode()
    for old in (kept, b"the authority declined"):  # the second as an earlier version wrote it
        said.write_bytes(old)
        scene.collect()
        assert "the authority declined" in release_signature.state(server).why_not
        assert list(server.requests.iterdir()) == []
        release_acts.ask_again(server)
        said.write_bytes(old)  # it was never gone
        scene.collect()
        assert release_signature.state(server).why_not == ""
        (path,) = server.requests.iterdir()
        said = server.answers / f"{path.stem}.declined"
    (line,) = scene.sign()
    assert line.startswith(f"release {RUN}:release-1 is signed")


def test_numbers_only_grow_and_the_same_request_gets_the_same_signature(scene: ReleaseScene) -> None:
    scene.promote(1)
    (first,) = scene.offered()
    scene.promote(2)
    (second,) = scene.offered()
    assert second.sequence > first.sequence
    store, asked = scene.authority_store, ReleaseRequest(second.contents)
    assert store.sign_release(asked).manifest == second
    changed = replace(second.contents, people=1000)
    with pytest.raises(AgreementError, match="another release with this id"):
        store.sign_release(ReleaseRequest(changed))
    for wrong in ({"run": bytes(16)}, {"base": bytes(32)}, {"round": 99, "rounds": 1}, {"fleet": bytes(32)}):
        with pytest.raises(AgreementError):
            store.sign_release(ReleaseRequest(replace(second.contents, id=bytes(16), **wrong)))
    greedy = plan_of(second, clip=99.0)
    with pytest.raises(AgreementError, match="not in the run's signed manifest"):
        store.sign_release(ReleaseRequest(replace(second.contents, id=bytes(16), plan=greedy)))


def test_what_the_authority_did_not_sign_or_nobody_asked_for_is_put_aside(
    scene: ReleaseScene, tmp_path: Path
) -> None:
    scene.releases.promote(1, "olga")
    server = scene.server_directory
    (request,) = server.requests.iterdir()
    asked = release_signature._read_asked(server.path / "release")
    assert asked is not None
    manifest = ReleaseManifest(7, now(), asked)
    foreign = sign_release(Authority.create(), manifest).encode()
    other = signed_by(scene.authority_store.authority, manifest, people=1)
    for bad in (foreign, other, b"", b"junk"):
        (server.answers / request.name).write_bytes(bad)
        scene.collect()
        assert (server.answers / f"{request.name}.refused").exists()
        (server.answers / f"{request.name}.refused").unlink()
    good = sign_release(scene.authority_store.authority, manifest).encode()
    (server.answers / f"release-{bytes(16).hex()}.manifest").write_bytes(good)  # no such request
    (tmp_path / "elsewhere").write_bytes(good)
    (server.answers / request.name).symlink_to(tmp_path / "elsewhere")
    scene.collect()
    assert scene.offered() == []
    with suppress(FileNotFoundError):
        (server.answers / request.name).unlink()
    (server.answers / request.name).write_bytes(good)
    scene.collect()
    assert scene.offered() == [manifest]


def test_while_the_fleet_holds_nothing_is_asked_for(scene: ReleaseScene) -> None:
    scene.promote(1)
    release_acts.hold(scene.server_directory)
    scene.promote(2)
    assert [manifest.contents.round for manifest in scene.offered()] == [1]
    with pytest.raises(UsageError, match="holds"):
        scene.releases.promote(3, "olga", 1000)
    release_acts.unhold(scene.server_directory)
    scene.sign()
    assert [manifest.contents.round for manifest in scene.offered()] == [2]


def test_a_round_of_the_warm_up_is_no_start_for_a_device(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    scene = ReleaseScene.made(tmp_path, tiny_model("bert"), **{"federation.warmup_rounds": 1})
    scene.promote(1)
    assert scene.offered() == []
    assert "warm-up" in release_signature.state(scene.server_directory).why_not
    with pytest.raises(UsageError, match="can't be signed: a round of the warm-up"):
        release_acts.ask_again(scene.server_directory)


def test_a_backup_holds_what_devices_can_fetch(scene: ReleaseScene, tmp_path: Path) -> None:
    scene.promote(2)
    back_up(scene.server_directory, tmp_path / "file")
    restore(tmp_path / "file", tmp_path / "again")
    restored = ServerDirectory(tmp_path / "again")
    assert release_signature.offer(restored) == scene.offer()
    (manifest,) = scene.offered()
    assert release_signature.factors_file(restored, manifest.contents.factors) is not None


def test_numbers_that_nothing_names_any_more_are_removed(scene: ReleaseScene) -> None:
    for round in (1, 2, 1):
        scene.promote(round)
        (manifest,) = scene.offered()
        files = [path.stem for path in (scene.server_directory.path / "release").glob("*.factors")]
        assert files == [manifest.contents.factors.hex()]


def test_contents_that_contradict_themselves_are_refused(scene: ReleaseScene) -> None:
    scene.promote(2)
    (manifest,) = scene.offered()
    contents: ReleaseContents = manifest.contents
    (accuracy,) = contents.accuracy
    for wrong in (
        {"name": ""}, {"name": "a\nb"}, {"share": 0}, {"size": 0}, {"size": 6}, {"rounds": 0}, {"rounds": 9},
        {"accuracy": (replace(accuracy, value="1.5"),)}, {"accuracy": (replace(accuracy, value="nan"),)},
        {"accuracy": (replace(accuracy, measured_in=0),)}, {"plan": b"{}"}, {"promoted": 1 << 60},
    ):  # fmt: skip
        with pytest.raises(AgreementError):
            replace(contents, **wrong).check()


def test_the_authority_sees_what_a_release_is_before_it_signs(
    scene: ReleaseScene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.promote(1)
    scene.releases.promote(2, "olga", 2500)
    asked: list[PendingDecision] = []
    monkeypatch.setattr("typer.confirm", lambda question: False)

    def decide(decision: PendingDecision) -> bool:
        asked.append(decision)
        return authority_commands._granted(decision)

    server = scene.server_directory
    attend(scene.authority_store, server.requests, server.answers, decide)
    (decision,) = asked
    contents = release_signature._read_asked(server.path / "release")
    assert contents is not None
    assert (decision.kind, decision.who, decision.what) == ("release", contents.factors.hex(), contents.name)
    said = capsys.readouterr().out
    assert "for 25 % of the devices first" in said
    assert contents.factors.hex() in said
    scene.collect()
    assert [manifest.contents.round for manifest in scene.offered()] == [1]


def request(contents: ReleaseContents, **changes: Any) -> ReleaseRequest:
    """What a server may ask for, under a new id."""
    return ReleaseRequest(replace(contents, id=token_bytes(16), **changes))


def test_a_release_that_takes_devices_back_unsaid_is_not_signed(scene: ReleaseScene) -> None:
    scene.promote(1)
    (first,) = scene.offered()
    scene.promote(2)
    (second,) = scene.offered()
    store, old, new = scene.authority_store, first.contents, second.contents
    moment = now()
    for changes in (
        {},  # as it was: made before the second
        {"promoted": 1000 * moment, "name": "spring:release-3"},  # as if made now
        {"promoted": 1000 * moment, "round": 2, "rounds": 2},  # under another round's number
        {"promoted": 1000 * moment, "share": 100},  # to some
        {"promoted": new.promoted},
    ):
        asked = request(old, **changes)
        for _ in range(2):
            with pytest.raises(AgreementError, match="does not say that it takes devices back"):
                store.sign_release(asked, now=moment)
        with pytest.raises(AgreementError, match="does not say that it takes devices back"):
            store.release_lines(asked, now=moment)
    back = request(old, rollback=True)
    told = store.release_lines(back)
    assert told is not None
    assert (
        f"it takes devices back: signed last was {RUN}:release-2 (number {second.sequence}, round 2)" in told
    )
    taken_back = store.sign_release(back).manifest
    assert (taken_back.sequence, store.release_lines(back)) == (second.sequence + 1, None)
    assert store.sign_release(request(new)).manifest.sequence == second.sequence + 2  # forwards again


def test_the_same_factors_once_more_take_nobody_back(scene: ReleaseScene) -> None:
    scene.promote(1)
    (first,) = scene.offered()
    later = request(
        first.contents, promoted=first.contents.promoted + 1
    )  # of a server that was restored, say
    assert scene.authority_store.sign_release(later).manifest.sequence == first.sequence + 1


@pytest.mark.parametrize(("ahead", "signed"), [(299, True), (300, True), (301, False), (10**9, False)])
def test_no_release_of_the_future_is_signed(scene: ReleaseScene, ahead: int, signed: bool) -> None:
    scene.promote(1)
    (first,) = scene.offered()
    moment = now() + 3600
    asked = request(first.contents, promoted=1000 * (moment + ahead))
    if signed:
        assert scene.authority_store.release_lines(asked, now=moment) is not None
    else:
        for act in (scene.authority_store.sign_release, scene.authority_store.release_lines):
            with pytest.raises(AgreementError, match="of the future"):
                act(asked, now=moment)


def test_the_authority_hears_of_an_earlier_round_and_of_other_factors(scene: ReleaseScene) -> None:
    scene.promote(2)
    (second,) = scene.offered()
    scene.releases.promote(1, "olga")
    other = request(second.contents, factors=bytes(32))
    told = scene.authority_store.release_lines(other)
    assert told is not None
    assert told[-1].endswith("was signed before, with other factors")
    asked: list[PendingDecision] = []
    server = scene.server_directory
    attend(scene.authority_store, server.requests, server.answers, lambda one: bool(asked.append(one)))
    assert asked[0].lines[-1].endswith("was signed before: devices go to an earlier round")


def test_nobody_is_asked_about_a_release_that_is_not_signed(scene: ReleaseScene) -> None:
    scene.promote(1)
    (first,) = scene.offered()
    scene.promote(2)
    lie = request(first.contents, promoted=1000 * now())
    name = f"release-{lie.contents.id.hex()}"
    (scene.server_directory.requests / f"{name}.manifest").write_bytes(lie.encode())
    scene.sign()  # grants all
    server = scene.server_directory
    assert not list(server.path.glob(f"answers/{name}.manifest"))
    assert [manifest.contents.round for manifest in scene.offered()] == [2]


@pytest.mark.parametrize("rounds", [(1, 2, 1), (1, 2, 1, 2), (2, 1, 2, 1)])
def test_a_round_that_is_promoted_once_more_says_where_devices_go(
    scene: ReleaseScene, rounds: tuple[int, ...]
) -> None:
    device, flags = scene.device(), []
    for round in rounds:
        scene.promote(round)
        (manifest,) = scene.offered()
        assert scene.fetch(device).outcome == "taken"
        flags.append(manifest.contents.rollback)
    assert flags == [False, False, True, False][: len(rounds)]


def test_a_rollback_is_one_also_when_the_newer_release_s_run_is_deleted(
    scene: ReleaseScene, tmp_path: Path
) -> None:
    scene.promote(1)
    device, server = scene.device(), scene.server_directory
    shutil.copytree(server.run(RUN), server.run("autumn"), ignore=shutil.ignore_patterns("releases.json"))
    try:
        autumn = server_releases.promote(server.run("autumn"), 2, _digest(scene, 2), "olga")
        fleet_release.chosen(server.path, "autumn", 1)
        assert release_acts.ask_again(server) == "autumn:release-1"
        scene.sign()
        assert scene.fetch(device).manifest == scene.offered()[0]
    finally:
        shutil.rmtree(server.run("autumn"))
    back_up(server, tmp_path / "file")
    restore(tmp_path / "file", tmp_path / "again")
    kept = (server.path / "release" / "latest").read_bytes()
    assert (tmp_path / "again" / "release" / "latest").read_bytes() == kept
    assert int(kept) == int(1000 * autumn.at)
    for name in ("everybody", "asked"):  # nor does what was signed have to be there
        (server.path / "release" / name).unlink(missing_ok=True)
    fleet_release.chosen(server.path, RUN, 1)
    release_acts.ask_again(server)
    scene.sign()
    (manifest,) = scene.offered()
    assert (manifest.contents.name, manifest.contents.rollback) == (f"{RUN}:release-1", True)
    assert scene.fetch(device).outcome == "taken"


def _digest(scene: ReleaseScene, round: int) -> str:
    found = JournalReader(scene.server_directory.run(RUN)).digest(round)
    assert found is not None
    return found


@pytest.mark.parametrize("damaged", [b"", b"junk\n", b"-1\n", b"1", b"9" * 40 + b"\n", "١\n".encode()])
def test_a_damaged_record_of_the_latest_is_said(scene: ReleaseScene, damaged: bytes) -> None:
    scene.promote(1)
    before = scene.offer()
    (scene.server_directory.path / "release" / "latest").write_bytes(damaged)
    with pytest.raises(UsageError, match="latest"):
        release_acts.ask_again(scene.server_directory)
    assert scene.offer() == before


def test_a_release_of_the_future_is_not_asked_for(scene: ReleaseScene) -> None:
    scene.releases.promote(1, "olga")
    path = scene.server_directory.run(RUN) / "releases.json"
    path.write_text(re.sub(r'"at": [0-9.]+', f'"at": {now() + 3600}', path.read_text()))
    with pytest.raises(UsageError, match="promoted in the future"):
        release_acts.ask_again(scene.server_directory)
    scene.promote(2)
    scene.promote(1)  # at the right time
    (manifest,) = scene.offered()
    assert (manifest.contents.round, manifest.contents.rollback) == (1, False)


# --- one after the other --------------------------------------------------------------------------


def test_a_turn_is_waited_for_and_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    lock, order = tmp_path / "lock", []

    def enter(name: str) -> None:
        with in_turn(lock, JournalError):
            order.append(f"{name} in")
            order.append(f"{name} out")

    with in_turn(lock, JournalError):
        threads = [threading.Thread(target=enter, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        order.append("first out")
    for thread in threads:
        thread.join()
    assert order[0] == "first out"
    assert [one[0] for one in order[1::2]] == [one[0] for one in order[2::2]]  # nobody between in and out
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match="can't work with"), in_turn(tmp_path / "link", JournalError):
        pass
    assert not (tmp_path / "elsewhere").exists()
