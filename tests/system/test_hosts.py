"""The wire between hosts does what tests of faults rely on, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from system.hosts import Host, network

pytestmark = pytest.mark.system

# A thread for each: one whose last packet was lost holds up nobody else.
ECHO = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
with socketserver.ThreadingTCPServer((sys.argv[1], 7000), Echo) as server:
    server.daemon_threads = True
    print("up", flush=True)
    server.serve_forever()
"""
ASK = """
import socket, sys, time
size, address = int(sys.argv[2]), (sys.argv[1], 7000)
with socket.create_connection(address, timeout=float(sys.argv[3])) as there:
    began, got = time.monotonic(), 0
    there.sendall(bytes(size))
    while got < size:
        got += len(there.recv(65536))
    print(time.monotonic() - began)
"""


def ask(host: Host, server: Host, size: int = 100, seconds: float = 20.0) -> float:
    """Seconds until `size` bytes have come back; OSError when they don't."""
    done = host.run([sys.executable, "-c", ASK, server.address, str(size), str(seconds)])
    if done.returncode != 0:
        raise OSError(done.stderr)
    return float(done.stdout)


def test_packets_are_delayed_lost_and_cut_and_nothing_is_left(tmp_path: Path) -> None:
    with network(3, delay=0.02) as (server, one, other):
        echo = server.start([sys.executable, "-c", ECHO, server.address], tmp_path / "echo.log")
        end = time.monotonic() + 20
        while "up" not in (tmp_path / "echo.log").read_text():
            assert time.monotonic() < end
            time.sleep(0.1)
        assert ask(one, server) >= 0.08  # two links, there and back
        one.link.loss = 0.05
        ask(one, server, size=300_000)  # TCP mends what the wire loses
        assert one.link.lost > 0
        assert one.link.carried > 600_000
        one.link.loss, one.link.up = 0.0, False
        with pytest.raises(OSError, match="timed out"):
            ask(one, server, seconds=2)
        assert ask(other, server) < 5
        one.link.up = True
        ask(one, server)
        with pytest.raises(OSError, match="refused"):
            ask(one, other, seconds=5)  # each host has its own ports
        assert echo.pid in server.processes()
        names = [server.name, one.name, other.name]
    assert not psutil.pid_exists(echo.pid) or echo.poll() is not None
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in left for name in names)


def test_a_failing_test_leaves_nothing_either(tmp_path: Path) -> None:
    names = []

    def fails() -> None:
        with network(2) as hosts:
            names.extend(host.name for host in hosts)
            hosts[0].start(["sleep", "600"], tmp_path / "log")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in left for name in names)
