"""What one run of a federation is made of, and what one of its rounds asks."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penchant.common.config import Phase, Plan, RunConfig
from penchant.common.errors import ConfigError
from penchant.common.membership.identity import list_digest
from penchant.common.model.factors import Split
from penchant.common.model.signature import ModelSignature
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.wire.messages import Finished
from penchant.server.combination import check_groups
from penchant.server.journal import Journal, RoundLog
from penchant.server.secagg.aggregation import Aggregation
from penchant.server.waiting import Waiting

__all__ = ["LEAST_COHORT", "RoundPlan", "ServerRun", "checked_cohort", "cohort_size", "run_id"]
LEAST_COHORT = 3  # devices in a masked sum
Observer = Callable[[RoundLog], None]
Vector = NDArray[np.float32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerRun:
    """What a server knows of a run.

    Attributes:
        id: the 16 bytes that name the run.
        model_signature: the signature of the base model.
        cohort: how many clients a round asks.
        aggregation: how vectors are added up.
        membership: the authority's latest member list, encoded.
        observe: called with the log of each finished round.
        tell: called with a line for the operator: a round that was skipped, or a group that was left out.
        waits: called with what a round waits for whenever that changes, and with None once it begins.
        start: the shared factors that the run begins with, where they are not the common start.
        patience: seconds that a round waits for its cohort to be there, before it fails.
        in_turn: how many devices one machine serves at a time, where it serves all of them in turn; 0 where
            each has a machine of its own. How long all of them take says nothing of any of them in turn:
            deadlines count from the last answer, one for each of those that answer together.
        belongs: says whether a member is on the list.
        members: the list's length; None where there is no list.
        manifest: what the run may ask, signed by the authority; devices take part in no run without one.
        latest: gives the run with the list that is valid now. It is called before every round, so that a
            revocation takes effect without a restart.
    """

    config: RunConfig
    id: bytes
    model_signature: ModelSignature
    cohort: int
    aggregation: Aggregation
    membership: bytes
    journal: Journal
    observe: Observer = field(default=lambda log: None)
    tell: Callable[[str], None] = field(default=_log.warning)
    waits: Callable[[Waiting | None], None] = field(default=lambda waiting: None)
    start: Vector | None = field(default=None, repr=False)
    patience: float = 0.0
    in_turn: int = 0
    belongs: Callable[[int], bool] = field(default=lambda member: True)
    members: int | None = None
    manifest: bytes = b""
    latest: Callable[[ServerRun], ServerRun] = field(default=lambda run: run)

    @property
    def list_digest(self) -> bytes:
        """32 bytes: of the member list that the next round goes by."""
        return list_digest(self.membership)

    @property
    def last(self) -> int:
        """The number of the closing round."""
        return self.config.federation.rounds + 1

    def task(self, number: int, everyone: int) -> RoundPlan:
        """What round `number` asks; `everyone`: members that are ready, all of whom close the run."""
        phase: Phase = "main"
        if number <= self.config.federation.warmup_rounds:
            phase = "warmup"
        elif number == self.last:
            phase = "close"
        cohort = everyone if phase == "close" else self.cohort
        plan = self.config.plan(phase, max(cohort, self.cohort))  # never fewer than the manifest says
        split = self.model_signature.split(plan)
        return RoundPlan(number, plan, split, UpdateLayout.of(plan, split), cohort)


@dataclass(frozen=True)
class RoundPlan:
    """One round's plan, its split of the tensors, the form of its vectors and the cohort's size."""

    number: int
    plan: Plan
    split: Split
    layout: UpdateLayout
    cohort: int


def cohort_size(config: RunConfig, people: int) -> int:
    """Clients a round. 0 in the configuration: a third of the people, at least ten, at most all; all
    where nothing is shared, since a round is then nothing but everybody's own training.

    Raises ConfigError when more are asked for than there are.
    """
    wanted = config.federation.cohort
    if wanted > people:
        raise ConfigError(
            f"federation.cohort is {wanted} but there are {people} people; lower it",
            about=("federation.cohort",),
        )
    if config.adapter.rule.shares_nothing:
        return wanted or people
    return wanted or max(-(-people // 3), min(people, 10))


def checked_cohort(config: RunConfig, people: int) -> int:
    """Clients a round, as `cohort_size`. ConfigError also where they are too few for secure aggregation, or
    for the groups that `federation.combine` needs."""
    cohort, least = cohort_size(config, people), LEAST_COHORT
    if config.privacy.secagg and cohort < least:
        wrong = f"secure aggregation needs a cohort of at least {least}, here it is {cohort}; add people, or"
        raise ConfigError(
            f"{wrong} set privacy.secagg to false",
            on_command_line=f"{wrong} pass --no-secagg",
            about=("federation.cohort",),
        )
    check_groups(config, cohort)
    return cohort


def run_id(config_digest: str, data_digest: str) -> bytes:
    """16 bytes that name a run: the same configuration and people, the same run."""
    return hashlib.sha256(f"penchant run|{config_digest}|{data_digest}".encode()).digest()[:16]


def finished_rounds(journal: Journal) -> tuple[Finished, ...]:
    return tuple(Finished(number, attempt) for number, attempt in journal.finished())
