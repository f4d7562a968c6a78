"""Whether there are enough people for the rounds of a simulation."""

from __future__ import annotations

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.server.combination import check_groups
from penchant.server.run import cohort_size

__all__ = ["refuse_cohort"]

LEAST = 3  # people in a masked sum


def refuse_cohort(config: RunConfig, people: int) -> int:
    """People a round, of so many. ConfigError when there are too few for it, or for secure aggregation."""
    cohort = cohort_size(config, people)
    if config.privacy.secagg and cohort < LEAST:
        wrong = f"secure aggregation needs a cohort of at least {LEAST}, here it is {cohort}; add people, or"
        raise ConfigError(f"{wrong} set privacy.secagg to false", on_command_line=f"{wrong} pass --no-secagg")
    check_groups(config, cohort)
    return cohort
