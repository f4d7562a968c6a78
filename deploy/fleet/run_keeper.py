"""The part of a server that has runs go on: it starts what waits in the queue, and resumes what was cut off.

It looks at files alone, every few seconds, and does nothing while a run goes on: devices take part in one at
a time. A run is started and resumed as an operator does it, by `penchant server run` and `resume` in a
process of their own, which loads the base model and ends; each is in the audit.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from penchant.common.errors import PenchantError, RunInProgress, SuperLinkError, UsageError
from penchant.common.terminal import log_to_stderr
from penchant.deploy.error_report import ErrorReport
from penchant.deploy.fleet import recorded_acts, run_activity
from penchant.deploy.fleet.child_command import run_command
from penchant.deploy.fleet.heartbeat import Heartbeat
from penchant.deploy.fleet.run_queue import RunQueue
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.run_directory import CONFIG, claim, held_locks, is_held
from penchant.server.journal_reader import JournalReader
from penchant.server.monitoring.fleet import QueuedRun

__all__ = ["BEAT", "LOCK", "RunKeeper", "serve"]

log = logging.getLogger(__name__)

LOCK = ".queue"  # held by the one keeper of a server as long as it lives
BEAT = ".queue-beat"  # the keeper's sign of life
LOOK_SECONDS = 5.0
PAUSE, LONGEST_PAUSE = 15.0, 900.0  # seconds after a try that came to nothing; doubles
START_SECONDS = 900.0  # the base model is loaded for its blueprint, then Flower takes the run
BY = "the queue"
LATER = (SuperLinkError.code, RunInProgress.code)
"""Codes of errors after which the same may be possible later: no SuperLink, or another run."""

Call = Callable[[Sequence[str]], ErrorReport | None]
"""Calls `penchant server` with these words; -> the error that it ended with, None when all was well."""


class RunKeeper:
    """Keeps the runs of one server going."""

    def __init__(
        self,
        server_directory: ServerDirectory,
        call: Call,
        clock: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """A keeper.

        Args:
            server_directory: the server.
            call: calls `penchant server`.
            clock: Unix seconds, for the times of runs.
            stopwatch: seconds for pauses, which nobody sets back.
        """
        self._server = server_directory
        self._queue = RunQueue(server_directory)
        self._call = call
        self._clock, self._stopwatch = clock, stopwatch
        self._pause, self._until = PAUSE, stopwatch()
        self._said: set[str] = set()
        self._heartbeat = Heartbeat(server_directory.path / BEAT, clock)

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        self._beat(LOOK_SECONDS)
        while not stop.wait(LOOK_SECONDS):
            self._beat(LOOK_SECONDS)
            try:
                self.look()
            except (PenchantError, OSError) as error:
                self._say_once(str(error))

    def look(self) -> None:
        """Do the next thing that there is to do, if any."""
        if self._stopwatch() < self._until or self._is_busy():
            return
        cut_off = self._cut_off() if self._server.settings.resume_runs else None
        if cut_off is not None:
            settled, made = JournalReader(cut_off).settled(), (cut_off / CONFIG).stat().st_mtime_ns
            run = f"{cut_off.name} {made}"  # another may have had its name
            if self._queue.may_resume(run, settled):
                self._resume(cut_off.name, run, settled)
                return
        waiting = self._queue.next(self._clock())
        if waiting is not None:
            self._start(waiting)

    def _is_busy(self) -> bool:
        """Whether a run goes on, or is just being started. One that can't be read has no process, or the
        process's lock."""
        held = held_locks()
        if is_held(self._server.path / run_activity.START_LOCK, held):
            return True
        runs = [self._server.run(name) for name in self._server.runs()]
        return any(run_activity.activity_of(directory, held).running for directory in runs)

    def _cut_off(self) -> Path | None:
        """The run to go on with: the one that was started last, if nobody ended it."""
        directory = run_activity.started_last(self._server.run(name) for name in self._server.runs())
        if directory is None:
            return None
        try:
            return directory if run_activity.was_cut_off(directory) else None
        except PenchantError as error:  # its page and `status` say so too; what waits is not kept from it
            self._say_once(f"{directory.name} can't go on: {error}")
            return None

    def _resume(self, name: str, run: str, settled: int) -> None:
        log.info("%s was cut off; it goes on", name)
        words = ["resume", str(self._server.path), "--run", name, "--detach"]
        error = self._recorded("resume a run", name, "it was cut off", words)
        if error is not None:
            log.warning("%s does not go on: %s", name, error.message)
        if error is None or error.code not in LATER:
            self._queue.resumed(run, settled, refused=error is not None)

    def _start(self, run: QueuedRun) -> None:
        made = self._queue.made_of(run)
        if made is not None and run_activity.flower_run(made) is not None:
            self._queue.begun(run, self._clock())  # we were ended between the start and this
            return
        try:
            name = self._free_name(run) if made is None else made.name
        except PenchantError as no_name:
            log.warning("%s of the queue was refused: %s", run.called, no_name)
            self._queue.refused(run, str(no_name), self._clock())
            return
        if not self._queue.begins(run, name):
            return  # removed meanwhile
        log.info("%s of the queue begins", name)
        with tempfile.TemporaryDirectory(prefix="penchant-queue-") as folder:
            error = self._recorded(
                "start a run",
                name,
                f"from the queue, for {run.by}",
                self._words(run, made, name, Path(folder)),
            )
        if error is None:
            self._queue.begun(run, self._clock())
        elif error.code not in LATER:
            log.warning("%s of the queue was refused: %s", name, error.message)
            self._queue.refused(run, error.message, self._clock())
        else:
            log.warning("%s of the queue waits: %s", name, error.message)
            if self._queue.made_of(replace(run, began=name)) is None:
                self._queue.waits(run)

    def _words(self, run: QueuedRun, made: Path | None, name: str, folder: Path) -> list[str]:
        if made is not None:  # and not given to Flower
            return ["resume", str(self._server.path), "--run", name, "--detach"]
        path = folder / CONFIG
        path.write_text(run.config, encoding="utf-8")
        words = ["run", str(self._server.path), "--config", str(path), "--name", name, "--detach"]
        words += ["--days", str(run.days), "--queued", str(run.number)]
        words += ["--tag", run.tag] if run.tag else []
        return [*words, "--from", run.begin_with] if run.begin_with else words

    def _free_name(self, run: QueuedRun) -> str:
        if run.name and not run.every:
            return run.name
        base, number = (run.name, 1) if run.name else ("run", len(self._server.runs()) + 1)
        while self._server.run(f"{base}-{number}").exists():
            number += 1
        return f"{base}-{number}"

    def _recorded(self, action: str, name: str, detail: str, words: Sequence[str]) -> ErrorReport | None:
        """Call a command, on record; after one that came to nothing there is a pause."""
        error: ErrorReport | None = None
        self._beat(START_SECONDS)
        try:
            with recorded_acts.recorded(self._server.path, action, name, detail, by=BY):
                error = self._call(words)
                if error is not None:
                    raise UsageError(error.message)
        except PenchantError as failed:
            error = error or ErrorReport.of(failed)
        self._pause = PAUSE if error is None else min(2 * self._pause, LONGEST_PAUSE)
        self._until = self._stopwatch() + (0.0 if error is None else self._pause)
        return error

    def _beat(self, within: float) -> None:
        """Runs go on without it: that it can't be written is told, and health says the rest."""
        try:
            self._heartbeat.beat(within)
        except OSError as error:
            self._say_once(f"no sign of life can be written: {error.strerror}")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)


def serve(server_directory: ServerDirectory) -> None:
    """Keep the runs of a server going until SIGTERM. RunDirectoryError while another process does."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log_to_stderr()
    with claim(server_directory.path, LOCK):
        RunKeeper(server_directory, _call).run(stop)


def _call(words: Sequence[str]) -> ErrorReport | None:
    program = [sys.executable, "-P", "-m", "penchant.deploy.cli.main", "server"]
    done = run_command([*program, *words], START_SECONDS, "it took too long", recorded_acts.BY_CONSOLE)
    if done.returncode == 0:
        return None
    return ErrorReport.last_in(done.stderr) or ErrorReport(PenchantError.code, "it ended without a word")
