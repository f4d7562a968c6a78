"""`penchant simulate`: a federation on one machine, from data set to report.

The ServerApp and ClientApp are those of a deployment; only the grid and the fleet differ.
"""

from __future__ import annotations

import os
import resource
import shlex
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from numpy.typing import NDArray

from penchant.client.app import build_app
from penchant.client.bench import Benches
from penchant.common.adapters import Share, head_of
from penchant.common.config import Phase, RunConfig, config_digest
from penchant.common.contribution import Form
from penchant.common.errors import ConfigError, DataError, JournalError, RunDirectoryError
from penchant.common.preferences import Federation, Person
from penchant.deploy import datasets, rundir
from penchant.deploy.fleet import Fleet, FleetPolicy, Score, fleet_policy
from penchant.deploy.grid import Fault, InProcessGrid
from penchant.deploy.newcomers import cold_start, hold_out
from penchant.deploy.wire import Tensor, WireLog
from penchant.server.app import build_app as build_server_app
from penchant.server.journal import Journal, RoundLog
from penchant.server.round import Observer, Run, announced_factors, cohort_size, run_id
from penchant.server.secagg import Aggregation, PlainAggregation, SecureAggregation

Row = dict[str, Any]

__all__ = ["Progress", "World", "open_run", "prepare", "restore", "simulate", "warm"]


class Progress:
    """What a simulation tells while it works. This one keeps quiet; `deploy.show` draws."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""

    def round(self, log: RoundLog, last: int) -> None:
        """A round stands; `last` is the closing round's number."""


@dataclass(frozen=True)
class World:
    """What a run needs beside its directory: people, models, the cohort and the owners' conditions."""

    config: RunConfig
    federation: Federation
    benches: Benches
    cohort: int
    policy: FleetPolicy
    newcomers: tuple[Person, ...] = ()  # kept out of the federation
    batched: bool = True  # texts' frozen parts, many at once; False: each alone, to the bit as a device does

    @property
    def run(self) -> bytes:
        """The run's id: the same configuration and people, the same run, whatever carries it."""
        same = self.config.changed({"grid": "local", "workers": 0})
        return run_id(config_digest(same), self.federation.digest)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that the run goes through, in order."""
        federation = self.config.federation
        phases: list[Phase] = ["warmup"] if federation.warmup_rounds else []
        if federation.rounds > federation.warmup_rounds:
            phases.append("main")
        return (*phases, "close")

    def caveats(self) -> tuple[str, ...]:
        """What must be said beside every figure of the run."""
        own = []
        privacy = self.config.privacy
        if privacy.secagg and self.policy.lowered:
            own.append(
                f"Secure aggregation: with {self.cohort} clients a round every sum holds at least "
                f"{self.policy.min_honest} honest people if at most {self.policy.max_colluders} devices work "
                f"with the server; owners usually ask for {self.policy.asked_honest} and "
                f"{self.policy.asked_colluders}."
            )
        if not privacy.secagg:
            own.append("Secure aggregation was off: the server saw every single update.")
        return (*self.federation.caveats, *own)


def prepare(config: RunConfig, benches: Benches | None = None) -> World:
    """Load the people and the model of `config`, and refuse what can't work, before anything is written.

    Raises DataError, BaseModelError or ConfigError.
    """
    data = config.data
    federation = datasets.configured(data, config.seed)
    if config.grid == "ray":
        from penchant.deploy.ray import require_ray

        require_ray()
    if data.evaluate == "validation":
        _require_validation_pairs(federation)
    federation, newcomers = hold_out(federation, data.holdout_clients, config.seed)
    cohort = cohort_size(config, len(federation.people))
    if config.privacy.secagg and cohort < 3:
        raise ConfigError(
            f"secure aggregation needs a cohort of at least 3, here it is {cohort}; add people, "
            "or pass --no-secagg"
        )
    policy = fleet_policy(config, cohort)
    benches = Benches() if benches is None else benches
    world = World(config, federation, benches, cohort, policy, newcomers)
    for phase in world.phases:
        plan = config.plan(phase, len(federation.people) if phase == "close" else cohort)
        Form.of(plan, world.benches.of(plan).split)
    return world


def _require_validation_pairs(federation: Federation) -> None:
    without = [person.name for person in federation.people if not person.validation]
    if without:
        raise DataError(
            f"{len(without)} of {len(federation.people)} people have no validation pairs, among them "
            f"{without[0]}; score on test, or take data with more items"
        )


def simulate(
    world: World,
    directory: Path,
    progress: Progress | None = None,
    *,
    command: str = "",
    fault: Fault | None = None,
) -> Row:
    """Run or resume the federation in `directory` (which holds its configuration) and write the result.

    Returns what result.json holds. A finished run is not run again. fault: which clients fail, and when; for
    tests, on the in-process grid.

    Raises RunDirectoryError when another process works there, or the data set or the base model is not what
    the run was begun with; RoundFailed when too few clients answer: finished rounds stand.
    """
    progress = progress or Progress()
    with rundir.claim(directory):
        done = rundir.read_result(directory)
        if done is not None:
            return done
        began = time.monotonic()
        journal = Journal(directory)
        try:
            _refuse_other_inputs(journal, world, directory)
            before = sum(log.seconds for log in journal.logs())
            fleet = Fleet(
                world.config,
                directory,
                world.federation,
                world.benches,
                world.cohort,
                sealed=world.config.grid == "ray",
            )
            scores = _federate(world, directory, journal, fleet, progress, fault)
            curve = _cold_start(world, journal, progress)
            result = _result(world, journal, scores, curve, before + time.monotonic() - began, command)
        finally:
            journal.close()
        progress.stage("writing the report")
        from penchant.deploy.report import write_report

        write_report(result, directory / "report.html")
        rundir.write_json(directory / rundir.RESULT, result)  # last: it says that the run is finished
        return result


def open_run(world: World, journal: Journal, fleet: Fleet, observe: Observer = lambda log: None) -> Run:
    """The server's side of a simulated run."""
    membership = fleet.membership()
    aggregation: Aggregation = PlainAggregation()
    if world.config.privacy.secagg:
        aggregation = SecureAggregation(membership, fleet.signatures)
    return Run(
        config=world.config,
        run=world.run,
        blueprint=world.benches.of(world.config.plan("main", world.cohort)).blueprint,
        cohort=world.cohort,
        aggregation=aggregation,
        membership=membership.encoded,
        journal=journal,
        observe=observe,
    )


def _refuse_other_inputs(journal: Journal, world: World, directory: Path) -> None:
    model = world.benches.model(world.config.model, world.config.adapter)
    for what, digest in (("data set", world.federation.digest), ("base model", model.digest)):
        if journal.fact(what) not in (None, digest):
            raise RunDirectoryError(
                f"{directory} was begun with another {what}; put back what it was, or start anew"
            )
        journal.note(what, digest)


def restore(journal: Journal, fleet: Fleet, world: World) -> None:
    """Put server and agents back to the end of the last finished round, as they died together."""
    settled = journal.settled()
    journal.rewind(settled)
    fleet.rewind(world.run, settled)


def _federate(
    world: World,
    directory: Path,
    journal: Journal,
    fleet: Fleet,
    progress: Progress,
    fault: Fault | None,
) -> list[Score]:
    config = world.config
    last = config.federation.rounds + 1
    if config.grid == "ray":
        from penchant.deploy.ray import run_on_ray

        if journal.settled() < last:
            progress.stage("federating on Ray")
            run_on_ray(world, directory, journal, progress)
        fleet.settle(world.run, journal.finished())
    progress.stage("encoding texts")
    warm(world)
    if config.grid == "local":
        progress.stage("federating")
        _run_in_process(world, directory, journal, fleet, lambda log: progress.round(log, last), fault)
    progress.stage("evaluating")
    plan = config.plan("close", len(fleet))
    factors = _final_factors(world, journal)
    return fleet.scores(world.run, plan, factors, config.data.evaluate)


def _cold_start(world: World, journal: Journal, progress: Progress) -> list[Row] | None:
    """How newcomers fare, by number of choices; None without any."""
    if not world.newcomers:
        return None
    progress.stage("fitting newcomers")
    config, data = world.config, world.config.data
    bench = world.benches.of(config.plan("close", len(world.federation.people)))
    factors = _final_factors(world, journal)
    return cold_start(bench, factors, world.newcomers, data.pairs, data.evaluate, _workers(config))


def _final_factors(world: World, journal: Journal) -> NDArray[np.float32]:
    found = journal.load()
    if found is None:
        raise JournalError("the run ended without a finished round; see the journal")
    return announced_factors(world.config.plan("close", len(world.federation.people)), found[1])


def warm(world: World) -> None:
    """Compute the frozen part of the backbone once for each text of the run.

    All texts, at a resume as well: what is computed together can differ in the last bits from what is
    computed apart.
    """
    import torch

    torch.set_num_threads(1)  # one thread a client: clients are served side by side, and sums never reorder
    if not world.batched:
        return
    model = world.benches.model(world.config.model, world.config.adapter)
    people = (*world.federation.people, *world.newcomers)
    pairs = [pair for p in people for part in (p.train, p.validation, p.test) for pair in part]
    model.warm(pairs, threads=_workers(world.config))


def _workers(config: RunConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _run_in_process(
    world: World,
    directory: Path,
    journal: Journal,
    fleet: Fleet,
    observe: Observer,
    fault: Fault | None,
) -> None:
    with rundir.claim(directory, rundir.SERVER), WireLog(directory) as wire:
        restore(journal, fleet, world)
        wire.rewind(journal.settled())
        wire.forms({phase: tensors_of(world, phase) for phase in world.phases})
        grid = InProcessGrid(
            build_app(fleet.answer_of),
            len(fleet),
            workers=_workers(world.config),
            recorder=wire.record,
            fault=fault,
        )
        try:
            run = open_run(world, journal, fleet, observe)
            context = Context(
                run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={}
            )
            build_server_app(lambda _: run)(grid, context)
        finally:
            grid.close()


def tensors_of(world: World, phase: Phase) -> tuple[Tensor, ...]:
    """What a client's vector is made of in a phase, from the one rule table."""
    plan = world.config.plan(phase, world.cohort)
    split = world.benches.of(plan).split
    shared = () if phase == "close" else tuple(Tensor(s.name, s.shape) for s in split.shared.specs)
    counters = Form.of(plan, split).quantiser.counters
    return (*shared, *(Tensor(counter.name, ()) for counter in counters))


# --- the result -------------------------------------------------------------------------------------------


def _result(
    world: World,
    journal: Journal,
    scores: list[Score],
    curve: list[Row] | None,
    wall: float,
    command: str,
) -> Row:
    """What result.json holds (DESIGN section 9), and what the report shows beside it."""
    config = world.config
    plan = config.plan("main", world.cohort)
    bench = world.benches.of(plan)
    logs = [log for log in journal.logs() if log.phase != "close"]
    return {
        "dataset": world.federation.name,
        "base_model": config.model.base_model,
        "share": config.adapter.share,
        "head": head_of(Share(config.adapter.share), config.adapter.head).value,
        "clients": len(world.federation.people),
        "pairs": config.data.pairs,
        "rounds": config.federation.rounds,
        "seed": config.seed,
        "secagg": config.privacy.secagg,
        "dp": None,
        "evaluated_on": config.data.evaluate,
        "accuracy": {
            "personal": float(np.mean([score.accuracy for score in scores])),
            "cold_start": curve[-1]["mean"] if curve else None,
        },
        "cold_start": curve,
        "per_client": [
            {"client": score.client, "n_test": score.n_test, "accuracy": score.accuracy} for score in scores
        ],
        "rounds_log": [_round_row(log) for log in logs],
        "wall_seconds": wall,
        "peak_rss_mb": _peak_rss_mb(),
        "command": command or shlex.join(["penchant", *sys.argv[1:]]),
        "config": tomllib.loads(config.to_toml()),
        "versions": rundir.versions(),
        "digests": {
            "configuration": config_digest(config),
            "data": world.federation.digest,
            "base model": bench.model.digest,
        },
        "caveats": list(world.caveats()),
        "shared_tensors": [
            {"name": spec.name, "shape": list(spec.shape)} for spec in bench.split.shared.specs
        ],
    }


def _round_row(log: RoundLog) -> Row:
    return {
        "round": log.round,
        "attempt": log.attempt,
        "phase": log.phase,
        "cohort": log.cohort,
        "survivors": log.survivors,
        "seconds": log.seconds,
        "bytes_up": log.bytes_up,
        "bytes_down": log.bytes_down,
        "train_loss": log.train_loss,
        "val_accuracy": log.val_accuracy,
        "histogram": log.histogram,
    }


def _peak_rss_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
