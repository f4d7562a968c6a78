"""What the console's pages take: `python tests/bench/bench_console.py [--rounds N] [--devices N]`.

A journal of many rounds and devices, written by hand; then every page over real HTTP on loopback, in another
process: best and median of several, in milliseconds to the last byte, and how large it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from console_scene import PASSWORD, make_run

from penchant.server.console.store import Store
from penchant.server.console.web import secure_form

LIMIT_MS = 200.0  # the first page, with 1,000 devices and 500 rounds
PAGES = ("/", "/runs", "/runs/ID", "/devices", "/privacy", "/releases", "/audit")
PORT = 8917


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = bench(Path(folder), given.rounds, given.devices, given.repeats)
    print(f"{given.rounds} rounds, {given.devices} devices; milliseconds, best and median of {given.repeats}")
    for row in rows:
        print(f"{row['page']:12s} {row['best_ms']:8.1f} {row['median_ms']:8.1f}   {row['kb']:6.1f} kB")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    first = rows[0]["best_ms"]
    print(f"the first page: {first:.0f} ms, at most {LIMIT_MS:.0f}")
    return 0 if first <= LIMIT_MS else 1


def bench(folder: Path, rounds: int, devices: int, repeats: int) -> list[dict[str, Any]]:
    make_run(folder / "runs" / "long", rounds, of=rounds + 1, devices=devices)
    store = Store(folder / "state")
    store.add("olga", "operator", PASSWORD)
    words = ["console", str(folder / "runs"), "--port", str(PORT), "--state", str(folder / "state")]
    program = [sys.executable, "-P", "-c", "from penchant.deploy.cli import main; main()"]
    process = subprocess.Popen([*program, *words], stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
            _wait(client)
            client.get("/login")
            form = {
                "name": "olga",
                "password": PASSWORD,
                "csrf": secure_form(client.cookies["penchant-form"]),
            }
            client.post("/login", data=form)
            listed = client.get("/runs").text
            one = listed.split('href="/runs/long-')[1].split('"')[0]
            return [_page(client, page, page.replace("ID", f"long-{one}"), repeats) for page in PAGES]
    finally:
        process.terminate()
        process.wait()
        store.close()


def _wait(client: httpx.Client) -> None:
    for _ in range(200):
        try:
            client.get("/healthz")
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the console did not come up")


def _page(client: httpx.Client, name: str, path: str, repeats: int) -> dict[str, Any]:
    times, length = [], 0
    for _ in range(repeats):
        began = time.perf_counter()
        answer = client.get(path)
        times.append(1000 * (time.perf_counter() - began))
        answer.raise_for_status()
        length = len(answer.content)
    return {"page": name, "best_ms": min(times), "median_ms": statistics.median(times), "kb": length / 1000}


if __name__ == "__main__":
    sys.exit(main())
