"""What the console's pages take: `python tests/bench/bench_console.py [--runs N] [--rounds N] [--devices N]`.

Journals of many rounds and devices, written by the journal itself, then every page over real HTTP on
loopback, in another process: best, median and worst of several, in milliseconds to the last byte, and how
large it is. Once over a simulation alone, once over a fleet with as many members, whose SuperLink takes
connections and never answers. With --runs, each has so many of them, all alike. At the end, what the
console's process takes of a core while seven pages lie open and nothing happens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.console_scene import PASSWORD, make_run
from support.http_ready import wait_until_it_answers

from penchant.common.membership.enrolment import request
from penchant.common.membership.identity import Authority
from penchant.deploy.fleet.enrolment import DATABASE, EnrolmentRegistry
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.forms import secure_form

LIMIT_MS = 200.0  # the first page, with 1,000 devices and 500 rounds
PAGES = ("/", "/runs", "/runs/ID", "/devices", "/privacy", "/releases", "/audit")
PORT = 8917
MONTH = 30 * 86400


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(
        f"{given.runs} runs of {given.rounds} rounds, {given.devices} devices; milliseconds: "
        "best, median and worst of",
        end=" ",
    )
    print(f"{given.repeats}, and the first of them")
    rows = []
    for what in ("simulation", "fleet, its SuperLink hangs"):
        with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as hung:
            root = Path(folder) / "runs"
            if what == "simulation":
                make_long(root / "long", given)
            else:
                make_fleet(root, given, hung.getsockname()[1])
            rows += planned(Path(folder), root, what, given.repeats)
    for row in rows:
        times = " ".join(f"{row[key]:8.1f}" for key in ("best_ms", "median_ms", "worst_ms", "first_ms"))
        print(f"{row['what']:27s} {row['page']:10s} {times}   {row['kb']:6.1f} kB")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    first = max(row["best_ms"] for row in rows if row["page"] == "/")
    print(f"the first page: {first:.0f} ms, at most {LIMIT_MS:.0f}")
    return 0 if first <= LIMIT_MS else 1


def make_long(directory: Path, given: argparse.Namespace) -> Path:
    """A run, and beside it as many more as are asked for: the same without checkpoints."""
    most = min(given.rounds + 1, 4000)
    make_run(directory, given.rounds, of=most, devices=given.devices, joined=34)
    for number in range(1, given.runs):
        copy = directory.with_name(f"run-{number:03d}")
        shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("checkpoints"))
    os.utime(directory / "config.toml")
    return directory


def make_fleet(directory: Path, given: argparse.Namespace, port: int) -> None:
    """A fleet's server with its runs; every member came by a token. port: of its SuperLink."""
    authority, now = Authority.create(), int(time.time())
    asked = [request((number + 1).to_bytes(32, "big")) for number in range(given.devices)]
    certified = [authority.issue(number, one.public_key) for number, one in enumerate(asked, 1)]
    members = authority.publish(1, certified, issued=now, expires=now + MONTH)
    settings = ServerSettings(addresses=("fleet.example.org",), superlink_port=port)
    server_directory = ServerDirectory.create(directory, settings, authority.public_key, members.encode())
    EnrolmentRegistry(server_directory)
    with sqlite3.connect(directory / DATABASE) as db:
        for number, one in enumerate(asked, 1):
            token = number.to_bytes(32, "big")
            row = (token, f"device {number}", settings.gateway, now - number, now + MONTH)
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", row)
            enrolled = (token, one.public_key, token, one.encode(), now, b"an answer", number, 1000 + number)
            db.execute("INSERT INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", enrolled)
    make_long(directory / "runs" / "long", given)
    for run in (directory / "runs").iterdir():
        (run / "blueprint.json").write_text("{}", encoding="utf-8")


def planned(folder: Path, root: Path, what: str, repeats: int) -> list[dict[str, Any]]:
    store = ConsoleStore(folder / "state")
    store.add("olga", "operator", PASSWORD)
    words = ["console", str(root), "--port", str(PORT), "--state", str(folder / "state")]
    program = [sys.executable, "-P", "-c", "from penchant.deploy.cli.main import main; main()"]
    process = subprocess.Popen([*program, *words], stdout=subprocess.DEVNULL)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{PORT}/healthz", process)
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
            client.get("/login")
            form = {
                "name": "olga",
                "password": PASSWORD,
                "csrf": secure_form(client.cookies["penchant-form"]),
            }
            client.post("/login", data=form)
            first = _page(client, "/", "/", repeats)
            listed = client.get("/runs").text
            one = listed.split('href="/runs/long-')[1].split('"')[0]
            others = [_page(client, page, page.replace("ID", f"long-{one}"), repeats) for page in PAGES[1:]]
            rest = _at_rest(client, process.pid)
            print(f"{what}: {100 * rest:.2f}% of a core while seven pages lie open", flush=True)
            return [row | {"what": what, "at_rest": rest} for row in (first, *others)]
    finally:
        process.terminate()
        process.wait()
        store.close()


def _at_rest(client: httpx.Client, process: int) -> float:
    """The part of a core that a process takes while seven pages ask every other second for 30 s."""
    mark = client.get("/").text.split('data-mark="')[1].split('"')[0]

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]))

    began, before = time.monotonic(), ticks()
    while time.monotonic() - began < 30.0:
        for _ in range(7):
            answer = client.get("/", headers={"x-penchant-mark": mark})
            mark = answer.text.split('data-mark="')[1].split('"')[0] if answer.text else mark
        time.sleep(2.0)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)


def _page(client: httpx.Client, name: str, path: str, repeats: int) -> dict[str, Any]:
    times, length = [], 0
    for _ in range(repeats):
        began = time.perf_counter()
        answer = client.get(path)
        times.append(1000 * (time.perf_counter() - began))
        answer.raise_for_status()
        length = len(answer.content)
    return {
        "page": name,
        "best_ms": min(times),
        "median_ms": statistics.median(times),
        "worst_ms": max(times),
        "first_ms": times[0],
        "kb": length / 1000,
    }


if __name__ == "__main__":
    sys.exit(main())
