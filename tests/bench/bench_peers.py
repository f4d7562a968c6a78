"""A whole simulation beside its peers, in one run: `python tests/bench/bench_peers.py`.

`[--people N] [--rounds N] [--only NAME …] [--pfl FOLDER] [--json FILE]`

Share rule A on Senate with the recipe's settings, by penchant (with and without secure aggregation, and with
`--batch-people 32`), a plain Flower app on Ray, pfl-research, and TRL one person after the other. CPU seconds
and memory are those of each one's whole tree of processes, loading included. peers/README.md says how it was
made fair, and what --pfl is for. Prints a table; in --json FILE rows of an earlier run of the same size stay.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from bench.peers.task import Result, Server, Someone, Task

from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.model.base_models import resolve
from penchant.common.model.prompt_form import joined
from penchant.deploy.configuration import configure
from penchant.deploy.simulation.world import prepare
from penchant.server.cohort import sample_cohort

OURS = "penchant"
PEERS: dict[str, tuple[str, ...]] = {
    OURS: ("own", "0", "1"),
    "penchant, secure aggregation": ("own", "1", "1"),
    "penchant, batch_people 32": ("own", "0", "32"),
    "Flower app on Ray": ("flower_app",),
    "pfl-research": ("pfl_app",),
    "TRL, one by one": ("trl_loop",),
}
TRIES, RAY_IS_SLOW = 5, "The current node timed out during startup"  # 30 s, which Ray lets nobody change
LOOK_SECONDS, WEIGH_SECONDS = 0.1, 1.0
SUBREAPER = 36  # prctl: a process to which descendants whose parent ended are given


@dataclass(frozen=True)
class Row:
    """What one of them took: CPU and wall seconds, MB at the most, and what it came to."""

    who: str
    cpu_seconds: float
    wall_seconds: float
    peak_mb: float
    accuracy: float


# --- the task -------------------------------------------------------------------------------------


def settings(people: int, rounds: int) -> RunConfig:
    """Share A on Senate as the recipe has it."""
    asked = {"data.dataset": "senate", "adapter.share": "A"}
    return configure(asked | {"data.clients": people, "federation.rounds": rounds}, None)


def task_of(config: RunConfig, federation: Federation | None = None) -> Task:
    """The same run for everybody. ValueError for settings that the peers don't have."""
    world = prepare(config, federation=federation)
    training, server = config.training, config.federation
    plan = config.plan("warmup" if server.warmup_rounds else "main", world.cohort)
    planned = world.model_cache.of(plan)
    split, rule = planned.split, config.adapter.rule
    plain = (
        rule.name == "A"
        and config.head.value == "personal"
        and server.server_optimizer == "fedadam"
        and (training.optimizer, training.shared_optimizer) == ("adamw", "same")
        and training.update_order == "joint"
        and not (training.batch_size or training.weight_decay or training.l2_to_start)
        and not (training.final_fit_epochs or training.warmup_lr or server.stop_after)
        and len(split.adapted_modules) == 1
    )
    if not plain:
        raise ValueError("the peers are written for the settings of senate.toml, share A; these are others")
    shared, personal = split.initial(config.seed)
    tensors = split.shared.unflatten(shared) | split.personal.unflatten(personal)
    start = {rule.role_of(name): tensor.tolist() for name, tensor in tensors.items()}
    members = range(1, len(world.federation.people) + 1)
    cohorts = [
        [member - 1 for member in sample_cohort(members, world.cohort, seed=config.seed, round=number)]
        for number in range(1, server.rounds + 1)
    ]
    return Task(
        base=str(resolve(config.model.base_model)[0]),
        module=split.adapted_modules[0].name,
        max_tokens=config.model.max_tokens,
        normalize=config.model.normalize,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        rates={"A": training.lr_shared, "B": training.lr_personal, "head": training.lr_head},
        warm_rates={"A": training.lr_shared, "B": training.lr_shared, "head": training.lr_head},
        epochs=training.local_epochs,
        warmup=server.warmup_rounds,
        cohorts=cohorts,
        server=Server(server.server_lr, server.server_beta1, server.server_beta2, server.server_epsilon),
        start=start,
        people=[
            Someone(person.name, texts_of(person.train), texts_of(person.test))
            for person in world.federation.people
        ],
        own_settings=config.to_toml(),
    )


def texts_of(pairs: Sequence[Any]) -> list[tuple[str, str]]:
    """Whole texts, (chosen, rejected)."""
    return [(joined(p.prompt, p.chosen), joined(p.prompt, p.rejected)) for p in pairs]


# --- a process and all that it starts -------------------------------------------------------------


class Tree:
    """CPU seconds and memory of a process and all its descendants, looked at again and again.

    A process's seconds are those seen last: at most LOOK_SECONDS of each are missed. Memory is the sum of
    proportional shares (PSS), in which what processes share counts once.
    """

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._seconds: dict[tuple[int, float], float] = {}
        self.peak_mb = 0.0

    def look(self, weigh: bool) -> None:
        """Note what is there now."""
        with suppress(psutil.NoSuchProcess):
            members = [self._root, *self._root.children(recursive=True)]
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    used = member.cpu_times()
                    self._seconds[member.pid, member.create_time()] = used.user + used.system
            if weigh:
                self.peak_mb = max(self.peak_mb, sum(map(_pss_mb, members)))

    @property
    def cpu_seconds(self) -> float:
        """Of all that were seen."""
        return sum(self._seconds.values())


def _pss_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 1e6
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0.0


def _adopts() -> None:
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def measured(who: str, task: Path, folder: Path, environment: Mapping[str, str]) -> Row:
    """Run one of them. SystemExit when it fails; where Ray was only too slow to start, another try is what
    counts."""
    for _ in range(TRIES):
        row, log = _tried(who, task, folder, environment)
        if row is not None:
            return row
        if RAY_IS_SLOW not in log:
            break
    raise SystemExit(f"{who} failed:\n{log[-4000:]}")


def _tried(who: str, task: Path, folder: Path, environment: Mapping[str, str]) -> tuple[Row | None, str]:
    """(what it took, what it printed); no row where it failed."""
    module, *words = PEERS[who]
    result = folder / f"{module}.json"
    command = [sys.executable, "-m", f"bench.peers.{module}", str(task), str(result), *words]
    began, weighed = time.monotonic(), 0.0
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=out, stderr=subprocess.STDOUT, preexec_fn=_adopts
        )
        tree = Tree(process.pid)
        while process.poll() is None:
            weigh = time.monotonic() - weighed > WEIGH_SECONDS
            tree.look(weigh)
            weighed = time.monotonic() if weigh else weighed
            time.sleep(LOOK_SECONDS)
    if process.returncode:
        return None, log.read_text(errors="replace")
    found = Result(**json.loads(result.read_text(encoding="utf-8")))
    return Row(who, tree.cpu_seconds, time.monotonic() - began, tree.peak_mb, found.accuracy), ""


def environment(pfl: Path | None) -> dict[str, str]:
    """Of the processes: one thread each, and nothing that looks for a network."""
    found = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    found += [str(pfl.absolute())] if pfl else []
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(part for part in found if part),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


# --- the table ------------------------------------------------------------------------------------


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table; ratios are CPU seconds over those of penchant without secure aggregation."""
    own = next((row["cpu_seconds"] for row in rows if row["who"] == OURS), None)
    lines = [("who", "CPU s", "wall s", "peak MB", "accuracy", "ratio")]
    for row in rows:
        ratio = "" if own is None else f"{row['cpu_seconds'] / own:.2f}"
        figures = (f"{row['cpu_seconds']:.1f}", f"{row['wall_seconds']:.0f}", f"{row['peak_mb']:,.0f}")
        lines.append((row["who"], *figures, f"{row['accuracy']:.4f}", ratio))
    return "".join(f"{line[0]:30}" + "".join(f"{cell:>10}" for cell in line[1:]) + "\n" for line in lines)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    names = ("torch", "transformers", "peft", "flwr", "ray", "trl")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run them all, or some, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=PEERS, action="append")
    parser.add_argument("--pfl", type=Path, help="the folder that pfl was put into")
    parser.add_argument("--json", type=Path, help="rows of others that it has already are kept")
    given = parser.parse_args(words)
    config = settings(given.people, given.rounds)
    asked = {"people": given.people, "rounds": given.rounds}
    known = {row["who"]: row for row in rows_of(given.json, asked)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = folder / "task.json"
        task_of(config).write(task)
        for who in given.only or PEERS:
            if who == "pfl-research" and not (given.pfl or importlib.util.find_spec("pfl")):
                print("pfl-research: not installed; see --pfl", file=sys.stderr)
                continue
            known[who] = asdict(measured(who, task, folder, environment(given.pfl)))
            print(text([known[who]]).splitlines()[1], file=sys.stderr, flush=True)
            rows = [known[who] for who in PEERS if who in known]
            if given.json:
                found = {"machine": machine(), "given": asked, "rows": rows}
                given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text([known[who] for who in PEERS if who in known]), end="")
    return 0


def rows_of(path: Path | None, given: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows of an earlier run of the same size; none if there is none."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return list(found["rows"]) if found["given"] == given else []


if __name__ == "__main__":
    sys.exit(main())
