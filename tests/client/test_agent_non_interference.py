"""Non-interference: what one person prefers changes nothing that leaves a device, but what is masked.

Two runs with the same randomness (injected by constructor) differ in one person's preferences alone. In a
round that starts from the same factors every message of every device is the same byte for byte, in the same
order, except that person's masked vector and the signature over it, whose length stays. Later rounds start
from factors that have learned of the difference, through the sum, which is what the sum is for: there
stages, order and every size stay. A server that chooses plan and factors to find something out learns no
more; the moment at which the vector leaves is tested in test_agent_round_work.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet_scene import FleetScene, some_choices
from support.recorded_run import FIRST_NODE, Left, Recorded, record, some_people, some_person, world_of

from penchant.client.agent.owner import Choices
from penchant.client.learning.trainer import LocalTrainer
from penchant.client.vault.vault import Vault
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.wire.codec import decode, decode_any
from penchant.common.wire.messages import (
    Abort,
    Confirmation,
    Entry,
    Masked,
    Plain,
    Shares,
    Status,
    Unmasking,
)

PEOPLE = 5  # t = 4: one may be lost
ONE = 3
NODE = FIRST_NODE + ONE

Fault = Callable[[int, str], bool]


# --- two worlds that differ in one person ---------------------------------------------------------------


def changed(how: Callable[[Person], Person]) -> Federation:
    """The usual people, but person ONE is somebody else."""
    people = list(some_people(PEOPLE).people)
    people[ONE] = how(people[ONE])
    return Federation("made up", tuple(people))


def opposite(person: Person) -> Person:
    """The same texts, every choice the other way round: the same lengths, words and tokens."""

    def turn(pairs: tuple[Preference, ...]) -> tuple[Preference, ...]:
        return tuple(Preference(p.prompt, p.rejected, p.chosen) for p in pairs)

    return replace(person, train=turn(person.train), validation=turn(person.validation))


def longer(person: Person) -> Person:
    """Other choices among other, longer texts."""
    return some_person(ONE, words=40, seed=1, name=person.name)


def fewer(person: Person) -> Person:
    """Three pairs in the place of four, and one to judge by."""
    return some_person(ONE, pairs=3, validation=1, seed=2, name=person.name)


def many(person: Person) -> Person:
    """Five times as many pairs."""
    return some_person(ONE, pairs=20, validation=9, seed=3, name=person.name)


def unjudged(person: Person) -> Person:
    """Nothing kept aside to judge the model by."""
    return some_person(ONE, pairs=1, validation=0, seed=4, name=person.name)


CHANGES = [opposite, longer, fewer, many, unjudged]


@dataclass
class Worlds:
    """Plays federations, each in its own directory; what the usual people gave is kept."""

    base: Path
    directory: Path
    played: int = 0
    known: dict[str, Recorded] = field(default_factory=dict)

    def play(self, federation: Federation, fault: Callable[[], Fault] | None = None, **more: Any) -> Recorded:
        self.played += 1
        changes = {"federation__rounds": 1} | more
        world = world_of(self.base, federation, **changes)
        return record(self.directory / str(self.played), world, fault=fault() if fault else None)

    def usual(self, **more: Any) -> Recorded:
        """A run of the usual people with nobody lost."""
        name = str(sorted(more.items()))
        if name not in self.known:
            self.known[name] = self.play(some_people(PEOPLE), **more)
        return self.known[name]


@pytest.fixture(scope="module")
def worlds(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tiny_model("bert"), tmp_path_factory.mktemp("worlds"))


# --- what an onlooker sees ------------------------------------------------------------------------------


def onlooker(run: Recorded) -> list[tuple[str, str, int, int, type[Any]]]:
    """Order, stage, sender, length and type of everything that left."""
    return [(s.place, s.stage, s.node, len(s.payload), type(read(s))) for s in run.left]


def read(left: Left) -> Any:
    kinds = (Status, Entry, Shares, Masked, Plain, Confirmation, Unmasking, Abort)
    return decode_any(left.payload, kinds)


def first_round(run: Recorded) -> list[Left]:
    """Everything up to the end of round 1, readiness included."""
    beyond = next(i for i, left in enumerate(run.left) if left.place.startswith("2."))
    return run.left[:beyond]


def differing(one: Recorded, other: Recorded) -> list[tuple[str, str, int]]:
    """(place, stage, node) of messages of the first round that are not the same in both runs."""
    pairs = zip(first_round(one), first_round(other), strict=True)
    return [(a.place, a.stage, a.node) for a, b in pairs if a.payload != b.payload]


def envelopes(run: Recorded) -> list[tuple[Any, ...]]:
    """What Flower writes around a payload, but for its ids and times."""
    found = []
    for left, message in zip(run.left, run.whole(), strict=True):
        m = message.metadata
        around = len(left.frame) - len(left.payload)
        found.append((m.run_id, m.src_node_id, m.dst_node_id, m.group_id, m.message_type, around))
    return found


# --- one round, everybody there ---------------------------------------------------------------------------


def test_the_same_randomness_and_the_same_people_give_the_same_bytes(worlds: Worlds) -> None:
    """What every comparison below rests on."""
    one, other = worlds.usual(), worlds.play(some_people(PEOPLE))
    assert [left.payload for left in one.left] == [left.payload for left in other.left]


@pytest.mark.parametrize("how", CHANGES)
def test_one_persons_preferences_change_their_masked_vector_and_nothing_else(
    worlds: Worlds, how: Callable[[Person], Person]
) -> None:
    one, other = worlds.usual(), worlds.play(changed(how))
    assert differing(one, other) == [("1.1", "masked", NODE)]
    assert onlooker(one) == onlooker(other)
    assert envelopes(one) == envelopes(other)


def test_the_masked_vector_keeps_its_length_and_changes_everywhere(worlds: Worlds) -> None:
    """Vector and signature differ; with the masks taken off it would be a few small numbers that do."""
    one, other = worlds.usual(), worlds.play(changed(opposite))
    mine, theirs = (masked_of(run) for run in (one, other))
    assert mine.signature != theirs.signature
    assert len(mine.vector) == len(theirs.vector)
    assert mine.vector != theirs.vector


def masked_of(run: Recorded) -> Masked:
    (left,) = (left for left in first_round(run) if (left.stage, left.node) == ("masked", NODE))
    return decode(left.payload, Masked)


@pytest.mark.parametrize("share", ["B", "kernel", "svd", "AB", "none", "ffa", "lore", "mixed", "common"])
def test_it_holds_for_every_share(worlds: Worlds, share: str) -> None:
    changes = {"adapter__share": share}
    one, other = worlds.usual(**changes), worlds.play(changed(fewer), **changes)
    assert differing(one, other) == [("1.1", "masked", NODE)]
    assert onlooker(one) == onlooker(other)


def test_the_comparison_sees_what_a_plain_round_gives_away(worlds: Worlds) -> None:
    """Without secure aggregation the one message that differs is the person's own vector, readable."""
    one = worlds.usual(privacy__secagg=False)
    other = worlds.play(changed(fewer), privacy__secagg=False)
    assert differing(one, other) == [("1.1", "masked", NODE)]
    weights = [weight_of(run) for run in (one, other)]
    assert weights == [4, 3]


def weight_of(run: Recorded) -> int:
    """The number of pairs that a plain vector says: the first of its 14 counters."""
    (left,) = (left for left in first_round(run) if (left.stage, left.node) == ("masked", NODE))
    vector = decode(left.payload, Plain).vector
    return int.from_bytes(vector[-4 * 14 :][:4], "little")


# --- several rounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [longer, fewer])
def test_over_several_rounds_stages_order_and_sizes_stay(
    worlds: Worlds, how: Callable[[Person], Person]
) -> None:
    """Three phases and partial participation: who is asked when does not depend on preferences either."""
    changes = {"federation__rounds": 4, "federation__warmup_rounds": 2, "federation__cohort": 4}
    one, other = worlds.usual(**changes), worlds.play(changed(how), **changes)
    assert onlooker(one) == onlooker(other)
    assert envelopes(one) == envelopes(other)
    assert {left.place for left in one.left} == {"status", "1.1", "2.1", "3.1", "4.1", "5.1"}


def test_in_later_rounds_what_does_not_hang_on_the_announced_factors_stays(worlds: Worlds) -> None:
    """Round keys, certificates and readiness: drawn or certified, never computed from anything learned."""
    changes = {"federation__rounds": 3}
    one, other = worlds.usual(**changes), worlds.play(changed(longer), **changes)
    assert len(keys_of(one)) == 4 * PEOPLE
    assert keys_of(one) == keys_of(other)
    contexts = [[read(left).context for left in run.left if left.stage == "keys"] for run in (one, other)]
    assert contexts[0][:PEOPLE] == contexts[1][:PEOPLE]
    assert not set(contexts[0][PEOPLE:]) & set(contexts[1][PEOPLE:])  # the sum differed, and is announced


def keys_of(run: Recorded) -> list[tuple[Any, ...]]:
    entries = [read(left) for left in run.left if left.stage == "keys"]
    return [(e.certificate, e.mask_key, e.channel_key) for e in entries]


# --- devices that vanish ----------------------------------------------------------------------------------


def vanish(node: int, stage: str) -> Callable[[], Fault]:
    """Nothing reaches `node` from `stage` of round 1 on, in that round."""

    def fault() -> Fault:
        seen: dict[tuple[int, str], int] = {}

        def silent(at: int, kind: str) -> bool:
            seen[at, kind] = seen.get((at, kind), 0) + 1
            stages = ("train.keys", "train.shares", "train.masked", "train.confirm", "train.unmask")
            first = kind in stages and seen[at, "train.keys"] <= 1
            return at == node and first and stages.index(kind) >= stages.index(f"train.{stage}")

        return silent

    return fault


@pytest.mark.parametrize("stage", ["shares", "masked", "confirm", "unmask"])
@pytest.mark.parametrize("who", [NODE, FIRST_NODE])
def test_it_holds_when_a_device_vanishes(worlds: Worlds, stage: str, who: int) -> None:
    """The person's own device, or another one."""
    fault = vanish(who, stage)
    one, other = worlds.play(some_people(PEOPLE), fault), worlds.play(changed(many), fault)
    sent = (who, stage) not in ((NODE, "shares"), (NODE, "masked"))
    assert differing(one, other) == ([("1.1", "masked", NODE)] if sent else [])
    assert onlooker(one) == onlooker(other)
    assert sum(left.node == who and left.place == "1.1" for left in one.left) == 1 + [
        "shares",
        "masked",
        "confirm",
        "unmask",
    ].index(stage)


# --- training that fails ----------------------------------------------------------------------------------

FAILURES: dict[str, Exception] = {
    "a bug": RuntimeError("Ünverkennbar-chosen was too much for me"),
    "memory": MemoryError(),
    "an index": IndexError("person 3 prefers tax"),
}


def with_training_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, pairs: int) -> None:
    """Training on exactly so many pairs raises `error`: its outcome hangs on one person's data."""
    train = LocalTrainer.train

    def failing(self: LocalTrainer, shared: Any, personal: Any, prepared: Any, seed: int) -> Any:
        if len(prepared) == pairs:
            raise error
        return train(self, shared, personal, prepared, seed)

    monkeypatch.setattr(LocalTrainer, "train", failing)


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_training_that_fails_looks_like_training_that_does_not(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Nothing differs but the masked vector, which holds zeros; only the owner learns why."""
    one = worlds.usual()
    with_training_that_fails(monkeypatch, error, pairs=20)
    other = worlds.play(changed(many))
    assert differing(one, other) == [("1.1", "masked", NODE)]
    assert onlooker(one) == onlooker(other)
    assert envelopes(one) == envelopes(other)
    (stage, code, reason) = other.fleet.agent(ONE).reasons()[0]
    assert (stage, code, reason) == ("masked", "NOTHING", f"the work failed: {type(error).__name__}")


def test_values_that_are_no_numbers_look_the_same(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on one person's data diverges."""
    vectors = LocalTrainer._vectors
    train = LocalTrainer.train
    one = worlds.usual()

    def diverging(self: LocalTrainer, shared: Any, personal: Any, prepared: Any, seed: int) -> Any:
        if len(prepared) != 20:
            return train(self, shared, personal, prepared, seed)
        monkeypatch.setattr(
            LocalTrainer,
            "_vectors",
            lambda self, leaves: vectors(self, {name: leaf * float("nan") for name, leaf in leaves.items()}),
        )
        try:
            return train(self, shared, personal, prepared, seed)
        finally:
            monkeypatch.setattr(LocalTrainer, "_vectors", vectors)

    monkeypatch.setattr(LocalTrainer, "train", diverging)
    other = worlds.play(changed(many))
    assert differing(one, other) == [("1.1", "masked", NODE)]
    assert onlooker(one) == onlooker(other)
    (stage, code, reason) = other.fleet.agent(ONE).reasons()[0]
    assert (stage, code) == ("masked", "NOTHING")
    assert "diverged" in reason


# --- a server that chooses ------------------------------------------------------------------------------

VICTIM = 1
STAGES = ("keys", "shares", "masked", "confirm", "unmask")
OTHERS: dict[str, Callable[[Choices], Choices]] = {
    "the other side": lambda c: Choices([turned(p) for p in c.train], [turned(p) for p in c.validation]),
    "none": lambda c: Choices([], []),
    "none to judge by": lambda c: Choices(c.train, []),
    "one": lambda c: Choices(c.train[:1], c.validation[:1]),
    "many": lambda c: Choices([*c.train] * 9, [*c.validation] * 5),
    "long texts": lambda c: Choices([replace(p, prompt=p.prompt * 300) for p in c.train], c.validation),
    "empty texts": lambda c: Choices([Preference("", "a", "b")], []),
    "no words": lambda c: Choices([Preference("\x00", "\x01", "\x02")], []),
}


def turned(pair: Preference) -> Preference:
    return Preference(pair.prompt, pair.rejected, pair.chosen)


ORACLE = {  # the penalty overflows if and only if the first gradient is not exactly 0
    "training__optimizer": "sgd",
    "training__lr_personal": 1.0,
    "training__pull": 1e6,
    "training__local_epochs": 60,
}

numbers = st.floats(0, 1)
hostile_plans = st.fixed_dictionaries(
    {},
    optional={
        "training__optimizer": st.sampled_from(["adamw", "sgd"]),
        "training__lr_shared": numbers,
        "training__lr_personal": numbers,
        "training__lr_head": numbers,
        "training__pull": st.sampled_from([0.0, 1.0, 1e6]),
        "training__weight_decay": st.sampled_from([0.0, 100.0]),
        "training__local_epochs": st.sampled_from([1, 60]),
        "training__batch_size": st.sampled_from([0, 1, 100_000]),
        "training__order": st.sampled_from(["joint", "personal-first", "alternating"]),
        "model__normalize": st.sampled_from([0.0, 1.0, 1000.0]),
        "model__max_tokens": st.sampled_from([2, 256]),
        "adapter__share": st.sampled_from(["A", "B", "AB", "kernel", "svd", "ffa", "none", "lore"]),
        "adapter__alpha": st.sampled_from([1e-3, 4096.0]),
        "adapter__share_base": st.just(["embeddings.word_embeddings"]),
        "clip": st.sampled_from([1e-6, 10.0, 1e6]),
        "dp_epsilon": st.sampled_from([8.0, 100.0]),
        "phase": st.sampled_from(["main", "close"]),
    },
)
hostile_factors = st.sampled_from(["usual", "zeros", "huge", "random", "one hot"])


def crafted(how: str, usual: bytes) -> bytes:
    factors = np.frombuffer(usual, "<f4").copy()
    if how == "zeros":
        factors[:] = 0
    elif how == "huge":
        factors[:] = 1000
    elif how == "random":
        factors[:] = np.random.default_rng(0).normal(0, 100, factors.size)
    elif how == "one hot" and factors.size:
        factors[:] = 0
        factors[0] = 1000
    return factors.tobytes()


def seen(scene: FleetScene, plan: bytes, how: str) -> list[tuple[str, int, bytes]]:
    """(stage, device, reply) of one attempt, in order; the victim's masked vector by its length alone."""
    announce = scene.announce(plan=plan)
    scene.play_to("unmask", announce=replace(announce, factors=crafted(how, announce.factors)))
    scene.finish("unmask")
    scene.greet(VICTIM, [(1, 1)])
    hidden = [("masked", VICTIM)]
    return [(stage, i, bytes(len(reply)) if (stage, i) in hidden else reply) for stage, i, reply in scene.log]


def both_worlds(base: Path, directory: Path, other: str, changes: dict[str, Any], how: str) -> None:
    """The same server, and a victim with its usual choices or with others: it must not be able to tell."""
    shared = changes.get("adapter__share", "A") not in ("none", "lore")
    if not shared:
        changes = {key: value for key, value in changes.items() if key != "adapter__share_base"}

    def choices(i: int) -> Choices:
        return OTHERS[other](some_choices(i)) if i == VICTIM else some_choices(i)

    if "dp_epsilon" in changes:
        changes = changes | {"dp_participations": 1, "dp_honest": 3}  # all but one of the four
    one, two = FleetScene(base, directory / "one"), FleetScene(base, directory / "two", choices=choices)
    plan = one.plan(**changes)
    first, second = seen(one, plan, how), seen(two, plan, how)
    assert [stage for stage, i, _ in first if i == VICTIM] == [*STAGES, "status"]
    assert first == second


@pytest.mark.parametrize("other", OTHERS)
def test_an_overflow_that_hangs_on_a_choice_tells_nothing(
    tiny_model: Callable[[str], Path], tmp_path: Path, other: str
) -> None:
    both_worlds(tiny_model("bert"), tmp_path, other, ORACLE, "usual")


@pytest.mark.parametrize("changes", [{}, ORACLE, {"phase": "close"}], ids=str)
@pytest.mark.parametrize("other", ["none", "one"])
def test_with_noise_choices_change_the_masked_vector_and_nothing_else(
    tiny_model: Callable[[str], Path], tmp_path: Path, other: str, changes: dict[str, Any]
) -> None:
    """What is charged to the ledger does not depend on them either: it decides whether a vector leaves."""
    both_worlds(tiny_model("bert"), tmp_path, other, changes | {"dp_epsilon": 8.0}, "usual")
    spent = [Vault(tmp_path / world / "agents" / str(VICTIM)).privacy.spent() for world in ("one", "two")]
    assert spent[0] == spent[1]
    assert spent[0].noised == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(other=st.sampled_from(sorted(OTHERS)), changes=hostile_plans, how=hostile_factors)
def test_whatever_a_server_chooses_choices_change_the_masked_vector_and_nothing_else(
    tiny_model: Callable[[str], Path], other: str, changes: dict[str, Any], how: str
) -> None:
    """Every plan and all factors within the bounds, with an owner who allows all of them."""
    with tempfile.TemporaryDirectory() as directory:
        both_worlds(tiny_model("bert"), Path(directory), other, changes, how)


# --- readiness -------------------------------------------------------------------------------------------


def test_readiness_says_nothing_about_choices(worlds: Worlds) -> None:
    """Whether there are any is tested above ("none")."""
    runs = [worlds.play(changed(how)) for how in (fewer, many)]
    for run in runs:
        statuses = [read(left) for left in run.left if left.stage == "status"]
        assert {status.ready for status in statuses} == {True}
    status = [[left.payload for left in run.left if left.stage == "status"] for run in runs]
    assert status[0] == status[1]
