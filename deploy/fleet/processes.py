"""`penchant server up`: the server's four processes on one machine.

    superlink   Flower's SuperLink, on loopback, over TLS, its state in a file
    executor    starts the ServerApp of a run in a separate process
    enrol       the enrolment service, on a Unix socket
    gateway     nginx, the one that listens to a network

Each is also its own unit under systemd: `penchant server up DIR --only NAME`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from penchant.common.errors import GatewayError, JournalError, UsageError
from penchant.deploy.fleet import enrolment_service, gateway
from penchant.deploy.fleet.server_directory import LOOPBACK, ServerDirectory
from penchant.deploy.fleet.supervisor import ChildProcess, supervise
from penchant.deploy.flower.superlink import (
    Control,
    SuperLinkAddress,
    environment,
    executor_command,
    superlink_command,
)
from penchant.deploy.run_directory import claim

__all__ = ["PARTS", "door", "gateway_open", "only", "up"]

PARTS = ("superlink", "executor", "enrol", "gateway")
LOCK = ".up"
SELDOM = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "5"}
"""Runs are few, each look writes into the SuperLink's database, and one that fails ends the executor."""


def door(server_directory: ServerDirectory) -> SuperLinkAddress:
    """The way to the server's SuperLink, for processes on this machine."""
    return SuperLinkAddress(server_directory.settings.superlink, server_directory.tls.loopback_ca.certificate)


def gateway_open(server_directory: ServerDirectory) -> bool:
    """Whether something listens where devices connect."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(
        server_directory.settings.listen, server_directory.settings.listen
    )
    try:
        with socket.create_connection((host, server_directory.settings.port), timeout=2.0):
            return True
    except OSError:
        return False


def up(server_directory: ServerDirectory, announce: Callable[[], None] = lambda: None) -> None:
    """Run all parts until SIGTERM. GatewayError when one can't be started; then none is left running."""
    with claim(server_directory.path, LOCK):
        gateway.write(server_directory)
        supervise([_part(server_directory, name) for name in PARTS], announce=announce)


def only(server_directory: ServerDirectory, name: str) -> None:
    """Become one part: this process is replaced by it. UsageError for another name."""
    if name not in PARTS:
        raise UsageError(f"there is no part {name!r}; the parts are {', '.join(PARTS)}")
    if name == "enrol":
        serve_enrolment(server_directory)
        return
    if name == "gateway":
        gateway.write(server_directory)
    part = _part(server_directory, name)
    surroundings = os.environ if part.environment is None else part.environment
    os.execve(part.command[0], list(part.command), dict(surroundings))


def serve_enrolment(server_directory: ServerDirectory) -> None:
    """The enrolment service, in this process."""
    enrolment_service.serve(server_directory, _SuperLinkNodes(door(server_directory)))


class _SuperLinkNodes:
    """The SuperLink's nodes, over a connection made anew for each call: it may have been restarted."""

    def __init__(self, where: SuperLinkAddress) -> None:
        self._door = where

    def register(self, public_key: bytes, name: str) -> int:
        with Control(self._door) as control:
            return control.register(public_key, name)

    def unregister(self, node: int) -> None:
        with Control(self._door) as control:
            control.unregister(node)


def _part(server_directory: ServerDirectory, name: str) -> ChildProcess:
    flower, tls, settings = (
        environment(server_directory.flower),
        server_directory.tls,
        server_directory.settings,
    )
    if name == "superlink":
        command = superlink_command(
            settings.superlink_port,
            server_directory.path / "flower" / "state.db",
            tls.loopback_ca.certificate,
            tls.loopback.certificate,
            tls.loopback.key,
            server_directory.secret,
        )
        return ChildProcess(
            name, command, server_directory.log(name), flower, ready=lambda: _answers(server_directory)
        )
    if name == "executor":
        return ChildProcess(
            name,
            executor_command(door(server_directory), server_directory.secret),
            server_directory.log(name),
            SELDOM | flower,
        )
    if name == "enrol":
        words = [
            sys.executable,
            "-m",
            "penchant.deploy.cli.main",
            "server",
            "up",
            str(server_directory.path),
            "--only",
            name,
        ]
        return ChildProcess(
            name, words, server_directory.log(name), ready=lambda: _listens(server_directory.enrol_socket)
        )
    return ChildProcess(
        name,
        gateway.command(server_directory),
        server_directory.log(name),
        ready=lambda: gateway_open(server_directory),
    )


def _answers(server_directory: ServerDirectory) -> bool:
    try:
        with Control(door(server_directory), seconds=2.0) as control:
            control.nodes()
    except JournalError:
        return False
    return True


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            return probe.connect_ex(str(path)) == 0
        except OSError:
            raise GatewayError(f"the path of the socket {path} is too long for the system") from None
