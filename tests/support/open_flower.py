"""Flower's processes on loopback without TLS or keys, for tests and benches that need nothing of either."""

from __future__ import annotations

import sys
from pathlib import Path


def superlink_command(port: int, database: Path) -> list[str]:
    """A SuperLink with its state in a file."""
    return [
        str(Path(sys.executable).with_name("flower-superlink")),
        *("--insecure", "--host", "127.0.0.1", "--port", str(port)),
        *("--database", str(database), "--disable-runtime-dependency-installation"),
    ]


def supernode_command(superlink: str, port: int, agent: Path) -> list[str]:
    """A SuperNode that relays to the agent behind the socket `agent`."""
    return [
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--insecure", "--superlink", superlink, "--host", "127.0.0.1", "--port", str(port)),
        *("--node-config", f'agent-socket="{agent}"'),
    ]


def bundle_project(serverapp: str, clientapp: str) -> str:
    """The pyproject.toml of an app bundle with these two apps, each as "module:name"."""
    return f"""[project]
name = "bundle"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "{serverapp}"
clientapp = "{clientapp}"
"""
