"""Whether each part of a server does its work: for container runtimes, timers and whoever watches.

    superlink   answers what nodes there are
    executor    asked the SuperLink for work lately
    enrol       answers on its socket
    gateway     listens where devices connect, with this server's certificate
    queue       was heard of when it said it would be
    signals     holds its lock, and the port for monitoring where one is set, and was heard of in time

A part that lives and does nothing is not well. Nothing is changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from penchant.common.errors import GatewayError, UsageError
from penchant.common.wording import duration
from penchant.deploy.fleet.heartbeat import Heartbeat
from penchant.deploy.fleet.processes import (
    PARTS,
    SIGNALS,
    EnrolmentState,
    GatewayState,
    enrolment_state,
    gateway_state,
    signals_state,
    superlink_answers,
)
from penchant.deploy.fleet.run_keeper import BEAT
from penchant.deploy.fleet.run_keeper import LOCK as QUEUE_LOCK
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.executor_looks import last_look
from penchant.deploy.run_directory import held_locks, is_held
from penchant.server.monitoring.alerts import Notice

__all__ = ["ailing", "part_notices", "worth_telling"]

EXECUTOR_SECONDS = 60.0  # without a look of the executor; it looks every five
_SILENT: Final = "does not answer"
_GATEWAY: Final[dict[GatewayState, str]] = {
    "open": "",
    "closed": "is closed",
    "foreign": "another program holds its port",
    "silent": _SILENT,
}
_ENROLMENT: Final[dict[EnrolmentState, str]] = {
    "well": "",
    "closed": "does not listen",
    "silent": _SILENT,
    "odd": "does not answer as it should",
}


_UNSEEN: Final[dict[str, tuple[str, str, str]]] = {
    "enrol": (
        "The enrolment service",
        "enrolment",
        "Every request of a device is turned away meanwhile; see logs/enrol.log.",
    ),
    "executor": ("Flower's executor", "executor", "No run begins or goes on; see logs/executor.log."),
    "queue": (
        "The queue of runs",
        "keeper",
        "No run begins in its turn, and none goes on by itself; see logs/queue.log.",
    ),
}
"""Part -> (what it is called, topic, what follows)."""


def ailing(
    server_directory: ServerDirectory, parts: Sequence[str] = (), clock: Callable[[], float] = time.time
) -> list[str]:
    """What is not well, a line for each such part; of all parts that there should be, or of these.

    Raises UsageError for another part.
    """
    known = _checks(server_directory, clock)
    wanted = parts or [*PARTS, *([SIGNALS] if server_directory.settings.signals else [])]
    for name in wanted:
        if name not in known:
            raise UsageError(f"there is no part {name!r}; the parts are {', '.join(known)}")
    found = [(name, known[name]()) for name in wanted]
    return [f"{name}: {why}" for name, why in found if why]


def part_notices(
    server_directory: ServerDirectory, clock: Callable[[], float] = time.time
) -> dict[str, Notice | None]:
    """What is wrong with each part that no device meets and no port shows; None with one that does its work.

    Gateway, SuperLink and signals are told of where more is known of them.
    """
    known = _checks(server_directory, clock)
    found = {name: known[name]() for name in _UNSEEN}
    return {
        name: Notice("bad", f"{called} {found[name]}", text, "", topic) if found[name] else None
        for name, (called, topic, text) in _UNSEEN.items()
    }


def worth_telling(parts: Mapping[str, Notice | None], superlink: bool) -> list[Notice]:
    """Of `part_notices`, those that tell anything new: an executor can ask no SuperLink that is down."""
    return [wrong for name, wrong in parts.items() if wrong and (superlink or name != "executor")]


def _checks(server_directory: ServerDirectory, clock: Callable[[], float]) -> dict[str, Callable[[], str]]:
    """Part -> what asks how it is: empty when it is well."""
    return {
        "superlink": lambda: "" if superlink_answers(server_directory) else "does not answer",
        "executor": lambda: _executor(server_directory, clock),
        "enrol": lambda: _enrol(server_directory),
        "gateway": lambda: _GATEWAY[gateway_state(server_directory)],
        "queue": lambda: _queue(server_directory, clock),
        SIGNALS: lambda: {
            "up": "",
            "unwanted": "server.toml asks for none",
            "unheard": "does not hold the port for monitoring",
            "silent": "was not heard of when it should have been",
        }.get(signals_state(server_directory), "is down"),
    }


def _executor(server_directory: ServerDirectory, clock: Callable[[], float]) -> str:
    looked = last_look(server_directory.flower_state)
    if looked is None:
        return "never asked the SuperLink for work"
    silent = clock() - looked
    return f"asked for no work for {duration(silent)}" if silent > EXECUTOR_SECONDS else ""


def _enrol(server_directory: ServerDirectory) -> str:
    try:
        return _ENROLMENT[enrolment_state(server_directory)]
    except GatewayError as error:
        return str(error)


def _queue(server_directory: ServerDirectory, clock: Callable[[], float]) -> str:
    if not is_held(server_directory.path / QUEUE_LOCK, held_locks()):
        return "is down"
    late = Heartbeat(server_directory.path / BEAT, clock).late()
    if late is None:
        return "was never heard of"
    return f"should have been heard of {duration(late)} ago" if late > 0 else ""
