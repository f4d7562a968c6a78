"""What an agent keeps between two messages of one attempt: the announcement and the role's state.

On a device it stays in memory: a device killed in mid-round sits that attempt out. A simulation on Ray
serves successive messages of one client from different processes; there it is kept in the agent's own
directory, sealed under a key of the device, and erased when it is taken.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from penchant.client.secagg import State, decode_state, encode_state
from penchant.client.vault.sealing import SealedStorage
from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import derive
from penchant.common.errors import CodecError, DeviceError, StageError
from penchant.common.wire.codec import AtMost, decode, decode_record, encode, encode_record
from penchant.common.wire.messages import MAX_FACTORS, MAX_PLAN, Announce

__all__ = ["AttemptsInMemory", "OpenAttempts", "SealedAttempts"]

MAX_STATE = 1 << 20  # bytes: shares of 1,024 peers and more
_PURPOSE = ""  # the key serves nothing else
MAX_ANNOUNCE = MAX_FACTORS + MAX_PLAN + (1 << 23)


class OpenAttempts(Protocol):
    """At most one open attempt. Its state is taken once: no step can be made twice from it."""

    @property
    def in_memory(self) -> bool:
        """Whether the attempt's next message comes to this process, so that what was derived of the
        announcement may be kept beside it."""

    def keep(self, announce: Announce, state: State) -> None:
        """Keep the state in which the next message will find the attempt."""

    def take(self) -> tuple[Announce, State]:
        """What was kept, which is then gone. Raises StageError when no attempt is open."""

    def drop(self) -> None:
        """Forget the open attempt, if there is one."""


class AttemptsInMemory:
    """In this process's memory."""

    in_memory = True

    def __init__(self) -> None:
        self._open: tuple[Announce, State] | None = None

    def keep(self, announce: Announce, state: State) -> None:
        """As `OpenAttempts.keep`."""
        self._open = (announce, state)

    def take(self) -> tuple[Announce, State]:
        """As `OpenAttempts.take`."""
        kept, self._open = self._open, None
        if kept is None:
            raise StageError("no attempt is open on this device: a stage was skipped or repeated")
        return kept

    def drop(self) -> None:
        """As `OpenAttempts.drop`."""
        self._open = None


@dataclass(frozen=True, slots=True)
class _Kept:
    announce: Annotated[bytes, AtMost(MAX_ANNOUNCE)]
    state: Annotated[bytes, AtMost(MAX_STATE)]


class SealedAttempts:
    """In one file of the agent's directory, AES-256-GCM under a key of the device. For simulations only."""

    in_memory = False

    def __init__(self, directory: Path, secret: bytes) -> None:
        self._path = directory / "attempt.sealed"
        self._storage = SealedStorage(derive(secret, domain("session")))

    def keep(self, announce: Announce, state: State) -> None:
        """As `OpenAttempts.keep`."""
        plain = encode_record(_Kept(encode(announce), encode_state(state)))
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(self._storage.seal(plain, _PURPOSE))
        except OSError as error:
            raise DeviceError(f"can't keep the open attempt: {error.strerror}") from None

    def take(self) -> tuple[Announce, State]:
        """As `OpenAttempts.take`: the file is gone before this returns."""
        try:
            sealed = self._path.read_bytes()
        except OSError:
            raise StageError("no attempt is open on this device: a stage was skipped or repeated") from None
        self.drop()
        try:
            plain = self._storage.open(sealed, _PURPOSE)
        except DeviceError:
            raise StageError("the open attempt's file is damaged; this attempt is sat out") from None
        kept = decode_record(plain, _Kept)
        try:
            return decode(kept.announce, Announce), decode_state(kept.state)
        except CodecError:
            raise StageError("the open attempt is of an earlier version; this attempt is sat out") from None

    def drop(self) -> None:
        """As `OpenAttempts.drop`; the sealed bytes are overwritten before the file goes."""
        try:
            size = self._path.stat().st_size
            with self._path.open("r+b") as file:
                file.write(bytes(size))
                file.flush()
                os.fsync(file.fileno())
            self._path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DeviceError(f"can't erase the open attempt: {error.strerror}") from None
