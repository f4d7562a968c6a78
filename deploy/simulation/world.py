"""What a simulation needs before its first round: people, model, run directory, devices."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from penchant.client.learning.lockstep import why_one_by_one
from penchant.client.learning.model_cache import ModelCache, simulated_models
from penchant.common.config import Phase, RunConfig
from penchant.common.data.preferences import Federation, Person, without_ties
from penchant.common.errors import (
    ConfigError,
    DataError,
    RunDirectoryError,
    UsageError,
)
from penchant.common.membership.manifest import LAST_DAY
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.deploy import datasets
from penchant.deploy.audit.record import Tensor
from penchant.deploy.earlier_round import EarlierRound
from penchant.deploy.owner_policy import FleetPolicy, fleet_policy
from penchant.deploy.run_inputs import (
    BASE_MODEL,
    DATA,
    SETTINGS,
    START,
    refuse_others,
    settings_digest,
)
from penchant.deploy.simulation.devices import AGENTS, SimulatedDevices
from penchant.deploy.simulation.newcomers import hold_out
from penchant.deploy.simulation.ray_cluster import refuse_unfit
from penchant.server.journal import Journal, RoundLog
from penchant.server.journal_reader import JournalReader
from penchant.server.noise_terms import figures_of, refuse_drowned, settle_noise
from penchant.server.optimizers import server_optimizer
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.run import Observer, ServerRun, checked_cohort, run_id
from penchant.server.run_manifest import manifest_of
from penchant.server.secagg.aggregation import Aggregation
from penchant.server.secagg.plain import PlainAggregation
from penchant.server.secagg.secure import SecureAggregation

__all__ = ["Progress", "SimulationSetup", "open_run", "prepare", "require_ray", "restore", "warm"]


class Progress:
    """What a simulation reports while it runs. This one is silent; the command line's draws a display."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""

    def round(self, log: RoundLog, last: int) -> None:
        """A round is finished; `last` is the closing round's number."""


@dataclass(frozen=True)
class SimulationSetup:
    """What a run needs beside its directory: people, models, the cohort and the owners' conditions."""

    config: RunConfig
    federation: Federation
    model_cache: ModelCache
    cohort: int
    policy: FleetPolicy
    newcomers: tuple[Person, ...] = ()  # kept out of the federation
    start: EarlierRound | None = None  # whose shared factors the run begins with
    batched: bool = True  # texts' frozen parts, many at once; False: each alone, to the bit as a device does

    @property
    def run(self) -> bytes:
        """The run's id: the same configuration and people, the same run, whatever carries it."""
        begins = f"|from {self.start.digest}" if self.start else ""
        return run_id(settings_digest(self.config) + begins, self.federation.digest)

    @property
    def inputs(self) -> dict[str, str]:
        """What the run is computed from -> its digest; of the start an empty one where it begins afresh."""
        return {
            DATA: self.federation.digest,
            BASE_MODEL: self.model_cache.model(self.config.model, self.config.adapter).digest,
            SETTINGS: settings_digest(self.config),
            START: self.start.digest if self.start else "",
        }

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that the run goes through, in order."""
        federation = self.config.federation
        phases: list[Phase] = ["warmup"] if federation.warmup_rounds else []
        if federation.rounds > federation.warmup_rounds:
            phases.append("main")
        return (*phases, "close")

    def why_one_by_one(self) -> str:
        """Why nobody is trained together with others although `batch_people` asks for it, in a few words;
        nothing where people are, or it does not ask."""
        if self.config.batch_people < 2:
            return ""
        if self.config.grid != "local":
            return f"devices are served one at a time on grid {self.config.grid}"
        planned = self.model_cache.of(self.config.plan("main", self.cohort))
        return why_one_by_one(planned.model, planned.split, planned.plan.training)

    def privacy_figures(self) -> PrivacyFigures | None:
        """What the noise of the run's usual rounds amounts to; None without noise."""
        plan = self.config.plan("main", self.cohort)
        layout = UpdateLayout.of(plan, self.model_cache.of(plan).split)
        return figures_of(self.config, self.cohort, plan, layout)

    @cached_property
    def unread(self) -> tuple[str, ...]:
        """What must be said of texts that the model does not read to their end."""
        people = (*self.federation.people, *self.newcomers)
        every = [pair for p in people for part in (p.train, p.validation, p.test) for pair in part]
        tied = [(p.prompt, r) for p in every if p.tie for r in (p.chosen, p.rejected)]
        settings = self.config.model
        model = self.model_cache.model(settings, self.config.adapter)
        found = model.reading(without_ties(every), tied)
        return tuple(f"{said}." for said in found.said(model.max_tokens, settings.truncation))

    def caveats(self) -> tuple[str, ...]:
        """What must be said beside every figure of the run."""
        own = [*self.unread]
        if self.start is not None:
            adds = "; what that run cost its people in privacy adds to this one's"
            noised = self.config.privacy.dp_epsilon > 0
            own.append(f"The shared factors began as those of {self.start.name}{adds if noised else ''}.")
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
        figures = self.privacy_figures()
        if figures is not None and figures.caveat:
            own.append(figures.caveat)
        return (*self.federation.caveats, *own)


def prepare(
    config: RunConfig,
    model_cache: ModelCache | None = None,
    federation: Federation | None = None,
    start: EarlierRound | None = None,
) -> SimulationSetup:
    """Load the people and the model of `config`, and refuse what can't work, before anything is written.

    federation: the people, where they are in memory already; `config.data` then says how they were split.
    start: the earlier round whose shared factors the run begins with.

    Raises DataError, BaseModelError or ConfigError.
    """
    data = config.data
    server_optimizer(config.federation.server_optimizer)
    if config.grid == "ray":
        require_ray()
        refuse_unfit(config)
        if federation is not None:
            raise ConfigError(
                "grid is ray, whose processes load the people by name; write them to a file and name that, "
                "or use the local grid"
            )
    if federation is None:
        federation = datasets.configured(data, config.seed)
    if data.evaluate == "validation":
        _require_validation_pairs(federation)
    federation, newcomers = hold_out(federation, data.holdout_clients, config.seed)
    cohort = checked_cohort(config, len(federation.people))
    config = settle_noise(config, cohort, len(federation.people))
    policy = fleet_policy(config, cohort)
    model_cache = simulated_models() if model_cache is None else model_cache
    world = SimulationSetup(config, federation, model_cache, cohort, policy, newcomers, start)
    if start is not None:
        start.check(world.model_cache.of(config.plan(world.phases[0], cohort)).split)
    for phase in world.phases:
        plan = config.plan(phase, len(federation.people) if phase == "close" else cohort)
        layout = UpdateLayout.of(plan, world.model_cache.of(plan).split)
        if phase != "close":
            refuse_drowned(config, cohort, plan, layout)
    return world


def _require_validation_pairs(federation: Federation) -> None:
    without = [person.name for person in federation.people if not person.validation]
    if without:
        raise DataError(
            f"{len(without)} of {len(federation.people)} people have no validation pairs, among them "
            f"{without[0]}; score on test, or take data with more items"
        )


def open_run(
    world: SimulationSetup, journal: Journal, fleet: SimulatedDevices, observe: Observer = lambda log: None
) -> ServerRun:
    """The server's side of a simulated run."""
    membership = fleet.membership()
    aggregation: Aggregation = PlainAggregation()
    if world.config.privacy.secagg:
        aggregation = SecureAggregation(membership, fleet.signatures)
    signature = world.model_cache.of(world.config.plan("main", world.cohort)).model_signature
    manifest = manifest_of(
        world.config,
        run=world.run,
        base=signature.digest,
        cohort=world.cohort,
        first_day=0,
        last_day=LAST_DAY,  # a simulated list does not expire either
    )
    return ServerRun(
        config=world.config,
        id=world.run,
        model_signature=signature,
        cohort=world.cohort,
        aggregation=aggregation,
        membership=membership.encoded,
        journal=journal,
        observe=observe,
        start=None if world.start is None else world.start.factors,
        manifest=fleet.sign(manifest),
        in_turn=fleet.gathered.most(world.config.plan("main", world.cohort)),
        # Ray's workers load people and base model before they answer, and are asked again until they do.
        patience=world.config.federation.deadline_seconds if world.config.grid == "ray" else 0.0,
    )


def note_inputs(journal: Journal, world: SimulationSetup, directory: Path) -> None:
    """Have the journal know what the run is computed from; RunDirectoryError when it knows something else."""
    inputs = world.inputs
    refuse_others(directory, inputs, journal.fact)
    for what, digest in inputs.items():
        if digest:
            journal.note(what, digest)


def refuse_changed(world: SimulationSetup, directory: Path, digests: Mapping[str, str]) -> None:
    """RunDirectoryError when the finished run in `directory` was computed from something else than `world`.

    digests: those in its result, which knows two of them also where the journal does not.
    """
    journal = JournalReader(directory)
    kept = {DATA: digests.get("data"), BASE_MODEL: digests.get("base model")}
    refuse_others(directory, world.inputs, lambda what: journal.fact(what) or kept.get(what))


def refuse_lost_agents(journal: Journal, directory: Path) -> None:
    """RunDirectoryError when rounds are finished and the agents, with everybody's personal part, are gone."""
    if journal.settled() and not (directory / AGENTS).is_dir():
        raise RunDirectoryError(
            f"{directory} has lost its folder {AGENTS}, with everybody's personal part; put it back, or "
            "start a new run"
        )


def restore(journal: Journal, fleet: SimulatedDevices, world: SimulationSetup) -> None:
    """Put server and agents back to the end of the last finished round, as they died together."""
    settled = journal.settled()
    journal.rewind(settled)
    fleet.rewind(world.run, settled)


def warm(world: SimulationSetup) -> None:
    """Compute the frozen part of the backbone once for each text of the run.

    All texts, at a resume as well: what is computed together can differ in the last bits from what is
    computed apart.
    """
    import torch

    torch.set_num_threads(1)  # one thread a client: clients are served side by side, and sums never reorder
    if not world.batched:
        return
    model = world.model_cache.model(world.config.model, world.config.adapter)
    people = (*world.federation.people, *world.newcomers)
    pairs = [pair for p in people for part in (p.train, p.validation, p.test) for pair in part]
    model.warm(pairs, threads=worker_count(world.config))


def worker_count(config: RunConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def tensors_of(world: SimulationSetup, phase: Phase) -> tuple[Tensor, ...]:
    """What a client's vector is made of in a phase, from the one rule table."""
    plan = world.config.plan(phase, world.cohort)
    split = world.model_cache.of(plan).split
    shared = () if phase == "close" else tuple(Tensor(s.name, s.shape) for s in split.shared.specs)
    counters = UpdateLayout.of(plan, split).quantiser.counters
    return (*shared, *(Tensor(counter.name, ()) for counter in counters))


def require_ray() -> None:
    """Raise UsageError, before anything is written, where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError('--grid ray needs Ray, which is not installed: pip install "penchant[ray]"')
