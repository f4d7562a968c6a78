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
