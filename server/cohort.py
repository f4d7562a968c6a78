"""Who takes part in a round."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence

from penchant.common.errors import TooFewDevices

__all__ = ["next_cohort", "sample_cohort"]


def sample_cohort(members: Sequence[int], size: int, *, seed: int, round: int) -> tuple[int, ...]:
    """Draw `size` of `members` (member numbers); a size of 0 means everyone.

    The draw is deterministic in seed, round and fleet.
    Every device is ranked by a hash of (seed, round, member): a device that joins or leaves moves
    nobody else's rank, so nearly the same cohort is drawn after a reconnect.

    Raises TooFewDevices when fewer than `size` are there.
    """
    _refuse_few(members, size, round)
    ranked = sorted(members, key=lambda member: _rank(seed, round, member))
    return tuple(sorted(ranked[: size or len(ranked)]))


def next_cohort(
    members: Sequence[int], size: int, *, seed: int, round: int, after: int | None
) -> tuple[tuple[int, ...], int]:
    """(the next `size` of `members` in the one order of a run, the last of them); a size of 0 means everyone.

    Under differential privacy each turn costs a person a part of a budget, so turns go round: whoever is
    ready has one before anybody has a second one. The order is that of a hash of (seed, member), and goes on
    behind `after`, the last of the round before, whether or not that one is still there.

    Raises TooFewDevices when fewer than `size` are there.
    """
    _refuse_few(members, size, round)
    ranked = sorted(members, key=lambda member: _rank(seed, 0, member))
    first = 0 if after is None else bisect_right([_rank(seed, 0, m) for m in ranked], _rank(seed, 0, after))
    turn = (ranked[first:] + ranked[:first])[: size or len(ranked)]
    return tuple(sorted(turn)), turn[-1]


def _refuse_few(members: Sequence[int], size: int, round: int) -> None:
    if len(members) < max(size, 1):
        raise TooFewDevices(
            f"round {round} needs {max(size, 1)} devices but {len(members)} are ready; "
            "wait for more, or start a new run with a smaller federation.cohort"
        )


def _rank(seed: int, round: int, member: int) -> bytes:
    prefix = b"penchant cohort" + seed.to_bytes(8, "big") + round.to_bytes(4, "big")
    return hashlib.sha256(prefix + member.to_bytes(8, "big")).digest()
