"""The policy that the owners of simulated devices have, and whether a plan satisfies it."""

from __future__ import annotations

from dataclasses import dataclass

from penchant.client.agent.policy import MOST_COUNTED, OwnerPolicy
from penchant.common.config import PrivacyConfig, RunConfig
from penchant.common.secagg.transcript import threshold

__all__ = ["FleetPolicy", "fleet_policy", "policy_for"]


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


def policy_for(config: RunConfig, min_honest: int, max_colluders: int) -> OwnerPolicy:
    """The policy of an owner who has read a run's configuration and allows what it asks for.

    Args:
        config: the configuration of the run.
        min_honest: how many honest people every sum must hold.
        max_colluders: how many devices may work with the server.
    """
    model, adapter, training, usual = config.model, config.adapter, config.training, OwnerPolicy()
    seconds = config.federation.training_seconds
    rates = training.lr_shared, training.lr_personal, training.lr_head, training.final_fit_lr
    return OwnerPolicy(
        base_models=(model.base_model,),
        min_honest=min_honest,
        max_colluders=max_colluders,
        allow_unmasked=not config.privacy.secagg,
        max_epsilon=max(usual.max_epsilon, config.privacy.dp_epsilon),
        delta=config.privacy.dp_delta,
        allow_exact_sums=not config.privacy.dp_epsilon,
        max_epochs=max(usual.max_epochs, training.epochs),
        shares=(adapter.share,),
        modules=adapter.target_modules,
        base_parts=adapter.share_base,
        last_blocks=max(usual.last_blocks, *(-block for block in adapter.layers), 1),
        any_block=not adapter.layers or max(adapter.layers) >= 0,
        max_modules=10_000,
        max_rank=adapter.rank,
        max_scale=max(usual.max_scale, adapter.alpha / adapter.rank),
        max_shared=1 << 31,
        max_factor_ratio=1e9,
        max_head_norm=1e9,
        min_tokens=min(usual.min_tokens, model.max_tokens),
        min_blocks=min((usual.min_blocks, *filter(None, (model.blocks, model.beside)))),
        poolings=(model.pooling,),
        max_normalize=max(usual.max_normalize, model.normalize),
        unnormalized=not model.normalize,
        objectives=(model.objective,),
        max_beta=max(usual.max_beta, model.beta),
        optimizers=("adamw", "sgd"),
        max_rate=max(*rates, training.warmup_lr) * max(1.0, training.weight_decay + training.l2_to_start),
        min_batch=min(usual.min_batch, training.batch_size or usual.min_batch),
        max_clip=config.federation.clip,
        max_weight=config.federation.max_weight,
        min_training_seconds=min(usual.min_training_seconds, seconds),
        max_training_seconds=seconds,
        rounds_a_day=MOST_COUNTED,
        runs_a_month=MOST_COUNTED,
        attempts_a_round=MOST_COUNTED,
        attempts_a_day=MOST_COUNTED,
        max_disk_mb=1_000_000,
    )


def smallest_group(cohort: int, group_size: int) -> int:
    """Devices in the smallest of the fewest equal groups of at most `group_size`."""
    groups = -(-cohort // group_size)
    return cohort // groups
