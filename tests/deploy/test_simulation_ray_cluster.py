"""A run on a Ray cluster that is already there: two nodes on loopback, really started."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support.tastes import one_round, small_run, write_choices

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, JournalError
from penchant.deploy import run_directory
from penchant.deploy.flower.superlink import free_port
from penchant.deploy.simulation import ray_cluster, ray_nodes

RAY = str(Path(sys.executable).parent / "ray")
PROGRAM = [sys.executable, "-c", "from penchant.deploy.cli.main import main; main()", "simulate"]
HEAD, SECOND = "127.0.0.2", "127.0.0.3"
UP, TRIES, START_SECONDS = "will now block forever", 4, 150.0
ON_BOTH = ["--num-cpus", "1", "--object-store-memory", "80000000", "--disable-usage-stats", "--block"]
ON_BOTH += ["--min-worker-port", "0", "--max-worker-port", "0"]  # any free ones: both nodes are one machine


# --- two nodes --------------------------------------------------------------------------------------------


def started(words: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes] | None:
    """A node that is up; None where Ray gave up its start (30 s, which it lets nobody change)."""
    with log.open("wb") as out:
        node = subprocess.Popen(
            [RAY, "start", *words, "--dashboard-agent-listen-port", str(free_port()), *ON_BOTH],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    end = time.monotonic() + START_SECONDS
    while node.poll() is None and time.monotonic() < end:
        if UP in log.read_text(errors="replace"):
            return node
        time.sleep(0.2)
    ended(node)
    return None


def ended(node: subprocess.Popen[bytes]) -> None:
    """A node's processes, by their ids: `ray stop` ends every Ray of the machine."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(node.pid)
        children = own.children(recursive=True)
        node.terminate()
        _, left = psutil.wait_procs([own, *children], timeout=15)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait()


@contextmanager
def two_nodes(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of the head of two nodes with a processor each."""
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(TRIES):
            address = f"{HEAD}:{free_port()}"
            at_head = ["--head", "--node-ip-address", HEAD, "--port", address.split(":")[1]]
            at_head += ["--ray-client-server-port", str(free_port()), "--include-dashboard", "false"]
            at_head += ["--temp-dir", str(folder)]
            at_second = ["--address", address, "--node-ip-address", SECOND]
            for words in (at_head, at_second):
                node = started(words, folder / "node.log", environment)
                if node is None:
                    break
                nodes.append(node)
            if len(nodes) == 2:
                yield address
                assert [node.poll() for node in nodes] == [None, None], (
                    "the run must leave the cluster as it is"
                )
                return
            while nodes:
                ended(nodes.pop())
        pytest.fail(f"Ray did not start: {(folder / 'node.log').read_text(errors='replace')[-2000:]}")
    finally:
        for node in reversed(nodes):
            ended(node)


def simulate(folder: Path, grid: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*PROGRAM, "--config", str(folder / f"{grid}.toml"), "--out", str(folder / grid)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of loopback")
def test_a_run_on_two_nodes_gives_the_bits_of_the_in_process_grid_and_both_serve_somebody(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    write_choices(tmp_path / "choices.jsonl", [30] * 4)
    settings = one_round(tiny_model("bert"), tmp_path / "choices.jsonl")
    token = tmp_path / "ray-token"
    token.write_text(secrets.token_hex(32))
    authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # Ray's workers give way to all else (nice 15) if nothing else is said: on a busy machine they starve.
    more = {"COLUMNS": "120", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    environment = os.environ | authentication | more
    for grid in ("ray", "local"):
        (tmp_path / f"{grid}.toml").write_text(RunConfig().changed(settings | {"grid": grid}).to_toml())
    simulate(tmp_path, "local", environment)
    # Ray's sockets lie there, and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as short, two_nodes(Path(short), environment) as address:
        simulate(tmp_path, "ray", environment | {ray_cluster.RAY_ADDRESS: address})
    left = {
        grid: {p.name: p.read_bytes() for p in (tmp_path / grid / "checkpoints").glob("*.safetensors")}
        for grid in ("ray", "local")
    }
    assert len(left["ray"]) == 2
    assert left["ray"] == left["local"]
    workers = [path.name.split(".") for path in (tmp_path / "ray" / "ray-workers").iterdir()]
    assert len({node for *_, node, _ in workers}) == 2, "both nodes served somebody"
    assert not (tmp_path / "ray" / ray_nodes.PROBE).exists()


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("named", "cluster"), [("", None), ("local", None), (" ", None), ("h:1", "h:1")])
def test_only_a_cluster_that_is_named_is_joined(named: str, cluster: str | None) -> None:
    assert ray_cluster.cluster_address({ray_cluster.RAY_ADDRESS: named}) == cluster
    assert ray_cluster.cluster_address({}) is None


def test_workers_and_ray_client_are_refused_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    two = RunConfig().changed({"grid": "ray", "workers": 2})
    monkeypatch.delenv(ray_cluster.RAY_ADDRESS, raising=False)
    ray_cluster.refuse_unfit(two)
    monkeypatch.setenv(ray_cluster.RAY_ADDRESS, "10.0.0.1:6379")
    ray_cluster.refuse_unfit(two.changed({"workers": 0}))
    with pytest.raises(ConfigError, match=r"ray start --num-cpus.*set workers to 0"):
        ray_cluster.refuse_unfit(two)
    monkeypatch.setenv(ray_cluster.RAY_ADDRESS, "ray://10.0.0.1:10001")
    with pytest.raises(ConfigError, match="HOST:PORT"):
        ray_cluster.refuse_unfit(two.changed({"workers": 0}))


def test_nodes_that_find_something_else_are_named() -> None:
    here = {"shared folder": "5e", "torch": "2.8.0", "base model": "ab"}
    assert ray_nodes.differences(here, {"a": here, "b": here | {"more": "1"}}) == []
    found = ray_nodes.differences(here, {"a": here | {"torch": "2.7.0"}, "b": {"error": "no such data set"}})
    assert found == [
        "node a of the Ray cluster has another torch than this machine: 2.7.0, not 2.8.0",
        "node b of the Ray cluster can't open the run: no such data set",
    ]
    (none,) = ray_nodes.differences(here, {})
    assert "no node with a processor" in none


def test_a_machine_without_the_runs_directory_says_so(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    assert "error" in ray_nodes.facts(str(tmp_path / "elsewhere"))
    write_choices(tmp_path / "choices.jsonl", [10] * 3)
    config = RunConfig().changed(small_run(tiny_model("bert"), tmp_path / "choices.jsonl", 3, 1))
    run_directory.create(tmp_path / "run", config)
    copied = ray_nodes.facts(str(tmp_path / "run"))
    assert "same path" in copied["error"], (
        "a copy of the directory has not what the asking process wrote there"
    )
    (tmp_path / "run" / ray_nodes.PROBE).write_text("5e")
    there = ray_nodes.facts(str(tmp_path / "run"))
    assert there["shared folder"] == "5e"
    assert len(bytes.fromhex(there["run"])) == 16


def test_a_cluster_that_is_not_there_fails_in_one_line(tmp_path: Path) -> None:
    nobody = os.environ | {
        ray_cluster.RAY_ADDRESS: f"{HEAD}:{free_port()}",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "2",
    }
    with pytest.raises(JournalError, match="can't be reached"):
        ray_nodes.require_fit_nodes(tmp_path, nobody)
