"""Ranking by the process that has the model in memory already: `rank` asks `serve-api`, where that runs.

They speak over a Unix socket in the device's directory that nobody but the owner can open: one question and
one answer, both JSON, on each connection. What is ranked, and how, is the same as without it; whoever asks
imports neither torch nor a model.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.client.device.ranked import Ranked
from penchant.client.vault.ownership import check_directory
from penchant.common.errors import PenchantError
from penchant.deploy.cli.device.question_file import QuestionFile

if TYPE_CHECKING:
    from penchant.client.device.device import Device

__all__ = [
    "SOCKET",
    "Ranking",
    "answering",
    "ranked_elsewhere",
    "ranking_of",
]

log = logging.getLogger(__name__)

SOCKET = "rank.sock"  # in the device's directory
MOST = 64 * 1024 * 1024  # bytes of a question
PATH_MOST = 100  # bytes that fit into the system's address of a Unix socket, with some to spare


@dataclass(frozen=True)
class Ranking:
    """Responses in the owner's order, and what the owner should know beside it, a line each."""

    rows: list[Ranked]
    notices: list[str]


def ranking_of(device: Device, asked: QuestionFile) -> Ranking:
    """What a device makes of a question. Errors as `Device.rank`."""
    prompt, responses = asked.as_trained(conversation=device.conversational())
    ranked = device.rank(prompt, responses)
    unread = device.reading(prompt, [row.response for row in ranked])
    notices = device.standing().notes()
    if unread.cut:
        notices.append(
            f"{unread.cut} of {unread.texts} responses are longer than what the model reads and were cut"
        )
    if unread.alike:
        notices.append(f"{unread.alike} of the responses are the same to the model as the next one below")
    return Ranking(ranked, notices)


def ranked_elsewhere(home: Path, asked: QuestionFile) -> Ranking | None:
    """What the process that serves the device in `home` makes of a question; None where there is none, or it
    refuses: then whoever asks does it, and learns why not."""
    path = home / SOCKET
    if not path.is_socket():
        return None
    check_directory(home)  # nobody else may have put the socket there
    try:
        with Client(str(path), family="AF_UNIX") as connection:
            connection.send_bytes(json.dumps(dataclasses.asdict(asked)).encode())
            found: dict[str, Any] | None = json.loads(connection.recv_bytes())
    except (OSError, EOFError):
        return None  # it has ended, and left its socket
    if found is None:
        return None
    return Ranking([Ranked(**row) for row in found["rows"]], found["notices"])


@contextmanager
def answering(device: Device) -> Iterator[bool]:
    """Answer such questions while the block runs; -> whether it does: another process of this device may be
    the one that does, or the directory's name be too long for the system.

    DeviceError when others can write into the device's directory.
    """
    path = device.directory.absolute() / SOCKET
    check_directory(device.directory)
    if len(os.fsencode(path)) > PATH_MOST or _answered(path):
        yield False
        return
    path.unlink(missing_ok=True)
    before = os.umask(0o177)  # never open to others
    try:
        listener = Listener(str(path), family="AF_UNIX")
    finally:
        os.umask(before)
    threading.Thread(target=_listen, args=(listener, device), name="rank", daemon=True).start()
    try:
        yield True
    finally:
        listener.close()
        path.unlink(missing_ok=True)


# --- inner parts ----------------------------------------------------------------------------------


def _answered(path: Path) -> bool:
    """Whether somebody listens there."""
    try:
        Client(str(path), family="AF_UNIX").close()
    except OSError:
        return False
    return True


def _listen(listener: Listener, device: Device) -> None:
    """One question after the other, until the listener is closed."""
    while True:
        try:
            connection = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError, EOFError):
            _answer(connection, device)


def _answer(connection: Connection, device: Device) -> None:
    asked = connection.recv_bytes(MOST)
    try:
        found = dataclasses.asdict(ranking_of(device, QuestionFile(**json.loads(asked))))
    except PenchantError:
        connection.send_bytes(b"null")
    except Exception as error:  # its text may hold a choice; whoever asked will see for themselves
        log.warning("a question was not answered: %s", type(error).__name__)
        connection.send_bytes(b"null")
    else:
        connection.send_bytes(json.dumps(found).encode())
