"""One exchange: a message to each client, the replies that came in time."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from penchant.common.errors import CodecError
from penchant.common.flower import message_type, pack, unpack

__all__ = ["Exchange"]


class Exchange:
    """Sends over Flower's grid, waits at most `deadline` seconds, counts payload bytes.

    A client that does not answer in time, or whose reply is an error of Flower's, is absent from the
    replies: to the protocol it dropped out.
    """

    def __init__(self, grid: Grid, deadline: float, group_id: str) -> None:
        self._grid = grid
        self._deadline = deadline
        self._group_id = group_id
        self.bytes_down = 0
        self.bytes_up = 0

    def __call__(self, stage: str, payloads: Mapping[int, bytes]) -> dict[int, bytes]:
        """{node: payload} -> {node: reply payload}."""
        messages = [
            Message(
                pack(payload),
                dst_node_id=node,
                message_type=message_type(stage),
                group_id=self._group_id,
                ttl=max(self._deadline, 1.0) + 60,
            )
            for node, payload in payloads.items()
        ]
        self.bytes_down += sum(len(payload) for payload in payloads.values())
        replies: dict[int, bytes] = {}
        for reply in self._grid.send_and_receive(messages, timeout=self._deadline):
            node = reply.metadata.src_node_id
            if reply.has_error() or node not in payloads:
                continue
            try:
                replies[node] = unpack(reply.content)
            except CodecError:
                continue  # as good as silent
        self.bytes_up += sum(len(payload) for payload in replies.values())
        return replies
