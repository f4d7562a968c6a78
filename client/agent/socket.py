"""The agent as a process: gRPC on a Unix socket that nobody but the owner and the relay's group can open.

The socket offers the six methods of `agent.proto` and nothing else. Permissions are the operating system's:
0600 for the owner alone, 0660 where the relay runs as another user of the socket's group.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from penchant.client.agent.agent_pb2 import Envelope
from penchant.client.agent.agent_pb2_grpc import AgentServicer, AgentStub, add_AgentServicer_to_server
from penchant.common.errors import DeviceError
from penchant.common.secagg.stages import CONFIRM, KEYS, MASKED, SHARES, STATUS, UNMASK
from penchant.common.wire.codec import MAGIC, encode
from penchant.common.wire.messages import Abort, AbortCode

__all__ = ["MESSAGE_MOST", "AgentServer", "RemoteAgent", "at_work", "only_one"]

log = logging.getLogger(__name__)

MESSAGE_MOST = 64 * 1024 * 1024
"""Bytes of one message that a device takes unless its owner allows more."""

RELAYED_MOST = 513 * 1024 * 1024
"""Bytes of one message that the relay passes on: the most that an owner can allow the agent."""

SOCKET_PATH_MOST = 100  # bytes that fit into the system's address of a Unix socket, with some to spare
ANSWER_SECONDS = 3600.0  # of one call: training may take a while
CALLS_AT_ONCE = 4

Answer = Callable[[str, bytes], bytes]


class AgentServer:
    """Serves an agent's entrance on a Unix socket, one message at a time.

    Args:
        answer: the entrance, (stage, payload) -> reply payload.
        socket: path of the socket; what a dead agent left there is replaced.
        group: may the socket's group connect as well (0660), or its owner alone (0600)?
        message_most: bytes of one message.
    """

    def __init__(
        self, answer: Answer, socket: Path, *, group: bool = False, message_most: int = MESSAGE_MOST
    ) -> None:
        if len(os.fsencode(socket.absolute())) > SOCKET_PATH_MOST:
            raise DeviceError(f"the path of the agent's socket is too long for the system: {socket}")
        self.socket = socket.absolute()
        self._mode = 0o660 if group else 0o600
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=2, thread_name_prefix="agent"),
            options=[
                ("grpc.max_receive_message_length", message_most),
                ("grpc.max_send_message_length", message_most),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=CALLS_AT_ONCE,
        )
        add_AgentServicer_to_server(_Service(answer), self._server)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Begin to serve. Raises DeviceError when the socket can't be made, or others could replace it."""
        try:
            self._check_directory()
            with suppress(FileNotFoundError):
                if not stat.S_ISSOCK(self.socket.lstat().st_mode):
                    raise DeviceError(f"{self.socket} is there already and is not a socket; remove it")
                self.socket.unlink()
        except OSError as error:
            raise DeviceError(f"can't make the agent's socket {self.socket}: {error.strerror}") from None
        before = os.umask(0o177)  # never open to others, not even between bind and chmod
        try:
            bound = self._server.add_insecure_port(f"unix:{self.socket}")
        except RuntimeError:
            raise DeviceError(f"can't bind the agent's socket {self.socket}") from None
        finally:
            os.umask(before)
        if not bound:
            raise DeviceError(f"can't bind the agent's socket {self.socket}")
        os.chmod(self.socket, self._mode)
        self._server.start()

    def _check_directory(self) -> None:
        """Whoever can write into the socket's directory can put another socket there."""
        folder = self.socket.parent
        found = folder.stat()
        mode = found.st_mode
        if found.st_uid not in (os.geteuid(), 0):
            raise DeviceError(f"{folder} belongs to another user, who could replace the agent's socket")
        if mode & 0o022 and not mode & stat.S_ISVTX:
            raise DeviceError(f"others could replace the agent's socket: chmod go-w {folder}")
        if self._mode & 0o060 and not mode & 0o010:
            raise DeviceError(
                f"the group can't reach a socket in {folder}; put it into a directory that the group can "
                "enter but not write (--socket)"
            )

    def wait(self) -> None:
        """Serve until `stop`."""
        self._server.wait_for_termination()

    def stop(self, grace: float = 5.0) -> None:
        """Finish what is being answered, at most `grace` seconds, and remove the socket."""
        self._server.stop(grace).wait()
        self.socket.unlink(missing_ok=True)


class _Service(AgentServicer):
    """The six methods, each an `Envelope` in and one out."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._turn = threading.Lock()

    def _reply(self, stage: str, request: Envelope) -> Envelope:
        try:
            with self._turn:
                return Envelope(payload=self._answer(stage, request.payload))
        except Exception as error:  # gRPC would send its text to whoever called
            log.warning("no answer in %s: %s", stage, type(error).__name__)
            return Envelope(payload=encode(Abort(AbortCode.INTERNAL)))

    def Status(self, request: Envelope, context: Any) -> Envelope:  # noqa: N802
        return self._reply(STATUS, request)

    def Keys(self, request: Envelope, context: Any) -> Envelope:  # noqa: N802
        return self._reply(KEYS, request)

    def Shares(self, request: Envelope, context: Any) -> Envelope:  # noqa: N802
        return self._reply(SHARES, request)

    def Masked(self, request: Envelope, context: Any) -> Envelope:  # noqa: N802
        return self._reply(MASKED, request)

    def Confirm(self, request: Envelope, context: Any) -> Envelope:  # noqa: N802
        return self._reply(CONFIRM, request)

    def Unmask(self, request: Envelope, context: Any) -> Envelope:  # noqa: N802
        return self._reply(UNMASK, request)


class RemoteAgent:
    """The relay's view of the agent behind a socket: callable as an `Answer`."""

    def __init__(
        self, socket: Path, *, seconds: float = ANSWER_SECONDS, message_most: int = RELAYED_MOST
    ) -> None:
        self._seconds = seconds
        self._channel = grpc.insecure_channel(
            f"unix:{socket.absolute()}",
            options=[
                ("grpc.max_receive_message_length", message_most),
                ("grpc.max_send_message_length", message_most),
                ("grpc.enable_retries", 0),  # no message may be answered twice
            ],
        )
        stub = AgentStub(self._channel)  # type: ignore[no-untyped-call]
        self._methods: dict[str, Callable[..., Envelope]] = {
            STATUS: stub.Status,
            KEYS: stub.Keys,
            SHARES: stub.Shares,
            MASKED: stub.Masked,
            CONFIRM: stub.Confirm,
            UNMASK: stub.Unmask,
        }

    def __call__(self, stage: str, payload: bytes) -> bytes:
        """The agent's reply; an Abort without an agent, an answer in time, or one that is a message."""
        method = self._methods.get(stage)
        if method is None:
            return encode(Abort(AbortCode.STAGE))
        try:
            reply = bytes(method(Envelope(payload=payload), timeout=self._seconds).payload)
            return reply if reply.startswith(MAGIC) else encode(Abort(AbortCode.INTERNAL))
        except grpc.RpcError:  # its text may name paths: it stays here
            return encode(Abort(AbortCode.UNAVAILABLE))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def at_work(home: Path) -> bool:
    """Whether an agent works on the directory `home` now."""
    try:
        with only_one(home):
            return False
    except DeviceError:
        return True


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Be the only agent on the directory `home`; DeviceError when another one is running there."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(os.open(home / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600), "w")  # noqa: SIM115
    except OSError as error:
        raise DeviceError(f"can't use the agent's directory {home}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeviceError(f"another agent is running on {home}; stop it first") from None
        yield
