"""Simulated devices in several processes of one machine: `--grid processes`.

The rounds, the relay and the agents are those of the in-process grid, whose threads hand each message on to a
process and wait for the reply. What Python itself computes holds one lock in a process, which threads wait
for and processes don't.

A worker is given the people and the configuration when it starts, and loads the base model by itself; what
travels afterwards are the messages, so factors and never the backbone. What the frozen blocks give for each
text is computed once, before, and written to a file that all processes map into their memory. It has no name
any more once all have mapped it.

A device is served by one process during an attempt, which lives in its memory, and the vaults say the rest:
so any process can serve it in the next. A process that is gone ends the run; finished rounds are kept.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import Context, Message

from penchant.client.agent.flower_app import build_app
from penchant.client.learning.child_process import Child, answer, end_with_parent
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.errors import ConfigError, RunDirectoryError, WorkerLost
from penchant.common.model.activation_cache import PrefixCache
from penchant.common.secagg.stages import KEYS
from penchant.common.wire.flower import stage_of
from penchant.deploy.flower.in_process_grid import FLOWER_RUN, contexts, message_bytes, message_of, reply_of
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.world import SimulationSetup, worker_count

__all__ = ["WorkerProcesses", "worker_processes"]

STATES = "frozen-states"  # in a run directory, while the processes start
NAME = "penchant worker"

Found = TypeVar("Found")


@dataclass(frozen=True)
class _WorkerStart:
    """What a process is given at its start."""

    config: RunConfig
    directory: Path
    federation: Federation
    cohort: int
    sums: int | None
    states: Path | None


class WorkerProcesses:
    """Hands messages on to processes, as an app of the in-process grid. Thread-safe.

    Which process serves whom depends on who is asked first, and nothing that a device sends depends on that.
    """

    def __init__(self, children: list[Child]) -> None:
        self._children = children
        self._busy = [threading.Lock() for _ in children]
        self._registry = threading.Lock()
        self._attempt = ""  # the group id of the messages of an attempt
        self._load = Counter[int]()  # process -> how many devices it serves in that attempt
        self._served_by: dict[int, int] = {}  # node -> process, of its last attempt

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply of the client that a message is for. WorkerLost when its process is gone."""
        number = self._place(message, context.node_id)
        with self._busy[number]:
            return message_of(_asked(self._children[number], message_bytes(message)))

    def pids(self) -> list[int]:
        """The system's numbers of the processes."""
        return [child.pid for child in self._children if child.pid is not None]

    def _place(self, message: Message, node: int) -> int:
        """The process for a message: for the first of an attempt, the one that serves the fewest in it."""
        with self._registry:
            if stage_of(message.metadata.message_type) == KEYS:
                if message.metadata.group_id != self._attempt:
                    self._attempt, self._load = message.metadata.group_id, Counter()
                number = min(range(len(self._children)), key=lambda one: self._load[one])
                self._load[number] += 1
                self._served_by[node] = number
            return self._served_by.get(node, node % len(self._children))


@contextmanager
def worker_processes(world: SimulationSetup, directory: Path, sums: int | None) -> Iterator[WorkerProcesses]:
    """As many processes as `world` asks for, ready to serve; ended at the end.

    Args:
        world: whose frozen states are computed. They are held in memory that all share from then on.
        directory: of the run, with the agents as they are to begin.
        sums: in how many sums of the run a device may be, as `SimulatedDevices` takes it.

    Raises:
        ConfigError: the base model is on a GPU, which processes would only share.
        RunDirectoryError: there is no room for the frozen states.
        WorkerLost: a process did not start.
    """
    model = world.model_cache.model(world.config.model, world.config.adapter)
    if model.device.type != "cpu":
        raise ConfigError("grid is processes, which are for a CPU's cores; on a GPU set grid to local")
    states = directory / STATES if len(model.cache) else None
    children: list[Child] = []
    try:
        if states is not None:
            _shared_by_all(model.cache, states)
        task = _WorkerStart(world.config, directory, world.federation, world.cohort, sums, states)
        children.extend(Child(_serve, name=NAME) for _ in range(worker_count(world.config)))
        for child in children:
            _told(child.reply)  # it is there, and reads: people may be more than a pipe holds
            _told(partial(child.tell, task))
        for child in children:
            _told(child.reply)
        if states is not None:
            states.unlink()
        yield WorkerProcesses(children)
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.close()
        if states is not None:
            states.unlink(missing_ok=True)


def _shared_by_all(cache: PrefixCache, states: Path) -> None:
    """Write what a cache keeps to a file, and map it from there. RunDirectoryError where there is no room."""
    try:
        cache.write(states)
    except OSError as error:
        raise RunDirectoryError(
            f"can't write {states}: {error.strerror}; make room on its disk, or set grid to local"
        ) from None
    cache.read(states)


def _asked(child: Child, data: bytes) -> bytes:
    """What a process replies."""

    def exchange() -> bytes:
        child.tell(data)
        reply: bytes = child.reply()
        return reply

    return _told(exchange)


def _told(exchange: Callable[[], Found]) -> Found:
    """What comes of talking to a process. WorkerLost when it is gone."""
    try:
        return exchange()
    except (EOFError, OSError):
        lost = "a worker process is gone: it was killed, or memory ran out; finished rounds are kept"
        raise WorkerLost(
            f"{lost}: go on with the run, with fewer workers if it was memory",
            on_command_line=f"{lost}: go on with --resume, with fewer --workers if it was memory",
        ) from None


# --- in the process -----------------------------------------------------------------------------------


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the run ends this process as well
    end_with_parent()
    torch.set_num_threads(1)  # as in the process that asks (`world.warm`)
    opened: list[Callable[[bytes], bytes]] = []
    try:
        answer(connection, lambda: None)
        task = connection.recv()
        answer(connection, lambda: opened.append(_opened(task)))
        while opened:
            answer(connection, partial(opened[0], connection.recv()))
    except (EOFError, OSError):
        return


def _opened(task: _WorkerStart) -> Callable[[bytes], bytes]:
    """Everybody's agents, made when they are first asked; -> what answers messages."""
    models = ModelCache()
    if task.states is not None:
        models.model(task.config.model, task.config.adapter).cache.read(task.states)
    fleet = SimulatedDevices(
        task.config, task.directory, task.federation, models, task.cohort, sums=task.sums
    )
    app = build_app(fleet.answer_of)
    everybody = contexts(FLOWER_RUN, len(fleet))

    def replied(data: bytes) -> bytes:
        message = message_of(data)
        return message_bytes(reply_of(app, message, everybody[message.metadata.dst_node_id]))

    return replied
