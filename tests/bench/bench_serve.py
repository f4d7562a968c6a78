"""What an answer of a device's API takes: `python tests/bench/bench_serve.py [--clients N] [--requests N]`.

`penchant device serve-api` in another process over the default base model, trained on a few choices; programs
that rank 8 texts at a time, each after its last answer: 1 of them, and N at once. Once with texts that are
new to the model, once with those it has just read. Milliseconds to the last byte: median, 99th percentile,
worst; requests a second; how many were refused.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.device_api_scene import motions
from support.http_ready import wait_until_it_answers

from penchant.client.device.device import Device
from penchant.deploy.device_api.api_token import api_token

TEXTS = 8
PENCHANT = (sys.executable, "-m", "penchant.deploy.cli.main", "device")
FILLER = "the committee heard that the amendment would be paid for over several years and moved on " * 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=8, help="of each client")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "device"
        device = Device(home)
        device.record(motions())
        device.train()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        served = {**os.environ, "PENCHANT_HOME": str(home)}
        process = subprocess.Popen([*PENCHANT, "serve-api", "--port", str(port)], env=served)
        try:
            url, token = f"http://127.0.0.1:{port}", api_token(home)
            wait_until_it_answers(f"{url}/health", process)
            for clients in dict.fromkeys((1, given.clients)):
                for texts in ("new", "read before"):
                    rows.append(measured(url, token, clients, given.requests, texts))
        finally:
            process.terminate()
            process.wait()
    print(f"{TEXTS} texts of some 32 tokens a request, {given.requests} requests a client")
    for row in rows:
        times = " ".join(f"{row[key]:9.1f}" for key in ("p50_ms", "p99_ms", "worst_ms", "per_second"))
        print(f"{row['clients']:3d} clients, texts {row['texts']:12s} {times}   {row['refused']} refused")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(url: str, token: str, clients: int, requests: int, texts: str) -> dict[str, Any]:
    """How long each of all requests took."""
    times: list[float] = []
    refused = 0

    def program(number: int) -> list[tuple[float, int]]:
        found = []
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=600) as client:
            for turn in range(requests):
                name = f"{clients} {number} {turn}"  # the same in both passes: in the second one it was read
                body = {
                    "query": f"on bill {name}: ",
                    "texts": [f"{place} {FILLER}" for place in range(TEXTS)],
                }
                began = time.perf_counter()
                answer = client.post("/rerank", json=body)
                found.append((1000 * (time.perf_counter() - began), answer.status_code))
        return found

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for taken, status in (one for own in pool.map(program, range(clients)) for one in own):
            times.append(taken)
            refused += status != 200
    wall = time.perf_counter() - began
    p50, p99 = np.percentile(times, [50, 99])
    return {
        "clients": clients,
        "texts": texts,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "worst_ms": max(times),
        "per_second": len(times) / wall,
        "refused": refused,
    }


if __name__ == "__main__":
    sys.exit(main())
