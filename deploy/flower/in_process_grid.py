"""The in-process grid: Flower's `Grid` without a SuperLink, for one machine.

The same ServerApp and ClientApp objects run over it as over Ray or a SuperLink; every message crosses
as serialised bytes, so nothing passes here that would not pass a wire. Clients are served by a pool of
threads (torch, numpy's loops and `cryptography` release the interpreter lock), or by processes to which these
threads hand the messages on (`deploy.simulation.worker_processes`).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from penchant.common.errors import WorkerLost

__all__ = [
    "FLOWER_RUN",
    "App",
    "Fault",
    "InProcessGrid",
    "Recorder",
    "Silence",
    "contexts",
    "message_bytes",
    "message_of",
    "reply_of",
]

log = logging.getLogger(__name__)

FLOWER_RUN = 1  # Flower's number of the run
SERVER_NODE = 1
FIRST_NODE = 1000
CLIENT_FAILED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
NODE_UNAVAILABLE = 5

Settings = Mapping[str, bool | float | int | str]

App = Callable[[Message, Context], Message]
"""A ClientApp, or what hands messages on to one elsewhere."""

Recorder = Callable[[int, Message], None]
"""Called with (node id, reply) for each reply as it leaves a client, errors and what comes too late among
them. Clients are served side by side: it must be thread-safe."""

Fault = Callable[[int, str], bool]
"""(node id, message type) -> True when this client is to be unreachable now: an error comes at once. One
that waits makes a slow client. For tests."""


def message_bytes(message: Message) -> bytes:
    """A Flower message as it travels: serialised protobuf."""
    serialised: bytes = message_to_proto(message).SerializeToString()
    return serialised


def message_of(data: bytes) -> Message:
    """A Flower message that has travelled."""
    return message_from_proto(MessageProto.FromString(data))


def contexts(run_id: int, clients: int, run_config: Settings | None = None) -> dict[int, Context]:
    """Node id -> what a ClientApp is told of itself, of node ids 1000, 1001, …

    Flower requires three more facts before a Message can be made in a process; they are set here.
    """
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 0, SERVER_NODE
    return {
        FIRST_NODE + i: Context(
            run_id=run_id,
            node_id=FIRST_NODE + i,
            node_config={"partition-id": i, "num-partitions": clients},
            state=RecordDict(),
            run_config=dict(run_config or {}),
        )
        for i in range(clients)
    }


def reply_of(app: App, message: Message, context: Context) -> Message:
    """What a client sends. Raises WorkerLost where it is served by a process that is gone."""
    try:
        return app(message, context)
    except WorkerLost:
        raise
    except Exception as error:  # as on a SuperNode, but without its text: that never leaves a device
        log.warning("client %d failed: %s", context.node_id, type(error).__name__)
        return Message(Error(CLIENT_FAILED, type(error).__name__), reply_to=message)


Silence = Callable[[int, str, str], bool]
"""(node id, message type, group id) -> True when this client is silent, as `Fault`; of simulated fleets."""


class InProcessGrid(Grid):
    """Serves `clients` node ids 1000, 1001, … with one ClientApp, `workers` at a time."""

    def __init__(
        self,
        app: App,
        clients: int,
        *,
        workers: int,
        recorder: Recorder | None = None,
        fault: Fault | None = None,
        silent: Silence | None = None,
        run_config: Settings | None = None,
    ) -> None:
        self._app = app
        self._recorder = recorder
        self._fault = fault
        self._silent = silent
        self._run = Run.create_empty(FLOWER_RUN)
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="client")
        self._workers = workers
        self._waiting: deque[tuple[Message, Future[bytes]]] = deque()  # what nobody has begun to serve
        self._pending: dict[str, tuple[str, Future[bytes]]] = {}  # id -> group of the message, its reply
        self._answered: dict[str, None] = {}  # ids of `_pending` whose replies are there, in their order
        self._lock = threading.Lock()
        self._contexts = contexts(self._run.run_id, clients, run_config)

    def close(self) -> None:
        """Stop serving; messages not yet begun are dropped."""
        with self._lock:
            dropped, self._waiting = self._waiting, deque()
        for message, reply in dropped:
            self._drop(message, reply)
        self._pool.shutdown(wait=True, cancel_futures=True)

    # --- Flower's interface --------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Set the run that this grid operates in."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run information."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As `Message(...)`; Flower has deprecated this spelling."""
        return Message(
            content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """All clients: here nobody is ever offline."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; the ids answer to `pull_messages`.

        What is left of other groups is dropped: whoever sent it has stopped waiting, for there is one server,
        which asks one thing at a time. Served first, it would cost the time that the new ones have.

        Serving begins once all are queued: threads that serve would hold up each further message for as long
        as they keep the interpreter's lock, and a hundred thousand messages for minutes.
        """
        queued: list[tuple[Message, Future[bytes]]] = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = secrets.token_hex(16)
            queued.append((message, Future()))
        with self._lock:
            self._drop_others({message.metadata.group_id for message, _ in queued})
            for message, reply in queued:
                self._pending[message.metadata.message_id] = (message.metadata.group_id, reply)
            self._waiting.extend(queued)
        for _ in range(min(self._workers, len(queued))):
            self._pool.submit(self._serve_waiting)
        return [message.metadata.message_id for message, _ in queued]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there by now, without waiting: a look takes as many steps as there are of
        them, however many are waited for."""
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        with self._lock:
            done = [identifier for identifier in self._answered if identifier in wanted]
        return self._collect(done, timeout=0.0)  # decoded one by one, as they are asked for

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send all, wait at most `timeout` seconds, return the replies that came; late ones are lost."""
        ids = list(self.push_messages(messages))
        replies = list(self._collect(ids, timeout=timeout))
        with self._lock:
            for identifier in ids:
                late = self._forget(identifier)
                if late is not None:
                    late.cancel()
        return replies

    # --- serving -------------------------------------------------------------------------------------

    def _collect(self, ids: list[str], timeout: float | None) -> Iterator[Message]:
        end = None if timeout is None else time.monotonic() + timeout
        for identifier in ids:
            with self._lock:
                _, reply = self._pending.get(identifier, ("", None))
            if reply is None:
                continue
            try:
                data = reply.result(None if end is None else max(0.0, end - time.monotonic()))
            except (FutureTimeout, CancelledError):  # a reply that is not there, or never will be
                continue
            with self._lock:
                self._forget(identifier)
            message = message_of(data)
            del reply, data  # while the next is waited for, this one is held once
            yield message

    def _serve_waiting(self) -> None:
        """Serve what waits, until nothing does. A message that is older than its time to live is dropped
        unread, as a SuperLink does: nobody looks for its answer any more."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                message, reply = self._waiting.popleft()
            told = message.metadata
            if told.created_at + told.ttl < time.time():
                self._drop(message, reply)
            elif reply.set_running_or_notify_cancel():
                try:
                    reply.set_result(self._serve(message))
                except BaseException as error:  # the one who asks is told, as by a pool
                    reply.set_exception(error)
                with self._lock:
                    if told.message_id in self._pending:
                        self._answered[told.message_id] = None

    def _drop(self, message: Message, reply: Future[bytes]) -> None:
        with self._lock:
            self._forget(message.metadata.message_id)
        reply.cancel()

    def _drop_others(self, groups: Set[str]) -> None:
        """Forget messages and replies of all groups but these; the lock is held."""
        left = [identifier for identifier, (group, _) in self._pending.items() if group not in groups]
        for identifier in left:
            reply = self._forget(identifier)
            if reply is not None:
                reply.cancel()  # who serves finds it so, and passes on to the next
        if left:
            self._waiting = deque(one for one in self._waiting if not one[1].cancelled())

    def _forget(self, identifier: str) -> Future[bytes] | None:
        """Take a reply out of those that are waited for; the lock is held."""
        self._answered.pop(identifier, None)
        return self._pending.pop(identifier, ("", None))[1]

    def _serve(self, pushed: Message) -> bytes:
        """The reply as it travels. What was pushed is serialised now, so that what all are told is not copied
        for each that waits."""
        node = pushed.metadata.dst_node_id
        message = message_of(message_bytes(pushed))
        context = self._contexts.get(node)
        if context is None or self._unreachable(message):
            reply = Message(Error(NODE_UNAVAILABLE, "node unavailable"), reply_to=message)
        else:
            reply = self._answer(message, context)
        data: bytes = message_bytes(reply)
        return data

    def _unreachable(self, message: Message) -> bool:
        told = message.metadata
        if self._fault is not None and self._fault(told.dst_node_id, told.message_type):
            return True
        return self._silent is not None and self._silent(told.dst_node_id, told.message_type, told.group_id)

    def _answer(self, message: Message, context: Context) -> Message:
        """What the client sends."""
        reply = reply_of(self._app, message, context)
        if self._recorder is not None:
            self._recorder(context.node_id, reply)
        return reply
