"""Strangers flood the gateway while a round goes on: memory stays, and so does the round."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from support.deployment import Deployment
from support.processes import finished
from system.hosts import Host, network
from system.live_fleet import LiveFleet

pytestmark = pytest.mark.system

DEVICES = 3
MB = 1_000_000
MOST_GROWTH = (
    100 * MB
)  # of all of the server's processes of one name; 10 bodies of 60 MB are 1,400 in the SuperLink

FLOOD = """
import base64, datetime, socket, ssl, sys, threading, time
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
context = ssl.create_default_context(cafile=sys.argv[3])
key = ec.generate_private_key(ec.SECP384R1())
pem = key.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
codes = []
def connect():
    return socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
def signed():
    stamp = datetime.datetime.now(datetime.UTC).isoformat()
    proof = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {"flwr-public-key": base64.b64encode(pem).decode(), "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(proof).decode()}
def push(size, headers):
    with context.wrap_socket(connect(), server_hostname=sys.argv[1]) as link:
        head = ["POST /v1/fleet/push-object HTTP/1.1", "Host: x", "Content-Type: application/protobuf",
                f"Content-Length: {size}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        link.sendall("\\r\\n".join(head).encode())
        try:
            for _ in range(size // 100_000):
                link.sendall(bytes(100_000))
        except OSError:
            pass
        codes.append(link.recv(20)[9:12])
def one(number):
    while True:
        try:
            push(60_000_000, signed() if number % 2 else {})
        except OSError:
            pass
        time.sleep(2)
for number in range(10):
    threading.Thread(target=one, args=(number,), daemon=True).start()
held = []
while True:  # as many half connections as it can get
    try:
        held.append(connect())
        held[-1].sendall(bytes([22]))
        held = held[-1000:]
    except OSError:
        pass
    time.sleep(0.05)
    print(len(held), sorted(set(codes)), len(codes), flush=True)
"""


def memory(server: Host, word: str) -> int:
    """Resident bytes of the server's processes whose command line holds a word."""
    total = 0
    for pid in server.processes():
        try:
            process = psutil.Process(pid)
            if word in " ".join(process.cmdline()):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def test_a_flood_of_strangers_fills_no_memory_and_stops_no_round(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = {"federation.rounds": 1, "federation.deadline_seconds": 240.0}
    deployment = Deployment(tmp_path, tiny_model("bert"), DEVICES, settings)
    deployment.init_server()
    with network(DEVICES + 2) as (*hosts, stranger), closing(LiveFleet(deployment, hosts)) as fleet:
        server = fleet.server
        fleet.start_server()
        fleet.register_nodes()
        fleet.start_devices({})
        words = ("flower-superlink", "nginx", "--only enrol")
        before = {word: memory(server, word) for word in words}
        assert all(before.values())
        ca = str(fleet.server_directory.tls.ca.certificate)
        port = str(fleet.server_directory.settings.port)
        flood = stranger.start(
            [sys.executable, "-c", FLOOD, server.address, port, ca], tmp_path / "flood.log"
        )
        most, began = dict(before), time.monotonic()
        fleet.play()
        while finished(deployment.run)[:1] != [1] or time.monotonic() - began < 10:
            assert flood.poll() is None, (tmp_path / "flood.log").read_text()
            assert time.monotonic() - began < 400, fleet.story()
            most = {word: max(most[word], memory(server, word)) for word in words}
            time.sleep(0.2)
        said = (tmp_path / "flood.log").read_text().splitlines()
        print("flood:", said[-1], {word: (before[word] // MB, most[word] // MB) for word in words})
        assert {
            word: most[word] - before[word] for word in words if most[word] - before[word] > MOST_GROWTH
        } == {}
        assert "401" in said[-1]
        assert "200" not in said[-1]
