"""`penchant server up`: the server's four processes on one machine.

    superlink   Flower's SuperLink, on loopback, over TLS, its state in a file
    executor    starts the ServerApp of a run in a process of its own
    enrol       the enrolment service, on a Unix socket
    gateway     nginx, the one that listens to a network

Each is also a unit of its own under systemd: `penchant server up DIR --only NAME`.
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


def door(site: ServerDirectory) -> SuperLinkAddress:
    """The way to the server's SuperLink, for processes on this machine."""
    return SuperLinkAddress(site.settings.superlink, site.tls.loopback_ca.certificate)


def gateway_open(site: ServerDirectory) -> bool:
    """Whether something listens where devices connect."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(site.settings.listen, site.settings.listen)
    try:
        with socket.create_connection((host, site.settings.port), timeout=2.0):
            return True
    except OSError:
        return False


def up(site: ServerDirectory, announce: Callable[[], None] = lambda: None) -> None:
    """Run all parts until SIGTERM. GatewayError when one can't be started; then none is left running."""
    with claim(site.directory, LOCK):
        gateway.write(site)
        supervise([_part(site, name) for name in PARTS], announce=announce)


def only(site: ServerDirectory, name: str) -> None:
    """Become one part: this process is replaced by it. UsageError for another name."""
    if name not in PARTS:
        raise UsageError(f"there is no part {name!r}; the parts are {', '.join(PARTS)}")
    if name == "enrol":
        serve_enrolment(site)
        return
    if name == "gateway":
        gateway.write(site)
    part = _part(site, name)
    surroundings = os.environ if part.environment is None else part.environment
    os.execve(part.command[0], list(part.command), dict(surroundings))


def serve_enrolment(site: ServerDirectory) -> None:
    """The enrolment service, in this process."""
    enrolment_service.serve(site, _Reached(door(site)))


class _Reached:
    """The SuperLink's nodes, over a connection made anew for each call: it may have been restarted."""

    def __init__(self, where: SuperLinkAddress) -> None:
        self._door = where

    def register(self, public_key: bytes, name: str) -> int:
        with Control(self._door) as control:
            return control.register(public_key, name)

    def unregister(self, node: int) -> None:
        with Control(self._door) as control:
            control.unregister(node)


def _part(site: ServerDirectory, name: str) -> ChildProcess:
    flower, tls, settings = environment(site.flower), site.tls, site.settings
    if name == "superlink":
        command = superlink_command(
            settings.superlink_port,
            site.directory / "flower" / "state.db",
            tls.loopback_ca.certificate,
            tls.loopback.certificate,
            tls.loopback.key,
            site.secret,
        )
        return ChildProcess(name, command, site.log(name), flower, ready=lambda: _answers(site))
    if name == "executor":
        return ChildProcess(name, executor_command(door(site), site.secret), site.log(name), SELDOM | flower)
    if name == "enrol":
        words = [
            sys.executable,
            "-m",
            "penchant.deploy.cli.main",
            "server",
            "up",
            str(site.directory),
            "--only",
            name,
        ]
        return ChildProcess(name, words, site.log(name), ready=lambda: _listens(site.enrol_socket))
    return ChildProcess(name, gateway.command(site), site.log(name), ready=lambda: gateway_open(site))


def _answers(site: ServerDirectory) -> bool:
    try:
        with Control(door(site), seconds=2.0) as control:
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
