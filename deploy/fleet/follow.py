"""Watches runs on the server: reports each round as it ends, notices when nothing drives a run any longer,
and refuses to start one beside another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penchant.common.errors import JournalError, PenchantError, RoundFailed, RunInProgress, UsageError
from penchant.common.wording import duration
from penchant.deploy import run_directory
from penchant.deploy.fleet import run_activity, served_run
from penchant.deploy.fleet.device_notes import tag_of
from penchant.deploy.fleet.member_facts import FleetRecords
from penchant.deploy.fleet.missing_devices import connections, missing_of
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.superlink import Control, SuperLinkAddress, how_it_ended
from penchant.server.journal_reader import JournalReader
from penchant.server.monitoring.fleet import ConnectedNode
from penchant.server.waiting import Waiting, read_waiting

__all__ = ["only_start", "refuse_second", "stop", "waiting_lines", "watch"]

OPEN = ("started", "unmasking")
LOOK_SECONDS = 1.0
MISSING_SHOWN = 20  # devices, one a line
ENDING_SECONDS = 20.0  # that the process of a run which was stopped may take to end


@contextmanager
def only_start(
    server_directory: ServerDirectory, door: SuperLinkAddress, say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Be the only one that starts a run of this server while the block lasts, at whose end Flower has it.

    say: told what is waited for.

    Raises what `refuse_second` does, and RunInProgress too while another process is in its block.
    """
    taken = RunInProgress("another run of this server is just being started; wait for its end, or stop it")
    with run_directory.claim(server_directory.path, run_activity.START_LOCK, taken):
        refuse_second(server_directory, door, say)
        yield


def refuse_second(
    server_directory: ServerDirectory, door: SuperLinkAddress, say: Callable[[str], None] = lambda text: None
) -> None:
    """Refuse, by a RunInProgress, while another run of this server is running or is about to.

    Devices take part in one run at a time.

    SuperLinkError when the SuperLink is silent.
    """
    with Control(door) as control:
        control.nodes()  # before anything is made for a run
    for name in server_directory.runs():
        directory = server_directory.run(name)
        flower = run_activity.flower_run(directory)
        if flower is not None and not _is_over(directory) and _is_driven(directory, door, flower, say):
            raise RunInProgress(
                f"run {name} is still running (Flower run {flower}); wait for its end, which "
                "`penchant server watch` shows, or stop it with `penchant server stop`"
            )


def _is_over(directory: Path) -> bool:
    """As `run_activity.is_done`; a run that can't be read is not known to be over."""
    try:
        return run_activity.is_done(directory)
    except PenchantError:
        return False


def _is_driven(directory: Path, door: SuperLinkAddress, flower: str, say: Callable[[str], None]) -> bool:
    """Whether a process drives the run, or the SuperLink will start one.

    After a SuperLink is killed, it still reports its run as running for a while. So a ServerApp that runs is
    recognised by its claim on the directory, and one that is yet to start by its first line in the log.
    """
    end, said = time.monotonic() + ENDING_SECONDS, False
    with Control(door) as control:
        going = control.is_going(flower)
    while run_directory.busy(directory):
        if going or time.monotonic() > end:
            return True
        if not said:
            say(f"the process of {directory.name} that a stopped server left is ending; it is waited for")
            said = True
        time.sleep(LOOK_SECONDS)
    return going and not run_activity.has_begun(directory, flower)


def watch(directory: Path, door: SuperLinkAddress, flower: str, say: Callable[[str], None]) -> None:
    """Say rounds as they end, and what is waited for, until the closing one is over and the devices have
    heard of it.

    RoundFailed when Flower's run `flower` ends before that.
    """
    last = _last(directory)
    journal = JournalReader(directory)
    said = {(row.round, row.attempt) for row in journal.rows() if row.state not in OPEN}
    waited: Waiting | None = None
    if not run_activity.has_begun(directory, flower):
        say("Flower has the run; its process loads people and model, which takes up to two minutes")
    while True:
        ended = how_it_ended(door, flower)  # asked first: what it did is in the journal then
        for row in journal.rows():
            if (row.round, row.attempt) in said or row.state in OPEN:
                continue
            said.add((row.round, row.attempt))
            log = row.log
            what = f"{log.survivors} of {log.cohort} clients, {log.seconds:.0f} s" if log else row.why
            say(f"round {row.round} of {last}: {row.state}, {what}")
        waiting = read_waiting(directory)
        if waiting is not None and waiting != waited:
            for line in waiting_lines(directory, door, waiting):
                say(line)
        waited = waiting
        if ended is not None:
            break
        time.sleep(LOOK_SECONDS)
    if journal.settled() != last:
        raise RoundFailed(
            f"Flower's run ended before the last round ({ended}); see {directory / served_run.LOG}, then "
            f"`penchant server resume`"
        )


def stop(directory: Path, door: SuperLinkAddress) -> None:
    """Have the SuperLink stop the Flower run that drives a run, and wait until its process has ended.

    UsageError where nothing drives it; RoundFailed where its process goes on.
    """
    flower = run_activity.flower_run(directory)
    if flower is None:
        raise UsageError(f"{directory.name} was never started")
    with Control(door) as control:
        if not control.is_going(flower) and not run_directory.busy(directory):
            raise UsageError(f"nothing drives {directory.name} now; there is nothing to stop")
        control.stop(flower)
    run_activity.say(directory, f"Flower run {flower} {run_activity.STOPPED}")
    end = time.monotonic() + ENDING_SECONDS
    while run_directory.busy(directory):
        if time.monotonic() > end:
            raise RoundFailed(f"Flower was asked to stop {directory.name}, and has not yet; look again soon")
        time.sleep(LOOK_SECONDS / 10)


def waiting_lines(directory: Path, door: SuperLinkAddress, waiting: Waiting) -> Iterator[str]:
    """What a round of the run in `directory`, which is its server's, waits for, and for whom."""
    left = duration(max(waiting.until - time.time(), 0.0))
    ready = f"{len(waiting.ready)} of {waiting.needed} devices are ready"
    yield f"round {waiting.round} waits: {ready}; it gives up in {left}"
    link: dict[str, ConnectedNode] = {}
    with suppress(JournalError), Control(door) as control:
        link = connections(control)
    missing = missing_of(
        FleetRecords(ServerDirectory(directory.parent.parent)), waiting, link, time.time(), tag_of(directory)
    )
    for one in missing[:MISSING_SHOWN]:
        yield f"  member {one.member}: {one.why}"
    if len(missing) > MISSING_SHOWN:
        yield f"  and {len(missing) - MISSING_SHOWN} more"


def _last(directory: Path) -> int:
    return run_directory.read_config(directory).federation.rounds + 1
