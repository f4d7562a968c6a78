"""The vectors of one group, each added as it arrives and then forgotten.

What the server holds of a group is one sum [words] and a word a device, however many devices there are.
Nothing that a crash would need is lost by it. Before the first unmask request the attempt is tried again with
fresh keys, and vectors under the old masks would be of no use. From there on the record `ASKED` holds the
masked sum, the lists of who is in it and the roster; a single vector is needed no more, and none may be kept
for another use.

Modular and integer addition don't hang on the order: the sum, and what is said about whoever is not in it, is
the same whoever was quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.common.wire.messages import AbortCode
from penchant.server.secagg.group import GroupLog

__all__ = ["ReadVector", "VectorSum"]

ReadVector = Callable[[int, bytes], NDArray[Any] | AbortCode | str]
"""(place in the group, reply) -> its vector [words]; or why it is left out: its abort code, or its fault."""


class VectorSum:
    """The sum of what has arrived; `total` is an array of zeros [words] of the type to add up in."""

    def __init__(self, nodes: Sequence[int], total: NDArray[Any], read: ReadVector) -> None:
        self.total = total
        self._read = read
        self._places = {node: place for place, node in enumerate(nodes)}
        self._heard: dict[int, AbortCode | str] = {}  # node -> why it is left out, "" if it is not

    def take(self, node: int, reply: bytes) -> None:
        """Add a device's vector. The first reply of a device counts; of others, nothing is heard."""
        if node in self._heard or node not in self._places:
            return
        read = self._read(self._places[node], reply)
        if isinstance(read, np.ndarray):
            np.add(self.total, read, out=self.total)
            self._heard[node] = ""
        else:
            self._heard[node] = read

    def survivors(self, stage: str, log: GroupLog) -> list[int]:
        """The places of those whose vectors are in the sum, ascending; the others are noted in `log`."""
        there = []
        for node, place in self._places.items():
            why = self._heard.get(node)
            if why == "":
                there.append(place)
            else:
                log.leave_out(stage, node, why or "")
        return there
