"""Vectors are added as they arrive: the same sum and the same words about everybody as when all are kept.

The slow reference is an exchange that waits for everybody and hands over all replies at the end, in the order
asked: what every round did before vectors were streamed.
"""

from __future__ import annotations

import random
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_grid import FakeClock, FakeGrid, Late
from support.scene import Scene, plain_sum

from penchant.client.agent.flower_app import build_app
from penchant.client.secagg import SecAggPolicy
from penchant.common.crypto import keys
from penchant.common.secagg.stages import MASKED, STAGES
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Abort, AbortCode, Kind, Masked, Plain
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.exchange import AT_ONCE, LONGEST_SLEEP, Exchange
from penchant.server.secagg.aggregation import Aggregate, Take
from penchant.server.secagg.group import GroupLog
from penchant.server.secagg.plain import PlainAggregation
from penchant.server.secagg.vector_sum import VectorSum

UNMASKED = SecAggPolicy(1, 0, allow_unmasked=True)
Lies = dict[int, Callable[[bytes], bytes]]  # node -> what it sends for its masked vector

HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "too short": lambda reply: encode(Masked(bytes(64), decode(reply, Masked).vector[:-4])),
    "too long": lambda reply: encode(Masked(bytes(64), decode(reply, Masked).vector + bytes(4))),
    "unsigned": lambda reply: encode(Masked(bytes(64), decode(reply, Masked).vector)),
    "unmasked": lambda reply: encode(Plain(decode(reply, Masked).vector)),
    "junk": lambda reply: b"PEN" + bytes(40),
    "empty": lambda reply: b"",
    "gives up": lambda reply: encode(Abort(AbortCode.UNAVAILABLE)),
}


class Counted(bytes):
    """A reply that counts how many of its kind are there now, and how many ever were at once."""

    now = most = 0

    def __new__(cls, data: bytes) -> Counted:
        cls.now += 1
        cls.most = max(cls.most, cls.now)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).now -= 1


def played(
    scene: Scene,
    silent: Mapping[str, list[int]],
    lies: Lies,
    *,
    keep: bool = False,
    order: random.Random | None = None,
    server: Any = None,
) -> Aggregate:
    """One attempt. keep: the server waits for all vectors, in the order asked. order: who is quicker."""
    gone: set[int] = set()

    def replies(stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        asked = list(requests.items())
        if order:
            order.shuffle(asked)
        for node, request in asked:
            if node not in gone:
                reply = scene.answer(stage, node, request)
                yield node, lies[node](reply) if stage == MASKED and node in lies else reply

    def exchange(stage: str, requests: Mapping[int, bytes], take: Take | None = None, /) -> dict[int, bytes]:
        gone.update(silent.get(stage, ()))
        if take is None or keep:
            found = dict(replies(stage, requests))
            kept = {node: found[node] for node in requests if node in found}
            if take is None:
                return kept
            for node, reply in kept.items():
                take(node, reply)
            return {}
        for node, reply in replies(stage, requests):
            take(node, reply)
        return {}

    protocol = server or scene.server
    aggregate: Aggregate = protocol.run(scene.announce, range(scene.n), exchange, scene.journal)
    return aggregate


def same(one: Aggregate, other: Aggregate) -> None:
    """Nothing differs, the order of what is said about devices included."""
    assert one.total.dtype == other.total.dtype == np.int64
    assert one.total.tobytes() == other.total.tobytes()
    assert list(one.sums) == list(other.sums)
    for number, group in one.sums.items():
        assert group.total.tobytes() == other.sums[number].total.tobytes()
        assert group.survivors == other.sums[number].survivors
    for name in ("survivors", "cohort", "dropped", "groups", "failed"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("aborts", "set_aside"):
        assert list(getattr(one, name).items()) == list(getattr(other, name).items()), name


# --- the same sum, and the same words about everybody -------------------------------------------------


@st.composite
def attempts(draw: st.DrawFn) -> tuple[int, int, dict[str, list[int]], dict[int, str], int]:
    """A cohort, its group bound, who falls silent in which stage, who sends what, and who is quicker."""
    group = draw(st.integers(6, 12))
    n = draw(st.integers(6, 2 * group))
    lost = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n // 5))
    silent: dict[str, list[int]] = {}
    hostile: dict[int, str] = {}
    for node in lost:
        if draw(st.booleans()):
            silent.setdefault(draw(st.sampled_from(STAGES[2:])), []).append(node)
        else:
            hostile[node] = draw(st.sampled_from(sorted(HOSTILE)))
    return n, group, silent, hostile, draw(st.integers(0, 2**32))


@pytest.mark.parametrize("ring", [32, 64])
@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(attempt=attempts())
def test_streamed_is_kept(
    ring: int, attempt: tuple[int, int, dict[str, list[int]], dict[int, str], int]
) -> None:
    n, group, silent, hostile, seed = attempt
    lies = {node: HOSTILE[how] for node, how in hostile.items()}
    scenes = [Scene(n, ring=ring, words=5, group=group) for _ in range(2)]
    outcomes: list[Aggregate | str] = []
    for scene, keep, order in zip(scenes, (True, False), (None, random.Random(seed)), strict=True):
        try:
            outcomes.append(played(scene, silent, lies, keep=keep, order=order))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    kept, streamed = outcomes
    if isinstance(kept, str) or isinstance(streamed, str):
        assert kept == streamed
        return
    same(kept, streamed)
    assert (streamed.total == plain_sum(scenes[1].vectors[node] for node in streamed.survivors)).all()
    asked = [[r for r in scene.journal.records if r.kind != "reply"] for scene in scenes]
    assert asked[0] == asked[1]  # so is what a crash would find
    completed = [scene.server.complete(scene.journal.records) for scene in scenes]
    same(*completed)


@pytest.mark.parametrize("how", sorted(HOSTILE))
@pytest.mark.parametrize("last", [False, True])
def test_what_is_no_vector_costs_its_sender_alone(how: str, last: bool) -> None:
    """Before it, after it: nothing of a refused reply is in the sum."""
    node = 6 if last else 0
    scene = Scene(7, words=5)
    aggregate = played(scene, {}, {node: HOSTILE[how]})
    there = [other for other in range(7) if other != node]
    assert aggregate.survivors == tuple(there)
    assert aggregate.dropped == {MASKED: (node,)}
    assert (aggregate.total == plain_sum(scene.vectors[other] for other in there)).all()
    assert aggregate.aborts == ({node: AbortCode.UNAVAILABLE} if how == "gives up" else {})
    assert (node in aggregate.set_aside) == (how != "gives up")


def test_without_masks_streamed_is_kept_too() -> None:
    def scene() -> Scene:
        return Scene(9, policy=UNMASKED, group=4, changes={"kind": Kind.PLAIN})

    lies: Lies = {4: lambda reply: encode(Plain(b"short")), 5: HOSTILE["gives up"], 6: lambda reply: b""}
    kept, streamed = (
        played(one, {MASKED: [1]}, lies, keep=keep, order=order, server=PlainAggregation())
        for one, keep, order in ((scene(), True, None), (scene(), False, random.Random(3)))
    )
    same(kept, streamed)
    assert streamed.survivors == (0, 2, 3, 7, 8)
    assert (streamed.total == plain_sum(scene().vectors[node] for node in streamed.survivors)).all()


def test_a_group_of_which_no_plain_vector_came_has_no_sum() -> None:
    scene = Scene(8, policy=UNMASKED, group=4, changes={"kind": Kind.PLAIN})
    aggregate = played(scene, {MASKED: [0, 1, 2, 3]}, {}, server=PlainAggregation())
    assert list(aggregate.sums) == [1]
    assert aggregate.groups == (4, 4)


# --- one sum --------------------------------------------------------------------------------------


def test_the_first_of_two_replies_counts_and_a_stranger_is_not_heard() -> None:
    arriving = VectorSum([10, 11, 12], np.zeros(2, "<u4"), lambda place, reply: np.frombuffer(reply, "<u4"))
    one, big = np.array([1, 2], "<u4").tobytes(), np.array([2**32 - 1, 5], "<u4").tobytes()
    for node, reply in ((11, one), (11, big), (99, big), (10, big)):
        arriving.take(node, reply)
    assert arriving.total.tolist() == [0, 7]  # modulo the ring
    log = GroupLog([10, 11, 12])
    assert arriving.survivors(MASKED, log) == [0, 1]
    assert (log.dropped, log.set_aside, log.aborts) == ({MASKED: [12]}, {}, {})


def test_a_refused_first_reply_is_not_mended_by_a_second() -> None:
    answers: dict[bytes, Any] = {b"bad": "a vector of 3 bytes", b"good": np.ones(2, "<u4")}
    arriving = VectorSum([10], np.zeros(2, "<u4"), lambda place, reply: answers[reply])
    arriving.take(10, b"bad")
    arriving.take(10, b"good")
    log = GroupLog([10])
    assert arriving.survivors(MASKED, log) == []
    assert log.set_aside == {10: "masked: a vector of 3 bytes"}
    assert arriving.total.tolist() == [0, 0]


# --- memory: counted, not timed -------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 24])
def test_one_masked_vector_is_there_at_a_time(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many devices there are. The scene keeps what devices sent; here they are not remembered."""
    monkeypatch.setattr(Counted, "most", 0)
    scene = Scene(n, words=4_000, group=8)
    lies: Lies = dict.fromkeys(range(n), Counted)
    aggregate = played(scene, {}, lies)
    assert (aggregate.total == plain_sum(scene.vectors)).all()
    assert len(aggregate.sums) == n // 8
    assert (Counted.now, Counted.most) == (0, 2)  # the one that is taken, and the next while it is made


def test_kept_vectors_would_all_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count counts: the slow reference holds them all."""
    monkeypatch.setattr(Counted, "most", 0)
    played(Scene(24, group=8), {}, dict.fromkeys(range(24), Counted), keep=True)
    assert Counted.most == 24


def test_what_is_allocated_grows_with_the_groups_and_not_with_the_devices() -> None:
    words = 50_000

    def most(n: int, group: int) -> float:
        """Vectors' worth of memory while they arrive, at most."""
        groups = [list(range(at, at + group)) for at in range(0, n, group)]
        reply = bytes(4 * words)
        tracemalloc.start()
        sums = [
            VectorSum(nodes, np.zeros(words, "<u4"), lambda place, reply: np.frombuffer(reply, "<u4"))
            for nodes in groups
        ]
        for nodes, arriving in zip(groups, sums, strict=True):
            for node in nodes:
                arriving.take(node, bytes(reply))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / (4 * words)

    assert most(64, 64) < 2
    assert most(640, 64) == pytest.approx(10 * most(64, 64), rel=0.2)
    assert most(640, 640) < 2.5


# --- the way from the grid ------------------------------------------------------------------------


def echo(node: int, stage: str, payload: bytes) -> bytes:
    return b"%d" % node


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock.put_in(monkeypatch)


def test_an_exchange_hands_each_reply_on_and_keeps_none(clock: FakeClock) -> None:
    taken: list[tuple[int, bytes]] = []
    wire = Exchange(FakeGrid(echo, clock=clock), 10.0, "4.1")
    assert wire(MASKED, dict.fromkeys(range(5), b"x"), lambda *reply: taken.append(reply)) == {}
    assert sorted(taken) == [(node, b"%d" % node) for node in range(5)]
    assert wire.bytes_up == 5


def test_an_exchange_takes_replies_from_the_grid_one_by_one() -> None:
    """Over the grid of simulations, all of whose devices have answered by the first look."""
    there: weakref.WeakSet[Message] = weakref.WeakSet()
    alive: list[int] = []

    class Watched(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            ids = list(message_ids)
            while not all(one in self._answered for one in ids):
                time.sleep(0.001)
            for message in super().pull_messages(ids):
                there.add(message)
                alive.append(len(there))
                yield message
                del message

    app = build_app(lambda context: lambda stage, payload: payload)
    grid = Watched(app, 20, workers=2)
    taken: list[int] = []
    payloads = dict.fromkeys(grid.get_node_ids(), b"x")
    Exchange(grid, 10.0, "4.1")(MASKED, payloads, lambda node, payload: taken.append(node))
    grid.close()
    assert len(taken) == len(alive) == 20
    assert max(alive) <= 2  # the last one, until the next is there


def test_a_reply_is_noted_before_it_is_handed_on(clock: FakeClock) -> None:
    """So nothing is in a sum that a journal which needs it does not have."""
    told: list[str] = []
    wire = Exchange(
        FakeGrid(echo, clock=clock), 10.0, "4.1", lambda stage, node, payload: told.append(f"noted {node}")
    )
    wire(MASKED, {7: b"x"}, lambda node, payload: told.append(f"taken {node}"))
    assert told == ["noted 7", "taken 7"]


def test_the_second_of_two_replies_is_not_handed_on(clock: FakeClock) -> None:
    def all_as_one(reply: Message) -> Message:
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    taken: list[tuple[int, bytes]] = []
    wire = Exchange(FakeGrid(echo, clock=clock, twist=all_as_one), 10.0, "4.1")
    wire(MASKED, dict.fromkeys((1, 2, 3), b"x"), lambda *reply: taken.append(reply))
    assert taken == [(1, b"1")]
    assert wire.bytes_up == 1


def test_a_late_vector_is_handed_on_to_nobody(clock: FakeClock) -> None:
    taken: list[int] = []

    def slow(node: int, stage: str, payload: bytes) -> Any:
        return Late(15, b"late") if (node, stage) == (2, MASKED) else b"here"

    wire = Exchange(FakeGrid(slow, clock=clock), 10.0, "4.1")
    wire(MASKED, {1: b"x", 2: b"x"}, lambda node, payload: taken.append(node))
    clock.now += 100
    assert wire("confirm", {1: b"x", 2: b"x"}) == {1: b"here", 2: b"here"}
    assert taken == [1]


def test_looks_become_frequent_where_many_bytes_arrive(clock: FakeClock) -> None:
    """A reply of 16 MB every quarter of a second: no more than AT_ONCE, and one reply, gathers in between."""
    size, count, between = 1 << 24, 200, 0.25
    gathered: list[int] = []
    payload = bytes(size)

    class Gathering(FakeGrid):
        def pull_messages(self, message_ids: Any) -> list[Message]:
            found = super().pull_messages(message_ids)
            gathered.append(len(found))
            return found

    def trickle(node: int, stage: str, request: bytes) -> Late:
        return Late(node * between, payload)

    Exchange(Gathering(trickle, clock=clock), 600.0, "4.1")(
        MASKED, dict.fromkeys(range(count), b"x"), lambda node, reply: None
    )
    assert sum(gathered) == count
    assert max(gathered) <= AT_ONCE // size + 2 < LONGEST_SLEEP / between


def test_signatures_are_those_of_the_vectors_that_came() -> None:
    """What is verified while vectors arrive is what was verified after all had: once for each."""
    counts = []
    for keep in (True, False):
        scene, verified = Scene(6), 0

        def counting(key: bytes, text: bytes, signature: bytes) -> bool:
            nonlocal verified
            verified += 1
            return keys.verify(key, text, signature)

        server = type(scene.server)(scene.members, counting)
        played(scene, {}, {}, keep=keep, server=server)
        counts.append(verified)
    assert counts[0] == counts[1] == 3 * 6  # entry, vector, confirmation
