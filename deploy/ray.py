"""A simulated run over Flower's own simulation, on Ray: more cores, and more machines.

The very rounds, relay and agents of the in-process grid. This process starts a SuperLink in simulation mode
on loopback, hands it the run through ``flwr run``, waits for the run's end and stops the SuperLink with
all that it started. Ray may serve successive messages of one client from different processes, so an agent's
open attempt lies sealed in its own directory between them.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import time
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from penchant.client.app import Answer, build_app
from penchant.common.errors import JournalError, PenchantError, RoundFailed, RunDirectoryError, UsageError
from penchant.deploy import rundir
from penchant.deploy.fleet import Fleet
from penchant.deploy.simulate import Progress, World, open_run, prepare, warm
from penchant.deploy.superlink import DIRECTORY, environment, simulation_command, start_run, write_app
from penchant.server.journal import Journal
from penchant.server.round import federate

__all__ = ["client_app", "require_ray", "run_on_ray", "server_app"]

ENDED = "ray-ended"  # the ServerApp's last word: empty, or why it failed
READY_SECONDS = 90.0
POLL_SECONDS = 0.5


def require_ray() -> None:
    """Raise UsageError, before anything is written, where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError('--grid ray needs Ray, which is not installed: pip install "penchant[ray]"')


def run_on_ray(world: World, directory: Path, progress: Progress) -> None:
    """Federate on Ray. Raises RoundFailed with the server's reason, or JournalError."""
    require_ray()
    home, ended = directory / "flwr", directory / ENDED
    ended.unlink(missing_ok=True)
    port = _free_port()
    surroundings = environment(home) | {"RAY_USAGE_STATS_ENABLED": "0"}
    with (directory / "ray.log").open("ab") as log:
        superlink = subprocess.Popen(
            simulation_command(port), env=surroundings, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_up(superlink, port)
        nodes = f"num-supernodes={len(world.federation.people)} client-resources-num-cpus=1"
        app = write_app(directory, "penchant.deploy.ray:server_app", "penchant.deploy.ray:client_app")
        start_run(app, f"127.0.0.1:{port}", home, "--federation-config", nodes)
        _wait_for_end(world, directory, superlink, progress)
    finally:
        _stop_family(superlink)
    reason = ended.read_text(encoding="utf-8")
    if reason:
        raise RoundFailed(reason)


# --- the two apps ---------------------------------------------------------------------------------------

server_app = ServerApp()


@server_app.main()
def _serve(grid: Grid, context: Context) -> None:
    directory = _directory(context)
    reason = "the server stopped for a reason of its own; see ray.log"
    try:
        world, fleet = _world(str(directory))
        journal = Journal(directory)
        federate(open_run(world, journal, fleet), grid)
        reason = ""
    except PenchantError as error:
        reason = str(error)
        raise
    finally:
        (directory / ENDED).write_text(reason, encoding="utf-8")


def _agent_of(context: Context) -> Answer:
    world, fleet = _world(str(_directory(context)))
    _warm_once(str(_directory(context)), world)
    return fleet.answer_of(context)


client_app = build_app(_agent_of)


@lru_cache(maxsize=1)
def _world(directory: str) -> tuple[World, Fleet]:
    """One process's own copy of the simulated world: the same configuration, the same world."""
    world = prepare(rundir.read_config(Path(directory)))
    return world, Fleet(
        world.config, Path(directory), world.federation, world.benches, world.cohort, sealed=True
    )


_warmed: set[str] = set()


def _warm_once(directory: str, world: World) -> None:
    if directory not in _warmed:
        warm(world)
        _warmed.add(directory)


def _directory(context: Context) -> Path:
    directory = context.run_config.get(DIRECTORY)
    if not isinstance(directory, str) or not directory:
        raise RunDirectoryError(f"name the run: flwr run . --run-config '{DIRECTORY}=\"DIR\"'")
    return Path(directory)


# --- Flower's processes -----------------------------------------------------------------------------------


def _wait_until_up(superlink: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and superlink.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_SECONDS)
    raise JournalError("Flower's SuperLink did not start; see ray.log in the run directory")


def _wait_for_end(
    world: World, directory: Path, superlink: subprocess.Popen[bytes], progress: Progress
) -> None:
    """Tell of rounds as they end, until the ServerApp has said its last word."""
    told = 0
    last = world.config.federation.rounds + 1
    while not (directory / ENDED).exists():
        if superlink.poll() is not None:
            raise JournalError("Flower's SuperLink stopped; see ray.log, then go on with --resume")
        time.sleep(POLL_SECONDS)
        journal = Journal(directory)
        try:
            logs = journal.logs()
        finally:
            journal.close()
        for log in logs[told:]:
            progress.round(log, last)
        told = len(logs)


def _stop_family(superlink: subprocess.Popen[bytes]) -> None:
    """Stop the SuperLink and its session: it was started as the leader of one."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(superlink.pid, how)
        except ProcessLookupError:
            break
        time.sleep(2.0)
    superlink.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
