"""The policy that the owners of simulated devices have, and whether a plan satisfies it."""

from __future__ import annotations

from dataclasses import dataclass

from penchant.common.config import PrivacyConfig, RunConfig
from penchant.common.secagg.transcript import threshold

__all__ = ["FleetPolicy", "fleet_policy"]


@dataclass(frozen=True)
class FleetPolicy:
    """The simulated owners' conditions: lowered to what the cohort allows, which is said aloud.

    asked_honest, asked_colluders: what was asked for, by the configuration or as owners' usual minimum.
    """

    min_honest: int
    max_colluders: int
    asked_honest: int
    asked_colluders: int

    @property
    def lowered(self) -> bool:
        """Whether an owner gets less than asked for."""
        return self.min_honest < self.asked_honest or self.max_colluders < self.asked_colluders


def fleet_policy(config: RunConfig, cohort: int) -> FleetPolicy:
    """The owners' defaults, lowered until groups of `cohort` satisfy n ≥ 3c + 1 and t - c ≥ min_honest."""
    n = smallest_group(cohort, config.privacy.group_size)
    colluders = min(config.privacy.max_colluders, max(n - 1, 0) // 3)
    honest = min(config.privacy.min_honest, threshold(n) - colluders)
    usual = PrivacyConfig()
    return FleetPolicy(
        honest,
        colluders,
        max(config.privacy.min_honest, usual.min_honest),
        max(config.privacy.max_colluders, usual.max_colluders),
    )


def smallest_group(cohort: int, group_size: int) -> int:
    """Devices in the smallest of the fewest equal groups of at most `group_size`."""
    groups = -(-cohort // group_size)
    return cohort // groups
