"""A SuperNode stays in step when a run ends under it; Flower's own does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.supernode import start_client_internal as flower

from penchant.client.agent.supernode import SequencedSuperNode


def message(name: str, reply_to: str = "") -> Any:
    metadata = SimpleNamespace(
        message_id=name, reply_to_message_id=reply_to, group_id="1.1", run_id=7, message_type="train.keys"
    )
    return SimpleNamespace(metadata=metadata)


class Device:
    """What Flower's SuperNode keeps of messages, and what it has sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flower, "time", SimpleNamespace(sleep=lambda seconds: self.came.wait(5)))
        self.came = threading.Event()
        self.replies: list[Any] = []
        self.sent: list[str] = []

    def reply(self, to: str) -> None:
        """The ClientApp of this message is done."""
        self.replies.append(message(f"reply to {to}", to))
        self.came.set()

    def get_messages_legacy(self, *, is_reply: bool) -> list[Any]:
        found, self.replies = self.replies, []
        self.came.clear()
        return found

    def get_message_processing_duration(self, message_id: str) -> float:
        return 0.1

    def delete_messages(self, *, message_ids: list[str]) -> None:
        pass

    def send(self, message: Any, tree: object, seconds: float) -> tuple[set[str], str]:
        self.sent.append(message.metadata.message_id)
        return set(), "session"

    def push(self, push: Callable[..., None]) -> None:
        store = SimpleNamespace(get_object_tree=lambda name: None, delete=lambda name: None)
        push(state=self, object_store=store, send=self.send, push_object=None)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The run of message A ended before A was confirmed; its ClientApp has replied all the same."""
    made = Device(monkeypatch)
    made.reply("A")
    return made


def pull(receive: Callable[[], Any], run: int | None = 7) -> int | None:
    """Flower's, as far as it matters: None when the run is over."""
    return None if receive() is None else run


def test_the_reply_to_the_message_that_came_is_waited_for(device: Device) -> None:
    step = SequencedSuperNode(pull, flower._push_messages)
    assert step.pull(receive=lambda: (message("A"), None), run=None) is None
    assert step.pull(receive=lambda: (message("B"), None)) == 7
    late = threading.Timer(0.1, device.reply, ["B"])
    late.start()
    device.push(step.push)
    late.join()
    assert device.sent == ["reply to A", "reply to B"]


def test_flowers_own_falls_behind(device: Device) -> None:
    """When this fails, Flower waits for the right reply, and `penchant.client.agent.supernode` can go."""
    device.push(flower._push_messages)
    assert device.sent == ["reply to A"]  # for B, whose reply is to come


def test_without_a_message_nothing_is_due(device: Device) -> None:
    step = SequencedSuperNode(pull, flower._push_messages)
    assert step.pull(receive=lambda: None) is None
    device.push(step.push)
    assert device.sent == []
