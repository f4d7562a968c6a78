"""Lying devices: the server sets them aside by name or fails by type; it never gives a wrong sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support.scene import Scene, identity, membership, plain_sum

from penchant.client.secagg import Keyed
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import AgreementKey, seal
from penchant.common.crypto.shamir import PRIME
from penchant.common.errors import NotUnmasked, RoundFailed, TooFewDevices, TooManyDropouts
from penchant.common.secagg.transcript import commitment, entry_text, roster_digest, seal_key, sealed_for
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import (
    SHARE,
    Abort,
    AbortCode,
    Confirmation,
    Entry,
    Masked,
    Roster,
    Shares,
    Unmasking,
)

N = 10  # t = 7: three may be lost
LIAR = 4
STAGES = ("keys", "shares", "masked", "confirm", "unmask")

Lie = Callable[[str, int, bytes], bytes]


def at(stage: str, change: Callable[[bytes], bytes], liars: tuple[int, ...] = (LIAR,)) -> Lie:
    return lambda now, node, reply: change(reply) if (now, node in liars) == (stage, True) else reply


def signed(entry: Entry, **changes: object) -> Entry:
    changed = replace(entry, **changes)  # type: ignore[arg-type]
    return replace(changed, signature=identity(LIAR + 1).sign(entry_text(changed)))


def key(number: int) -> bytes:
    return AgreementKey(bytes([number]) * 32).public()


def resigned(**changes: object) -> Callable[[bytes], bytes]:
    return lambda reply: encode(signed(decode(reply, Entry), **changes))


NOISE = SeededEntropy(b"noise", "").draw(200)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("junk", [b"", NOISE, encode(Roster(()))[:-1], encode(Roster(()))])
def test_junk_at_any_stage_costs_only_its_sender(stage: str, junk: bytes) -> None:
    scene = Scene(N)
    aggregate = scene.run(lie=at(stage, lambda reply: junk))
    assert aggregate.dropped == {stage: (LIAR,)}
    assert aggregate.set_aside[LIAR].startswith(stage)
    assert (aggregate.total == plain_sum(scene.vectors[i] for i in aggregate.survivors)).all()
    assert (LIAR in aggregate.survivors) == (stage in ("confirm", "unmask"))


@pytest.mark.parametrize("stage", STAGES)
def test_silence_and_aborts_at_any_stage(stage: str) -> None:
    aggregate = Scene(N).run({stage: [1]}, lie=at(stage, lambda reply: encode(Abort(AbortCode.UNAVAILABLE))))
    assert aggregate.dropped == {stage: (1, LIAR)}
    assert aggregate.aborts == {LIAR: AbortCode.UNAVAILABLE}
    assert aggregate.set_aside == {}


def test_an_error_says_what_was_said_and_done() -> None:
    """What an operator can act on: the codes that came, and who was named for what."""
    abort = encode(Abort(AbortCode.POLICY))

    def lie(stage: str, node: int, reply: bytes) -> bytes:
        if stage != "masked":
            return reply
        return {0: abort, 1: abort, 2: b"", 3: encode(Abort(AbortCode.SHARES))}.get(node, reply)

    with pytest.raises(TooManyDropouts) as failed:
        Scene(N).run(lie=lie)
    assert "; 2 said POLICY; 1 said SHARES; node 2 masked: message too short" in str(failed.value)
    with pytest.raises(TooFewDevices, match=r"find out why they refuse; 10 said POLICY$"):
        Scene(N).run(lie=lambda stage, node, reply: abort)
    with pytest.raises(TooManyDropouts, match=r"more devices$"):
        Scene(N).run({"masked": range(5)})


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("keys without their signature", lambda r: encode(replace(decode(r, Entry), signature=bytes(64)))),
        ("keys for another context", resigned(context=bytes(32))),
        ("someone has already", lambda r: resigned(channel_key=decode(r, Entry).mask_key)(r)),
        ("low order", resigned(mask_key=bytes(32))),
        ("low order", resigned(channel_key=(1).to_bytes(32, "little"))),
        (
            "not signed by this fleet's authority",
            lambda r: encode(
                replace(decode(r, Entry), certificate=replace(decode(r, Entry).certificate, member=99))
            ),
        ),
    ],
)
def test_bad_keys_never_reach_the_others(name: str, lie: Callable[[bytes], bytes]) -> None:
    scene = Scene(N)
    aggregate = scene.run(lie=at("keys", lie))
    assert name in aggregate.set_aside[LIAR]
    assert aggregate.survivors == tuple(i for i in range(N) if i != LIAR)
    assert not scene.refusals


def test_a_copied_entry_or_key_never_reaches_the_others() -> None:
    scene = Scene(N)
    seen: dict[int, bytes] = {}

    def copy(stage: str, node: int, reply: bytes) -> bytes:
        if stage == "keys":
            seen[node] = reply
        return seen[1] if (stage, node) == ("keys", LIAR) else reply

    aggregate = scene.run(lie=copy)
    assert "someone has already" in aggregate.set_aside[LIAR]
    mask_key = decode(seen[1], Entry).mask_key
    aggregate = Scene(N).run(lie=at("keys", resigned(mask_key=mask_key)))
    assert "someone has already" in aggregate.set_aside[LIAR]


def test_a_revoked_device_never_reaches_the_others() -> None:
    scene = Scene(N)
    scene.server = replace(scene.server, membership=membership(N, 2, revoked=(LIAR + 1,)))
    assert "revoked by list 2" in scene.run().set_aside[LIAR]


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("a vector of 8 bytes", lambda r: encode(replace(decode(r, Masked), vector=bytes(8)))),
        ("a vector without its signature", lambda r: encode(replace(decode(r, Masked), signature=bytes(64)))),
        ("a vector without its signature", lambda r: encode(replace(decode(r, Masked), vector=bytes(12)))),
    ],
)
def test_an_unsigned_or_misshapen_vector_is_left_out(name: str, lie: Callable[[bytes], bytes]) -> None:
    scene = Scene(N)
    aggregate = scene.run(lie=at("masked", lie))
    assert name in aggregate.set_aside[LIAR]
    assert (aggregate.total == plain_sum(v for i, v in enumerate(scene.vectors) if i != LIAR)).all()


def test_a_confirmation_without_signature_is_not_passed_on() -> None:
    aggregate = Scene(N).run(lie=at("confirm", lambda reply: encode(Confirmation(bytes(64)))))
    assert "a confirmation without its signature" in aggregate.set_aside[LIAR]
    assert LIAR in aggregate.survivors


# --- sealed shares --------------------------------------------------------------------------------


def spoil(reply: bytes, receivers: range) -> bytes:
    sealed = list(decode(reply, Shares).sealed)
    for receiver in receivers:
        sealed[receiver] = bytes(len(sealed[receiver]))
    return encode(Shares(tuple(sealed)))


def test_spoilt_ciphertexts_cost_their_receivers_as_far_as_they_may_be_lost() -> None:
    """Nobody but the receiver can tell; it aborts. Three receivers can be lost like this, not four."""
    scene = Scene(N)
    aggregate = scene.run(lie=at("shares", lambda reply: spoil(reply, range(3))))
    assert set(aggregate.aborts.values()) == {AbortCode.SHARES}
    assert aggregate.dropped == {"masked": (0, 1, 2)}
    assert (aggregate.total == plain_sum(scene.vectors[3:])).all()
    with pytest.raises(TooManyDropouts):
        Scene(N).run(lie=at("shares", lambda reply: spoil(reply, range(4))))


def test_too_few_sealed_shares_cost_their_sender() -> None:
    aggregate = Scene(N).run(lie=at("shares", lambda r: encode(Shares(decode(r, Shares).sealed[1:]))))
    assert aggregate.set_aside == {LIAR: "shares: 8 sealed shares for 9 peers"}


# --- shares given at unmasking --------------------------------------------------------------------


def wrong_shares(reply: bytes) -> bytes:
    given = decode(reply, Unmasking)
    return encode(Unmasking(tuple(bytes([0]) + s[1:][::-1] for s in given.seed_shares), given.key_shares))


def one_wrong_key_share(reply: bytes) -> bytes:
    given = decode(reply, Unmasking)
    return encode(Unmasking(given.seed_shares, (bytes(33), *given.key_shares[1:])))


def outside_the_field(reply: bytes) -> bytes:
    given = decode(reply, Unmasking)
    return encode(Unmasking((PRIME.to_bytes(33, "big"), *given.seed_shares[1:]), given.key_shares))


@pytest.mark.parametrize("lie", [wrong_shares, one_wrong_key_share, outside_the_field])
@pytest.mark.parametrize("liar", [0, LIAR, N - 1])
def test_one_wrong_share_is_set_aside_and_named(lie: Callable[[bytes], bytes], liar: int) -> None:
    scene = Scene(N)
    aggregate = scene.run({"masked": [5]}, lie=at("unmask", lie, (liar,)))
    if liar < N - 1:  # the last one's shares are not needed, and not looked at, unless one before fails
        assert list(aggregate.set_aside) == [liar]
        assert "is wrong: one of the two lied" in aggregate.set_aside[liar]
    assert (aggregate.total == plain_sum(v for i, v in enumerate(scene.vectors) if i != 5)).all()


def test_more_liars_than_can_be_corrected_end_in_a_typed_error() -> None:
    """Of ten shares with t = 7, one wrong one can be found; of two it is known that something is wrong."""
    with pytest.raises(NotUnmasked, match="can't be rebuilt"):
        Scene(N).run(lie=at("unmask", wrong_shares, (0, 1)))
    scene = Scene(N)
    with pytest.raises(NotUnmasked, match="somebody lied"):
        scene.run({"unmask": [7, 8, 9]}, lie=at("unmask", wrong_shares, (0,)))


def test_shares_for_other_devices_than_asked_are_not_used() -> None:
    def swapped(reply: bytes) -> bytes:
        given = decode(reply, Unmasking)
        return encode(Unmasking(given.seed_shares[:-1], (*given.key_shares, given.seed_shares[-1])))

    aggregate = Scene(N).run(lie=at("unmask", swapped))
    assert aggregate.set_aside == {LIAR: "unmask: shares for devices that were not asked for"}


# --- dealers who lie ------------------------------------------------------------------------------


class CrookedDealers:
    """Each of some devices seals a share for one receiver that is not on its polynomial. All of it opens, so
    the receiver can't tell, and passes on at unmasking what it was given."""

    def __init__(self, scene: Scene, receiver_of: dict[int, int]) -> None:
        self.scene = scene
        self.receiver_of = receiver_of
        self.before: dict[int, tuple[Keyed, Roster]] = {}

    def twist(self, stage: str, node: int, request: bytes) -> bytes:
        if stage == "shares" and node in self.receiver_of:
            state = self.scene.states[node]
            assert isinstance(state, Keyed)
            self.before[node] = state, decode(request, Roster)
        return request

    def lie(self, stage: str, node: int, reply: bytes) -> bytes:
        if stage != "shares" or node not in self.receiver_of:
            return reply
        (keyed, roster), receiver = self.before[node], self.receiver_of[node]
        context, digest = keyed.info.context, roster_digest(roster)
        agreed = AgreementKey(keyed.channel_private).agree(roster.entries[receiver].channel_key)
        key = seal_key(agreed, context, digest, node, receiver)
        sealed = list(decode(reply, Shares).sealed)
        wrong = seal(key, bytes(2 * SHARE), sealed_for(context, digest, node, receiver))
        sealed[receiver - (receiver > node)] = wrong
        return encode(Shares(tuple(sealed)))


def test_who_deals_a_wrong_share_can_not_pass_the_blame_on_for_sure() -> None:
    """The server sees a share that does not fit, and says that one of the two lied: it can't know which."""
    scene = Scene(N)
    crooked = CrookedDealers(scene, {LIAR: 0})
    aggregate = scene.run({"masked": [5]}, lie=crooked.lie, twist=crooked.twist)
    told = f"unmask: its share of what member {LIAR + 1} dealt is wrong: one of the two lied"
    assert aggregate.set_aside == {0: told}
    assert not aggregate.dropped.get("unmask")
    assert (aggregate.total == plain_sum(v for i, v in enumerate(scene.vectors) if i != 5)).all()


def test_dealers_can_not_wear_honest_devices_out() -> None:
    """Each of four spoils the share of another honest device: no more than one is wrong for any secret, which
    is as many as ten replies with t = 7 can correct, however many honest ones look bad by then."""
    scene = Scene(N)
    crooked = CrookedDealers(scene, {6: 0, 7: 1, 8: 2, 9: 3})
    aggregate = scene.run(lie=crooked.lie, twist=crooked.twist)
    assert set(aggregate.set_aside) == {0, 1, 2, 3}
    assert (aggregate.total == plain_sum(scene.vectors)).all()


def test_two_wrong_shares_of_one_dealer_are_more_than_ten_replies_can_correct() -> None:
    scene = Scene(N)
    crooked = CrookedDealers(scene, {LIAR: 0})
    both = at("unmask", wrong_shares, (1,))
    with pytest.raises(NotUnmasked, match="can't be rebuilt"):
        scene.run(
            lie=lambda stage, node, reply: both(stage, node, crooked.lie(stage, node, reply)),
            twist=crooked.twist,
        )


def other_commitment(scene: Scene) -> Callable[[bytes], bytes]:
    def lie(reply: bytes) -> bytes:
        entry = decode(reply, Entry)
        entry = signed(entry, commitment=commitment(bytes(32), entry.context, LIAR + 1))
        scene.states[LIAR] = replace(scene.states[LIAR], entry=entry)  # type: ignore[arg-type]
        return encode(entry)

    return lie


def test_a_seed_that_was_not_committed_to_names_its_dealer() -> None:
    scene = Scene(N)
    with pytest.raises(NotUnmasked, match="a different secret than it announced"):
        scene.run(lie=at("keys", other_commitment(scene)))


def test_a_dealer_is_not_named_while_a_share_of_its_secret_is_wrong_besides() -> None:
    """Its commitment is another's, but whoever gives a wrong share may have made that up."""
    scene = Scene(N)
    uncommitted, spoilt = at("keys", other_commitment(scene)), at("unmask", wrong_shares, (1,))
    with pytest.raises(NotUnmasked, match="somebody lied, and too few answered to tell who") as caught:
        scene.run(lie=lambda stage, node, reply: spoilt(stage, node, uncommitted(stage, node, reply)))
    assert "shared a different secret" not in str(caught.value)


def other_mask_key(scene: Scene) -> Callable[[bytes], bytes]:
    def lie(reply: bytes) -> bytes:
        entry = signed(decode(reply, Entry), mask_key=key(9))
        scene.states[LIAR] = replace(scene.states[LIAR], entry=entry)  # type: ignore[arg-type]
        return encode(entry)

    return lie


def test_a_mask_key_that_was_not_announced_names_its_dealer_when_it_is_needed() -> None:
    scene = Scene(N)
    with pytest.raises(NotUnmasked, match="a different secret than it announced"):
        scene.run({"masked": [LIAR]}, lie=at("keys", other_mask_key(scene)))


def test_a_liar_in_one_group_costs_only_that_group() -> None:
    scene = Scene(20, group=10)
    aggregate = scene.run(lie=at("unmask", wrong_shares, (0, 1)))
    assert aggregate.survivors == tuple(range(10, 20))
    assert list(aggregate.failed) == [0]
    assert (aggregate.total == plain_sum(scene.vectors[10:])).all()


def test_a_false_vector_poisons_the_sum_but_only_as_far_as_the_ring() -> None:
    """What masking can't prevent: a signed vector of a liar counts. Clipping does not bind who lies."""
    scene = Scene(N)
    scene.vectors[LIAR] = np.full(3, 2**31 - 1, np.uint32)
    with np.errstate(over="ignore"):
        wrapped = np.sum(scene.vectors, axis=0, dtype=np.uint32).view(np.int32)
    assert (scene.run().total == wrapped).all()


def test_random_lies_everywhere_never_crash_nor_give_a_wrong_sum() -> None:
    """One device flips one bit of one message, anywhere: the sum stays exact or the round fails by type."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        stage = STAGES[rng.integers(5)]

        def flip(reply: bytes) -> bytes:
            place = int(rng.integers(8 * len(reply)))
            return bytes(b ^ (1 << place % 8) if i == place // 8 else b for i, b in enumerate(reply))

        scene = Scene(N)
        try:
            aggregate = scene.run(lie=at(stage, flip))
        except RoundFailed:
            continue
        assert (aggregate.total == plain_sum(scene.vectors[i] for i in aggregate.survivors)).all()
