"""A device's SuperNode answers with what is installed, and never asks for the bundle that a server offers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

from penchant.client.agent.supernode import Connection, SuperNode, main
from penchant.common.wire.codec import decode
from penchant.common.wire.flower import pack, unpack
from penchant.common.wire.messages import Abort, AbortCode

RUN, SERVER, NODE = 7, 1, 2


class Server:
    """A SuperLink as a node sees it: what it sends, what it was sent, and what it was asked for."""

    def __init__(self) -> None:
        self.waiting: list[Message] = []
        self.objects: dict[str, bytes] = {}
        self.received: dict[str, bytes] = {}
        self.replies: list[Any] = []
        self.runtimes: list[float] = []
        self.confirmed: list[str] = []
        self.asked: list[str] = []
        self.over = ""  # whether the run is: when a reply comes ("send"), or its objects ("push")

    def order(self, content: RecordDict, kind: str = "train.keys", group: str = "1.1") -> None:
        message = Message(content, dst_node_id=NODE, message_type=kind, group_id=group)
        message.metadata.__dict__["_message_id"] = message.object_id
        self.objects |= {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        self.waiting.append(message)

    def connection(self) -> Connection:
        return Connection(
            NODE, self._receive, self._send, self._code("run"), self._code("fab"), self._object, self._take,
            lambda run, name: self.confirmed.append(name),
        )  # fmt: skip

    def _receive(self) -> Any:
        if not self.waiting:
            return None
        message = self.waiting.pop(0)
        return message, get_object_tree(message)

    def _object(self, run: int, name: str) -> bytes:
        return self.objects[name]

    def _code(self, what: str) -> Callable[..., Any]:
        def asked(*_: object) -> None:
            self.asked.append(what)
            raise AssertionError(f"the node asked for the {what} that the server wants it to use")

        return asked

    def _send(self, message: Message, tree: Any, runtime: float) -> tuple[set[str], str]:
        if self.over == "send":
            raise RunNotRunningException  # no Exception, but a BaseException
        self.replies.append((message, tree.object_id))
        self.runtimes.append(runtime)
        return set(get_all_nested_objects(message)), "session"

    def _take(self, run: int, session: str, name: str, data: bytes) -> None:
        if self.over == "push":
            raise RunNotRunningException
        self.received[name] = data

    def payloads(self) -> list[bytes]:
        """What the replies hold, put together from the objects that came."""
        found = []
        for _, name in self.replies:
            whole = inflate_object_from_contents(name, dict(self.received))
            assert isinstance(whole, Message)
            found.append(unpack(whole.content))
        return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in (("_run_id", RUN), ("_task_id", 1), ("_node_id", SERVER)):
        monkeypatch.setattr(TaskIdentity, name, value)
    return Server()


def echo(stage: str, payload: bytes) -> bytes:
    return stage.encode() + b": " + payload


def test_a_message_is_answered_by_what_is_installed_and_no_bundle_is_asked_for(server: Server) -> None:
    server.order(pack(b"first"))
    server.order(pack(b"second"), "train.masked")
    node = SuperNode(server.connection(), echo)
    assert [node.step(), node.step(), node.step()] == [True, True, False]
    assert server.payloads() == [b"keys: first", b"masked: second"]
    assert server.asked == []
    assert len(server.confirmed) == 2


def test_how_long_an_answer_took_is_not_told(server: Server) -> None:
    server.order(pack(b"x"))
    SuperNode(server.connection(), echo).step()
    assert server.runtimes == [0.0]


@pytest.mark.parametrize("kind", ["train.loot", "query", "evaluate.default", "train"])
def test_a_message_of_any_other_kind_reaches_the_agents_entrance_and_nothing_else(
    server: Server, kind: str
) -> None:
    """The agent refuses a stage that there is not; a bundle's own function is not looked for."""
    seen = []
    server.order(pack(b"x"), kind)
    SuperNode(server.connection(), lambda stage, payload: seen.append(stage) or b"").step()
    assert seen == [kind.removeprefix("train.")]
    assert server.asked == []


def test_a_foreign_content_is_answered_with_one_code(server: Server) -> None:
    server.order(RecordDict({"loot": ConfigRecord({"run": "import os"})}))
    SuperNode(server.connection(), lambda *_: pytest.fail("it reached the agent")).step()
    assert [decode(found, Abort).code for found in server.payloads()] == [AbortCode.MALFORMED]


def test_what_an_answer_fails_with_stays_here(server: Server) -> None:
    def fail(stage: str, payload: bytes) -> bytes:
        raise ValueError("no such key: secret")

    server.order(pack(b"x"))
    SuperNode(server.connection(), fail).step()
    assert [decode(found, Abort).code for found in server.payloads()] == [AbortCode.INTERNAL]
    assert not any(b"secret" in data for data in server.received.values())


def test_a_message_of_many_parts_is_not_even_fetched(server: Server) -> None:
    many = RecordDict({f"r{n}": ConfigRecord({"n": n}) for n in range(5)})
    server.order(many)
    server.order(pack(b"next"))
    node = SuperNode(server.connection(), echo)
    assert [node.step(), node.step()] == [True, True]
    assert server.payloads() == [b"keys: next"]


def test_a_message_of_too_many_bytes_is_not_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.client.agent.supernode.RELAYED_MOST", 1000)
    server.order(pack(bytes(2000)))
    server.order(pack(b"next"))
    node = SuperNode(server.connection(), echo)
    assert [node.step(), node.step()] == [True, True]
    assert server.payloads() == [b"keys: next"]


@pytest.mark.parametrize("when", ["send", "push"])
def test_after_a_run_that_ended_under_it_replies_are_in_step(server: Server, when: str) -> None:
    """Flower's own SuperNode takes whatever reply is next, and is one message late from there on."""
    node = SuperNode(server.connection(), echo)
    server.order(pack(b"A"))
    server.over = when
    assert node.step()
    server.over = ""
    server.replies.clear()
    server.order(pack(b"B"))
    assert node.step()
    assert server.payloads() == [b"keys: B"]


def test_a_server_can_not_write_into_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server.order(pack(b"x"), "train.keys", "1\x1b[2J\nROUND 9.1] train.masked: answered")
    SuperNode(server.connection(), echo).step()
    assert caplog.messages
    assert not any("\n" in line or "\x1b" in line for line in caplog.messages)


def test_without_its_files_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_text("x")
    (tmp_path / "node.key").write_text(json.dumps("no key"))
    words = ["--superlink", "127.0.0.1:1", "--ca", "ca.pem", "--key", "node.key", "--agent", "a.sock"]
    monkeypatch.setattr(sys, "argv", ["supernode", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "node.key is not a node's key; join the fleet again\n"
