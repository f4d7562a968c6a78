"""The server as a device sees it from its own host: one open port, and behind it the fleet's paths alone."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from support.processes import PROGRAM, free_port
from system.hosts import Host, network

from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.superlink import FLEET_PATHS

pytestmark = pytest.mark.system

PORT = 8443

SCAN = """
import asyncio, json, sys
async def one(port, gate, found):
    async with gate:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], port), 20)
        except (OSError, asyncio.TimeoutError):
            return
        found.append(port)
        writer.close()
async def main():
    gate, found = asyncio.Semaphore(400), []
    await asyncio.gather(*(one(port, gate, found) for port in range(1, 65536)))
    print(json.dumps(sorted(found)))
asyncio.run(main())
"""

ASK = """
import json, socket, ssl, sys
host, port, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context(cafile=ca)
def ask(line):
    with context.wrap_socket(socket.create_connection((host, port), 20), server_hostname=host) as link:
        head = [f"{line} HTTP/1.1", "Host: x", "Content-Length: 0", "Connection: close", "", ""]
        link.sendall("\\r\\n".join(head).encode())
        return int(link.makefile("rb").readline().split()[1])
print(json.dumps([ask(line) for line in json.loads(sys.stdin.read())]))
"""

OUTSIDE = [
    "GET /", "GET /docs", "GET /openapi.json", "GET /health", "GET /healthz", "POST /v1/control/list-runs",
    "POST /v1/control/start-run", "POST /v1/control/register-node", "POST /v1/runtime/acquire-task",
    "POST /v1/fleet/register-node", "POST /v1/fleet/unregister-node", "POST /v1/fleet/", "POST /v1/fleet",
    "POST /v1/fleet/../control/list-runs", "POST /v1/fleet/%2e%2e/control/list-runs",
    "POST /v1/fleet/pull-messages/../../control/list-runs", "POST /v1/fleet/pull-messages%2f..%2f..%2fdocs",
    "POST //v1/control/list-runs", "POST /v1//control/list-runs", "POST /V1/CONTROL/list-runs",
    "GET /enrol/", "GET /enrol/docs", "GET /enrol/../docs", "GET /enrol/ca/../../openapi.json",
    "POST /v1/fleet/pull-messages?/../../control/list-runs#", "GET /v1/responses",
]  # fmt: skip


def ask(device: Host, server: Host, ca: Path, lines: list[str]) -> list[int]:
    """The status of each request, as the device gets it. What is read from input stands in the program."""
    program = ASK.replace("sys.stdin.read()", repr(json.dumps(lines)))
    done = device.run([sys.executable, "-c", program, server.address, str(PORT), str(ca)], timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


def test_a_device_finds_the_gateway_and_nothing_else(tmp_path: Path) -> None:
    with network(2) as (server, device):
        authority_store = AuthorityStore.init(tmp_path / "authority")
        settings = ServerSettings(
            addresses=(server.address,), port=PORT, superlink_port=free_port(), enrol_per_minute=10_000
        )
        server_directory = ServerDirectory.create(
            tmp_path / "server", settings, authority_store.authority.public_key, authority_store.latest()
        )
        up = server.start([*PROGRAM, "server", "up", str(server_directory.path)], tmp_path / "up.log")
        end = time.monotonic() + 180
        while "devices reach" not in (tmp_path / "up.log").read_text():
            assert up.poll() is None, (tmp_path / "up.log").read_text()
            assert time.monotonic() < end, "the server is not up"
            time.sleep(0.5)

        scan = device.run([sys.executable, "-c", SCAN, server.address], timeout=500)
        assert json.loads(scan.stdout) == [PORT], scan.stderr

        ca = server_directory.tls.ca.certificate
        codes = ask(device, server, ca, OUTSIDE)
        reached = dict(zip(OUTSIDE, codes, strict=True))
        # The one that is a fleet path with a strange query reaches Flower's own check of who asks.
        inside = reached.pop("POST /v1/fleet/pull-messages?/../../control/list-runs#")
        assert inside in (400, 401, 415, 422)
        assert {line: code for line, code in reached.items() if code not in (400, 404)} == {}

        # Without a registered key no fleet path lets anybody in, and the SuperLink is really behind them.
        codes = ask(device, server, ca, [f"POST /v1/fleet/{name}" for name in FLEET_PATHS])
        assert set(codes) <= {400, 401, 415, 422}
        assert set(
            ask(device, server, ca, ["GET /v1/fleet/get-run", "DELETE /enrol/ca", "GET /enrol/join"])
        ) == {403}
        assert ask(device, server, ca, ["GET /enrol/ca"]) == [200]

        up.terminate()
        assert up.wait(60) == 0
        assert server.processes() == []  # it stops with all that it started
