"""Trained federations, for the benchmarks that begin where training ends; on Senate with newcomers.

Each is trained once, by `penchant simulate`'s own code, and kept in a directory; another benchmark finds it
there. Secure aggregation is off: sums are the same, and masks only take time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from penchant.client.learning.model_cache import ModelCache, PlannedModel
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig, TrainingConfig
from penchant.common.data.preferences import Person
from penchant.common.model.factors import Vector
from penchant.deploy import datasets, run_directory
from penchant.deploy.recipes import recipe
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import SimulationSetup, prepare
from penchant.server.journal import Journal
from penchant.server.round import announced_factors

NEWCOMERS = 20
MANY = 150  # pairs of a newcomer in each part: to draw from, and to judge by with little noise

PRIOR = ("prior_spread", "prior_head")  # of a newcomer's personal part: not known to a training

_BENCHES = ModelCache()


@dataclass(frozen=True)
class Trained:
    """A federation that is done. factors: as announced at its end."""

    world: SimulationSetup
    directory: Path
    factors: Vector

    def planned(self, **training: float) -> PlannedModel:
        """The planned model of the closing round, with changes of the training section."""
        config = self.world.config.changed({f"training.{key}": value for key, value in training.items()})
        return self.world.model_cache.of(config.plan("close", len(self.world.federation.people)))

    def personal(self) -> list[Vector]:
        """Everybody's own part, in the order of `world.federation.people`: a simulation can look at it."""
        kept = [
            Vault(self.directory / "agents" / f"{index:06d}").latest()
            for index in range(len(self.world.federation.people))
        ]
        return [np.zeros(0, np.float32) if one is None else one[1].vector for one in kept]

    def accuracy(self) -> dict[str, float]:
        """Of `result.json`."""
        accuracy: dict[str, float] = run_directory.read_result(self.directory)["accuracy"]
        return accuracy


def settled(world: SimulationSetup, home: Path, name: str) -> Trained:
    """The federation of this world, trained now unless `home` holds it."""
    torch.set_num_threads(1)
    directory = home / f"{name}-{world.run.hex()[:8]}"
    if run_directory.read_result(directory) is None:
        began = time.monotonic()
        if not (directory / run_directory.CONFIG).exists():
            run_directory.create(directory, world.config)
        simulate(world, directory, command="a benchmark")
        print(f"trained {directory.name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    journal = Journal(directory)
    try:
        found = journal.load()
    finally:
        journal.close()
    if found is None:
        raise SystemExit(f"{directory} has no checkpoint; remove it")
    plan = world.config.plan("close", len(world.federation.people))
    return Trained(world, directory, announced_factors(plan, found[1]))


@dataclass(frozen=True)
class Fleet(Trained):
    """Of Senate. newcomers: with up to `MANY` pairs in each part. prior: the recipe's, which no training
    reads."""

    newcomers: tuple[Person, ...]
    prior: dict[str, float]

    def planned(self, **training: float) -> PlannedModel:
        """The planned model of the closing round, with the recipe's prior or another (`PRIOR`)."""
        return super().planned(**{**self.prior, **training})


def trained(share: str, seed: int, home: Path) -> Fleet:
    """The federation of this share and seed on Senate, 20 people kept out of it."""
    settings = {
        "data.dataset": "senate",
        "data.holdout_clients": NEWCOMERS,
        "adapter.share": share,
        "privacy.secagg": False,
        "seed": seed,
    }
    tuned = recipe("senate", share)
    prior = {key: float(tuned.pop(f"training.{key}", getattr(TrainingConfig(), key))) for key in PRIOR}
    world = prepare(RunConfig().changed({**settings, **tuned}), _BENCHES)
    if share == "none":  # nothing is learned from each other: a newcomer needs nobody's training
        return Fleet(world, home, np.zeros(0, np.float32), _with_more_choices(world), prior)
    fleet = settled(world, home, f"{share}-seed{seed}")
    return Fleet(world, fleet.directory, fleet.factors, _with_more_choices(world), prior)


def _with_more_choices(world: SimulationSetup) -> tuple[Person, ...]:
    """The newcomers with `MANY` pairs of each part; the first of them are those they had."""
    names = {person.name for person in world.newcomers}
    many = datasets.load(
        world.config.data.dataset,
        pairs=MANY,
        validation_pairs=MANY,
        test_pairs=MANY,
        seed=world.config.seed,
    )
    return tuple(person for person in many.people if person.name in names)
