"""`penchant simulate`: a federation on one machine, from data set to report.

The ServerApp and ClientApp are those of a deployment; only the grid and the fleet differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict
from numpy.typing import NDArray

from penchant.client.agent.flower_app import build_app
from penchant.common.config import RunConfig
from penchant.common.errors import JournalError
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.deploy.flower.in_process_grid import App, Fault, InProcessGrid, Silence
from penchant.deploy.simulation.devices import Score, SimulatedDevices
from penchant.deploy.simulation.dropouts import Dropouts
from penchant.deploy.simulation.newcomers import ColdStart, cold_start
from penchant.deploy.simulation.person_scores import PEOPLE_FILE, table_of
from penchant.deploy.simulation.race_record import Race
from penchant.deploy.simulation.recorder import MessageRecorder
from penchant.deploy.simulation.result import RunResult, result_of
from penchant.deploy.simulation.worker_processes import worker_processes
from penchant.deploy.simulation.world import (
    Progress,
    SimulationSetup,
    note_inputs,
    open_run,
    refuse_changed,
    refuse_lost_agents,
    restore,
    tensors_of,
    warm,
    worker_count,
)
from penchant.server.flower_app import build_app as build_server_app
from penchant.server.journal import Journal, RoundLog
from penchant.server.journal_reader import JOURNAL, JournalReader, open_journal
from penchant.server.round import announced_factors
from penchant.server.run import Observer

__all__ = ["REPORT", "ReportWriter", "final_factors", "simulate", "train_until"]

REPORT = "report.html"
THREADS_A_WORKER = 4  # that hand messages on: while some wait for a busy process, others find an idle one
ReportWriter = Callable[[RunResult, Path], None]
"""Writes the page of a result to a path."""


def simulate(
    world: SimulationSetup,
    directory: Path,
    progress: Progress | None = None,
    *,
    command: str = "",
    fault: Fault | None = None,
    write_report: ReportWriter | None = None,
    sums: int | None = None,
) -> RunResult:
    """Run or resume the federation in `directory` (which holds its configuration) and write the result.

    Returns what result.json holds. A finished run is not run again. fault: which clients fail, and when; for
    tests, on the in-process grid. write_report: writes the page of the run, before result.json says that the
    run is finished; without it there is no page. sums: in how many sums of the run a person may be at most,
    where that is fewer than its noise is made for; a run that came out of a race has what the race left it.

    Raises RunDirectoryError when another process works there, or settings, data or base model are not what
    the run was begun with, finished or not; RoundFailed when too few clients answer: finished rounds are
    kept.
    """
    progress = progress or Progress()
    with run_directory.claim(directory):
        done = RunResult.read(directory)
        if done is not None:
            refuse_changed(world, directory, done.digests)
            return done
        began = time.monotonic()
        journal = open_journal(directory)
        try:
            note_inputs(journal, world, directory)
            refuse_lost_agents(journal, directory)
            before = sum(log.seconds for log in journal.logs())
            fleet = SimulatedDevices(
                world.config,
                directory,
                world.federation,
                world.model_cache,
                world.cohort,
                sealed=world.config.grid == "ray",
                batch_people=world.config.batch_people if world.batched else 1,
                sums=Race.sums_left(directory, world.config) if sums is None else sums,
            )
            scores = _federate(world, directory, journal, fleet, progress, fault)
            curve = _cold_start(world, journal, progress)
            result = result_of(world, journal, scores, curve, before + time.monotonic() - began, command)
            result = replace(result, race=Race.read(directory))
        finally:
            journal.close()
        if write_report is not None:
            progress.stage("writing the report")
            write_report(result, directory / REPORT)
        write_durably(directory / PEOPLE_FILE, table_of(result.per_client))
        # Last: it says that the run is finished.
        run_directory.write_json(directory / run_directory.RESULT, result.to_dict())
        return result


class _ReachedRound(Exception):
    """A run has come as far as it was to go."""


class _Until(Progress):
    """Ends a run once `rounds` of it are finished, or its closing round: before test pairs are looked at."""

    def __init__(self, progress: Progress, rounds: int) -> None:
        self._progress, self._rounds = progress, rounds

    def stage(self, text: str) -> None:
        """As `Progress.stage`."""
        self._progress.stage(text)

    def round(self, log: RoundLog, last: int) -> None:
        """As `Progress.round`."""
        self._progress.round(log, last)
        if log.round >= self._rounds or log.phase == "close":
            raise _ReachedRound


def train_until(
    world: SimulationSetup,
    directory: Path,
    rounds: int,
    progress: Progress | None = None,
    *,
    sums: int | None = None,
) -> list[RoundLog]:
    """As `simulate`, but only until `rounds` are finished, or the run has trained its last; -> their records.

    Nothing is judged on test pairs, and there is no result: `simulate` goes on in `directory`. The run is on
    the in-process grid. Raises as `simulate` does.
    """
    done = _finished(directory)
    if not any(log.round >= rounds or log.phase == "close" for log in done):
        with suppress(_ReachedRound):
            simulate(world, directory, _Until(progress or Progress(), rounds), sums=sums)
        done = _finished(directory)
    return done


def _finished(directory: Path) -> list[RoundLog]:
    """The records of a run's finished rounds, in order."""
    return list(JournalReader(directory).logs()) if (directory / JOURNAL).exists() else []


def _federate(
    world: SimulationSetup,
    directory: Path,
    journal: Journal,
    fleet: SimulatedDevices,
    progress: Progress,
    fault: Fault | None,
) -> list[Score]:
    config = world.config
    last = config.federation.rounds + 1
    if config.grid == "ray":
        from penchant.deploy.simulation.ray import run_on_ray

        if journal.settled() < last:
            progress.stage("federating on Ray")
            run_on_ray(world, directory, journal, progress)
        fleet.settle(world.run, journal.finished())
    progress.stage("encoding texts")
    warm(world)
    if config.grid != "ray":
        progress.stage("federating")
        _run_here(world, directory, journal, fleet, lambda log: progress.round(log, last), fault)
    progress.stage("evaluating")
    plan = config.plan("close", len(fleet))
    factors = final_factors(world, journal)
    return fleet.scores(world.run, plan, factors, config.data.evaluate)


def _cold_start(world: SimulationSetup, journal: Journal, progress: Progress) -> list[ColdStart] | None:
    """How newcomers fare, by number of choices; None without any."""
    if not world.newcomers:
        return None
    progress.stage("fitting newcomers")
    config, data = world.config, world.config.data
    planned = world.model_cache.of(config.plan("close", len(world.federation.people)))
    factors = final_factors(world, journal)
    return cold_start(planned, factors, world.newcomers, data.pairs, data.evaluate, worker_count(config))


def final_factors(world: SimulationSetup, journal: Journal | JournalReader) -> NDArray[np.float32]:
    """The factors that a finished run ends with, as its server announced them."""
    found = journal.load()
    if found is None:
        raise JournalError("the run ended without a finished round; see the journal")
    return announced_factors(world.config.plan("close", len(world.federation.people)), found[1])


def _silent(config: RunConfig) -> Silence | None:
    """Who falls silent; None where nobody does."""
    rate = config.federation.dropout
    return Dropouts(rate, config.seed, config.privacy.secagg) if rate else None


def _run_here(
    world: SimulationSetup,
    directory: Path,
    journal: Journal,
    fleet: SimulatedDevices,
    observe: Observer,
    fault: Fault | None,
) -> None:
    with run_directory.claim(directory, run_directory.SERVER), MessageRecorder(directory) as wire:
        restore(journal, fleet, world)
        wire.rewind(journal.settled())
        wire.forms({phase: tensors_of(world, phase) for phase in world.phases})
        with _served(world, directory, fleet) as (app, threads):
            grid = InProcessGrid(
                app,
                len(fleet),
                workers=threads,
                recorder=wire.record,
                fault=fault,
                silent=_silent(world.config),
            )

            def finished(log: RoundLog) -> None:
                fleet.gathered.end()
                observe(log)

            try:
                run = open_run(world, journal, fleet, finished)
                context = Context(
                    run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={}
                )
                build_server_app(lambda _: run)(grid, context)
            finally:
                grid.close()
                fleet.gathered.end()


@contextmanager
def _served(world: SimulationSetup, directory: Path, fleet: SimulatedDevices) -> Iterator[tuple[App, int]]:
    """What serves the devices, in this process or in others, and how many threads ask it at a time."""
    if world.config.grid == "local":
        yield build_app(fleet.answer_of), worker_count(world.config)
        return
    with worker_processes(world, directory, fleet.sums) as workers:
        yield workers, THREADS_A_WORKER * len(workers.pids())
