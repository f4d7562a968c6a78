"""One exchange: whoever does not answer properly and in time is absent, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from support.fake_grid import FakeClock, FakeGrid, Late

from penchant.common.wire.flower import message_type, pack
from penchant.server.exchange import LONGEST_SLEEP, Exchange

ASK = {1: b"one", 2: b"two!", 3: b"three"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock.put_in(monkeypatch)


def echo(node: int, stage: str, payload: bytes) -> bytes:
    return b"re: " + payload


def exchange(grid: FakeGrid, deadline: float = 10.0, **more: Any) -> Exchange:
    return Exchange(grid, deadline, "4.1", **more)


# --- what goes out, what comes back ---------------------------------------------------------------


def test_everybody_answers(clock: FakeClock) -> None:
    grid = FakeGrid(echo, clock=clock)
    replies = exchange(grid)("keys", ASK)
    assert replies == {1: b"re: one", 2: b"re: two!", 3: b"re: three"}
    assert grid.sent == [(node, "keys", payload) for node, payload in ASK.items()]
    assert (grid.looks, clock.slept) == (1, [])


def test_messages_say_what_they_are_and_last_longer_than_the_wait(clock: FakeClock) -> None:
    grid = FakeGrid(echo, clock=clock)
    exchange(grid, deadline=120)("masked", {7: b"x"})
    (message,) = grid.messages
    assert message.metadata.message_type == message_type("masked") == "train.masked"
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (7, "4.1")
    assert message.metadata.ttl > 120


def test_payload_bytes_are_counted_in_both_directions_over_all_exchanges(clock: FakeClock) -> None:
    def shy(node: int, stage: str, payload: bytes) -> bytes | None:
        return None if node == 2 else b"1234567890"

    wire = exchange(FakeGrid(shy, clock=clock), deadline=1)
    wire("keys", ASK)
    assert (wire.bytes_down, wire.bytes_up) == (3 + 4 + 5, 20)
    wire("shares", {3: b"12"})
    assert (wire.bytes_down, wire.bytes_up) == (14, 30)


def test_nobody_asked_is_answered_at_once(clock: FakeClock) -> None:
    assert exchange(FakeGrid(echo, clock=clock))("keys", {}) == {}
    assert clock.slept == []


# --- who is absent --------------------------------------------------------------------------------

BAD: dict[str, Any] = {
    "silent": None,
    "late": Late(10.5, b"too late"),
    "failed": Error(2, "ZeroDivisionError: somebody's text"),
    "empty content": RecordDict(),
    "another record": RecordDict({"other": ConfigRecord({"payload": b"x"})}),
    "another field": RecordDict({"penchant": ConfigRecord({"load": b"x"})}),
    "a second field": RecordDict({"penchant": ConfigRecord({"payload": b"x", "more": b"y"})}),
    "a second record": RecordDict({**pack(b"x"), "metrics": MetricRecord({"loss": 0.5})}),
    "text for bytes": RecordDict({"penchant": ConfigRecord({"payload": "text"})}),
    "numbers for bytes": RecordDict({"penchant": ConfigRecord({"payload": [1, 2]})}),
}


HOLDS = "not a penchant message: it must hold one payload and nothing else"
REASONS: dict[str, dict[str, int]] = {
    "silent": {},
    "late": {},
    "failed": {"keys: error 2 of Flower": 1},
    "text for bytes": {"keys: not a penchant message: its payload is not bytes": 1},
    "numbers for bytes": {"keys: not a penchant message: its payload is not bytes": 1},
}
"""What is counted where that is not `HOLDS`."""


@pytest.mark.parametrize("how", list(BAD))
def test_whoever_does_not_answer_properly_is_absent(clock: FakeClock, how: str) -> None:
    heard: list[int] = []

    def answer(node: int, stage: str, payload: bytes) -> Any:
        return BAD[how] if node == 2 else echo(node, stage, payload)

    wire = exchange(FakeGrid(answer, clock=clock), arrived=lambda stage, node, payload: heard.append(node))
    assert wire("keys", ASK) == {1: b"re: one", 3: b"re: three"}
    assert heard == [1, 3]
    assert wire.bytes_up == len("re: one") + len("re: three")
    assert wire.errors == REASONS.get(how, {"keys: " + HOLDS: 1})


def test_a_late_reply_does_not_turn_up_in_the_next_exchange(clock: FakeClock) -> None:
    def slow(node: int, stage: str, payload: bytes) -> Any:
        return Late(15, b"keys") if (node, stage) == (2, "keys") else echo(node, stage, payload)

    wire = exchange(FakeGrid(slow, clock=clock))
    assert set(wire("keys", ASK)) == {1, 3}
    clock.now += 100
    assert wire("shares", ASK) == {node: b"re: " + payload for node, payload in ASK.items()}


def test_somebody_who_was_not_asked_is_not_heard(clock: FakeClock) -> None:
    def as_nine(reply: Message) -> Message:
        if reply.metadata.src_node_id == 2:
            reply.metadata.__dict__["_src_node_id"] = 9
        return reply

    grid = FakeGrid(echo, clock=clock, twist=as_nine)
    assert set(exchange(grid)("keys", ASK)) == {1, 3}


def test_the_first_of_two_replies_counts(clock: FakeClock) -> None:
    def all_as_one(reply: Message) -> Message:
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    wire = exchange(FakeGrid(echo, clock=clock, twist=all_as_one))
    assert wire("keys", ASK) == {1: b"re: one"}
    assert wire.bytes_up == len("re: one")


# --- waiting --------------------------------------------------------------------------------------


def test_each_reply_is_heard_of_on_its_arrival(clock: FakeClock) -> None:
    """What `arrived` keeps is kept while the others are still awaited."""
    heard: list[tuple[str, int, bytes, float]] = []

    def slow(node: int, stage: str, payload: bytes) -> Late:
        return Late({1: 4.0, 2: 0.0, 3: 2.0}[node], payload)

    began = clock.now
    grid = FakeGrid(slow, clock=clock)
    wire = exchange(
        grid, arrived=lambda stage, node, payload: heard.append((stage, node, payload, clock.now - began))
    )
    replies = wire("unmask", ASK)
    assert list(replies) == [1, 2, 3]  # as asked: what follows does not hang on who was quicker
    assert [(stage, node, payload) for stage, node, payload, _ in heard] == [
        ("unmask", 2, b"two!"),
        ("unmask", 3, b"three"),
        ("unmask", 1, b"one"),
    ]
    first, second, third = (when for *_, when in heard)
    assert first < 0.01
    assert 2.0 <= second < 2.2
    assert 4.0 <= third < 4.4


def test_if_the_server_dies_while_it_waits_what_arrived_has_been_heard_of(clock: FakeClock) -> None:
    class Killed(BaseException):
        pass

    def slow(node: int, stage: str, payload: bytes) -> Late:
        return Late(float(node), payload)

    heard: list[int] = []

    def dies_at_the_third(stage: str, node: int, payload: bytes) -> None:
        if node == 3:
            raise Killed
        heard.append(node)

    with pytest.raises(Killed):
        exchange(FakeGrid(slow, clock=clock), arrived=dies_at_the_third)("unmask", ASK)
    assert heard == [1, 2]


@pytest.mark.parametrize(
    ("at", "there", "ends"),
    [
        ({1: 40, 2: 80, 3: 120}, {1, 2, 3}, 120),
        ({1: 40, 2: 95, 3: 100}, {1}, 90),
        ({1: 60, 2: 60, 3: 60}, set(), 50),
    ],
)
def test_it_ends_when_no_answer_has_come_for_as_long_as_silence_says(
    clock: FakeClock, at: dict[int, float], there: set[int], ends: float
) -> None:
    """A deadline that counts from the last answer is one for each device, however many there are."""

    def in_turn(node: int, stage: str, payload: bytes) -> Late:
        return Late(at[node], payload)

    began = clock.now
    wire = exchange(FakeGrid(in_turn, clock=clock), deadline=1000.0, silence=50.0)
    assert set(wire("keys", ASK)) == there
    assert ends - 0.1 <= clock.now - began <= ends + LONGEST_SLEEP


def test_an_error_is_an_answer_as_well(clock: FakeClock) -> None:
    """It says that the next one's turn has come."""

    def in_turn(node: int, stage: str, payload: bytes) -> Late:
        return Late(40.0 * node, Error(2, "a device that failed") if node < 3 else payload)

    wire = exchange(FakeGrid(in_turn, clock=clock), deadline=1000.0, silence=50.0)
    assert wire("keys", ASK) == {3: b"three"}


def test_devices_have_their_training_beside_the_silence(clock: FakeClock) -> None:
    def slow(node: int, stage: str, payload: bytes) -> Late:
        return Late(75.0, payload)

    wire = exchange(FakeGrid(slow, clock=clock), deadline=1000.0, silence=50.0, training=30.0)
    assert set(wire("masked", ASK)) == {1, 2, 3}
    assert wire("confirm", ASK) == {}


@pytest.mark.parametrize("deadline", [0.1, 10.0, 600.0])
def test_the_deadline_is_kept(clock: FakeClock, deadline: float) -> None:
    def only_one(node: int, stage: str, payload: bytes) -> bytes | None:
        return payload if node == 1 else None

    began = clock.now
    assert exchange(FakeGrid(only_one, clock=clock), deadline=deadline)("keys", ASK) == {1: b"one"}
    assert deadline <= clock.now - began < deadline + 0.01


def test_a_reply_at_the_last_moment_counts(clock: FakeClock) -> None:
    def just(node: int, stage: str, payload: bytes) -> Late:
        return Late(10.0, payload)

    assert exchange(FakeGrid(just, clock=clock), deadline=10.0)("keys", {1: b"x"}) == {1: b"x"}


def test_looks_become_rare_but_never_rarer_than_flowers_own(clock: FakeClock) -> None:
    grid = FakeGrid(lambda node, stage, payload: None, clock=clock)
    exchange(grid, deadline=3600.0)("keys", ASK)
    assert max(clock.slept) == LONGEST_SLEEP == 3.0
    assert grid.looks < 3600 / LONGEST_SLEEP + 300
