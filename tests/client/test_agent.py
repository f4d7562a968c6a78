"""One device from outside: it answers each stage, or refuses with one code, and stays up whatever comes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import fuzz_messages
from support.fleet_scene import LENIENT, STAGES, FleetScene, some_choices
from support.scene import RUN, membership

from penchant.client.agent import agent as agent_module
from penchant.client.agent.open_attempt import AttemptsInMemory, SealedAttempts
from penchant.client.agent.owner import Choices
from penchant.client.agent.policy import OwnerPolicy
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.workplace import LoadedModel
from penchant.client.secagg import Participant, Role, SecAggPolicy
from penchant.client.vault.vault import Vault
from penchant.common.config import Plan
from penchant.common.crypto.keys import Verifier
from penchant.common.errors import DeviceError
from penchant.common.membership.identity import Identity, Membership
from penchant.common.secagg.transcript import context_digest
from penchant.common.secagg.update_vector import RoundSums, UpdateLayout
from penchant.common.wire.codec import decode, decode_any, encode
from penchant.common.wire.messages import (
    Abort,
    AbortCode,
    Announce,
    Confirmation,
    Confirmations,
    Delivery,
    Entry,
    Finished,
    Hello,
    Masked,
    Roster,
    Shares,
    Status,
    Survivors,
    Unmasking,
)

Scenes = Callable[..., FleetScene]
ANSWERS = {"keys": Entry, "shares": Shares, "masked": Masked, "confirm": Confirmation, "unmask": Unmasking}
ABORT_SIZE = len(encode(Abort(AbortCode.MALFORMED)))
SOME_FACTOR = np.float32(0.25)


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Scenes:
    """Makes fleets, each in its own directory."""
    made: list[FleetScene] = []

    def make(n: int = 4, **settings: Any) -> FleetScene:
        made.append(FleetScene(tiny_model("bert"), tmp_path / str(len(made)), n, **settings))
        return made[-1]

    return make


def keep_a_factor(scene: FleetScene, i: int) -> None:
    """The device comes from a round that stands: round 0 of the run, with a factor of its own."""
    size = scene.model_cache.of(scene.config.plan("main", scene.n)).split.personal.size
    vault = Vault(scene.home(i))
    vault.stage(RUN, 0, 0, np.full(size, SOME_FACTOR))
    vault.settle(RUN, [(0, 0)])


def check_unharmed(scene: FleetScene, i: int) -> None:
    """The device has kept its factor and its choices, holds no attempt, and takes part in the next round."""
    kept = scene.personal(i)
    assert kept is not None
    assert kept[0] == 0
    assert (kept[1] == SOME_FACTOR).all()
    assert not scene.is_open(i)
    assert scene.greet(i, [(0, 0)]) == Status(True, i + 1, scene.members.digest)


# --- answers --------------------------------------------------------------------------------------


def test_a_device_answers_each_stage_with_the_one_message_that_belongs_there(scenes: Scenes) -> None:
    scene = scenes()
    assert scene.greet(0, []) == Status(ready=True, member=1, list_digest=scene.members.digest)
    scene.play_to("unmask").finish("unmask")
    for stage, kind in ANSWERS.items():
        assert decode(scene.sent[stage][0], kind)
    assert scene.agents[0].reasons() == []


def test_after_the_last_stage_no_attempt_is_open(scenes: Scenes) -> None:
    scene = scenes().play_to("unmask")
    assert all(scene.is_open(i) for i in range(4))
    scene.finish("unmask")
    assert not any(scene.is_open(i) for i in range(4))


@pytest.mark.parametrize("ahead", [False, True])
def test_training_ahead_gives_the_same_vector_as_training_when_asked(scenes: Scenes, ahead: bool) -> None:
    """Masks of seeded devices are the same, so the masked vectors are, too."""
    scene = scenes(ahead=ahead).play_to("confirm")
    other = scenes().play_to("confirm")
    assert scene.sent["masked"] == other.sent["masked"]
    assert all(vars(agent)["_work"] is None for agent in scene.agents)


def test_readiness_is_the_owners_word_and_does_not_say_whether_there_are_choices(scenes: Scenes) -> None:
    scene = scenes()
    empty = scene.restart(0, choices=Choices([], []))
    assert decode(empty.answer("status", encode(Hello(RUN, ()))), Status).ready
    paused = scene.restart(0, policy=OwnerPolicy(scene.policy.base_models, paused=True, **LENIENT))
    assert not decode(paused.answer("status", encode(Hello(RUN, ()))), Status).ready
    assert scene.ask("keys", 0, scene.announce()) == Abort(AbortCode.POLICY)
    assert scene.reason(0) == ("keys", "POLICY", "paused by the owner")


def test_a_device_whose_choices_are_gone_when_it_is_asked_for_its_vector_sends_zeros(scenes: Scenes) -> None:
    choices = [some_choices(0)]
    scene = scenes()
    scene.restart(0, choices=lambda: choices[0])
    scene.play_to("masked")
    choices[0] = Choices([], [])
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert scene.reason(0) == ("masked", "NOTHING", "this device has no choices to learn from yet")


def test_a_device_that_fails_adds_nothing_to_the_sum_and_nobody_can_tell(scenes: Scenes) -> None:
    """All four answer every stage, and the sum is that of the other three."""

    def totals(choices: Any) -> RoundSums:
        scene = scenes()
        scene.restart(0, choices=choices)
        log = scene.serve()
        scene.close()
        assert scene.watched[0].survivors == (1000, 1001, 1002, 1003)
        plan = scene.config.plan("main", scene.n)
        layout = UpdateLayout.of(plan, scene.model_cache.of(plan).split)
        assert log.journal is not None
        return layout.read(scene.watched[0].total, scene.n)

    everybody, without = totals(some_choices(0)), totals(Choices([], []))
    assert (everybody.weight, without.weight) == (16, 12)
    assert without.total == everybody.total * 3 // 4


# --- refusals -------------------------------------------------------------------------------------


def test_a_refusal_is_one_code_of_one_size_and_the_owner_knows_why(scenes: Scenes) -> None:
    """A wrong stage, a base model that is not allowed, noise: three codes, one size, three reasons."""
    scene = scenes()
    replies = [
        scene.tell("shares", 0, encode(Roster(()))),
        scene.tell("keys", 0, encode(scene.announce(base=bytes(32)))),  # signed so
        scene.tell("confirm", 0, b"noise"),
        scene.tell("status", 0, b""),
        scene.tell("sharing", 0, b""),
    ]
    codes = [decode(reply, Abort).code.name for reply in replies]
    assert codes == ["STAGE", "CONFIGURATION", "STAGE", "MALFORMED", "STAGE"]
    assert {len(reply) for reply in replies} == {ABORT_SIZE}
    told = scene.agents[0].reasons()
    assert [stage for stage, _, _ in told] == ["shares", "keys", "confirm", "status", "sharing"]
    assert [code for _, code, _ in told] == codes
    assert "another base model" in told[1][2]
    assert all(reason for _, _, reason in told)


@pytest.mark.parametrize("stage", STAGES)
def test_a_refusal_at_any_stage_drops_the_round_and_keeps_the_factor(scenes: Scenes, stage: str) -> None:
    scene = scenes()
    keep_a_factor(scene, 0)
    scene.play_to(stage)
    assert scene.ask(stage, 0, b"PEN\x01") == Abort(AbortCode.MALFORMED)
    after = scene.ask(stage, 0, scene.requests[0])  # what was right before comes too late, but for a first
    assert isinstance(after, Entry) if stage == "keys" else after == Abort(AbortCode.STAGE)
    scene.ask("sharing", 0, b"")
    check_unharmed(scene, 0)
    assert isinstance(scene.ask("keys", 0, scene.announce(attempt=2)), Entry)


@pytest.mark.parametrize("stage", STAGES)
def test_an_abort_from_the_server_is_a_message_of_no_stage_and_ends_the_attempt(
    scenes: Scenes, stage: str
) -> None:
    scene = scenes().play_to(stage)
    reply = scene.ask(stage, 0, Abort(AbortCode.UNAVAILABLE))
    assert isinstance(reply, Abort)
    assert not scene.is_open(0)
    assert isinstance(scene.ask("keys", 0, scene.announce(attempt=2)), Entry)


@pytest.mark.parametrize("other", ["sharing", "status"])
def test_a_refusal_outside_the_stages_of_a_round_ends_the_attempt_too(scenes: Scenes, other: str) -> None:
    """A stage that does not exist, a greeting that can't be read: whoever sends that plays no round."""
    scene = scenes().play_to("masked")
    assert isinstance(scene.ask(other, 0, b"noise"), Abort)
    assert not scene.is_open(0)
    assert scene.ask("masked", 0, scene.requests[0]) == Abort(AbortCode.STAGE)


def test_an_error_that_nobody_foresaw_leaves_as_one_code_and_without_its_text(scenes: Scenes) -> None:
    def broken() -> Any:
        raise RuntimeError("ann@example.org likes the first one")

    scene = scenes()
    scene.restart(0, policy=broken)
    assert scene.tell("keys", 0, encode(scene.announce())) == encode(Abort(AbortCode.INTERNAL))
    assert scene.reason(0) == ("keys", "INTERNAL", "RuntimeError")


def test_an_error_among_the_choices_does_not_leave_at_all(scenes: Scenes) -> None:
    def broken() -> Choices:
        raise RuntimeError("ann@example.org likes the first one")

    scene = scenes().play_to("masked")
    scene.agents[0] = scene._agent(0, choices=broken)  # in mid-attempt
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert scene.reason(0) == ("masked", "NOTHING", "the work failed: RuntimeError")


def test_a_device_whose_disk_fails_refuses_and_stays_up(scenes: Scenes) -> None:
    scene = scenes().play_to("shares")
    file = scene.home(0) / "vault.db"
    whole = file.read_bytes()
    file.write_bytes(b"no database" * 1000)
    assert scene.ask("keys", 0, scene.announce(attempt=2)) == Abort(AbortCode.INTERNAL)
    assert scene.ask("confirm", 0, b"") == Abort(AbortCode.STAGE)
    assert not scene.is_open(0)
    file.write_bytes(whole)
    assert isinstance(scene.ask("keys", 0, scene.announce(attempt=2)), Entry)


def test_no_share_leaves_before_the_unmasking_is_on_disk(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes().play_to("unmask")

    def full(*_: object) -> None:
        raise DeviceError("the disk is full")

    monkeypatch.setattr(Vault, "mark_unmasked", full)
    assert scene.ask("unmask", 0, scene.requests[0]) == Abort(AbortCode.INTERNAL)
    monkeypatch.undo()
    assert scene.ask("unmask", 0, scene.requests[0]) == Abort(AbortCode.STAGE)


def test_no_entry_leaves_before_the_attempt_is_burnt(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scenes()

    def full(*_: object) -> None:
        raise DeviceError("the disk is full")

    monkeypatch.setattr(Vault, "begin", full)
    assert scene.ask("keys", 0, scene.announce()) == Abort(AbortCode.INTERNAL)
    assert not scene.is_open(0)


def test_training_that_diverges_leaves_the_personal_part_as_it_was(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes()
    keep_a_factor(scene, 0)
    scene.play_to("masked", announce=scene.announce(finished=(Finished(0, 0),)))

    def diverges(*_: object) -> None:
        raise DeviceError("local training diverged; lower the learning rates")

    monkeypatch.setattr("penchant.client.learning.trainer.LocalTrainer.train", diverges)
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert scene.reason(0)[:2] == ("masked", "NOTHING")
    assert "diverged" in scene.reason(0)[2]
    scene.greet(0, [(1, 1)])
    kept = scene.personal(0)
    assert kept is not None
    assert (kept[1] == SOME_FACTOR).all()


def test_what_a_server_writes_reaches_the_owners_terminal_as_plain_text_of_bounded_length(
    scenes: Scenes,
) -> None:
    scene = scenes()
    hostile = replace(scene.announce(), plan=scene.plan(**{"\x1b[2J\n\r" + "x" * 5000: 1}))
    assert scene.ask("keys", 0, hostile) == Abort(AbortCode.CONFIGURATION)
    scene.ask("\x1b]0;pwned\x07" + "y" * 5000, 0, b"")
    for stage, _, reason in scene.agents[0].reasons():
        assert len(stage) <= 20
        assert len(reason) <= 300
        assert (stage + reason).isprintable()


# --- noise ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def besieged(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Fleets stopped before each stage, whose first device gets all the noise."""
    scenes = {}
    for stage in STAGES:
        scene = FleetScene(tiny_model("bert"), tmp_path_factory.mktemp(stage))
        keep_a_factor(scene, 0)
        scenes[stage] = scene.play_to(stage)
    return scenes


def state_of(scene: FleetScene) -> Any:
    return vars(scene.open_attempts[0])["_open"]


SHORT = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("stage", [*STAGES, "status", "", "keys\0"])
@SHORT
@given(noise=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda b: b"PEN\x01" + b)))
def test_random_bytes_at_any_stage_are_refused_by_one_code(besieged: Any, stage: str, noise: bytes) -> None:
    scene = besieged.get(stage, besieged["keys"])
    kept = state_of(scene)
    reply = decode_any(scene.agents[0].answer(stage, noise), (Abort, Status))
    assert reply != Abort(AbortCode.INTERNAL)
    assert isinstance(reply, Abort) or decode(noise, Hello)
    assert not scene.is_open(0)
    if kept is not None:
        scene.open_attempts[0].keep(*kept)
    own = scene.personal(0)
    assert own is not None
    assert (own[1] == SOME_FACTOR).all()


REQUESTS = {
    "keys": Announce,
    "shares": Roster,
    "masked": Delivery,
    "confirm": Survivors,
    "unmask": Confirmations,
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_with_one_field_hurt_is_answered_by_its_stage_or_refused(besieged: Any, stage: str) -> None:
    """Structure-aware: counts, lengths, indices, enums, keys and signatures of an honest request."""
    rng, seen = random.Random(stage), Counter[str]()
    scene = besieged[stage]
    kept, honest = state_of(scene), scene.requests[0]
    for _ in range(30):
        hurt = fuzz_messages.mutate(honest, REQUESTS[stage], decode(honest, REQUESTS[stage]), 5, rng, seen)
        if kept is not None:
            scene.open_attempts[0].keep(*kept)
        reply = decode_any(scene.agents[0].answer(stage, hurt), (ANSWERS[stage], Abort))
        assert reply != Abort(AbortCode.INTERNAL), scene.reason(0)
        if hurt != honest and isinstance(reply, Entry):  # it says what it was told, so nobody else will agree
            assert reply.context != context_digest(scene.announce())
    assert len(seen) > 1
    own = scene.personal(0)
    assert own is not None
    assert (own[1] == SOME_FACTOR).all()


def test_messages_in_any_order_never_bring_a_device_down(scenes: Scenes, besieged: Any) -> None:
    """Everything that an honest server ever sent, repeated and shuffled, to one device."""
    scene = scenes()
    keep_a_factor(scene, 0)
    letters = [("status", encode(Hello(RUN, ())))]
    letters += [(stage, besieged[stage].requests[0]) for stage in STAGES]
    rng = random.Random(0)
    unmasked = 0
    for _ in range(100):
        (stage, _), (_, payload) = rng.choice(letters), rng.choice(letters)
        reply = decode_any(scene.tell(stage, 0, payload), (*ANSWERS.values(), Abort, Status))
        unmasked += isinstance(reply, Unmasking)
    assert unmasked <= 1
    assert isinstance(scene.ask("keys", 0, scene.announce(number=2)), Entry)


def test_the_fleet_goes_on_after_everything_that_was_thrown_at_a_device(scenes: Scenes) -> None:
    scene = scenes()
    for stage in STAGES:
        for payload in (b"", b"PEN", b"PEN\x01\x04", bytes(1000)):
            assert isinstance(scene.ask(stage, 0, payload), Abort)
    run = scene.serve()
    assert [row.state for row in run.journal.rows()] == ["finished"] * 3
    assert scene.watched[-1].survivors == (1000, 1001, 1002, 1003)
    scene.close()


# --- once a round ---------------------------------------------------------------------------------


@dataclass
class Work:
    """How often the parts of checking an announcement ran."""

    done: Counter[str] = field(default_factory=Counter)

    def count(self, patch: pytest.MonkeyPatch, place: Any, name: str) -> None:
        real = getattr(place, name)

        def counted(*args: Any, **settings: Any) -> Any:
            self.done[name] += 1
            return real(*args, **settings)

        patch.setattr(place, name, counted)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counter = Work()
    counter.count(monkeypatch, Plan, "decode")
    counter.count(monkeypatch, agent_module, "checked_factors")
    counter.count(monkeypatch, UpdateLayout, "of")
    return counter


def test_an_announcement_is_decoded_and_checked_once_in_a_round(scenes: Scenes, work: Work) -> None:
    scene = scenes()
    announce = encode(scene.announce())
    work.done.clear()
    scene.tell("keys", 0, announce)
    assert work.done == {"decode": 1, "checked_factors": 1, "of": 1}
    scene = scenes().play_to("masked")
    work.done.clear()
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert work.done == {}


def test_devices_of_one_process_share_what_a_plan_makes_of_the_model(scenes: Scenes) -> None:
    scene = scenes().play_to("masked")
    tasks = [vars(agent)["_task"] for agent in scene.agents]
    assert all(task.split is tasks[0].split for task in tasks)
    other = scene.config.plan("close", scene.n)
    assert scene.model_cache.of(other) is scene.model_cache.of(other)
    assert scene.model_cache.of(other).plan == other != tasks[0].plan


def test_where_another_process_answered_stage_keys_the_announcement_is_checked_again(
    scenes: Scenes, work: Work
) -> None:
    scene = scenes().play_to("masked")
    scene.agents[0] = scene._agent(0)  # with the attempt, but without what was derived of it
    work.done.clear()
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert work.done == {"decode": 1, "checked_factors": 1, "of": 1}


def test_attempts_that_any_process_may_take_leave_nothing_derived_in_this_one(
    scenes: Scenes, work: Work
) -> None:
    scene = scenes()
    agent = scene.restart(0, open_attempts=SealedAttempts(scene.home(0), bytes(32)))
    scene.play_to("masked")
    assert vars(agent)["_task"] is None
    work.done.clear()
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert work.done == {"decode": 1, "checked_factors": 1, "of": 1}


@pytest.mark.parametrize("end", ["masked", "noise", "another attempt", "over"])
def test_what_was_derived_goes_with_the_attempt(scenes: Scenes, end: str) -> None:
    scene = scenes().play_to("masked")
    before = vars(scene.agents[0])["_task"]
    assert before is not None
    if end == "masked":
        scene.finish("masked")
    elif end == "noise":
        scene.ask("masked", 0, b"noise")
    elif end == "another attempt":
        assert isinstance(scene.ask("keys", 0, scene.announce(attempt=2)), Entry)
    else:
        scene.greet(0, [(1, 1)])
    after = vars(scene.agents[0])["_task"]
    assert after is not before
    assert (after is None) == (end != "another attempt")
    assert scene.is_open(0) == (end in ("masked", "another attempt"))


def test_a_new_attempt_ends_the_one_before_it_before_anything_is_loaded(scenes: Scenes) -> None:
    """A device that dies while it loads a model leaves no secrets of the attempt before."""
    scene, open_then = scenes(), []

    class Place(InThisProcess):
        def load(self, plan: Plan) -> LoadedModel:
            open_then.append(scene.is_open(0))
            return super().load(plan)

    scene.restart(0, workplace=Place(scene.model_cache))
    for attempt in (1, 2):
        assert isinstance(scene.ask("keys", 0, scene.announce(attempt=attempt)), Entry)
    assert open_then == [False, False]


def test_what_is_derived_for_a_round_is_of_no_use_in_another_and_the_same_in_each_attempt(
    scenes: Scenes,
) -> None:
    """Else the rounding of two rounds' vectors, and the order of the choices, would tell of one another."""
    scene = scenes()
    first = scene.announce(1)
    again = [scene.announce(1, attempt=2), scene.announce(1, phase="close")]
    others = [scene.announce(2), replace(first, run=bytes(16))]
    for purpose in ("rounding", "training"):
        derived = [scene.agents[0]._derived(one, purpose) for one in (first, *again, *others)]
        assert derived[0] == derived[1] == derived[2]
        assert len({*derived}) == 3
    assert scene.agents[0]._derived(first, "rounding") != scene.agents[0]._derived(first, "training")
    assert scene.agents[0]._derived(first, "rounding") != scene.agents[1]._derived(first, "rounding")


@pytest.mark.parametrize(
    ("stricter", "code", "why"),
    [
        ({"base_models": ("another",)}, AbortCode.POLICY, "not among those the owner allows"),
        ({"max_epochs": 1}, AbortCode.POLICY, "the owner allows 1"),
        ({"max_factor": 1e-3}, AbortCode.AGREEMENT, "the factors exceed 0.001"),
        ({"min_honest": 50}, None, ""),  # was asked of the roster, in stage shares
    ],
)
def test_an_owner_who_turns_stricter_in_mid_round_is_heard_before_the_vector_leaves(
    scenes: Scenes, stricter: dict[str, Any], code: AbortCode | None, why: str
) -> None:
    scene = scenes()
    policy = [scene.policy]
    scene.restart(0, policy=lambda: policy[0])
    scene.play_to("masked")
    policy[0] = replace(scene.policy, **stricter)
    reply = scene.ask("masked", 0, scene.requests[0])
    if code is None:
        assert isinstance(reply, Masked)
    else:
        assert reply == Abort(code)
        assert why in scene.reason(0)[2]


def test_a_policy_that_has_not_changed_costs_no_second_check(scenes: Scenes, work: Work) -> None:
    scene = scenes()
    scene.restart(0, policy=lambda: replace(scene.policy))
    scene.play_to("masked")
    work.done.clear()
    assert isinstance(scene.ask("masked", 0, scene.requests[0]), Masked)
    assert work.done == {}


def test_the_role_is_made_once_for_a_member_list_and_a_policy(scenes: Scenes) -> None:
    made: list[tuple[Membership, SecAggPolicy]] = []

    def role(identity: Identity, members: Membership, policy: SecAggPolicy, verify: Verifier) -> Role:
        made.append((members, policy))
        return Participant(identity, members, policy, verify)

    scene = scenes()
    policy = [scene.policy]
    scene.restart(0, role=role, policy=lambda: policy[0])
    scene.play_to("unmask").finish("unmask")
    assert [(members.encoded, conditions) for members, conditions in made] == [
        (scene.members.encoded, scene.policy.secagg())
    ]
    policy[0] = replace(scene.policy, min_honest=2)  # what the role enforces
    scene.ask("keys", 0, scene.announce(number=2))
    policy[0] = replace(policy[0], max_message_mb=1)  # what it has no part in
    scene.ask("keys", 0, scene.announce(number=3))
    assert [conditions.min_honest for _, conditions in made] == [1, 2]
    newer = membership(4, 2)
    assert scene.offer(0, newer.encoded) == Status(True, 1, newer.digest)
    assert isinstance(scene.ask("keys", 0, scene.announce(number=4, list_digest=newer.digest)), Entry)
    assert [members.number for members, _ in made] == [1, 1, 2]


# --- who is who -----------------------------------------------------------------------------------


def test_a_device_shows_its_number_and_nothing_else(scenes: Scenes) -> None:
    assert repr(scenes().agents[2]) == "Agent(member=3)"


def test_open_attempts_give_their_state_once(scenes: Scenes) -> None:
    scene = scenes().play_to("shares")
    open_attempts = scene.open_attempts[0]
    assert isinstance(open_attempts, AttemptsInMemory)
    open_attempts.take()
    assert scene.ask("shares", 0, scene.requests[0]) == Abort(AbortCode.STAGE)
