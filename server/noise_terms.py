"""What the noise of a run is made for, where its configuration leaves it open."""

from __future__ import annotations

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.server.run_manifest import least_group

__all__ = ["settle_noise"]


def settle_noise(config: RunConfig, cohort: int, people: int | None) -> RunConfig:
    """The configuration with `privacy.dp_participations` and `privacy.dp_honest` filled in; as it is without
    noise.

    Cohorts are drawn in turn, so of R rounds with n of N people each, a person is in R n / N at most, rounded
    up, and in the closing one. Real devices have one turn more, for an attempt that fails.

    Args:
        config: the configuration of the run.
        cohort: how many people a round asks.
        people: how many take part in the run; None where they may change, and a person may be in every round.
    """
    privacy, rounds = config.privacy, config.federation.rounds
    if not privacy.dp_epsilon:
        return config
    turns = rounds if people is None else min(-(-rounds * cohort // people), rounds)
    sure = least_group(config, cohort) - privacy.max_colluders
    honest = privacy.dp_honest or sure
    if honest < 1 or honest > sure:
        raise ConfigError(
            f"of {cohort} people a round, sums hold the noise of {max(sure, 0)} honest ones for certain, if "
            f"{privacy.max_colluders} devices work with the server, and {max(honest, 1)} are asked for; ask "
            "more people a round, or lower privacy.max_colluders or privacy.dp_honest"
        )
    return config.changed(
        {
            "privacy.dp_participations": privacy.dp_participations or turns + (1 if people else 2),
            "privacy.dp_honest": honest,
        }
    )
