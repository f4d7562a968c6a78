"""nginx, before a SuperLink that counts what it is sent: whom it lets through, and how much at once."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from support.node_headers import pem, signed
from support.processes import free_port, wait_for

from penchant.deploy.fleet import gateway, node_gate
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.enrolment_service import build_service
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings

pytestmark = pytest.mark.system

KEY = ec.generate_private_key(ec.SECP384R1())
STRANGER = ec.generate_private_key(ec.SECP384R1())
MB = 1_000_000


class CountingSuperLink:
    """Takes whatever comes, over TLS, and remembers how much of it was under way at a time."""

    def __init__(self, server_directory: ServerDirectory) -> None:
        self.received = self.now = self.most = 0
        self.slow = 0.0
        own, port = server_directory.tls.loopback, server_directory.settings.superlink_port
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(own.certificate, own.key)
        self.config = uvicorn.Config(
            self.app, interface="asgi3", host="127.0.0.1", port=port, log_config=None,
            ssl_certfile=str(own.certificate), ssl_keyfile=str(own.key),
        )  # fmt: skip

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.now += 1
        self.most = max(self.most, self.now)
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            self.received += len(message.get("body", b""))
        await asyncio.sleep(self.slow)
        self.now -= 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


class Gateway:
    """nginx before it and before an enrolment service, and one enrolled node."""

    def __init__(self, folder: Path) -> None:
        authority_store = AuthorityStore.init(folder / "authority")
        settings = ServerSettings(
            ("127.0.0.1",), "127.0.0.1", free_port(), free_port(), max_body_mb=8, max_bodies_mb=16,
            connections_per_address=24, requests_per_second=10,
        )  # fmt: skip
        self.server_directory = ServerDirectory.create(
            folder / "server", settings, authority_store.authority.public_key, authority_store.latest()
        )
        self.link = CountingSuperLink(self.server_directory)
        self.nodes = {pem(KEY)}
        self.tls = ssl.create_default_context(cafile=str(self.server_directory.tls.ca.certificate))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server_directory.settings.port), 20)

    def ask(self, path: str, headers: dict[str, str], size: int = 0, *, send: int | None = None) -> int:
        """The status of a POST that announces `size` bytes and sends `send`; 0 when the line is cut."""
        head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        with self.tls.wrap_socket(self.connect(), server_hostname="127.0.0.1") as line:
            line.sendall("\r\n".join([*head, "", ""]).encode())
            with suppress(OSError):
                for _ in range((size if send is None else send) // 100_000):
                    line.sendall(bytes(100_000))
            with suppress(OSError):
                words = line.makefile("rb").readline().split()
                return int(words[1]) if words else 0
        return 0


@contextmanager
def serving(config: uvicorn.Config) -> Iterator[None]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for("a service", lambda: server.started, 30)
        yield
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("gateway"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "penchant.deploy.fleet.enrolment.EnrolmentRegistry.knows_node",
            lambda self, key: key in made.nodes,
        )
        service = build_service(made.server_directory, None, collect=False)  # type: ignore[arg-type]
        checks = uvicorn.Config(service, uds=str(made.server_directory.enrol_socket), log_config=None)
        with serving(made.link.config), serving(checks):
            gateway.write(made.server_directory)
            process = subprocess.Popen(gateway.command(made.server_directory))
            try:
                wait_for("nginx", lambda: made.server_directory.settings.port and _up(made), 30)
                yield made
            finally:
                process.terminate()
                process.wait(20)


def _up(made: Gateway) -> bool:
    with suppress(OSError), closing(made.connect()):
        return True
    return False


PUSH = "/v1/fleet/push-object"


def test_no_byte_of_a_stranger_reaches_the_superlink(door: Gateway) -> None:
    before = door.link.received
    old = signed(KEY) | {node_gate.TIME_HEADER: "2020-01-01T00:00:00+00:00"}
    twice = signed(STRANGER) | {"Flwr-Public-Key": b64encode(pem(KEY)).decode()}
    for headers in ({}, signed(STRANGER), old, twice):
        for path in (PUSH, "/v1/fleet/push-messages", "/v1/fleet/pull-messages"):
            assert door.ask(path, headers, 60_000) == 401
    assert door.ask(PUSH, {}, 7 * MB) in (401, 0)
    assert door.link.received == before
    assert door.ask(PUSH, signed(KEY), 3 * MB) == 200
    assert door.link.received == before + 3 * MB


def test_the_answer_comes_before_the_body(door: Gateway) -> None:
    began = time.monotonic()
    assert door.ask(PUSH, {}, 7 * MB, send=0) == 401
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("path", "size"),
    [
        (PUSH, 9 * MB),
        ("/v1/fleet/push-messages", 2 * MB),
        ("/v1/fleet/pull-messages", 70_000),
        ("/enrol/join", 5000),
    ],
)
def test_each_path_has_its_largest_body(door: Gateway, path: str, size: int) -> None:
    before = door.link.received
    assert door.ask(path, signed(KEY), size, send=0) == 413
    assert door.link.received == before


def test_only_so_many_large_bodies_are_under_way_and_a_slow_sender_holds_no_place(door: Gateway) -> None:
    door.link.slow, door.link.most, codes = 1.0, 0, []
    slow = [door.tls.wrap_socket(door.connect(), server_hostname="127.0.0.1") for _ in range(3)]
    headers = "".join(f"{name}: {value}\r\n" for name, value in signed(KEY).items())
    try:
        for line in slow:
            line.sendall(
                f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Length: {7 * MB}\r\n{headers}\r\nxxxx".encode()
            )
        threads = [
            threading.Thread(target=lambda: codes.append(door.ask(PUSH, signed(KEY), 2 * MB)))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        door.link.slow = 0.0
        for line in slow:
            line.close()
    assert door.link.most == 2  # 16 MB of 8 MB each
    assert set(codes) == {200, 503}
    assert codes.count(200) >= 2


def test_one_network_holds_only_so_many_connections_whether_or_not_it_speaks(door: Gateway) -> None:
    most = door.server_directory.settings.connections_per_address
    time.sleep(3)  # what other tests left open
    lines = [door.connect() for _ in range(3 * most)]
    try:
        for line in lines[:most]:
            with suppress(OSError):
                line.sendall(b"\x16")  # half a greeting
        time.sleep(1)
        assert sum(map(_is_shut, lines)) >= 2 * most
    finally:
        for line in lines:
            line.close()


def _is_shut(line: socket.socket) -> bool:
    """Whether the gateway has closed a connection; with a reset, where it had not read what was sent."""
    line.setblocking(False)
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_half_a_request_is_not_waited_for(door: Gateway) -> None:
    time.sleep(1)
    with door.tls.wrap_socket(door.connect(), server_hostname="127.0.0.1") as line:
        line.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n")
        line.settimeout(20)
        began = time.monotonic()
        with suppress(OSError):
            while line.recv(4096):
                pass
        assert 5 < time.monotonic() - began < 15


def test_one_network_makes_only_so_many_requests(door: Gateway) -> None:
    with door.tls.wrap_socket(door.connect(), server_hostname="127.0.0.1") as line:
        wanted = 20 * door.server_directory.settings.requests_per_second
        line.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * wanted)
        line.settimeout(20)
        found = b""
        while found.count(b"HTTP/1.1 ") < wanted:
            part = line.recv(65536)
            if not part:
                break
            found += part
    assert found.count(b"HTTP/1.1 503") > 0
    assert found.count(b"HTTP/1.1 401") >= 4 * door.server_directory.settings.requests_per_second
