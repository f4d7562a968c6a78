"""The relay as Flower's own SuperNode runs it, `penchant.client.agent.relay:app`: installed, never sent.

A run's bundle names it, and devices that `penchant device connect` connects need neither (`supernode`).
Where the agent listens is in the node's own configuration: ``--node-config 'agent-socket="/path"'``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from penchant.client.agent.flower_app import Answer, build_app
from penchant.client.agent.socket import RemoteAgent
from penchant.common.errors import DeviceError

__all__ = ["app"]

NODE_KEY = "agent-socket"


@lru_cache(maxsize=8)
def _remote(socket: str) -> RemoteAgent:
    return RemoteAgent(Path(socket))


def _agent_of(context: Context) -> Answer:
    socket = context.node_config.get(NODE_KEY)
    if not isinstance(socket, str) or not socket:
        raise DeviceError(f"the node's configuration lacks {NODE_KEY}: where the agent listens")
    return _remote(socket)


app = build_app(_agent_of)
