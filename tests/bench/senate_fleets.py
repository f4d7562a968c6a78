"""Federations on Senate with newcomers, for the benchmarks that begin where training ends.

Each is trained once, by `penchant simulate`'s own code, and kept in a directory; another benchmark finds it
there. Secure aggregation is off: sums are the same, and masks only take time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant.client.bench import Bench, Benches
from penchant.client.vault import Vault
from penchant.common.adapters import Vector
from penchant.common.config import RunConfig
from penchant.common.preferences import Person
from penchant.deploy import datasets, rundir
from penchant.deploy.recipes import recipe
from penchant.deploy.simulate import World, prepare, simulate
from penchant.server.journal import Journal
from penchant.server.round import announced_factors

NEWCOMERS = 20
MANY = 150  # training pairs of a newcomer, where a benchmark draws from many

_BENCHES = Benches()


@dataclass(frozen=True)
class Fleet:
    """A trained federation. factors: as announced at its end. newcomers: with up to `MANY` training pairs."""

    world: World
    directory: Path
    factors: Vector
    newcomers: tuple[Person, ...]

    def bench(self, **training: Any) -> Bench:
        """The bench of the closing round, with changes of the training section."""
        config = self.world.config.changed({f"training.{key}": value for key, value in training.items()})
        return _BENCHES.of(config.plan("close", len(self.world.federation.people)))

    def personal(self) -> list[Vector]:
        """Everybody's own part, in the order of `world.federation.people`: a simulation can look at it."""
        kept = [
            Vault(self.directory / "agents" / f"{index:06d}").latest()
            for index in range(len(self.world.federation.people))
        ]
        return [np.zeros(0, np.float32) if one is None else one[1].vector for one in kept]


def trained(share: str, seed: int, home: Path, changes: Mapping[str, Any] | None = None) -> Fleet:
    """The federation of this share and seed, trained now unless `home` holds it."""
    torch.set_num_threads(1)
    settings = {
        "data.dataset": "senate",
        "data.holdout_clients": NEWCOMERS,
        "adapter.share": share,
        "privacy.secagg": False,
        "seed": seed,
    }
    config = RunConfig().changed({**settings, **recipe("senate", share), **(changes or {})})
    world = prepare(config, _BENCHES)
    directory = home / f"{share}-seed{seed}-{world.run.hex()[:8]}"
    if rundir.read_result(directory) is None:
        began = time.monotonic()
        if not (directory / rundir.CONFIG).exists():
            rundir.create(directory, config)
        simulate(world, directory, command="a benchmark")
        print(f"trained {directory.name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    journal = Journal(directory)
    try:
        found = journal.load()
    finally:
        journal.close()
    if found is None:
        raise SystemExit(f"{directory} has no checkpoint; remove it")
    factors = announced_factors(config.plan("close", len(world.federation.people)), found[1])
    return Fleet(world, directory, factors, _with_more_choices(world))


def _with_more_choices(world: World) -> tuple[Person, ...]:
    """The newcomers with more training pairs; those held out stay the same."""
    names = {person.name: person for person in world.newcomers}
    data = world.config.data
    many = datasets.load(
        data.dataset,
        pairs=MANY,
        validation_pairs=data.validation_pairs,
        test_pairs=data.test_pairs,
        seed=world.config.seed,
    )
    return tuple(
        replace(person, validation=names[person.name].validation, test=names[person.name].test)
        for person in many.people
        if person.name in names
    )
