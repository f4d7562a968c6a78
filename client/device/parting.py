"""A device parts from its fleet: nothing of the node stays, whatever fails, and its server is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from penchant.client.device import joining
from penchant.client.device.home import DeviceHome
from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.errors import PenchantError
from penchant.common.membership.enrolment import LeaveNotice

__all__ = ["Parted", "part"]

T = TypeVar("T")


@dataclass
class Parted(Generic[T]):
    """What parting did.

    Attributes:
        result: what came of it.
        member: the number that the device had; None where it was in no fleet.
        not_told: why the server was not told, where it should have been; empty otherwise.
        node_removed: whether a node was there, and went.
    """

    result: T
    member: int | None
    not_told: str = ""
    node_removed: bool = False


@contextmanager
def _in_silence(member: int) -> Iterator[None]:
    yield


def part(
    device: DeviceHome,
    folder: Path,
    parting: Callable[[], T],
    leaving: Callable[[int], AbstractContextManager[None]] = _in_silence,
) -> Parted[T]:
    """Do `parting`, after which the device is in no fleet, and tell its server.

    A server that can't be told keeps nobody: the device has left by then. The node goes whenever the device
    is in no fleet, whatever failed, and before the server is told: that may take a minute, in which the
    program may be ended. Errors as `parting`, and DeviceError when the disk keeps the node.

    Args:
        device: the owner's.
        folder: where the node's files are.
        parting: `Device.leave` or `Device.forget`.
        leaving: entered with the member number, which nothing knows any more, until the server is told.
    """
    member = device.member
    word = None if member is None else device.leave_notice()
    server, not_told = _server(folder) if word else (None, "")
    left = removed = False
    with ExitStack() as until_told:
        try:
            result = parting()
            if member is not None:
                until_told.enter_context(leaving(member))
                left = True
        finally:
            try:
                if device.member is None:
                    removed = SuperNodeFiles.remove(folder)
            finally:
                if left and word and server:
                    not_told = _tell(word, server)
    return Parted(result, member, not_told, removed)


def _server(folder: Path) -> tuple[joining.KnownServer | None, str]:
    """Who is to be told, or why nobody can be."""
    try:
        return joining.KnownServer.of(folder), ""
    except PenchantError as error:
        return None, str(error)


def _tell(word: LeaveNotice, server: joining.KnownServer) -> str:
    """Tell it; -> why that failed, empty where it did not."""
    try:
        joining.tell_server(word, server)
    except PenchantError as error:
        return str(error)
    return ""
