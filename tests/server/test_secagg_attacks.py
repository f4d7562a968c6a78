"""What a malicious server could try, played through real messages. Each ends in a typed error on the device.

Attacks on what the agent checks (plan, factors, durable burning of attempts) are played in the agent's tests.
"""

from __future__ import annotations

import base64
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.scene import LENIENT, NOW, RUN, SEED, Scene, announcement, authority, identity, membership

from penchant.client.secagg import Participant, SecAggPolicy
from penchant.common.crypto.domain import domain
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import AgreementKey
from penchant.common.errors import (
    AgreementError,
    CertificateError,
    CodecError,
    ConfigError,
    MembershipError,
    PenchantError,
    PolicyRefusal,
    ProtocolError,
    SecretSharingError,
    SignatureError,
    StageError,
)
from penchant.common.membership.identity import Identity
from penchant.common.secagg.transcript import confirmation_text, entry_text, roster_digest
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import (
    MAX_GROUP,
    MAX_WORDS,
    AbortCode,
    Announce,
    Confirmation,
    Confirmations,
    Delivery,
    Entry,
    Finished,
    Kind,
    Roster,
    Survivors,
    Unmasking,
    abort_code,
)

N = 7  # t = 5
VICTIM = 3


def forged(entry: Entry, signer: Identity, **changes: object) -> Entry:
    """The entry with changes, properly signed by `signer`: what a colluder's key makes possible."""
    changed = replace(entry, **changes)  # type: ignore[arg-type]
    return replace(changed, signature=signer.sign(entry_text(changed)))


def attack_roster(change: Callable[[list[Entry]], object], scene: Scene | None = None) -> None:
    """Send the victim a changed roster."""
    scene = scene or Scene(N).play_to("shares")
    entries = list(decode(scene.requests[VICTIM], Roster).entries)
    change(entries)
    scene.tell("shares", VICTIM, encode(Roster(tuple(entries))))


def replace_at(index: int, **changes: object) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        entries[index] = replace(entries[index], **changes)  # type: ignore[arg-type]

    return change


# --- stage keys: what is announced ----------------------------------------------------------------


def begin(policy: SecAggPolicy = LENIENT, members: int = 1, **changes: object) -> None:
    device = Participant(identity(1), membership(4, members), policy)
    device.begin(announcement(4, **changes), SeededEntropy(SEED, ""), NOW)


def test_unmasked_vectors_are_refused() -> None:
    with pytest.raises(PolicyRefusal, match="unmasked"):
        begin(kind=Kind.PLAIN)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [(SecAggPolicy(1, 2), "with 2 colluders it takes 7"), (SecAggPolicy(3, 1), "leave 2 honest ones")],
)
def test_a_group_that_can_never_meet_the_policy_is_refused_at_once(policy: SecAggPolicy, reason: str) -> None:
    with pytest.raises(PolicyRefusal, match=reason):
        begin(policy)


@pytest.mark.parametrize("changes", [{"ring": 16}, {"words": 0}, {"words": 1 << 27}, {"group": 5000}])
def test_shapes_out_of_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        begin(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"words": 1}, {"words": MAX_WORDS}, {"group": 1}, {"group": MAX_GROUP}])
def test_shapes_that_are_just_in_range_are_accepted(changes: dict[str, int]) -> None:
    begin(SecAggPolicy(1, 0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"words": MAX_WORDS + 1}, {"group": 0}, {"group": MAX_GROUP + 1}])
def test_shapes_that_are_just_out_of_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        begin(SecAggPolicy(1, 0), **changes)  # type: ignore[arg-type]


def test_a_stale_member_list_is_refused() -> None:
    device = Participant(identity(1), membership(4), LENIENT)
    with pytest.raises(MembershipError, match="past its date"):
        device.begin(announcement(4), SeededEntropy(SEED, ""), NOW + 10_000)


def test_a_revoked_device_knows_it_is_out() -> None:
    device = Participant(identity(1), membership(4, 2, revoked=(1,)), LENIENT)
    with pytest.raises(MembershipError, match="revoked"):
        device.begin(announcement(4), SeededEntropy(SEED, ""), NOW)


# --- stage shares: the roster ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask_key", "channel_key", "commitment"])
def test_a_substituted_key_or_commitment_is_refused(name: str) -> None:
    with pytest.raises(SignatureError):
        attack_roster(replace_at(5, **{name: AgreementKey(bytes(32)).public()}))


@pytest.mark.parametrize("name", ["mask_key", "channel_key", "commitment", "signature"])
def test_the_device_finds_its_own_entry_changed(name: str) -> None:
    length = 64 if name == "signature" else 32
    with pytest.raises(AgreementError, match="own entry"):
        attack_roster(replace_at(VICTIM, **{name: bytes(length)}))


def test_a_replaced_identity_key_is_refused() -> None:
    """The server puts its own signing key under a member's number."""

    def change(entries: list[Entry]) -> None:
        villain = SeededEntropy(SEED, "villain").draw(32)
        certificate = replace(entries[5].certificate, public_key=Identity.public_of(villain))
        entries[5] = forged(entries[5], Identity(villain, certificate), certificate=certificate)

    with pytest.raises(CertificateError):
        attack_roster(change)


@pytest.mark.parametrize("other", [{"round": 2}, {"attempt": 2}, {"run": bytes(16)}])
def test_keys_of_another_round_attempt_or_run_are_refused(other: dict[str, object]) -> None:
    elsewhere = Scene(N, changes=other).play_to("shares")
    old = decode(elsewhere.requests[0], Roster).entries[5]
    with pytest.raises(AgreementError, match="context digests differ"):
        attack_roster(lambda entries: entries.__setitem__(5, old))
    context = Scene(N).play_to("shares").states[0].info.context
    with pytest.raises(SignatureError):  # relabelled as this round's, it has no signature
        attack_roster(lambda entries: entries.__setitem__(5, replace(old, context=context)))


@pytest.mark.parametrize(
    "told",
    [
        {"factors": b"\x00\x00\x80\x3f" * 2},
        {"plan": b'{"lr":1000}'},
        {"base": b"\x01" * 32},
        {"words": 4},
        {"ring": 64},
        {"group": N + 1},
        {"finished": ()},
    ],
)
def test_one_device_is_told_something_else_and_everybody_notices(told: dict[str, object]) -> None:
    """The server isolates the victim by other factors or another configuration; then its context differs."""
    scene = Scene(N, changes={"finished": (Finished(0, 1),)})
    for node in range(N):
        announce = replace(scene.announce, **told) if node == VICTIM else scene.announce  # type: ignore[arg-type]
        scene.tell("keys", node, encode(announce))
    entries = tuple(decode(scene.sent["keys"][node], Entry) for node in range(N))
    for node in range(N):
        with pytest.raises(AgreementError, match="context digests differ"):
            scene.tell("shares", node, encode(Roster(entries)))


def test_a_roster_without_the_device_is_refused() -> None:
    with pytest.raises(AgreementError, match="own entry"):
        attack_roster(lambda entries: entries.pop(VICTIM))


def test_a_roster_with_duplicates_is_refused() -> None:
    with pytest.raises(AgreementError, match="repeats a member"):
        attack_roster(lambda entries: entries.insert(5, entries[5]), Scene(N, group=9).play_to("shares"))


def test_a_roster_out_of_order_is_refused() -> None:
    with pytest.raises(AgreementError, match="out of order"):
        attack_roster(lambda entries: entries.reverse())


@pytest.mark.parametrize("name", ["mask_key", "channel_key"])
def test_a_key_that_two_members_share_is_refused(name: str) -> None:
    """A colluder copies a peer's key, properly signed, so that it counts twice."""

    def change(entries: list[Entry]) -> None:
        entries[5] = forged(entries[5], identity(6), **{name: entries[1].mask_key})

    with pytest.raises(AgreementError, match="same key twice"):
        attack_roster(change)


def test_one_identity_key_under_two_numbers_is_refused() -> None:
    """Even if the authority certified it twice."""

    def change(entries: list[Entry]) -> None:
        key = entries[1].certificate.public_key
        twin = Identity(identity(2).private, authority().issue(6, key))
        entries[5] = forged(entries[5], twin, certificate=twin.certificate)

    with pytest.raises(AgreementError, match="same identity twice"):
        attack_roster(change)


def test_an_uncertified_identity_is_refused() -> None:
    def change(entries: list[Entry]) -> None:
        private = SeededEntropy(SEED, "stranger").draw(32)
        certificate = replace(entries[5].certificate, public_key=Identity.public_of(private), member=99)
        entries.append(
            forged(
                entries[5],
                Identity(private, certificate),
                certificate=certificate,
                mask_key=b"\x07" * 32,
                channel_key=b"\x09" * 32,
            )
        )

    with pytest.raises(CertificateError):
        attack_roster(change, Scene(N, group=N + 1).play_to("shares"))


def test_a_certified_device_that_is_on_no_list_is_refused() -> None:
    """Certified once, but not on the list that this device holds: an old member, or one of another list."""

    def change(entries: list[Entry]) -> None:
        stranger = identity(N + 1)
        keys = [AgreementKey(bytes([i]) * 32).public() for i in (7, 9)]
        entries.append(
            forged(
                entries[5], stranger, certificate=stranger.certificate, mask_key=keys[0], channel_key=keys[1]
            )
        )

    with pytest.raises(MembershipError, match="not on member list"):
        attack_roster(change, Scene(N, group=N + 1).play_to("shares"))


def test_a_revoked_identity_is_refused_by_devices_that_know() -> None:
    """The server goes on with member 6, whom list 2 revokes; the victim has seen list 2."""
    scene = Scene(N)
    scene.devices[VICTIM] = replace(scene.devices[VICTIM], membership=membership(N, 2, revoked=(6,)))
    scene.play_to("shares")
    with pytest.raises(MembershipError, match="member 6 is revoked by list 2"):
        scene.tell("shares", VICTIM, scene.requests[VICTIM])


def test_an_old_member_list_is_refused() -> None:
    """The server offers list 1, in which member 6 was not revoked yet, to a device that has seen list 2."""
    newer = membership(N, 2, revoked=(6,))
    with pytest.raises(MembershipError, match="the server is behind"):
        newer.accept(membership(N, 1).encoded, NOW)


@pytest.mark.parametrize("policy", [SecAggPolicy(4, 2), SecAggPolicy(1, 2), SecAggPolicy(6, 0)])
def test_a_roster_too_small_for_the_policy_is_refused(policy: SecAggPolicy) -> None:
    """The announced bound is large enough; the roster that comes then is not."""
    scene = Scene(N, policy=policy, group=10).play_to("shares")
    for size in range(1, N):
        entries = decode(scene.requests[VICTIM], Roster).entries
        others = [entry for i, entry in enumerate(entries) if i != VICTIM][: size - 1]
        chosen = sorted([*others, entries[VICTIM]], key=lambda entry: entry.certificate.member)
        with pytest.raises(PolicyRefusal):
            scene.tell("shares", VICTIM, encode(Roster(tuple(chosen))))


@pytest.mark.parametrize("policy", [SecAggPolicy(5, 0), SecAggPolicy(4, 1), SecAggPolicy(3, 2)])
def test_a_roster_that_just_meets_the_policy_is_accepted(policy: SecAggPolicy) -> None:
    """t - c = min_honest; with two colluders n = 3c + 1 as well."""
    scene = Scene(N, policy=policy).play_to("masked")
    assert not scene.refusals
    assert len(scene.requests) == N


def test_a_roster_above_the_announced_bound_is_refused() -> None:
    """The quantiser rules out overflow for the announced group size only."""
    with pytest.raises(AgreementError, match="sums could overflow"):
        attack_roster(lambda entries: None, crowded())


def crowded() -> Scene:
    """Seven devices that were told of groups of six, in one roster all the same."""
    scene = Scene(N, changes={"group": N - 1})
    for node in range(N):
        scene.tell("keys", node, encode(scene.announce))
    entries = tuple(decode(scene.sent["keys"][node], Entry) for node in range(N))
    scene.requests = {node: encode(Roster(entries)) for node in range(N)}
    return scene


def test_a_threshold_can_not_be_dictated() -> None:
    """No message has a field for it: a roster with one more field is no roster."""
    scene = Scene(N).play_to("shares")
    with pytest.raises(CodecError, match="left over"):
        scene.tell("shares", VICTIM, scene.requests[VICTIM] + (2).to_bytes(2, "big"))


LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    2**255 - 20,
    2**255 - 19,  # 0, not canonical
    2**255 - 18,  # 1, not canonical
]


@pytest.mark.parametrize("name", ["mask_key", "channel_key"])
@pytest.mark.parametrize("u", LOW_ORDER)
def test_low_order_points_are_refused(u: int, name: str) -> None:
    """A colluder signs a point with which every agreement is zero."""

    def change(entries: list[Entry]) -> None:
        entries[5] = forged(entries[5], identity(6), **{name: u.to_bytes(32, "little")})

    with pytest.raises(SecretSharingError, match="low order"):
        attack_roster(change)


@pytest.mark.parametrize("name", ["mask_key", "channel_key"])
@pytest.mark.parametrize("u", [2**255 - 19 + 9, 2**255 + 9])  # the base point, in two other spellings
def test_points_that_are_not_canonical_are_refused(u: int, name: str) -> None:
    """One key in two spellings would pass for two."""

    def change(entries: list[Entry]) -> None:
        entries[5] = forged(entries[5], identity(6), **{name: u.to_bytes(32, "little")})

    with pytest.raises(SecretSharingError, match="malformed"):
        attack_roster(change)


# --- stage masked: the sealed shares --------------------------------------------------------------


def attack_delivery(change: Callable[[Delivery, Scene], Delivery]) -> None:
    scene = Scene(N).play_to("masked")
    honest = decode(scene.requests[VICTIM], Delivery)
    scene.tell("masked", VICTIM, encode(change(honest, scene)))


def test_a_tampered_share_is_refused() -> None:
    def change(honest: Delivery, scene: Scene) -> Delivery:
        first = bytes([honest.sealed[0][0] ^ 1]) + honest.sealed[0][1:]
        return replace(honest, sealed=(first, *honest.sealed[1:]))

    with pytest.raises(SecretSharingError, match="does not open"):
        attack_delivery(change)


def test_a_share_sealed_for_another_receiver_is_refused() -> None:
    def change(honest: Delivery, scene: Scene) -> Delivery:
        return replace(honest, sealed=decode(scene.requests[VICTIM + 1], Delivery).sealed)

    with pytest.raises(SecretSharingError):
        attack_delivery(change)


def test_shares_of_two_senders_swapped_are_refused() -> None:
    def change(honest: Delivery, scene: Scene) -> Delivery:
        return replace(honest, sealed=(honest.sealed[1], honest.sealed[0], *honest.sealed[2:]))

    with pytest.raises(SecretSharingError):
        attack_delivery(change)


def test_shares_of_another_attempt_are_refused() -> None:
    other = Scene(N, changes={"attempt": 2}).play_to("masked")

    def change(honest: Delivery, scene: Scene) -> Delivery:
        return decode(other.requests[VICTIM], Delivery)

    with pytest.raises(SecretSharingError):
        attack_delivery(change)


@pytest.mark.parametrize(
    ("sharers", "error"),
    [
        ((0, 1, 2, 4, 5, 6), AgreementError),  # without the device
        ((0, 1, 2, 3), PolicyRefusal),  # fewer than t
        ((0, 1, 1, 2, 3, 4, 5), AgreementError),  # one twice
        ((6, 5, 4, 3, 2, 1, 0), AgreementError),  # out of order
        ((0, 1, 2, 3, 4, 5, 9), AgreementError),  # outside the roster
    ],
)
def test_a_u2_that_can_not_be_is_refused(sharers: tuple[int, ...], error: type[PenchantError]) -> None:
    with pytest.raises(error):
        attack_delivery(lambda honest, scene: Delivery(sharers, honest.sealed[: len(sharers) - 1]))


def test_a_delivery_that_lacks_a_share_is_refused() -> None:
    with pytest.raises(SecretSharingError, match="one sealed share for each"):
        attack_delivery(lambda honest, scene: replace(honest, sealed=honest.sealed[1:]))


# --- stage confirm: the survivors -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharers", "survivors", "error"),
    [
        (range(7), (0, 1, 2, 4, 5, 6), AgreementError),  # without the device
        (range(7), (0, 1, 2, 3), PolicyRefusal),  # fewer than t
        (range(7), (0, 1, 2, 3, 3, 4, 5), AgreementError),  # one twice
        (range(7), (0, 1, 2, 3, 4, 5, 8), AgreementError),  # outside U2
        (range(6), (0, 1, 2, 3, 4, 5, 6), AgreementError),  # not a subset of U2
        (range(6), (0, 1, 2, 3, 4, 5), AgreementError),  # U2 is not the one of the stage before
    ],
)
def test_survivors_that_can_not_be_are_refused(
    sharers: range, survivors: tuple[int, ...], error: type[PenchantError]
) -> None:
    scene = Scene(N).play_to("confirm")
    with pytest.raises(error):
        scene.tell("confirm", VICTIM, encode(Survivors(tuple(sharers), survivors)))


# --- stage unmask: the confirmations --------------------------------------------------------------


def two_lists() -> tuple[Scene, dict[int, bytes]]:
    """Six survivors named to one half, five to the other; the server collects signatures on both."""
    scene = Scene(N).play_to("confirm")
    all_of_u2 = tuple(range(N))
    lists = {
        node: Survivors(all_of_u2, (0, 1, 2, 3, 4, 5) if node < 4 else (0, 2, 3, 4, 5, 6))
        for node in range(N)
    }
    lists[0] = Survivors(all_of_u2, (0, 1, 2, 3, 4, 5))
    replies = {node: scene.tell("confirm", node, encode(named)) for node, named in lists.items()}
    return scene, replies


def test_two_survivor_lists_never_get_enough_signatures() -> None:
    """To have one peer's seed shares from some and its key shares from others takes two lists with t each."""
    scene, replies = two_lists()
    signatures = tuple(decode(replies[node], Confirmation).signature for node in range(6))
    with pytest.raises(SignatureError, match="did not confirm these survivors"):
        scene.tell("unmask", VICTIM, encode(Confirmations(tuple(range(6)), signatures)))
    with pytest.raises(PolicyRefusal, match="5 are needed"):
        scene.tell("unmask", VICTIM, encode(Confirmations((0, 1, 2, 3), signatures[:4])))


def attack_confirmations(change: Callable[[Confirmations], Confirmations]) -> None:
    scene = Scene(N).play_to("unmask", silent={"masked": [6]})
    scene.tell("unmask", VICTIM, encode(change(decode(scene.requests[VICTIM], Confirmations))))


def test_repeated_signatures_are_refused() -> None:
    with pytest.raises(AgreementError, match="repeats"):
        attack_confirmations(lambda c: Confirmations((0, 0, 1, 2, 3), (c.signatures[0], *c.signatures[:4])))


def test_one_signature_under_many_names_is_refused() -> None:
    with pytest.raises(SignatureError):
        attack_confirmations(lambda c: Confirmations((0, 1, 2, 3, 4), (c.signatures[0],) * 5))


def test_signatures_from_outside_u3_are_refused() -> None:
    """Device 6 did not survive; a colluding device 6 signs the lists all the same."""

    def change(given: Confirmations) -> Confirmations:
        scene = Scene(N).play_to("confirm")
        info = scene.states[0].info
        text = confirmation_text(info.context, scene.states[0].roster, range(7), range(6))  # type: ignore[union-attr]
        return Confirmations((*given.signers[:4], 6), (*given.signatures[:4], identity(7).sign(text)))

    with pytest.raises(AgreementError, match="outside U3"):
        attack_confirmations(change)


def test_too_few_signatures_are_refused() -> None:
    with pytest.raises(PolicyRefusal, match="4 of 7 devices, 5 are needed"):
        attack_confirmations(lambda c: Confirmations(c.signers[:4], c.signatures[:4]))


def test_signers_without_signature_are_refused() -> None:
    with pytest.raises(SignatureError):
        attack_confirmations(lambda c: replace(c, signatures=c.signatures[:5]))


def test_a_signature_made_for_another_purpose_is_refused() -> None:
    """The members' signatures on their entries and vectors don't pass for confirmations."""
    scene = Scene(N).play_to("unmask")
    entries = [decode(scene.sent["keys"][node], Entry) for node in range(N)]
    stale = Confirmations(tuple(range(N)), tuple(entry.signature for entry in entries))
    with pytest.raises(SignatureError):
        scene.tell("unmask", VICTIM, encode(stale))


def test_no_device_ever_gives_both_shares_of_a_peer() -> None:
    """Named alive or dead, not both: a dead peer gets its key share, a living one its seed share."""
    scene = Scene(N).play_to("unmask", silent={"masked": [6]})
    secrets = scene.states[VICTIM]
    given = decode(scene.tell("unmask", VICTIM, scene.requests[VICTIM]), Unmasking)
    assert given.seed_shares == secrets.seed_shares[:6]  # type: ignore[union-attr]
    assert given.key_shares == secrets.key_shares[6:]  # type: ignore[union-attr]


def test_unmasking_is_answered_once() -> None:
    scene = Scene(N).play_to("unmask")
    scene.tell("unmask", VICTIM, scene.requests[VICTIM])
    with pytest.raises(StageError):
        scene.tell("unmask", VICTIM, scene.requests[VICTIM])


# --- any stage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["shares", "masked", "confirm", "unmask"])
@pytest.mark.parametrize("other", ["shares", "masked", "confirm", "unmask"])
def test_a_message_of_another_stage_is_refused(stage: str, other: str) -> None:
    if stage == other:
        return
    payload = Scene(N).play_to(other).requests[VICTIM]
    with pytest.raises(StageError, match="skipped or repeated"):
        Scene(N).play_to(stage).tell(stage, VICTIM, payload)


@pytest.mark.parametrize("stage", ["masked", "confirm", "unmask"])
def test_a_message_of_another_attempt_is_refused(stage: str) -> None:
    """Replay: the same stage's message from the attempt before."""
    if stage == "confirm":
        return  # survivors alone say nothing about the attempt; the signature on them does, one stage later
    payload = Scene(N, changes={"attempt": 2}, label="2").play_to(stage).requests[VICTIM]
    with pytest.raises(ProtocolError):
        Scene(N).play_to(stage).tell(stage, VICTIM, payload)


def test_every_refusal_is_one_code_for_the_server() -> None:
    codes = {
        CodecError: AbortCode.MALFORMED,
        StageError: AbortCode.STAGE,
        PolicyRefusal: AbortCode.POLICY,
        MembershipError: AbortCode.MEMBERSHIP,
        CertificateError: AbortCode.CERTIFICATE,
        AgreementError: AbortCode.AGREEMENT,
        SignatureError: AbortCode.SIGNATURE,
        SecretSharingError: AbortCode.SHARES,
        ConfigError: AbortCode.CONFIGURATION,
        ValueError: AbortCode.INTERNAL,
    }
    assert {kind: abort_code(kind("why")) for kind in codes} == codes


def test_texts_for_different_purposes_never_coincide() -> None:
    assert domain("a", b"bc") != domain("ab", b"c") != domain("a", b"b", b"c")
    assert RUN in encode(announcement(3))
    assert roster_digest(Roster(())) != decode(encode(announcement(3)), Announce).base


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    """tests/experiments/demo_seed_attack.py."""
    return runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "demo_seed_attack.py"))


def test_the_demonstration_of_both_attacks(demo: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """It breaks short seeds and naive clients, and fails here."""
    assert demo["main"](bits=10)
    assert "update recovered: True" in capsys.readouterr().out


def test_the_scheme_that_is_demonstrated_is_the_one_that_flwr_ships(demo: dict[str, Any]) -> None:
    """Fold and generator give the very masks of flwr's own functions, for keys agreed on by its own."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    varying = 0
    for _ in range(50):
        one, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        agreed = generate_shared_key(one, other.public_key())
        seed = demo["folded"](base64.urlsafe_b64decode(agreed))
        (theirs,) = pseudo_rand_gen(agreed, 2**32, [(64,)])
        assert (demo["twister"](seed) == theirs).all()
        varying |= seed
    assert varying.bit_count() == 28
