"""The manifest that a run needs: what its configuration will ask of devices, for the authority to sign."""

from __future__ import annotations

from dataclasses import replace

from penchant.common.config import RunConfig
from penchant.common.errors import RunDirectoryError
from penchant.common.membership.manifest import RunManifest, day_of, promised, shown_day
from penchant.common.secagg.transcript import threshold

__all__ = ["least_group", "manifest_of", "refuse_outgrown"]


def manifest_of(
    config: RunConfig, *, run: bytes, base: bytes, cohort: int, first_day: int, last_day: int
) -> RunManifest:
    """What a run of `config` asks, and nothing beyond it.

    Args:
        config: the configuration of the run.
        run: the 16 bytes that name the run.
        base: the digest of the base model.
        cohort: how many people a round asks. The closing round asks everybody, so more perhaps.
        first_day: the first day on which a round may begin, counted from 1970-01-01 in UTC.
        last_day: the last such day.
    """
    bare = RunManifest(
        run=run,
        base=base,
        rounds=config.federation.rounds + 1,
        warmup=config.federation.warmup_rounds,
        least_cohort=cohort,
        least_group=least_group(config, cohort),
        unmasked=not config.privacy.secagg,
        first_day=first_day,
        last_day=last_day,
        plans=(),
    )
    plans = [config.plan(phase, cohort) for phase in bare.phases]
    manifest = replace(bare, plans=tuple(plan.encode() for plan in plans), privacy=promised(plans[-1]))
    manifest.check()
    return manifest


def refuse_outgrown(signed: RunManifest, config: RunConfig, base: bytes, now: float) -> None:
    """RunDirectoryError when a run of `config` would ask for more than its signed manifest allows, or the
    manifest's days are over: no device would take part."""
    needed = manifest_of(
        config,
        run=signed.run,
        base=base,
        cohort=config.federation.cohort,
        first_day=signed.first_day,
        last_day=signed.last_day,
    )
    if needed.rounds > signed.rounds:
        raise RunDirectoryError(
            f"the run's manifest allows {signed.rounds} rounds, and its configuration asks for "
            f"{needed.rounds}; start a new run for more"
        )
    if needed.encode() != signed.encode():
        raise RunDirectoryError(
            "the run's configuration, as this version reads it, is no longer what its manifest says; put it "
            "back, or start a new run"
        )
    if not signed.first_day <= day_of(now) <= signed.last_day:
        raise RunDirectoryError(
            f"the run's manifest is valid from {shown_day(signed.first_day)} to {shown_day(signed.last_day)} "
            "(UTC); start a new run"
        )


def least_group(config: RunConfig, cohort: int) -> int:
    """The smallest roster that a round may come down to: a third of the smallest group can be lost.

    The closing round may ask so many that groups of `group_size` are cut in half.
    """
    if not config.privacy.secagg:
        return 1
    size = config.privacy.group_size
    groups = -(-cohort // size)
    return threshold(max(1, min(cohort // groups, (size + 1) // 2)))
