"""A simulated run over Flower's own simulation, on Ray: more cores, and more machines.

The very rounds, relay and agents of the in-process grid. This process starts a SuperLink in simulation mode
on loopback, hands it the run through ``flwr run``, waits for the run's end and stops the SuperLink with
all that it started (`ray_guard`). Ray is started for the run alone, or is the cluster that RAY_ADDRESS names
(`ray_cluster`, `ray_nodes`), of which nothing is stopped but the run's own workers. Ray may serve successive
messages of one client from different processes, so an agent's open attempt lies sealed in its own directory
between them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from penchant.client.agent.flower_app import Answer, build_app
from penchant.common.errors import JournalError, PenchantError, RoundFailed, RunDirectoryError
from penchant.deploy import run_directory
from penchant.deploy.earlier_round import begun_with
from penchant.deploy.flower.superlink import (
    DIRECTORY,
    SuperLinkAddress,
    environment,
    free_port,
    how_it_ended,
    simulation_command,
    start_run,
    write_app,
)
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.race_record import Race
from penchant.deploy.simulation.ray_cluster import (
    NO_CLUSTER,
    RAY_ADDRESS,
    cluster_address,
    refuse_unfit,
)
from penchant.deploy.simulation.ray_guard import MARK, POLITE_SECONDS, guarded, stop_marked
from penchant.deploy.simulation.ray_nodes import require_fit_nodes
from penchant.deploy.simulation.world import (
    Progress,
    SimulationSetup,
    open_run,
    prepare,
    require_ray,
    restore,
    warm,
)
from penchant.server.journal import Journal
from penchant.server.journal_reader import open_journal
from penchant.server.round import federate

__all__ = ["client_app", "run_on_ray", "server_app"]

ENDED = "ray-ended"  # the ServerApp's last word: empty, or why it failed
LOG = "ray.log"
WORKERS = (
    "ray-workers"  # a folder: one empty file for each worker that served somebody, by its node and process
)
READY_SECONDS = 90.0
LOOK_SECONDS = 0.5
ASK_SECONDS = 5.0  # between two questions to the SuperLink whether the run still goes on


def run_on_ray(world: SimulationSetup, directory: Path, journal: Journal, progress: Progress) -> None:
    """Federate on Ray.

    Raises RoundFailed with the server's reason, or JournalError when Flower fails, or a node of the cluster
    can't take the run.
    """
    require_ray()
    refuse_unfit(world.config)
    directory = directory.absolute()
    home, ended = directory / "flwr", directory / ENDED
    stop_marked(str(directory))  # left by a process that was killed with its guard
    ended.unlink(missing_ok=True)
    if cluster_address():
        progress.stage("asking the nodes of the Ray cluster")
        require_fit_nodes(directory, _surroundings(directory, home))
    with _superlink(directory, home) as (superlink, address):
        settings = [f"num-supernodes={len(world.federation.people)}", "client-resources-num-cpus=1"]
        if world.config.workers:
            settings.append(f"init-args-num-cpus={world.config.workers}")
        app = write_app(
            directory,
            "penchant.deploy.simulation.ray:server_app",
            "penchant.deploy.simulation.ray:client_app",
        )
        run = start_run(app, SuperLinkAddress(address), home, "--federation-config", " ".join(settings))
        last, told = world.config.federation.rounds + 1, len(journal.logs())
        for _ in _while_it_runs(superlink, address, run, ended):
            for log in journal.logs()[told:]:
                progress.round(log, last)
                told += 1
    reason = ended.read_text(encoding="utf-8")
    if reason:
        raise RoundFailed(reason)


# --- the two apps ---------------------------------------------------------------------------------------

server_app = ServerApp()


@server_app.main()
def _serve(grid: Grid, context: Context) -> None:
    directory = _directory(context)
    reason = f"the server stopped for a reason of its own; see {LOG}"
    try:
        with run_directory.claim(directory, run_directory.SERVER):
            world, fleet = _world(str(directory))
            with closing(open_journal(directory)) as journal:
                restore(journal, fleet, world)
                federate(open_run(world, journal, fleet), grid)
        reason = ""
    except PenchantError as error:
        reason = str(error)
        raise
    finally:
        (directory / ENDED).write_text(reason, encoding="utf-8")


def _agent_of(context: Context) -> Answer:
    directory = str(_directory(context))
    _warm_once(directory)
    return _world(directory)[1].answer_of(context)


client_app = build_app(_agent_of)


@lru_cache(maxsize=1)
def _world(directory: str) -> tuple[SimulationSetup, SimulatedDevices]:
    """One process's own copy of the simulated world: the same configuration, the same world."""
    world = prepare(run_directory.read_config(Path(directory)), start=begun_with(Path(directory)))
    return world, SimulatedDevices(
        world.config,
        Path(directory),
        world.federation,
        world.model_cache,
        world.cohort,
        sealed=True,
        sums=Race.sums_left(Path(directory), world.config),
    )


@lru_cache(maxsize=1)
def _warm_once(directory: str) -> None:
    """What a worker does before its first message; it leaves its name in the run's directory."""
    import ray

    warm(_world(directory)[0])
    name = f"{socket.gethostname()}.{ray.get_runtime_context().get_node_id()}.{os.getpid()}"
    (Path(directory) / WORKERS).mkdir(exist_ok=True)
    (Path(directory) / WORKERS / name).touch()


def _directory(context: Context) -> Path:
    directory = context.run_config.get(DIRECTORY)
    if not isinstance(directory, str) or not directory:
        raise RunDirectoryError(f"name the run: flwr run . --run-config '{DIRECTORY}=\"DIR\"'")
    return Path(directory)


# --- Flower's processes -----------------------------------------------------------------------------------


@contextmanager
def _superlink(directory: Path, home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A SuperLink under a guard, and its address; at the end nothing of it runs any more."""
    port = free_port()
    with (directory / LOG).open("ab") as log:
        superlink = subprocess.Popen(
            guarded(simulation_command(port)),
            env=_surroundings(directory, home),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_up(superlink, port)
        yield superlink, f"127.0.0.1:{port}"
    finally:
        if superlink.stdin is not None:
            superlink.stdin.close()  # the guard cleans up
        try:
            superlink.wait(3 * POLITE_SECONDS)
        except subprocess.TimeoutExpired:
            superlink.kill()
        stop_marked(str(directory))


def _surroundings(directory: Path, home: Path) -> dict[str, str]:
    """The environment of the run's processes. Without RAY_ADDRESS they don't join what else runs here."""
    chosen = {"RAY_USAGE_STATS_ENABLED": "0", RAY_ADDRESS: cluster_address() or NO_CLUSTER}
    return environment(home) | chosen | {MARK: str(directory)}


def _wait_until_up(superlink: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and superlink.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(LOOK_SECONDS)
    raise JournalError(f"Flower's SuperLink did not start; see {LOG} in the run directory")


def _stopped(what: str) -> JournalError:
    """The error for a part of Flower that ended too early."""
    before = f"Flower's {what}; see {LOG}, then go on"
    return JournalError(f"{before} with the run", on_command_line=f"{before} with --resume")


def _while_it_runs(superlink: subprocess.Popen[bytes], address: str, run: str, ended: Path) -> Iterator[None]:
    """One step a look, the last after the ServerApp's last word. JournalError when it ended without one."""
    asked = time.monotonic()
    over = False
    while not over:
        over = ended.exists()
        yield
        if superlink.poll() is not None:
            raise _stopped("SuperLink stopped")
        if time.monotonic() - asked >= ASK_SECONDS:
            asked = time.monotonic()
            how = how_it_ended(SuperLinkAddress(address), run)
            if how is not None and not ended.exists():
                raise _stopped(f"simulation {how}")
        if not over:
            time.sleep(LOOK_SECONDS)
