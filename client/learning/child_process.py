"""A process of the agent's own: started afresh, spoken to over a pipe, ended at will, gone with the agent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from penchant.common.errors import DeviceError, PenchantError

__all__ = ["Child", "answer", "end_with_parent", "yield_memory"]


class Child:
    """One such process, which runs `main(connection, *arguments)`.

    It sends one reply for each message, by `answer`. What is said to one that is gone raises EOFError or
    OSError.
    """

    def __init__(self, main: Callable[..., None], *arguments: Any, name: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(theirs, *arguments), name=name, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """The system's number of it."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it is there."""
        return self._process.is_alive()

    def tell(self, message: Any) -> None:
        """Send it a message."""
        self._connection.send(message)

    def ready(self, seconds: float | None) -> bool:
        """Whether its reply is there within that time; None waits for as long as it takes."""
        return self._connection.poll(seconds)

    def reply(self) -> Any:
        """Its reply. Raises what was raised there if that was penchant's own, DeviceError for any other."""
        kind, said = self._connection.recv()
        if kind == "done":
            return said
        raise said if isinstance(said, PenchantError) else DeviceError(f"the work failed: {said}")

    def kill(self) -> None:
        """End it. Returns at once, from any thread."""
        self._process.kill()

    def close(self) -> None:
        """End it, and wait until it is gone with its memory."""
        self._process.kill()
        self._process.join()
        self._connection.close()


# --- in the process -----------------------------------------------------------------------------------


def answer(connection: Connection, act: Callable[[], Any]) -> None:
    """Send what `act` gives, or how it failed."""
    reply: tuple[str, Any]
    try:
        reply = "done", act()
    except PenchantError as error:
        reply = "refused", error
    except Exception as error:  # its text may hold a choice; the owner is told what kind it was
        reply = "failed", type(error).__name__
    connection.send(reply)


def end_with_parent() -> None:
    """From now on, end when the agent does."""
    threading.Thread(target=_watch_parent, daemon=True).start()


def yield_memory(score: int) -> None:
    """When memory runs out, be ended before others: 1000 is the first of all to go."""
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text(str(score))


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
