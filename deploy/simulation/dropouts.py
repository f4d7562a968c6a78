"""Simulated devices that fall silent: what a fleet of phones does to a round.

A straggler is one of them: whoever answers after the server has stopped to wait is out of the round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penchant.common.secagg.stages import EXCHANGES, PLAIN_EXCHANGES, STATUS
from penchant.common.wire.flower import stage_of

__all__ = ["Dropouts"]


@dataclass(frozen=True)
class Dropouts:
    """Who falls silent in which attempt of which round, and from which exchange on.

    Args:
        rate: the probability that a device does, in one attempt.
        seed: of the draws. They hang on nothing but this, the attempt and the device, so that it makes no
            difference who is asked besides, or on which machine.
        masked: whether sums are masked, which takes more exchanges.
    """

    rate: float
    seed: int
    masked: bool

    def __call__(self, node: int, kind: str, group: str) -> bool:
        """Whether a device is silent now.

        Args:
            node: the device's node id.
            kind: the type of the message that it would answer, as ``train.keys``.
            group: the attempt that the message belongs to, as ``3.1``.
        """
        stage = stage_of(kind)
        stages: Sequence[str] = EXCHANGES if self.masked else PLAIN_EXCHANGES
        if stage == STATUS or stage not in stages:
            return False
        draw = np.random.default_rng([self.seed, node, *(int(part) for part in group.split("."))])
        return bool(draw.random() < self.rate and stages.index(stage) >= draw.integers(len(stages)))
