"""A run that is killed at any instant ends, once resumed, as one that was never interrupted: bit for bit."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TIMES = ("seconds", "wall_seconds", "peak_rss_mb", "command")


class Rig:
    """A warm process that forks one run after the other (see killed.py)."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "killed.py"), str(folder), str(base)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, name: str, *, resume: bool = False, kill: str | None = None, value: float = 0
    ) -> dict[str, Any]:
        order = {"out": str(self.folder / name), "resume": resume, "kill": kill, "value": value}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def rig(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("resume"), tiny_model("bert"))
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def whole(rig: Rig) -> tuple[dict[str, Any], int]:
    """What an uninterrupted run leaves, and how many durable instants it has."""
    done = rig.run("whole")
    assert done["ended"] == 0
    return left(rig.folder / "whole"), done["writes"]


def left(directory: Path) -> dict[str, Any]:
    """All that a run leaves but times: result, checkpoints, everybody's personal factor."""
    result = json.loads((directory / "result.json").read_text())
    for row in result["rounds_log"]:
        row.pop("seconds")
    checkpoints = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((directory / "checkpoints").glob("*.safetensors"))
    }
    personal = {}
    for vault in sorted(directory.glob("agents/*/vault.db")):
        with sqlite3.connect(vault) as db:
            personal[vault.parent.name] = db.execute(
                "SELECT state, round, attempt, hex(vector) FROM personal ORDER BY state"
            ).fetchall()
    return {
        "result": {key: value for key, value in result.items() if key not in TIMES},
        "checkpoints": checkpoints,
        "personal": personal,
    }


def test_the_same_seed_gives_the_same_bits(rig: Rig, whole: tuple[dict[str, Any], int]) -> None:
    assert rig.run("again")["ended"] == 0
    assert left(rig.folder / "again") == whole[0]
    assert len(whole[0]["checkpoints"]) == 3  # two rounds and the closing one
    assert len(whole[0]["personal"]) == 5


def test_killed_at_any_durable_instant_it_ends_the_same(rig: Rig, whole: tuple[dict[str, Any], int]) -> None:
    """SIGKILL before and after durable writes, all over the run: every 29th instant of some hundreds."""
    expected, instants = whole
    assert instants > 100
    for instant in [1, 2, 3, *range(5, instants, 29), instants - 2, instants - 1, instants]:
        name = f"at-{instant}"
        assert rig.run(name, kill="at", value=instant)["ended"] == -9
        directory = rig.folder / name
        if not (directory / "config.toml").exists():  # it died before its first write was durable
            assert not directory.exists() or not [
                p for p in directory.iterdir() if not p.name.startswith(".")
            ]
            continue
        assert rig.run(name, resume=True)["ended"] == 0, instant
        assert left(directory) == expected, instant


def test_killed_twice_at_random_times_it_ends_the_same(rig: Rig, whole: tuple[dict[str, Any], int]) -> None:
    rng = random.Random(7)
    for turn in range(5):
        name = f"random-{turn}"
        rig.run(name, kill="after", value=rng.uniform(0.05, 0.5))
        directory = rig.folder / name
        if not (directory / "config.toml").exists():
            continue
        rig.run(name, resume=True, kill="after", value=rng.uniform(0.05, 0.5))
        assert rig.run(name, resume=True)["ended"] == 0
        assert left(directory) == whole[0]


def test_a_finished_run_is_shown_and_not_touched(rig: Rig, whole: tuple[dict[str, Any], int]) -> None:
    directory = rig.folder / "whole"
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert rig.run("whole", resume=True)["ended"] == 0
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    assert whole[0] == left(directory)
