"""A device parts from its fleet: its server is told, and nothing of the node stays, whatever fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from penchant.client.device import joining
from penchant.client.device.device import Device
from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.errors import PenchantError

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
    device: Device,
    folder: Path,
    parting: Callable[[], T],
    leaving: Callable[[int], AbstractContextManager[None]] = _in_silence,
) -> Parted[T]:
    """Do `parting`, after which the device is in no fleet, and tell its server.

    A server that can't be told keeps nobody: the device has left by then. The node goes whenever the device
    is in no fleet, whatever failed. Errors as `parting`.

    Args:
        device: the owner's.
        folder: where the node's files are.
        parting: `Device.leave` or `Device.forget`.
        leaving: entered with the member number, which nothing knows any more, while the server is told.
    """
    member = device.member
    word = None if member is None else device.leave_notice()
    removed, not_told = False, ""
    try:
        result = parting()
        if word is not None and member is not None:
            with leaving(member):
                try:
                    joining.tell_server(word, folder)
                except PenchantError as error:
                    not_told = str(error)
    finally:
        if device.member is None:
            removed = SuperNodeFiles.remove(folder)
    return Parted(result, member, not_told, removed)
