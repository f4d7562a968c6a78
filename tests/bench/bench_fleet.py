"""What a round of a real fleet costs: `python tests/bench/bench_fleet.py [--devices N] [--rounds N]`.

The fleet is that of `penchant quickstart`, on loopback: gateway, SuperLink, executor and enrolment, and for
each device an agent and a SuperNode, over TLS and with keys. First *Flower's floor*: an app without content
that does the five exchanges of a round over the same fleet, with Flower's own `send_and_receive`. Then rounds
of penchant, then the floor again. That twice: with training that takes no time (a tiny model) and with the
default model on Senate. Beside them the resident memory of every kind of process, and bytes a round.

Exchanges of Flower cost seconds, most of them spent waiting between two looks for messages. All devices share
this machine: what training takes is seven devices' work on its cores, and begins while the exchanges before
the masked vector go by. On a busy machine all times are upper bounds. Writes fleet.json into --out
(tests/bench/results), and the table in docs/runbook.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.processes import finished
from support.tiny_models import write_tiny_model

from penchant.common.secagg.stages import EXCHANGES
from penchant.deploy.fleet import served_run
from penchant.deploy.fleet.processes import door
from penchant.deploy.fleet.quickstart import RUN, Quickstart, live_fleet
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.superlink import start_run
from penchant.server.journal import Journal

LIMIT = 1.3  # a round over the floor of as many exchanges
PAGE = ROOT / "docs" / "runbook.md"
BLOCK = re.compile(r"<!-- fleet -->\n.*?<!-- end -->", re.S)
TINY, REAL = "training that takes no time", "all-MiniLM-L6-v2"

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


class Costs:
    """A fleet that is up, and what its processes hold in memory."""

    def __init__(self, server_directory: ServerDirectory, devices: int) -> None:
        self.server_directory, self.devices, self.run = server_directory, devices, server_directory.run(RUN)
        self.peaks: dict[str, float] = {}
        self._done = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the most that each kind of process held, resident and its own alone, in MB."""
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            yield
        finally:
            self._done.set()
            watcher.join()

    def floor(self, exchanges: int) -> list[float]:
        """Seconds of each of some empty exchanges, by Flower alone."""
        place = self.server_directory.path.parent
        app, out = place / "floor-app", place / "floor.json"
        shutil.rmtree(app, ignore_errors=True)
        (app / "floor").mkdir(parents=True)
        (app / "floor" / "__init__.py").touch()
        (app / "floor" / "app.py").write_text(FLOOR)
        table = PYPROJECT.format(exchanges=exchanges, devices=self.devices, out=json.dumps(str(out)))
        (app / "pyproject.toml").write_text(table)
        out.unlink(missing_ok=True)
        start_run(app, door(self.server_directory), place / "flwr")
        until("the floor", lambda: out.exists() and bool(out.read_text()), 600)
        found: list[float] = json.loads(out.read_text())
        return found

    def rounds(self, last: int) -> list[dict[str, Any]]:
        """Play the run; what the journal says of each round."""
        served_run.start(self.run, door(self.server_directory))
        until("the run", lambda: finished(self.run)[-1:] == [last], 1800)
        time.sleep(10)  # for the last word to the devices
        with closing(Journal(self.run)) as journal:
            logs = journal.logs()
        return [
            {
                "phase": log.phase,
                "seconds": log.seconds,
                "masked_seconds": self._seconds(log.round, "masked"),
                "up": log.bytes_up / log.cohort,
                "down": log.bytes_down / log.cohort,
                "survivors": log.survivors,
            }
            for log in logs
        ]

    def _seconds(self, number: int, stage: str) -> float:
        with closing(sqlite3.connect(self.run / "journal.db")) as db:
            query = "SELECT ended - began FROM stages WHERE round = ? AND stage = ? ORDER BY attempt DESC"
            (seconds,) = db.execute(query, (number, stage)).fetchone()
        return float(seconds)

    # --- memory --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                self._look(process)

    def _look(self, process: psutil.Process) -> None:
        try:
            words, memory = " ".join(process.cmdline()), process.memory_full_info()
            label = next((label for mark, label in KINDS.items() if re.search(mark, words)), "")
            if label == TRAINING and not any(
                "device serve" in " ".join(p.cmdline()) for p in process.parents()
            ):
                label = ""
        except psutil.Error:
            return
        for key, value in ((label, memory.rss), (f"{label} (own)", memory.uss)):
            if label:
                self.peaks[key] = max(self.peaks.get(key, 0.0), value / 1e6)


TRAINING = "device: training, at the end of which it is gone"
KINDS = {
    "flwr-serverapp": "server: ServerApp",
    "flower-superexec": "server: Flower's executor",
    "flower-superlink": "server: SuperLink",
    "agent.supernode": "device: SuperNode",
    "nginx": "server: gateway",
    "--only enrol": "server: enrolment service",
    "server up": "server: `penchant server up`",
    "device serve": "device: agent",
    "device connect": "device: `penchant device connect`",
    "multiprocessing.spawn": TRAINING,
}


def until(what: str, true: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def measure(devices: int, rounds: int, settings: tuple[tuple[str, object], ...]) -> dict[str, Any]:
    """Floor, rounds, floor; seconds, bytes, memory."""
    place = Path(tempfile.mkdtemp(prefix="bench-fleet-"))
    try:
        with live_fleet(Quickstart(place / "fleet", devices, rounds, settings), note) as server_directory:
            costs = Costs(server_directory, devices)
            with costs.watched():
                empty = costs.floor(len(EXCHANGES))
                note(f"empty exchanges: {', '.join(f'{seconds:.1f}' for seconds in empty)} s")
                log = costs.rounds(rounds + 1)
                empty += costs.floor(len(EXCHANGES))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    main = [row for row in log if row["phase"] == "main"]
    best = min(main, key=lambda row: row["seconds"])
    fives = [sum(empty[at : at + len(EXCHANGES)]) for at in range(0, len(empty), len(EXCHANGES))]
    floor = min(fives)
    not_hidden = max(best["masked_seconds"] - floor / len(EXCHANGES), 0.0)
    return {
        "devices": devices,
        "exchanges": empty,
        "floor_seconds": floor,
        "floor_seconds_mean": statistics.mean(fives),
        "rounds": main,
        "round_seconds": best["seconds"],
        "round_seconds_median": statistics.median(row["seconds"] for row in main),
        "not_hidden_seconds": not_hidden,
        "ratio": (best["seconds"] - not_hidden) / floor,
        "closing_seconds": log[-1]["seconds"],
        "bytes_up": best["up"],
        "bytes_down": best["down"],
        "memory_mb": dict(sorted(costs.peaks.items())),
        "load": os.getloadavg()[0],
    }


def keep(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def note(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=("tiny", "real"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "fleet.json"
    found = json.loads(path.read_text()) if path.is_file() and args.only else {}
    if args.only != "real":
        with tempfile.TemporaryDirectory(prefix="bench-tiny-") as folder:
            write_tiny_model("bert", Path(folder))
            tiny = (("model.base_model", folder), ("data.pairs", 4), ("federation.warmup_rounds", 0))
            found[TINY] = measure(args.devices, args.rounds, tiny)
            keep(path, found)
    if args.only != "tiny":
        found[REAL] = measure(args.devices, args.rounds, (("federation.warmup_rounds", 0),))
    keep(path, found)
    print(table(found))
    if args.out == HERE / "results":
        PAGE.write_text(BLOCK.sub(lambda _: block(found), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def block(found: dict[str, Any]) -> str:
    """What the runbook shows."""
    return f"<!-- fleet -->\n{table(found)}\n<!-- end -->"


def table(found: dict[str, Any]) -> str:
    """Times and bytes by model, then the memory of each process."""
    rows = list(found.values())

    def line(what: str, cell: Callable[[dict[str, Any]], str]) -> str:
        return f"| {what} | {' | '.join(cell(row) for row in rows)} |"

    lines = [
        f"| {rows[0]['devices']} devices on one machine | {' | '.join(found)} |",
        "|---" * (len(rows) + 1) + "|",
        line(
            "the floor: five empty exchanges by Flower alone, before or after (mean of both)",
            lambda row: f"{seconds(row['floor_seconds'])} ({seconds(row['floor_seconds_mean'])})",
        ),
        line(
            f"a round, best of {len(rows[0]['rounds'])} (median)",
            lambda row: f"{seconds(row['round_seconds'])} ({seconds(row['round_seconds_median'])})",
        ),
        line(
            "of which the masked vector takes longer than an empty exchange",
            lambda row: seconds(row["not_hidden_seconds"]),
        ),
        line(f"the rest of a round, over the floor (limit {LIMIT})", lambda row: f"{row['ratio']:.2f}"),
        line("bytes up, a device and round", lambda row: f"{row['bytes_up']:,.0f}"),
        line("bytes down, a device and round", lambda row: f"{row['bytes_down']:,.0f}"),
    ]
    memory = rows[-1]["memory_mb"]
    lines += ["", "| process | most resident MB | of which its own |", "|---|---|---|"]
    lines += [
        f"| {name} | {most:.0f} | {memory[f'{name} (own)']:.0f} |"
        for name, most in memory.items()
        if not name.endswith("(own)")
    ]
    return "\n".join(lines)


def seconds(value: float) -> str:
    return f"{value:.1f} s"


if __name__ == "__main__":
    main()
