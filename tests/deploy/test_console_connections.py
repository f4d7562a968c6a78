"""The console's connections, over a real uvicorn: how many, and for how long without a word."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from support.processes import free_port

from penchant.deploy.console import connections
from penchant.deploy.console.connections import BoundedConnection


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


class Quick(BoundedConnection):
    EACH = 5
    HEAD_SECONDS = 1.0


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "_loopback", lambda address: False)
    chosen = free_port()
    config = uvicorn.Config(
        app, interface="asgi3", host="127.0.0.1", port=chosen, http=Quick, log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 120
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.05)
    yield chosen
    server.should_exit = True
    thread.join(120)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 20)


def is_shut(line: socket.socket, seconds: float) -> bool:
    line.settimeout(seconds)
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def ask(line: socket.socket, *parts: bytes) -> bytes:
    for part in parts:
        line.sendall(part)
    line.settimeout(20)
    with suppress(OSError):
        return line.recv(1000)
    return b""


def test_one_network_holds_only_so_many(port: int) -> None:
    lines = [connect(port) for _ in range(12)]
    shut = [is_shut(line, 0.05) for line in lines]
    assert sum(shut) == 12 - Quick.EACH
    for line in lines:
        line.close()
    time.sleep(0.5)
    with connect(port) as line:  # places come back
        assert ask(line, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:"])
def test_the_head_of_a_request_is_not_waited_for(port: int, begun: bytes) -> None:
    with connect(port) as line:
        line.sendall(begun)
        assert is_shut(line, 10)


def test_nor_is_that_of_a_second_request(port: int) -> None:
    with connect(port) as line:
        assert ask(line, b"GET / HTTP/1.1\r\n", b"Host: x\r\n\r\n").startswith(b"HTTP/1.1 204")
        line.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        assert is_shut(line, 10)
        assert time.monotonic() - began < 4  # and not uvicorn's own five


def test_a_proxy_on_this_machine_is_not_counted() -> None:
    found = [
        connections._loopback(text)
        for text in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "", "192.0.2.1", "2001:db8::1")
    ]
    assert found == [True, True, True, True, False, False]
