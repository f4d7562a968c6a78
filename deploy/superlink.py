"""Flower's processes, wrapped in one module because their interfaces move: SuperLink, runs, their end.

Flower's control interface has no authentication: a SuperLink listens on loopback only, and devices reach it
through a gateway that passes nothing but the fleet's paths.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from penchant.common.errors import JournalError, UsageError

__all__ = [
    "DIRECTORY",
    "environment",
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

OFFLINE: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""No telemetry, no update check, and no installation of what a bundle asks for."""


def environment(home: Path) -> dict[str, str]:
    """The environment of a Flower process whose own files are in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    # Flower starts its other processes by name: those of this Python's environment, not what else is there.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | OFFLINE | {"FLWR_HOME": str(home), "PATH": path}


def superlink_command(port: int, database: Path) -> list[str]:
    """A SuperLink on loopback, with its state in a file."""
    return [
        _tool("flower-superlink"),
        "--insecure",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--database",
        str(database),
        "--disable-runtime-dependency-installation",
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


def supernode_command(superlink: str, port: int, socket: Path) -> list[str]:
    """A SuperNode on loopback that relays to the agent behind `socket`."""
    return [
        _tool("flower-supernode"),
        "--insecure",
        "--superlink",
        superlink,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--node-config",
        f'agent-socket="{socket}"',
    ]


def write_app(directory: Path, server: str, client: str) -> Path:
    """Write the Flower app of the run in `directory`; -> its folder.

    A bundle without code: it names what is installed on both sides, and the directory to open.
    """
    folder = directory / "flower"
    folder.mkdir(exist_ok=True)
    text = f"""[project]
name = "penchant-run"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "penchant"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
{DIRECTORY} = {json.dumps(str(directory.absolute()))}
"""
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("What is installed runs; nothing is in here.\n", encoding="utf-8")
    return folder


def start_run(app: Path, address: str, home: Path, *more: str) -> str:
    """Start the Flower app of a run at the SuperLink behind `address`; -> Flower's id of the run.

    Raises JournalError when the SuperLink refuses or can't be reached.
    """
    surroundings = environment(home)
    table = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n'
    (home / "config.toml").write_text(table + "insecure = true\n", encoding="utf-8")
    words = [_tool("flwr"), "run", str(app), CONNECTION, "--format", "json", *more]
    try:
        done = subprocess.run(
            words, env=surroundings, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise JournalError(f"the SuperLink at {address} did not take the run in time; is it up?") from None
    answer = _json(done.stdout)
    if done.returncode != 0 or answer.get("success") is not True:  # the exit code alone is 0 on failure
        raise JournalError(f"the SuperLink at {address} did not take the run; is it up? {_said(answer)}")
    return str(answer.get("run-id", answer.get("run_id", "")))


def how_it_ended(address: str, run: str) -> str | None:
    """ "completed", "failed: why" or "stopped"; None while a run goes on, or when the SuperLink is silent."""
    import httpx
    from flwr.proto.control_pb2 import ListRunsRequest
    from flwr.supercore.control.control_http_client import ControlHttpClient

    client = ControlHttpClient(f"http://{address}", timeout=10.0)
    try:
        found = client.ListRuns(ListRunsRequest(run_id=int(run))).run_dict
    except httpx.HTTPError:
        return None
    finally:
        client.close()
    status = found[int(run)].status if int(run) in found else None
    if status is None or status.status != "finished":
        return None
    return ": ".join(" ".join(part.split()) for part in (status.sub_status, status.details) if part)[:300]


def _said(answer: dict[str, object]) -> str:
    """Flower's own reason, in one line."""
    return " ".join(str(answer.get("error-message", "")).split())[:300]


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
