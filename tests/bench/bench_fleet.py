"""What a round of real processes costs: `python tests/bench/bench_fleet.py [--devices N] [--json FILE]`.

One SuperLink, N SuperNodes and, behind each, an agent, on loopback. First *Flower's floor*: an app without
any content that does the five exchanges of a round, with Flower's own `send_and_receive`. Then rounds of
penchant, with training that takes no time (a tiny model) and with the real one, then the floor again. Beside
them the resident memory of every kind of process, and bytes a round.

Exchanges of Flower cost seconds, most of them spent waiting between two looks for messages, and in starting a
process for each message on each device. On a busy machine all times are upper bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import write_tiny_model
from deployment import Deployment
from open_flower import superlink_command, supernode_command
from processes import PROGRAM, finished, free_port, listens, running

from penchant.deploy import rundir, served
from penchant.deploy.superlink import Door, environment, start_run
from penchant.server.journal import Journal
from penchant.server.secagg import STAGES

LIMIT = 1.3  # a round over the floor of as many exchanges

FLOOR = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()

@server.main()
def main(grid: Grid, context: Context) -> None:
    took, nothing = [], RecordDict({"empty": ConfigRecord({"is": b""})})
    for _ in range(int(context.run_config["exchanges"])):
        began = time.monotonic()
        orders = [
            Message(nothing, dst_node_id=node, message_type="train.empty") for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(orders, timeout=300))
        if len(replies) != int(context.run_config["devices"]):
            raise RuntimeError(f"{len(replies)} devices answered")
        took.append(time.monotonic() - began)
    Path(str(context.run_config["out"])).write_text(json.dumps(took))

@client.train("empty")
def empty(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)
"""
PYPROJECT = """[project]
name = "floor"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"
fab-include = ["**/*.py"]

[tool.flwr.app.components]
serverapp = "floor.app:server"
clientapp = "floor.app:client"

[tool.flwr.app.config]
exchanges = {exchanges}
devices = {devices}
out = {out}
"""


class Fleet:
    """The processes, and what they hold in memory."""

    def __init__(self, place: Path, base: str, devices: int, settings: dict[str, Any]) -> None:
        self.place, self.devices = place, devices
        self.deployment = Deployment(place, base, devices, settings)  # type: ignore[arg-type]
        self.deployment.init_server()
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.flower = environment(place / "flower")
        self.families: dict[str, list[psutil.Process]] = {}
        self.peaks: dict[str, float] = {}
        self._done = threading.Event()

    @contextmanager
    def up(self) -> Iterator[Fleet]:
        with ExitStack() as stack:
            link = superlink_command(self.port, self.place / "state.db")
            self._keep("server", stack, link, "superlink.log", self.flower)
            until("the SuperLink", lambda: listens(self.port))
            homes = self.deployment.homes
            for folder in homes:
                words = [*PROGRAM, "device", "serve", "--home", str(folder)]
                self._keep("agent", stack, words, "agents.log", os.environ | {"OMP_NUM_THREADS": "1"})
                node = supernode_command(self.address, free_port(), folder / "agent.sock")
                self._keep("node", stack, node, "nodes.log", self.flower)
            until("the agents", lambda: all((folder / "agent.sock").exists() for folder in homes))
            until("the nodes", lambda: self._connected() == self.devices)
            watcher = threading.Thread(target=self._watch)
            watcher.start()
            try:
                yield self
            finally:
                self._done.set()
                watcher.join()

    def _keep(self, name: str, stack: ExitStack, words: list[str], log: str, env: dict[str, str]) -> None:
        process = stack.enter_context(running(words, self.place / log, env=env))
        self.families.setdefault(name, []).append(psutil.Process(process.pid))

    def _connected(self) -> int:
        return (self.place / "nodes.log").read_text(errors="replace").count("SuperNode ID")

    def floor(self, exchanges: int) -> list[float]:
        """Seconds of each of some empty exchanges, by Flower alone."""
        app, out = self.place / "floor-app", self.place / "floor.json"
        shutil.rmtree(app, ignore_errors=True)
        (app / "floor").mkdir(parents=True)
        (app / "floor" / "__init__.py").touch()
        (app / "floor" / "app.py").write_text(FLOOR)
        table = PYPROJECT.format(exchanges=exchanges, devices=self.devices, out=json.dumps(str(out)))
        (app / "pyproject.toml").write_text(table)
        out.unlink(missing_ok=True)
        start_run(app, Door(self.address), self.place / "flwr")
        until("the floor", out.exists, 600)
        time.sleep(1)
        found: list[float] = json.loads(out.read_text())
        return found

    def rounds(self) -> list[dict[str, Any]]:
        """Play the run; what the journal says of each round."""
        run = self.deployment.run
        last = rundir.read_config(run).federation.rounds + 1
        served.start(run, Door(self.address))
        until("the run", lambda: finished(run)[-1:] == [last], 1800)
        time.sleep(10)  # for the last word to the devices
        journal = Journal(run)
        try:
            return [
                {
                    "phase": log.phase,
                    "seconds": log.seconds,
                    "up": log.bytes_up / log.cohort,
                    "down": log.bytes_down / log.cohort,
                    "survivors": log.survivors,
                }
                for log in journal.logs()
            ]
        finally:
            journal.close()

    # --- memory --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Keep the most that each kind of process held: resident, and of that its own alone, in MB."""
        while not self._done.wait(0.5):
            for name, members in self.families.items():
                for member in members:
                    self._look(name, member)

    def _look(self, name: str, member: psutil.Process) -> None:
        try:
            family = [member, *member.children(recursive=True)]
        except psutil.Error:
            return
        for process in family:
            try:
                words = " ".join(process.cmdline())
                memory = process.memory_full_info()
            except psutil.Error:
                continue
            kind = next((k for k in KINDS if k in words), "agent" if name == "agent" else "other")
            label = KINDS.get(kind, kind)
            where = "" if label == "agent" else ("server: " if name == "server" else "device: ")
            for what, value in (("", memory.rss), (" (own)", memory.uss)):
                key = f"{where}{label}{what}"
                self.peaks[key] = max(self.peaks.get(key, 0.0), value / 1e6)


KINDS = {
    "flower-superlink": "SuperLink",
    "flower-supernode": "SuperNode",
    "flower-superexec": "executor",
    "flwr-serverapp": "ServerApp",
    "flwr-clientapp": "relay, while a message is served",
}


def until(what: str, true: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def measure(base: str, devices: int, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Floor, rounds, floor; seconds, bytes, memory."""
    place = Path(tempfile.mkdtemp(prefix="bench-fleet-"))
    if base == "tiny":
        write_tiny_model("bert", place / "tiny")
        base = str(place / "tiny")
    try:
        fleet = Fleet(place / "fleet", base, devices, {"federation.rounds": rounds, **settings})
        with fleet.up():
            floor = fleet.floor(2 * len(STAGES))
            log = fleet.rounds()
            floor += fleet.floor(len(STAGES))
        main = [row for row in log if row["phase"] == "main"]
        expected = len(STAGES) * statistics.mean(floor)
        return {
            "devices": devices,
            "exchange_seconds": {"mean": statistics.mean(floor), "min": min(floor), "max": max(floor)},
            "floor_seconds": expected,
            "round_seconds": [row["seconds"] for row in main],
            "ratio": statistics.median(row["seconds"] for row in main) / expected,
            "closing_seconds": log[-1]["seconds"],
            "bytes_up": main[0]["up"],
            "bytes_down": main[0]["down"],
            "memory_mb": dict(sorted(fleet.peaks.items())),
            "load": os.getloadavg()[0],
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--base", default="all-MiniLM-L6-v2", help="the second model; the first is a tiny one"
    )
    parser.add_argument("--only-tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {"training that takes no time": measure("tiny", args.devices, args.rounds, {})}
    show("training that takes no time", found["training that takes no time"])
    if not args.only_tiny:
        real = {"model.max_tokens": 64, "training.local_epochs": 6}
        found[args.base] = measure(args.base, args.devices, args.rounds, real)
        show(args.base, found[args.base])
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def show(what: str, row: dict[str, Any]) -> None:
    each, floor = ", ".join(f"{seconds:.1f}" for seconds in row["round_seconds"]), row["floor_seconds"]
    print(f"{what}, {row['devices']} devices (load {row['load']:.1f})")
    mean = row["exchange_seconds"]["mean"]
    print(f"  five empty exchanges by Flower alone: {floor:.1f} s ({mean:.1f} s each)")
    print(f"  a round: {each} s; {row['ratio']:.2f} of that (limit {LIMIT})")
    print(f"  the closing round, of everybody: {row['closing_seconds']:.1f} s")
    print(f"  bytes a device and round: {row['bytes_up']:,.0f} up, {row['bytes_down']:,.0f} down")
    for kind, most in row["memory_mb"].items():
        print(f"  {kind}: {most:.0f} MB")


if __name__ == "__main__":
    main()
