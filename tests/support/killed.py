"""Runs small federations in forks of one warm process and kills them; used by test_resume.py.

Usage: killed.py FOLDER BASE_MODEL. Reads one JSON object a line ({"out", "resume", "kill", "value"}) and
answers each with one ({"ended": exit code or -9, "writes"}). kill is null, "after" or "at". At: the process
kills itself by SIGKILL at its value-th durable write; after: its parent does, value seconds after its start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

from support.tastes import write_choices

from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.deploy import run_directory
from penchant.deploy.cli import show_simulation
from penchant.deploy.report import run_page
from penchant.deploy.simulation import world
from penchant.deploy.simulation.result import RunResult
from penchant.server.journal import Journal


class Instants:
    """Counts durable instants, and kills this process at the last one that it may see."""

    def __init__(self) -> None:
        self.seen = 0
        self.last = 0
        self._lock = threading.Lock()

    def note(self) -> None:
        with self._lock:
            self.seen += 1
            if self.seen == self.last:
                die()


INSTANTS = Instants()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch() -> None:
    """From now on note the instants around each transaction, fsync and rename."""
    for kind in (Vault, Journal):
        real = kind._transaction

        @contextmanager
        def noted(self: Any, *args: Any, real: Any = real, **more: Any) -> Any:
            INSTANTS.note()
            with real(self, *args, **more) as db:
                yield db
            INSTANTS.note()

        kind._transaction = noted  # type: ignore[method-assign]
    os.fsync = around(os.fsync)
    os.replace = around(os.replace)


def around(real: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **more: Any) -> Any:
        INSTANTS.note()
        done = real(*args, **more)
        INSTANTS.note()
        return done

    return noted


def half_a_report(result: RunResult, path: Path) -> None:
    path.write_text("<!doctype html><title>ha", encoding="utf-8")
    die()


def config(folder: Path, base: str) -> RunConfig:
    return RunConfig().changed(
        {
            "data.dataset": str(folder / "choices.jsonl"),
            "data.person_column": "user",
            "data.pairs": 6,
            "data.validation_pairs": 2,
            "data.test_pairs": 4,
            "model.base_model": base,
            "model.max_tokens": 16,
            "training.local_epochs": 2,
            "training.final_fit_epochs": 2,
            "federation.rounds": 2,
            "federation.cohort": 4,
            "federation.warmup_rounds": 1,
            "federation.server_optimizer": "fedadam",
            "federation.server_lr": 0.01,
            "privacy.min_honest": 1,
            "privacy.max_colluders": 0,
            "workers": 2,
        }
    )


def child(order: dict[str, Any], settings: RunConfig, world: Any) -> None:
    """The life of one forked process."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    INSTANTS.last = int(order["value"]) if order["kill"] == "at" else 0
    if order["kill"] == "report":
        run_page.write_report = half_a_report
    directory = Path(order["out"])
    code = 1
    try:
        if order["resume"]:
            settings = run_directory.read_config(directory)
        else:
            run_directory.create(directory, settings)
        show_simulation.run_and_show(settings, directory, world)
        code = 0
    finally:
        Path(f"{directory}.writes").write_text(str(INSTANTS.seen))
        os._exit(code)


def main() -> None:
    folder, base = Path(sys.argv[1]), sys.argv[2]
    write_choices(folder / "choices.jsonl", [30] * 5)
    settings = config(folder, base)
    prepared = world.prepare(settings)
    watch()
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if process == 0:
            child(order, settings, prepared)
        if order["kill"] == "after":
            time.sleep(order["value"])
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        counted = Path(f"{order['out']}.writes")
        writes = int(counted.read_text()) if counted.exists() else None
        print(json.dumps({"ended": os.waitstatus_to_exitcode(status), "writes": writes}), flush=True)


if __name__ == "__main__":
    main()
