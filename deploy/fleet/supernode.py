"""The relay's side of a device: its SuperNode, kept up. It runs nothing that a server sends.

A SuperNode ends itself when the server turns it away or its answers make no sense; it is started again, after
a pause that grows, for as long as this runs.
"""

from __future__ import annotations

from pathlib import Path

from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.terminal import say
from penchant.deploy.fleet.supervisor import ChildProcess, supervise
from penchant.deploy.flower.superlink import environment, supernode_command

__all__ = ["relay"]


def relay(node: SuperNodeFiles, agent: Path | None = None) -> None:
    """Run the SuperNode of `node` until SIGTERM.

    Args:
        node: the files of the SuperNode.
        agent: the path of the agent's socket, if it is not where `node` says.
    """
    command = supernode_command(node.superlink, agent or node.socket, node.ca, node.key)
    part = ChildProcess("the SuperNode", command, None, environment(node.folder / "flower"))
    supervise([part], announce=lambda: say(f"connecting to {node.superlink}"))
