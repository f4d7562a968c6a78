"""The simulated twin of a deployment: the same people, run id and device secrets; nothing may differ.

What decides a result is given to both sides alike: choices and member numbers by enrolment, run id and device
secrets by putting them where the processes keep them. Masks, keys and shares are drawn anew on each side, by
the operating system on the deployed one, and must not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from support.deployment import Deployment

from penchant.client.device.device import Device
from penchant.client.device.home import SECRET
from penchant.client.learning.model_cache import ModelCache
from penchant.client.vault.vault import Vault
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.data.preferences import Federation, Person
from penchant.deploy import run_directory
from penchant.deploy.owner_policy import fleet_policy
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import SimulationSetup
from penchant.server.journal import Journal, RoundLog

SIMULATED = "simulated"


@contextmanager
def journal(directory: Path) -> Iterator[Journal]:
    opened = Journal(directory)
    try:
        yield opened
    finally:
        opened.close()


def world_of(fleet: Deployment) -> SimulationSetup:
    """The simulation of the very same people; its devices' secrets are given to the real ones."""
    people = []
    for number, folder in enumerate(fleet.homes):
        home = Device(folder)
        choices = home.choices()
        people.append(Person(f"p{number}", choices.train, choices.validation, choices.validation))
        source = SeededEntropy(
            b"penchant simulation" + fleet.config.seed.to_bytes(8, "big"), f"device {number}"
        )
        home.vault.keep_blob(SECRET, source.draw(32))
    cohort = fleet.config.federation.cohort
    policy = fleet_policy(fleet.config, cohort)
    return SimulationSetup(
        fleet.config, Federation("made up", tuple(people)), ModelCache(), cohort, policy, batched=False
    )


def simulate_twin(fleet: Deployment) -> SimulationSetup:
    """Give the served run and its devices what the simulation has, and simulate."""
    world = world_of(fleet)
    with journal(fleet.run) as server:
        server.note("run", world.run.hex())
    fleet.sign_run()
    run_directory.create(fleet.place / SIMULATED, fleet.config)
    simulate(world, fleet.place / SIMULATED)
    return world


def check_same(fleet: Deployment, world: SimulationSetup) -> None:
    """Shared factors, personal factors and all that the server knows of the rounds: nothing differs.

    Attempts apart: a round that was tried again gives what it would have given.
    """
    with journal(fleet.run) as deployed, journal(fleet.place / SIMULATED) as simulated:
        found, expected = deployed.load(), simulated.load()
        assert found is not None
        assert expected is not None
        assert found[0] == expected[0] == fleet.config.federation.rounds + 1
        assert found[1].steps == expected[1].steps
        for name in ("factors", "first", "second", "start"):
            assert np.array_equal(getattr(found[1], name), getattr(expected[1], name)), name
        assert [known(log) for log in deployed.logs()] == [known(log) for log in simulated.logs()]
    for number, folder in enumerate(fleet.homes):
        own = Device(folder).vault.personal(world.run)
        other = Vault(fleet.place / SIMULATED / "agents" / f"{number:06d}").personal(world.run)
        assert own is not None
        assert other is not None
        assert own.round == other.round == found[0]
        assert np.array_equal(own.vector, other.vector)


def known(log: RoundLog) -> tuple[object, ...]:
    """What the server knows of a round, but for attempts, times and bytes."""
    return (
        log.round, log.phase, log.cohort, log.survivors, log.dropped, log.examples, log.train_loss,
        log.val_accuracy, log.histogram, log.update_norm,
    )  # fmt: skip
