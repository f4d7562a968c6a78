"""Keeps a few processes up: starts them in order, restarts what dies, stops them all on SIGTERM.

Under systemd each is its own unit instead (`deploy/fleet/systemd/`); this is for one machine without it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penchant.common.errors import GatewayError, PenchantError
from penchant.deploy.fleet.log_files import LogFile, LogKeeping

__all__ = ["ChildProcess", "supervise"]

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a restart; doubles while a process dies at once
STEADY_SECONDS = 60.0  # a process that lived as long is started again without a pause
STOP_SECONDS = 10.0
POLL = 0.2


@dataclass(frozen=True)
class ChildProcess:
    """One process under supervision.

    Attributes:
        name: what messages call it.
        command: the command line that starts it.
        log: the file that its output is added to; None sends it to this process's own output.
        environment: the environment of the process; None passes on this process's own.
        ready: says whether the processes that depend on it may start; None where nothing waits for it.
        stop_seconds: how long it may take to end before it is killed.
        over: asked when it has ended: why starting it again is of no use, which ends all; None to go on.
    """

    name: str
    command: Sequence[str]
    log: Path | None
    environment: Mapping[str, str] | None = None
    ready: Callable[[], bool] | None = None
    stop_seconds: float = STOP_SECONDS
    over: Callable[[], PenchantError | None] = lambda: None


@dataclass
class _Running:
    part: ChildProcess
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0
    restarts: int = -1
    log: LogFile | None = None


def supervise(
    parts: Sequence[ChildProcess],
    *,
    stop: threading.Event | None = None,
    announce: Callable[[], None] = lambda: None,
    ready_seconds: float = 120.0,
    logs: LogKeeping = LogKeeping(),  # noqa: B008 - it is frozen
    together: bool = False,
) -> None:
    """Run `parts` until SIGTERM, SIGINT or `stop`; then stop them, the last first.

    announce: called once, when all are ready. logs: how logs are kept. together: start all at once, and end
    them so, because none needs another. Raises GatewayError when one is not
    ready in time, and what a part's `over` says once it has ended for good.
    """
    ending = stop or threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ending.set())
    running = [_Running(part, log=_log_of(part, logs)) for part in parts]
    try:
        for one in running if together else ():
            _start(one)
        for one in running:
            if not together:
                _start(one)
            _await(one, ending, ready_seconds)
            if ending.is_set():
                return
        announce()
        while not ending.wait(POLL):
            for one in running:
                _tend(one)
    finally:
        for one in running if together else ():
            if one.process is not None and one.process.poll() is None:
                one.process.terminate()
        for one in reversed(running):
            _stop(one)


def _log_of(part: ChildProcess, keeping: LogKeeping) -> LogFile | None:
    return None if part.log is None else LogFile(part.name, part.log, keeping)


def _start(one: _Running) -> None:
    try:
        if one.log is not None:
            one.log.open()
        one.process = subprocess.Popen(
            [*_ending_with_us(), *one.part.command],
            stdin=subprocess.DEVNULL,
            stdout=None if one.log is None else subprocess.PIPE,
            stderr=None if one.log is None else subprocess.STDOUT,
            env=None if one.part.environment is None else dict(one.part.environment),
            start_new_session=True,  # Ctrl-C comes to us, and we stop them in order
        )
    except OSError as error:
        raise GatewayError(f"can't start {one.part.name}: {error.filename}: {error.strerror}") from None
    if one.log is not None and one.process.stdout is not None:
        one.log.take(one.process.stdout)
    one.began = time.monotonic()
    one.due = 0.0
    one.restarts += 1


def _ending_with_us() -> list[str]:
    """Words before a command: the kernel ends it when this process ends, kill -9 included (util-linux)."""
    found = shutil.which("setpriv")
    return [found, "--pdeathsig", "TERM", "--"] if found else []


def _await(one: _Running, ending: threading.Event, seconds: float) -> None:
    """Until it is ready and still there: what says so may be another process's, beside which it has ended."""
    if one.part.ready is None:
        return
    end = time.monotonic() + seconds
    while True:
        ready = one.part.ready()
        if one.process is not None and one.process.poll() is not None:
            code, where = one.process.returncode, one.part.log or "above"
            raise GatewayError(f"{one.part.name} ended with {code} when it was started; see {where}")
        if ready:
            return
        if time.monotonic() > end:
            raise GatewayError(
                f"{one.part.name} is not ready after {seconds:.0f} s; see {one.part.log or 'above'}"
            )
        if ending.wait(POLL):
            return


def _tend(one: _Running) -> None:
    """Restart a process that has ended, after a pause that grows while it ends at once."""
    if one.process is None or one.process.poll() is None:
        return
    now = time.monotonic()
    if not one.due:
        one.pause = FIRST_PAUSE if now - one.began > STEADY_SECONDS else min(one.pause * 2, LONGEST_PAUSE)
        one.due = now + one.pause
        log.warning(
            "%s ended with %s; started again in %.1f s", one.part.name, one.process.returncode, one.pause
        )
        _sweep(one)
        final = one.part.over()
        if final is not None:
            raise final
    elif now >= one.due:
        try:
            _start(one)
        except GatewayError as error:  # the others go on, and it is tried again
            one.pause = min(one.pause * 2, LONGEST_PAUSE)
            one.due = now + one.pause
            log.warning("%s; tried again in %.1f s", error, one.pause)


def _stop(one: _Running) -> None:
    if one.process is None:
        return
    if one.process.poll() is None:
        one.process.terminate()
        try:
            one.process.wait(one.part.stop_seconds)
        except subprocess.TimeoutExpired:
            log.warning("%s does not stop; it is killed", one.part.name)
    _sweep(one)
    one.process.wait()
    if one.log is not None:
        one.log.drain()


def _sweep(one: _Running) -> None:
    """End what a process has left behind in its session, and the process itself if it still lives."""
    if one.process is not None:
        try:
            os.killpg(one.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
