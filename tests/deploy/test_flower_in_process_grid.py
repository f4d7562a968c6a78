"""The in-process grid: Flower's own apps, bytes in between, and a failing client takes nobody along."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from penchant.client.agent.flower_app import Answer, build_app
from penchant.common.config import RunConfig
from penchant.common.errors import DeviceError, PolicyRefusal
from penchant.common.membership.identity import list_digest
from penchant.common.model.factors import AdaptedModule
from penchant.common.model.signature import ModelSignature
from penchant.common.secagg.stages import STAGES
from penchant.common.secagg.transcript import context_digest
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.flower import message_type, pack, stage_of, unpack
from penchant.common.wire.messages import Abort, AbortCode, Announce, Plain, Ready, Status
from penchant.deploy.flower import in_process_grid
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.exchange import Exchange
from penchant.server.flower_app import build_app as build_server_app
from penchant.server.journal import Journal
from penchant.server.run import ServerRun
from penchant.server.secagg.plain import PlainAggregation

SECRET_TEXT = "abortion, she said"

Make = Callable[..., InProcessGrid]


@pytest.fixture
def made() -> Iterator[Make]:
    """made(app, clients, …): a grid that is closed at the end."""
    grids: list[InProcessGrid] = []

    def make(app: ClientApp, clients: int = 3, *, workers: int = 2, **more: Any) -> InProcessGrid:
        grids.append(InProcessGrid(app, clients, workers=workers, **more))
        return grids[-1]

    yield make
    for grid in grids:
        grid.close()


def answering(answer: Callable[[int, str, bytes], bytes]) -> ClientApp:
    """The real relay, before agents that are one function of (partition, stage, payload)."""

    def agent_of(context: Context) -> Answer:
        index = int(context.node_config["partition-id"])
        return lambda stage, payload: answer(index, stage, payload)

    return build_app(agent_of)


def ask(node: int, payload: bytes = b"hello", stage: str = "keys") -> Message:
    return Message(pack(payload), dst_node_id=node, message_type=message_type(stage), group_id="1.1")


def sent(grid: InProcessGrid, *messages: Message, timeout: float = 30.0) -> dict[int, Message]:
    """Replies by node."""
    return {m.metadata.src_node_id: m for m in grid.send_and_receive(messages, timeout=timeout)}


def test_of_messages_that_wait_none_is_in_memory_as_bytes(made: Make, monkeypatch: Any) -> None:
    begun, go = threading.Semaphore(0), threading.Event()
    serialised: list[int] = []
    whole = in_process_grid.message_bytes

    def counted(message: Message) -> bytes:
        serialised.append(message.metadata.dst_node_id)
        return whole(message)

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        begun.release()
        go.wait(60)
        return payload

    monkeypatch.setattr(in_process_grid, "message_bytes", counted)
    grid = made(answering(answer), 5, workers=2)
    ids = list(grid.push_messages([ask(node) for node in grid.get_node_ids()]))
    begun.acquire()
    begun.acquire()
    assert sorted(serialised) == [1000, 1001]
    go.set()
    replies: list[Message] = []
    while len(replies) < 5:
        replies += grid.pull_messages(ids)
        time.sleep(0.01)
    assert {unpack(reply.content) for reply in replies} == {b"hello"}


# --- Flower's apps --------------------------------------------------------------------------------


def test_every_client_answers_from_its_own_context(made: Make) -> None:
    grid = made(answering(lambda index, stage, payload: f"{index} {stage} ".encode() + payload))
    nodes = list(grid.get_node_ids())
    assert nodes == [1000, 1001, 1002]
    replies = sent(grid, *(ask(node) for node in nodes))
    assert {node: unpack(reply.content) for node, reply in replies.items()} == {
        1000: b"0 keys hello",
        1001: b"1 keys hello",
        1002: b"2 keys hello",
    }
    for reply in replies.values():
        assert (reply.metadata.message_type, reply.metadata.group_id) == ("train.keys", "1.1")


def test_a_client_app_answers_here_as_it_does_anywhere(made: Make) -> None:
    """The very object that the grid serves, called as a SuperNode would."""
    app = answering(lambda index, stage, payload: stage.encode() + payload)
    grid = made(app)
    for stage in STAGES:
        direct = app(
            ask(1001, b"!", stage), Context(1, 1001, {"partition-id": 1}, RecordDict(), run_config={})
        )
        (through,) = sent(grid, ask(1001, b"!", stage)).values()
        assert unpack(through.content) == unpack(direct.content) == stage.encode() + b"!"


def test_what_a_client_keeps_in_its_context_is_there_next_time(made: Make) -> None:
    app = ClientApp()

    @app.train("keys")
    def count(message: Message, context: Context) -> Message:
        times = int(context.state.config_records.setdefault("n", ConfigRecord({"n": 0}))["n"]) + 1
        context.state.config_records["n"]["n"] = times
        return Message(pack(b"%d" % times), reply_to=message)

    grid = made(app)
    assert [unpack(sent(grid, ask(1000))[1000].content) for _ in range(3)] == [b"1", b"2", b"3"]
    assert unpack(sent(grid, ask(1001))[1001].content) == b"1"


@pytest.mark.parametrize("clients", [3, 1000])
def test_a_server_app_federates_over_it(made: Make, tmp_path: Path, clients: int) -> None:
    """Devices that take part and change nothing, in a round and the closing one."""
    config = RunConfig().changed(
        {"federation.rounds": 1, "federation.cohort": clients, "privacy.secagg": False}
    )
    model_signature = ModelSignature((AdaptedModule("block.dense", 2, 2),), 2, bytes(32))
    lengths: dict[int, int] = {}  # client -> bytes of the vector that it was asked for

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        if stage == "status":
            return encode(Status(True, index + 1, list_digest(b"")))
        if stage == "masked":
            return encode(Plain(bytes(lengths[index])))
        announce = decode(payload, Announce)
        lengths[index] = announce.words * announce.ring // 8
        return encode(Ready(context_digest(announce)))

    journal = Journal(tmp_path)
    run = ServerRun(config, bytes(16), model_signature, clients, PlainAggregation(), b"", journal)
    grid = made(answering(answer), clients)
    context = Context(grid.run.run_id, 1, {}, RecordDict(), run_config={})
    build_server_app(lambda _: run)(grid, context)
    assert [(log.phase, log.cohort, log.survivors) for log in journal.logs()] == [
        ("main", clients, clients),
        ("close", clients, clients),
    ]


# --- bytes in between -----------------------------------------------------------------------------


def test_a_reply_that_its_client_changes_later_stays_as_it_was_sent(made: Make) -> None:
    kept: list[Message] = []
    app = ClientApp()

    @app.train("keys")
    def answer(message: Message, context: Context) -> Message:
        kept.append(Message(pack(b"as sent"), reply_to=message))
        return kept[-1]

    grid = made(app)
    identifiers = list(grid.push_messages([ask(1000)]))
    replies = pulled(grid, identifiers)
    kept[0].content.config_records["penchant"]["payload"] = b"changed"
    assert unpack(replies[0].content) == b"as sent"
    assert replies[0] is not kept[0]


def test_a_request_that_a_client_changes_stays_what_the_server_sent(made: Make) -> None:
    app = ClientApp()

    @app.train("keys")
    def answer(message: Message, context: Context) -> Message:
        message.content.config_records["penchant"]["payload"] = b"changed"
        message.metadata.__dict__["_group_id"] = "9.9"
        return Message(pack(b"done"), reply_to=message)

    request = ask(1000)
    sent(made(app), request)
    assert unpack(request.content) == b"hello"
    assert request.metadata.group_id == "1.1"


def test_a_request_that_the_server_changes_after_sending_arrives_as_it_was(made: Make) -> None:
    gate = threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        gate.wait(60)
        return payload

    grid = made(answering(answer))
    request = ask(1000)
    identifiers = list(grid.push_messages([request]))
    request.content.config_records["penchant"]["payload"] = b"changed"
    gate.set()
    assert unpack(pulled(grid, identifiers)[0].content) == b"hello"


def pulled(grid: InProcessGrid, identifiers: list[str]) -> list[Message]:
    """All replies, pulled as they come."""
    replies: list[Message] = []
    while len(replies) < len(identifiers):
        replies += grid.pull_messages(identifiers)
        time.sleep(0.001)
    return replies


def test_a_reply_is_pulled_once_and_unknown_ids_are_nothing(made: Make) -> None:
    grid = made(answering(lambda index, stage, payload: payload))
    identifiers = list(grid.push_messages([ask(1000), ask(1001)]))
    assert len(set(identifiers)) == 2
    assert len(pulled(grid, identifiers)) == 2
    assert list(grid.pull_messages([*identifiers, "unknown"])) == []


# --- deadlines and faults -------------------------------------------------------------------------


class Looked(frozenset[str]):
    """Ids that are waited for, which count how many of them are looked up."""

    times = 0

    def __contains__(self, identifier: object) -> bool:
        self.times += 1
        return super().__contains__(identifier)


def test_a_look_costs_as_many_steps_as_there_are_replies(made: Make) -> None:
    """Not as many as are waited for: looks at a hundred thousand would cost more than the answers."""
    let_go = threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        if index:
            let_go.wait(60)
        return payload

    grid = made(answering(answer), clients=500, workers=2)
    try:
        waiting = Looked(grid.push_messages([ask(1000 + number) for number in range(500)]))
        replies: list[Message] = []
        while not replies:
            time.sleep(0.01)
            replies.extend(grid.pull_messages(waiting))
        assert [one.metadata.src_node_id for one in replies] == [1000]
        assert waiting.times == 1
        assert list(grid.pull_messages(waiting)) == []
        assert waiting.times == 1
    finally:
        let_go.set()


def test_what_an_exchange_left_behind_is_neither_kept_nor_served_before_the_next(made: Make) -> None:
    """One of three hangs: the others' messages are nobody's any more, and so is its late reply."""
    served: list[bytes] = []
    let_go = threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        served.append(payload)
        if payload == b"first" and index == 0:
            let_go.wait(60)
        return payload

    grid = made(answering(answer), clients=3, workers=1)
    nodes = (1000, 1001, 1002)
    try:
        assert Exchange(grid, 0.3, "1.1")("keys", dict.fromkeys(nodes, b"first")) == {}
        threading.Timer(0.3, let_go.set).start()
        again = Exchange(grid, 20.0, "1.2")("keys", dict.fromkeys(nodes, b"second"))
    finally:
        let_go.set()
    assert again == dict.fromkeys(nodes, b"second")
    assert served == [b"first", b"second", b"second", b"second"]
    assert (grid._pending, grid._answered, list(grid._waiting)) == ({}, {}, [])


def test_who_is_too_slow_is_absent_and_keeps_nobody_waiting(made: Make) -> None:
    gate = threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        if index == 1:
            gate.wait(60)
        return payload

    grid = made(answering(answer))
    replies = sent(grid, ask(1000), ask(1001), ask(1002), timeout=1.0)
    gate.set()
    assert set(replies) == {1000, 1002}
    assert set(sent(grid, ask(1001))) == {1001}  # the next message finds it well again


def test_what_was_not_begun_by_the_deadline_is_not_done_afterwards(made: Make) -> None:
    served: list[int] = []
    gate = threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        served.append(index)
        gate.wait(60)
        return payload

    grid = made(answering(answer), workers=1)
    assert sent(grid, ask(1000), ask(1001), timeout=0.02) == {}
    gate.set()
    assert set(sent(grid, ask(1002))) == {1002}
    assert served in ([0, 2], [2])  # [2]: not even the first had begun


def test_an_exchange_ends_at_its_deadline_too(made: Make) -> None:
    gate = threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        if (index, payload) == (1, b"first"):
            gate.wait(60)
        return payload

    grid = made(answering(answer))
    wire = Exchange(grid, 1.0, "1.1")
    assert wire("keys", dict.fromkeys([1000, 1001], b"first")) == {1000: b"first"}
    gate.set()
    assert Exchange(grid, 60.0, "1.1")("keys", {1000: b"2", 1001: b"2"}) == {1000: b"2", 1001: b"2"}


def test_a_fault_makes_one_client_unavailable_for_one_stage(made: Make) -> None:
    asked: list[int] = []

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        asked.append(index)
        return payload

    grid = made(answering(answer), fault=lambda node, kind: (node, stage_of(kind)) == (1001, "masked"))
    wire = Exchange(grid, 60.0, "1.1")
    everybody = dict.fromkeys(grid.get_node_ids(), b"x")
    assert set(wire("keys", everybody)) == {1000, 1001, 1002}
    assert set(wire("masked", everybody)) == {1000, 1002}
    assert asked.count(1) == 1


def test_a_node_that_is_none_of_the_clients_is_unavailable(made: Make) -> None:
    replies = sent(made(answering(lambda index, stage, payload: payload)), ask(5))
    assert replies[5].has_error()


def test_messages_that_were_not_begun_are_dropped_at_the_end(made: Make) -> None:
    served: list[int] = []
    gate, begun = threading.Event(), threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        served.append(index)
        begun.set()
        gate.wait(60)
        return payload

    grid = made(answering(answer), workers=1)
    grid.push_messages([ask(1000), ask(1001), ask(1002)])
    begun.wait(60)
    closing = threading.Thread(target=grid.close)
    closing.start()
    while not grid._pool._shutdown:
        time.sleep(0.001)
    gate.set()
    closing.join(60)
    assert served == [0]


def test_nobody_is_served_before_all_are_queued(made: Make) -> None:
    served: list[int] = []

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        served.append(index)
        return payload

    def messages() -> Iterator[Message]:
        for index in range(50):
            assert not served
            yield ask(1000 + index % 3)

    grid = made(answering(answer), workers=4)
    ids = list(grid.push_messages(messages()))
    deadline = time.monotonic() + 60
    while len(served) < 50 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(served) == len(set(ids)) == 50


def test_a_message_that_waited_beyond_its_time_to_live_is_dropped_unread(made: Make) -> None:
    """So that what an exchange left behind does not hold up the next one."""
    served: list[str] = []
    gate = threading.Event()

    def answer(index: int, stage: str, payload: bytes) -> bytes:
        served.append(payload.decode())
        gate.wait(60)
        return payload

    grid = made(answering(answer), workers=1)

    def expired(text: bytes) -> Message:
        message = ask(1000, payload=text)
        message.metadata.ttl = -1.0
        return message

    first, late, next_one = ask(1000, payload=b"first"), expired(b"late"), ask(1000, payload=b"next")
    ids = list(grid.push_messages([first, late, next_one]))
    time.sleep(0.05)
    gate.set()
    replies: list[Message] = []
    deadline = time.monotonic() + 60
    while len(replies) < 2 and time.monotonic() < deadline:
        replies += grid.pull_messages(ids)
        time.sleep(0.001)
    assert served == ["first", "next"]
    assert not list(grid.send_and_receive([expired(b"late again")], timeout=None))
    assert {reply.metadata.reply_to_message_id for reply in replies} == {ids[0], ids[2]}
    assert not grid._pending


# --- clients that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [ValueError(SECRET_TEXT), KeyError(SECRET_TEXT), DeviceError(SECRET_TEXT), MemoryError(SECRET_TEXT)],
)
def test_an_exception_in_an_app_becomes_an_error_without_its_text(made: Make, error: Exception) -> None:
    app = ClientApp()

    @app.train("keys")
    def answer(message: Message, context: Context) -> Message:
        if context.node_id == 1001:
            raise error
        return Message(pack(b"well"), reply_to=message)

    replies = sent(made(app), ask(1000), ask(1001))
    assert unpack(replies[1000].content) == b"well"
    assert replies[1001].has_error()
    assert replies[1001].error.code == 2
    assert replies[1001].error.reason == type(error).__name__
    assert SECRET_TEXT not in str(replies[1001])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PolicyRefusal(SECRET_TEXT), AbortCode.POLICY),
        (DeviceError(SECRET_TEXT), AbortCode.INTERNAL),
        (ZeroDivisionError(SECRET_TEXT), AbortCode.INTERNAL),
    ],
)
@pytest.mark.parametrize("where", ["finding the agent", "answering"])
def test_the_relay_answers_any_failure_with_one_code(
    made: Make, error: Exception, code: AbortCode, where: str
) -> None:
    def agent_of(context: Context) -> Answer:
        def answer(stage: str, payload: bytes) -> bytes:
            raise error

        if where == "finding the agent":
            raise error
        return answer

    replies = sent(made(build_app(agent_of)), ask(1000))
    payload = unpack(replies[1000].content)
    assert decode(payload, Abort) == Abort(code)
    assert SECRET_TEXT not in str(replies[1000])


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"penchant": ConfigRecord({"payload": "text"})}),
        RecordDict({**pack(b"x"), "more": ConfigRecord({"n": 1})}),
    ],
)
def test_the_relay_passes_on_nothing_but_one_payload(made: Make, content: RecordDict) -> None:
    heard: list[bytes] = []
    grid = made(answering(lambda index, stage, payload: heard.append(payload) or b"well"))  # type: ignore[func-returns-value]
    message = Message(content, dst_node_id=1000, message_type=message_type("keys"))
    replies = sent(grid, message)
    assert decode(unpack(replies[1000].content), Abort) == Abort(AbortCode.MALFORMED)
    assert heard == []


def test_a_stage_that_does_not_exist_reaches_no_agent(made: Make) -> None:
    heard: list[str] = []
    grid = made(answering(lambda index, stage, payload: heard.append(stage) or b"well"))  # type: ignore[func-returns-value]
    assert sent(grid, ask(1000, stage="train"))[1000].has_error()
    assert heard == []


# --- the recorder ---------------------------------------------------------------------------------


def test_the_recorder_sees_every_reply_that_left_a_client(made: Make) -> None:
    seen: list[tuple[int, bool]] = []
    app = ClientApp()

    @app.train("keys")
    def answer(message: Message, context: Context) -> Message:
        if context.node_id == 1001:
            raise ValueError
        return Message(pack(b"well"), reply_to=message)

    grid = made(
        app,
        recorder=lambda node, reply: seen.append((node, reply.has_error())),
        fault=lambda node, kind: node == 1002,
    )
    sent(grid, *(ask(node) for node in grid.get_node_ids()))
    assert sorted(seen) == [(1000, False), (1001, True)]
