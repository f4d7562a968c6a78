"""Watches a run on the server: says each round as it ends, and notices when nothing plays it any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from penchant.common.errors import RoundFailed
from penchant.deploy import rundir, served
from penchant.deploy.superlink import Door, how_it_ended
from penchant.server.journal import Journal

__all__ = ["is_done", "watch"]

OPEN = ("started", "unmasking")
LOOK_SECONDS = 1.0


def is_done(directory: Path) -> bool:
    """Whether the closing round of a run is over."""
    with closing(Journal(directory)) as journal:
        return journal.settled() == _last(directory)


def watch(directory: Path, door: Door, flower: str, say: Callable[[str], None]) -> None:
    """Say rounds as they end, until the closing one is over and the devices have heard of it.

    RoundFailed when Flower's run `flower` ends before that.
    """
    last = _last(directory)
    with closing(Journal(directory)) as journal:
        said = {(row.round, row.attempt) for row in journal.rows() if row.state not in OPEN}
        while True:
            ended = how_it_ended(door, flower)  # asked first: what it did is in the journal then
            for row in journal.rows():
                if (row.round, row.attempt) in said or row.state in OPEN:
                    continue
                said.add((row.round, row.attempt))
                log = row.log
                what = f"{log.survivors} of {log.cohort} clients, {log.seconds:.0f} s" if log else row.why
                say(f"round {row.round} of {last}: {row.state}, {what}")
            if ended is not None:
                break
            time.sleep(LOOK_SECONDS)
        if journal.settled() != last:
            raise RoundFailed(
                f"Flower's run ended before the last round ({ended}); see {directory / served.LOG}, then "
                f"`penchant server resume`"
            )


def _last(directory: Path) -> int:
    return rundir.read_config(directory).federation.rounds + 1
