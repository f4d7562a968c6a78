"""Who takes part in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from penchant.common.errors import TooFewDevices

__all__ = ["sample_cohort"]


def sample_cohort(members: Sequence[int], size: int, *, seed: int, round: int) -> tuple[int, ...]:
    """Draw `size` of `members` (member numbers); a size of 0 means everyone.

    The draw is deterministic in seed, round and fleet.
    Every device is ranked by a hash of (seed, round, member): a device that joins or leaves moves
    nobody else's rank, so nearly the same cohort is drawn after a reconnect.

    Raises TooFewDevices when fewer than `size` are there.
    """
    if len(members) < max(size, 1):
        raise TooFewDevices(
            f"round {round} needs {max(size, 1)} devices but {len(members)} are ready; "
            "wait for more, or lower federation.cohort"
        )
    prefix = b"penchant cohort" + seed.to_bytes(8, "big") + round.to_bytes(4, "big")
    ranked = sorted(members, key=lambda member: hashlib.sha256(prefix + member.to_bytes(8, "big")).digest())
    return tuple(sorted(ranked[: size or len(ranked)]))
