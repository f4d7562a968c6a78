"""A run that is killed at any instant ends, once resumed, as one that was never interrupted: bit for bit."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
TIMES = ("seconds", "wall_seconds", "peak_rss_mb", "command")


class Rig:
    """A warm process that forks one run after the other (see killed.py)."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "killed.py"), str(folder), str(base)],
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
    """SIGKILL at durable instants all over the run: the first and the last ones, and every 41st between.
    On a busy machine one run may come to some more of them than another."""
    expected, instants = whole
    assert instants > 200
    for instant in [1, 2, 3, 4, *range(6, instants - 3, 41)]:
        end_after_a_kill(rig, f"at-{instant}", expected, kill="at", value=instant)
    for back in range(4):
        name, done = killed_near_its_end(rig, instants, back)
        check_end(rig, name, expected, done, f"{back} instants before the last")


def killed_near_its_end(rig: Rig, instants: int, back: int) -> tuple[str, dict[str, Any]]:
    """A run that is killed so many instants before its last one, and its name. instants: of another run;
    one that had fewer, and so came to its end, says how many."""
    for turn in range(10):
        name = f"{back}-before-the-end-{turn}"
        done = rig.run(name, kill="at", value=instants - back)
        if done["ended"] != 0:
            return name, done
        assert done["writes"] < instants - back
        instants = done["writes"]
    pytest.fail("each run had fewer durable instants than the one before")


def test_killed_while_it_writes_the_report_it_ends_the_same(
    rig: Rig, whole: tuple[dict[str, Any], int]
) -> None:
    end_after_a_kill(rig, "report", whole[0], kill="report")
    assert (rig.folder / "report" / "report.html").read_text().rstrip().endswith("</html>")


def test_killed_twice_at_random_times_it_ends_the_same(rig: Rig, whole: tuple[dict[str, Any], int]) -> None:
    rng = random.Random(7)
    for turn in range(4):
        name = f"random-{turn}"
        rig.run(name, kill="after", value=rng.uniform(0.05, 0.5))
        resume = is_run(rig.folder / name)
        rig.run(name, resume=resume, kill="after", value=rng.uniform(0.05, 0.5))
        assert rig.run(name, resume=is_run(rig.folder / name))["ended"] == 0
        assert left(rig.folder / name) == whole[0]


def end_after_a_kill(rig: Rig, name: str, expected: dict[str, Any], **how: Any) -> None:
    """Kill a new run, then start it again."""
    check_end(rig, name, expected, rig.run(name, **how), how)


def check_end(rig: Rig, name: str, expected: dict[str, Any], done: dict[str, Any], how: object) -> None:
    """It was killed. Resumed, or begun anew if there is no run yet, it ends the same."""
    assert done["ended"] == -signal.SIGKILL, how
    assert rig.run(name, resume=is_run(rig.folder / name))["ended"] == 0, how
    assert left(rig.folder / name) == expected, how


def is_run(directory: Path) -> bool:
    return (directory / "config.toml").exists()


def test_a_finished_run_is_shown_and_not_touched(rig: Rig, whole: tuple[dict[str, Any], int]) -> None:
    directory = rig.folder / "whole"
    before = contents(directory)
    assert rig.run("whole", resume=True)["ended"] == 0
    assert contents(directory) == before
    assert whole[0] == left(directory)


def test_a_run_goes_on_only_as_it_was_begun(rig: Rig, whole: tuple[dict[str, Any], int]) -> None:
    """A configuration edited after the kill, and agents that are gone, are refused; nothing is lost."""
    assert rig.run("edited", kill="at", value=whole[1] * 2 // 3)["ended"] == -signal.SIGKILL
    directory = rig.folder / "edited"
    config = directory / "config.toml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("lr_personal = ", "lr_personal = 0.9 # ", 1), encoding="utf-8")
    resumed = command("--resume", str(directory))
    assert resumed.returncode == 2
    assert resumed.stderr.splitlines()[-1] == (
        f"penchant: {directory} was begun with another configuration; "
        "put back what it was, or start a new run"
    )
    config.write_text(f"# the same in other words\n{text}", encoding="utf-8")
    (directory / "agents").rename(rig.folder / "elsewhere")
    resumed = command("--resume", str(directory))
    assert resumed.returncode == 2
    assert f"{directory} has lost its folder agents" in resumed.stderr.splitlines()[-1]
    (rig.folder / "elsewhere").rename(directory / "agents")
    assert rig.run("edited", resume=True)["ended"] == 0
    assert left(directory) == whole[0]


def contents(directory: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file's bytes and the time of its last change."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in directory.rglob("*") if p.is_file()}


# --- the command ------------------------------------------------------------------------------------------

PROGRAM = [sys.executable, "-c", "from penchant.deploy.cli.main import main; main()", "simulate"]


def test_the_command_is_killed_in_a_round_and_goes_on_alone(
    rig: Rig, whole: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    """A process is stopped within a round: a second one is refused. It is killed: a third one goes on."""
    directory, settings = tmp_path / "run", rig.folder / "whole" / "config.toml"
    words = ["--config", str(settings), "--out", str(directory)]
    first = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_a_round(directory, first)
        first.send_signal(signal.SIGSTOP)
        second = command("--resume", str(directory))
        assert second.returncode == 2
        assert second.stderr == f"penchant: another process works in {directory}; wait for it to end\n"
    finally:
        first.kill()
        first.wait()
    third = command("--resume", str(directory))
    assert third.returncode == 0, third.stderr
    assert left(directory) == whole[0]

    before = contents(directory)
    again = command("--resume", str(directory))
    assert again.returncode == 0
    assert "personal accuracy" in again.stdout
    other = command("--resume", str(directory), "--seed", "5")
    assert other.returncode == 2
    assert other.stderr == (
        f"penchant: {directory} is a run of another configuration; drop the flags or start a new run\n"
    )
    assert contents(directory) == before


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=300, check=False)


def wait_for_a_round(directory: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the first round is journaled as finished."""
    while process.poll() is None:
        if (directory / "checkpoints" / "round-000001.safetensors").exists():
            return
        time.sleep(0.005)
    raise AssertionError("the run ended before it could be stopped")
