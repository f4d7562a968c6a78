"""The server's optimiser: how the mean update moves the shared factors.

FedAvg adds the mean (McMahan et al. 2017), FedAvgM with momentum (Hsu et al. 2019, arXiv:1909.06335).
FedAdagrad, FedYogi and FedAdam treat it as a pseudo-gradient (Reddi et al., "Adaptive Federated
Optimization", ICLR 2021, Algorithm 2). To add one, write a class with `name`, `init` and `step` and register
it: here (`_OWN`) or in a package of one's own (docs/plugins.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from penchant.common.config import FederationConfig
from penchant.common.registry import SERVER_OPTIMIZERS

__all__ = [
    "ServerOptimizer",
    "ServerState",
    "added",
    "register_server_optimizer",
    "server_optimizer",
    "server_optimizer_names",
]

Vector = NDArray[np.float32]
Update = NDArray[np.float64]


@dataclass(frozen=True)
class ServerState:
    """The shared factors and the optimiser's moments, each float32 [d_shared]; steps counts rounds.

    start: float32 [d_personal], where every personal part starts from; it is announced after a warm-up.
    It is all that a checkpoint holds, so it is all that an optimiser may remember.
    """

    factors: Vector
    first: Vector
    second: Vector
    start: Vector
    steps: int = 0

    @classmethod
    def begin(cls, factors: Vector, start: Vector) -> ServerState:
        """The factors before the first round of a phase, with both moments zero."""
        zeros = np.zeros_like(factors)
        return cls(factors, zeros, zeros, start)

    def moved(self, mean_update: Update, config: FederationConfig) -> ServerState:
        """The state after a round whose example-weighted mean update is `mean_update` [d_shared]."""
        return server_optimizer(config.server_optimizer).step(self, mean_update, config)


@runtime_checkable
class ServerOptimizer(Protocol):
    """How the server turns the mean of the clients' updates into new shared factors."""

    @property
    def name(self) -> str:
        """What `federation.server_optimizer` calls it."""
        ...

    def init(self, factors: Vector, start: Vector, settings: FederationConfig) -> ServerState:
        """The state before the first round of a phase, from the shared factors and the personal start."""
        ...

    def step(self, state: ServerState, mean_update: Update, settings: FederationConfig) -> ServerState:
        """The state after a round: a new one, with one step more, that depends on nothing but the arguments.

        `mean_update`, float64 [d_shared], is the clients' mean change, weighted by their pairs: it points
        where the factors should go. `settings` has server_lr, server_beta1, server_beta2, server_epsilon.
        """
        ...


def added(factors: Vector, step: Update) -> Vector:
    """Factors plus a step, summed in float64."""
    return (factors.astype(np.float64) + step).astype(np.float32)


# --- by name --------------------------------------------------------------------------------------


def register_server_optimizer(optimizer: ServerOptimizer) -> None:
    """Make an optimiser known by its name, for this process. ConfigError when the name is taken or not valid.

    A package that is installed does the same for every process by an entry point in the group
    "penchant.server_optimizers".
    """
    SERVER_OPTIMIZERS.register(optimizer, ServerOptimizer, _WANTED)


def server_optimizer(name: str) -> ServerOptimizer:
    """The optimiser of a name. ConfigError that lists the choices when there is none."""
    found: ServerOptimizer = SERVER_OPTIMIZERS.find(name, ServerOptimizer, _WANTED)  # type: ignore[type-abstract]
    return found


def server_optimizer_names() -> tuple[str, ...]:
    """All names of optimisers, penchant's own first."""
    return SERVER_OPTIMIZERS.names()


_WANTED = "a ServerOptimizer, which has name, init and step"


# --- penchant's own -------------------------------------------------------------------------------


class _FromZero:
    """Both moments are zero before the first round."""

    def init(self, factors: Vector, start: Vector, settings: FederationConfig) -> ServerState:
        """The state before the first round of a phase."""
        return ServerState.begin(factors, start)


class FedAvg(_FromZero):
    """x ← x + η Δ: the mean of the clients' factors for η = 1."""

    name = "fedavg"

    def step(self, state: ServerState, mean_update: Update, settings: FederationConfig) -> ServerState:
        """The state after a round."""
        step = settings.server_lr * mean_update
        return replace(state, factors=added(state.factors, step), steps=state.steps + 1)


class FedAvgM(_FromZero):
    """v ← β1 v + Δ; x ← x + η v."""

    name = "fedavgm"

    def step(self, state: ServerState, mean_update: Update, settings: FederationConfig) -> ServerState:
        """The state after a round; its first moment is the velocity v."""
        velocity = settings.server_beta1 * state.first + mean_update
        return replace(
            state,
            factors=added(state.factors, settings.server_lr * velocity),
            first=velocity.astype(np.float32),
            steps=state.steps + 1,
        )


class _Adaptive(_FromZero):
    """m ← β1 m + (1 - β1) Δ; x ← x + η m / (√v + τ), with a rule for v in each subclass.

    v starts at τ² (server_epsilon²), the least that Algorithm 2 allows.
    """

    def step(self, state: ServerState, mean_update: Update, settings: FederationConfig) -> ServerState:
        """The state after a round."""
        first = settings.server_beta1 * state.first + (1 - settings.server_beta1) * mean_update
        before = state.second if state.steps else np.full_like(state.second, settings.server_epsilon**2)
        second = self.second(before, mean_update, settings)
        step = settings.server_lr * first / (np.sqrt(second) + settings.server_epsilon)
        return replace(
            state,
            factors=added(state.factors, step),
            first=first.astype(np.float32),
            second=second.astype(np.float32),
            steps=state.steps + 1,
        )

    def second(self, before: Vector, mean_update: Update, settings: FederationConfig) -> Update:
        """v after a round, from v before it."""
        raise NotImplementedError


class FedAdagrad(_Adaptive):
    """v ← v + Δ². The paper's experiments have β1 = 0."""

    name = "fedadagrad"

    def second(self, before: Vector, mean_update: Update, settings: FederationConfig) -> Update:
        """v after a round, from v before it."""
        return before + mean_update**2


class FedYogi(_Adaptive):
    """v ← v - (1 - β2) Δ² sign(v - Δ²)."""

    name = "fedyogi"

    def second(self, before: Vector, mean_update: Update, settings: FederationConfig) -> Update:
        """v after a round, from v before it."""
        square = mean_update**2
        return before - (1 - settings.server_beta2) * square * np.sign(before - square)


class FedAdam(_Adaptive):
    """v ← β2 v + (1 - β2) Δ²."""

    name = "fedadam"

    def second(self, before: Vector, mean_update: Update, settings: FederationConfig) -> Update:
        """v after a round, from v before it."""
        return settings.server_beta2 * before + (1 - settings.server_beta2) * mean_update**2


_OWN: tuple[ServerOptimizer, ...] = (FedAvg(), FedAdam(), FedAvgM(), FedAdagrad(), FedYogi())
for _optimizer in _OWN:
    SERVER_OPTIMIZERS.add(_optimizer.name, _optimizer, own=True)
