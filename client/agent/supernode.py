"""Flower's SuperNode, kept in step: after each message it waits for the reply to that very message.

Flower's own waits for any reply. A run that ends while a message of it is under way to a device (it was
stopped, or the SuperLink was killed) leaves that message's ClientApp running. Its reply, which nobody waits
for now, is then mistaken for the one to the next message, and from there on every reply goes out one message
late: the device misses each deadline until its SuperNode is started again. Pinned with Flower 1.41.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

__all__ = ["SequencedSuperNode", "main"]


class SequencedSuperNode:
    """Flower's two steps, to pull a message and to push replies, with what is due between them.

    Both are called as Flower calls them.
    """

    def __init__(self, pull: Callable[..., int | None], push: Callable[..., None]) -> None:
        self._pull, self._push = pull, push
        self._due: str | None = None  # id of the message that came last, until its reply has gone

    def pull(self, *, receive: Callable[[], Any], **parts: Any) -> int | None:
        """Take a message, if there is one; -> its run, or None when there is nothing to push."""

        def noted() -> Any:
            found = receive()
            if found is not None:
                self._due = found[0].metadata.message_id
            return found

        return self._pull(receive=noted, **parts)

    def push(self, *, send: Callable[..., Any], **parts: Any) -> None:
        """Push what there is, until the reply to the message that came last was among it."""

        def noted(message: Any, *more: Any) -> Any:
            if message.metadata.reply_to_message_id == self._due:
                self._due = None
            return send(message, *more)

        while self._due is not None:
            self._push(send=noted, **parts)


def main() -> None:
    """`flower-supernode`, in step."""
    step = SequencedSuperNode(
        start_client_internal._pull_and_store_message, start_client_internal._push_messages
    )
    start_client_internal._pull_and_store_message = step.pull  # type: ignore[assignment]
    start_client_internal._push_messages = step.push  # type: ignore[assignment]
    flower_supernode()


if __name__ == "__main__":
    main()
