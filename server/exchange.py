"""One exchange: a message to each client, the replies that came in time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from penchant.common.config import FederationConfig
from penchant.common.errors import CodecError
from penchant.common.secagg.stages import MASKED
from penchant.common.wire.flower import message_type, pack, unpack
from penchant.server.secagg.aggregation import Take

__all__ = ["Exchange", "exchange_of"]

AT_ONCE = 1 << 26  # bytes of replies that may gather between two looks before looks become more frequent

Arrived = Callable[[str, int, bytes], None]
"""(stage, node, reply payload), called for each reply as it arrives."""

FLOWER_SAYS = {
    3: "the message is not there any more",
    4: "the reply came too late",
    5: "no heartbeat of the node for a minute",
}
"""What Flower's own error codes mean, of those that its SuperLink answers with in a node's place."""

LONGEST = 7 * 86400.0  # seconds of any exchange
LONGEST_SLEEP = 3.0  # seconds between two looks for replies, as Flower's own grid


class Exchange:
    """Sends over Flower's grid, waits at most `deadline` seconds, and at most `silence` for the next answer;
    counts payload bytes.

    In stage masked it also waits for as long as devices train: their vectors leave at the end of that time.

    A client that does not answer in time, or whose reply is an error of Flower's, is absent from the
    replies: to the protocol it dropped out; `errors` counts those errors, "stage: reason". `arrived` hears of
    each reply before the next look for more, so that what it keeps is kept even if the server dies while it
    waits for the rest.
    """

    def __init__(
        self,
        grid: Grid,
        deadline: float,
        group_id: str,
        arrived: Arrived = lambda stage, node, payload: None,
        *,
        training: float = 0.0,
        silence: float = math.inf,
    ) -> None:
        self._grid = grid
        self._training = training
        self._deadline = deadline
        self._silence = silence
        self._group_id = group_id
        self._arrived = arrived
        self.bytes_down = 0
        self.bytes_up = 0
        self.errors: Counter[str] = Counter()

    def __call__(
        self, stage: str, payloads: Mapping[int, bytes], take: Take | None = None, /
    ) -> dict[int, bytes]:
        """{node: payload} -> {node: reply payload}, in the order of `payloads`: what follows does not hang on
        who was quicker.

        With `take`, each reply is given to it on arrival and not kept; nothing is returned. Replies are taken
        from the grid one by one, and looked for more often where many bytes arrive, so that no more of them
        wait here than AT_ONCE where they come evenly.
        """
        began = looked = heard = time.monotonic()
        training = self._training if stage == MASKED else 0.0
        deadline = self._deadline + training
        waiting = set(self._grid.push_messages(self._messages(stage, payloads, deadline)))
        self.bytes_down += sum(len(payload) for payload in payloads.values())
        replies: dict[int, bytes] = {}
        keep = replies.__setitem__ if take is None else take
        unheard = set(payloads)
        while waiting:
            before = self.bytes_up
            for message in self._grid.pull_messages(frozenset(waiting)):
                waiting.discard(message.metadata.reply_to_message_id)
                self._hear(stage, message, unheard, keep)
                heard = time.monotonic()
            now = time.monotonic()
            elapsed, between, looked = now - began, now - looked, now
            left = min(deadline - elapsed, self._silence + training - (now - heard))
            if not waiting or left <= 0:
                break
            # A twentieth of the time waited: quick exchanges are not held up, slow ones cost few looks.
            pause = min(elapsed / 20, LONGEST_SLEEP, left)
            time.sleep(min(pause, between * AT_ONCE / max(self.bytes_up - before, 1)))
        return {node: replies[node] for node in payloads if node in replies}

    def _messages(self, stage: str, payloads: Mapping[int, bytes], deadline: float) -> list[Message]:
        return [
            Message(
                pack(payload),
                dst_node_id=node,
                message_type=message_type(stage),
                group_id=self._group_id,
                ttl=max(deadline, 1.0) + 60,
            )
            for node, payload in payloads.items()
        ]

    def _hear(self, stage: str, message: Message, unheard: set[int], keep: Take) -> None:
        if message.has_error():
            code = message.error.code  # not its text, which anybody may have written
            self.errors[f"{stage}: {FLOWER_SAYS.get(code, f'error {code} of Flower')}"] += 1
            return
        node = message.metadata.src_node_id
        if node not in unheard:
            return
        try:
            payload = unpack(message.content)
        except CodecError as error:
            self.errors[f"{stage}: {error}"] += 1
            return
        self.bytes_up += len(payload)
        unheard.remove(node)
        self._arrived(stage, node, payload)
        keep(node, payload)


def exchange_of(
    federation: FederationConfig,
    grid: Grid,
    group_id: str,
    arrived: Arrived = lambda stage, node, payload: None,
    *,
    in_turn: int,
    silence: float = math.inf,
) -> Exchange:
    """An exchange with a run's devices, by its deadlines.

    in_turn: how many one machine serves at a time, as of `ServerRun.in_turn`. silence: seconds without any
    answer after which it ends, where that is sooner.
    """
    deadline, training = federation.deadline_seconds, federation.training_seconds
    if in_turn:
        deadline, training, silence = LONGEST, training * in_turn, min(silence, deadline * in_turn)
    return Exchange(grid, deadline, group_id, arrived, training=training, silence=silence)
