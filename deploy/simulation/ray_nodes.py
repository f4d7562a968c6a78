"""Whether the nodes of a Ray cluster can take a run.

A node that could not open the run would answer for its people as a lost device does, and the run would go on
without them. So every node is asked, before the first round, to open the run as its workers will. A process
of its own does it: Ray changes the process that it is used from, and can end it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from penchant.common.errors import JournalError, PenchantError
from penchant.common.printable import one_line
from penchant.deploy import run_directory
from penchant.deploy.earlier_round import begun_with
from penchant.deploy.simulation.ray_cluster import RAY_ADDRESS
from penchant.deploy.simulation.world import prepare

__all__ = ["PROBE", "differences", "facts", "main", "require_fit_nodes"]

ASK_SECONDS = 600.0  # every node loads people and base model, the first time from a cold disk
SHOWN = 3
PROBE = ".ray-probe"
SAME = "shared folder"

Facts = Mapping[str, str]
"""What a node found when it opened the run; "error" alone where it could not."""


def require_fit_nodes(directory: Path, environment: Mapping[str, str]) -> None:
    """Ask every node of the cluster to open the run in `directory` (absolute).

    Raises JournalError that names the nodes which can't, or find something else there, or when the cluster
    can't be reached.
    """
    answer = _answer(directory, environment)
    found = differences(answer["here"], answer["nodes"])
    if found:
        more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        raise _failed("; ".join(found[:SHOWN]) + more)


def _answer(directory: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """What `main` finds, in a process of its own; by a file, since Ray writes to its standard output too."""
    asking = f"from {__name__} import main; main()"  # by name: so the nodes import what they are to call
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        command = [sys.executable, "-P", "-c", asking, str(directory), str(file)]
        try:
            done = subprocess.run(
                command,
                env=dict(environment),
                capture_output=True,
                text=True,
                timeout=ASK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _failed(
                f"the Ray cluster did not answer within {ASK_SECONDS:g} s; look at ray status"
            ) from None
        try:
            answer: dict[str, Any] = json.loads(file.read_bytes())
        except (OSError, ValueError):
            raise _failed(
                f"the Ray cluster at {environment.get(RAY_ADDRESS)} can't be reached from here; "
                f"see ray status. {one_line(done.stderr[-300:])}"
            ) from None
        return answer


def differences(here: Facts, nodes: Mapping[str, Facts]) -> list[str]:
    """What keeps nodes from taking the run, a sentence each, by their names; nothing where all agree."""
    found = [] if nodes else ["the Ray cluster has no node with a processor for people"]
    for name, there in sorted(nodes.items()):
        if "error" in there:
            found.append(f"node {name} of the Ray cluster can't open the run: {there['error']}")
            continue
        for key in [key for key in here if there.get(key) != here[key]][:1]:
            found.append(
                f"node {name} of the Ray cluster has another {key} than this machine: "
                f"{there.get(key, 'none')}, not {here[key]}"
            )
    return found


def _failed(what: str) -> JournalError:
    return JournalError(
        f"{what}; then go on with the run", on_command_line=f"{what}; then go on with --resume"
    )


# --- in a process of its own, and on the nodes --------------------------------------------------------------


def facts(directory: str) -> dict[str, str]:
    """What this machine finds in the run's directory, and has installed for it."""
    folder = Path(directory)
    try:
        config = run_directory.read_config(folder)
        world = prepare(config, start=begun_with(folder))
        return {
            SAME: (folder / PROBE).read_text(encoding="utf-8"),
            **run_directory.versions(),
            "ray": version("ray"),
            "run": world.run.hex(),
            "base model": world.model_cache.model(config.model, config.adapter).digest,
        }
    except PenchantError as error:
        return {"error": one_line(str(error))}
    except OSError as error:
        return {"error": f"{error.strerror}: {directory}; a node needs the run's directory at the same path"}


def asked(directory: str) -> dict[str, Any]:
    """What this machine and every node with a processor find, by the nodes' names."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    path = os.pathsep.join(sys.path)  # as Flower has it: what this process imports, its workers import
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, logging_level=logging.ERROR)
    listed: Any = ray.nodes  # which has no types
    try:
        asking = {
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})": ray.remote(num_cpus=1)(facts)
            .options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0
            )
            .remote(directory)
            for node in listed()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }
        return {"here": facts(directory), "nodes": {name: _got(task) for name, task in asking.items()}}
    finally:
        ray.shutdown()


def _got(task: Any) -> dict[str, str]:
    import ray

    try:
        found: dict[str, str] = ray.get(task)
    except ray.exceptions.RayError as error:
        return {"error": one_line(str(error).strip().splitlines()[-1])}
    return found


def main() -> None:
    """Write what the nodes of the run in the first argument found into the file of the second, as JSON."""
    directory, answer = sys.argv[1:]
    probe = Path(directory) / PROBE
    probe.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        Path(answer).write_text(json.dumps(asked(directory)), encoding="utf-8")
    finally:
        probe.unlink()
