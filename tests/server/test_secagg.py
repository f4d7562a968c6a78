"""Secure aggregation: one round told step by step, then exactness under every way of dropping out."""

from __future__ import annotations

import itertools
import json
import random
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import fuzz_messages
from support.scene import LENIENT, NOW, Scene, announcement, handed_over, identity, membership, plain_sum

from penchant.client.secagg import (
    Confirmed,
    Done,
    Keyed,
    Masking,
    Participant,
    SecAggPolicy,
    SharesDealt,
    Unmasked,
    decode_state,
    encode_state,
)
from penchant.common import errors
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import AgreementKey, verify
from penchant.common.crypto.masks import expand
from penchant.common.crypto.shamir import Combiner
from penchant.common.errors import (
    JournalError,
    NotUnmasked,
    PolicyRefusal,
    StageError,
    TooFewDevices,
    TooManyDropouts,
)
from penchant.common.secagg import transcript
from penchant.common.secagg.transcript import (
    confirmation_text,
    context_digest,
    pair_mask_key,
    roster_digest,
    self_mask_key,
    threshold,
)
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import (
    Announce,
    Collect,
    Confirmation,
    Confirmations,
    Delivery,
    Entry,
    Kind,
    Masked,
    Plain,
    Ready,
    Roster,
    Shares,
    Survivors,
    Unmasking,
)
from penchant.server.secagg.aggregation import MemoryRecords, must_not_be_repeated
from penchant.server.secagg.plain import PlainAggregation

STAGES = ("keys", "shares", "masked", "confirm", "unmask")


# --- one round, told ------------------------------------------------------------------------------


def test_a_round_of_seven_in_which_two_are_lost() -> None:
    """Seven devices, so t = 5. Device 2 is lost before it sends its vector, device 5 before it confirms."""
    n, t = 7, 5
    assert threshold(n) == t
    scene = Scene(n, words=4)

    # Stage keys. The server announces the round to all; each device answers with one signed entry.
    scene.play_to("shares")
    entries = [decode(scene.sent["keys"][node], Entry) for node in range(n)]
    context = context_digest(scene.announce)
    assert all(entry.context == context for entry in entries)
    assert all(isinstance(state, Keyed) for state in scene.states.values())

    # Stage shares. All get the same roster, by ascending member number, and verify all of it. Each cuts its
    # self-mask seed and its private mask key into n shares and seals one pair of shares for every peer.
    roster = decode(scene.requests[0], Roster)
    assert roster.entries == tuple(entries)
    assert set(scene.requests.values()) == {encode(roster)}
    scene = Scene(n, words=4).play_to("masked")
    assert all(len(decode(scene.sent["shares"][node], Shares).sealed) == n - 1 for node in range(n))

    # Stage masked. Each gets what the others sealed for it, adds its masks and sends the vector, signed.
    delivery = decode(scene.requests[3], Delivery)
    assert delivery.sharers == (0, 1, 2, 3, 4, 5, 6)
    scene = Scene(n, words=4).play_to("confirm", silent={"masked": [2]})
    masked = decode(scene.sent["masked"][3], Masked)
    assert len(masked.vector) == 4 * 4
    seeds = {node: scene_secrets(n)[node].seed for node in range(n)}
    keys = {node: AgreementKey(scene_secrets(n)[node].mask_private) for node in range(n)}
    digest = roster_digest(roster)
    by_hand = scene.vectors[3].copy() + expand(self_mask_key(seeds[3], context, digest, 3), 4)
    for peer in (0, 1, 2, 4, 5, 6):  # p_{3,peer} is added if 3 > peer, else subtracted: pairs cancel
        agreed = keys[3].agree(entries[peer].mask_key)
        mask = expand(pair_mask_key(agreed, context, digest, 3, peer), 4)
        by_hand = by_hand + mask if peer < 3 else by_hand - mask
    assert masked.vector == by_hand.tobytes()

    # Stage confirm. The server names U2 and U3; each survivor signs them.
    named = decode(scene.requests[3], Survivors)
    assert (named.sharers, named.survivors) == ((0, 1, 2, 3, 4, 5, 6), (0, 1, 3, 4, 5, 6))
    scene = Scene(n, words=4).play_to("unmask", silent={"masked": [2], "confirm": [5]})
    text = confirmation_text(context, digest, named.sharers, named.survivors)
    signature = decode(scene.sent["confirm"][3], Confirmation).signature
    assert verify(identity(4).certificate.public_key, text, signature)

    # Stage unmask. With t signatures on the same lists, each gives the seed shares of the six survivors and
    # the key share of device 2, and never both of anyone. Five answers open the seeds and the lost key.
    confirmations = decode(scene.requests[3], Confirmations)
    assert confirmations.signers == (0, 1, 3, 4, 6)
    answers = {
        node: decode(scene.tell("unmask", node, scene.requests[node]), Unmasking) for node in (0, 1, 3, 4, 6)
    }
    assert all((len(a.seed_shares), len(a.key_shares)) == (6, 1) for a in answers.values())
    assert all(scene.states[node] == Done(scene.states[node].info) for node in answers)
    combiner = Combiner(node + 1 for node in answers)
    assert combiner.combine([a.key_shares[0] for a in answers.values()]) == scene_secrets(n)[2].mask_private
    assert combiner.combine([a.seed_shares[4] for a in answers.values()]) == seeds[5]

    # The sum holds the six whose vectors arrived, device 5 among them, and is exact.
    aggregate = Scene(n, words=4).run({"masked": [2], "confirm": [5]})
    assert aggregate.survivors == (0, 1, 3, 4, 5, 6)
    assert aggregate.dropped == {"masked": (2,), "confirm": (5,)}
    assert (aggregate.total == plain_sum(scene.vectors[i] for i in (0, 1, 3, 4, 5, 6))).all()


def scene_secrets(n: int) -> dict[int, Keyed]:
    """What the devices of a scene keep to themselves; the same in every scene of n, for all is seeded."""
    return dict(Scene(n, words=4).play_to("shares").states)  # type: ignore[arg-type]


# --- exactness ------------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn, least: int, most: int, extra: int = 0) -> tuple[int, dict[str, list[int]]]:
    """A cohort size, and who is lost where: fewer than a third in total, at any stages.

    With `extra`, so many more than the roster can lose, and nobody in stage keys, where nothing is lost yet.
    """
    n = draw(st.integers(least, most))
    bound = n - threshold(n) + extra
    lost = draw(st.lists(st.integers(0, n - 1), unique=True, min_size=bound if extra else 0, max_size=bound))
    silent: dict[str, list[int]] = {}
    for node in lost:
        silent.setdefault(draw(st.sampled_from(STAGES[1:] if extra else STAGES)), []).append(node)
    return n, silent


def every_schedule(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check_exact(n: int, silent: dict[str, list[int]], ring: int) -> None:
    scene = Scene(n, ring=ring, words=2)
    aggregate = scene.run(silent)
    before = {node for stage in ("keys", "shares", "masked") for node in silent.get(stage, ())}
    assert aggregate.survivors == tuple(node for node in range(n) if node not in before)
    assert (aggregate.total == plain_sum(scene.vectors[i] for i in aggregate.survivors)).all()
    assert not scene.refusals
    again = scene.server.complete(scene.journal.records)
    assert (again.total == aggregate.total).all()
    assert (again.survivors, again.cohort) == (aggregate.survivors, aggregate.cohort)


RINGS = st.sampled_from([32, 64])


@every_schedule(350)
@given(schedules(3, 8), RINGS)
def test_masked_is_plain_for_3_to_8(schedule: tuple[int, dict[str, list[int]]], ring: int) -> None:
    check_exact(*schedule, ring)


@every_schedule(350)
@given(schedules(9, 17), RINGS)
def test_masked_is_plain_for_9_to_17(schedule: tuple[int, dict[str, list[int]]], ring: int) -> None:
    check_exact(*schedule, ring)


@every_schedule(220)
@given(schedules(18, 33), RINGS)
def test_masked_is_plain_for_18_to_33(schedule: tuple[int, dict[str, list[int]]], ring: int) -> None:
    check_exact(*schedule, ring)


@every_schedule(80)
@given(schedules(34, 60), RINGS)
def test_masked_is_plain_for_34_to_60(schedule: tuple[int, dict[str, list[int]]], ring: int) -> None:
    check_exact(*schedule, ring)


@every_schedule(150)
@given(schedules(3, 24, extra=1))
def test_one_loss_more_reveals_nothing(schedule: tuple[int, dict[str, list[int]]]) -> None:
    n, silent = schedule
    scene = Scene(n, words=2)
    gone = itertools.accumulate(len(silent.get(stage, ())) for stage in STAGES)
    last = next(stage for stage, lost in zip(STAGES, gone, strict=True) if n - lost < threshold(n))
    with pytest.raises(TooManyDropouts, match=f"lost by stage {last}, .* nothing was revealed"):
        scene.run(silent)
    # It ends at once: unless the last loss is in stage unmask, nobody was asked and it may be tried again.
    assert must_not_be_repeated(scene.journal.records) == (last == "unmask")
    # What the server has is below the threshold for every secret of everybody.
    assert len(scene.sent.get("unmask", {})) < threshold(n)
    if must_not_be_repeated(scene.journal.records):
        with pytest.raises(NotUnmasked):
            scene.server.complete(scene.journal.records)
    else:
        with pytest.raises(JournalError):
            scene.server.complete(scene.journal.records)


@pytest.mark.parametrize(
    ("n", "t"), [(3, 3), (4, 3), (7, 5), (9, 7), (10, 7), (30, 21), (99, 67), (256, 171)]
)
def test_the_threshold_is_two_thirds_and_one(n: int, t: int) -> None:
    assert threshold(n) == t
    assert n - t == -(-n // 3) - 1


# --- groups ---------------------------------------------------------------------------------------


def test_a_cohort_above_the_bound_is_split_evenly_and_adds_up() -> None:
    scene = Scene(11, group=4)
    stages: Counter[str] = Counter()
    aggregate = scene.run(twist=lambda stage, node, request: (stages.update([stage]), request)[1])
    assert aggregate.groups == (3, 4, 4)
    assert aggregate.survivors == tuple(range(11))
    assert (aggregate.total == plain_sum(scene.vectors)).all()
    assert stages == dict.fromkeys(STAGES, 11)


def test_a_group_that_fails_is_left_out_and_named() -> None:
    scene = Scene(8, group=4)
    aggregate = scene.run({"masked": [4, 5]})  # two of the second group's four: one too many
    assert aggregate.survivors == (0, 1, 2, 3)
    assert list(aggregate.failed) == [1]
    assert "lost by stage masked" in aggregate.failed[1]
    assert (aggregate.total == plain_sum(scene.vectors[:4])).all()


def test_the_round_fails_when_no_group_is_left() -> None:
    with pytest.raises(TooManyDropouts):
        Scene(8, group=4).run({"masked": [0, 1, 4, 5]})


def test_too_few_devices_are_told_so() -> None:
    with pytest.raises(TooFewDevices, match="2 of 5 devices"):
        Scene(5).run({"keys": [0, 1, 2]})


def test_three_devices_are_enough() -> None:
    scene = Scene(3)
    assert (scene.run().total == plain_sum(scene.vectors)).all()


@pytest.mark.parametrize("stage", STAGES[1:])
def test_the_stage_in_which_too_many_are_lost_is_the_last(stage: str) -> None:
    scene = Scene(7)
    with pytest.raises(TooManyDropouts, match=f"3 of 7 devices lost by stage {stage}"):
        scene.run({stage: [0, 1, 2]})
    assert list(scene.sent) == list(STAGES[: STAGES.index(stage) + 1])


class Stopping(MemoryRecords):
    """A journal that stops each round at the last moment."""

    def about_to_reveal(self, survivors: int) -> None:
        raise TooFewDevices(f"{survivors} are too few")


def test_a_round_is_stopped_before_anybody_confirms_who_is_in_the_sum() -> None:
    scene = Scene(7, journal=Stopping())
    with pytest.raises(TooFewDevices, match="6 are too few"):
        scene.run({"masked": [1]})
    assert list(scene.sent) == ["keys", "shares", "masked"]


# --- crashes of the server ------------------------------------------------------------------------


def test_a_crash_before_unmasking_leaves_no_record_so_a_new_attempt_is_safe() -> None:
    for stage in STAGES:
        scene = Scene(4).play_to(stage)
        assert must_not_be_repeated(scene.journal.records) == (stage == "unmask")
        if stage != "unmask":
            with pytest.raises(JournalError, match="no unmask request was journaled"):
                scene.server.complete(scene.journal.records)


def test_a_crash_past_unmasking_is_completed_from_the_replies_that_arrived() -> None:
    scene = Scene(7).play_to("unmask", silent={"masked": [6]})
    replies = [(node, scene.tell("unmask", node, payload)) for node, payload in scene.requests.items()]
    for arrived in range(len(replies) + 1):
        journal = MemoryRecords()
        journal.records = list(scene.journal.records)
        for node, reply in replies[:arrived]:
            journal.record("reply", node, reply)
            journal.record("reply", node, reply)  # recorded twice does no harm
        if arrived < threshold(7):
            with pytest.raises(NotUnmasked):
                scene.server.complete(journal.records)
        else:
            completed = scene.server.complete(journal.records)
            assert (completed.total == plain_sum(scene.vectors[:6])).all()
            assert completed.cohort == tuple(range(7))


def test_every_reply_is_journaled_as_it_arrives() -> None:
    """A server that dies right after the last one completes the attempt from its journal."""
    scene = Scene(7)
    aggregate = scene.run({"masked": [6]})
    completed = scene.server.complete(scene.journal.records)
    assert (completed.total == aggregate.total).all()
    assert completed.survivors == aggregate.survivors == (0, 1, 2, 3, 4, 5)


def test_a_journal_with_a_torn_record_is_refused() -> None:
    scene = Scene(4)
    scene.run()
    asked = next(record for record in scene.journal.records if record.kind == "asked")
    with pytest.raises(JournalError, match="can't be read"):
        scene.server.complete([asked._replace(payload=asked.payload[:-1])])


# --- the plain twin -------------------------------------------------------------------------------


def plain_exchange(scene: Scene, silent: set[int] = frozenset()):  # type: ignore[no-untyped-def,assignment]
    return lambda stage, requests, take=None: handed_over(
        (
            (node, scene.answer(stage, node, payload))
            for node, payload in requests.items()
            if node not in silent
        ),
        take,
    )


def test_plain_gives_the_same_sum_where_the_owner_allows_it() -> None:
    allowed = SecAggPolicy(1, 0, allow_unmasked=True)
    scene = Scene(5, policy=allowed, changes={"kind": Kind.PLAIN})
    aggregate = PlainAggregation().run(scene.announce, range(5), plain_exchange(scene), MemoryRecords())
    assert (aggregate.total == Scene(5).run().total).all()
    assert all(isinstance(state, Done) for state in scene.states.values())


def test_plain_is_refused_where_the_owner_forbids_it() -> None:
    scene = Scene(5, changes={"kind": Kind.PLAIN})
    with pytest.raises(TooFewDevices):
        PlainAggregation().run(scene.announce, range(5), plain_exchange(scene), MemoryRecords())
    assert all(isinstance(error, PolicyRefusal) for error in scene.refusals.values())


def test_plain_survives_those_who_are_silent_or_lie() -> None:
    scene = Scene(5, policy=SecAggPolicy(1, 0, allow_unmasked=True), changes={"kind": Kind.PLAIN})
    lies = {("keys", 1): encode(Ready(bytes(32))), ("masked", 2): encode(Plain(b"short"))}

    def exchange(stage, requests, take=None):  # type: ignore[no-untyped-def]
        honest = plain_exchange(scene, {0})(stage, requests)
        return handed_over(((node, lies.get((stage, node), reply)) for node, reply in honest.items()), take)

    aggregate = PlainAggregation().run(scene.announce, range(5), exchange, MemoryRecords())
    assert aggregate.survivors == (3, 4)
    assert aggregate.dropped == {"keys": (0, 1), "masked": (2,)}
    with pytest.raises(JournalError):
        PlainAggregation().complete([])


def test_plain_is_collected_only_for_the_context_that_was_announced() -> None:
    scene = Scene(3, policy=SecAggPolicy(1, 0, allow_unmasked=True), changes={"kind": Kind.PLAIN})
    scene.tell("keys", 0, encode(scene.announce))
    with pytest.raises(errors.AgreementError, match="a different context"):
        scene.tell("masked", 0, encode(Collect(bytes(32))))
    with pytest.raises(errors.ProtocolError, match="needs an announcement that says so"):
        PlainAggregation().run(announcement(3), range(3), plain_exchange(scene), MemoryRecords())


@pytest.mark.parametrize("vector", [np.zeros(4, "<u4"), np.zeros(3, "<u8"), np.zeros((3, 1), "<u4")])
def test_a_vector_of_another_shape_is_the_devices_own_failure(vector: np.ndarray) -> None:
    scene = Scene(4).play_to("masked")
    scene.vectors[1] = vector
    with pytest.raises(errors.DeviceError, match="but 3 elements of 32 bits were announced"):
        scene.tell("masked", 1, scene.requests[1])


@pytest.mark.parametrize("numbers", [(0, 2), (10, -1)])
def test_a_policy_without_meaning_is_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(errors.ConfigError):
        SecAggPolicy(*numbers)


# --- the state between messages -------------------------------------------------------------------


def test_every_state_survives_its_encoding_and_shows_no_secret() -> None:
    scenes = [Scene(4).play_to(stage) for stage in STAGES[1:]]
    states = [scene.states[1] for scene in scenes]
    assert [type(state) for state in states] == [Keyed, SharesDealt, Masking, Confirmed]
    keyed, shared, masking = states[0], states[1], states[2]
    assert isinstance(keyed, Keyed)
    assert isinstance(shared, SharesDealt)
    assert isinstance(masking, Masking)
    secrets = [
        keyed.seed,
        keyed.mask_private,
        keyed.channel_private,
        shared.own_seed_share,
        shared.own_key_share,
    ]
    secrets += [*(key for key in shared.openers if any(key)), *masking.seed_shares, *masking.key_shares]
    device = scenes[0].devices[1]
    for state in states:
        assert decode_state(encode_state(state)) == state
        for secret in [*secrets, device.identity.private]:
            assert repr(secret)[2:-1] not in repr(state) + repr(device)
            assert secret.hex() not in repr(state) + repr(device)


def test_no_refusal_tells_a_secret() -> None:
    """Hurt requests to a device in each stage: what its errors say holds nothing of its state."""
    rng, hurt = random.Random(5), Counter[str]()
    for stage in STAGES[1:]:
        scene = Scene(4).play_to(stage)
        state = scene.states[1]
        named = ("seed", "mask_private", "channel_private", "seed_shares", "key_shares", "openers")
        values = [getattr(state, name) for name in named if hasattr(state, name)]
        secrets = [scene.devices[1].identity.private]
        secrets += [
            one for value in values for one in (value if isinstance(value, tuple) else (value,)) if any(one)
        ]
        kind = fuzz_messages.ASKED[stage]
        honest = scene.requests[1]
        for _ in range(150):
            request = fuzz_messages.mutate(honest, kind, decode(honest, kind), 5, rng, hurt)
            scene.states[1] = state
            try:
                scene.tell(stage, 1, request)
            except errors.PenchantError as error:
                said = "".join(traceback.format_exception(error))
                assert not any(secret.hex() in said or repr(secret)[2:-1] in said for secret in secrets)


def test_a_round_goes_on_from_encoded_states() -> None:
    scene = Scene(4)

    def through_disk(stage: str, node: int, request: bytes) -> bytes:
        if node in scene.states:
            scene.states[node] = decode_state(encode_state(scene.states[node]))
        return request

    assert (scene.run(twist=through_disk).total == plain_sum(scene.vectors)).all()


def test_steps_out_of_order_are_refused() -> None:
    """Each step from each state: only the next one is possible, and never a second time."""
    payloads = {
        "shares": encode(Roster(())),
        "masked": encode(Delivery((), ())),
        "confirm": encode(Survivors((), ())),
        "unmask": encode(Confirmations((), ())),
    }
    allowed = dict(zip(payloads, (Keyed, SharesDealt, Masking, Confirmed), strict=True))
    for reached, step in itertools.product(STAGES[1:], payloads):
        scene = Scene(4).play_to(reached)
        if isinstance(scene.states[0], allowed[step]):
            continue
        with pytest.raises(StageError, match="skipped or repeated"):
            scene.tell(step, 0, payloads[step])
    scene = Scene(4)
    scene.run()
    for step, payload in payloads.items():
        with pytest.raises(StageError):
            scene.tell(step, 0, payload)
    for junk in (b"", b"\x06", b"\xff", encode_state(scene.states[0])[:-1]):
        with pytest.raises(errors.CodecError):
            decode_state(junk)


# --- vectors --------------------------------------------------------------------------------------

VECTORS = Path(__file__).parents[1] / "vectors"


def test_the_recorded_round_repeats_byte_for_byte() -> None:
    """vectors/round.json: another implementation can be held against every message."""
    told = json.loads((VECTORS / "round.json").read_text())
    scene = Scene(5)
    assert [vector.tolist() for vector in scene.vectors] == told["vectors"]
    for case in told["cases"]:
        reply = scene.tell(case["stage"], case["device"], bytes.fromhex(case["request"]))
        assert reply.hex() == case["reply"], case["name"]
    assert Scene(5).run({"masked": [2]}).total.tolist() == told["total"]


def test_the_recorded_derivations_hold() -> None:
    """vectors/derivations.json: what lies between the messages of that round."""
    told = json.loads((VECTORS / "derivations.json").read_text())
    case = {row["name"]: bytes.fromhex(row["hex"]) for row in told["cases"]}
    context = context_digest(decode(case["announcement"], Announce))
    roster = decode(case["roster"], Roster)
    digest = roster_digest(roster)
    assert (context, digest) == (case["context"], case["roster digest"])
    seed, entries = case["seed of 0"], roster.entries
    assert transcript.commitment(seed, context, 1) == entries[0].commitment == case["commitment of 0"]
    assert verify(entries[0].certificate.public_key, case["entry text of 0"], entries[0].signature)
    self_key = self_mask_key(seed, context, digest, 0)
    assert self_key == case["self-mask key of 0"]
    assert expand(self_key, 4).tobytes() == case["self mask of 0, 16 bytes"]
    agreed = AgreementKey(case["mask private key of 0"]).agree(entries[3].mask_key)
    assert agreed == case["agreement of mask keys 0, 3"]
    pair_key = pair_mask_key(agreed, context, digest, 0, 3)
    assert pair_key == case["pair-mask key of 0, 3"]
    assert expand(pair_key, 4).tobytes() == case["pair mask of 0, 3, 16 bytes"]
    agreed = AgreementKey(case["channel private key of 0"]).agree(entries[3].channel_key)
    assert transcript.seal_key(agreed, context, digest, 0, 3) == case["sealing key 0 to 3"]
    assert transcript.sealed_for(context, digest, 0, 3) == case["associated data 0 to 3"]
    assert transcript.masked_text(context, digest, b"") == case["masked text of an empty vector"]
    text = confirmation_text(context, digest, range(5), (0, 1, 3, 4))
    assert text == case["confirmation text of U2 = 0..4, U3 = 0, 1, 3, 4"]


@pytest.mark.parametrize(
    "case", json.loads((VECTORS / "bad_round.json").read_text())["cases"], ids=lambda case: case["name"]
)
def test_bad_requests_are_refused(case: dict[str, str]) -> None:
    scene = Scene(5).play_to(case["stage"])
    with pytest.raises(getattr(errors, case["error"])):
        scene.tell(case["stage"], int(case["device"]), bytes.fromhex(case["request"]))


# --- what leaves does not depend on what is private ------------------------------------------------


def test_only_the_masked_vector_changes_with_ones_choices() -> None:
    """Same randomness, another vector of one device: all else that leaves anybody stays, byte for byte."""
    one, other = Scene(5, words=8), Scene(5, words=8)
    other.vectors[2] = other.vectors[2] + np.uint32(12345)
    first, second = one.run({"masked": [4]}), other.run({"masked": [4]})
    assert (first.total != second.total).any()
    for stage in STAGES:
        assert list(one.sent[stage]) == list(other.sent[stage])
        for node, reply in one.sent[stage].items():
            if (stage, node) == ("masked", 2):
                assert reply != other.sent[stage][node]
                assert len(reply) == len(other.sent[stage][node])
            else:
                assert reply == other.sent[stage][node]


def test_a_masked_message_costs_four_bytes_a_parameter() -> None:
    assert len(encode(Masked(bytes(64), bytes(4_000_000)))) <= 4.1 * 1_000_000


def test_the_announcement_decides_the_shape_and_the_device_holds_to_it() -> None:
    device = Participant(identity(1), membership(4), LENIENT)
    begun, _ = device.begin(announcement(4, words=9, ring=64), SeededEntropy(b"", ""), NOW)
    assert (begun.info.words, begun.info.ring, begun.info.group) == (9, 64, 4)
    allowed = Participant(identity(1), membership(4), SecAggPolicy(1, 0, allow_unmasked=True))
    state, reply = allowed.begin(announcement(4, kind=Kind.PLAIN), SeededEntropy(b"", ""), NOW)
    assert isinstance(state, Unmasked)
    assert decode(reply, Ready).context == context_digest(announcement(4, kind=Kind.PLAIN))
    assert isinstance(decode(encode(Collect(bytes(32))), Collect), Collect)
    assert decode(encode(announcement(4)), Announce) == announcement(4)
