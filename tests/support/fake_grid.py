"""A grid for tests: devices are functions, and time passes only when somebody sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from penchant.common.wire.flower import pack, stage_of, unpack
from penchant.server import exchange


class FakeClock:
    """Stands in for the module `time`: `sleep` returns at once and moves `monotonic` and `time`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += max(seconds, 1e-4)  # a look for replies takes some time as well

    @classmethod
    def put_in(cls, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
        """A fake clock for exchanges."""
        clock = cls()
        monkeypatch.setattr(exchange, "time", clock)
        return clock


@dataclass(frozen=True)
class Late:
    """A reply that arrives only after some seconds."""

    seconds: float
    reply: bytes | RecordDict | Error


@dataclass
class FakeGrid(Grid):
    """answer(node, stage, payload) -> the reply: payload, content or error of Flower's; None: silence.

    twist: makes another message of each reply. sent: (node, stage, payload) of all that was pushed.
    """

    answer: Callable[[int, str, bytes], bytes | RecordDict | Error | Late | None]
    nodes: Iterable[int] = ()
    clock: Any = field(default_factory=FakeClock)
    twist: Callable[[Message], Message] = lambda reply: reply
    sent: list[tuple[int, str, bytes]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self._run = Run.create_empty(1)
        self._numbers = count(1)
        self._due: dict[str, tuple[float, Message]] = {}
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 0, 1

    def stages(self, stage: str) -> list[int]:
        """The nodes that were sent a message of `stage`, in order."""
        return [node for node, kind, _ in self.sent if kind == stage]

    # --- Flower's interface --------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *args: Any, **more: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        now = self.clock.monotonic()
        ready = [i for i in message_ids if i in self._due and self._due[i][0] <= now]
        return [self._due.pop(identifier)[1] for identifier in sorted(ready)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError

    def _push(self, message: Message) -> str:
        identifier = f"{next(self._numbers):06d}"
        message.metadata.__dict__["_message_id"] = identifier
        node, stage = message.metadata.dst_node_id, stage_of(message.metadata.message_type)
        payload = unpack(message.content)
        self.messages.append(message)
        self.sent.append((node, stage, payload))
        answer = self.answer(node, stage, payload)
        delay, reply = (answer.seconds, answer.reply) if isinstance(answer, Late) else (0.0, answer)
        if reply is not None:
            content = pack(reply) if isinstance(reply, bytes) else reply
            made = self.twist(Message(content, reply_to=message))
            self._due[identifier] = (self.clock.monotonic() + delay, made)
        return identifier
