"""The device's SuperNode: it carries messages between a fleet's server and the agent, and runs none of them.

Flower's own SuperNode fetches the app bundle of each run from the server and runs it, in a process for every
message. This one never asks for a bundle: the answer to every message, whatever the server says it is for, is
what the installed relay makes of it (`answered`), in this process. Of Flower's it uses the connection alone
(pinned with Flower 1.41): the node's key, heartbeats, retries, objects. It opens no port, starts no process.

One message is answered at a time, and its reply is sent before the next one is asked for, so that a run that
ends in the middle of a message can't leave a reply behind that is mistaken for the next one's.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.run import RunNotRunningException  # no Exception: Flower's own loop is left by it
from flwr.supernode.fleet_http_connection import http_request_response

from penchant.client.agent.connection_note import ConnectionNote, leave_note
from penchant.client.agent.flower_app import Answer, answered
from penchant.client.agent.socket import RELAYED_MOST, RemoteAgent
from penchant.common.errors import CodecError, ConfigError, DeviceError, PenchantError
from penchant.common.printable import one_line
from penchant.common.terminal import log_to_stderr, say

__all__ = ["Connection", "SuperNode", "main"]

log = logging.getLogger(__name__)

NOTE_SECONDS = 30.0  # between two notes for the owner that the server answers
LOOK_SECONDS = 3.0  # between two looks for a message, when there was none
NAME_MOST = 120  # characters of a message's name in the log: the server chose them
OBJECTS_MOST = 3  # a message, its record of records, the one record with the payload


class Connection(NamedTuple):
    """What Flower's connection to a SuperLink offers, in its own order.

    get_run and get_fab, which would fetch what a server wants to have run, are not called by anything here.
    """

    node_id: int
    receive: Callable[[], Any]
    send: Callable[..., Any]
    get_run: Callable[..., Any]
    get_fab: Callable[..., Any]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


class SuperNode:
    """Answers what comes over a connection, one message after the other.

    Args:
        connection: to the fleet's SuperLink.
        answer: the agent's entrance.
    """

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer

    def step(self) -> bool:
        """Take one message, answer it and send the reply; -> whether there was one.

        A message that can't be fetched, or whose reply can't be sent because its run is over, say, is done
        with. What goes wrong while messages are asked for is raised: the connection is of no use then.
        """
        found = self._connection.receive()
        if found is None:
            return False
        head, tree = found
        place = head.metadata
        name = one_line(f"[RUN {place.run_id}, ROUND {place.group_id}] {place.message_type}")[:NAME_MOST]
        try:
            message = self._fetch(head.metadata.run_id, tree)
            log.info("%s: received", name)
            self._send(answered(message, self._answer))
            log.info("%s: answered", name)
        except (Exception, RunNotRunningException) as error:  # one bad message must not end the others
            log.warning("%s: not answered: %s", name, type(error).__name__)
        return True

    def _fetch(self, run: int, tree: Any) -> Message:
        """The message with its content. CodecError when it has more parts or bytes than penchant's have."""
        if len(_first(tree)) > OBJECTS_MOST:
            raise CodecError("a message has more parts than penchant's have")
        left = [RELAYED_MOST]

        def pull(name: str) -> bytes:
            data = self._connection.pull_object(run, name)
            left[0] -= len(data)
            if left[0] < 0:
                raise CodecError("a message is larger than any that a device takes")
            return data

        message = pull_and_inflate_object_from_tree(
            tree, pull, lambda name: self._connection.confirm(run, name), return_type=Message
        )
        message.metadata.__dict__["_message_id"] = tree.object_id  # it does not hold its own name
        return message

    def _send(self, reply: Message) -> None:
        run = reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            # How long the answer took is nobody's business: Flower would be told here.
            wanted, session = self._connection.send(reply, get_object_tree(reply), 0.0)
            push = partial(self._connection.push_object, run, session)
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=wanted)


def _first(tree: Any) -> list[Any]:
    """The objects of a tree, no more than are needed to see that they are too many."""
    found = []
    for part in iterate_object_tree(tree):
        found.append(part)
        if len(found) > OBJECTS_MOST:
            break
    return found


def _node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"can't read the node's key {path}: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is not a node's key; join the fleet again") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path} is not a node's key, which is one of an elliptic curve; join the fleet again"
        )
    return key


def _carry(superlink: str, ca: Path, key: Path, agent: Path, look: float) -> None:
    """Connect, and answer what comes, until the connection is of no use any more. look: seconds between two
    looks for a message."""
    try:
        trusted = ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read the server's CA {ca}: {error.strerror}") from None
    private = _node_key(key)
    with http_request_response(superlink, False, trusted, (private, private.public_key())) as opened:
        connection = Connection(*opened)
        log.info("SuperNode ID: %s", connection.node_id)
        node = SuperNode(connection, RemoteAgent(agent))
        noted = -NOTE_SECONDS
        while True:
            found = node.step()
            if time.monotonic() - noted >= NOTE_SECONDS:
                noted = time.monotonic()
                if not key.exists():
                    raise ConfigError("the node's key is gone: this device has left its fleet")
                with suppress(DeviceError):  # a full disk does not end it
                    leave_note(key.parent, ConnectionNote(time.time()))
            if not found:
                time.sleep(look)


def main() -> None:
    """Run the SuperNode until SIGTERM, or until the server turns it away."""
    parser = argparse.ArgumentParser(description="Carries messages between a fleet's server and the agent.")
    parser.add_argument("--superlink", required=True, help="HOST:PORT of the fleet's gateway")
    parser.add_argument("--ca", required=True, type=Path, help="the one certificate authority to believe")
    parser.add_argument("--key", required=True, type=Path, help="the node's private key")
    parser.add_argument("--agent", required=True, type=Path, help="the agent's socket")
    parser.add_argument("--look", type=float, help="seconds between two looks for a message")
    given = parser.parse_args()
    log_to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        look = LOOK_SECONDS if given.look is None else given.look
        _carry(given.superlink, given.ca, given.key, given.agent, look)
    except KeyboardInterrupt:  # also how Flower's connection says that the server knows this node no more
        sys.exit(0)
    except PenchantError as error:
        say(str(error), error=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
