"""The simulated fleet: every person's agent on this machine, each in its own directory.

The agents are the same objects that run on devices, called in-process. What a simulator may do and a
device may not is here and nowhere else: seeded identities, memoised signature checks, rewinding agents
after a crash of the whole simulated world, and looking at the test part of everybody's choices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray

from penchant.client.agent.agent import Agent
from penchant.client.agent.flower_app import Answer
from penchant.client.agent.kept_model import blend_of
from penchant.client.agent.known_lists import ListByDigest
from penchant.client.agent.open_attempt import SealedAttempts
from penchant.client.agent.owner import Choices, FixedOwner
from penchant.client.learning.blend import leads
from penchant.client.learning.chosen import Blend
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.outcome import Counts
from penchant.client.learning.trainer import counts_of
from penchant.client.vault.vault import Vault
from penchant.common.config import EvaluateOn, Plan, RunConfig
from penchant.common.crypto.entropy import Entropy, SeededEntropy, SystemEntropy
from penchant.common.crypto.keys import SignatureCache
from penchant.common.data.preferences import Federation, Preference, without_ties
from penchant.common.errors import RunDirectoryError
from penchant.common.membership.identity import Authority, Certificate, Identity, Membership
from penchant.common.membership.manifest import RunManifest, sign_run
from penchant.common.model.davidson import nu_of
from penchant.common.wire.messages import Announce
from penchant.deploy.owner_policy import fleet_policy, policy_for
from penchant.deploy.simulation.gathered_work import GatheredWork
from penchant.deploy.simulation.served import Versus

__all__ = ["Score", "SimulatedDevices", "personal_part"]

Vector = NDArray[np.float32]

AGENTS = "agents"  # in a run directory
LISTS = "member-lists"  # beside them, each list under its digest
FOREVER = 2**40  # Unix seconds: a simulated member list does not expire


@dataclass(frozen=True)
class Score:
    """One person's test result, which exists in simulations only."""

    client: str
    n_test: int
    n_train: int
    correct: int
    tied: int = 0  # none of them correct
    ties: int = 0  # held out beside the n_test choices
    ties_expected: float = 0.0  # by the person's own model, of those and these
    versus: Versus | None = None  # against the population's own model, where there is one
    margins: tuple[float, ...] = field(default=(), repr=False)  # of the n_test choices, in log-odds
    blend: Blend | None = None  # which model the device has chosen, where it had a choice

    @property
    def accuracy(self) -> float:
        return self.correct / self.n_test


def agent_home(directory: Path, index: int) -> Path:
    """Where the agent of one person lives in a run directory."""
    return directory / AGENTS / f"{index:06d}"


def personal_part(directory: Path, index: int, run: bytes, *, joined: bool = False) -> Vector | None:
    """The personal part that one person's agent ended `run` with, or None where no round ever reached it.

    joined: whether the run's journal knows the person in the sum of a round, after which there is one.

    RunDirectoryError where it must be there and is gone, or is that of another run.
    """
    home = agent_home(directory, index)
    vault = Vault(home) if home.exists() else None
    kept = None if vault is None else vault.personal(run)
    if kept is not None:
        return kept.vector
    if joined:
        raise RunDirectoryError(
            f"{home} holds no personal part of this run, and was in its rounds; put back what was there, or "
            "start a new run"
        )
    return None


class OneCopy:
    """Gives the object that was seen last for all that are equal to it. Thread-safe: where two are seen in
    turn, there are more copies, and nothing else."""

    def __init__(self) -> None:
        self._last = b""

    def __call__(self, data: bytes) -> bytes:
        last = self._last
        if data == last:
            return last
        self._last = data
        return data


class SimulatedDevices:
    """All simulated devices of a run. Thread-safe; one message at a time for each agent."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        federation: Federation,
        model_cache: ModelCache,
        cohort: int,
        *,
        sealed: bool = False,
        batch_people: int = 1,
        sums: int | None = None,
        entropy: Callable[[int], Entropy] = lambda index: SystemEntropy(),
    ) -> None:
        """Certify every person; an agent is made when it is first needed.

        Args:
            config: the configuration of the run.
            directory: the run directory, which holds the agents' own directories.
            federation: the people, one for each device.
            model_cache: keeps loaded models, so that all agents share one base model.
            cohort: how many devices a round asks; the simulated owners' conditions are set to fit it.
            sealed: whether an open attempt is kept on disk, because successive messages of a client may come
                to different processes (Ray).
            batch_people: how many people are trained in one batched computation (`RunConfig.batch_people`).
            sums: in how many sums of the run a device may be, where that is fewer than the run's plan says.
            entropy: gives the source of a person's round secrets, by their index; only tests replace it.
        """
        self._sealed = sealed
        self.sums = sums
        self._entropy = entropy
        self._directory = directory
        self._people = federation.people
        self._model_cache = model_cache
        self.gathered = GatheredWork(model_cache, asked=1 if sealed else batch_people)
        conditions = fleet_policy(config, cohort)
        self._policy = policy_for(config, conditions.min_honest, conditions.max_colluders)
        if sums is not None:
            self._policy = replace(self._policy, sums_a_run=sums)
        self._agents: dict[int, Agent] = {}
        self._locks = [threading.Lock() for _ in self._people]
        self._registry = threading.Lock()
        self._seed = b"penchant simulation" + config.seed.to_bytes(8, "big")
        self.signatures = SignatureCache()
        self._one_copy = OneCopy()
        self.authority = Authority.create(SeededEntropy(self._seed, "authority"))
        self._certified = [self._certify(i) for i in range(len(self._people))]
        self.members = self.authority.publish(
            1, [certificate for _, certificate in self._certified], issued=0, expires=FOREVER
        )
        fresh = Membership(self.authority.public_key, verify=self.signatures)
        self._membership = fresh.accept(self.members.encode(), now=1)

    def __len__(self) -> int:
        return len(self._people)

    def membership(self) -> Membership:
        """What the server and every agent hold true about members: one object, which nothing changes."""
        return self._membership

    def sign(self, manifest: RunManifest) -> bytes:
        """The manifest of a run, signed by the simulated authority; the same one, the same bytes."""
        return sign_run(self.authority, manifest).encode()

    def answer_of(self, context: Context) -> Answer:
        """The entrance of the agent that a Flower context belongs to."""
        index = int(context.node_config["partition-id"])

        def answer(stage: str, payload: bytes) -> bytes:
            with self._locks[index]:
                return self.agent(index).answer(stage, payload)

        return answer

    def agent(self, index: int) -> Agent:
        """The agent of one person, made when it is first needed."""
        with self._registry:
            if index not in self._agents:
                self._agents[index] = self._make(index)
            return self._agents[index]

    def rewind(self, run: bytes, round: int) -> None:
        """Put every agent back to the end of `round`, as the whole simulated world died with its process."""
        for index in range(len(self)):
            if self._home(index).exists():
                self._vault(index).rewind(run, round)

    def settle(self, run: bytes, finished: Sequence[tuple[int, int]]) -> None:
        """Report the finished rounds to every agent, as a server's last greeting does."""
        for index in range(len(self)):
            if self._home(index).exists():
                self._vault(index).settle(run, finished)

    def scores(self, run: bytes, plan: Plan, factors: Vector, part: EvaluateOn) -> list[Score]:
        """Everyone's accuracy on their test (or validation) pairs with their own personal part.

        Args:
            run: the 16 bytes that name the run.
            plan: the plan that the devices followed.
            factors: the shared factors to score with.
            part: which pairs are scored.
        """
        return [self._score(index, run, plan, factors, part) for index in range(len(self))]

    def judge(
        self, index: int, run: bytes, plan: Plan, factors: Vector, pairs: Sequence[Preference]
    ) -> Counts:
        """How one person's own model does on `pairs`, with the shared `factors` of `plan`; ties are expected
        as often as in their training."""
        return self._judged(index, run, plan, factors, pairs)[0]

    def _judged(
        self, index: int, run: bytes, plan: Plan, factors: Vector, pairs: Sequence[Preference]
    ) -> tuple[Counts, Vector]:
        """As `judge`, and the margins [of all pairs]."""
        planned = self._model_cache.of(plan)
        shared, start = planned.parts(factors)
        prepared = planned.model.prepare(pairs)
        margins = planned.trainer(start).margins(shared, self._own(index, run, start), prepared)
        return counts_of(torch.from_numpy(margins), prepared, nu_of(self._people[index].train)), margins

    def _score(self, index: int, run: bytes, plan: Plan, factors: Vector, part: EvaluateOn) -> Score:
        person = self._people[index]
        pairs = person.test if part == "test" else person.validation
        counts, margins = self._judged(index, run, plan, factors, pairs)
        versus = self._versus(index, run, plan, factors, without_ties(pairs))
        return Score(
            person.name,
            counts.total,
            len(without_ties(person.train)),
            counts.correct,
            counts.tied,
            counts.ties,
            counts.ties_expected,
            versus,
            tuple(float(one) for one, pair in zip(margins, pairs, strict=True) if not pair.tie),
            None if versus is None else self._blend(index, run),
        )

    def _blend(self, index: int, run: bytes) -> Blend | None:
        """Which model one person's device has chosen; None where it had no choice."""
        kept = self._vault(index).personal(run)
        return None if kept is None else blend_of(kept.context)

    def _versus(
        self, index: int, run: bytes, plan: Plan, factors: Vector, pairs: Sequence[Preference]
    ) -> Versus | None:
        """One person's own model against the population's; None where the share rule has none."""
        planned = self._model_cache.of(plan)
        if planned.split.rule.spread is None:
            return None
        shared, start = planned.parts(factors)
        trainer, prepared = planned.trainer(start), planned.model.prepare(pairs)
        own, common = (
            trainer.margins(shared, part, prepared) > 0 for part in (self._own(index, run, start), start)
        )
        return Versus(*leads(own, common), common=int(common.sum()), pairs=len(pairs))

    def _own(self, index: int, run: bytes, start: Vector) -> Vector:
        """What one person's device keeps; the common start where it has nothing of this run."""
        kept = self._vault(index).personal(run)
        return kept.vector if kept is not None and kept.vector.shape == start.shape else start

    def _certify(self, index: int) -> tuple[bytes, Certificate]:
        private = SeededEntropy(self._seed, f"identity {index}").draw(32)
        return private, self.authority.issue(index + 1, Identity.public_of(private))

    def _home(self, index: int) -> Path:
        return agent_home(self._directory, index)

    def _vault(self, index: int) -> Vault:
        """One person's vault. Waiting for the disk at each message of each person is most of a run's time."""
        return Vault(self._home(index), durable=False)

    def _make(self, index: int) -> Agent:
        person = self._people[index]
        vault = self._vault(index)
        private, certificate = self._certified[index]
        secret = SeededEntropy(self._seed, f"device {index}").draw(32)
        owner = FixedOwner(
            allows=self._policy,
            member=Identity(private, certificate),
            trusts=self.membership(),
            prefers=Choices(person.train, person.validation),
        )
        return Agent(
            vault,
            owner,
            workplace=self.gathered.place(index),
            secret=secret,
            entropy=self._entropy(index),
            verify=self.signatures,
            noise=partial(_noise, secret),
            open_attempts=SealedAttempts(self._home(index), secret) if self._sealed else None,
            known_list=ListByDigest(vault, self._directory / LISTS),
            one_copy=self._one_copy,
        )


def _noise(secret: bytes, announce: Announce) -> Entropy:
    """The randomness of a simulated device's noise: new in every attempt, the same when a run is repeated.

    A real device takes it from its operating system.
    """
    return SeededEntropy(secret, f"noise {announce.run.hex()} {announce.round} {announce.attempt}")
