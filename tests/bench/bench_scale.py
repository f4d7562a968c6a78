"""What a simulation takes by its number of people: `python tests/bench/bench_scale.py [PEOPLE …]`.

For each number a run of its own in a process of its own: one round over --cohort people with secure
aggregation, and the closing round over everybody. Counted: the process's peak memory, the bytes on the disk,
those of the agents alone, and the seconds of the round and of all. Made-up people with ten choices each and a
tiny BERT, unless --jester FOLDER (Jester5k.rda) or --base MODEL say otherwise. Prints a table; --json FILE.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.tastes import small_run, write_choices
from support.tiny_models import write_tiny_model

from penchant.common.config import RunConfig
from penchant.deploy import run_directory
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare
from penchant.server.journal import Journal, RoundLog

MB = 1e6
COLUMNS = (
    "people",
    "cohort",
    "peak MB",
    "disk MB",
    "agents MB",
    "kB an agent",
    "round s",
    "close s",
    "all s",
)


def main() -> None:
    """Run each number in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("people", nargs="*", type=int, default=[1000, 2500, 5000])
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--jester", type=Path, help="the folder with Jester5k.rda")
    parser.add_argument("--base", default="", help="a base model; a tiny BERT by default")
    parser.add_argument("--group-size", type=int, default=256, help="people who mask together, at most")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        asked.one.write_text(json.dumps(measured(asked.people[0], asked)))
        return
    rows = []
    print(" ".join(f"{name:>11}" for name in COLUMNS))
    for people in asked.people:
        rows.append(_in_a_process(people, asked))
        print(" ".join(f"{rows[-1][name]:11,.1f}" for name in COLUMNS), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


def measured(people: int, asked: argparse.Namespace) -> dict[str, float]:
    """One run in this process, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = _settings(folder, people, asked.jester, asked.base)
        settings |= {"federation.rounds": 1, "federation.cohort": asked.cohort}
        settings |= {"federation.warmup_rounds": 0, "privacy.group_size": asked.group_size}
        config = RunConfig().changed(settings)
        world = prepare(config)
        directory = folder / "run"
        run_directory.create(directory, config)
        began = time.perf_counter()
        result = simulate(world, directory)
        seconds = time.perf_counter() - began
        agents = sizes(directory / "agents")
        closed = _closing(directory)
        if closed.survivors < len(world.federation.people):
            raise SystemExit(f"only {closed.survivors:,} people were in the closing round")
        return {
            "people": len(world.federation.people),
            "cohort": world.cohort,
            "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
            "disk MB": sizes(directory) / MB,
            "agents MB": agents / MB,
            "kB an agent": agents / len(world.federation.people) / 1e3,
            "round s": result.rounds_log[0].seconds or math.nan,
            "close s": closed.seconds,
            "all s": seconds,
        }


def sizes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _closing(directory: Path) -> RoundLog:
    """The log of the round over everybody."""
    journal = Journal(directory)
    last = journal.logs()[-1]
    journal.close()
    if last.phase != "close":
        raise SystemExit(f"the last round of {directory} is not the closing one")
    return last


def _settings(folder: Path, people: int, jester: Path | None, base: str) -> dict[str, Any]:
    tiny = folder / "tiny"
    if not base:
        write_tiny_model("bert", tiny)
    choices = folder / "choices.jsonl"
    if jester is None:
        write_choices(choices, [10] * people)
    settings = small_run(Path(base) if base else tiny, choices, people, epochs=2)
    settings |= {"training.final_fit_epochs": 2}
    if base:
        settings["model.base_model"] = base
    if jester is not None:
        del settings["data.person_column"]
        settings |= {"data.dataset": f"jester:{jester}", "data.clients": people}
    return settings


def _in_a_process(people: int, asked: argparse.Namespace) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, __file__, str(people), "--cohort", str(asked.cohort), "--one", out.name]
        command += ["--group-size", str(asked.group_size)]
        command += ["--jester", str(asked.jester)] if asked.jester else []
        command += ["--base", asked.base] if asked.base else []
        subprocess.run(command, check=True, env=os.environ)
        row: dict[str, float] = json.loads(Path(out.name).read_text())
        return row


if __name__ == "__main__":
    main()
