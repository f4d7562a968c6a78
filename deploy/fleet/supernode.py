"""The relay's side of a device: its SuperNode, kept up. It runs nothing that a server sends.

A SuperNode ends itself when the server turns it away or its answers make no sense; it is started again, after
a pause that grows, until the server says for a minute that it knows this device no more.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from penchant.client.agent.connection_note import ConnectionNote, leave_note, read_note
from penchant.client.device.admission import Admission
from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.errors import DeviceError, EnrolmentError
from penchant.common.terminal import say
from penchant.deploy.fleet.supervisor import ChildProcess, supervise
from penchant.deploy.flower.superlink import environment, supernode_command

__all__ = ["relay"]


def relay(node: SuperNodeFiles, agent: Path | None = None, look: float | None = None) -> None:
    """Run the SuperNode of `node` until SIGTERM.

    Args:
        node: the files of the SuperNode.
        agent: the path of the agent's socket, if it is not where `node` says.
        look: seconds between two looks for a message; None for three.

    Raises EnrolmentError when the device is no member any more.
    """
    command = supernode_command(node.superlink, agent or node.socket, node.ca, node.key, look)
    admission = Admission(node)
    part = ChildProcess(
        "the SuperNode",
        command,
        None,
        environment(node.folder / "flower"),
        over=lambda: _noted(node, admission.over()),
    )
    supervise([part], announce=lambda: say(f"connecting to {node.superlink}"))


def _noted(node: SuperNodeFiles, final: EnrolmentError | None) -> EnrolmentError | None:
    """Leave word for the owner of why there is no connection any more; not of a device that has left."""
    if final is not None and node.key.exists():
        before = read_note(node.folder)
        with suppress(DeviceError):  # it is said in any case
            leave_note(node.folder, ConnectionNote(before.heard if before else 0.0, str(final)))
    return final
