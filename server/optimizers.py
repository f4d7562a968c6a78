"""The server's optimiser: how the mean update moves the shared factors.

FedAvg adds the mean (McMahan et al. 2017); FedAdam treats it as a pseudo-gradient
(Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penchant.common.config import FederationConfig

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class ServerState:
    """The shared factors and the optimiser's moments, each float32 [d_shared]; steps counts rounds.

    start: float32 [d_personal], where every personal part starts from; it is announced after a warm-up.
    """

    factors: Vector
    first: Vector
    second: Vector
    start: Vector
    steps: int = 0

    @classmethod
    def begin(cls, factors: Vector, start: Vector) -> ServerState:
        """The factors before the first round of a phase."""
        zeros = np.zeros_like(factors)
        return cls(factors, zeros, zeros, start)

    def moved(self, mean_update: NDArray[np.float64], config: FederationConfig) -> ServerState:
        """The factors after a round whose example-weighted mean update is `mean_update` [d_shared].

        FedAdam's second moment starts at server_epsilon², the least that Algorithm 2 allows.
        """
        if config.server_optimizer == "fedavg":
            step = config.server_lr * mean_update
            return replace(self, factors=_add(self.factors, step), steps=self.steps + 1)
        first = config.server_beta1 * self.first + (1 - config.server_beta1) * mean_update
        before = self.second if self.steps else np.full_like(self.second, config.server_epsilon**2)
        second = config.server_beta2 * before + (1 - config.server_beta2) * mean_update**2
        step = config.server_lr * first / (np.sqrt(second) + config.server_epsilon)
        return replace(
            self,
            factors=_add(self.factors, step),
            first=first.astype(np.float32),
            second=second.astype(np.float32),
            steps=self.steps + 1,
        )


def _add(factors: Vector, step: NDArray[np.float64]) -> Vector:
    return (factors.astype(np.float64) + step).astype(np.float32)
