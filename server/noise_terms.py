"""What the noise of a run is made for, where its configuration leaves it open, and what it amounts to."""

from __future__ import annotations

import math

from penchant.common.config import Plan, RunConfig
from penchant.common.errors import ConfigError, PrivacyError
from penchant.common.privacy.noise import Noise
from penchant.common.secagg.transcript import threshold
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.run_manifest import least_group
from penchant.server.secagg.group import cut_into_groups

__all__ = ["as_asked", "figures_of", "refuse_drowned", "settle_noise"]


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


def as_asked(config: RunConfig) -> RunConfig:
    """The configuration of a served run without what `settle_noise` filled in, for another run like it: with
    more rounds, people would take part in as many as in this one and then stay out."""
    filled = {"privacy.dp_participations": 0, "privacy.dp_honest": 0}
    open_again = config.changed(filled)
    if not config.federation.cohort or not config.privacy.dp_epsilon:
        return config
    settled = settle_noise(open_again, config.federation.cohort, None)
    return open_again if settled == config else config


def figures_of(config: RunConfig, cohort: int, plan: Plan, layout: UpdateLayout) -> PrivacyFigures | None:
    """What the noise of a run amounts to, whose usual rounds ask `cohort` people; None where sums are exact.

    plan, layout: of one of these rounds.
    """
    noise = layout.noise
    if noise is None:
        return None
    return PrivacyFigures(
        epsilon=plan.dp_epsilon,
        delta=plan.dp_delta,
        noise_multiplier=noise.multiplier(plan.dp_honest),
        participations=plan.dp_participations,
        honest=plan.dp_honest,
        rho=noise.rho(plan.dp_honest),
        noise_norm=_spread(config, cohort, plan, layout, noise) * math.sqrt(noise.size) / noise.clip,
    )


def refuse_drowned(config: RunConfig, cohort: int, plan: Plan, layout: UpdateLayout) -> None:
    """PrivacyError where noise leaves nothing to learn, whatever people choose: before anybody pays for it.

    If everybody sent the same longest update in all R rounds, their mean would move R C in its direction. The
    noise there has a standard deviation of σ √R, σ being that of an element of a round's mean; a run is
    refused where this is the longer of the two, at σ > C √R. Server's rates scale both alike.

    Args: as of `figures_of`.
    """
    noise, rounds = layout.noise, config.federation.rounds
    if noise is None or not rounds:
        return
    drowned = _spread(config, cohort, plan, layout, noise) / noise.clip / math.sqrt(rounds)
    if drowned > 1:
        raise PrivacyError(
            f"nothing can be learned in this run: if everybody wanted the same in all {rounds} rounds, noise "
            f"would still be {drowned:.1f} times as long as what they can move together; ask more people a "
            "round, fewer rounds, or a larger privacy.dp_epsilon"
        )


def _spread(config: RunConfig, cohort: int, plan: Plan, layout: UpdateLayout, noise: Noise) -> float:
    """The standard deviation of the noise on an element of a round's mean, in units of the ring.

    A device adds the less the more honest people its group holds for certain, as devices reckon themselves.
    """
    if not config.privacy.secagg:
        return noise.sigma / math.sqrt(plan.cohort)
    least, variance = least_group(config, cohort), 0
    for people in map(len, cut_into_groups(range(plan.cohort), plan.group_size)):
        honest = plan.dp_honest + max(threshold(people) - least, 0)
        variance += people * layout.device_sigma(noise, honest) ** 2
    return math.sqrt(variance) / plan.cohort
