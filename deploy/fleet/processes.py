"""`penchant server up`: the server's processes on one machine.

    superlink   Flower's SuperLink, on loopback, over TLS, its state in a file
    executor    starts the ServerApp of a run in a separate process
    enrol       the enrolment service, on a Unix socket
    gateway     nginx, the one that listens to a network
    queue       starts runs that wait for their turn, and goes on with one that was cut off
    signals     answers to monitoring, where server.toml says so; nothing waits for it

Each is also its own unit under systemd: `penchant server up DIR --only NAME`.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from penchant.common.errors import GatewayError, JournalError, UsageError
from penchant.deploy.fleet import enrolment_service, gateway, run_keeper
from penchant.deploy.fleet.heartbeat import Heartbeat
from penchant.deploy.fleet.server_directory import LOOPBACK, SETTINGS, ServerDirectory
from penchant.deploy.fleet.supervisor import ChildProcess, supervise
from penchant.deploy.flower.superlink import (
    Control,
    SuperLinkAddress,
    environment,
    executor_command,
    superlink_command,
)
from penchant.deploy.run_directory import claim, held_locks, is_held

__all__ = [
    "METRICS_LOCK",
    "PARTS",
    "SIGNALS",
    "SIGNALS_LOCK",
    "EnrolmentState",
    "GatewayState",
    "SignalsState",
    "door",
    "enrolment_state",
    "gateway_open",
    "gateway_state",
    "listens",
    "only",
    "refuse_up",
    "signals_state",
    "superlink_answers",
    "up",
]

PARTS = ("superlink", "executor", "enrol", "gateway", "queue")
SIGNALS = "signals"
LOCK = ".up"
SIGNALS_LOCK = ".signals"  # held by the signals part as long as it lives
METRICS_LOCK = ".metrics"  # … and as long as the port for monitoring is its own
METRICS_BEAT = ".metrics-beat"  # the sign of life of what serves figures
NOTICES_BEAT = ".notices-beat"  # … and of what sends notices
EXPIRED = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED
LISTEN_SECONDS = 2.0  # that a process may take to let somebody in
ANSWER_SECONDS = 2.0  # … and to say something
STATUS_MOST = 256  # bytes of the line that begins an answer
ENDING_SECONDS = 15.0  # that what is left of an earlier server may take to end
SELDOM = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "5"}
"""Runs are few, each look writes into the SuperLink's database, and one that fails ends the executor."""


def door(server_directory: ServerDirectory) -> SuperLinkAddress:
    """The way to the server's SuperLink, for processes on this machine."""
    return SuperLinkAddress(server_directory.settings.superlink, server_directory.tls.loopback_ca.certificate)


GatewayState = Literal["open", "closed", "foreign", "silent"]


def gateway_state(server_directory: ServerDirectory) -> GatewayState:
    """What is where devices connect: this server's gateway, nothing, something else that holds the port, or
    something that says nothing, of which nobody knows whose it is.

    It is this server's if its certificate is of this server's CA; one that is past its date still is.
    """
    try:
        with socket.create_connection(_gateway_address(server_directory), ANSWER_SECONDS) as connection:
            return "open" if _is_certified(connection, server_directory.tls.ca.certificate) else "foreign"
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"


def gateway_open(server_directory: ServerDirectory) -> bool:
    """Whether this server's gateway listens where devices connect."""
    return gateway_state(server_directory) == "open"


SignalsState = Literal["unwanted", "up", "unheard", "silent", "down"]


def signals_state(server_directory: ServerDirectory) -> SignalsState:
    """How the signals part is: not asked for, at work, without the port that monitoring asks, alive but not
    heard of when it should have been, or not there.

    Its locks and signs of life say so, and no answer at that port, which may be another program's.
    """
    settings, held = server_directory.settings, held_locks()
    if not settings.signals:
        return "unwanted"
    if not is_held(server_directory.path / SIGNALS_LOCK, held):
        return "down"
    heard = not settings.metrics or is_held(server_directory.path / METRICS_LOCK, held)
    wanted = [METRICS_BEAT] if settings.metrics and heard else []
    wanted += [NOTICES_BEAT] if settings.notices.wanted else []
    late = [Heartbeat(server_directory.path / name).late() for name in wanted]
    if any(one is None or one > 0 for one in late):
        return "silent"
    return "up" if heard else "unheard"


def _gateway_address(server_directory: ServerDirectory) -> tuple[str, int]:
    settings = server_directory.settings
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(settings.listen, settings.listen), settings.port


def _is_certified(connection: socket.socket, ca: Path) -> bool:
    """Whether what answers has a certificate of this CA, whatever its names and date. TimeoutError where
    nothing does."""
    try:
        context = ssl.create_default_context(cafile=str(ca))
        context.check_hostname = False
        with context.wrap_socket(connection):
            return True
    except ssl.SSLCertVerificationError as error:
        return error.verify_code == EXPIRED
    except TimeoutError:
        raise
    except OSError:  # no TLS, or it hung up
        return False


def refuse_up(server_directory: ServerDirectory) -> None:
    """Before a server is brought up by another process: UsageError when it is up already, GatewayError when
    something holds a port of it, its own parts from elsewhere included."""
    if is_held(server_directory.path / LOCK, held_locks()):
        raise _up_already(server_directory)
    _refuse_taken(server_directory)


def _up_already(server_directory: ServerDirectory) -> UsageError:
    where = server_directory.path
    return UsageError(f"the server in {where} is up already; stop it first, or see `penchant server status`")


def _refuse_taken(server_directory: ServerDirectory) -> None:
    """GatewayError when another program holds a port of this server. What of an earlier server is just
    ending is waited for."""
    superlink = LOOPBACK, server_directory.settings.superlink_port
    wanted = {"port": _gateway_address(server_directory), "superlink_port": superlink}
    for name, address in wanted.items():
        end = time.monotonic() + ENDING_SECONDS
        while _is_taken(address):
            if time.monotonic() > end:
                raise GatewayError(
                    f"another program listens at {address[0]}:{address[1]}; end it, or set another {name} in "
                    f"{server_directory.path / SETTINGS}"
                )
            time.sleep(0.2)


def _is_taken(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=2.0):
            return True
    except OSError:
        return False


def up(server_directory: ServerDirectory, announce: Callable[[], None] = lambda: None) -> None:
    """Run all parts until SIGTERM.

    UsageError where the server is up already; GatewayError when a part can't be started, and then none is
    left running.
    """
    with claim(server_directory.path, LOCK, _up_already(server_directory)):
        server_directory.complete()
        _refuse_taken(server_directory)
        gateway.write(server_directory)
        parts = [_part(server_directory, name) for name in PARTS]
        if server_directory.settings.signals:
            parts.append(
                ChildProcess(SIGNALS, _ourselves(server_directory, SIGNALS), server_directory.log(SIGNALS))
            )
        supervise(parts, announce=announce, logs=server_directory.settings.logs)


def only(server_directory: ServerDirectory, name: str) -> None:
    """Become one part: this process is replaced by it. UsageError for another name."""
    if name not in PARTS:
        raise UsageError(f"there is no part {name!r}; the parts are {', '.join((*PARTS, SIGNALS))}")
    server_directory.complete()
    if name == "enrol":
        serve_enrolment(server_directory)
        return
    if name == "queue":
        run_keeper.serve(server_directory)
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
            server_directory.flower_state,
            tls.loopback_ca.certificate,
            tls.loopback.certificate,
            tls.loopback.key,
            server_directory.secret,
        )
        return ChildProcess(
            name,
            command,
            server_directory.log(name),
            flower,
            ready=lambda: superlink_answers(server_directory),
        )
    if name == "executor":
        return ChildProcess(
            name,
            executor_command(door(server_directory), server_directory.secret),
            server_directory.log(name),
            SELDOM | flower,
        )
    if name == "enrol":
        return ChildProcess(
            name,
            _ourselves(server_directory, name),
            server_directory.log(name),
            ready=lambda: listens(server_directory.enrol_socket),
        )
    if name == "queue":
        return ChildProcess(name, _ourselves(server_directory, name), server_directory.log(name))
    return ChildProcess(
        name,
        gateway.command(server_directory),
        server_directory.log(name),
        ready=lambda: gateway_open(server_directory),
    )


def _ourselves(server_directory: ServerDirectory, name: str) -> list[str]:
    """The words that start a part of penchant's own."""
    program = [sys.executable, "-m", "penchant.deploy.cli.main"]
    return [*program, "server", "up", str(server_directory.path), "--only", name]


def superlink_answers(server_directory: ServerDirectory) -> bool:
    """Whether the SuperLink says what nodes there are, within two seconds."""
    try:
        with Control(door(server_directory), seconds=2.0) as control:
            control.nodes()
    except JournalError:
        return False
    return True


def listens(path: Path) -> bool:
    """Whether a process listens on a Unix socket. GatewayError for a path that no socket can have."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(LISTEN_SECONDS)
        try:
            return probe.connect_ex(str(path)) == 0
        except OSError:
            raise GatewayError(f"the path of the socket {path} is too long for the system") from None


EnrolmentState = Literal["well", "closed", "silent", "odd"]


def enrolment_state(server_directory: ServerDirectory) -> EnrolmentState:
    """How the enrolment service is: asked once, as the gateway asks it about a device that signed nothing.

    It refuses that; the system lets callers in even for a process that is stopped. GatewayError for a path
    that no socket can have.
    """
    path = server_directory.enrol_socket
    if not listens(path):
        return "closed"
    end = time.monotonic() + ANSWER_SECONDS
    said = b""
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(ANSWER_SECONDS)
            asked.connect(str(path))
            asked.sendall(f"GET {enrolment_service.CHECK} HTTP/1.0\r\n\r\n".encode())
            while b"\r\n" not in said and len(said) < STATUS_MOST:
                asked.settimeout(max(end - time.monotonic(), 0.001))
                more = asked.recv(STATUS_MOST)
                if not more:
                    break
                said += more
    except TimeoutError:
        return "silent"
    except OSError:
        return "odd"
    return "well" if re.match(rb"HTTP/1\.[01] 401 ", said) else "odd"
