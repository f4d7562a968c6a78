"""Flower's grid as one that never waits for incomplete replies.

A reply reaches the SuperLink in two steps: a notice that there is one, then its content. Once Flower's grid
has the notice, it waits for the content for minutes or hours, and all other replies wait behind it. So a
device whose push broke off, or that never means to finish it, would stall a whole fleet past its deadlines.
Here an incomplete reply is looked at again with the next look for replies, and holds up nobody.

A SuperLink under load may wait too long for its own database: it then answers 500, and has done nothing of
what it was asked for. Flower repeats a request when the SuperLink is unreachable, but not after a 500; here
it does. For devices, the gateway does the same.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

__all__ = ["NonBlockingGrid", "non_blocking"]

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # that a SuperLink may go on saying 500
ASKED_MOST = 10_000  # messages in one look: SQLite takes 32,766 in a query, and the SuperLink puts all in one


def non_blocking(grid: Grid) -> Grid:
    """`grid` with `NonBlockingGrid` around it where it is a SuperLink's; any other grid never blocks."""
    return NonBlockingGrid(grid) if isinstance(grid, HttpGrid) else grid


class NonBlockingGrid(Grid):
    """A SuperLink's grid whose `pull_messages` never waits for a device.

    Uses parts of Flower's grid that are not for others: pinned with it.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        retry = grid._retry_invoker
        retry.should_giveup = _Patience(retry.should_giveup or (lambda error: False))
        self._begun: dict[str, Any] = {}  # id of the message replied to -> (message, its objects), not whole

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The complete replies to `message_ids`. Incomplete ones to other messages are dropped.

        Which there are is asked at once; each one's content is fetched when the iterator comes to it, so that
        however many have gathered, one is held.
        """
        wanted = dict.fromkeys(message_ids)
        client = self._grid._runtime_client
        self._begun = {key: reply for key, reply in self._begun.items() if key in wanted}
        # What was given out once must not be asked for again: a SuperLink answers that with an error.
        asked = [key for key in wanted if key not in self._begun]
        for at in range(0, len(asked), ASKED_MOST):
            found = client.PullMessages(PullAppMessagesRequest(message_ids=asked[at : at + ASKED_MOST]))
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                self._begun[message.metadata.reply_to_message_id] = (message, tree)
        return self._contents()

    def _contents(self) -> Iterator[Message]:
        for key, (message, tree) in list(self._begun.items()):
            try:
                reply = self._whole(message, tree)
            except httpx.HTTPError:
                raise  # the SuperLink's fault
            except (
                Exception
            ) as error:  # a device pushed what can't be put together: it counts as unresponsive
                log.warning("a reply can't be read: %s", type(error).__name__)
                del self._begun[key]
                continue
            if reply is not None:
                del self._begun[key]
                yield reply

    def _whole(self, message: Any, tree: Any) -> Message | None:
        """The reply, or None while its content is not all there."""
        client, node, run = self._grid._runtime_client, self._grid.node, self._grid.run.run_id
        try:
            contents = pull_objects(
                [part.object_id for part in iterate_object_tree(tree)],
                make_pull_object_fn_protobuf(client.PullObject, node, run),
                max_tries_per_object=1,
            )
        except ObjectPullError:
            return None
        identifier = message.metadata.message_id
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=identifier)
        )
        reply = inflate_object_from_contents(identifier, contents)
        if not isinstance(reply, Message):
            raise TypeError("expected a message")
        reply.metadata.__dict__["_message_id"] = identifier
        return reply

    # --- as Flower's ---------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **more: Any) -> Message:
        return self._grid.create_message(*args, **more)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


class _Patience:
    """Whether asking a SuperLink again is to be given up; `otherwise` decides on anything but 500."""

    def __init__(self, otherwise: Callable[[Exception], bool]) -> None:
        self._otherwise = otherwise
        self._first, self._last = 0.0, -math.inf  # of the errors that came one soon after the other

    def __call__(self, error: Exception) -> bool:
        if not isinstance(error, httpx.HTTPStatusError) or error.response.status_code != 500:
            return self._otherwise(error)
        now = time.monotonic()
        if now - self._last > PATIENCE_SECONDS:
            self._first = now
        self._last = now
        return now - self._first > PATIENCE_SECONDS
