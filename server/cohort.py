"""Who takes part in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from penchant.common.errors import TooFewDevices

__all__ = ["sample_cohort"]


def sample_cohort(
    members: Sequence[int], size: int, *, seed: int, round: int, in_turn: bool = False
) -> tuple[int, ...]:
    """Draw `size` of `members` (member numbers); a size of 0 means everyone.

    The draw is deterministic in seed, round and fleet.
    Every device is ranked by a hash of (seed, round, member): a device that joins or leaves moves
    nobody else's rank, so nearly the same cohort is drawn after a reconnect.

    in_turn: everybody has their turn before anybody has a second one: one order for the whole run, from which
    each round takes the next ones. Under differential privacy, since each turn costs a person a part of a
    budget.

    Raises TooFewDevices when fewer than `size` are there.
    """
    if len(members) < max(size, 1):
        raise TooFewDevices(
            f"round {round} needs {max(size, 1)} devices but {len(members)} are ready; "
            "wait for more, or lower federation.cohort"
        )
    drawn_for = 0 if in_turn else round
    prefix = b"penchant cohort" + seed.to_bytes(8, "big") + drawn_for.to_bytes(4, "big")
    ranked = sorted(members, key=lambda member: hashlib.sha256(prefix + member.to_bytes(8, "big")).digest())
    size = size or len(ranked)
    first = (round - 1) * size % len(ranked) if in_turn else 0
    return tuple(sorted((ranked + ranked)[first : first + size]))
