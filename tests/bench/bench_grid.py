"""What the in-process grid costs: `python tests/bench/bench_grid.py [--repeats N] [--json FILE]`.

Exchanges with clients that answer at once with nothing: milliseconds of wall time and of CPU for one message
there and back, through the same `Exchange`, `Grid` and ClientApp as a run; best and median of several.
Then whole rounds of a federation whose clients do trivial work: readiness, an announcement, a vector of a few
numbers, the sum, the journal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context

from penchant.client.agent.flower_app import Answer, build_app
from penchant.common.config import RunConfig
from penchant.common.membership.identity import list_digest
from penchant.common.model.factors import AdaptedModule
from penchant.common.model.signature import ModelSignature
from penchant.common.secagg.transcript import context_digest
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Announce, Plain, Ready, Status
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.availability import Availability
from penchant.server.exchange import Exchange
from penchant.server.journal import Journal
from penchant.server.round import play_round
from penchant.server.run import ServerRun
from penchant.server.secagg.plain import PlainAggregation

LIMIT_MS = 1.0  # wall time of one message there and back
MODEL_SIGNATURE = ModelSignature((AdaptedModule("block.dense", 8, 8),), 8, bytes(32))


def grid_of(answer_of: Callable[[Context], Answer], clients: int, workers: int) -> InProcessGrid:
    return InProcessGrid(build_app(answer_of), clients, workers=workers)


def exchanges(clients: int, workers: int, repeats: int) -> dict[str, Any]:
    """Empty messages to `clients`, who answer with nothing: ms a message."""
    grid = grid_of(lambda context: lambda stage, payload: b"", clients, workers)
    wire = Exchange(grid, 60.0, "bench")
    payloads = dict.fromkeys(grid.get_node_ids(), b"")
    wall, cpu = [], []
    for _ in range(repeats + 1):
        began, worked = time.perf_counter(), time.process_time()
        replies = wire("status", payloads)
        wall.append((time.perf_counter() - began) / clients * 1e3)
        cpu.append((time.process_time() - worked) / clients * 1e3)
        if len(replies) != clients:
            raise SystemExit(f"{len(replies)} of {clients} clients answered")
    grid.close()
    return {
        "clients": clients,
        "workers": workers,
        "wall_ms_best": min(wall[1:]),
        "wall_ms_median": statistics.median(wall[1:]),
        "cpu_ms_best": min(cpu[1:]),
    }


def trivial(vector: bytes) -> Callable[[Context], Answer]:
    """Clients that take part and change nothing."""

    def answer_of(context: Context) -> Answer:
        def answer(stage: str, payload: bytes) -> bytes:
            if stage == "status":
                return encode(Status(True, int(context.node_config["partition-id"]) + 1, list_digest(b"")))
            if stage == "keys":
                return encode(Ready(context_digest(decode(payload, Announce))))
            return encode(Plain(vector))

        return answer

    return answer_of


def rounds(clients: int, workers: int, repeats: int) -> dict[str, Any]:
    """Whole rounds with everybody: seconds, messages."""
    config = RunConfig().changed(
        {"federation.rounds": repeats, "federation.cohort": clients, "privacy.secagg": False}
    )
    plan = config.plan("main", clients)
    layout = UpdateLayout.of(plan, MODEL_SIGNATURE.split(plan))
    grid = grid_of(trivial(bytes(layout.words * layout.ring // 8)), clients, workers)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        run = ServerRun(config, bytes(16), MODEL_SIGNATURE, clients, PlainAggregation(), b"", journal)
        availability = Availability(run, grid)
        began = time.perf_counter()
        ready = availability.wait_for_cohort()
        greeted = time.perf_counter() - began
        seconds = []
        for number in range(1, repeats + 1):
            began = time.perf_counter()
            log = play_round(run, grid, number, ready)
            seconds.append(time.perf_counter() - began)
            if log is None or log.survivors != clients:
                raise SystemExit(f"round {number} lost clients")
        journal.close()
    grid.close()
    return {
        "clients": clients,
        "workers": workers,
        "greeting_seconds": greeted,
        "round_seconds_best": min(seconds),
        "round_seconds_median": statistics.median(seconds),
        "messages": 2 * 2 * clients,  # keys and masked, there and back
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores\n\nclients workers   ms a message: best  median  CPU")
    exchanged = []
    for clients in (1, 17, 100, 1000):
        for workers in sorted({1, cores}):
            row = exchanges(clients, workers, chosen.repeats)
            exchanged.append(row)
            figures = "".join(f"{row[k]:8.3f}" for k in ("wall_ms_best", "wall_ms_median", "cpu_ms_best"))
            print(f"{clients:7d} {workers:7d}        {figures}", flush=True)
    print("\nclients workers   messages   s a round: best  median   ms a message")
    played = []
    for workers in sorted({1, cores}):
        row = rounds(1000, workers, max(2, chosen.repeats // 3))
        played.append(row)
        best, median = row["round_seconds_best"], row["round_seconds_median"]
        each = median / (row["messages"] / 2) * 1e3
        print(
            f"{row['clients']:7d} {workers:7d} {row['messages']:10d} {best:17.3f} {median:7.3f} {each:14.3f}"
        )
    worst = max(row["wall_ms_median"] for row in exchanged)
    print(f"\n{'within' if worst <= LIMIT_MS else 'ABOVE'} {LIMIT_MS:g} ms a message: {worst:.3f} at worst")
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"cores": cores, "exchanges": exchanged, "rounds": played}, indent=2) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
