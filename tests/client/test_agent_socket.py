"""The agent behind its socket: who may connect, what can be called, and that it stays up."""

from __future__ import annotations

import dataclasses
import os
import re
import socket as sockets
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet_scene import REPLIES

from penchant.client.agent.agent_pb2 import Envelope
from penchant.client.agent.socket import SOCKET_PATH_MOST, AgentServer, RemoteAgent, only_one
from penchant.common.errors import DeviceError
from penchant.common.wire.codec import MAGIC, decode, encode
from penchant.common.wire.messages import (
    Abort,
    AbortCode,
    Announce,
    Certificate,
    Collect,
    Confirmations,
    Delivery,
    Hello,
    Roster,
    Survivors,
)

STAGES = ("status", "keys", "shares", "masked", "confirm", "unmask")


def echo(stage: str, payload: bytes) -> bytes:
    return MAGIC + f"{stage}:".encode() + payload


@pytest.fixture
def served(tmp_path: Path) -> Iterator[AgentServer]:
    server = AgentServer(echo, tmp_path / "agent.sock", message_most=1 << 20)
    server.start()
    yield server
    server.stop(0)


def test_each_stage_reaches_the_agent(served: AgentServer) -> None:
    remote = RemoteAgent(served.socket)
    assert [remote(stage, b"x") for stage in STAGES] == [echo(stage, b"x") for stage in STAGES]
    remote.close()


def test_nothing_else_can_be_called(served: AgentServer) -> None:
    with grpc.insecure_channel(f"unix:{served.socket}") as channel:
        for path in (
            "/penchant.agent.v1.Agent/Read",
            "/penchant.agent.v1.Vault/Keys",
            "/grpc.health.v1.Health/Check",
        ):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(path)(b"", timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


@pytest.mark.parametrize(("group", "mode"), [(False, 0o600), (True, 0o660)])
def test_the_socket_is_open_to_its_owner_and_at_most_to_its_group(
    tmp_path: Path, group: bool, mode: int
) -> None:
    tmp_path.chmod(0o710 if group else 0o700)
    server = AgentServer(echo, tmp_path / "agent.sock", group=group)
    server.start()
    assert stat.S_IMODE(server.socket.stat().st_mode) == mode
    server.stop(0)
    assert not server.socket.exists()


def test_a_message_above_the_limit_is_refused_and_the_agent_stays_up(served: AgentServer) -> None:
    remote = RemoteAgent(served.socket)
    assert decode(remote("keys", bytes(1 << 21)), Abort).code is AbortCode.UNAVAILABLE
    assert remote("keys", b"small") == echo("keys", b"small")
    remote.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=400))
def test_junk_on_the_socket_and_in_envelopes_does_not_stop_it(served: AgentServer, junk: bytes) -> None:
    with sockets.socket(sockets.AF_UNIX) as raw:
        raw.connect(str(served.socket))
        raw.sendall(junk)
    with grpc.insecure_channel(f"unix:{served.socket}") as channel:
        with suppress(grpc.RpcError):  # some junk is an envelope
            channel.unary_unary("/penchant.agent.v1.Agent/Keys")(junk, timeout=60)
        reply = channel.unary_unary(
            "/penchant.agent.v1.Agent/Status",
            request_serializer=Envelope.SerializeToString,
            response_deserializer=Envelope.FromString,
        )(Envelope(payload=b"?"), timeout=60)
    assert reply.payload == echo("status", b"?")


def test_without_an_agent_the_relay_says_unavailable_and_no_more(tmp_path: Path) -> None:
    remote = RemoteAgent(tmp_path / "nobody.sock", seconds=2)
    assert remote("status", b"") == encode(Abort(AbortCode.UNAVAILABLE))
    assert remote("gossip", b"") == encode(Abort(AbortCode.STAGE))
    remote.close()


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    release = threading.Event()

    def slow(stage: str, payload: bytes) -> bytes:
        release.wait(60)
        return b"late"

    server = AgentServer(slow, tmp_path / "agent.sock")
    server.start()
    remote = RemoteAgent(server.socket, seconds=0.2)
    assert remote("masked", b"") == encode(Abort(AbortCode.UNAVAILABLE))
    release.set()
    remote.close()
    server.stop(5)


def test_messages_are_answered_one_after_the_other(tmp_path: Path) -> None:
    inside, most = 0, 0
    count = threading.Lock()

    def counted(stage: str, payload: bytes) -> bytes:
        nonlocal inside, most
        with count:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.02)
        with count:
            inside -= 1
        return b"done"

    server = AgentServer(counted, tmp_path / "agent.sock")
    server.start()
    remote = RemoteAgent(server.socket)
    callers = [threading.Thread(target=remote, args=("status", b"")) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert most == 1
    remote.close()
    server.stop(0)


def test_what_a_dead_agent_left_is_replaced_but_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(path))
    server = AgentServer(echo, path)
    server.start()
    remote = RemoteAgent(path)
    assert remote("keys", b"") == echo("keys", b"")
    remote.close()
    server.stop(0)
    path.write_text("the owner's notes")
    with pytest.raises(DeviceError, match="is not a socket"):
        AgentServer(echo, path).start()
    assert path.read_text() == "the owner's notes"


def test_a_second_agent_on_one_directory_is_refused(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(DeviceError, match="another agent"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_path_that_does_not_fit_into_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="too long"):
        AgentServer(echo, tmp_path / ("x" * 120))


def test_the_longest_path_that_is_allowed_works_and_one_byte_more_is_refused() -> None:
    with TemporaryDirectory(dir="/tmp") as folder:
        longest = Path(folder, "é".ljust(SOCKET_PATH_MOST - len(folder) - 2, "x"))
        with pytest.raises(DeviceError, match="too long"):
            AgentServer(echo, longest.with_name(f"{longest.name}x"))
        server = AgentServer(echo, longest)
        server.start()
        remote = RemoteAgent(longest)
        assert remote("keys", b"") == echo("keys", b"")
        remote.close()
        server.stop(0)


def test_an_agent_that_fails_or_answers_junk_costs_one_code_and_shows_no_text(tmp_path: Path) -> None:
    def broken(stage: str, payload: bytes) -> bytes:
        if stage == "keys":
            raise RuntimeError("the owner's secret")
        return b"Traceback: the owner's secret"

    server = AgentServer(broken, tmp_path / "agent.sock")
    server.start()
    remote = RemoteAgent(server.socket)
    assert {remote(stage, b"x") for stage in STAGES} == {encode(Abort(AbortCode.INTERNAL))}
    remote.close()
    server.stop(0)


def test_what_is_no_envelope_is_no_answer(tmp_path: Path) -> None:
    """Another program sits on the socket and speaks gRPC, but not the agent's."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff\xff a secret")
    other = grpc.server(ThreadPoolExecutor(1))
    other.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("penchant.agent.v1.Agent", {"Keys": handler}),)
    )
    other.add_insecure_port(f"unix:{tmp_path / 'agent.sock'}")
    other.start()
    remote = RemoteAgent(tmp_path / "agent.sock", seconds=5)
    assert remote("keys", b"x") == encode(Abort(AbortCode.UNAVAILABLE))
    remote.close()
    other.stop(0)


def test_a_socket_is_not_put_where_others_could_replace_it_or_its_group_can_not_go(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    for mode in (0o770, 0o702):
        tmp_path.chmod(mode)
        with pytest.raises(DeviceError, match="others could replace the agent's socket: chmod go-w"):
            AgentServer(echo, path, group=True).start()
    tmp_path.chmod(0o700)
    with pytest.raises(DeviceError, match="the group can't reach a socket in"):
        AgentServer(echo, path, group=True).start()
    with pytest.raises(DeviceError, match="No such file"):
        AgentServer(echo, tmp_path / "nowhere" / "agent.sock").start()
    assert not path.exists()


def test_a_socket_may_lie_where_others_can_write_but_replace_only_their_own_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    server = AgentServer(echo, tmp_path / "agent.sock")
    server.start()
    remote = RemoteAgent(server.socket)
    assert remote("keys", b"") == echo("keys", b"")
    remote.close()
    server.stop(0)


@pytest.mark.parametrize(("owner", "allowed"), [(0, True), (os.geteuid() + 1, False)], ids=["root", "other"])
def test_a_socket_is_not_put_into_a_strangers_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, allowed: bool
) -> None:
    real = Path.stat

    def found(path: Path, **how: Any) -> os.stat_result:
        fields = list(real(path, **how))
        if path == tmp_path:
            fields[stat.ST_UID] = owner
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", found)
    server = AgentServer(echo, tmp_path / "agent.sock")
    with nullcontext() if allowed else pytest.raises(DeviceError, match="belongs to another user"):
        server.start()
    assert server.socket.exists() == allowed
    server.stop(0)


def test_a_socket_that_can_not_be_bound_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC says so by an exception, and in some versions by the number 0."""

    def fails(address: str) -> int:
        raise RuntimeError(address)

    for bind in (fails, lambda address: 0):
        server = AgentServer(echo, tmp_path / "agent.sock")
        monkeypatch.setattr(server._server, "add_insecure_port", bind)
        with pytest.raises(DeviceError, match="can't bind the agent's socket"):
            server.start()


def test_the_lock_is_for_the_owner_alone(tmp_path: Path) -> None:
    with only_one(tmp_path):
        assert stat.S_IMODE((tmp_path / "agent.lock").stat().st_mode) == 0o600


def test_the_proto_documents_every_message_and_field_that_passes() -> None:
    """Field by field, as common/wire/messages.py has them."""
    text = files("penchant.client.agent").joinpath("agent.proto").read_text(encoding="utf-8")
    passing = [*REPLIES.values(), (Hello, Announce, Roster, Delivery, Collect, Survivors, Confirmations)]
    kinds = {kind for kinds in passing for kind in kinds}
    for kind in kinds | {Certificate}:
        if kind is not Certificate:
            assert re.search(rf"\b{kind.__name__}\b", text), kind
        for name in (field.name for field in dataclasses.fields(kind)):
            assert re.search(rf"\b{name}\b", text), f"{kind.__name__}.{name}"
    for code in AbortCode:
        assert f"{code.value} {code.name.lower()}" in text.replace("\n  //            ", "")


FEW = """
import resource, sys
from pathlib import Path
from penchant.client.agent.socket import AgentServer
from penchant.common.wire.codec import MAGIC
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
def answer(stage, payload):
    open("/dev/null").close()  # as a vault opens its file
    return MAGIC + payload
server = AgentServer(answer, Path(sys.argv[1]))
server.start()
print("up", flush=True)
server.wait()
"""


def test_more_connections_than_the_system_allows_cost_codes_until_they_go(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    words = [sys.executable, "-c", FEW, str(path)]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
        ExitStack() as s,
    ):
        s.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        remote = RemoteAgent(path, seconds=20)
        s.callback(remote.close)
        assert remote("status", b"x") == MAGIC + b"x"
        crowd = []
        for _ in range(300):
            one = sockets.socket(sockets.AF_UNIX)
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(str(path))
            crowd.append(one)
        end = time.monotonic() + 120
        while remote("status", b"x") != encode(Abort(AbortCode.INTERNAL)):
            assert time.monotonic() < end
            time.sleep(0.1)
        for one in crowd:
            one.close()
        while remote("status", b"x") != MAGIC + b"x":
            assert time.monotonic() < end + 120
            time.sleep(0.1)
        assert process.poll() is None
