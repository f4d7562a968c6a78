"""Flower's processes, wrapped in one module because their interfaces move: SuperLink, runs, their end.

Flower's control interface has no authentication: a SuperLink listens on loopback only, and devices reach it
through a gateway that passes nothing but the fleet's paths.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from penchant.common.errors import JournalError, SuperLinkError, UsageError
from penchant.common.printable import one_line
from penchant.common.settings import as_toml

if TYPE_CHECKING:
    from flwr.proto.run_pb2 import RunStatus

__all__ = [
    "DIRECTORY",
    "FLEET_PATHS",
    "SUPERNODE",
    "Control",
    "SuperLinkAddress",
    "environment",
    "executor_command",
    "free_port",
    "how_it_ended",
    "simulation_command",
    "start_run",
    "superlink_command",
    "supernode_command",
    "write_app",
]

DIRECTORY = "directory"  # the key of a Flower run's configuration that names the run's directory
CONNECTION = "penchant"
START_SECONDS = 120.0
NOT_FOUND = 404  # HTTP
SUPERNODE = (sys.executable, "-P", "-m", "penchant.client.agent.supernode")

OFFLINE: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""No telemetry, no update check, and no installation of what a bundle asks for."""


FLEET_PATHS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""What a registered SuperNode asks of a SuperLink, below /v1/fleet/. Registering itself is not among it."""


@dataclass(frozen=True)
class SuperLinkAddress:
    """Where a SuperLink is, for processes beside it, and the CA of its certificate (None without TLS)."""

    address: str
    ca: Path | None = None


def environment(home: Path) -> dict[str, str]:
    """The environment of a Flower process whose own files are in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    # Flower starts its other processes by name: those of this Python's environment, not what else is there.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | OFFLINE | {"FLWR_HOME": str(home), "PATH": path}


def superlink_command(
    port: int, database: Path, ca: Path, certificate: Path, key: Path, secret: Path
) -> list[str]:
    """A SuperLink on loopback over TLS that lets registered nodes in only, and runs no code itself.

    secret: what the executor shows it (`executor_command`); without it anyone on this machine could take
    a run's tasks, and the token that comes with them.
    """
    return [
        _tool("flower-superlink"),
        "--ssl-ca-certfile",
        str(ca),
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--database",
        str(database),
        "--enable-supernode-auth",
        "--isolation",
        "process",
        "--superexec-auth-secret-file",
        str(secret),
        "--disable-runtime-dependency-installation",
    ]


def executor_command(door: SuperLinkAddress, secret: Path) -> list[str]:
    """What starts the ServerApp of a run, in a separate process."""
    return [
        _tool("flower-superexec"),
        "--runtime-api-address",
        door.address,
        "--root-certificates",
        str(door.ca),
        "--superexec-auth-secret-file",
        str(secret),
    ]


def supernode_command(
    superlink: str, agent: Path, ca: Path, key: Path, look: float | None = None
) -> list[str]:
    """A device's SuperNode over TLS, known by its key, that relays to the agent behind the socket `agent`.

    look: seconds between two looks for a message; None for its own.
    """
    return [
        *SUPERNODE,
        "--superlink",
        superlink,
        "--ca",
        str(ca),
        "--key",
        str(key),
        "--agent",
        str(agent),
        *(["--look", f"{look:g}"] if look is not None else []),
    ]


def simulation_command(port: int) -> list[str]:
    """A SuperLink on loopback that simulates its SuperNodes, on Ray; its state ends with it."""
    return [
        _tool("flower-superlink"),
        "--insecure",
        "--simulation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-runtime-dependency-installation",
    ]


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_app(directory: Path, server: str, client: str) -> Path:
    """Write the Flower app of the run in `directory`; -> its folder.

    A bundle without code: it names what is installed on both sides, and the directory to open.
    """
    folder = directory / "flower"
    folder.mkdir(exist_ok=True)
    text = f"""[project]
name = "penchant-run"
version = "0.1.0"
description = "Names what is installed; holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "penchant"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
{DIRECTORY} = {as_toml(str(directory.absolute()))}
"""
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("What is installed runs; nothing is in here.\n", encoding="utf-8")
    return folder


def start_run(app: Path, door: SuperLinkAddress, home: Path, *more: str) -> str:
    """Start the Flower app of a run at the SuperLink behind `door`; -> Flower's id of the run.

    Raises SuperLinkError when the SuperLink refuses or can't be reached.
    """
    surroundings = environment(home)
    table = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{door.address}"\n'
    trust = "insecure = true\n" if door.ca is None else f"root-certificates = {as_toml(str(door.ca))}\n"
    (home / "config.toml").write_text(table + trust, encoding="utf-8")
    words = [_tool("flwr"), "run", str(app), CONNECTION, "--format", "json", *more]
    try:
        done = subprocess.run(
            words, env=surroundings, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SuperLinkError(
            f"the SuperLink at {door.address} did not take the run in time; is it up?"
        ) from None
    answer = _json(done.stdout)
    if done.returncode != 0 or answer.get("success") is not True:  # the exit code alone is 0 on failure
        raise SuperLinkError(
            f"the SuperLink at {door.address} did not take the run; is it up? {_said(answer)}"
        )
    return str(answer.get("run-id", answer.get("run_id", "")))


def how_it_ended(door: SuperLinkAddress, run: str) -> str | None:
    """ "completed", "failed: why" or "stopped"; None while a run goes on, or when the SuperLink is silent."""
    try:
        with Control(door) as control:
            return control.ended(run)
    except SuperLinkError:
        return None


class NodeRow(NamedTuple):
    """A node that may connect.

    Attributes:
        public_key: the node's public key, in PEM.
        status: "registered", "online" or "offline".
        until: when it went offline, or will if it is not heard from again, in Unix seconds; 0 before it
            first connected.
    """

    public_key: bytes
    status: str
    until: float


class Control:
    """A SuperLink's control interface, which asks nobody who they are: reach it over loopback only.

    Every method raises SuperLinkError when the SuperLink is silent or refuses.
    """

    def __init__(self, door: SuperLinkAddress, seconds: float = 10.0) -> None:
        from flwr.supercore.control.control_http_client import ControlHttpClient

        self._door = door
        scheme = "http" if door.ca is None else "https"
        trusted: ssl.SSLContext | bool = True
        if door.ca is not None:
            try:
                trusted = ssl.create_default_context(cafile=str(door.ca))
            except OSError as error:
                raise SuperLinkError(f"can't read {door.ca}: {error.strerror}") from None
        self._client = ControlHttpClient(f"{scheme}://{door.address}", verify=trusted, timeout=seconds)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def ended(self, run: str) -> str | None:
        """How a run ended, as in `how_it_ended`; None while it goes on."""
        status = self._status(run)
        if status is None or status.status != "finished":
            return None
        return ": ".join(" ".join(part.split()) for part in (status.sub_status, status.details) if part)[:300]

    def is_going(self, run: str) -> bool:
        """Whether a run waits for its ServerApp, or had one when the SuperLink last heard of it."""
        status = self._status(run)
        return status is not None and status.status != "finished"

    def _status(self, run: str) -> RunStatus | None:
        """None: the SuperLink does not know it, as after it was restored without its own database."""
        from flwr.proto.control_pb2 import ListRunsRequest

        number = _flower_run(run)
        try:
            with self._answered():
                found = self._client.ListRuns(ListRunsRequest(run_id=number)).run_dict
        except _NotKnown:
            return None
        return found[number].status if number in found else None

    def stop(self, run: str) -> None:
        """Stop a run."""
        from flwr.proto.control_pb2 import StopRunRequest

        number = _flower_run(run)
        with self._answered():
            self._client.StopRun(StopRunRequest(run_id=number))

    def nodes(self) -> dict[int, NodeRow]:
        """Node id -> what is known of it, of all that may connect."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._answered():
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {
            n.node_id: NodeRow(bytes(n.public_key), n.status, n.online_until)
            for n in found
            if n.status != "unregistered"
        }

    def register(self, public_key: bytes, name: str) -> int:
        """Let the node with this key (PEM, a NIST curve) connect; -> its id, the same if it may already."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        for node, known in self.nodes().items():
            if known.public_key == public_key:
                return node
        with self._answered():
            made = self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        return int(made.node_id)

    def unregister(self, node: int) -> None:
        """Let a node connect no more. One that is not known is fine."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        if node not in self.nodes():
            return
        with self._answered():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    @contextmanager
    def _answered(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except ValueError:  # Flower's word for an answer that isn't protobuf
            raise SuperLinkError(f"what answers at {self._door.address} is not a SuperLink") from None
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            kind = _NotKnown if code == NOT_FOUND else SuperLinkError
            raise kind(f"the SuperLink at {self._door.address} refuses: HTTP {code}") from None
        except httpx.HTTPError as error:
            what = type(error).__name__
            raise SuperLinkError(
                f"the SuperLink at {self._door.address} is silent ({what}); is it up?"
            ) from None


class _NotKnown(SuperLinkError):
    """The SuperLink has no such run."""


def _flower_run(text: str) -> int:
    """Flower's id of a run."""
    if not text.isdecimal():
        raise JournalError(f"{text[:30]!r} is not the id of a Flower run")
    return int(text)


def _said(answer: dict[str, object]) -> str:
    """Flower's own reason, in one line."""
    return one_line(str(answer.get("error-message", "")), 300)


def _json(text: str) -> dict[str, object]:
    """The JSON object in what a tool printed; empty if there is none."""
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tool(name: str) -> str:
    """A command of this Python's environment. UsageError when Flower is not installed."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise UsageError(f"there is no command {name}; install penchant[server] or penchant[device]")
    return found
